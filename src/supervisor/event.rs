//! The events of a supervisor, and their subscribers.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::TryRecvError;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::sync::mailbox::{Item, Mailbox};
use crate::sys::waker::Waker;
use crate::{ClusterCounts, Error, Event, ListenerId, Result, Signal, WorkerId};

/// An event of a [`Supervisor`](super::Supervisor).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SupervisorEvent {
    /// An event of the cluster.
    Cluster(Event),
    /// Every worker serves, and connections are accepted from now on.
    Started,
    /// An address is served; reported once per address, the first ones at the start.
    Listening {
        /// The listener's number.
        listener: ListenerId,
        /// The bound address, with the port that was chosen.
        address: String,
    },
    /// The start takes long: after 5 s these workers do not serve. Reported once; the start
    /// continues until its limit.
    Waiting {
        /// The workers.
        workers: Vec<WorkerId>,
    },
    /// A worker serves nothing while others do, and the start no longer waits for it.
    Silent {
        /// The worker.
        worker: WorkerId,
    },
    /// A worker has ended, or announced that it leaves, and is replaced.
    Respawn {
        /// Its slot.
        slot: u16,
        /// The worker.
        worker: WorkerId,
        /// The delay.
        delay: Duration,
    },
    /// A worker could not be started.
    SpawnFailed {
        /// Its slot.
        slot: u16,
        /// The cause.
        error: Arc<Error>,
        /// When it is tried again; `None` if it is not.
        retry: Option<Duration>,
    },
    /// A slot stays empty until the next reload.
    GaveUp {
        /// The slot.
        slot: u16,
        /// The worker that ended last, if one was started.
        worker: Option<WorkerId>,
        /// The reason.
        reason: String,
    },
    /// Workers are being replaced, one after the other.
    Reloading {
        /// The workers.
        workers: Vec<WorkerId>,
    },
    /// A reload was requested when it could not begin; it follows.
    ReloadQueued,
    /// All of them have been replaced.
    Reloaded,
    /// The reload has stopped; the remaining workers stay as they are.
    ReloadStopped {
        /// The reason.
        reason: String,
    },
    /// The number of slots changes.
    Scaled {
        /// The old number.
        from: u16,
        /// The new number.
        to: u16,
    },
    /// A signal without an effect has arrived.
    SignalUnused {
        /// The signal.
        signal: Signal,
    },
    /// The run is about to end and serves for a while longer ([`Supervisor::drain_delay`]).
    ///
    /// [`Supervisor::drain_delay`]: crate::Supervisor::drain_delay
    Stopping {
        /// The reason.
        reason: String,
        /// The delay.
        delay: Duration,
    },
    /// The run is ending and accepts no more connections.
    Draining {
        /// The reason.
        reason: String,
        /// The grace period of open connections.
        grace: Duration,
    },
    /// Workers were killed.
    Killed {
        /// The workers.
        workers: Vec<WorkerId>,
        /// The reason.
        reason: String,
    },
    /// The run has ended, and this is the last event.
    Ended {
        /// The counts of all connections.
        counts: ClusterCounts,
    },
    /// The queue of a worker's own socket was reset, because its slot stays empty.
    ConnectionsReset {
        /// The number of connections.
        count: usize,
    },
}

/// The events of a supervisor: a blocking iterator, and [`recv_async`](Self::recv_async) for any
/// async runtime.
///
/// It starts at the subscription and ends with the supervisor. A subscriber that is 16,384 events
/// or messages of 64 MiB behind is cut off: its events end there.
#[derive(Debug)]
pub struct SupervisorEvents {
    mailbox: Arc<Mailbox<SupervisorEvent>>,
}

/// The subscribers.
#[derive(Debug, Default)]
pub(super) struct Subscribers {
    mailboxes: Vec<Weak<Mailbox<SupervisorEvent>>>,
    closed: bool,
}

impl Item for SupervisorEvent {
    fn bytes(&self) -> usize {
        match self {
            Self::Cluster(event) => event.bytes(),
            _ => 0,
        }
    }
}

impl Subscribers {
    pub(super) fn subscribe(&mut self) -> Result<SupervisorEvents> {
        // No sender waits for room here.
        let mailbox = Arc::new(Mailbox::new(Arc::new(Waker::new()?))?);
        match self.closed {
            true => mailbox.close().wake(),
            false => self.mailboxes.push(Arc::downgrade(&mailbox)),
        }
        Ok(SupervisorEvents { mailbox })
    }

    pub(super) fn emit(&mut self, event: &SupervisorEvent) {
        self.mailboxes.retain(|mailbox| {
            let Some(mailbox) = mailbox.upgrade() else { return false };
            mailbox.push(event.clone()).wake();
            let is_full = mailbox.is_full();
            if is_full {
                mailbox.close().wake();
            }
            !is_full
        });
    }

    pub(super) fn close(&mut self) {
        self.closed = true;
        for mailbox in self.mailboxes.drain(..).filter_map(|mailbox| mailbox.upgrade()) {
            mailbox.close().wake();
        }
    }
}

impl SupervisorEvents {
    /// The next event, if there is one already.
    ///
    /// # Errors
    /// [`TryRecvError::Empty`] if there is none yet; [`TryRecvError::Disconnected`] when none will
    /// come, because the supervisor has ended or this subscriber was cut off.
    pub fn try_recv(&mut self) -> std::result::Result<SupervisorEvent, TryRecvError> {
        self.mailbox.try_take().or_empty()
    }

    /// Waits for the next event in any async runtime; `None` after the supervisor has ended.
    /// Dropping the future loses no event.
    pub async fn recv_async(&mut self) -> Option<SupervisorEvent> {
        std::future::poll_fn(|context| self.poll_recv(context)).await
    }

    /// Polls for the next event, for futures and streams of a program.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<SupervisorEvent>> {
        self.mailbox.poll_take(context)
    }
}

impl Iterator for SupervisorEvents {
    type Item = SupervisorEvent;

    /// Waits for the next event; none comes after the supervisor has ended.
    fn next(&mut self) -> Option<SupervisorEvent> {
        self.mailbox.wait(None).item()
    }
}

impl AsFd for SupervisorEvents {
    /// Readable while there are events, or after the end. It is not to be read from.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mailbox.as_fd()
    }
}
