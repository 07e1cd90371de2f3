//! Changes of the number of slots and of single workers, on request.

use std::time::Duration;

use super::goals::Goal;
use super::{GoalRefusal, Occupancy, Role, RunStage, Slot, State, Ticket};
use crate::WorkerId;
use crate::supervisor::event::SupervisorEvent;

impl State {
    /// Adds slots, whose workers are started in turn.
    pub(super) fn add_slots(&mut self, count: u16) {
        for _ in 0..count {
            let slot = u16::try_from(self.slots.len()).expect("slots are bounded");
            self.slots.push(Slot { occupancy: Occupancy::Spawning, ..Slot::default() });
            self.start(slot, None);
        }
    }

    /// Changes the number of slots. New ones are filled; workers in the removed ones, which have
    /// the highest numbers, leave in order.
    pub(in crate::supervisor) fn scale(&mut self, count: u16, ticket: Ticket, now_ns: u64) {
        if matches!(self.stage, RunStage::Draining { .. } | RunStage::Killing) {
            return self.finish(ticket, Some(GoalRefusal::Ending));
        }
        let from = u16::try_from(self.slots.len()).expect("slots are bounded");
        if count != from {
            self.emit(SupervisorEvent::Scaled { from, to: count });
        }
        if count > from {
            self.add_slots(count - from);
        }
        self.starts.retain(|start| start.slot < count);
        for place in self.slots.split_off(usize::from(count)).into_iter().rev() {
            if let Occupancy::Current(worker) = place.occupancy {
                self.leave(worker, now_ns);
            }
        }
        if count < from {
            self.forget_slots_from(count, now_ns);
            // Sockets of removed workers are unused.
            self.shrunk = true;
            self.shed();
            self.look_at_start(now_ns);
        }
        self.await_goal(ticket, Goal::Slots(count));
    }

    /// Lets one worker leave. Another one takes its slot at once.
    pub(in crate::supervisor) fn drain_worker(
        &mut self,
        worker: WorkerId,
        ticket: Ticket,
        now_ns: u64,
    ) {
        let Some(child) = self.children.get(&worker) else {
            return self.finish(ticket, Some(GoalRefusal::NoSuchWorker(worker)));
        };
        if self.stage != RunStage::Serving {
            return self.finish(ticket, Some(GoalRefusal::NotServing));
        }
        match (child.role, child.slot) {
            (Role::Successor, _) => {
                return self.finish(ticket, Some(GoalRefusal::NoSuchWorker(worker)));
            }
            (Role::Leaving, _) => {}
            (Role::Current, slot) => {
                self.remember_names(worker);
                self.leave(worker, now_ns);
                if !self.is_rolled(worker, now_ns) {
                    // The worker did not fail: its slot's budget is unaffected.
                    let at_ns = now_ns;
                    if let Some(place) = self.slot_mut(slot) {
                        place.occupancy = Occupancy::Waiting { at_ns };
                        place.leaver = Some(worker);
                    }
                    let delay = Duration::ZERO;
                    self.emit(SupervisorEvent::Respawn { slot, worker, delay });
                    self.fill_slots(now_ns);
                }
                self.successor_ended(worker, now_ns);
            }
        }
        self.await_goal(ticket, Goal::End(worker));
    }

    /// Kills one worker on request.
    pub(in crate::supervisor) fn kill_worker(&mut self, worker: WorkerId, ticket: Ticket) {
        if !self.children.contains_key(&worker) {
            return self.finish(ticket, Some(GoalRefusal::NoSuchWorker(worker)));
        }
        self.kill(worker, "it was asked for".into());
        self.await_goal(ticket, Goal::End(worker));
    }
}
