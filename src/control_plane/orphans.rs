//! Workers that outlive this process: a guard process beside it ends them.
//!
//! Owns that every worker is watched by a guard that lives. Without one a worker that is stopped,
//! or computes without end, would never notice that its primary has been killed.

use std::time::Duration;

use super::ControlPlane;
use crate::error::{Error, Result};
use crate::sys::guard::Guard;
use crate::sys::process::Remote;

impl ControlPlane {
    /// Has a new worker ended this long after the end of this process, if it lives until then.
    pub(crate) fn guard(&mut self, worker: &Remote, grace: Duration) {
        if let Err(error) = self.try_to_guard(worker, grace) {
            // The worker serves all the same.
            self.fail(match error {
                Error::System { step, source } => {
                    let hint = "workers that do not notice the end of the primary outlive it";
                    Error::Environment { step, source, hint: hint.into() }
                }
                error => error,
            });
        }
    }

    fn try_to_guard(&mut self, worker: &Remote, grace: Duration) -> Result<()> {
        if let Some(guard) = &self.guard
            && guard.watch(worker).is_ok()
        {
            return Ok(());
        }
        // None has been started, or it was killed; the next one watches all workers.
        let guard = Guard::start(grace)?;
        for worker_entry in self.workers.values() {
            guard.watch(&worker_entry.process.remote())?;
        }
        guard.watch(worker)?;
        self.guard = Some(guard);
        Ok(())
    }
}
