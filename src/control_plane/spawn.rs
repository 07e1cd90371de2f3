//! Workers coming to life.

use std::sync::Arc;

use super::node::is_preloading;
use super::worker_entry::{SpawnContext, WorkerEntry};
use super::{CHANNEL, ControlPlane, ForkRequest, PROCESS};
use crate::cluster::{ClusterSettings, Event, WorkerHandle};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Slot, WorkerId};
use crate::settings::{Dialect, WORKERS_MAX};

impl ControlPlane {
    pub(crate) fn fork(
        &mut self,
        settings: Arc<ClusterSettings>,
        fork_request: ForkRequest,
    ) -> Result<WorkerHandle> {
        self.cluster_settings(&settings)?;
        let engine = match settings.dialect {
            Dialect::Native => Some(self.engine(&settings)?),
            Dialect::Node | Dialect::ListenFds => None,
        };
        if settings.dialect == Dialect::Node {
            self.build_bridge()?;
        }
        let is_preloading = is_preloading(&settings, &fork_request.environment);
        if is_preloading {
            self.ensure_preload(&settings);
        }
        let slot = self.place(fork_request.slot)?;
        let id = WorkerId(self.next_id);
        let predecessor = fork_request.predecessor.and_then(|old| self.workers.get(&old));
        let predecessor_slot = predecessor.map(|worker_entry| worker_entry.slot);
        let inherited_sockets = self.inherited_sockets(&settings, slot, predecessor_slot)?;
        let preload = self.preload.as_ref().filter(|_| is_preloading);
        let worker_entry = WorkerEntry::start(SpawnContext {
            id,
            slot,
            settings: &settings,
            environment: fork_request.environment,
            inspect_port: fork_request.inspect_port,
            inherited_sockets,
            engine,
            has_inbox: self.data_path.is_some() && self.hands_over(),
            hands_over: self.hands_over(),
            predecessor: fork_request.predecessor,
            predecessor_slot,
            instance: fork_request.instance,
            blocked_signals: fork_request.blocked_signals,
            preload,
            control: self.control.clone(),
            bus: Arc::clone(&self.bus),
        })?;
        self.watch(&worker_entry.process, PROCESS | u64::from(id.0))?;
        if let Some(incoming) = &worker_entry.incoming {
            self.watch(incoming, CHANNEL | u64::from(id.0))?;
        }
        self.next_id += 1;
        if slot.index() >= self.places.len() {
            self.places.resize(slot.index() + 1, None);
        }
        self.places[slot.index()] = Some(id);
        let worker = worker_entry.handle();
        if let Some(grace) = settings.orphan_grace {
            self.guard(&worker_entry.process.remote(), grace);
        }
        let mut registry = self.registry.lock().expect("nothing panics while it holds the workers");
        registry.workers.insert(id, worker.clone());
        drop(registry);
        self.workers.insert(id, worker_entry);
        match settings.dialect {
            Dialect::Node => self.admit(id),
            Dialect::ListenFds => self.hand_down(id, settings.readiness),
            Dialect::Native => {}
        }
        self.tell(Event::Fork { worker: worker.clone() });
        Ok(worker)
    }

    /// The place of a new worker.
    fn place(&self, wanted: Option<Slot>) -> Result<Slot> {
        let free = |place: usize| self.places.get(place).is_none_or(Option::is_none);
        let refused = |what: String, hint: &str| Err(Error::cluster(ErrorKind::NoRoom, what, hint));
        match wanted {
            Some(slot) if slot.index() >= WORKERS_MAX => refused(
                format!("place {} is beyond the last one", slot.0),
                "there is room for 1024 workers, in the places 0 to 1023",
            ),
            Some(slot) if !free(slot.index()) => refused(
                format!("place {} is taken", slot.0),
                "wait for the exit event of the worker there",
            ),
            Some(slot) => Ok(slot),
            None => match (0..WORKERS_MAX).find(|place| free(*place)) {
                Some(place) => Ok(Slot(u16::try_from(place).expect("workers are bounded"))),
                None => refused(
                    format!("there are {WORKERS_MAX} workers already"),
                    "more processes than CPUs gain nothing; start a second cluster if you must",
                ),
            },
        }
    }
}
