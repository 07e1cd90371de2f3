//! Events on their way to their subscribers.
//!
//! Owns the list of subscribers. Everybody gets every event since the subscription, in order; none
//! is lost. At the bounds (16,384 unread events or 64 MiB of messages; 4,096 or 4 MiB of a worker)
//! the cluster stops reading what workers say, or what that worker says, until that subscriber has
//! read half of it: so drop what you do not read.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::sys::waker::Waker;

use super::{Event, WorkerHandle};
use crate::error::Result;
use crate::id::WorkerId;
use crate::sync::mailbox::{Mailbox, Wakers};

/// The subscribers.
#[derive(Debug)]
pub(crate) struct Bus {
    state: Mutex<State>,
    /// Rung when a subscriber has room again.
    room: Arc<Waker>,
}

#[derive(Debug, Default)]
struct State {
    subscribers: Vec<Subscriber>,
    closed: bool,
}

#[derive(Debug)]
struct Subscriber {
    /// The worker whose events are wanted; `None` for all.
    worker: Option<WorkerId>,
    mailbox: Weak<Mailbox<Event>>,
}

/// Events as they come (Node: listeners of `cluster`): a blocking iterator, and
/// [`recv_async`](Self::recv_async) for any async runtime.
///
/// It begins with what happens after the subscription and ends when the cluster has ended. If that
/// was a failure, the last event is an [`Event::Error`] without a worker that says so. What is
/// not read is kept, and at the bound (16,384 events, or messages of 64 MiB) holds up the reading
/// of what workers say; at 4,096 events or 4 MiB of one worker, that of this worker. Drop it when
/// you do not want it any more.
#[derive(Debug)]
pub struct Events {
    mailbox: Arc<Mailbox<Event>>,
    room: Arc<Waker>,
}

impl Bus {
    pub(crate) fn new(room: Arc<Waker>) -> Self {
        Self { state: Mutex::default(), room }
    }

    /// Sends an event to all subscribers.
    pub(crate) fn publish(&self, event: &Event) {
        let mut state = self.state.lock().expect("nothing panics while it holds the bus");
        let about = event.worker().map(WorkerHandle::id);
        let mut wakers = Wakers::default();
        state.subscribers.retain(|subscriber| {
            let Some(mailbox) = subscriber.mailbox.upgrade() else { return false };
            if subscriber.worker.is_none() || subscriber.worker == about {
                wakers.add(mailbox.push(event.clone()));
            }
            true
        });
        drop(state);
        wakers.wake();
    }

    /// Whether a subscriber is so far behind, with everything or with this worker, that nothing
    /// more should be read of it.
    pub(crate) fn is_held_up(&self, worker: WorkerId) -> bool {
        let state = self.state.lock().expect("nothing panics while it holds the bus");
        let mut mailboxes = state.subscribers.iter().filter_map(|one| one.mailbox.upgrade());
        mailboxes.any(|mailbox| mailbox.is_full_of(worker.get()))
    }

    /// One more subscriber.
    pub(crate) fn subscribe(&self, worker: Option<WorkerId>) -> Result<Events> {
        let mailbox = Arc::new(Mailbox::new(Arc::clone(&self.room))?);
        let mut state = self.state.lock().expect("nothing panics while it holds the bus");
        match state.closed {
            // Nothing waits for it yet.
            true => mailbox.close().wake(),
            false => {
                let mailbox = Arc::downgrade(&mailbox);
                state.subscribers.push(Subscriber { worker, mailbox });
            }
        }
        Ok(Events { mailbox, room: Arc::clone(&self.room) })
    }

    /// There will be no more events.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock().expect("nothing panics while it holds the bus");
        state.closed = true;
        let mut wakers = Wakers::default();
        for subscriber in state.subscribers.drain(..) {
            if let Some(mailbox) = subscriber.mailbox.upgrade() {
                wakers.add(mailbox.close());
            }
        }
        drop(state);
        wakers.wake();
    }
}

impl Events {
    /// Waits for the next event, at most this long, as `std::sync::mpsc::Receiver` does.
    ///
    /// # Errors
    /// [`RecvTimeoutError::Timeout`] if none has come; [`RecvTimeoutError::Disconnected`] when none
    /// will, because the cluster has ended.
    pub fn recv_timeout(
        &mut self,
        timeout: Duration,
    ) -> std::result::Result<Event, RecvTimeoutError> {
        self.mailbox.wait(Instant::now().checked_add(timeout)).or_timeout()
    }

    /// The next event, if there is one already.
    ///
    /// # Errors
    /// [`TryRecvError::Empty`] if there is none yet; [`TryRecvError::Disconnected`] when none will
    /// come, because the cluster has ended.
    pub fn try_recv(&mut self) -> std::result::Result<Event, TryRecvError> {
        self.mailbox.try_take().or_empty()
    }

    /// Waits for the next event in any async runtime; `None` after the cluster has ended.
    /// Dropping the future loses no event.
    pub async fn recv_async(&mut self) -> Option<Event> {
        std::future::poll_fn(|context| self.poll_recv(context)).await
    }

    /// Polls for the next event, for futures and streams of a program.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.mailbox.poll_take(context)
    }
}

impl Iterator for Events {
    type Item = Event;

    /// Waits for the next event; none comes after the cluster has ended.
    fn next(&mut self) -> Option<Event> {
        self.mailbox.wait(None).item()
    }
}

impl AsFd for Events {
    /// Readable while there are events, or after the end. For those who wait for several things;
    /// it is not to be read from.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mailbox.as_fd()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // The control plane may have waited for it to read.
        self.room.wake();
    }
}
