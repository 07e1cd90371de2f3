//! Which request starts when: the open loop's plan or the closed loop's turns. Pure: time is an
//! argument, so that tests drive it.

use std::collections::VecDeque;

use crate::plan::{Bounds, Plan, Share, Start};

/// Planned starts that may wait for a connection; further ones are dropped at once.
const WAITING_MAX: usize = 1 << 20;
/// How long a closed loop waits after a failed connect: a refusal takes microseconds, and without
/// a pause the retries would be the load.
const PAUSE_NS: u64 = 10_000_000;

/// The requests of one thread.
#[derive(Debug)]
pub(super) enum Demand {
    Open(OpenLoop),
    Closed(ClosedLoop),
}

/// Starts at planned instants.
#[derive(Debug)]
pub(super) struct OpenLoop {
    share: Share,
    next: Option<Start>,
    /// Due, but without a connection so far.
    waiting: VecDeque<Start>,
    patience_ns: u64,
}

/// Starts as soon as there is a connection to take them.
#[derive(Debug)]
pub(super) struct ClosedLoop {
    bounds: Bounds,
    /// This thread's share of the bound on measured requests.
    measured_left: Option<u64>,
    over: bool,
    /// When connections that failed may be tried again.
    paused: VecDeque<u64>,
}

impl Demand {
    /// Requests by a plan. A start that has found no connection after half of the timeout is
    /// dropped: a late request needs time for its answer, or an overload would fail all of them.
    pub(super) fn open(
        plan: &Plan,
        bounds: Bounds,
        (thread, threads): (u32, u32),
        timeout_ns: u64,
    ) -> Self {
        let mut share = plan.share(bounds, thread, threads);
        let next = share.next();
        Self::Open(OpenLoop { share, next, waiting: VecDeque::new(), patience_ns: timeout_ns / 2 })
    }

    /// Requests one after another.
    pub(super) fn closed(bounds: Bounds, (thread, threads): (u32, u32)) -> Self {
        let (thread, threads) = (u64::from(thread), u64::from(threads));
        let part = |all: u64| all / threads + u64::from(thread < all % threads);
        let measured_left = bounds.measured_max.map(part);
        Self::Closed(ClosedLoop {
            bounds,
            measured_left,
            over: measured_left == Some(0),
            paused: VecDeque::new(),
        })
    }

    /// Makes due what is due at `now_ns`. Returns how many measured starts had to be dropped.
    pub(super) fn admit(&mut self, now_ns: u64) -> u64 {
        match self {
            Self::Open(open) => open.admit(now_ns),
            Self::Closed(closed) => {
                closed.over |= closed.bounds.end_ns.is_some_and(|end_ns| now_ns >= end_ns);
                while closed.paused.front().is_some_and(|resume_ns| *resume_ns <= now_ns) {
                    closed.paused.pop_front();
                }
                0
            }
        }
    }

    /// True if a request could start right now.
    pub(super) fn ready(&self) -> bool {
        match self {
            Self::Open(open) => !open.waiting.is_empty(),
            Self::Closed(closed) => !closed.over,
        }
    }

    /// The next request to start, if there is one.
    pub(super) fn take(&mut self, now_ns: u64) -> Option<Start> {
        match self {
            Self::Open(open) => open.waiting.pop_front(),
            Self::Closed(closed) => closed.take(now_ns),
        }
    }

    /// When there will be something to admit, if known.
    pub(super) fn wake_ns(&self) -> Option<u64> {
        match self {
            Self::Open(open) => open.next.map(|start| start.start_ns),
            Self::Closed(closed) => closed.paused.front().copied(),
        }
    }

    /// No request will start any more.
    pub(super) fn over(&self) -> bool {
        match self {
            Self::Open(open) => open.next.is_none() && open.waiting.is_empty(),
            Self::Closed(closed) => closed.over,
        }
    }

    /// A connection could not be made at `now_ns`.
    pub(super) fn pause(&mut self, now_ns: u64) {
        if let Self::Closed(closed) = self {
            closed.paused.push_back(now_ns + PAUSE_NS);
        }
    }

    /// Connections that wait to be tried again.
    pub(super) fn paused(&self) -> usize {
        match self {
            Self::Open(_) => 0,
            Self::Closed(closed) => closed.paused.len(),
        }
    }

    /// Measured starts that were planned and due but not made so far.
    pub(super) fn waiting(&self) -> u64 {
        match self {
            Self::Open(open) => open.waiting.iter().filter(|start| start.measured).count() as u64,
            Self::Closed(_) => 0,
        }
    }

    /// The planned end of the run, once known: a closed loop without a duration has none.
    pub(super) fn end_ns(&self) -> Option<u64> {
        match self {
            Self::Open(open) => open.share.end_ns(),
            Self::Closed(closed) => closed.bounds.end_ns,
        }
    }
}

impl OpenLoop {
    fn admit(&mut self, now_ns: u64) -> u64 {
        let mut dropped = 0;
        while let Some(start) = self.next.filter(|start| start.start_ns <= now_ns) {
            if self.waiting.len() < WAITING_MAX {
                self.waiting.push_back(start);
            } else {
                dropped += u64::from(start.measured);
            }
            self.next = self.share.next();
        }
        let expired = |start: &Start| start.start_ns.saturating_add(self.patience_ns) <= now_ns;
        while self.waiting.front().is_some_and(expired) {
            dropped += u64::from(self.waiting.pop_front().is_some_and(|start| start.measured));
        }
        dropped
    }
}

impl ClosedLoop {
    fn take(&mut self, now_ns: u64) -> Option<Start> {
        self.over |= self.bounds.end_ns.is_some_and(|end_ns| now_ns >= end_ns);
        if self.over {
            return None;
        }
        let measured = now_ns >= self.bounds.warmup_ns;
        if let Some(left) = self.measured_left.as_mut().filter(|_| measured) {
            *left -= 1;
            self.over = *left == 0;
        }
        Some(Start { start_ns: now_ns, measured })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::Arrivals;

    const MS: u64 = 1_000_000;

    fn bounds(measured_max: Option<u64>) -> Bounds {
        Bounds { warmup_ns: 10 * MS, end_ns: Some(100 * MS), measured_max }
    }

    fn plan(rate_per_s: f64) -> Plan {
        Plan { rate_per_s, arrivals: Arrivals::Constant, seed: 0 }
    }

    proptest! {
        /// However rarely the loop looks, every planned start is handed out once with its
        /// planned instant, or counted as dropped.
        #[test]
        fn no_planned_start_is_lost(
            looks in proptest::collection::vec((1_u64..20, 0_usize..40), 1..60),
        ) {
            let mut demand = Demand::open(&plan(1000.0), bounds(None), (0, 1), 50 * MS);
            let (mut now_ns, mut taken, mut dropped) = (0, Vec::new(), 0);
            for (step_ms, takes) in looks.into_iter().chain([(200, 0)]) {
                now_ns += step_ms * MS;
                dropped += demand.admit(now_ns);
                for _ in 0..takes {
                    if let Some(start) = demand.take(now_ns) {
                        prop_assert!(start.start_ns <= now_ns);
                        prop_assert!(now_ns < start.start_ns + 25 * MS);
                        taken.push(start);
                    }
                }
            }
            prop_assert!(demand.over());
            prop_assert!(taken.is_sorted_by_key(|start| start.start_ns));
            let measured = taken.iter().filter(|start| start.measured).count() as u64;
            prop_assert_eq!(measured + dropped, 90);
        }

        #[test]
        fn threads_share_the_requests_of_a_closed_loop(all in 1_u64..100, threads in 1_u32..7) {
            let mut sum = 0;
            for thread in 0..threads {
                let mut demand = Demand::closed(bounds(Some(all)), (thread, threads));
                prop_assert_eq!(demand.admit(20 * MS), 0);
                while demand.take(20 * MS).is_some() {
                    sum += 1;
                }
                prop_assert!(demand.over());
            }
            prop_assert_eq!(sum, all);
        }
    }

    #[test]
    fn a_closed_loop_does_not_count_its_warm_up_and_ends_in_time() {
        let mut demand = Demand::closed(bounds(Some(2)), (0, 1));
        for _ in 0..5 {
            assert_eq!(demand.take(5 * MS).map(|start| start.measured), Some(false));
        }
        assert_eq!(demand.take(10 * MS).map(|start| start.measured), Some(true));
        assert!(demand.ready() && !demand.over());
        assert_eq!(demand.take(100 * MS), None);
        assert!(demand.over());
    }

    #[test]
    fn a_refused_connection_waits_before_it_is_tried_again() {
        let mut demand = Demand::closed(bounds(None), (0, 1));
        demand.pause(MS);
        assert_eq!((demand.paused(), demand.wake_ns()), (1, Some(11 * MS)));
        demand.admit(11 * MS);
        assert_eq!((demand.paused(), demand.wake_ns()), (0, None));
    }
}
