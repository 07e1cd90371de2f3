//! Ends of channels and processes.
//!
//! Owns the order of the last two events: the channel's end comes first, and the worker is removed
//! from the list before the second one.

use std::sync::Arc;

use super::{ControlPlane, DataPathReport, LAST_TURNS_MAX};
use crate::data_path::Command;
use crate::dialect::WorkerDialect;
use crate::dialect::node::bridge::BridgeRequest;
use crate::handle::{Event, WorkerCounts, WorkerHandle};
use crate::id::{ListenerId, Slot, WorkerId};
use crate::protocol::scoreboard::{Counters, settle};
use crate::sys::process::Ending;
use crate::sys::schedstat;

impl ControlPlane {
    /// A worker's channel has ended, or is unusable.
    pub(crate) fn on_disconnected(&mut self, id: WorkerId) {
        let Some(worker_entry) =
            self.workers.get_mut(&id).filter(|worker_entry| worker_entry.connected)
        else {
            return;
        };
        worker_entry.connected = false;
        if let WorkerDialect::Native(native) = &worker_entry.dialect {
            let _ = self.epoll.delete(&native.incoming);
        }
        worker_entry.dialect.close();
        let mut life = worker_entry.state().life();
        life.connected = false;
        life.voluntary = Some(life.voluntary == Some(true));
        drop(life);
        worker_entry.leaving = true;
        let (worker, uses) = (worker_entry.handle(), worker_entry.uses.clone());
        self.emit(Event::Disconnect { worker });
        self.on_channel_end(id);
        self.leave_to_successors(id);
        uses.into_iter().for_each(|listener: ListenerId| self.release(id, listener));
        self.retire(id);
    }

    /// A worker's process has ended.
    pub(crate) fn reap(&mut self, id: WorkerId) {
        // Its last messages may still be in the channel.
        for _ in 0..LAST_TURNS_MAX {
            let connected = self.workers.get(&id).is_some_and(|one| one.connected);
            if !connected || !self.read(id) {
                break;
            }
        }
        let Some(worker_entry) = self.workers.get_mut(&id).filter(|one| one.ending.is_none())
        else {
            return;
        };
        // The kernel drops them with the process.
        let times = schedstat::of_process(worker_entry.process.pid());
        worker_entry.times = times.unwrap_or_default();
        let ending = match worker_entry.process.try_wait() {
            Ok(Some(ending)) => ending,
            Ok(None) => return,
            Err(error) => {
                // Other code in this program has reaped it, so its exit status is unknown.
                let worker = worker_entry.handle();
                self.emit(Event::Error { worker: Some(worker), error: Arc::new(error) });
                Ending::Code(-1)
            }
        };
        if self.is_bridged(id) {
            // The bridge still has its unacknowledged connections, and reports when it has released
            // them.
            self.ask_bridge(BridgeRequest::Cut { worker: id });
        } else {
            self.on_disconnected(id);
        }
        let Some(worker_entry) = self.workers.get_mut(&id) else { return };
        worker_entry.ending = Some(ending);
        let _ = self.epoll.delete(&worker_entry.process);
        worker_entry.state().life().ending = Some(ending);
        match self.is_bridged(id) {
            // Its notice of the channel's end may already be in the queue, unread.
            true => self.on_bridge_notices(),
            false => self.on_gone(id),
        }
    }

    /// Both the process and the channel of a worker are gone.
    pub(crate) fn on_gone(&mut self, id: WorkerId) {
        let Some(worker_entry) = self.workers.get(&id).filter(|one| one.ending.is_some()) else {
            return;
        };
        match (&self.data_path, worker_entry.attached) {
            (Some(data), true) => data.command(Command::Reap { slot: worker_entry.slot }),
            _ => {
                let counters = worker_entry.state().counters();
                let slot = worker_entry.slot;
                self.on_report(DataPathReport::Reaped { slot, counters, given: vec![] });
            }
        }
    }

    /// Everything that an ended worker left behind has been handled.
    pub(crate) fn on_reaped(
        &mut self,
        slot: Slot,
        counters: Counters,
        given: &[(ListenerId, u64)],
    ) {
        let Some(id) = self.entry_at(slot).map(|worker_entry| worker_entry.id()) else { return };
        let Some(ending) = self.workers.get(&id).and_then(|worker_entry| worker_entry.ending)
        else {
            return;
        };
        let Some(worker_entry) = self.workers.remove(&id) else { return };
        self.places[slot.index()] = None;
        let mut registry = self.registry.lock().expect("nothing panics while it holds the workers");
        registry.workers.remove(&id);
        let view = &worker_entry.state().view;
        let living = WorkerCounts::living(counters, view);
        let counts = living.ended(worker_entry.handoff, worker_entry.times);
        registry.ended.add(&counts);
        let shares = view.by_listener(&counters);
        let present = |id: &ListenerId| self.listeners.contains(*id);
        registry.count_ended(settle(given, &shares, &counters, living.aborted), present);
        let _ = worker_entry.state().last_counts.set(counts);
        drop(registry);
        let worker: WorkerHandle = worker_entry.handle();
        self.emit(Event::Exit { worker, ending, counts });
    }
}
