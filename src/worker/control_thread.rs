//! The thread in each worker that receives the primary's messages, sends queued ones and completes
//! the leaving.
//!
//! Owns the receiving half of the channel. A program that is computing, or has no listener yet,
//! therefore still reacts to its primary.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::inbox::Pulled;
use super::shared::{Answer, Shared};
use crate::error::{Error, Result, errno_of};
use crate::message::Message;
use crate::protocol::control::{Body, Flushed, Incoming, Received, ToWorker};
use crate::protocol::worker_end::{FromPrimary, Grant};
use crate::sys::process;

/// Interval for retrying when descriptors are exhausted or too many are in flight.
const RETRY_MS: u8 = 10;

const CHANNEL: u64 = 0;
const WAKER: u64 = 1;
const INBOX: u64 = 2;

#[derive(Debug)]
pub(crate) struct ControlThread {
    shared: Arc<Shared>,
    incoming: Incoming,
    epoll: Epoll,
    /// The channel is open.
    open: bool,
    /// Too many descriptors are in flight: retry after [`RETRY_MS`].
    crowded: bool,
    /// The inbox, to be watched while no listener reads it.
    inbox: Option<Arc<OwnedFd>>,
    watches_inbox: bool,
}

/// Starts the thread.
///
/// # Errors
/// Descriptors or threads are exhausted.
pub(super) fn start(
    shared: Arc<Shared>,
    incoming: Incoming,
    inbox: Option<Arc<OwnedFd>>,
) -> Result<()> {
    let failed = |errno| Error::system("watch the channel to the primary (epoll)", errno);
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
    epoll.add(&incoming, EpollEvent::new(EpollFlags::EPOLLIN, CHANNEL)).map_err(failed)?;
    epoll.add(&shared.waker, EpollEvent::new(EpollFlags::EPOLLIN, WAKER)).map_err(failed)?;
    let control_thread = ControlThread {
        shared,
        incoming,
        epoll,
        open: true,
        crowded: false,
        inbox,
        watches_inbox: false,
    };
    let thread = thread::Builder::new().name("cluster-worker".into());
    thread
        .spawn(move || control_thread.run())
        .map(drop)
        .map_err(|error| Error::system("start a worker's own thread", errno_of(&error)))
}

impl ControlThread {
    fn run(mut self) {
        let mut ready = [EpollEvent::empty(); 4];
        while !self.shared.left.is_complete() {
            self.adjust();
            let count = match self.epoll.wait(&mut ready, self.timeout()) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                // No other error can occur on a set that this thread owns.
                Err(_) => break,
            };
            for event in &ready[..count] {
                match event.data() {
                    CHANNEL => self.on_channel_ready(),
                    WAKER => {
                        self.shared.waker.clear();
                    }
                    _ => self.empty_inbox(),
                }
            }
            self.flush();
            if count == 0 {
                self.wake_starved();
            }
            self.finish_leaving();
        }
    }

    fn timeout(&self) -> EpollTimeout {
        match self.crowded || self.shared.starved.load(Ordering::Acquire) {
            true => EpollTimeout::from(RETRY_MS),
            false => EpollTimeout::NONE,
        }
    }

    /// Updates the set of polled descriptors.
    fn adjust(&mut self) {
        if self.open {
            let wants_room = !self.crowded && self.shared.outgoing().has_waiting();
            let mut flags = EpollFlags::empty();
            flags.set(EpollFlags::EPOLLIN, !self.shared.messages.is_full());
            flags.set(EpollFlags::EPOLLOUT, wants_room);
            // The channel was added with the set and is removed when it ends.
            let _ = self.epoll.modify(&self.incoming, &mut EpollEvent::new(flags, CHANNEL));
        }
        if let Some(inbox) = &self.inbox {
            // While no listener accepts, sockets that still arrive are sent back.
            let wanted = self.shared.intake().is_unattended();
            if wanted != self.watches_inbox {
                self.watches_inbox = wanted;
                // Added and removed, because epoll reports a hang-up for any registered descriptor.
                let _ = match wanted {
                    true => self.epoll.add(inbox, EpollEvent::new(EpollFlags::EPOLLIN, INBOX)),
                    false => self.epoll.delete(inbox),
                };
            }
        }
    }

    fn empty_inbox(&mut self) {
        let mut intake = self.shared.intake();
        if !intake.is_unattended() {
            // A listener has begun to accept.
            return;
        }
        let pulled = intake.empty();
        let strays = intake.take_strays();
        drop(intake);
        self.shared.give_back(strays);
        if pulled == Pulled::NoRoom {
            // The socket can be sent back only once a descriptor is free to receive it.
            self.shared.starved.store(true, Ordering::Release);
            thread::sleep(Duration::from_millis(RETRY_MS.into()));
        }
    }

    fn on_channel_ready(&mut self) {
        if !self.open {
            return;
        }
        let mut frames: Vec<Received<ToWorker>> = Vec::new();
        let outcome = self.incoming.receive(&mut frames);
        frames.into_iter().for_each(|frame| self.on_frame(frame));
        if outcome.is_err() || self.incoming.is_closed() {
            self.lose_channel();
        }
    }

    fn on_frame(&mut self, frame: Received<ToWorker>) {
        let shared = &self.shared;
        let control = match frame.body {
            Body::Control(control) => control,
            Body::Message { serialization, bytes } => {
                let message = Message::new(serialization, bytes, frame.descriptors, frame.lost);
                return shared.messages.push(message).wake();
            }
        };
        let message = shared.state().conversation.on_message(control, frame.descriptors);
        match message {
            FromPrimary::Answer { sequence, grant } => self.on_answer(sequence, grant),
            // A closed listener has no queue any more.
            FromPrimary::Closed { .. } => {}
            FromPrimary::Leave { grace } => shared.begin_to_leave(grace),
        }
    }

    fn on_answer(&self, sequence: u32, grant: Result<Grant>) {
        let mut state = self.shared.state();
        match (state.answers.get_mut(&sequence), grant) {
            (Some(place), grant) => {
                let before = std::mem::replace(place, Answer::Given(grant));
                drop(state);
                self.shared.changed.notify_all();
                if let Answer::Awaited(Some(waker)) = before {
                    waker.wake();
                }
            }
            // The requester has given up.
            (None, Ok(grant)) => {
                drop(state);
                self.shared.give_up(grant.listener);
            }
            (None, Err(_)) => {}
        }
    }

    /// Handles the end of the channel. If it was not expected, the process exits, unless the
    /// program has set a handler.
    fn lose_channel(&mut self) {
        self.open = false;
        let _ = self.epoll.delete(&self.incoming);
        // Before the end of the channel: a program whose message is refused then finds that it is
        // not connected any more.
        self.shared.state().connected = false;
        self.shared.outgoing().close();
        let mut state = self.shared.state();
        let handler = state.on_disconnect.take();
        self.shared.wake_waiting(state);
        if self.shared.is_leaving() {
            return;
        }
        match handler {
            Some(handler) => {
                self.shared.messages.close().wake();
                // A panicking handler has printed its message; the worker must leave all the same.
                let _ = catch_unwind(AssertUnwindSafe(handler));
                self.shared.begin_to_leave(None);
            }
            None => process::end(0),
        }
    }

    fn flush(&mut self) {
        if self.open {
            // A closed peer is detected by the next read.
            let flushed = self.shared.outgoing().flush().unwrap_or(Flushed::Everything);
            self.crowded = flushed == Flushed::Crowded;
        }
    }

    /// Wakes the listeners that found no free descriptor once there may be one.
    fn wake_starved(&self) {
        if self.shared.starved.load(Ordering::Acquire) && self.shared.intake().has_room() {
            self.shared.starved.store(false, Ordering::Release);
            self.shared.intake().wake_all();
        }
    }

    /// Once all connections are finished and no more will come, sends the last message and closes
    /// the channel.
    fn finish_leaving(&mut self) {
        let shared = &self.shared;
        if !shared.is_leaving() || !shared.intake().is_done() {
            return;
        }
        let mut state = shared.state();
        if self.open
            && let Some(message) = state.conversation.farewell(shared.intake().end.latency())
        {
            let _ = shared.send_control(&message, vec![]);
        }
        drop(state);
        if self.open && shared.outgoing().has_waiting() {
            return;
        }
        self.open = false;
        shared.state().connected = false;
        shared.outgoing().close();
        shared.messages.close().wake();
        shared.left.complete();
    }
}

impl Drop for ControlThread {
    /// However the thread ends, its waiters are released: the primary sees the channel close, and
    /// the program sees the end of every listener.
    fn drop(&mut self) {
        if self.shared.left.is_complete() {
            return;
        }
        // Cleared first: a program whose message is refused asks for this.
        self.shared.leaving.store(true, Ordering::SeqCst);
        self.shared.state().connected = false;
        self.shared.outgoing().close();
        self.shared.messages.close().wake();
        let state = self.shared.state();
        self.shared.intake().end_all();
        self.shared.wake_waiting(state);
        self.shared.begins_to_leave.complete();
        self.shared.left.complete();
    }
}
