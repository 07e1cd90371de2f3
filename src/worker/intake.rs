//! Connections on their way to the program: the inbox, the queue of each listener, the counters.
//!
//! All of it is behind one lock, taken once for a connection that arrives and once for one that
//! ends. A message is read by the caller that accepts, who gets its connection at once; only
//! connections for others wait in queues.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;

use super::accept_queue::{AcceptQueue, Source};
use super::inbox::{HandedOver, Inbox, Pulled};
use super::wait_set::Waiting;
use crate::error::Result;
use crate::id::ListenerId;
use crate::protocol::worker_end::WorkerEnd;
use crate::sys::clock::monotonic_ns;
use crate::sys::listener::Listener as Socket;

/// What a worker has received, claimed and finished.
#[derive(Debug)]
pub(super) struct WorkerIntake {
    pub(super) end: WorkerEnd,
    /// Source of the primary's sockets; `None` if the workers accept.
    inbox: Option<Inbox>,
    queues: BTreeMap<QueueKey, AcceptQueue>,
    /// Exclusive listeners so far.
    exclusive: u64,
    /// Number of connections held by the program.
    open: usize,
    /// Sockets for listeners that this worker does not serve.
    strays: Vec<HandedOver>,
}

/// Names a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum QueueKey {
    /// Of a listener of the cluster.
    Shared(ListenerId),
    /// Of a listener that the primary does not know.
    Exclusive(u64),
}

impl QueueKey {
    /// The listener, if the primary knows it.
    pub(super) fn listener(self) -> Option<ListenerId> {
        match self {
            Self::Shared(id) => Some(id),
            Self::Exclusive(_) => None,
        }
    }
}

/// When a caller claims a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claims {
    /// When it has none to work on: it blocks until there is one.
    WhenIdle,
    /// Whenever it asks. Behind a slow turn it finds nothing until its loop has turned once more.
    Paced,
}

/// What a caller gets that accepts.
#[derive(Debug)]
pub(super) enum Taken {
    /// A connection, which is claimed, and when it was accepted.
    Connection(OwnedFd, u64),
    /// Nothing for now.
    Nothing,
    /// Nothing until a descriptor is free.
    NoRoom,
    /// No further connections will come.
    End,
    /// The own socket failed.
    Failed(Errno),
}

impl WorkerIntake {
    pub(super) fn new(end: WorkerEnd, inbox: Option<Inbox>) -> Self {
        Self { end, inbox, queues: BTreeMap::new(), exclusive: 0, open: 0, strays: Vec::new() }
    }

    /// Opens the queue of a listener, with a socket of this worker if there is one. `None` if it
    /// could be fed from nowhere.
    pub(super) fn open(&mut self, id: ListenerId, own: Option<Socket>) -> Result<Option<Waiting>> {
        let inbox = self.inbox.as_ref().filter(|inbox| !inbox.is_closed()).map(AsFd::as_fd);
        if own.is_none() && self.inbox.is_none() {
            return Ok(None);
        }
        let queue = AcceptQueue::new(own, inbox)?;
        let waiting = queue.wait_set();
        self.queues.insert(QueueKey::Shared(id), queue);
        Ok(Some(waiting))
    }

    /// Opens the queue of a listener that the primary does not know.
    pub(super) fn open_exclusive(&mut self, own: Socket) -> Result<(QueueKey, Waiting)> {
        let queue = AcceptQueue::new(Some(own), None)?;
        let (key, waiting) = (QueueKey::Exclusive(self.exclusive), queue.wait_set());
        self.exclusive += 1;
        self.queues.insert(key, queue);
        Ok((key, waiting))
    }

    /// Closes a queue and returns what was not accepted.
    pub(super) fn close(&mut self, key: QueueKey, waiting: &Waiting) -> Vec<HandedOver> {
        // An address that has been opened again has another queue.
        match self.queues.get(&key).is_some_and(|queue| queue.is(waiting)) {
            true => self.queues.remove(&key).map(|queue| queue.waiting.into()).unwrap_or_default(),
            false => Vec::new(),
        }
    }

    /// Takes the next connection of a listener, from its queue, its own socket or the inbox, and
    /// claims it. Behind `leaving` an empty own socket is at its end.
    pub(super) fn take(&mut self, key: QueueKey, claims: Claims, leaving: &AtomicBool) -> Taken {
        let Some(queue) = self.queues.get_mut(&key) else { return Taken::End };
        if claims == Claims::Paced && queue.pace.works_first(monotonic_ns()) {
            queue.wake_again();
            return Taken::Nothing;
        }
        let mut own_is_empty = false;
        loop {
            let Some(queue) = self.queues.get_mut(&key) else { return Taken::End };
            if let Some(handed) = queue.waiting.pop_front() {
                return self.claim(key, handed);
            }
            if queue.has_ended() {
                return Taken::End;
            }
            match (queue.next_source(own_is_empty), &mut self.inbox) {
                (Source::Own, inbox) => match queue.accept_own() {
                    Ok(Some(socket)) => return self.claim_own(key, socket),
                    // Read behind the lock: whatever sets it wakes this queue later.
                    Ok(None) if leaving.load(Ordering::Acquire) => queue.end_own(),
                    Ok(None) => own_is_empty = true,
                    // The client disconnected while queued (see `accept(2)`).
                    Err(Errno::ECONNABORTED | Errno::EINTR | Errno::EPROTO | Errno::EPERM) => {}
                    Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => {
                        queue.pend(inbox.as_ref().map(AsFd::as_fd), false);
                        return Taken::NoRoom;
                    }
                    Err(errno) => return Taken::Failed(errno),
                },
                (Source::Inbox, Some(inbox)) => match inbox.pull(&mut self.end, self.open) {
                    Pulled::Message => self.sort(key),
                    Pulled::Nothing if !own_is_empty && queue.has_own() => {}
                    Pulled::Nothing => {
                        queue.pend(Some(inbox.as_fd()), true);
                        queue.pace.on_nothing(monotonic_ns());
                        return Taken::Nothing;
                    }
                    Pulled::NoRoom => {
                        queue.pend(Some(inbox.as_fd()), false);
                        return Taken::NoRoom;
                    }
                    Pulled::End => self.queues.values_mut().for_each(AcceptQueue::end_inbox),
                },
                (Source::Inbox | Source::Neither, inbox) => {
                    queue.pend(inbox.as_ref().map(AsFd::as_fd), true);
                    return Taken::Nothing;
                }
            }
        }
    }

    fn claim(&mut self, key: QueueKey, handed: HandedOver) -> Taken {
        let HandedOver { socket, accepted_ns, .. } = handed;
        let now_ns = monotonic_ns();
        self.open += 1;
        self.end.claim(accepted_ns, now_ns);
        self.end.publish();
        if let Some(queue) = self.queues.get_mut(&key) {
            queue.pace.on_claim(accepted_ns, now_ns);
            if !queue.waiting.is_empty() {
                // Other callers can have the rest.
                queue.wake();
            }
        }
        Taken::Connection(socket, accepted_ns)
    }

    fn claim_own(&mut self, key: QueueKey, socket: OwnedFd) -> Taken {
        let now_ns = monotonic_ns();
        self.open += 1;
        self.end.record_latency(now_ns, now_ns);
        self.end.claim_own(key.listener(), now_ns);
        self.end.publish();
        if let Some(queue) = self.queues.get_mut(&key) {
            queue.note_own_claim(now_ns);
        }
        Taken::Connection(socket, now_ns)
    }

    /// Adds what has arrived to the queues of its listeners, and wakes the callers of others than
    /// the one who reads.
    fn sort(&mut self, reader: QueueKey) {
        let Some(inbox) = &mut self.inbox else { return };
        for handed in inbox.arrived.drain(..) {
            let key = QueueKey::Shared(handed.listener);
            match self.queues.get_mut(&key) {
                Some(queue) => {
                    if key != reader {
                        queue.wake();
                    }
                    queue.waiting.push_back(handed);
                }
                None => self.strays.push(handed),
            }
        }
        if self.queues.get(&reader).is_none_or(|queue| queue.waiting.is_empty()) {
            // Otherwise the claim that follows makes probes and losses visible.
            self.end.publish();
        }
    }

    /// Reads a message for which there is no listener any more.
    pub(super) fn empty(&mut self) -> Pulled {
        let Some(inbox) = &mut self.inbox else { return Pulled::End };
        let pulled = inbox.pull(&mut self.end, self.open);
        self.end.publish();
        self.strays.extend(inbox.arrived.drain(..));
        pulled
    }

    /// The sockets that are to go back to the primary.
    pub(super) fn take_strays(&mut self) -> Vec<HandedOver> {
        std::mem::take(&mut self.strays)
    }

    /// Counts a connection finished by the program.
    pub(super) fn finish(&mut self, listener: Option<ListenerId>) {
        self.open -= 1;
        self.end.finish(listener, monotonic_ns());
        self.end.publish();
    }

    /// Counts a socket that could not be sent back.
    pub(super) fn lose_one(&mut self) {
        self.end.lose(1, monotonic_ns());
        self.end.publish();
    }

    /// Wakes the callers of a listener.
    pub(super) fn wake(&mut self, key: QueueKey) {
        if let Some(queue) = self.queues.get_mut(&key) {
            queue.wake();
        }
    }

    /// Wakes no caller of a listener that is at its end, until `wake`.
    pub(super) fn suspend_wakes(&mut self, key: QueueKey) {
        if let Some(queue) = self.queues.get_mut(&key) {
            queue.pend(None, true);
        }
    }

    /// Wakes the callers of every listener.
    pub(super) fn wake_all(&mut self) {
        self.queues.values_mut().for_each(AcceptQueue::wake);
    }

    /// Ends every queue: callers see the end behind what is in it.
    pub(super) fn end_all(&mut self) {
        for queue in self.queues.values_mut() {
            queue.end_own();
            queue.end_inbox();
        }
    }

    /// Whether no listener reads the inbox, although it is open.
    pub(super) fn is_unattended(&self) -> bool {
        self.inbox.as_ref().is_some_and(|inbox| !inbox.is_closed())
            && !self.queues.keys().any(|key| matches!(key, QueueKey::Shared(_)))
    }

    /// Whether the program has finished every connection and no more will come.
    pub(super) fn is_done(&self) -> bool {
        self.open == 0
            && self.inbox.as_ref().is_none_or(Inbox::is_closed)
            && self.queues.values().all(|queue| queue.has_ended() && queue.waiting.is_empty())
    }

    /// Whether the descriptors of a message are certain to fit.
    pub(super) fn has_room(&mut self) -> bool {
        let open = self.open;
        self.inbox.as_mut().is_none_or(|inbox| inbox.has_room(open))
    }
}
