//! The changes of a reload to a running supervisor: requested from the program before any worker is
//! replaced.

use std::ffi::OsString;
use std::time::Duration;

use super::RestartPolicy;
use super::driver::Driver;
use super::event::SupervisorEvent;
use super::restart::ns;
use super::state::{Refusal, Rules, Stage, Ticket};
use crate::Result;
use crate::sys::clock::monotonic_ns;

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
    fn change(&mut self, changes: &ReloadChanges) {
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

impl Driver {
    /// Asks the program for the changes, and then replaces every worker. On an error of the program
    /// nothing changes and no worker is replaced.
    pub(super) fn reload(&mut self, ticket: Option<Ticket>) {
        let is_ending = matches!(self.state.stage, Stage::Draining { .. } | Stage::Killing);
        let asked = self.before_reload.as_mut().filter(|_| !is_ending).map(|ask| ask());
        match asked {
            Some(Err(error)) => {
                let reason = format!("{error}; {}", error.hint());
                self.emit(&SupervisorEvent::ReloadStopped { reason: reason.clone() });
                if let Some(ticket) = ticket {
                    self.complete(ticket, Some(Refusal::Stopped(reason)));
                }
            }
            Some(Ok(changes)) => {
                self.change(changes);
                self.state.reload(ticket, monotonic_ns());
            }
            None => self.state.reload(ticket, monotonic_ns()),
        }
    }

    fn change(&mut self, changes: ReloadChanges) {
        self.state.rules.change(&changes);
        self.grace = changes.grace.unwrap_or(self.grace);
        self.start_limit = changes.start_limit.unwrap_or(self.start_limit);
        if let Some(variables) = changes.variables {
            self.environment = variables;
        }
        if let Some(workers) = changes.workers.filter(|count| super::ensure_count(*count).is_ok()) {
            // The reload's caller waits for the reload.
            drop(self.on_request(super::handle::Request::Scale(workers)));
        }
    }
}
