//! What the admin interface answers, as plain data: the server writes it, the command reads it.

use clusterlb::{ListenerCounts, ListenerSnapshot, WorkerCounts};
use serde::{Deserialize, Serialize};

/// `/workers`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct WorkersView {
    /// How far the run is: starting, serving, stopping, draining, killing or ended.
    pub(super) stage: String,
    /// As `/readyz` says.
    pub(super) ready: bool,
    /// Workers are being replaced.
    pub(super) reloading: bool,
    /// The primary's process id.
    pub(super) pid: u32,
    /// How long the run has lasted.
    pub(super) uptime_ms: u64,
    /// Who chooses the worker.
    pub(super) policy: String,
    /// Sums over the run.
    pub(super) totals: TotalsView,
    /// The slots, by their numbers.
    pub(super) slots: Vec<SlotView>,
    /// The workers, by their ids.
    pub(super) workers: Vec<WorkerView>,
}

/// The sums of a run, named as in the summary.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct TotalsView {
    pub(super) accepted: u64,
    pub(super) stolen: u64,
    pub(super) refused: u64,
    pub(super) redispatched: u64,
    pub(super) taken_back: u64,
    pub(super) dropped: u64,
    /// Accepted, and waiting in the primary for a worker with room.
    pub(super) waiting: u64,
    pub(super) pauses: u64,
    pub(super) paused_ms: u64,
    pub(super) coalesced: u64,
    /// Skips by stage.
    pub(super) skips: Vec<(String, u64)>,
}

/// A slot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct SlotView {
    pub(super) slot: u16,
    /// filled, waiting, given-up or empty.
    pub(super) state: String,
    /// The worker in it.
    pub(super) worker: Option<u32>,
    /// Workers that were started in it after the first one.
    pub(super) restarts: u64,
}

/// A worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct WorkerView {
    pub(super) id: u32,
    pub(super) slot: u16,
    pub(super) pid: u32,
    /// The CPU that it is pinned to.
    pub(super) cpu: Option<usize>,
    /// starting, serving, hung or leaving.
    pub(super) state: String,
    /// How long it has lived.
    pub(super) uptime_ms: u64,
    /// How long it has been in this state.
    pub(super) state_ms: u64,
    /// What it serves.
    pub(super) addresses: Vec<String>,
    /// Its connections.
    #[serde(flatten)]
    pub(super) counts: CountsView,
    /// CPU time that its process has used; none where the system does not tell.
    pub(super) cpu_seconds: Option<f64>,
    /// Memory that its process has resident.
    pub(super) resident_bytes: Option<u64>,
}

/// What became of a worker's connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CountsView {
    /// Given and not done.
    pub(super) in_flight: u64,
    /// Given and not received.
    pub(super) unclaimed: u64,
    /// Given, or accepted by the worker.
    pub(super) assigned: u64,
    /// Of these, the ones that the worker accepted.
    pub(super) own: u64,
    /// Received.
    pub(super) claimed: u64,
    /// Done.
    pub(super) finished: u64,
    /// Taken back or sent back unclaimed.
    pub(super) returned: u64,
    /// Lost.
    pub(super) aborted: u64,
    /// Requests answered.
    pub(super) requests: u64,
    /// Connections whose time from handoff to claim was measured.
    pub(super) claims_measured: u64,
    /// These times together, in microseconds.
    pub(super) claims_us: u64,
}

impl From<&WorkerCounts> for CountsView {
    fn from(counts: &WorkerCounts) -> Self {
        Self {
            in_flight: counts.in_flight(),
            unclaimed: counts.unclaimed(),
            assigned: counts.assigned,
            own: counts.own,
            claimed: counts.claimed,
            finished: counts.finished,
            returned: counts.returned,
            aborted: counts.aborted,
            requests: counts.requests,
            claims_measured: counts.claim_times.count(),
            claims_us: counts.claim_times.sum_ns / 1000,
        }
    }
}

/// `/listeners`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ListenersView {
    /// The listeners, in the order in which they were opened.
    pub(super) listeners: Vec<ListenerView>,
}

/// A listener.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ListenerView {
    pub(super) listener: u16,
    pub(super) address: String,
    /// Workers that serve it.
    pub(super) workers: usize,
    /// Connections that wait in the kernel; only for TCP.
    pub(super) backlog: Option<u32>,
    /// Connections that may.
    pub(super) backlog_max: u32,
    /// Connections that found the backlog full.
    pub(super) overflows: Option<u64>,
    /// What became of its connections in the primary; none where workers accept themselves.
    pub(super) counts: Option<ListenerCountsView>,
}

impl ListenerView {
    pub(super) fn new(one: ListenerSnapshot, counts: Option<&ListenerCounts>) -> Self {
        Self {
            listener: one.id.0,
            address: one.address,
            workers: one.workers,
            backlog: one.waiting,
            backlog_max: one.backlog_max,
            overflows: one.overflows,
            counts: counts.map(|counts| ListenerCountsView {
                accepted: counts.accepted,
                assigned: counts.assigned,
                refused: counts.refused,
                redispatched: counts.redispatched,
                taken_back: counts.taken_back,
                dropped: counts.dropped,
            }),
        }
    }
}

/// What became of a listener's connections, as far as the primary had them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ListenerCountsView {
    pub(super) accepted: u64,
    pub(super) assigned: u64,
    pub(super) refused: u64,
    pub(super) redispatched: u64,
    pub(super) taken_back: u64,
    pub(super) dropped: u64,
}

/// What an action has come to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct DoneView {
    /// What there is to say.
    pub(super) done: String,
}

/// Why something is refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct RefusedView {
    /// What is wrong.
    pub(super) error: String,
    /// What would work.
    pub(super) remedy: String,
    /// The paths that there are, if this was none of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) paths: Vec<String>,
}
