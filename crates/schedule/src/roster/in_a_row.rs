//! Several connections for one worker in a row. Pure.

use super::Roster;
use crate::id::{ListenerId, Slot};
use crate::{OverloadFactor, Policy};

impl Roster {
    /// Gives one more connection of a listener to the worker that has just got one, if it can take
    /// it and the policy rotates, though not strictly (an overload factor of off). The choice is
    /// counted at once.
    pub fn pick_again(&mut self, slot: Slot, listener: ListenerId) -> bool {
        let limits = &self.config.limits;
        let limit = limits.inflight_max.unwrap_or(u32::MAX);
        let is_strict = limits.overload_factor == OverloadFactor::Off;
        let is_rr = self.policy == Policy::Rr && self.config.scheduler.is_none();
        let takes_turns = is_rr && !is_strict;
        let load = self.loads.get(slot.index());
        let can_take = load.is_some_and(|load| load.can_take() && load.in_flight < limit);
        takes_turns && can_take && self.serves(slot, listener) && self.assign(slot).is_some()
    }
}
