//! Starts workers.

use std::ffi::OsString;
use std::sync::Arc;

use super::worker_entry::{SpawnContext, WorkerEntry};
use super::{CHANNEL, ControlPlane, PROCESS};
use crate::dialect::{WorkerDialect, WorkerStart, native, node};
use crate::error::{Error, ErrorKind, Result};
use crate::handle::{Event, ForkRequest, WorkerHandle};
use crate::id::{Slot, WorkerId};
use crate::settings::{ClusterSettings, Dialect, WORKERS_MAX};

impl ControlPlane {
    pub(crate) fn fork(
        &mut self,
        settings: Arc<ClusterSettings>,
        fork_request: ForkRequest,
    ) -> Result<WorkerHandle> {
        self.cluster_settings(&settings)?;
        let slot = self.place(fork_request.slot)?;
        let id = WorkerId::new(self.next_id);
        let predecessor = fork_request.predecessor.and_then(|old| self.workers.get(&old));
        let predecessor_slot = predecessor.map(|worker_entry| worker_entry.slot);
        let (control, bus) = (self.control.clone(), Arc::clone(&self.bus));
        let (hands_over, has_data_path) = (self.hands_over(), self.data_path.is_some());
        let ForkRequest { environment, inspect_port, predecessor, instance, .. } = fork_request;
        let start = self.prepare(&settings, &environment, (slot, predecessor_slot))?;
        let context = SpawnContext {
            id,
            slot,
            settings: &settings,
            start,
            environment,
            inspect_port,
            hands_over,
            predecessor,
            predecessor_slot,
            instance,
            blocked_signals: fork_request.blocked_signals,
            control,
            bus,
        };
        let worker_entry = WorkerEntry::start(context, has_data_path)?;
        self.watch(&worker_entry.process, PROCESS | u64::from(id.get()))?;
        if let WorkerDialect::Native(native) = &worker_entry.dialect {
            self.watch(&native.incoming, CHANNEL | u64::from(id.get()))?;
        }
        if let Some(grace) = settings.orphan_grace {
            self.guard(&worker_entry.process.remote(), grace);
        }
        Ok(self.enter(worker_entry))
    }

    /// Prepares what a worker of this dialect needs before it starts. `slots` are the worker's and
    /// its predecessor's.
    fn prepare(
        &mut self,
        settings: &ClusterSettings,
        environment: &[(OsString, OsString)],
        slots: (Slot, Option<Slot>),
    ) -> Result<WorkerStart<'_>> {
        Ok(match settings.dialect {
            Dialect::Native => {
                WorkerStart::Native(native::Start { engine: self.engine(settings)? })
            }
            Dialect::ListenFds => {
                WorkerStart::ListenFds(self.inherited_sockets(settings, slots.0, slots.1)?)
            }
            Dialect::Node => {
                self.build_bridge()?;
                let is_preloading = node::preload::is_wanted(settings, environment);
                if is_preloading {
                    self.ensure_preload(settings);
                }
                let preload = self.preload.as_ref().filter(|_| is_preloading);
                WorkerStart::Node(node::Start { preload })
            }
        })
    }

    /// Adds a running worker to the cluster.
    fn enter(&mut self, worker_entry: WorkerEntry) -> WorkerHandle {
        let (id, slot, worker) = (worker_entry.id(), worker_entry.slot, worker_entry.handle());
        self.next_id += 1;
        if slot.index() >= self.places.len() {
            self.places.resize(slot.index() + 1, None);
        }
        self.places[slot.index()] = Some(id);
        let mut registry = self.registry.lock().expect("nothing panics while it holds the workers");
        registry.workers.insert(id, worker.clone());
        drop(registry);
        self.workers.insert(id, worker_entry);
        self.admit(id);
        self.emit(Event::Fork { worker: worker.clone() });
        worker
    }

    /// The place of a new worker.
    fn place(&self, wanted: Option<Slot>) -> Result<Slot> {
        let free = |place: usize| self.places.get(place).is_none_or(Option::is_none);
        let refused = |what: String, hint: &str| Err(Error::cluster(ErrorKind::NoRoom, what, hint));
        match wanted {
            Some(slot) if slot.index() >= WORKERS_MAX => refused(
                format!("place {} is beyond the last one", slot.get()),
                "there is room for 1024 workers, in the places 0 to 1023",
            ),
            Some(slot) if !free(slot.index()) => refused(
                format!("place {} is taken", slot.get()),
                "wait for the exit event of the worker there",
            ),
            Some(slot) => Ok(slot),
            None => match (0..WORKERS_MAX).find(|place| free(*place)) {
                Some(place) => Ok(Slot::new(u16::try_from(place).expect("workers are bounded"))),
                None => refused(
                    format!("there are {WORKERS_MAX} workers already"),
                    "more processes than CPUs gain nothing; start a second cluster if you must",
                ),
            },
        }
    }
}
