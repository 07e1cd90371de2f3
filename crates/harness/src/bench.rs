//! Runs targets under scenarios in interleaved order and summarises the trials.
//!
//! Owns the order of the trials and the data of the report. A trial that fails or is invalid stays
//! in the report. A signal ends the comparison early and keeps the finished trials.

use std::time::Instant;

use crate::sys::signal::Signal;
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

/// What to compare.
#[derive(Clone, Debug)]
pub struct ComparisonSettings {
    /// The loads to run.
    pub scenarios: Vec<Scenario>,
    /// The servers; the first is the baseline of all ratios.
    pub targets: Vec<Target>,
    /// Number of rounds.
    pub repeats: usize,
    /// Sizes and durations.
    pub knobs: Knobs,
}

/// The result of a comparison.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// Start time, in milliseconds of Unix time.
    pub started_unix_ms: u64,
    /// Duration in seconds.
    pub took_s: f64,
    /// A signal ended the run early; trials are missing.
    pub interrupted: bool,
    /// Number of rounds.
    pub repeats: usize,
    /// Sizes and durations.
    pub settings: Knobs,
    /// The machine and the build.
    pub environment: Environment,
    /// The servers compared.
    pub targets: Vec<Target>,
    /// One summary per scenario.
    pub scenarios: Vec<Comparisons>,
    /// Every trial, in execution order.
    pub trials: Vec<Outcome>,
    /// Number of trials of which at least one kind of measure is invalid.
    pub invalid_trials: usize,
    /// Requested targets that are not installed.
    pub missing: Vec<String>,
}

impl BenchReport {
    /// Whether a scenario has too few valid trials for the measures it exists to show.
    #[must_use]
    pub fn is_lacking(&self) -> bool {
        self.scenarios.iter().any(|scenario| !scenario.too_few.is_empty())
    }
}

impl ComparisonSettings {
    /// The targets that can run a scenario, and the reasons why the others cannot.
    fn admitted(&self, scenario: Scenario) -> (Vec<Target>, Vec<String>) {
        let mut left_out = Vec::new();
        let targets = self.targets.iter().filter(|target| {
            let why = scenario.objection(**target);
            left_out.extend(why.map(|why| format!("{target} is left out: {why}.")));
            why.is_none()
        });
        (targets.copied().collect(), left_out)
    }

    /// The plan of a scenario's trials; `None` if no target can run it.
    ///
    /// # Errors
    /// Too few repeats, too many targets, or a duration of zero.
    fn plan(&self, scenario: Scenario) -> Result<Option<Plan>> {
        let (targets, _) = self.admitted(scenario);
        let Knobs { warm_up, duration, .. } = self.knobs;
        // Checked even if the scenario has no target, so that a mistake is reported before the
        // first trial.
        let plan = Plan::new(targets.len().max(1), self.repeats, warm_up, duration)?;
        Ok((!targets.is_empty()).then_some(plan))
    }

    /// Validates the selection.
    ///
    /// # Errors
    /// [`Error::Usage`] for a selection that cannot produce a result.
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

    /// Runs the comparison. `progress` is called at each step with its name and the fraction done.
    ///
    /// # Errors
    /// An invalid selection, or no trial that could run.
    pub fn run(
        &self,
        environment: Environment,
        interrupt: &mut Interrupt,
        progress: &mut dyn FnMut(usize, usize, &str),
    ) -> Result<(BenchReport, Option<Signal>)> {
        self.check()?;
        let (started_unix_ms, begun) = (unix_ms(), Instant::now());
        let mut trials = Vec::new();
        let signal = self.fill(&environment, &mut trials, interrupt, progress)?;
        let scenarios = self.scenarios.iter().map(|scenario| {
            let (targets, left_out) = self.admitted(*scenario);
            Comparisons::of(*scenario, &targets, left_out, &trials, &self.knobs)
        });
        let report = BenchReport {
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
        Ok((BenchReport { took_s: begun.elapsed().as_secs_f64(), ..report }, signal))
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
