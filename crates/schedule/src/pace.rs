//! A worker's time per connection, from claim to finish, smoothed. Pure: time and counters are
//! arguments.
//!
//! Two counters suffice, by Little's law: the average number in service is the finish rate times
//! the time of each. Samples are taken before a pick, so they coincide with arrivals, and arrivals
//! at random moments see averages over time, however rare they are.

/// A measurement is complete after this many finished connections.
const WINDOW: u64 = 16;
/// Weight of a new measurement in the smoothed time, as a divisor: the last sixty or so connections
/// decide.
const SHARE: u64 = 4;

/// The time of one worker.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// In service, summed over the samples of this measurement.
    seen: u64,
    looks: u64,
    /// At the start of this measurement.
    finished: u64,
    since_ns: u64,
    /// The worker's own sum, at the start of this measurement.
    open_us: u64,
    /// 0 while unknown.
    smoothed_us: u32,
}

impl Pace {
    /// A new worker.
    pub(super) fn new(now_ns: u64) -> Self {
        Self { since_ns: now_ns, ..Self::default() }
    }

    /// Learns from the numbers in service and finished so far.
    pub(super) fn look(&mut self, in_service: u64, finished: u64, now_ns: u64) {
        self.seen = self.seen.saturating_add(in_service);
        self.looks += 1;
        let done = finished.saturating_sub(self.finished);
        if done < WINDOW {
            return;
        }
        let passed_us = u128::from(now_ns.saturating_sub(self.since_ns) / 1_000);
        let looks_done = u128::from(self.looks) * u128::from(done);
        let took_us = u128::from(self.seen) * passed_us / looks_done;
        self.learn(u64::try_from(took_us).unwrap_or(u64::MAX), finished, now_ns);
    }

    /// Learns from the sum of the times that its connections have been open, which the worker
    /// itself keeps.
    pub(super) fn read(&mut self, open_us: u64, finished: u64, now_ns: u64) {
        let done = finished.saturating_sub(self.finished);
        if done < WINDOW {
            return;
        }
        self.learn(open_us.wrapping_sub(self.open_us) / done, finished, now_ns);
        self.open_us = open_us;
    }

    fn learn(&mut self, took_us: u64, finished: u64, now_ns: u64) {
        // A worker never seen with one in service is fast, and not unknown.
        let took_us = u32::try_from(took_us).unwrap_or(u32::MAX).max(1);
        self.smoothed_us = match self.smoothed_us {
            0 => took_us,
            before => smooth(before, took_us),
        };
        let smoothed_us = self.smoothed_us;
        *self = Self { finished, smoothed_us, ..Self::new(now_ns) };
    }

    /// The smoothed time in microseconds, 0 while unknown.
    pub(super) fn usual_us(&self) -> u32 {
        self.smoothed_us
    }
}

fn smooth(before: u32, new: u32) -> u32 {
    let sum = u64::from(before) * (SHARE - 1) + u64::from(new);
    u32::try_from(sum.div_ceil(SHARE)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MICROSECOND: u64 = 1_000;

    /// A worker that always has `in_service`, and finishes one in this time.
    fn busy(in_service: u64, each_us: u64, looks: u64) -> Pace {
        let mut pace = Pace::new(0);
        for look in 1..=looks {
            pace.look(in_service, look, look * each_us * MICROSECOND);
        }
        pace
    }

    #[test]
    fn nothing_is_known_before_the_first_sixteen() {
        assert_eq!(busy(1, 500, 15).usual_us(), 0);
        assert_eq!(busy(1, 500, 16).usual_us(), 500);
    }

    #[test]
    fn connections_that_overlap_take_as_long_as_each_is_open() {
        // A hundred at a time, one finished per millisecond: each is open for a tenth of a second.
        assert_eq!(busy(100, 1_000, 64).usual_us(), 100_000);
    }

    #[test]
    fn a_worker_that_becomes_faster_is_known_to_be_so_soon() {
        let mut pace = busy(1, 4_000, 80);
        for step in 1..=160 {
            pace.look(1, 80 + step, (80 * 4_000 + step * 1_000) * MICROSECOND);
        }
        assert!((1_000..1_300).contains(&pace.usual_us()), "{pace:?}");
    }

    #[test]
    fn one_that_is_never_seen_at_work_is_fast() {
        assert_eq!(busy(0, 10_000, 16).usual_us(), 1);
    }

    #[test]
    fn a_worker_that_keeps_the_sum_itself_is_known_as_exactly() {
        let mut pace = Pace::new(0);
        (1..=16).for_each(|finished| pace.read(finished * 250, finished, finished));
        assert_eq!(pace.usual_us(), 250);
        (17..=32).for_each(|finished| pace.read(finished * 250, finished, finished));
        assert_eq!(pace.usual_us(), 250);
    }

    proptest! {
        #[test]
        fn absurd_counters_do_no_harm(
            looks in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 1..50),
        ) {
            let mut pace = Pace::new(0);
            for (in_service, finished, now_ns) in looks {
                pace.look(in_service, finished, now_ns);
                pace.read(in_service, finished, now_ns);
            }
        }

        #[test]
        fn the_smoothed_time_lies_within_what_was_measured(
            times in prop::collection::vec(1u64..1_000_000, 1..40),
        ) {
            let (mut pace, mut now_ns, mut finished) = (Pace::new(0), 0, 0);
            for time_us in &times {
                for _ in 0..WINDOW {
                    now_ns += time_us * MICROSECOND;
                    finished += 1;
                    pace.look(1, finished, now_ns);
                }
            }
            let usual_us = u64::from(pace.usual_us());
            prop_assert!(times.iter().min().is_some_and(|least| *least <= usual_us));
            prop_assert!(times.iter().max().is_some_and(|most| usual_us <= *most));
        }
    }
}
