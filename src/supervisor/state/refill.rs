//! Slots whose workers have ended: refilled at once, later, or not at all.

use std::time::Duration;

use super::{Action, Child, Failure, Occupancy, Role, RunStage, Slot, State};
use crate::WorkerId;
use crate::supervisor::event::SupervisorEvent;
use crate::supervisor::restart::{Decision, Life, budget_in_words};

/// The start of a worker for a slot, which is `Spawning` until then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    pub(super) slot: u16,
    pub(super) predecessor: Option<WorkerId>,
}

impl State {
    /// Decides about the successor of a worker that has ended or leaves.
    pub(super) fn replace(&mut self, slot: u16, worker: WorkerId, life: Life, now_ns: u64) {
        let Some(place) = self.slots.get_mut(usize::from(slot)) else { return };
        match place.budget.after_life(&self.rules.restart, life, now_ns) {
            Decision::After { delay_ns } => {
                place.occupancy = Occupancy::Waiting { at_ns: now_ns.saturating_add(delay_ns) };
                let delay = Duration::from_nanos(delay_ns);
                self.emit(SupervisorEvent::Respawn { slot, worker, delay });
                self.fill_slots(now_ns);
            }
            Decision::Leave => {
                place.occupancy = Occupancy::Empty;
                self.lost_worker |= !life.in_order;
                self.shrink(now_ns);
            }
            Decision::GiveUp => {
                let reason = budget_in_words(&self.rules.restart);
                self.give_up(slot, Some(worker), reason, now_ns);
            }
        }
    }

    pub(super) fn give_up(
        &mut self,
        slot: u16,
        worker: Option<WorkerId>,
        reason: String,
        now_ns: u64,
    ) {
        if let Some(place) = self.slot_mut(slot) {
            place.occupancy = Occupancy::GivenUp;
        }
        self.lost_worker = true;
        self.emit(SupervisorEvent::GaveUp { slot, worker, reason });
        self.shrink(now_ns);
    }

    /// A slot stays empty. With none left the run ends.
    pub(super) fn shrink(&mut self, now_ns: u64) {
        self.shrunk = true;
        self.shed();
        let is_empty =
            |slot: &Slot| matches!(slot.occupancy, Occupancy::Empty | Occupancy::GivenUp);
        if self.slots.iter().all(is_empty) {
            if self.lost_worker {
                self.failure.get_or_insert(Failure::NoWorkersLeft);
            }
            self.stop("no worker is left".into(), self.rules.grace, now_ns);
        }
    }

    /// Closes sockets of workers whose slots stay empty. While no worker accepts they are kept, so
    /// this is repeated when one begins to.
    pub(super) fn shed(&mut self) {
        if !self.shrunk {
            return;
        }
        let waits = |slot: &&Slot| {
            matches!(slot.occupancy, Occupancy::Waiting { .. } | Occupancy::Spawning)
        };
        let waiting = self.slots.iter().filter(waits).count();
        // A worker that is starting and does not serve yet has not been given its socket.
        let comes = |(worker, child): &(&WorkerId, &Child)| {
            child.role != Role::Leaving && !self.is_ready(**worker)
        };
        let coming = waiting + self.children.iter().filter(comes).count();
        self.act(Action::Shed { coming });
    }

    /// Starts workers for slots that are due.
    pub(super) fn fill_slots(&mut self, now_ns: u64) {
        if matches!(self.stage, RunStage::Draining { .. } | RunStage::Killing) {
            return;
        }
        for slot in 0..self.slots.len() {
            let place = &mut self.slots[slot];
            if matches!(place.occupancy, Occupancy::Waiting { at_ns } if at_ns <= now_ns) {
                place.occupancy = Occupancy::Spawning;
                let predecessor = place.leaver.take();
                let slot = u16::try_from(slot).expect("slots are bounded");
                self.start(slot, predecessor);
            }
        }
    }

    /// Starts a worker for a slot that waits for it.
    pub(super) fn start(&mut self, slot: u16, predecessor: Option<WorkerId>) {
        self.starts.push_back(Start { slot, predecessor });
        self.changed = true;
    }

    /// The next start of a worker for a slot. There may be a thousand, each of which takes
    /// milliseconds, so the loop handles other things in between.
    pub(in crate::supervisor) fn next_start(&mut self) -> Option<Action> {
        let Start { slot, predecessor } = self.starts.pop_front()?;
        Some(Action::Spawn { slot, role: Role::Current, predecessor })
    }

    /// Whether workers wait to be started.
    pub(in crate::supervisor) fn has_starts(&self) -> bool {
        !self.starts.is_empty()
    }
}
