//! The counts of all connections of a cluster.

use crate::schedule::{Changes, Skips};

/// Sums over all workers and listeners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterCounts {
    /// Connections accepted.
    pub accepted: u64,
    /// Of these, stolen from workers' own sockets: the worker did not accept them in time, or there
    /// was none.
    pub stolen: u64,
    /// Handoffs that a worker's full or closed channel refused; each is redispatched too.
    pub refused: u64,
    /// Sockets taken back from a worker, for another or the same one.
    pub redispatched: u64,
    /// Of these, taken back early: they waited behind a worker's work while another was idle.
    pub taken_back: u64,
    /// Sockets closed because no worker could take them before the end.
    pub dropped: u64,
    /// Accepted connections that now wait in the primary for a worker with room.
    pub waiting: u64,
    /// Times that accepting stopped because no worker had room.
    pub pauses: u64,
    /// How long accepting was stopped for that, in nanoseconds.
    pub paused_ns: u64,
    /// How often the loop waited to hand over several connections at once.
    pub coalesced: u64,
    /// How often the kernel's weights for workers' own sockets were changed.
    pub steered: Changes,
    /// How often each stage skipped a worker.
    pub skips: Skips,
    /// Completion queue overflows.
    pub overflows: u64,
}
