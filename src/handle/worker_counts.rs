//! What became of a worker's connections.

use crate::protocol::control::LatencySummary;
use crate::protocol::scoreboard::{Counters, PageView, Statistic};
use crate::schedule::ClaimTimes;
use crate::sys::schedstat::CpuTimes;

/// A worker's connections: those that it has now, and what became of the others.
///
/// `assigned = returned + finished + aborted + in_flight()`; when it has ended, none is in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerCounts {
    /// Connections handed to it, or accepted by it under the policy `none`.
    pub assigned: u64,
    /// Of these, the ones that it accepted.
    pub own: u64,
    /// Connections taken back from it, or sent back by it, before it had claimed them.
    pub returned: u64,
    /// Connections that it received.
    pub claimed: u64,
    /// Connections that it closed.
    pub finished: u64,
    /// Connections that it lost, or that were open when it ended.
    pub aborted: u64,
    /// Requests that it answered, if it counts them.
    pub requests: u64,
    /// Connections that it closed for lack of a header of the PROXY protocol: a part of
    /// [`finished`](Self::finished).
    pub headers_refused: u64,
    /// From accept to claim; only for workers that left in order and measure it.
    pub handoff: Option<LatencySummary>,
    /// From handoff to claim, as the data path sees it when it next looks.
    pub claim_times: ClaimTimes,
    /// How often a Node worker has looked how late its loop is, which it does while it has
    /// connections.
    pub beats: u64,
    /// How late its loop was, all looks together, in nanoseconds.
    pub late_ns: u64,
    /// How long its main thread ran, once it has ended, in milliseconds.
    pub ran_ms: u32,
    /// How long that waited for a CPU although it could have run, once it has ended.
    pub waited_ms: u32,
}

impl WorkerCounts {
    /// Of a worker that lives, as its page shows them.
    pub(crate) fn living(counters: Counters, page: &PageView) -> Self {
        // Sockets for which it had no descriptor: it has counted them as done with.
        let lost = page.statistic(Statistic::Truncated).min(counters.finished);
        let (beats, late_ns) = page.loop_delay();
        Self {
            assigned: counters.assigned,
            own: counters.own,
            returned: counters.returned,
            claimed: counters.claimed,
            finished: counters.finished - lost,
            aborted: lost,
            requests: page.statistic(Statistic::Requests),
            headers_refused: page.statistic(Statistic::HeadersRefused),
            handoff: None,
            claim_times: page.claim_times(),
            beats,
            late_ns,
            ran_ms: 0,
            waited_ms: 0,
        }
    }

    /// The same when the worker has ended: what was in flight is lost.
    pub(crate) fn ended(self, handoff: Option<LatencySummary>, times: CpuTimes) -> Self {
        let to_ms = |ns: u64| u32::try_from(ns / 1_000_000).unwrap_or(u32::MAX);
        let (ran_ms, waited_ms) = (to_ms(times.ran_ns), to_ms(times.waited_ns));
        Self { aborted: self.aborted + self.in_flight(), handoff, ran_ms, waited_ms, ..self }
    }

    /// Connections that it has been given and has not done with.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        let done = self.returned + self.finished + self.aborted;
        self.assigned.saturating_sub(done)
    }

    /// Connections that it has been given and has not received.
    #[must_use]
    pub fn unclaimed(&self) -> u64 {
        self.assigned.saturating_sub(self.returned).saturating_sub(self.claimed)
    }

    /// Adds the counts of another worker, without its [`handoff`](Self::handoff).
    pub fn add(&mut self, other: &Self) {
        self.assigned += other.assigned;
        self.own += other.own;
        self.returned += other.returned;
        self.claimed += other.claimed;
        self.finished += other.finished;
        self.aborted += other.aborted;
        self.requests += other.requests;
        self.headers_refused = self.headers_refused.saturating_add(other.headers_refused);
        self.claim_times.add(&other.claim_times);
        self.beats = self.beats.saturating_add(other.beats);
        self.late_ns = self.late_ns.saturating_add(other.late_ns);
        self.ran_ms = self.ran_ms.saturating_add(other.ran_ms);
        self.waited_ms = self.waited_ms.saturating_add(other.waited_ms);
    }
}
