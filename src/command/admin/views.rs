//! The answers of the admin interface as plain data: the server writes them, the commands read
//! them.

use clusterlb::{ListenerCounts, ListenerSnapshot, WorkerCounts};
use serde::{Deserialize, Serialize};

/// `/workers`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct WorkersView {
    /// The stage: starting, serving, stopping, draining, killing or ended.
    pub(super) stage: String,
    /// As `/readyz` reports.
    pub(super) ready: bool,
    /// Workers are being replaced.
    pub(super) reloading: bool,
    /// The primary's process id.
    pub(super) pid: u32,
    /// Age of the run.
    pub(super) uptime_ms: u64,
    /// The policy.
    pub(super) policy: String,
    /// Sums over the run.
    pub(super) totals: TotalsView,
    /// The slots, by number.
    pub(super) slots: Vec<SlotView>,
    /// The workers, by id.
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
    /// Workers started in it after the first one.
    pub(super) restarts: u64,
}

/// A worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct WorkerView {
    pub(super) id: u32,
    pub(super) slot: u16,
    pub(super) pid: u32,
    /// The CPU it is pinned to.
    pub(super) cpu: Option<usize>,
    /// starting, serving, hung or leaving.
    pub(super) state: String,
    /// Its age.
    pub(super) uptime_ms: u64,
    /// Time in this state.
    pub(super) state_ms: u64,
    /// The addresses it serves.
    pub(super) addresses: Vec<String>,
    /// Its connections.
    #[serde(flatten)]
    pub(super) counts: CountsView,
    /// CPU time of its process; none where the system does not report it.
    pub(super) cpu_seconds: Option<f64>,
    /// Resident memory of its process.
    pub(super) resident_bytes: Option<u64>,
}

/// The counts of a worker's connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CountsView {
    /// Given and not done.
    pub(super) in_flight: u64,
    /// Given and not received.
    pub(super) unclaimed: u64,
    /// Given, or accepted by the worker.
    pub(super) assigned: u64,
    /// Of these, accepted by the worker.
    pub(super) own: u64,
    /// Received.
    pub(super) claimed: u64,
    /// Done.
    pub(super) finished: u64,
    /// Taken back or sent back unclaimed.
    pub(super) returned: u64,
    /// Open when their worker ended.
    pub(super) aborted: u64,
    /// Requests answered.
    pub(super) requests: u64,
    /// Closed for lack of a header of the PROXY protocol.
    pub(super) headers_refused: u64,
    /// Connections with a measured time from handoff to claim.
    pub(super) claims_measured: u64,
    /// The sum of these times, in microseconds.
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
            headers_refused: counts.headers_refused,
            claims_measured: counts.claim_times.count(),
            claims_us: counts.claim_times.sum_ns / 1000,
        }
    }
}

/// `/listeners`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ListenersView {
    /// The listeners, in the order of opening.
    pub(super) listeners: Vec<ListenerView>,
}

/// A listener.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ListenerView {
    pub(super) listener: u16,
    pub(super) address: String,
    /// Workers that serve it.
    pub(super) workers: usize,
    /// Connections waiting in the kernel; only for TCP.
    pub(super) backlog: Option<u32>,
    /// The limit of waiting connections.
    pub(super) backlog_max: u32,
    /// Connections that found the backlog full.
    pub(super) overflows: Option<u64>,
    /// The counts of its connections; none where workers accept and do not count.
    pub(super) counts: Option<ListenerCountsView>,
}

impl ListenerView {
    pub(super) fn new(one: ListenerSnapshot, counts: Option<&ListenerCounts>) -> Self {
        Self {
            listener: one.id.get(),
            address: one.address,
            workers: one.workers,
            backlog: one.waiting,
            backlog_max: one.backlog_max,
            overflows: one.overflows,
            counts: counts.map(|counts| ListenerCountsView {
                accepted: counts.accepted,
                assigned: counts.assigned,
                finished: counts.finished,
                aborted: counts.aborted,
                refused: counts.refused,
                redispatched: counts.redispatched,
                taken_back: counts.taken_back,
                dropped: counts.dropped,
            }),
        }
    }
}

/// The counts of a listener's connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ListenerCountsView {
    pub(super) accepted: u64,
    pub(super) assigned: u64,
    pub(super) finished: u64,
    pub(super) aborted: u64,
    pub(super) refused: u64,
    pub(super) redispatched: u64,
    pub(super) taken_back: u64,
    pub(super) dropped: u64,
}

/// The outcome of an action.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct DoneView {
    /// The outcome in words.
    pub(super) done: String,
}

/// A refusal.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct RefusedView {
    /// What is wrong.
    pub(super) error: String,
    /// The remedy.
    pub(super) remedy: String,
    /// The existing paths, if this one does not exist.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) paths: Vec<String>,
}
