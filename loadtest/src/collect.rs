//! Merges the seconds of all threads into the rows of a series, and into totals. Pure.
//!
//! Every thread hands over one interval for each second, in order, and each recorded value is in
//! exactly one of them, so a row is a sum over threads and the total a sum over rows.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::latency::{Latencies, quantile_us};
use crate::tally::Tally;

/// Most rows: a day. In a longer run the totals go on, but the series ends.
pub const ROWS_MAX: usize = 86_400;

/// What one thread, or all of them, saw in one second of the measured time.
#[derive(Clone, Debug, Default)]
pub struct Interval {
    /// Whole seconds since the measured time began.
    pub second: u64,
    /// Counters; an event counts in the second in which it happened.
    pub tally: Tally,
    /// Latencies of the answers that arrived in this second.
    pub latencies: Latencies,
}

impl Interval {
    /// Empties it, keeping the memory.
    pub(crate) fn clear(&mut self) {
        self.tally = Tally::default();
        self.latencies.clear();
    }
}

/// One second of a report's series.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Whole seconds since the measured time began.
    pub second: u64,
    /// Requests begun.
    pub started: u64,
    /// Requests answered.
    pub completed: u64,
    /// Requests failed.
    pub errors: u64,
    /// Starts more than a millisecond late.
    pub late_starts: u64,
    /// Starts never made.
    pub dropped_starts: u64,
    /// Connections established.
    pub connected: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Median time to connect.
    pub connect_p50_us: Option<f64>,
    /// 99th percentile of the time to connect.
    pub connect_p99_us: Option<f64>,
    /// 99th percentile of the time to the first byte.
    pub first_byte_p99_us: Option<f64>,
    /// Median time to the last byte.
    pub response_p50_us: Option<f64>,
    /// 90th percentile of the time to the last byte.
    pub response_p90_us: Option<f64>,
    /// 99th percentile of the time to the last byte.
    pub response_p99_us: Option<f64>,
    /// Longest time to the last byte.
    pub response_max_us: Option<f64>,
}

impl Row {
    fn of(interval: &Interval) -> Self {
        let tally = &interval.tally;
        let latencies = &interval.latencies;
        let at = |histogram: &hdrhistogram::Histogram<u64>, quantile| {
            (!histogram.is_empty()).then(|| quantile_us(histogram, quantile))
        };
        Self {
            second: interval.second,
            started: tally.started,
            completed: tally.completed,
            errors: tally.failed(),
            late_starts: tally.late,
            dropped_starts: tally.dropped,
            connected: tally.connected,
            received_bytes: tally.bytes_received,
            connect_p50_us: at(&latencies.connect, 0.5),
            connect_p99_us: at(&latencies.connect, 0.99),
            first_byte_p99_us: at(&latencies.first_byte, 0.99),
            response_p50_us: at(&latencies.response, 0.5),
            response_p90_us: at(&latencies.response, 0.9),
            response_p99_us: at(&latencies.response, 0.99),
            response_max_us: at(&latencies.response, 1.0),
        }
    }
}

/// The sum of everything handed over so far.
#[derive(Debug)]
pub struct Collector {
    threads: usize,
    /// Seconds that some thread has not reached yet, with the number of those that have.
    pending: VecDeque<(Box<Interval>, usize)>,
    next_second: u64,
    total: Interval,
    rows: Vec<Row>,
    cut: bool,
}

impl Collector {
    /// A collector for this number of threads.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self {
            threads,
            pending: VecDeque::new(),
            next_second: 0,
            total: Interval::default(),
            rows: Vec::new(),
            cut: false,
        }
    }

    /// Adds one second of one thread. Calls `complete` for every second that all threads have
    /// passed now, and returns an interval for reuse.
    pub fn absorb(
        &mut self,
        interval: Box<Interval>,
        complete: &mut dyn FnMut(&Interval, &Row),
    ) -> Option<Box<Interval>> {
        let place = usize::try_from(interval.second.saturating_sub(self.next_second))
            .expect("a run's seconds fit the address space");
        while self.pending.len() < place {
            let mut empty = Box::<Interval>::default();
            empty.second = self.next_second + self.pending.len() as u64;
            self.pending.push_back((empty, 0));
        }
        let mut spare = None;
        match self.pending.get_mut(place) {
            None => self.pending.push_back((interval, 1)),
            Some((sum, threads)) => {
                sum.tally.add(&interval.tally);
                sum.latencies.add(&interval.latencies);
                *threads += 1;
                spare = Some(interval);
            }
        }
        while self.pending.front().is_some_and(|(_, threads)| *threads >= self.threads) {
            spare = self.finish_first(complete).or(spare);
        }
        spare
    }

    /// The threads are done: what is pending is complete as it is.
    pub fn finish(&mut self, complete: &mut dyn FnMut(&Interval, &Row)) {
        while !self.pending.is_empty() {
            self.finish_first(complete);
        }
    }

    fn finish_first(&mut self, complete: &mut dyn FnMut(&Interval, &Row)) -> Option<Box<Interval>> {
        let (interval, _) = self.pending.pop_front()?;
        self.next_second = interval.second + 1;
        self.total.tally.add(&interval.tally);
        self.total.latencies.add(&interval.latencies);
        let row = Row::of(&interval);
        complete(&interval, &row);
        if self.rows.len() < ROWS_MAX {
            self.rows.push(row);
        } else {
            self.cut = true;
        }
        Some(interval)
    }

    /// The sum over all complete seconds.
    #[must_use]
    pub fn total(&self) -> &Interval {
        &self.total
    }

    /// The rows, and whether later ones were left out.
    #[must_use]
    pub fn into_rows(self) -> (Vec<Row>, bool) {
        (self.rows, self.cut)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn interval(second: u64, started: u64, latency_ns: u64) -> Box<Interval> {
        let mut interval = Box::<Interval>::default();
        interval.second = second;
        interval.tally.started = started;
        interval.latencies.response.saturating_record(latency_ns);
        interval
    }

    proptest! {
        // Each case writes megabytes of counters: few are enough where sums are compared.
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// However threads are interleaved, rows and totals are the sums.
        #[test]
        fn interleaving_does_not_matter(
            order in proptest::collection::vec(0_usize..3, 0..40),
        ) {
            let seconds = 6_u64;
            let mut next = [0_u64; 3];
            let mut shown = Vec::new();
            let mut collector = Collector::new(3);
            let rest = [0, 1, 2].into_iter().cycle().take(18);
            for thread in order.into_iter().chain(rest) {
                let second = next[thread];
                if second < seconds {
                    next[thread] += 1;
                    let part = interval(second, 1 + thread as u64, 1_000_000 * (second + 1));
                    collector.absorb(part, &mut |whole, row| {
                        assert_eq!(whole.second, row.second);
                        shown.push(row.clone());
                    });
                }
            }
            collector.finish(&mut |_, _| ());
            prop_assert_eq!(collector.total().tally.started, 6 * seconds);
            prop_assert_eq!(collector.total().latencies.response.len(), 3 * seconds);
            let (rows, cut) = collector.into_rows();
            prop_assert!(!cut);
            prop_assert_eq!(&rows, &shown);
            for (second, row) in rows.iter().enumerate() {
                prop_assert_eq!((row.second, row.started), (second as u64, 6));
            }
        }
    }

    #[test]
    fn a_thread_that_ends_early_delays_nothing_at_the_end() {
        let mut collector = Collector::new(2);
        collector.absorb(interval(0, 1, 1000), &mut |_, _| ());
        collector.absorb(interval(0, 1, 1000), &mut |_, _| ());
        collector.absorb(interval(1, 1, 1000), &mut |_, _| ());
        assert_eq!(collector.total().tally.started, 2);
        collector.finish(&mut |_, _| ());
        assert_eq!(collector.total().tally.started, 3);
    }
}
