//! The totals of a run: how many connections each worker got, and their outcome. Pure.

use serde::Serialize;

use clusterlb::WorkerCounts;
use clusterlb::WorkerId;
use clusterlb::protocol::control::LatencySummary;
use clusterlb_schedule::{Changes, Skips};

/// Ended workers listed one by one; older ones are summed up. Twice the most workers that can run
/// at once.
const ENDED_LISTED_MAX: usize = 2048;

/// Shorter waits are not reported.
const CROWDED_MS: u64 = 1_000;

/// The totals of one worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct WorkerSummary {
    /// The worker, or 0 for the sum of workers too many to list.
    pub id: u32,
    /// Its process id.
    pub pid: u32,
    /// Its CPU, if it was pinned.
    pub cpu: Option<usize>,
    /// Connections given to it, or that it accepted under `none`.
    pub assigned: u64,
    /// Of these, the ones that it accepted.
    pub own: u64,
    /// Connections that it received.
    pub claimed: u64,
    /// Connections that it finished.
    pub finished: u64,
    /// Connections taken back from it unclaimed.
    pub returned: u64,
    /// Connections that were open when it ended.
    pub aborted: u64,
    /// Requests that it answered.
    pub requests: u64,
    /// Connections that it closed for lack of a header of the PROXY protocol.
    pub headers_refused: u64,
    /// How long it used a CPU, in milliseconds.
    pub ran_ms: u64,
    /// How long it waited for a CPU while runnable.
    pub waited_ms: u64,
    /// From accept to claim; only for workers that left in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handoff: Option<LatencySummary>,
}

/// The totals of the run.
///
/// `accepted = Σ assigned − redispatched + dropped`, and for each worker
/// `assigned = returned + finished + aborted`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// Connections accepted.
    pub accepted: u64,
    /// Of these, taken by the primary out of a worker's own socket, because the worker did not
    /// accept them in time or was gone.
    pub stolen: u64,
    /// Handoffs that a worker's channel refused, because it was full or closed.
    pub refused: u64,
    /// Connections taken back from a worker: refused, or left unclaimed by one that died.
    pub redispatched: u64,
    /// Of these, taken back early and given to idle workers.
    pub taken_back: u64,
    /// Connections closed because no worker could take them before the end.
    pub dropped: u64,
    /// Connections that were open when their worker ended.
    pub aborted: u64,
    /// Requests that workers answered, if they count them.
    pub requests: u64,
    /// Connections that workers closed for lack of a header of the PROXY protocol.
    pub headers_refused: u64,
    /// Times that accepting stopped because no worker had room.
    pub pauses: u64,
    /// How long accepting was stopped for that, in milliseconds.
    pub paused_ms: u64,
    /// Handoffs delayed so that several connections share one.
    pub coalesced: u64,
    /// How often the kernel's choice among workers' own sockets was changed, by reason.
    #[serde(skip_serializing_if = "Changes::is_none")]
    pub steered: Changes,
    /// How often each stage of the choice skipped a worker.
    pub skips: Skips,
    /// Share of the two busiest workers, in percent; an even spread over n gives 200/n.
    pub top_two_percent: f64,
    /// The busiest worker against the average; 1 is even.
    pub max_over_mean: f64,
    /// The workers accepted and reported no counts: every count is zero.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub uncounted: bool,
    /// The workers, in the order of their ids.
    pub workers: Vec<WorkerSummary>,
}

impl WorkerSummary {
    /// The totals from a worker's last counters.
    #[must_use]
    pub(crate) fn new(id: WorkerId, pid: u32, cpu: Option<usize>, counts: WorkerCounts) -> Self {
        let WorkerCounts { assigned, own, returned, claimed, finished, .. } = counts;
        let WorkerCounts { aborted, requests, headers_refused, .. } = counts;
        let WorkerCounts { handoff, ran_ms, waited_ms, .. } = counts;
        let id = id.get();
        Self {
            id,
            pid,
            cpu,
            assigned,
            own,
            claimed,
            finished,
            returned,
            aborted,
            requests,
            headers_refused,
            ran_ms: ran_ms.into(),
            waited_ms: waited_ms.into(),
            handoff,
        }
    }

    fn absorb(&mut self, other: &Self) {
        self.assigned += other.assigned;
        self.own += other.own;
        self.claimed += other.claimed;
        self.finished += other.finished;
        self.returned += other.returned;
        self.aborted += other.aborted;
        self.requests += other.requests;
        self.headers_refused += other.headers_refused;
        self.ran_ms += other.ran_ms;
        self.waited_ms += other.waited_ms;
    }

    /// A sentence if another process took the worker's exclusive CPU for long: the worker waited
    /// for more than a third of the time in which it was runnable.
    fn crowded(&self, own_cpus: &[usize]) -> Option<String> {
        let cpu = self.cpu.filter(|cpu| own_cpus.contains(cpu))?;
        let is_long = self.waited_ms >= CROWDED_MS && self.waited_ms >= self.ran_ms / 2;
        is_long.then(|| {
            let seconds = |ms: u64| to_f64(ms) / 1e3;
            format!(
                "worker {} waited {:.1} s for CPU {cpu} and ran {:.1} s on it: something else has \
                 taken that CPU; --pin none lets the kernel choose another",
                self.id,
                seconds(self.waited_ms),
                seconds(self.ran_ms),
            )
        })
    }
}

impl Summary {
    /// Adds an ended worker, summing up the oldest when there are too many.
    pub(crate) fn enter(&mut self, worker: WorkerSummary) {
        self.aborted += worker.aborted;
        self.workers.push(worker);
        self.workers.sort_by_key(|worker| worker.id);
        if self.workers.len() > ENDED_LISTED_MAX {
            let mut oldest = self.workers.remove(0);
            oldest.absorb(&self.workers.remove(0));
            (oldest.id, oldest.pid, oldest.cpu, oldest.handoff) = (0, 0, None, None);
            self.workers.insert(0, oldest);
        }
    }

    /// Names the workers whose CPU other processes took for long. `own_cpus` are those with a
    /// single process of this run.
    pub(crate) fn crowded(&self, own_cpus: &[usize]) -> Vec<String> {
        self.workers.iter().filter_map(|worker| worker.crowded(own_cpus)).collect()
    }

    /// Computes the shares.
    pub(crate) fn close(&mut self) {
        let counts: Vec<u64> =
            self.workers.iter().map(|worker| worker.assigned - worker.returned).collect();
        (self.top_two_percent, self.max_over_mean) = shares(&counts);
        self.requests = self.workers.iter().map(|worker| worker.requests).sum();
        self.headers_refused = self.workers.iter().map(|worker| worker.headers_refused).sum();
    }

    /// Whether every connection is accounted for.
    #[must_use]
    #[cfg(test)]
    pub(crate) fn balances(&self) -> bool {
        let assigned: u64 = self.workers.iter().map(|worker| worker.assigned).sum();
        let each = self
            .workers
            .iter()
            .all(|one| one.assigned == one.returned + one.finished + one.aborted);
        each && self.accepted + self.redispatched == assigned + self.dropped
    }
}

/// Share of the two largest in percent, and the largest over the average; 0 without counts.
fn shares(counts: &[u64]) -> (f64, f64) {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return (0.0, 0.0);
    }
    let mut sorted = counts.to_vec();
    sorted.sort_unstable_by(|left, right| right.cmp(left));
    let top: u64 = sorted.iter().take(2).sum();
    let mean = to_f64(total) / to_f64(counts.len() as u64);
    (100.0 * to_f64(top) / to_f64(total), to_f64(sorted[0]) / mean)
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn to_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(id: u32, assigned: u64) -> WorkerSummary {
        let mut counts = WorkerCounts::default();
        (counts.assigned, counts.claimed, counts.finished) = (assigned, assigned, assigned);
        WorkerSummary::new(WorkerId::new(id), 100 + id, None, counts)
    }

    #[test]
    fn shares_of_an_even_and_a_lopsided_run() {
        assert_eq!(shares(&[5; 8]), (25.0, 1.0));
        assert_eq!(shares(&[8, 0, 0, 0]), (100.0, 4.0));
        assert_eq!(shares(&[]), (0.0, 0.0));
        assert_eq!(shares(&[7]), (100.0, 1.0));
    }

    #[test]
    fn the_books_balance_with_a_killed_worker() {
        let mut counts = WorkerCounts::default();
        (counts.assigned, counts.returned, counts.claimed) = (10, 3, 7);
        (counts.finished, counts.aborted) = (5, 2);
        let mut summary = Summary { accepted: 17, redispatched: 3, ..Summary::default() };
        summary.enter(WorkerSummary::new(WorkerId::new(1), 7, Some(1), counts));
        summary.enter(worker(2, 10));
        assert_eq!(summary.aborted, 2);
        assert!(summary.balances());
        summary.dropped = 1;
        assert!(!summary.balances());
    }

    #[test]
    fn a_worker_whose_cpu_was_taken_is_named_and_one_that_shares_it_is_not() {
        let named = |cpu, ran_ms, waited_ms| {
            let mut summary = Summary::default();
            summary.enter(WorkerSummary { cpu, ran_ms, waited_ms, ..worker(3, 5) });
            summary.crowded(&[1, 2])
        };
        let words = named(Some(2), 4_000, 2_500);
        assert!(words[0].starts_with("worker 3 waited 2.5 s for CPU 2 and ran 4.0 s"), "{words:?}");
        for (cpu, ran_ms, waited_ms) in
            [(None, 10, 9_000), (Some(0), 10, 9_000), (Some(2), 10, 900), (Some(2), 60_000, 9_000)]
        {
            assert_eq!(named(cpu, ran_ms, waited_ms), Vec::<String>::new());
        }
    }

    #[test]
    fn a_long_list_is_summed_up_without_losing_a_connection() {
        let mut summary = Summary { accepted: 9000, ..Summary::default() };
        for id in 1..=3000 {
            summary.enter(worker(id, 3));
        }
        assert_eq!(summary.workers.len(), ENDED_LISTED_MAX);
        assert_eq!((summary.workers[0].id, summary.workers[1].id), (0, 954));
        assert!(summary.balances());
    }
}
