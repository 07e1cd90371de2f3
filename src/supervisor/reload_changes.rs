//! The changes of a reload to a running supervisor: requested from the program before any worker is
//! replaced.

use std::ffi::OsString;
use std::time::Duration;

use super::RestartPolicy;
use super::restart::ns;
use super::state::Rules;
use crate::Result;

/// Asks the program for the changes, or for an error.
pub(super) type BeforeReload = Box<dyn FnMut() -> Result<ReloadChanges> + Send>;

/// The changes of a reload; `None` leaves a setting as it is. Settings of the workers alone are
/// changed by [`Cluster::setup_primary`](crate::Cluster::setup_primary).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ReloadChanges {
    /// The number of workers.
    pub workers: Option<u16>,
    /// All variables in the environment of each worker, instead of the previous ones.
    pub variables: Option<Vec<(OsString, OsString)>>,
    /// Which ended workers are replaced, and how soon.
    pub restart: Option<RestartPolicy>,
    /// How long workers may take until they serve, as successors.
    pub start_limit: Option<Duration>,
    /// How long a successor serves before its predecessor leaves.
    pub settle: Option<Duration>,
    /// How long leaving workers may take.
    pub grace: Option<Duration>,
    /// How long serving continues after a signal to end.
    pub drain_delay: Option<Duration>,
    /// How long a worker may hang before it is killed; the inner `None` is forever.
    pub hang_kill: Option<Option<Duration>>,
}

impl Rules {
    pub(super) fn change(&mut self, changes: &ReloadChanges) {
        let ReloadChanges { restart, start_limit, settle, grace, drain_delay, hang_kill, .. } =
            changes;
        if let Some(restart) = restart {
            self.restart.clone_from(restart);
        }
        self.start_limit_ns = start_limit.map_or(self.start_limit_ns, ns);
        self.settle_ns = settle.map_or(self.settle_ns, ns);
        self.grace = grace.unwrap_or(self.grace);
        self.drain_delay = drain_delay.unwrap_or(self.drain_delay);
        self.hang_kill_ns = hang_kill.map_or(self.hang_kill_ns, |time| time.map(ns));
    }
}
