//! A reload: asks the program for the changes, applies them, and has every worker replaced.

use super::Driver;
use crate::supervisor::ensure_count;
use crate::supervisor::event::SupervisorEvent;
use crate::supervisor::handle::SupervisorRequest;
use crate::supervisor::reload_changes::ReloadChanges;
use crate::supervisor::state::{GoalRefusal, RunStage, Ticket};
use crate::sys::clock::monotonic_ns;

impl Driver {
    /// Asks the program for the changes, and then replaces every worker. On an error of the program
    /// nothing changes and no worker is replaced.
    pub(super) fn reload(&mut self, ticket: Option<Ticket>) {
        let is_ending = matches!(self.state.stage, RunStage::Draining { .. } | RunStage::Killing);
        let asked = self.before_reload.as_mut().filter(|_| !is_ending).map(|ask| ask());
        match asked {
            Some(Err(error)) => {
                let reason = format!("{error}; {}", error.hint());
                self.emit(&SupervisorEvent::ReloadStopped { reason: reason.clone() });
                if let Some(ticket) = ticket {
                    self.complete(ticket, Some(GoalRefusal::Stopped(reason)));
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
        if let Some(workers) = changes.workers.filter(|count| ensure_count(*count).is_ok()) {
            // The reload's caller waits for the reload.
            drop(self.on_request(SupervisorRequest::Scale(workers)));
        }
    }
}
