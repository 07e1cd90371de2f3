//! What a supervisor tells of, and those who listen.

use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::mpsc::TryRecvError;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;

use crate::sync::mailbox::{Item, Mailbox};
use crate::sys::waker::Waker;
use crate::{ClusterCounts, Error, Event, ListenerId, Result, Signal, WorkerId};

/// Something happened under a [`Supervisor`](super::Supervisor).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SupervisorEvent {
    /// Something happened in the cluster.
    Cluster(Event),
    /// Every worker serves, and connections are accepted from now on.
    Started,
    /// An address is served; told once for each, the first ones at the start.
    Listening {
        /// The listener's number.
        listener: ListenerId,
        /// The bound address, with the port that was chosen.
        address: String,
    },
    /// The start takes long: after 5 s these workers do not serve. It is told once, and the start
    /// goes on until its limit.
    Waiting {
        /// Which workers.
        workers: Vec<WorkerId>,
    },
    /// A worker serves nothing while others do, and the start did not wait for it any longer.
    Silent {
        /// Which worker.
        worker: WorkerId,
    },
    /// A worker has ended, or said that it leaves, and is replaced.
    Respawn {
        /// Its slot.
        slot: u16,
        /// Which worker.
        worker: WorkerId,
        /// How long that waits.
        delay: Duration,
    },
    /// A worker could not be started.
    SpawnFailed {
        /// The slot that it was for.
        slot: u16,
        /// Why.
        error: Arc<Error>,
        /// When it is tried again; not at all, if nothing is said.
        retry: Option<Duration>,
    },
    /// A slot stays empty until the next reload.
    GaveUp {
        /// Which slot.
        slot: u16,
        /// The worker that ended last, if one was started.
        worker: Option<WorkerId>,
        /// Why.
        reason: String,
    },
    /// Workers are being replaced, one after the other.
    Reloading {
        /// Which ones.
        workers: Vec<WorkerId>,
    },
    /// A reload was asked for at a moment when it could not begin: it follows.
    ReloadQueued,
    /// All of them have been replaced.
    Reloaded,
    /// Replacing has stopped; workers that had not been replaced stay as they are.
    ReloadStopped {
        /// Why.
        reason: String,
    },
    /// The number of slots changes.
    Scaled {
        /// What it was.
        from: u16,
        /// What it is.
        to: u16,
    },
    /// A signal has arrived that changes nothing.
    SignalUnused {
        /// Which one.
        signal: Signal,
    },
    /// The run is about to end: serving goes on for a while ([`Supervisor::drain_delay`]).
    ///
    /// [`Supervisor::drain_delay`]: crate::Supervisor::drain_delay
    Stopping {
        /// Why.
        reason: String,
        /// For how long.
        delay: Duration,
    },
    /// The run is ending: nothing new is accepted.
    Draining {
        /// Why.
        reason: String,
        /// How long open connections may take.
        grace: Duration,
    },
    /// Workers are ended by force.
    Killed {
        /// Which ones.
        workers: Vec<WorkerId>,
        /// Why.
        reason: String,
    },
    /// The run has ended, and this is the last event.
    Ended {
        /// What became of all connections.
        counts: ClusterCounts,
    },
    /// Connections were reset that waited in the own socket of a worker whose slot stays empty.
    ConnectionsReset {
        /// How many.
        count: usize,
    },
}

/// What happens under a supervisor, as it comes: a blocking iterator, and a stream for any async
/// runtime.
///
/// It begins with what happens after the subscription and ends with the supervisor. A subscriber
/// that is 16,384 events or messages of 64 MiB behind is cut off: its events end there.
#[derive(Debug)]
pub struct SupervisorEvents {
    mailbox: Arc<Mailbox<SupervisorEvent>>,
}

/// Those who listen.
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
        // Nothing waits for room here.
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
}

impl Iterator for SupervisorEvents {
    type Item = SupervisorEvent;

    /// Waits for the next event; none comes after the supervisor has ended.
    fn next(&mut self) -> Option<SupervisorEvent> {
        self.mailbox.wait(None).item()
    }
}

impl Stream for SupervisorEvents {
    type Item = SupervisorEvent;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<SupervisorEvent>> {
        self.mailbox.poll_take(context)
    }
}

impl AsFd for SupervisorEvents {
    /// Readable while there are events, or after the end. It is not to be read from.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mailbox.as_fd()
    }
}
