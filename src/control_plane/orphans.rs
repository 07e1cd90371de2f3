//! Workers that outlive this process: a guard process ends them.
//!
//! Owns that a living guard watches every worker. Otherwise a worker that is stopped, or computes
//! without end, would never notice that its primary was killed.

use std::time::Duration;

use super::ControlPlane;
use crate::error::{Error, Result};
use crate::sys::guard::Guard;
use crate::sys::process::Remote;

impl ControlPlane {
    /// Ends a new worker this long after the end of this process, if it still runs.
    pub(crate) fn guard(&mut self, worker: &Remote, grace: Duration) {
        if let Err(error) = self.try_to_guard(worker, grace) {
            // The worker serves anyway.
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
        // There is none, or it was killed; the next one watches all workers.
        let guard = Guard::start(grace)?;
        for worker_entry in self.workers.values() {
            guard.watch(&worker_entry.process.remote())?;
        }
        guard.watch(worker)?;
        self.guard = Some(guard);
        Ok(())
    }
}
