//! The order of trials.
//!
//! Targets take turns, forwards and backwards (A B B A A B …), so that drift of the machine affects
//! all alike.

use std::time::Duration;

use serde::Serialize;

use super::interval::SAMPLES_MIN;
use crate::error::{Error, Result};

/// Maximum number of targets in a comparison.
pub const TARGETS_MAX: usize = 64;
/// Maximum number of repeats per target.
pub const REPEATS_MAX: usize = 1_000;

/// One run of one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedTrial {
    /// Index of the target, from 0, in the order given.
    pub target: usize,
    /// Index of the repeat, from 0. Trials of the same repeat are compared in pairs.
    pub repeat: usize,
}

/// The trials of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    targets: usize,
    repeats: usize,
    /// Time at the start of each trial whose results are discarded.
    pub warm_up: Duration,
    /// Measured time of each trial.
    pub measured: Duration,
}

impl Plan {
    /// A plan with enough repeats for an interval.
    ///
    /// # Errors
    /// [`Error::Usage`] for no or too many targets, too few or too many repeats, or a duration of
    /// zero.
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

    /// The trials in execution order: each round has each target once, and every other round runs
    /// backwards.
    #[must_use]
    pub fn trials(&self) -> Vec<PlannedTrial> {
        let mut trials = Vec::with_capacity(self.targets * self.repeats);
        for repeat in 0..self.repeats {
            for place in 0..self.targets {
                let backwards = repeat % 2 == 1;
                let target = if backwards { self.targets - 1 - place } else { place };
                trials.push(PlannedTrial { target, repeat });
            }
        }
        trials
    }

    /// Total duration of the trials, without starting and stopping targets.
    #[must_use]
    pub fn duration(&self) -> Duration {
        let trials = u32::try_from(self.targets * self.repeats).unwrap_or(u32::MAX);
        self.warm_up.saturating_add(self.measured).saturating_mul(trials)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::ErrorKind;

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
            assert_eq!(error.kind(), ErrorKind::Usage);
            error.to_string()
        };
        assert_eq!(refused(2, 5, SECOND), "5 repeats");
        assert_eq!(refused(0, 6, SECOND), "0 targets");
        assert_eq!(refused(65, 6, SECOND), "65 targets");
        assert_eq!(refused(2, 6, Duration::ZERO), "a measurement of no duration");
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
            // Over an even number of rounds, all targets have the same mean position.
            prop_assert!(places.iter().all(|sum| *sum == places[0]));
        }
    }
}
