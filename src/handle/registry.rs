//! The workers of a cluster, and snapshots of its listeners.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::{WorkerCounts, WorkerHandle};
use crate::id::{ListenerId, WorkerId};

/// The workers of a cluster and the sums of ended ones. Filled by the control plane.
pub(crate) type Registry = Arc<Mutex<Registered>>;

#[derive(Debug, Default)]
pub(crate) struct Registered {
    pub(crate) workers: BTreeMap<WorkerId, WorkerHandle>,
    /// Sums of ended workers.
    pub(crate) ended: WorkerCounts,
}

/// A listener at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ListenerSnapshot {
    /// Its number.
    pub id: ListenerId,
    /// The bound address.
    pub address: String,
    /// Workers that serve it, or were granted it.
    pub workers: usize,
    /// The limit of connections waiting in the kernel, capped by `net.core.somaxconn`.
    pub backlog_max: u32,
    /// Connections waiting in the kernel, in all its sockets; only for TCP.
    pub waiting: Option<u32>,
    /// Connections that the kernel rejected because the queue was full, since it was opened.
    pub overflows: Option<u64>,
}
