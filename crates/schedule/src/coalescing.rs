//! Whether to hand over at once or to wait for more connections. Pure: time is an argument.
//!
//! Network cards call it interrupt coalescing. A connection handed over alone costs the primary a
//! wake-up and a message, and its worker a wake-up. While many arrive, a short wait lets several
//! share all three. Waiting costs latency, so there is no wait at low rates. The exception is free:
//! while every worker still has connections to take, a new one would only wait there instead of
//! here.
//!
//! Where workers share CPUs, connections that arrive together go to as few workers as there are
//! CPUs: more cannot run at once, and each further one costs a message and a wake-up.

/// The rate is measured over this many windows: long enough to average out bursts and chance.
const SLOT_WINDOWS: u64 = 200;
/// While no worker is idle, the wait is this part of the usual time from handoff to claim: so short
/// that hardly any worker becomes idle in it.
const SLACK_SHARE: u64 = 4;
/// Longest such wait.
const SLACK_MAX_NS: u64 = 500_000;

/// With more workers than this, arrivals of one window hardly give any of them two connections, so
/// each message and wake-up is for a single one. The window is then twice as long.
const FEW_WORKERS: usize = 4;

/// A worker that finishes this many per second takes less than a millisecond for one, if it works
/// on one at a time. A connection may then wait for another of the same message.
const QUICK_PER_S: u64 = 1_000;

/// Measures the arrival rate and decides how long to wait.
#[derive(Clone, Debug)]
pub struct Coalescing {
    /// The length of a wait; `None` never waits.
    window_ns: Option<u64>,
    workers: usize,
    /// CPUs that the workers share, if known.
    cpus: Option<usize>,
    /// Whether each worker finishes at least [`QUICK_PER_S`].
    quick: bool,
    slot_begun_ns: u64,
    slot_arrivals: u64,
    busy: bool,
}

impl Coalescing {
    /// Waits for `window_ns` while at least three connections arrive in two windows. With more than
    /// four workers a window is twice as long.
    #[must_use]
    pub fn new(window_ns: Option<u64>) -> Self {
        let mut coalescing = Self {
            window_ns: None,
            workers: 0,
            cpus: None,
            quick: false,
            slot_begun_ns: 0,
            slot_arrivals: 0,
            busy: false,
        };
        coalescing.set_window(window_ns);
        coalescing
    }

    /// Changes the length of a window.
    pub fn set_window(&mut self, window_ns: Option<u64>) {
        self.window_ns = window_ns.filter(|window_ns| *window_ns > 0);
        (self.busy, self.quick) = (false, false);
    }

    /// Sets the number of workers.
    pub fn spread_over(&mut self, workers: usize) {
        self.workers = workers;
    }

    /// Sets the number of CPUs that the workers share.
    pub fn share_cpus(&mut self, cpus: usize) {
        self.cpus = Some(cpus.max(1));
    }

    /// How many of `waiting` connections one worker gets in a row: one, unless there are more
    /// workers than CPUs and each is quick.
    #[must_use]
    pub fn in_a_row(&self, waiting: usize) -> usize {
        match self.cpus {
            Some(cpus) if self.busy && self.quick && cpus < self.workers => waiting.div_ceil(cpus),
            _ => 1,
        }
    }

    /// Records arrivals, and returns for how long, in nanoseconds, to wait for more before the next
    /// turn. What has arrived is handed over before that wait. `slack_ns` is the usual time from
    /// handoff to claim, if no worker is idle ([`Roster::slack_ns`](super::Roster::slack_ns)).
    pub fn wait_ns(&mut self, arrivals: u64, slack_ns: Option<u64>, now_ns: u64) -> Option<u64> {
        let window_ns =
            self.window_ns?.saturating_mul(if self.workers > FEW_WORKERS { 2 } else { 1 });
        let passed_ns = now_ns.saturating_sub(self.slot_begun_ns);
        if passed_ns >= window_ns.saturating_mul(SLOT_WINDOWS) {
            let windows = passed_ns / window_ns;
            self.busy = self.slot_arrivals.saturating_mul(2) >= windows.saturating_mul(3);
            let quick_ns = passed_ns.saturating_mul(self.workers as u64 * QUICK_PER_S);
            self.quick = self.slot_arrivals.saturating_mul(1_000_000_000) >= quick_ns;
            self.slot_begun_ns = now_ns;
            self.slot_arrivals = 0;
        }
        self.slot_arrivals += arrivals;
        let slack_ns = slack_ns.map_or(0, |slack_ns| (slack_ns / SLACK_SHARE).min(SLACK_MAX_NS));
        let wait_ns = if self.busy || slack_ns > window_ns { window_ns.max(slack_ns) } else { 0 };
        (wait_ns > 0 && arrivals > 0).then_some(wait_ns)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW_NS: u64 = 50_000;

    /// How many of `arrivals`, one each `gap_ns`, are followed by a wait.
    fn waits(coalescing: &mut Coalescing, begin_ns: u64, gap_ns: u64, arrivals: u64) -> u64 {
        let times = (0..arrivals).map(|number| begin_ns + number * gap_ns);
        times.map(|now_ns| u64::from(coalescing.wait_ns(1, None, now_ns).is_some())).sum()
    }

    #[test]
    fn few_never_wait_and_many_do_after_a_moment() {
        let mut coalescing = Coalescing::new(Some(WINDOW_NS));
        assert_eq!(waits(&mut coalescing, 1, WINDOW_NS, 3000), 0);
        let waiting = waits(&mut coalescing, 1_000_000_000, WINDOW_NS / 2, 3000);
        assert!((2100..3000).contains(&waiting), "{waiting}");
        let waiting = waits(&mut coalescing, 1_075_000_000, WINDOW_NS, 3000);
        assert!(waiting < 900, "{waiting}");
    }

    #[test]
    fn the_first_after_a_pause_does_not_wait() {
        let mut coalescing = Coalescing::new(Some(WINDOW_NS));
        assert!(waits(&mut coalescing, 1, WINDOW_NS / 10, 3000) > 0);
        assert_eq!(coalescing.wait_ns(1, None, 2_000_000_000), None);
    }

    #[test]
    fn what_comes_together_goes_to_as_many_workers_as_there_are_cpus() {
        let after = |workers: usize, cpus: Option<usize>, gap_ns| {
            let mut coalescing = Coalescing::new(Some(WINDOW_NS));
            coalescing.spread_over(workers);
            cpus.into_iter().for_each(|cpus| coalescing.share_cpus(cpus));
            waits(&mut coalescing, 1_000_000_000, gap_ns, 6000);
            [1, 2, 7].map(|waiting| coalescing.in_a_row(waiting))
        };
        let often_ns = WINDOW_NS / 2;
        assert_eq!(after(8, Some(1), often_ns), [1, 2, 7]);
        assert_eq!(after(8, Some(2), often_ns), [1, 1, 4]);
        assert_eq!(after(8, Some(8), often_ns), [1, 1, 1], "each has its CPU");
        assert_eq!(after(8, None, often_ns), [1, 1, 1], "unknown");
        assert_eq!(after(8, Some(1), 4 * WINDOW_NS), [1, 1, 1], "they come one by one");
        assert_eq!(after(64, Some(1), often_ns), [1, 1, 1], "they may take more than 1 ms each");
    }

    #[test]
    fn with_many_workers_a_window_is_twice_as_long() {
        for (workers, window_ns) in
            [(1, WINDOW_NS), (4, WINDOW_NS), (5, 2 * WINDOW_NS), (64, 2 * WINDOW_NS)]
        {
            let mut coalescing = Coalescing::new(Some(WINDOW_NS));
            coalescing.spread_over(workers);
            assert_eq!(waits(&mut coalescing, 1, window_ns, 3000), 0);
            waits(&mut coalescing, 1_000_000_000, window_ns / 2, 3000);
            let wait_ns = coalescing.wait_ns(1, None, 1_000_000_000 + 1500 * window_ns);
            assert_eq!(wait_ns, Some(window_ns), "{workers} workers");
        }
    }

    #[test]
    fn while_no_worker_is_idle_waiting_is_free() {
        let mut coalescing = Coalescing::new(Some(WINDOW_NS));
        let mut wait_ns = |slack_ns, now_ns| coalescing.wait_ns(1, slack_ns, now_ns);
        assert_eq!(wait_ns(Some(4 * WINDOW_NS), 1), None, "a worker that is fast is idle soon");
        assert_eq!(wait_ns(Some(4_000_000), 2_000_000), Some(SLACK_MAX_NS));
        assert_eq!(wait_ns(Some(1_000_000), 4_000_000), Some(250_000));
        assert_eq!(wait_ns(None, 6_000_000), None);
        assert_eq!(coalescing.wait_ns(0, Some(4_000_000), 8_000_000), None);
    }

    #[test]
    fn switched_off_it_never_waits() {
        for window_ns in [None, Some(0)] {
            let mut coalescing = Coalescing::new(window_ns);
            assert_eq!(waits(&mut coalescing, 1, 1, 10_000), 0);
            assert_eq!(coalescing.wait_ns(1, Some(4_000_000), 1_000_000), None);
        }
    }

    proptest! {
        /// For any arrivals, each wait has a reason, and none exceeds the window or the slack.
        #[test]
        fn waits_are_bounded_and_follow_an_arrival(
            window_ns in 1u64..1_000_000,
            steps in prop::collection::vec(
                (0u64..50, any::<Option<u64>>(), 0u64..2_000_000),
                1..200,
            ),
        ) {
            let mut coalescing = Coalescing::new(Some(window_ns));
            let mut now_ns = 0;
            for (arrivals, slack_ns, passed_ns) in steps {
                now_ns += passed_ns;
                if let Some(wait_ns) = coalescing.wait_ns(arrivals, slack_ns, now_ns) {
                    let free_ns = slack_ns.unwrap_or(0) / SLACK_SHARE;
                    prop_assert!(arrivals > 0 && wait_ns >= window_ns);
                    prop_assert!(wait_ns == window_ns || wait_ns <= free_ns.min(SLACK_MAX_NS));
                }
            }
        }
    }
}
