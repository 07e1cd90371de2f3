//! A worker's own thread: hears the primary, sends what waited, and sees the worker out.
//!
//! Owns the receiving half of the channel. So a program that computes, or has no listener yet, is
//! still told what it is told.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::inbox::Pulled;
use super::shared::{Answer, Core, Grant};
use crate::cluster::mailbox::silence;
use crate::cluster::message::Message;
use crate::error::{Error, Result, errno_of};
use crate::protocol::control::{Body, Flushed, Incoming, Received, ToPrimary, ToWorker};
use crate::sys::process;

/// How soon descriptors, or a crowded channel, are looked at again.
const RETRY_MS: u8 = 10;

const CHANNEL: u64 = 0;
const BELL: u64 = 1;
const INBOX: u64 = 2;

#[derive(Debug)]
pub(crate) struct Attendant {
    core: Arc<Core>,
    incoming: Incoming,
    epoll: Epoll,
    /// The channel is open.
    open: bool,
    /// The channel must be tried again without being asked to.
    crowded: bool,
    watches_inbox: bool,
    /// The last word has been said.
    said_farewell: bool,
}

/// Starts the thread.
///
/// # Errors
/// Too few descriptors or threads.
pub(crate) fn start(core: Arc<Core>, incoming: Incoming) -> Result<()> {
    let failed = |errno| Error::system("prepare hearing the primary (epoll)", errno);
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
    epoll.add(&incoming, EpollEvent::new(EpollFlags::EPOLLIN, CHANNEL)).map_err(failed)?;
    epoll.add(&core.bell, EpollEvent::new(EpollFlags::EPOLLIN, BELL)).map_err(failed)?;
    let attendant = Attendant {
        core,
        incoming,
        epoll,
        open: true,
        crowded: false,
        watches_inbox: false,
        said_farewell: false,
    };
    let thread = thread::Builder::new().name("cluster-worker".into());
    thread
        .spawn(move || attendant.run())
        .map(drop)
        .map_err(|error| Error::system("start a worker's own thread", errno_of(&error)))
}

impl Attendant {
    fn run(mut self) {
        let mut ready = [EpollEvent::empty(); 4];
        while !self.core.left.is_complete() {
            self.adjust();
            let count = match self.epoll.wait(&mut ready, self.timeout()) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                // Nothing else can be wrong with a set of our own.
                Err(_) => break,
            };
            for event in &ready[..count] {
                match event.data() {
                    CHANNEL => self.hear(),
                    BELL => silence(&self.core.bell),
                    _ => self.empty_inbox(),
                }
            }
            self.flush();
            if count == 0 {
                self.relieve();
            }
            self.finish_leaving();
        }
    }

    fn timeout(&self) -> EpollTimeout {
        match self.crowded || self.core.starved.load(Ordering::Acquire) {
            true => EpollTimeout::from(RETRY_MS),
            false => EpollTimeout::NONE,
        }
    }

    /// Waits for what is wanted, and for nothing else.
    fn adjust(&mut self) {
        if self.open {
            let wants_room = !self.crowded && self.core.outgoing().has_waiting();
            let mut flags = EpollFlags::empty();
            flags.set(EpollFlags::EPOLLIN, !self.core.messages.is_full());
            flags.set(EpollFlags::EPOLLOUT, wants_room);
            // It was added with the set and is deleted with the end of the channel.
            let _ = self.epoll.modify(&self.incoming, &mut EpollEvent::new(flags, CHANNEL));
        }
        if let Some(inbox) = &self.core.inbox {
            // Nobody accepts: what comes all the same is sent back.
            let wanted = self.core.is_unattended() && !inbox.is_closed();
            if wanted != self.watches_inbox {
                self.watches_inbox = wanted;
                // Added and deleted, since an end would be told whatever is waited for.
                let _ = match wanted {
                    true => self.epoll.add(inbox, EpollEvent::new(EpollFlags::EPOLLIN, INBOX)),
                    false => self.epoll.delete(inbox),
                };
            }
        }
    }

    fn empty_inbox(&mut self) {
        let Some(inbox) = &self.core.inbox else { return };
        if !self.core.is_unattended() {
            // Somebody has begun to accept meanwhile.
            return;
        }
        match inbox.pull(&self.core) {
            Pulled::Something | Pulled::Nothing | Pulled::End => {}
            Pulled::NoRoom => {
                // What this is about can only be sent back with a descriptor to hold it.
                self.core.starved.store(true, Ordering::Release);
                thread::sleep(Duration::from_millis(RETRY_MS.into()));
            }
        }
    }

    fn hear(&mut self) {
        if !self.open {
            return;
        }
        let mut frames: Vec<Received<ToWorker>> = Vec::new();
        let outcome = self.incoming.receive(&mut frames);
        frames.into_iter().for_each(|frame| self.note(frame));
        if outcome.is_err() || self.incoming.is_closed() {
            self.lose_channel();
        }
    }

    fn note(&mut self, frame: Received<ToWorker>) {
        let core = &self.core;
        let mut descriptors = frame.descriptors;
        match frame.body {
            Body::Message { serialization, bytes } => {
                let message = Message::new(serialization, bytes, descriptors, frame.lost);
                core.messages.push(message).wake();
            }
            Body::Word(ToWorker::Listening { sequence, listener, address }) => {
                let descriptor = descriptors.pop();
                self.answer(sequence, Ok(Grant { listener, address, descriptor }));
            }
            Body::Word(ToWorker::ListenFailed { sequence, step, errno }) => {
                let source = Errno::from_raw(errno);
                let error = Error::Listen { address: String::new(), step, source };
                self.answer(sequence, Err(error));
            }
            Body::Word(ToWorker::Closed { listener }) => {
                let mut state = core.state();
                // It may have been opened again meanwhile, which this is not about.
                if state.gates.get(&listener).is_some_and(|gate| gate.is_closed()) {
                    state.gates.remove(&listener);
                }
            }
            Body::Word(ToWorker::Drain { grace_ms }) => {
                core.begin_to_leave(grace_ms.map(Duration::from_millis));
            }
        }
    }

    fn answer(&self, sequence: u32, grant: Result<Grant>) {
        let mut state = self.core.state();
        match (state.answers.get_mut(&sequence), grant) {
            (Some(place), grant) => {
                let before = std::mem::replace(place, Answer::Given(grant));
                drop(state);
                self.core.changed.notify_all();
                if let Answer::Awaited(Some(waker)) = before {
                    waker.wake();
                }
            }
            // Nobody waits for it any more.
            (None, Ok(grant)) => {
                drop(state);
                self.core.give_up(grant.listener);
            }
            (None, Err(_)) => {}
        }
    }

    /// The channel has ended. If that was not agreed upon, so does the process, unless the program
    /// has something else in mind.
    fn lose_channel(&mut self) {
        self.open = false;
        let _ = self.epoll.delete(&self.incoming);
        self.core.outgoing().close();
        let mut state = self.core.state();
        state.connected = false;
        let handler = state.on_disconnect.take();
        self.core.announce(state);
        if self.core.is_leaving() {
            return;
        }
        match handler {
            Some(handler) => {
                self.core.messages.close().wake();
                // One that panics has said why; the worker must leave all the same.
                let _ = catch_unwind(AssertUnwindSafe(handler));
                self.core.begin_to_leave(None);
            }
            None => process::end(0),
        }
    }

    fn flush(&mut self) {
        if self.open {
            // An end that is gone is noticed when it is read.
            let flushed = self.core.outgoing().flush().unwrap_or(Flushed::Everything);
            self.crowded = flushed == Flushed::Crowded;
        }
    }

    /// Has those look again who found no descriptor free, as soon as there may be some.
    fn relieve(&self) {
        if self.core.starved.load(Ordering::Acquire)
            && self.core.inbox.as_ref().is_none_or(|inbox| inbox.has_room())
        {
            self.core.starved.store(false, Ordering::Release);
            self.core.state().open_gates().for_each(|gate| gate.kick());
        }
    }

    /// When everything is served and nothing will come: says goodbye and closes the channel.
    fn finish_leaving(&mut self) {
        let core = &self.core;
        if !core.is_leaving() || core.open.load(Ordering::SeqCst) > 0 {
            return;
        }
        let inbox_closed = core.inbox.as_ref().is_none_or(|inbox| inbox.is_closed());
        if !inbox_closed || !core.state().open_gates().all(|gate| gate.is_done()) {
            return;
        }
        if self.open && !self.said_farewell {
            self.said_farewell = true;
            let handoff = core.latency();
            let _ = core.say(&ToPrimary::Farewell { handoff }, vec![]);
        }
        if self.open && core.outgoing().has_waiting() {
            return;
        }
        self.open = false;
        core.outgoing().close();
        core.state().connected = false;
        core.messages.close().wake();
        core.left.complete();
    }
}

impl Drop for Attendant {
    /// Nobody waits for a thread that is no more, whatever has ended it: the primary sees the end
    /// of the channel, and the program that of everything.
    fn drop(&mut self) {
        if self.core.left.is_complete() {
            return;
        }
        self.core.outgoing().close();
        self.core.messages.close().wake();
        let mut state = self.core.state();
        state.connected = false;
        self.core.leaving.store(true, Ordering::SeqCst);
        state.open_gates().for_each(|gate| gate.end());
        self.core.announce(state);
        self.core.left.complete();
    }
}
