//! How long a listener stays open: while it is used, or will be.
//!
//! Owns these rules. A listener held by the program stays. When a worker closes its last server on
//! an address and keeps running, the listener closes unless another worker serves it. When a worker
//! ends, by a crash or replaced by a successor, the listener stays for the next worker in that
//! slot, its heir, and closes when every heir has settled without requesting it.

use nix::errno::Errno;

use super::listen_request::Key;
use super::listeners::{Entry, Linger, is_busy};
use super::worker_entry::Settling;
use super::{ControlPlane, WorkerEntry};
use crate::data_path::Command;
use crate::dialect::node::bridge::BridgeRequest;
use crate::error::Error;
use crate::handle::Event;
use crate::id::{ListenerId, Slot, WorkerId};
use crate::protocol::control::ToWorker;
use crate::sys::clock::monotonic_ns;

/// How long after its first server a worker may request its predecessor's addresses.
const SETTLING_NS: u64 = 5_000_000_000;
/// A listener used for this long was not only a search for a free port. A worker that closes it may
/// reopen it at once, or be about to leave, which it announces later.
const USED_NS: u64 = 10_000_000;
/// How long such a listener stays after its last server was closed.
const LINGER_NS: u64 = 25_000_000;

impl ControlPlane {
    /// A worker has closed its last server on an address.
    pub(crate) fn close(&mut self, id: WorkerId, listener: ListenerId) {
        let Some(worker_entry) = self.workers.get_mut(&id) else { return };
        if !worker_entry.uses.contains(&listener) {
            return;
        }
        let (slot, attached) = (worker_entry.slot, worker_entry.attached);
        if attached {
            // The worker is notified when no more of its connections will arrive.
            self.command(Command::Leave { slot, listener });
        } else {
            self.send(id, &ToWorker::Closed { listener }, vec![]);
        }
        self.emit_closed(id, listener);
        self.release(id, listener);
    }

    /// A worker closes its server at an address.
    pub(crate) fn emit_closed(&mut self, id: WorkerId, listener: ListenerId) {
        let Some(worker) = self.workers.get(&id).map(WorkerEntry::handle) else { return };
        if let Some(entry) = self.listeners.get_mut(listener) {
            let address = entry.listening_address();
            self.emit(Event::Closed { worker, address });
        }
    }

    /// Removes a worker from a listener's users, because it closed its last server there, leaves or
    /// has ended.
    pub(crate) fn release(&mut self, id: WorkerId, listener: ListenerId) {
        let is_leaving = self.workers.get(&id).is_none_or(|worker_entry| worker_entry.leaving);
        let deserted_before = self.next_id;
        let Some(entry) = self.listeners.get_mut(listener) else { return };
        if !entry.users.remove(&id) {
            return;
        }
        if entry.users.is_empty() {
            entry.deserted_before = deserted_before;
        }
        if let Some(worker_entry) = self.workers.get_mut(&id) {
            let (left, lost) = entry.forget(worker_entry.slot, self.data_path.is_some());
            let address = entry.address.clone();
            worker_entry.uses.remove(&listener);
            worker_entry.serves.remove(&listener);
            worker_entry.count_out(&entry.key);
            let is_deserted =
                |number| entry.separate_sockets().is_some_and(|all| all.is_deserted(number));
            let deserted =
                left.as_ref().map(|left| left.number).filter(|number| is_deserted(*number));
            if let Some(socket_owners) = left {
                self.set_owners(listener, socket_owners);
            }
            if let Some(number) = deserted {
                self.command(Command::Desert { listener, number, is_deserted: true });
            }
            if lost > 0 {
                self.fail(reset(lost, &address));
            }
        }
        match is_leaving {
            true => self.remove_if_abandoned(listener),
            false => self.let_linger(id, listener),
        }
    }

    /// The slot of the worker that will replace an ending one; none if a successor already serves,
    /// and so has requested what it needs.
    fn heir_of(&self, id: WorkerId) -> Option<Slot> {
        let mut successors = self.workers.values().filter(|one| one.predecessor == Some(id));
        let is_replaced = successors.any(|one| !one.leaving && one.settling != Settling::Starting);
        let worker_entry = self.workers.get(&id).filter(|_| !is_replaced);
        worker_entry.map(|worker_entry| worker_entry.slot)
    }

    /// A leaving worker has heirs for the listeners it uses, and for those it has just closed in
    /// order to leave.
    pub(crate) fn leave_to_successors(&mut self, id: WorkerId) {
        let Some(heir) = self.heir_of(id) else { return };
        for entry in self.listeners.iter_mut().filter(|entry| entry.outlives_workers) {
            let has_closed = entry.linger.take_if(|linger| linger.worker == id).is_some();
            if has_closed || entry.users.contains(&id) {
                entry.heirs.insert(heir);
            }
        }
    }

    /// A worker serves its first address: from now on it has limited time to request others.
    pub(crate) fn begin_settling(&mut self, id: WorkerId) {
        if let Some(worker_entry) = self.workers.get_mut(&id)
            && worker_entry.settling == Settling::Starting
        {
            let until_ns = monotonic_ns().saturating_add(SETTLING_NS);
            worker_entry.settling = Settling::Serving { until_ns };
        }
    }

    /// The next deadline of settling or lingering.
    pub(crate) fn next_lifetime_ns(&self) -> Option<u64> {
        let settling = self.workers.values().filter_map(WorkerEntry::settles_ns);
        let lingers = self.listeners.iter().filter_map(|entry| entry.linger);
        settling.chain(lingers.map(|linger| linger.until_ns)).min()
    }

    /// Closes listeners at the end of their time.
    pub(crate) fn end_lifetimes(&mut self) {
        let now_ns = monotonic_ns();
        if self.next_lifetime_ns().is_none_or(|next_ns| next_ns > now_ns) {
            return;
        }
        self.remove_lingering(|_, linger| linger.until_ns <= now_ns);
        let is_due = |one: &&WorkerEntry| one.settles_ns().is_some_and(|at_ns| at_ns <= now_ns);
        let settled: Vec<WorkerId> =
            self.workers.values().filter(is_due).map(WorkerEntry::id).collect();
        settled.into_iter().for_each(|id| self.settle_heir(id));
    }

    /// A worker has requested all it needs: it inherits no more listeners.
    fn settle_heir(&mut self, id: WorkerId) {
        let Some(worker_entry) = self.workers.get_mut(&id) else { return };
        worker_entry.settling = Settling::Settled;
        let slots = [Some(worker_entry.slot), worker_entry.predecessor_slot];
        // Slots that stay empty have no heir. When every serving worker is younger than the
        // remaining listeners, none requests them.
        let serving = || {
            let workers = self.workers.values();
            workers.filter(|one| !one.leaving && one.settling != Settling::Starting)
        };
        let have_settled = serving().all(|one| one.settling == Settling::Settled);
        let oldest = serving().map(|one| one.id().get()).min().filter(|_| have_settled);
        let mut abandoned = Vec::new();
        for entry in self.listeners.iter_mut().filter(|entry| !entry.heirs.is_empty()) {
            slots.iter().flatten().for_each(|slot| _ = entry.heirs.remove(slot));
            if entry.users.is_empty() && oldest.is_some_and(|id| id >= entry.deserted_before) {
                entry.heirs.clear();
            }
            abandoned.push(entry.id);
        }
        abandoned.into_iter().for_each(|listener| self.remove_if_abandoned(listener));
    }

    /// The last user of a listener keeps running: the listener closes, at once or soon.
    fn let_linger(&mut self, id: WorkerId, listener: ListenerId) {
        let now_ns = monotonic_ns();
        let Some(entry) = self.listeners.get_mut(listener) else { return };
        if !entry.is_abandoned() {
            return;
        }
        if now_ns.saturating_sub(entry.used_since_ns) >= USED_NS {
            let until_ns = now_ns.saturating_add(LINGER_NS);
            entry.linger = Some(Linger { worker: id, until_ns });
            return;
        }
        let key = entry.key.clone();
        // A program that searches for a free port wants another one the next time.
        self.listeners.forget_port(&key);
        self.remove(listener);
    }

    /// Whether a refused address may soon be free. A listener of ours that only lingers there
    /// closes at once.
    pub(crate) fn may_become_free(&mut self, error: &Error, key: &Key) -> bool {
        if matches!(error, Error::Listen { source, .. } if *source == Errno::ENOBUFS) {
            return self.remove_lingering(|_, _| true);
        }
        if is_busy(error) {
            self.remove_lingering(|entry, _| entry.is_in_the_way_of(key));
            return true;
        }
        false
    }

    /// Closes listeners that only linger. Returns whether there were any.
    fn remove_lingering(&mut self, is_meant: impl Fn(&Entry, Linger) -> bool) -> bool {
        let lingering = self.listeners.iter().filter_map(|entry| {
            entry.linger.filter(|linger| is_meant(entry, *linger)).map(|_| entry.id)
        });
        let lingering: Vec<ListenerId> = lingering.collect();
        lingering.iter().for_each(|listener| self.remove(*listener));
        !lingering.is_empty()
    }

    pub(crate) fn remove_if_abandoned(&mut self, listener: ListenerId) {
        let entry = self.listeners.get_mut(listener);
        if entry.is_some_and(|entry| entry.is_abandoned() && entry.linger.is_none()) {
            self.remove(listener);
        }
    }

    /// Closes a listener. With a data path it is removed when that reports it.
    pub(crate) fn remove(&mut self, listener: ListenerId) {
        let Some(entry) = self.listeners.get_mut(listener) else { return };
        if entry.closing {
            return;
        }
        match (&self.data_path, entry.close()) {
            (Some(data), true) => data.command(Command::RemoveListener { listener }),
            _ => self.listener_removed(listener),
        }
    }

    /// A listener is removed: requests that waited for its address are answered now.
    pub(crate) fn listener_removed(&mut self, listener: ListenerId) {
        let Some(entry) = self.listeners.take(listener) else { return };
        for id in &entry.users {
            if let Some(worker_entry) = self.workers.get_mut(id) {
                worker_entry.uses.remove(&listener);
                worker_entry.count_out(&entry.key);
            }
        }
        self.ask_bridge(BridgeRequest::Forget { listener });
        let leaving: Vec<WorkerId> =
            self.workers.values().filter(|one| one.leaving).map(WorkerEntry::id).collect();
        leaving.into_iter().for_each(|id| self.retire(id));
        for request in entry.waiting {
            self.bind_or_share(request, super::bind_retry::BindRetry::until_ns());
        }
        self.bind_retry.hurry();
    }
}

/// A worker no longer serves an address, and the queue of its socket was reset.
fn reset(connections: usize, address: &str) -> Error {
    Error::Environment {
        step: format!(
            "give other workers {connections} connections that waited for a worker at {address}"
        ),
        source: Errno::ECONNRESET.into(),
        hint: "hold the address, and they wait for the next worker; with CAP_BPF, or \
               net.ipv4.tcp_migrate_req=1, other workers get them"
            .into(),
    }
}
