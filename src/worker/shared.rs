//! The state shared by all parts of a worker process: channel, counters, listeners.
//!
//! Owns the locks. They are acquired in this order only: headers of a listener
//! (`proxied`), state, intake, channel.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::{self, Context, Poll};
use std::time::Duration;

use crate::sys::waker::Waker;
use nix::errno::Errno;
use serde::Serialize;

use super::inbox::HandedOver;
use super::intake::WorkerIntake;
use crate::error::{Error, Result};
use crate::id::{ListenerId, WorkerId};
use crate::message::Message;
use crate::protocol::control::{Flushed, ListenOptions, Outgoing, Serialization, ToPrimary};
use crate::protocol::worker_end::{Conversation, Grant};
use crate::sync::completion::Completion;
use crate::sync::mailbox::Mailbox;

/// Shared by a worker's handles, listeners, connections and control thread.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: WorkerId,
    pub(crate) serialization: Serialization,
    pub(crate) outgoing: Mutex<Outgoing>,
    /// Wakes the control thread.
    pub(crate) waker: Arc<Waker>,
    pub(super) intake: Mutex<WorkerIntake>,
    pub(crate) state: Mutex<State>,
    pub(crate) changed: Condvar,
    pub(crate) messages: Arc<Mailbox<Message>>,
    pub(crate) leaving: AtomicBool,
    /// A listener found no free descriptor.
    pub(crate) starved: AtomicBool,
    /// Completes when the worker begins to leave.
    pub(super) begins_to_leave: Completion,
    /// Completes when the worker has left.
    pub(crate) left: Completion,
}

/// State of a request to listen.
#[derive(Debug)]
pub(crate) enum Answer {
    /// No reply yet, with the waker of the waiting task, if any.
    Awaited(Option<task::Waker>),
    /// The reply.
    Given(Result<Grant>),
}

pub(crate) struct State {
    pub(crate) connected: bool,
    pub(super) conversation: Conversation,
    pub(crate) answers: BTreeMap<u32, Answer>,
    pub(crate) grace: Option<Duration>,
    pub(crate) on_disconnect: Option<Box<dyn FnOnce() + Send>>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("connected", &self.connected).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the worker's state")
    }

    pub(crate) fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().expect("nothing panics while it holds the channel")
    }

    pub(super) fn intake(&self) -> MutexGuard<'_, WorkerIntake> {
        self.intake.lock().expect("nothing panics while it holds the intake")
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Sends a control message to the primary.
    pub(crate) fn send_control(
        &self,
        message: &ToPrimary,
        descriptors: Vec<OwnedFd>,
    ) -> Result<()> {
        let flushed = self.outgoing().send(message, descriptors)?;
        self.sent(flushed);
        Ok(())
    }

    /// Sends a message of the program.
    pub(crate) fn send<T: Serialize + ?Sized>(
        &self,
        message: &T,
        descriptors: Vec<OwnedFd>,
    ) -> Result<()> {
        let bytes = self.serialization.encode(message)?;
        let flushed = self.outgoing().send_message(self.serialization, &bytes, descriptors)?;
        self.sent(flushed);
        Ok(())
    }

    fn sent(&self, flushed: Flushed) {
        if flushed != Flushed::Everything {
            self.waker.wake();
        }
    }

    /// Counts a connection finished by the program.
    pub(super) fn finish(&self, listener: Option<ListenerId>) {
        self.intake().finish(listener);
        // Ordered by the lock with `ControlThread::finish_leaving`: at least one of the two sees
        // the other's change.
        if self.is_leaving() {
            self.waker.wake();
        }
    }

    /// No descriptor is free: the control thread wakes the listeners when there may be one.
    pub(super) fn starve(&self) {
        self.starved.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Sends sockets back that no listener here will accept.
    pub(super) fn give_back(&self, sockets: Vec<HandedOver>) {
        for HandedOver { listener, socket, accepted_ns } in sockets {
            if self
                .send_control(&ToPrimary::Return { listener, accepted_ns }, vec![socket])
                .is_err()
            {
                // The primary cannot take it back either, so it is dropped and counted as lost.
                self.intake().lose_one();
            }
        }
    }

    /// Requests an address from the primary and returns the number of the request.
    pub(crate) fn ask(&self, address: &str, options: ListenOptions) -> Result<u32> {
        let mut state = self.state();
        self.ensure_staying(&state)?;
        let (sequence, message) = state.conversation.ask(address, options);
        state.answers.insert(sequence, Answer::Awaited(None));
        drop(state);
        let sent = self.send_control(&message, vec![]);
        if sent.is_err() {
            let mut state = self.state();
            state.conversation.forget(sequence);
            state.answers.remove(&sequence);
        }
        sent.map(|()| sequence)
    }

    /// The reply to a request; an error if none can come any more; `None` while it is pending.
    fn take_answer(&self, state: &mut State, sequence: u32) -> Option<Result<Grant>> {
        match state.answers.remove(&sequence) {
            Some(Answer::Given(grant)) => Some(grant),
            Some(awaited) if self.ensure_staying(state).is_ok() => {
                state.answers.insert(sequence, awaited);
                None
            }
            Some(Answer::Awaited(_)) | None => Some(Err(leaving())),
        }
    }

    /// Blocks the thread until the primary replies.
    pub(crate) fn await_answer(&self, sequence: u32) -> Result<Grant> {
        let mut state = self.state();
        loop {
            if let Some(grant) = self.take_answer(&mut state, sequence) {
                return grant;
            }
            let changed = self.changed.wait(state);
            state = changed.expect("nothing panics while it holds the worker's state");
        }
    }

    /// As `await_answer` for a task, which is woken when there may be a reply.
    pub(crate) fn poll_answer(
        &self,
        sequence: u32,
        context: &mut Context<'_>,
    ) -> Poll<Result<Grant>> {
        let mut state = self.state();
        if let Some(grant) = self.take_answer(&mut state, sequence) {
            return Poll::Ready(grant);
        }
        state.answers.insert(sequence, Answer::Awaited(Some(context.waker().clone())));
        Poll::Pending
    }

    /// Forgets a request whose requester has given up.
    pub(crate) fn forget_request(&self, sequence: u32) {
        let forgotten = self.state().answers.remove(&sequence);
        if let Some(Answer::Given(Ok(grant))) = forgotten {
            self.give_up(grant.listener);
        }
    }

    /// Tells the primary that this worker does not serve an address.
    pub(crate) fn give_up(&self, listener: ListenerId) {
        if !self.is_leaving() {
            // A lost primary has already closed it.
            let _ = self.send_control(&ToPrimary::Close { listener }, vec![]);
        }
    }

    /// Tells the primary once that this worker leaves. A lost primary does not need it.
    pub(super) fn send_leaving(&self) {
        let message = self.state().conversation.leave();
        if let Some(message) = message {
            let _ = self.send_control(&message, vec![]);
        }
    }

    /// Wakes everything that waits for the primary.
    pub(crate) fn wake_waiting(&self, mut state: MutexGuard<'_, State>) {
        let wakers: Vec<task::Waker> = state
            .answers
            .values_mut()
            .filter_map(|answer| match answer {
                Answer::Awaited(waker) => waker.take(),
                Answer::Given(_) => None,
            })
            .collect();
        drop(state);
        self.changed.notify_all();
        wakers.into_iter().for_each(task::Waker::wake);
    }

    fn ensure_staying(&self, state: &State) -> Result<()> {
        match state.connected && !self.is_leaving() {
            true => Ok(()),
            false => Err(leaving()),
        }
    }

    /// Starts to leave: no new connections; those already handed over are still served.
    pub(crate) fn begin_to_leave(&self, grace: Option<Duration>) {
        let mut state = self.state();
        if self.leaving.swap(true, Ordering::SeqCst) {
            return;
        }
        state.grace = grace;
        // Workers that accept directly take what is queued, then see the end.
        self.intake().wake_all();
        self.waker.wake();
        self.wake_waiting(state);
        self.begins_to_leave.complete();
    }
}

/// The worker is leaving, or has lost its primary.
pub(crate) fn leaving() -> Error {
    Error::system("listen in a worker that is leaving", Errno::ECANCELED)
}
