//! Workers that leave, by their own wish or the program's, one or all.
//!
//! Owns the order: first nobody new for the worker, but for what waits in a listener that nobody
//! else serves; then the end of its inbox; then it finishes what it has and goes.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::Plane;
use crate::data_path::Command;
use crate::dialect::node::bridge::Order;
use crate::id::{ListenerId, WorkerId};
use crate::protocol::control::ToWorker;

impl Plane {
    /// Asks a worker to leave.
    pub(crate) fn disconnect(&mut self, id: WorkerId, grace: Option<Duration>) {
        if self.ask_to_leave(id, grace) {
            self.let_go(id);
        }
    }

    /// Asks everybody to leave and closes everything.
    pub(crate) fn disconnect_all(&mut self, grace: Option<Duration>) {
        // Told before everything has been handed over: workers at their limit make room for it
        // only if they no longer keep connections.
        let everybody: Vec<WorkerId> = self.members.keys().copied().collect();
        for id in &everybody {
            if self.ask_to_leave(*id, grace)
                && let Some(member) = self.members.get_mut(id)
            {
                member.leaving = true;
            }
        }
        self.dismiss_petitions();
        self.listeners.forget_inherited();
        let listeners: Vec<ListenerId> = self.listeners.iter().map(|entry| entry.id).collect();
        listeners.into_iter().for_each(|listener| self.remove(listener));
        everybody.into_iter().for_each(|id| self.retire(id));
    }

    fn ask_to_leave(&mut self, id: WorkerId, grace: Option<Duration>) -> bool {
        let Some(member) = self.members.get(&id).filter(|member| member.connected) else {
            return false;
        };
        member.shared.state().voluntary = Some(true);
        if member.is_mute {
            // All that it understands. It can only fail if it has ended already.
            let _ = member.shared.remote.signal(Signal::SIGTERM);
            return true;
        }
        let grace_ms = grace.map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
        self.say(id, &ToWorker::Drain { grace_ms }, vec![]);
        true
    }

    /// A worker leaves: listeners that nobody else stays for are closed, which gives it what waits
    /// there; then it gets nothing more.
    pub(crate) fn let_go(&mut self, id: WorkerId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if member.leaving {
            return;
        }
        member.leaving = true;
        let slot = member.slot;
        let steals = self.data.is_some();
        let used = self.listeners.iter_mut().filter(|entry| entry.users.contains(&id));
        let left: Vec<_> = used
            .filter_map(|entry| entry.leave(slot, steals).map(|staffing| (entry.id, staffing)))
            .collect();
        left.into_iter().for_each(|(listener, staffing)| self.staff(listener, staffing));
        let members = &self.members;
        let stays = |user: &WorkerId| members.get(user).is_some_and(|member| !member.leaving);
        let deserted: Vec<ListenerId> = self
            .listeners
            .iter()
            .filter(|entry| entry.users.contains(&id) && !entry.held)
            .filter(|entry| !entry.users.iter().any(stays))
            .map(|entry| entry.id)
            .collect();
        deserted.into_iter().for_each(|listener| self.remove(listener));
        self.retire(id);
    }

    /// Lets a leaving worker see the end of its inbox, unless a closing listener may still have
    /// something for it.
    pub(crate) fn retire(&mut self, id: WorkerId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let awaits = self.listeners.iter().any(|entry| entry.closing && entry.users.contains(&id));
        if awaits || member.retired || !member.leaving {
            return;
        }
        member.retired = true;
        // One that never served anything holds its own link; dropping it ends its inbox.
        member.link = None;
        let slot = member.slot;
        let tells = member.is_node && member.connected;
        if member.attached {
            self.command(Command::Retire { slot });
        }
        if tells {
            // The bridge passes it on once the inbox has ended.
            self.order(Order::Disconnect { worker: id });
        }
    }
}
