//! Workers without a channel: the sockets that they inherit, and when they count as serving.
//!
//! Owns the socket for their notifications. Anyone may write to it, so only what comes from a
//! worker's own process counts.

use std::collections::BTreeMap;

use super::reuseport::Opened;
use super::{ControlPlane, NOTIFICATIONS};
use crate::data_path::Command;
use crate::dialect::{WorkerDialect, listen_fds};
use crate::error::{Error, Result};
use crate::handle::Event;
use crate::id::{ListenerId, Slot, WorkerId};
use crate::settings::{ClusterSettings, Readiness};
use crate::sys::accepting::Accepting;
use crate::sys::clock::monotonic_ns;
use crate::sys::notify::{Notification, NotifySocket};

/// Notifications read before other sources have their turn.
const NOTIFICATIONS_A_TURN_MAX: usize = 64;

impl ControlPlane {
    /// Everything that is held, for a worker in `slot`, which may replace the one in another.
    ///
    /// # Errors
    /// Nothing is held, or descriptors are exhausted.
    pub(crate) fn inherited_sockets(
        &mut self,
        settings: &ClusterSettings,
        slot: Slot,
        predecessor: Option<Slot>,
    ) -> Result<listen_fds::Start> {
        let notifies = settings.readiness == Readiness::Notified;
        if notifies && self.notify.is_none() {
            let notify = NotifySocket::open()?;
            self.watch(&notify, NOTIFICATIONS)?;
            self.notify = Some(notify);
        }
        let notify = self.notify.as_ref().filter(|_| notifies);
        let mut start = listen_fds::Start::new(notify.map(|notify| notify.name().into()));
        let held = self.listeners.iter_mut().filter(|entry| entry.is_inherited());
        for (place, entry) in held.enumerate() {
            let listener = entry.id;
            let (copy, opened) = entry.copy_for(slot, predecessor, false)?;
            let own = entry.separate_sockets().and_then(|all| all.of(slot));
            if let (Some(data), Some(Opened { number, listener: socket })) = (&self.data_path, own)
            {
                if opened.is_some() {
                    data.command(Command::AddSocket { id: listener, number, socket });
                }
                data.command(Command::Desert { listener, number, is_deserted: false });
            }
            let Some(socket) = copy else { continue };
            start.add(socket, settings.socket_names.get(place));
        }
        if start.is_empty() {
            return Err(Error::usage(
                "there is no listening socket that a worker could take over",
                "hold an address before the fork",
            ));
        }
        Ok(start)
    }

    /// Records that a new worker has inherited everything that is held.
    pub(crate) fn record_inherited(&mut self, id: WorkerId) {
        let Some(worker_entry) = self.workers.get_mut(&id) else { return };
        for entry in self.listeners.iter_mut().filter(|entry| entry.is_inherited()) {
            entry.users.insert(id);
            worker_entry.uses.insert(entry.id);
        }
    }

    /// When the next worker may have begun to serve.
    pub(crate) fn next_settled_ns(&self) -> Option<u64> {
        let workers = self.workers.values();
        let settling = workers.filter_map(|worker_entry| match &worker_entry.dialect {
            WorkerDialect::ListenFds(state) => {
                let late_ns = self.looks.late_ns(worker_entry.id()).unwrap_or(0);
                state.settles_ns().map(|settles_ns| settles_ns.max(late_ns))
            }
            WorkerDialect::Native(_) | WorkerDialect::Node(_) => None,
        });
        settling.min()
    }

    /// Lets workers that have run for long enough, or accept, count as serving.
    pub(crate) fn settle(&mut self) {
        if self.next_settled_ns().is_none() {
            return;
        }
        let now_ns = monotonic_ns();
        let mut found: BTreeMap<WorkerId, Accepting> = BTreeMap::new();
        while let Some((id, answer)) = self.looks.answer() {
            found.insert(id, answer);
        }
        for worker_entry in self.workers.values() {
            let WorkerDialect::ListenFds(state) = &worker_entry.dialect else { continue };
            let (id, pid) = (worker_entry.id(), worker_entry.state().pid);
            if let Some(sockets) = state.watched_at(now_ns).filter(|_| !found.contains_key(&id)) {
                found.extend(self.looks.begin(id, pid, sockets, now_ns).map(|answer| (id, answer)));
            }
        }
        self.begin_serving(|id, _, state| match found.get(&id) {
            Some(found) => state.on_time(now_ns, |_| *found),
            None => state.watched_at(now_ns).is_none() && state.on_time(now_ns, |_| Accepting::No),
        });
    }

    /// Receives notifications.
    pub(crate) fn on_notifications(&mut self) {
        for _ in 0..NOTIFICATIONS_A_TURN_MAX {
            let Some(notify) = &self.notify else { return };
            match notify.receive() {
                Ok(Some(Notification { pid, text })) => {
                    self.begin_serving(|_, worker_pid, state| {
                        worker_pid == pid && state.on_notification(&text)
                    });
                }
                Ok(None) => return,
                Err(error) => {
                    self.notify = None;
                    return self.fail(error);
                }
            }
        }
    }

    /// Lets the workers without a channel count as serving of whose number, process id and state
    /// `has_begun` says so.
    fn begin_serving(&mut self, has_begun: impl Fn(WorkerId, u32, &mut listen_fds::State) -> bool) {
        let serving = self.workers.values_mut().filter_map(|worker_entry| {
            let (id, pid) = (worker_entry.id(), worker_entry.state().pid);
            match &mut worker_entry.dialect {
                WorkerDialect::ListenFds(state) => has_begun(id, pid, state).then_some(id),
                WorkerDialect::Native(_) | WorkerDialect::Node(_) => None,
            }
        });
        let serving: Vec<WorkerId> = serving.collect();
        serving.into_iter().for_each(|id| self.emit_serving(id));
    }

    fn emit_serving(&mut self, id: WorkerId) {
        let worker_entry = self.workers.get_mut(&id).filter(|one| one.ending.is_none());
        let Some(worker_entry) = worker_entry else { return };
        let (worker, slot, leaving) =
            (worker_entry.handle(), worker_entry.slot, worker_entry.leaving);
        let uses: Vec<ListenerId> = worker_entry.uses.iter().copied().collect();
        if let Some(link) = worker_entry.link.take_if(|_| !leaving) {
            worker_entry.attached = true;
            self.command(Command::Attach { slot, link });
        }
        self.emit(Event::Online { worker: worker.clone() });
        for listener in uses {
            let Some(entry) = self.listeners.get_mut(listener) else { continue };
            let address = entry.listening_address();
            let socket_owners = if leaving { None } else { entry.begin(slot) };
            if let Some(socket_owners) = socket_owners {
                self.set_owners(listener, socket_owners);
            }
            self.emit(Event::Listening { worker: worker.clone(), address });
        }
    }
}
