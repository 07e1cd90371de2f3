//! Channels that end and processes that do.
//!
//! Owns the order of the last two events: the channel's end is told first, and before the second
//! one the worker is taken off the list.

use super::{Plane, Report};
use crate::cluster::event::WorkerCounts;
use crate::cluster::{Event, WorkerHandle};
use crate::data_path::Command;
use crate::dialect::node::bridge::Order;
use crate::id::{ListenerId, Slot, WorkerId};
use crate::protocol::scoreboard::{Statistic, Tally};
use crate::sys::process::Ending;

impl Plane {
    /// A worker's channel has ended, or is of no use any more.
    pub(crate) fn part_with(&mut self, id: WorkerId) {
        let Some(member) = self.members.get_mut(&id).filter(|member| member.connected) else {
            return;
        };
        member.connected = false;
        if let Some(incoming) = &member.incoming {
            let _ = self.epoll.delete(incoming);
        }
        if let Some(mut outgoing) = member.shared.outgoing() {
            outgoing.close();
        }
        let mut state = member.shared.state();
        state.connected = false;
        state.voluntary = Some(state.voluntary == Some(true));
        drop(state);
        member.leaving = true;
        let (worker, uses) = (member.handle(), member.uses.clone());
        self.tell(Event::Disconnect { worker });
        uses.into_iter().for_each(|listener: ListenerId| self.release(id, listener));
        self.retire(id);
    }

    /// A worker's process has ended.
    pub(crate) fn reap(&mut self, id: WorkerId) {
        // What it said last may still be in the channel.
        while self.members.get(&id).is_some_and(|member| member.connected) && self.read(id) {}
        let Some(member) = self.members.get_mut(&id).filter(|one| one.ending.is_none()) else {
            return;
        };
        let ending = match member.process.try_wait() {
            Ok(Some(ending)) => ending,
            Ok(None) => return,
            Err(error) => {
                // Somebody else in this program has reaped it, and with it the way it ended.
                self.fail(error);
                Ending::Code(-1)
            }
        };
        if self.is_bridged(id) {
            // What it had not taken is still with the bridge, which says when it has let go.
            self.order(Order::Cut { worker: id });
        } else {
            self.part_with(id);
        }
        let Some(member) = self.members.get_mut(&id) else { return };
        member.ending = Some(ending);
        let _ = self.epoll.delete(&member.process);
        member.shared.state().ending = Some(ending);
        match self.is_bridged(id) {
            // It may have told of the channel's end already, and nobody has listened.
            true => self.heed_bridge(),
            false => self.lay_to_rest(id),
        }
    }

    /// Neither process nor channel of a worker is left.
    pub(crate) fn lay_to_rest(&mut self, id: WorkerId) {
        let Some(member) = self.members.get(&id).filter(|one| one.ending.is_some()) else {
            return;
        };
        match (&self.data, member.attached) {
            (Some(data), true) => data.command(Command::Bury { slot: member.slot }),
            _ => {
                let tally = member.view.tally(!self.hands_over());
                let slot = member.slot;
                self.heed(Report::Buried { slot, tally });
            }
        }
    }

    /// Everything that an ended worker left behind has been taken care of.
    pub(crate) fn bury(&mut self, slot: Slot, tally: Tally) {
        let Some(id) = self.member_at(slot).map(|member| member.id()) else { return };
        let Some(ending) = self.members.get(&id).and_then(|member| member.ending) else { return };
        let Some(member) = self.members.remove(&id) else { return };
        self.places[slot.index()] = None;
        let mut roll = self.roll.lock().expect("nothing panics while it holds the workers");
        roll.remove(&id);
        drop(roll);
        let finished = tally.finished;
        let truncated = member.view.statistic(Statistic::Truncated).min(finished);
        let counts = WorkerCounts {
            assigned: tally.assigned,
            own: tally.own,
            returned: tally.returned,
            claimed: tally.claimed,
            finished: finished - truncated,
            aborted: tally.in_flight() + truncated,
            requests: member.view.statistic(Statistic::Requests),
            handoff: member.handoff,
        };
        let worker: WorkerHandle = member.handle();
        self.tell(Event::Exit { worker, ending, counts });
    }
}
