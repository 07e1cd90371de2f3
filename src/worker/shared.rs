//! The state shared by all parts of a worker process: channel, counters, listeners.
//!
//! Owns the locks. They are acquired in this order only: inbox, state, the queue of a listener,
//! channel, counters.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::{self, Context, Poll};
use std::time::Duration;

use crate::sys::waker::Waker;
use nix::errno::Errno;
use serde::Serialize;

use super::accept_queue::AcceptQueue;
use super::inbox::Inbox;
use crate::error::{Error, Result};
use crate::id::{ListenerId, WorkerId};
use crate::message::Message;
use crate::protocol::control::{Flushed, ListenOptions, Outgoing, Serialization, ToPrimary};
use crate::protocol::latency::HandoffLatency;
use crate::protocol::scoreboard::{Statistic, WorkerPage};
use crate::sync::completion::Completion;
use crate::sync::mailbox::Mailbox;
use crate::sys::clock::monotonic_ns;

/// Shared by a worker's handles, listeners, connections and control thread.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: WorkerId,
    pub(crate) serialization: Serialization,
    pub(crate) outgoing: Mutex<Outgoing>,
    /// Wakes the control thread.
    pub(crate) waker: Arc<Waker>,
    pub(crate) books: Mutex<Books>,
    /// Source of the primary's sockets; `None` if the workers accept.
    pub(crate) inbox: Option<Inbox>,
    pub(crate) state: Mutex<State>,
    pub(crate) changed: Condvar,
    pub(crate) messages: Arc<Mailbox<Message>>,
    /// Number of connections held by the program.
    pub(crate) open: AtomicU64,
    pub(crate) leaving: AtomicBool,
    /// A listener found no free descriptor.
    pub(crate) starved: AtomicBool,
    /// Completes when the worker has left.
    pub(crate) left: Completion,
}

/// The counters on the scoreboard page.
#[derive(Debug)]
pub(crate) struct Books {
    pub(crate) page: WorkerPage,
    /// Wakes the primary's data path.
    pub(crate) waker: Waker,
    pub(crate) latency: HandoffLatency,
}

/// State of a request to listen.
#[derive(Debug)]
pub(crate) enum Answer {
    /// No reply yet, with the waker of the waiting task, if any.
    Awaited(Option<task::Waker>),
    /// The reply.
    Given(Result<Grant>),
}

/// An address that the primary granted.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) listener: ListenerId,
    /// The bound address.
    pub(crate) address: String,
    /// Socket from which this worker accepts or receives directly.
    pub(crate) descriptor: Option<OwnedFd>,
}

pub(crate) struct State {
    pub(crate) connected: bool,
    pub(crate) sequence: u32,
    pub(crate) answers: BTreeMap<u32, Answer>,
    pub(crate) queues: BTreeMap<ListenerId, Arc<AcceptQueue>>,
    /// Queues of exclusive listeners, unknown to the primary.
    pub(crate) exclusive: Vec<Arc<AcceptQueue>>,
    pub(crate) grace: Option<Duration>,
    pub(crate) on_disconnect: Option<Box<dyn FnOnce() + Send>>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("connected", &self.connected)
            .field("gates", &self.queues.len())
            .finish_non_exhaustive()
    }
}

impl State {
    /// Every open queue.
    pub(crate) fn open_queues(&self) -> impl Iterator<Item = &Arc<AcceptQueue>> {
        self.queues.values().chain(&self.exclusive).filter(|queue| !queue.is_closed())
    }
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the worker's state")
    }

    pub(crate) fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().expect("nothing panics while it holds the channel")
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().expect("nothing panics while it holds the counters")
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Whether no listener reads the inbox.
    pub(crate) fn is_unattended(&self) -> bool {
        self.state().queues.values().all(|queue| queue.is_closed())
    }

    /// Sends a control message to the primary.
    pub(crate) fn say(&self, word: &ToPrimary, descriptors: Vec<OwnedFd>) -> Result<()> {
        let flushed = self.outgoing().send(word, descriptors)?;
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

    /// Counts a connection accepted by the program.
    pub(crate) fn claim(&self, accepted_ns: u64) {
        self.open.fetch_add(1, Ordering::AcqRel);
        let now_ns = monotonic_ns();
        let mut books = self.books();
        books.latency.record(accepted_ns, now_ns);
        books.page.add_claimed(1, now_ns);
        books.publish();
    }

    /// Counts a connection that the program has accepted from a socket of this worker.
    pub(crate) fn claim_own(&self, accepted_ns: u64) {
        self.open.fetch_add(1, Ordering::AcqRel);
        let mut books = self.books();
        books.latency.record(accepted_ns, accepted_ns);
        books.page.add_own();
        books.publish();
    }

    /// Counts a connection finished by the program.
    pub(crate) fn finish(&self) {
        let mut books = self.books();
        books.page.add_finished(1);
        books.publish();
        drop(books);
        // Ordered with `begin_to_leave`: at least one of the two sees the other's change.
        self.open.fetch_sub(1, Ordering::SeqCst);
        if self.leaving.load(Ordering::SeqCst) {
            self.waker.wake();
        }
    }

    /// Counts connections lost on receipt because no descriptor was free.
    pub(crate) fn lose(&self, count: usize) {
        let count = count as u64;
        let mut books = self.books();
        books.page.add(Statistic::Truncated, count);
        books.page.add_claimed(count, monotonic_ns());
        books.page.add_finished(count);
        books.publish();
    }

    /// Answers a probe of the primary.
    pub(crate) fn answer_probe(&self) {
        let mut books = self.books();
        books.page.answer_probe();
        books.publish();
    }

    /// Latency from accept to claim over all connections.
    pub(crate) fn latency(&self) -> Option<crate::protocol::control::LatencySummary> {
        self.books().latency.summary()
    }

    /// Sends a socket back that no listener here will accept.
    pub(crate) fn give_back(&self, listener: ListenerId, accepted_ns: u64, socket: OwnedFd) {
        if self.say(&ToPrimary::Return { listener, accepted_ns }, vec![socket]).is_err() {
            // The primary cannot take it back either, so it is dropped and counted as lost.
            self.lose(1);
        }
    }

    /// Requests an address from the primary and returns the number of the request.
    pub(crate) fn ask(&self, address: &str, options: ListenOptions) -> Result<u32> {
        let mut state = self.state();
        self.ensure_staying(&state)?;
        let sequence = state.sequence;
        state.sequence = state.sequence.wrapping_add(1);
        state.answers.insert(sequence, Answer::Awaited(None));
        drop(state);
        let word = ToPrimary::Listen { sequence, address: address.to_owned(), options };
        let said = self.say(&word, vec![]);
        if said.is_err() {
            self.state().answers.remove(&sequence);
        }
        said.map(|()| sequence)
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
            let _ = self.say(&ToPrimary::Close { listener }, vec![]);
        }
    }

    /// Wakes everything that waits for the primary.
    pub(crate) fn announce(&self, mut state: MutexGuard<'_, State>) {
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
        state.open_queues().for_each(|queue| queue.kick());
        self.waker.wake();
        self.announce(state);
    }
}

impl Books {
    /// Publishes the counters, and wakes the primary if it has asked for it.
    fn publish(&mut self) {
        if self.page.publish() {
            // A bell that is full is ringing already.
            self.waker.wake();
        }
    }
}

/// The worker is leaving, or has lost its primary.
pub(crate) fn leaving() -> Error {
    Error::system("listen in a worker that is leaving", Errno::ECANCELED)
}
