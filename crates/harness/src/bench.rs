//! Runs targets under scenarios, interleaved, and sums them up.
//!
//! Owns the order of the trials and the report's data. A trial that fails or does not count is
//! kept and shown; a signal ends the comparison and leaves what there is.

use std::time::Instant;

use nix::sys::signal::Signal;
use serde::Serialize;

use super::environment::Environment;
use super::imbalance::unix_ms;
use super::interrupt::{Halt, Interrupt};
use super::plan::Plan;
use super::scenario::{Knobs, Scenario};
use super::summary::Comparisons;
use super::target::Target;
use super::trial::{Outcome, Trial};
use crate::error::{Error, Result};

/// The name and version of the report's machine-readable form.
pub const SCHEMA: &str = "clusterlb-bench/1";

/// What shall be compared.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The loads.
    pub scenarios: Vec<Scenario>,
    /// The servers; the others are compared with the first.
    pub targets: Vec<Target>,
    /// Rounds.
    pub repeats: usize,
    /// The sizes.
    pub knobs: Knobs,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// When it began, in milliseconds of Unix time.
    pub started_unix_ms: u64,
    /// How long it took.
    pub took_s: f64,
    /// A signal ended it early: trials are missing.
    pub interrupted: bool,
    /// Rounds.
    pub repeats: usize,
    /// The sizes.
    pub settings: Knobs,
    /// The surroundings.
    pub environment: Environment,
    /// The servers.
    pub targets: Vec<Target>,
    /// The summaries, scenario by scenario.
    pub scenarios: Vec<Comparisons>,
    /// Every trial, in the order in which they ran.
    pub trials: Vec<Outcome>,
    /// Trials that do not count, or of which some measures do not.
    pub invalid_trials: usize,
    /// Targets that were asked for and are not there.
    pub missing: Vec<String>,
}

impl Report {
    /// Some scenario does not show what it is about, since too few trials count for that.
    #[must_use]
    pub fn is_lacking(&self) -> bool {
        self.scenarios.iter().any(|scenario| !scenario.too_few.is_empty())
    }
}

impl Comparison {
    /// The targets that can be in a scenario, and why others cannot.
    fn admitted(&self, scenario: Scenario) -> (Vec<Target>, Vec<String>) {
        let mut left_out = Vec::new();
        let targets = self.targets.iter().filter(|target| {
            let why = scenario.objection(**target);
            left_out.extend(why.map(|why| format!("{target} is left out: {why}.")));
            why.is_none()
        });
        (targets.copied().collect(), left_out)
    }

    /// How the trials of a scenario are run; nothing if no target can be in it.
    ///
    /// # Errors
    /// Too few repeats, too many targets, no time.
    fn plan(&self, scenario: Scenario) -> Result<Option<Plan>> {
        let (targets, _) = self.admitted(scenario);
        let Knobs { warm_up, duration, .. } = self.knobs;
        // Judged even if it is not run: a mistake shall be told before the first trial.
        let plan = Plan::new(targets.len().max(1), self.repeats, warm_up, duration)?;
        Ok((!targets.is_empty()).then_some(plan))
    }

    /// Checks what was asked for.
    ///
    /// # Errors
    /// [`Error::Usage`] for what shows nothing.
    pub fn check(&self) -> Result<()> {
        if self.scenarios.is_empty() {
            return Err(Error::usage("no scenario", "name one with --scenario"));
        }
        let mut runnable = false;
        for scenario in &self.scenarios {
            runnable |= self.plan(*scenario)?.is_some();
        }
        if runnable {
            return Ok(());
        }
        Err(Error::usage(
            "none of the targets can be in any of the scenarios",
            "`--scenario short` takes all of them",
        ))
    }

    /// Runs it. `progress` is told what begins now, with how much of the whole is done.
    ///
    /// # Errors
    /// What was asked for shows nothing; no trial could be run at all.
    pub fn run(
        &self,
        environment: Environment,
        interrupt: &mut Interrupt,
        progress: &mut dyn FnMut(usize, usize, &str),
    ) -> Result<(Report, Option<Signal>)> {
        self.check()?;
        let (started_unix_ms, begun) = (unix_ms(), Instant::now());
        let mut trials = Vec::new();
        let signal = self.fill(&environment, &mut trials, interrupt, progress)?;
        let scenarios = self.scenarios.iter().map(|scenario| {
            let (targets, left_out) = self.admitted(*scenario);
            Comparisons::of(*scenario, &targets, left_out, &trials, &self.knobs)
        });
        let report = Report {
            schema: SCHEMA,
            started_unix_ms,
            took_s: 0.0,
            interrupted: signal.is_some(),
            repeats: self.repeats,
            settings: self.knobs,
            environment,
            targets: self.targets.clone(),
            scenarios: scenarios.collect(),
            invalid_trials: trials.iter().filter(|outcome| !outcome.is_sound()).count(),
            trials,
            missing: Vec::new(),
        };
        Ok((Report { took_s: begun.elapsed().as_secs_f64(), ..report }, signal))
    }

    fn fill(
        &self,
        environment: &Environment,
        trials: &mut Vec<Outcome>,
        interrupt: &mut Interrupt,
        progress: &mut dyn FnMut(usize, usize, &str),
    ) -> Result<Option<Signal>> {
        let admitted = self.scenarios.iter().map(|scenario| self.admitted(*scenario).0.len());
        let all = admitted.sum::<usize>() * self.repeats;
        for scenario in &self.scenarios {
            let Some(plan) = self.plan(*scenario)? else { continue };
            let (targets, _) = self.admitted(*scenario);
            for step in plan.trials() {
                let (target, repeat) = (targets[step.target], step.repeat);
                let round = repeat + 1;
                progress(trials.len(), all, &format!("{scenario}, {target}, round {round}"));
                let placement = &environment.placement;
                let trial =
                    Trial { target, scenario: *scenario, repeat, knobs: &self.knobs, placement };
                match Outcome::of(&trial, interrupt) {
                    Ok(outcome) => trials.push(outcome),
                    Err(Halt::Interrupted(signal)) => return Ok(Some(signal)),
                    Err(Halt::Failed(error)) => return Err(error),
                }
            }
        }
        let failed = trials.iter().find_map(|outcome| outcome.failure.clone());
        match failed {
            Some(why) if trials.iter().all(|outcome| outcome.record.is_none()) => {
                Err(Error::Workers {
                    what: format!("no trial could be run: {why}"),
                    hint: "`clusterlb check` shows what this machine allows".into(),
                })
            }
            _ => Ok(None),
        }
    }
}
