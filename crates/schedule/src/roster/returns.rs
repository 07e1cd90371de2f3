//! Connections that come back unclaimed. Pure.

use super::Roster;
use crate::WorkerLoad;
use crate::id::Slot;

impl Roster {
    /// Connections were taken back out of the worker's channel.
    pub fn taken_back(&mut self, slot: Slot, count: u32) {
        self.give_back(slot, count);
        if let Some(Some(worker)) = self.workers.get_mut(slot.index()) {
            worker.credits.withdraw(count);
        }
    }

    /// The worker sent back connections that it had received and not claimed.
    pub fn sent_back(&mut self, slot: Slot, count: u32) {
        self.give_back(slot, count);
        if let Some(Some(worker)) = self.workers.get_mut(slot.index()) {
            worker.credits.send_back(count);
        }
    }

    pub(super) fn give_back(&mut self, slot: Slot, count: u32) {
        if let Some(Some(worker)) = self.workers.get_mut(slot.index()) {
            worker.returned += u64::from(count);
            let give_back = |load: &mut WorkerLoad| {
                load.in_flight = load.in_flight.saturating_sub(count);
            };
            self.loads.change(slot.index(), give_back);
        }
    }
}
