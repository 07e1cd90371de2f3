//! The workers of a cluster, and snapshots of its listeners.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::{WorkerCounts, WorkerHandle};
use crate::id::{ListenerId, WorkerId};
use crate::protocol::scoreboard::ListenerEnd;

/// The workers of a cluster and the sums of ended ones. Filled by the control plane.
pub(crate) type Registry = Arc<Mutex<Registered>>;

#[derive(Debug, Default)]
pub(crate) struct Registered {
    pub(crate) workers: BTreeMap<WorkerId, WorkerHandle>,
    /// Sums of ended workers.
    pub(crate) ended: WorkerCounts,
    /// The same by listener, for those that were open at the end of the last worker.
    pub(crate) ended_by_listener: BTreeMap<ListenerId, ListenerEnd>,
}

impl Registered {
    /// Adds what became of an ended worker's connections, and forgets listeners that are closed.
    pub(crate) fn count_ended(
        &mut self,
        ends: Vec<(ListenerId, ListenerEnd)>,
        is_open: impl Fn(&ListenerId) -> bool,
    ) {
        for (id, end) in ends {
            let sum = self.ended_by_listener.entry(id).or_default();
            sum.own += end.own;
            sum.finished += end.finished;
            sum.aborted += end.aborted;
        }
        self.ended_by_listener.retain(|id, _| is_open(id));
    }

    /// What became of connections by listener, in ended and living workers.
    pub(crate) fn by_listener(&self) -> BTreeMap<ListenerId, ListenerEnd> {
        let mut sums = self.ended_by_listener.clone();
        for share in self.workers.values().flat_map(WorkerHandle::by_listener) {
            let sum = sums.entry(share.listener).or_default();
            sum.own += share.own;
            sum.finished += share.finished;
        }
        sums
    }
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
