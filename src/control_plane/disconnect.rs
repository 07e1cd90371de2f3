//! Workers that leave, on their own or on request, one or all.
//!
//! Owns the order: the worker gets no new connections, except those that wait in a listener that
//! only it serves; then its inbox ends; then it finishes what it has and exits.

use std::time::Duration;

use super::ControlPlane;
use crate::data_path::Command;
use crate::dialect::node::bridge::BridgeRequest;
use crate::handle::Event;
use crate::id::{ListenerId, WorkerId};
use crate::protocol::control::ToWorker;
use crate::sys::signal::Signal;

impl ControlPlane {
    /// Asks a worker to leave.
    pub(crate) fn disconnect(&mut self, id: WorkerId, grace: Option<Duration>) {
        if !self.part(id, grace) && self.ask_to_leave(id, grace) {
            self.let_go(id);
        }
    }

    /// Asks all workers to leave and closes everything.
    pub(crate) fn drain_all(&mut self, grace: Option<Duration>) {
        // Sent before everything has been handed over: workers at their limit make room only if
        // they no longer keep connections.
        let everybody: Vec<WorkerId> = self.workers.keys().copied().collect();
        for id in &everybody {
            if self.ask_to_leave(*id, grace)
                && let Some(worker_entry) = self.workers.get_mut(id)
            {
                worker_entry.leaving = true;
            }
        }
        self.fail_listen_requests();
        self.listeners.forget_inherited();
        let listeners: Vec<ListenerId> = self.listeners.iter().map(|entry| entry.id).collect();
        listeners.into_iter().for_each(|listener| self.remove(listener));
        everybody.into_iter().for_each(|id| self.retire(id));
    }

    pub(super) fn ask_to_leave(&mut self, id: WorkerId, grace: Option<Duration>) -> bool {
        let Some(worker_entry) = self.workers.get_mut(&id) else { return false };
        worker_entry.parting = None;
        let is_first = !std::mem::replace(&mut worker_entry.asked_to_leave, true);
        let connected = worker_entry.connected;
        let leaves_by_signal = worker_entry.dialect.leaves_by_signal(connected, is_first);
        if leaves_by_signal && worker_entry.ending.is_none() {
            // Fails only if the process has ended.
            let _ = worker_entry.state().remote.signal(Signal::SIGTERM);
        }
        if !connected {
            return false;
        }
        worker_entry.state().life().voluntary = Some(true);
        let grace_ms = grace.map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
        self.send(id, &ToWorker::Drain { grace_ms }, vec![]);
        true
    }

    /// A worker has announced that it leaves.
    pub(crate) fn leaves(&mut self, id: WorkerId) {
        let Some(worker_entry) = self.workers.get(&id) else { return };
        worker_entry.state().life().voluntary = Some(true);
        let (worker, was_asked) = (worker_entry.handle(), worker_entry.leaving);
        self.let_go(id);
        if !was_asked {
            self.emit(Event::Leaving { worker });
        }
    }

    /// Lets a worker leave: closes listeners that no other worker will serve, which hands their
    /// queues over; then it gets no more connections.
    pub(crate) fn let_go(&mut self, id: WorkerId) {
        let Some(worker_entry) = self.workers.get_mut(&id) else { return };
        if worker_entry.leaving {
            return;
        }
        worker_entry.leaving = true;
        let (slot, keeps_copy) = (worker_entry.slot, !worker_entry.dialect.has_channel());
        self.leave_to_successors(id);
        let steals = self.data_path.is_some();
        let used = self.listeners.iter_mut().filter(|entry| entry.users.contains(&id));
        let left: Vec<_> = used
            .filter_map(|entry| {
                let socket_owners = entry.leave(slot, steals, steals && keeps_copy);
                socket_owners.map(|socket_owners| (entry.id, socket_owners))
            })
            .collect();
        left.into_iter()
            .for_each(|(listener, socket_owners)| self.set_owners(listener, socket_owners));
        let workers = &self.workers;
        let stays =
            |user: &WorkerId| workers.get(user).is_some_and(|worker_entry| !worker_entry.leaving);
        let deserted: Vec<ListenerId> = self
            .listeners
            .iter()
            .filter(|entry| entry.users.contains(&id) && !entry.held && entry.heirs.is_empty())
            .filter(|entry| !entry.users.iter().any(stays))
            .map(|entry| entry.id)
            .collect();
        deserted.into_iter().for_each(|listener| self.remove(listener));
        self.retire(id);
    }

    /// Lets a leaving worker see the end of its inbox, unless a closing listener may still have
    /// connections for it.
    pub(crate) fn retire(&mut self, id: WorkerId) {
        let Some(worker_entry) = self.workers.get_mut(&id) else { return };
        let awaits = self.listeners.iter().any(|entry| entry.closing && entry.users.contains(&id));
        if awaits || worker_entry.retired || !worker_entry.leaving {
            return;
        }
        worker_entry.retired = true;
        // A worker that never served anything holds its own link; dropping it ends its inbox.
        worker_entry.link = None;
        let slot = worker_entry.slot;
        let tells = worker_entry.dialect.is_bridged() && worker_entry.connected;
        if worker_entry.attached {
            self.command(Command::Retire { slot });
        }
        if tells {
            // The bridge passes it on once the inbox has ended.
            self.ask_bridge(BridgeRequest::Disconnect { worker: id });
        }
    }
}
