//! Stops everything when Node workers with the preload run: their programs are told first, and
//! accepting continues until none of them waits. Also sends SIGTERM to workers that have left and
//! do not end.
//!
//! Owns how long programs are waited for, and when a worker without the preload is told to end.

use std::collections::BTreeSet;
use std::time::Duration;

use super::ControlPlane;
use crate::dialect::WorkerDialect;
use crate::dialect::node::bridge::BridgeRequest;
use crate::id::WorkerId;
use crate::sys::activity;
use crate::sys::clock::monotonic_ns;
use crate::sys::signal::Signal;

/// Programs were told that everything stops.
#[derive(Debug)]
pub(crate) struct Stopping {
    /// Those without an answer yet.
    waiting: BTreeSet<WorkerId>,
    /// The deadline for their answers.
    until_ns: Option<u64>,
    grace: Option<Duration>,
}

impl ControlPlane {
    /// Asks every worker to leave and closes everything, once the programs of Node workers have
    /// been told. A program gets at most half of the grace period; the other half is for requests
    /// still open. The first one that closes ends the wait for all.
    pub(crate) fn disconnect_all(&mut self, grace: Option<Duration>) {
        let is_notified = |worker_entry: &&super::WorkerEntry| {
            let is_leaving = worker_entry.leaving || worker_entry.ending.is_some();
            worker_entry.dialect.is_bridged()
                && worker_entry.connected
                && !is_leaving
                && worker_entry.state().view.program_reports()
        };
        let waiting: BTreeSet<WorkerId> =
            self.workers.values().filter(is_notified).map(super::WorkerEntry::id).collect();
        // A second request skips the wait.
        if waiting.is_empty() || self.stopping.is_some() {
            self.stopping = None;
            return self.drain_all(grace);
        }
        for id in &waiting {
            if let Some(worker_entry) = self.workers.get(id) {
                // Its program may end at once.
                worker_entry.state().life().voluntary = Some(true);
            }
            self.ask_bridge(BridgeRequest::Stop { worker: *id });
        }
        let half = |grace: Duration| u64::try_from((grace / 2).as_nanos()).unwrap_or(u64::MAX);
        let until_ns = grace.map(|grace| monotonic_ns().saturating_add(half(grace)));
        self.stopping = Some(Stopping { waiting, until_ns, grace });
    }

    /// A program was told that everything stops and no longer waits, or has ended.
    pub(crate) fn on_stopped(&mut self, id: WorkerId, closes: bool) {
        let Some(stopping) = &mut self.stopping else { return };
        if stopping.waiting.remove(&id) && (closes || stopping.waiting.is_empty()) {
            let grace = stopping.grace;
            self.stopping = None;
            self.drain_all(grace);
        }
    }

    /// A worker's channel has ended: with the preload, it ends once it serves nothing.
    pub(crate) fn on_channel_end(&mut self, id: WorkerId) {
        self.on_stopped(id, false);
        let Some(worker_entry) = self.workers.get_mut(&id) else { return };
        let has_preload = worker_entry.state().view.program_reports();
        let is_asked = worker_entry.asked_to_leave && worker_entry.ending.is_none();
        if let WorkerDialect::Node(node) = &mut worker_entry.dialect
            && is_asked
            && !has_preload
        {
            node.on_left(monotonic_ns());
        }
    }

    /// The next deadline.
    pub(crate) fn next_stop_ns(&self) -> Option<u64> {
        let looks = self.workers.values().filter_map(|worker_entry| match &worker_entry.dialect {
            WorkerDialect::Node(node) => node.look_ns(),
            WorkerDialect::Native(_) | WorkerDialect::ListenFds(_) => None,
        });
        looks.chain(self.stopping.as_ref().and_then(|stopping| stopping.until_ns)).min()
    }

    /// Acts on deadlines.
    pub(crate) fn on_stop_deadlines(&mut self) {
        let now_ns = monotonic_ns();
        let is_due = |time_ns: &mut u64| *time_ns <= now_ns;
        for worker_entry in self.workers.values_mut() {
            let (pid, remote) = (worker_entry.state().pid, worker_entry.state().remote.clone());
            let WorkerDialect::Node(node) = &mut worker_entry.dialect else { continue };
            if node.is_idle_leftover(now_ns, || activity::asleep_at(pid)) {
                // Fails only if the process has ended.
                let _ = remote.signal(Signal::SIGTERM);
            }
        }
        let late = |stopping: &mut Stopping| stopping.until_ns.as_mut().is_some_and(is_due);
        if let Some(stopping) = self.stopping.take_if(late) {
            self.drain_all(stopping.grace);
        }
    }
}
