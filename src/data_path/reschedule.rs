//! Another policy, or other limits, during a run.

use super::DataPath;
use crate::schedule::{Policy, SchedulerConfig};

impl DataPath {
    /// Changes the scheduling rules. Waiting connections are considered again in this turn.
    pub(super) fn reschedule(&mut self, policy: Policy, config: SchedulerConfig) {
        self.hang_after_ns = config.hang_after_ns;
        self.unserved_limit_ns = config.unserved_limit_ns;
        self.coalescing.set_window(config.coalesce_ns);
        self.steerer.reschedule(policy, config.limits);
        self.roster.reconfigure(policy, config);
        // A waiting connection may fit its client's worker now.
        self.observe();
    }
}
