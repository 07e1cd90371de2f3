//! What happens in a cluster, as the program is told.

use std::sync::Arc;
use std::time::Duration;

use super::{ListeningAddress, WorkerCounts, WorkerHandle};
use crate::error::Error;
use crate::message::Message;
use crate::settings::ClusterSettings;
use crate::sync::mailbox::Item;
use crate::sys::process::Ending;

/// Something happened. Names and order are Node's.
///
/// For each worker: `Fork`, `Online`, any number of `Listening`, `Closed`, `Refused`, `Message`,
/// `Hung`, `Recovered` and `Error`, at most one `Leaving`, then `Disconnect` and `Exit`, each once
/// and in this order. A worker that could not be started tells of itself in the error of the fork
/// only.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The settings were changed (Node: `setup`).
    Setup {
        /// As they are from now on.
        settings: Arc<ClusterSettings>,
    },
    /// A worker process was started (Node: `fork`).
    Fork {
        /// Which one.
        worker: WorkerHandle,
    },
    /// A worker runs and has said so (Node: `online`).
    Online {
        /// Which one.
        worker: WorkerHandle,
    },
    /// A worker serves an address (Node: `listening`).
    Listening {
        /// Which worker.
        worker: WorkerHandle,
        /// Which address.
        address: ListeningAddress,
    },
    /// A worker has closed what it served at an address, and lives on.
    Closed {
        /// Which worker.
        worker: WorkerHandle,
        /// Which address.
        address: ListeningAddress,
    },
    /// A worker asked for an address that it cannot have. It has been told, too (Node: only the
    /// worker is told).
    Refused {
        /// Which worker.
        worker: WorkerHandle,
        /// Why not.
        error: Arc<Error>,
    },
    /// A worker has sent a message (Node: `message`).
    Message {
        /// Which worker.
        worker: WorkerHandle,
        /// What it says.
        message: Message,
    },
    /// A worker has said that it leaves, without having been asked: it gets nothing new, and
    /// finishes what it has.
    Leaving {
        /// Which worker.
        worker: WorkerHandle,
    },
    /// A worker's channel has ended (Node: `disconnect`). Its process may live on for a while.
    Disconnect {
        /// Which worker.
        worker: WorkerHandle,
    },
    /// A worker's process has ended, and it is no longer among the cluster's workers (Node:
    /// `exit`).
    Exit {
        /// Which worker.
        worker: WorkerHandle,
        /// With which code, or by which signal.
        ending: Ending,
        /// What became of its connections.
        counts: WorkerCounts,
    },
    /// Something failed (Node: `error`). Nothing more needs to be done about it: a worker whose
    /// channel carried garbage is disconnected.
    Error {
        /// Whose failure it was; without a worker, the cluster's own.
        worker: Option<WorkerHandle>,
        /// What failed.
        error: Arc<Error>,
    },
    /// A worker left connections unclaimed for too long: they went to others, and it gets nothing
    /// until it answers.
    Hung {
        /// Which worker.
        worker: WorkerHandle,
        /// Connections taken back from it.
        taken_back: u32,
    },
    /// A hung worker has answered and gets connections again.
    Recovered {
        /// Which worker.
        worker: WorkerHandle,
    },
    /// A worker is an outlier: it is done with connections far sooner than those that serve the
    /// same, because it closes them without an answer. Each of these counts as load for a while, so
    /// that it gets its share and not more.
    Outlier {
        /// Which worker.
        worker: WorkerHandle,
        /// It gets no connections for this long
        /// ([`eject_outliers_ns`](clusterlb_schedule::SchedulerConfig::eject_outliers_ns)).
        ejected: Option<Duration>,
    },
    /// An outlier answers, or takes as long as the others, again.
    OutlierEnded {
        /// Which worker.
        worker: WorkerHandle,
    },
}

impl Event {
    /// The worker that it concerns, if it concerns one.
    #[must_use]
    pub fn worker(&self) -> Option<&WorkerHandle> {
        match self {
            Self::Setup { .. } => None,
            Self::Error { worker, .. } => worker.as_ref(),
            Self::Fork { worker }
            | Self::Online { worker }
            | Self::Listening { worker, .. }
            | Self::Closed { worker, .. }
            | Self::Leaving { worker }
            | Self::Message { worker, .. }
            | Self::Refused { worker, .. }
            | Self::Disconnect { worker }
            | Self::Exit { worker, .. }
            | Self::Hung { worker, .. }
            | Self::Recovered { worker }
            | Self::Outlier { worker, .. }
            | Self::OutlierEnded { worker } => Some(worker),
        }
    }
}

impl Item for Event {
    fn bytes(&self) -> usize {
        match self {
            Self::Message { message, .. } => message.bytes().len(),
            _ => 0,
        }
    }

    fn descriptors(&self) -> usize {
        match self {
            Self::Message { message, .. } => message.descriptors(),
            _ => 0,
        }
    }

    fn sender(&self) -> Option<u32> {
        let as_often_as_it_likes = matches!(
            self,
            Self::Message { .. }
                | Self::Refused { .. }
                | Self::Listening { .. }
                | Self::Closed { .. }
                | Self::Error { .. }
        );
        self.worker().filter(|_| as_often_as_it_likes).map(|worker| worker.id().get())
    }
}
