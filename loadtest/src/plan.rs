//! When each request of an open-loop run starts. Pure: no clock, no randomness but the seed.
//!
//! Every open-loop latency counts from the plan, so it is fixed before the run and never moves: a
//! generator that falls behind charges the delay to the latency, it does not replan.
//! All threads walk the same plan and the n-th start belongs to thread n mod threads, so a plan
//! does not depend on how many threads carry it out.

use fastrand::Rng;
use serde::{Deserialize, Serialize};

/// Nanoseconds in a second.
pub(crate) const SECOND_NS: u64 = 1_000_000_000;

/// How the starts are spaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Arrivals {
    /// Equal gaps: the n-th start is at n / rate.
    #[default]
    Constant,
    /// Exponential gaps, as from many independent users.
    Poisson,
}

/// An endless sequence of starts.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Starts per second, on average; above zero.
    pub rate_per_s: f64,
    /// How they are spaced.
    pub arrivals: Arrivals,
    /// Decides the exponential gaps.
    pub seed: u64,
}

/// The part of a plan that is carried out.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Starts before this are warm-up.
    pub warmup_ns: u64,
    /// Starts from this on are not made.
    pub end_ns: Option<u64>,
    /// The most starts after the warm-up, over all threads.
    pub measured_max: Option<u64>,
}

/// One start of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Nanoseconds since the run's beginning.
    pub start_ns: u64,
    /// False in the warm-up: carried out, but not recorded.
    pub measured: bool,
}

impl Plan {
    /// Walks the plan: nanoseconds since the run's beginning, never decreasing.
    #[must_use]
    pub fn starts(&self) -> Starts {
        Starts { plan: *self, index: 0, random: Rng::with_seed(self.seed), elapsed_s: 0.0 }
    }

    /// What thread number `thread` of `threads` has to start within `bounds`.
    #[must_use]
    pub fn share(&self, bounds: Bounds, thread: u32, threads: u32) -> Share {
        Share {
            starts: self.starts(),
            bounds,
            thread: u64::from(thread),
            threads: u64::from(threads.max(1)),
            index: 0,
            measured: 0,
            end_ns: None,
        }
    }
}

/// The starts of a whole plan, in order. Endless.
#[derive(Clone, Debug)]
pub struct Starts {
    plan: Plan,
    index: u64,
    random: Rng,
    elapsed_s: f64,
}

impl Iterator for Starts {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let at_s = match self.plan.arrivals {
            Arrivals::Constant => self.index as f64 / self.plan.rate_per_s,
            Arrivals::Poisson => {
                // 1 − u lies in (0, 1], so the logarithm is finite and the gap not negative.
                self.elapsed_s += -(1.0 - self.random.f64()).ln() / self.plan.rate_per_s;
                self.elapsed_s
            }
        };
        self.index += 1;
        Some(nanoseconds(at_s))
    }
}

/// Seconds as nanoseconds, rounded; negative and absurd values end at the bounds.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "float to integer casts saturate, which is what is wanted here"
)]
pub(crate) fn nanoseconds(seconds: f64) -> u64 {
    (seconds * SECOND_NS as f64).round() as u64
}

/// One thread's starts, in order.
#[derive(Clone, Debug)]
pub struct Share {
    starts: Starts,
    bounds: Bounds,
    thread: u64,
    threads: u64,
    index: u64,
    measured: u64,
    end_ns: Option<u64>,
}

impl Share {
    /// Once exhausted: the first planned instant that was out of bounds, for any thread.
    #[must_use]
    pub fn end_ns(&self) -> Option<u64> {
        self.end_ns
    }
}

impl Iterator for Share {
    type Item = Start;

    fn next(&mut self) -> Option<Start> {
        while self.end_ns.is_none() {
            let start_ns = self.starts.next()?;
            let measured = start_ns >= self.bounds.warmup_ns;
            let too_late = self.bounds.end_ns.is_some_and(|end_ns| start_ns >= end_ns);
            let enough = self.bounds.measured_max.is_some_and(|max| self.measured >= max);
            if too_late || (measured && enough) {
                self.end_ns = Some(start_ns.min(self.bounds.end_ns.unwrap_or(u64::MAX)));
                break;
            }
            let mine = self.index % self.threads == self.thread;
            self.index += 1;
            self.measured += u64::from(measured);
            if mine {
                return Some(Start { start_ns, measured });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plan(rate_per_s: f64, arrivals: Arrivals, seed: u64) -> Plan {
        Plan { rate_per_s, arrivals, seed }
    }

    fn arrivals() -> impl Strategy<Value = Arrivals> {
        prop_oneof![Just(Arrivals::Constant), Just(Arrivals::Poisson)]
    }

    proptest! {
        #[test]
        fn starts_never_go_back(rate in 0.1_f64..1e6, kind in arrivals(), seed: u64) {
            let starts: Vec<u64> = plan(rate, kind, seed).starts().take(500).collect();
            prop_assert!(starts.is_sorted());
        }

        #[test]
        fn constant_starts_stay_within_half_a_nanosecond(rate in 0.1_f64..1e6, n in 0_usize..5000) {
            let start_ns = plan(rate, Arrivals::Constant, 0).starts().nth(n).expect("endless");
            let exact_ns = n as f64 * 1e9 / rate;
            prop_assert!((start_ns as f64 - exact_ns).abs() <= 0.5 + exact_ns * 1e-12);
        }

        #[test]
        fn threads_share_the_plan_without_gap_or_overlap(
            rate in 1_f64..1e5, kind in arrivals(), seed: u64, threads in 1_u32..6,
            requests in 0_u64..300, warmup_ns in 0_u64..2_000_000,
        ) {
            let bounds = Bounds {
                warmup_ns,
                end_ns: Some(50_000_000),
                measured_max: Some(requests),
            };
            let plan = plan(rate, kind, seed);
            let alone: Vec<Start> = plan.share(bounds, 0, 1).collect();
            let mut together: Vec<Start> =
                (0..threads).flat_map(|thread| plan.share(bounds, thread, threads)).collect();
            together.sort_by_key(|start| start.start_ns);
            prop_assert_eq!(&alone, &together);
            prop_assert!(alone.iter().filter(|start| start.measured).count() as u64 <= requests);
            prop_assert!(alone.iter().all(|start| start.start_ns < 50_000_000));
            prop_assert!(alone.iter().all(|s| s.measured == (s.start_ns >= warmup_ns)));
        }
    }

    #[test]
    fn poisson_gaps_have_the_asked_mean_and_their_own_spread() {
        let starts: Vec<u64> = plan(1000.0, Arrivals::Poisson, 7).starts().take(100_001).collect();
        let gaps: Vec<f64> = starts.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // An exponential's deviation equals its mean; 1e5 samples pin both to about a percent.
        assert!((mean / 1e6 - 1.0).abs() < 0.02, "mean {mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.03, "deviation {}", variance.sqrt());
    }

    #[test]
    fn the_end_is_the_first_instant_left_out() {
        let bounds = Bounds { warmup_ns: 0, end_ns: None, measured_max: Some(10) };
        let mut share = plan(10.0, Arrivals::Constant, 0).share(bounds, 0, 1);
        assert_eq!(share.by_ref().count(), 10);
        assert_eq!(share.end_ns(), Some(SECOND_NS));
    }
}
