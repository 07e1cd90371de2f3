//! The workers of a cluster, and what can be seen of its listeners.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::{WorkerCounts, WorkerHandle};
use crate::id::{ListenerId, WorkerId};

/// The workers of a cluster and the sums of those that have ended. Filled by the control plane.
pub(crate) type Registry = Arc<Mutex<Registered>>;

#[derive(Debug, Default)]
pub(crate) struct Registered {
    pub(crate) workers: BTreeMap<WorkerId, WorkerHandle>,
    /// Sums over those that have ended.
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
    /// Workers that serve it, or have been told that they may.
    pub workers: usize,
    /// Connections that may wait in the kernel, as far as `net.core.somaxconn` allows.
    pub backlog_max: u32,
    /// Connections that wait in the kernel, in all its sockets; only for TCP.
    pub waiting: Option<u32>,
    /// Connections that the kernel has turned away because the queue was full, since it was opened.
    pub overflows: Option<u64>,
}
