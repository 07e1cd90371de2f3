//! A reload: reads the environment and the file of `--config` again, and applies changes that are
//! possible during a run before the workers are replaced.
//!
//! `changes` has which options can change. A file that cannot be parsed changes nothing.

use std::ffi::OsString;
use std::fmt;

use clusterlb::topology::{self, CpuPlan};
use clusterlb::{COMPANION_VARIABLE, Cluster, ReloadChanges, Result};
use clusterlb_sys::cpu::CpuFacts;

use super::assembly::{restart_of, set_workers};
use super::changes::{self, When};
use super::cli::Cli;
use super::line::CommandLine;
use super::needs;
use super::settings::Settings;

/// The line that a run was started with, and the way to report changes.
pub(super) struct Reloading {
    line: CommandLine,
    cluster: Cluster,
    /// Variables that the primary sets.
    own_variables: Vec<(OsString, OsString)>,
    tell: Box<dyn FnMut(String) + Send>,
}

impl fmt::Debug for Reloading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloading").field("line", &self.line).finish_non_exhaustive()
    }
}

impl Reloading {
    /// For a run with this command line and these settings.
    pub(super) fn new(
        settings: &Settings,
        cluster: Cluster,
        tell: impl FnMut(String) + Send + 'static,
    ) -> Self {
        let mut own_variables = settings.own_variables.clone();
        if settings.has_companion() {
            own_variables.push((COMPANION_VARIABLE.into(), "1".into()));
        }
        Self { line: settings.line.clone(), cluster, own_variables, tell: Box::new(tell) }
    }

    /// Reads again, and applies what can change. Reports the rest.
    ///
    /// # Errors
    /// The file or an option in it is not valid; nothing has changed.
    pub(super) fn prepare(&mut self) -> Result<ReloadChanges> {
        let mut changes = ReloadChanges::default();
        let (line, refused) = Cli::read_again(&self.line, changes::with_a_reload)?;
        let changed = line.changed_from(&self.line);
        let settings = match changed.is_empty() {
            true => None,
            false => Some(Cli::settings_of(line.clone())?),
        };
        if let Some(settings) = settings {
            let has = |what: When| changed.iter().any(|key| changes::when(key) == what);
            let counts = changed.iter().any(|key| key == "workers");
            let workers = counts.then(|| count(&settings)).transpose()?;
            if has(When::Rules) {
                self.cluster.reschedule(|policy, rules| {
                    *policy = settings.policy;
                    *rules = settings.scheduling.clone();
                })?;
            }
            self.cluster.setup_primary(|cluster| set_workers(&settings, cluster))?;
            let mut variables = settings.worker_environment.environment.clone();
            variables.extend(self.own_variables.iter().cloned());
            changes.variables = Some(variables);
            changes.workers = workers;
            if has(When::Supervision) {
                changes.restart = Some(restart_of(settings.restart).into());
                changes.start_limit = Some(settings.start_limit);
                changes.settle = Some(settings.settle);
                changes.grace = Some(settings.grace);
                changes.drain_delay = Some(settings.drain_delay);
                changes.hang_kill = Some(settings.hang_kill);
            }
            (self.tell)(format!("changed by the reload: {}", changed.join(", ")));
            self.line = line;
        }
        if !refused.is_empty() {
            (self.tell)(format!("not before the next start: {}", refused.join(", ")));
        }
        Ok(changes)
    }
}

/// The number of workers in the settings.
fn count(settings: &Settings) -> Result<u16> {
    let pin = needs::pin(&settings.pin)?;
    let CpuPlan { workers, .. } = topology::plan(&CpuFacts::gather()?, settings.workers, &pin)?;
    Ok(u16::try_from(workers.len()).unwrap_or(u16::MAX))
}
