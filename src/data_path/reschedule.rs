//! Another policy, or other limits, while connections are accepted.

use super::DataPath;
use crate::schedule::{Policy, SchedulerConfig};

impl DataPath {
    /// Shares connections out by other rules from now on. What waits for room is looked at again
    /// in this turn.
    pub(super) fn reschedule(&mut self, policy: Policy, config: SchedulerConfig) {
        self.hang_after_ns = config.hang_after_ns;
        self.unserved_limit_ns = config.unserved_limit_ns;
        self.coalescing.set_window(config.coalesce_ns);
        self.steerer.reschedule(policy, config.limits);
        self.roster.reconfigure(policy, config);
        // What waits may be wanted by its client's worker now.
        self.observe();
    }
}
