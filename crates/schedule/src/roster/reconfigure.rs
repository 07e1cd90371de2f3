//! Another policy, or other limits, during a run.

use super::Roster;
use crate::id::Slot;
use crate::scheduler::Chooser;
use crate::{ClaimTimes, Policy, SchedulerConfig};

impl Roster {
    /// Changes the rules. The knowledge of the workers stays, and so do the bounds on credits and a
    /// custom scheduler.
    pub fn reconfigure(&mut self, policy: Policy, config: SchedulerConfig) {
        self.policy = policy;
        self.config = SchedulerConfig {
            credits_max: self.config.credits_max,
            scheduler: self.config.scheduler.take(),
            ..config
        };
        for chooser in self.listeners.iter_mut().flatten() {
            if let Chooser::BuiltIn(picker) = chooser {
                picker.reconfigure(policy, self.config.limits);
            }
        }
        for worker in self.workers.iter_mut().flatten() {
            worker.credits.reconfigure(self.config.credits);
            // Under the new rules nothing may move, and then nothing ends this in time.
            worker.emptied = None;
        }
        // Kept under one policy only; old values may be outdated when it returns.
        for place in 0..self.loads.len() {
            self.loads.change(place, |load| load.usual_us = 0);
        }
    }

    /// A worker's times from handoff to claim, if it has claimed one since the last call.
    pub fn take_claim_times(&mut self, slot: Slot) -> Option<&ClaimTimes> {
        self.workers.get_mut(slot.index())?.as_mut()?.credits.take_claim_times()
    }
}
