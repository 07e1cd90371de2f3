//! In which order trials run, and which of them count.
//!
//! Owns two decisions: targets take turns, forwards and backwards (A B B A A B …), so that drift
//! of the machine hits all alike; and a trial whose own facts speak against it is invalid. It is
//! then shown with the reasons, never dropped quietly.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::interval::SAMPLES_MIN;
use crate::error::{Error, Result};

/// Most targets of one comparison.
pub const TARGETS_MAX: usize = 64;
/// Most repeats of each target.
pub const REPEATS_MAX: usize = 1_000;

/// The least share of the wanted rate that has to be reached.
const ACHIEVED_SHARE_MIN: f64 = 0.99;
/// Beyond this share of its CPUs the generator measures itself.
const GENERATOR_CPU_SHARE_MAX: f64 = 0.90;
/// How late the 99th percentile of starts may be.
const START_LATENESS_NS_MAX: u64 = 1_000_000;

/// One run of one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Trial {
    /// Which target, counted from zero in the order they were named.
    pub target: usize,
    /// Which repeat of it, counted from zero. Trials of the same repeat are compared in pairs.
    pub repeat: usize,
}

/// How a comparison is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    targets: usize,
    repeats: usize,
    /// At the start of each trial, measured but thrown away.
    pub warm_up: Duration,
    /// What counts of each trial.
    pub measured: Duration,
}

impl Plan {
    /// A plan, if an interval can come of it.
    ///
    /// # Errors
    /// [`Error::Usage`] for no or too many targets, too few or too many repeats, or no time.
    pub fn new(
        targets: usize,
        repeats: usize,
        warm_up: Duration,
        measured: Duration,
    ) -> Result<Self> {
        if targets == 0 || targets > TARGETS_MAX {
            let hint = format!("name between 1 and {TARGETS_MAX}");
            return Err(Error::usage(format!("{targets} targets"), hint));
        }
        if !(SAMPLES_MIN..=REPEATS_MAX).contains(&repeats) {
            let hint = format!(
                "ask for {SAMPLES_MIN} to {REPEATS_MAX}; fewer give no interval for a median"
            );
            return Err(Error::usage(format!("{repeats} repeats"), hint));
        }
        if measured.is_zero() {
            let hint = "give the measurement some time, such as 10s";
            return Err(Error::usage("a measurement of no duration", hint));
        }
        Ok(Self { targets, repeats, warm_up, measured })
    }

    /// The trials in the order they run: every round has each target once, and every other round
    /// goes backwards.
    #[must_use]
    pub fn trials(&self) -> Vec<Trial> {
        let mut trials = Vec::with_capacity(self.targets * self.repeats);
        for repeat in 0..self.repeats {
            for place in 0..self.targets {
                let backwards = repeat % 2 == 1;
                let target = if backwards { self.targets - 1 - place } else { place };
                trials.push(Trial { target, repeat });
            }
        }
        trials
    }

    /// How long all trials take, starting and stopping of targets not counted.
    #[must_use]
    pub fn duration(&self) -> Duration {
        let trials = u32::try_from(self.targets * self.repeats).unwrap_or(u32::MAX);
        self.warm_up.saturating_add(self.measured).saturating_mul(trials)
    }
}

/// What was measured of a trial beside its results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Facts {
    /// The rate that was asked for, in an open-loop trial.
    pub target_rate_per_s: Option<f64>,
    /// The rate that was reached.
    pub achieved_rate_per_s: f64,
    /// The share of its time that the busiest thread of the generator spent computing.
    pub generator_cpu_share: f64,
    /// How late starts were, in an open-loop trial.
    pub start_lateness_p99_ns: Option<u64>,
    /// Connections that found the listen queue full.
    pub listen_overflows: u64,
    /// Workers that ended and were replaced.
    pub workers_restarted: u64,
}

/// Why a trial does not count.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "reason")]
pub enum Reason {
    /// Nothing at all was answered.
    NothingMeasured,
    /// Less than 99 % of the wanted rate was reached.
    RateMissed {
        /// What was reached.
        achieved_rate_per_s: f64,
        /// What was wanted.
        target_rate_per_s: f64,
    },
    /// The generator was the bottleneck.
    GeneratorBusy {
        /// Share of its time that its busiest thread computed.
        cpu_share: f64,
    },
    /// Requests started too late for their latency to mean what it should.
    StartsLate {
        /// The 99th percentile.
        p99_ns: u64,
    },
    /// The kernel threw connections away, so latencies hold retries.
    ListenOverflowed {
        /// How many.
        connections: u64,
    },
    /// A worker ended on the way, so there were fewer for a while.
    WorkerRestarted {
        /// How many.
        workers: u64,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingMeasured => write!(f, "nothing was answered"),
            Self::RateMissed { achieved_rate_per_s, target_rate_per_s } => write!(
                f,
                "reached {achieved_rate_per_s:.0} of {target_rate_per_s:.0} a second, \
                 less than 99 %"
            ),
            Self::GeneratorBusy { cpu_share } => {
                let percent = 100.0 * cpu_share;
                write!(f, "the generator computed {percent:.0} % of the time, more than 90 %")
            }
            Self::StartsLate { p99_ns } => {
                let late = Duration::from_nanos(*p99_ns);
                write!(f, "one start in a hundred was {late:.1?} late or more, the limit is 1 ms")
            }
            Self::ListenOverflowed { connections } => {
                write!(f, "connections found the listen queue full: {connections}")
            }
            Self::WorkerRestarted { workers } => {
                write!(f, "workers ended and were replaced: {workers}")
            }
        }
    }
}

/// Everything that speaks against a trial; nothing means that it counts.
#[must_use]
pub fn objections(facts: &Facts) -> Vec<Reason> {
    let mut reasons = Vec::new();
    // Written so that a value that is no number counts as bad.
    let answered = facts.achieved_rate_per_s > 0.0;
    if !answered {
        reasons.push(Reason::NothingMeasured);
    }
    if let Some(target_rate_per_s) = facts.target_rate_per_s {
        let achieved_rate_per_s = facts.achieved_rate_per_s;
        let reached = achieved_rate_per_s >= ACHIEVED_SHARE_MIN * target_rate_per_s;
        if answered && !reached {
            reasons.push(Reason::RateMissed { achieved_rate_per_s, target_rate_per_s });
        }
    }
    let cpu_share = facts.generator_cpu_share;
    let idle_enough = cpu_share <= GENERATOR_CPU_SHARE_MAX;
    if !idle_enough {
        reasons.push(Reason::GeneratorBusy { cpu_share });
    }
    if let Some(p99_ns) = facts.start_lateness_p99_ns.filter(|ns| *ns > START_LATENESS_NS_MAX) {
        reasons.push(Reason::StartsLate { p99_ns });
    }
    if facts.listen_overflows > 0 {
        let connections = facts.listen_overflows;
        reasons.push(Reason::ListenOverflowed { connections });
    }
    if facts.workers_restarted > 0 {
        let workers = facts.workers_restarted;
        reasons.push(Reason::WorkerRestarted { workers });
    }
    reasons
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn plan(targets: usize, repeats: usize) -> Plan {
        Plan::new(targets, repeats, SECOND, 10 * SECOND).expect("a sound plan")
    }

    #[test]
    fn two_targets_take_turns() {
        let letters = ["A", "B"];
        let order: Vec<&str> =
            plan(2, 6).trials().iter().map(|trial| letters[trial.target]).collect();
        assert_eq!(order.join(" "), "A B B A A B B A A B B A");
        assert_eq!(plan(2, 6).duration(), 132 * SECOND);
    }

    #[test]
    fn plans_that_show_nothing_are_refused() {
        let refused = |targets, repeats, measured| {
            let error = Plan::new(targets, repeats, SECOND, measured).expect_err("no plan");
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        assert_eq!(refused(2, 5, SECOND), "5 repeats");
        assert_eq!(refused(0, 6, SECOND), "0 targets");
        assert_eq!(refused(65, 6, SECOND), "65 targets");
        assert_eq!(refused(2, 6, Duration::ZERO), "a measurement of no duration");
    }

    fn good() -> Facts {
        Facts {
            target_rate_per_s: Some(20_000.0),
            achieved_rate_per_s: 19_801.0,
            generator_cpu_share: 0.9,
            start_lateness_p99_ns: Some(1_000_000),
            listen_overflows: 0,
            workers_restarted: 0,
        }
    }

    /// The only objection after one thing has changed, in words.
    fn objection(change: impl FnOnce(&mut Facts)) -> String {
        let mut facts = good();
        change(&mut facts);
        let reasons = objections(&facts);
        assert_eq!(reasons.len(), 1, "{reasons:?}");
        reasons[0].to_string()
    }

    #[test]
    fn each_fact_can_speak_against_a_trial() {
        assert_eq!(objections(&good()), []);
        let closed = Facts { target_rate_per_s: None, start_lateness_p99_ns: None, ..good() };
        assert_eq!(objections(&closed), []);
        let said = objection(|facts| facts.achieved_rate_per_s = 19_799.0);
        assert_eq!(said, "reached 19799 of 20000 a second, less than 99 %");
        let said = objection(|facts| facts.generator_cpu_share = 0.93);
        assert_eq!(said, "the generator computed 93 % of the time, more than 90 %");
        let said = objection(|facts| facts.start_lateness_p99_ns = Some(2_500_000));
        assert_eq!(said, "one start in a hundred was 2.5ms late or more, the limit is 1 ms");
        let said = objection(|facts| facts.listen_overflows = 3);
        assert_eq!(said, "connections found the listen queue full: 3");
        let said = objection(|facts| facts.workers_restarted = 1);
        assert_eq!(said, "workers ended and were replaced: 1");
        let said = objection(|facts| facts.achieved_rate_per_s = 0.0);
        assert_eq!(said, "nothing was answered");
        let said = objection(|facts| facts.generator_cpu_share = f64::NAN);
        assert!(said.starts_with("the generator"));
        assert_eq!(objections(&Facts::default()), [Reason::NothingMeasured]);
    }

    proptest! {
        #[test]
        fn every_target_runs_once_a_round_and_none_drifts(
            targets in 1usize..=TARGETS_MAX,
            rounds in 3usize..40,
        ) {
            let repeats = 2 * rounds;
            let trials = plan(targets, repeats).trials();
            prop_assert_eq!(trials.len(), targets * repeats);
            let mut places = vec![0; targets];
            for (place, trial) in trials.iter().enumerate() {
                prop_assert_eq!(trial.repeat, place / targets);
                places[trial.target] += place;
            }
            // Over an even number of rounds all targets ran equally early on average.
            prop_assert!(places.iter().all(|sum| *sum == places[0]));
        }
    }
}
