//! Workers that inherit their sockets leave in two steps, where the kernel dispatches: it picks
//! them no more, and when they have accepted what waits for them, they are asked to leave.
//!
//! Owns how long that takes. In one step, what waits for a worker that no longer accepts would wait
//! for the next one in its socket. A worker whose socket another one accepts from, too, need not
//! wait.

use std::sync::Arc;
use std::time::Duration;

use super::ControlPlane;
use super::reuseport::Opened;
use crate::data_path::Command;
use crate::id::WorkerId;
use crate::sys::backlog;
use crate::sys::clock::monotonic_ns;
use crate::sys::listener::Listener;

/// How often to look once the kernel does not pick it. A handshake that had begun before is over by
/// then, on most networks.
const LOOK_NS: u64 = 20_000_000;
/// This long a queue may take to be empty, and at most half of the grace period.
const PATIENCE_NS: u64 = 500_000_000;

/// A worker that gets no more connections.
#[derive(Debug)]
pub(crate) struct Parting {
    sockets: Vec<Arc<Listener>>,
    look_ns: u64,
    until_ns: u64,
    grace: Option<Duration>,
}

impl Parting {
    /// The kernel does not pick the worker any more.
    pub(super) fn on_excluded(&mut self) {
        self.look_ns = monotonic_ns().saturating_add(LOOK_NS).min(self.until_ns);
    }
}

impl ControlPlane {
    /// Lets a worker accept what waits for it alone before it is asked to leave. Returns whether it
    /// will be.
    pub(super) fn part(&mut self, id: WorkerId, grace: Option<Duration>) -> bool {
        let is_first = self.workers.get(&id).is_some_and(|one| {
            !one.dialect.has_channel() && one.attached && !one.leaving && one.ending.is_none()
        });
        if !is_first || self.data_path.is_none() {
            return false;
        }
        self.let_go(id);
        let Some(worker_entry) = self.workers.get_mut(&id) else { return false };
        let slot = worker_entry.slot;
        let used = self.listeners.iter().filter(|entry| entry.users.contains(&id));
        let left =
            used.filter_map(|entry| Some((entry.id, entry.separate_sockets()?.left_by(slot)?)));
        let (mut listener, mut sockets) = (None, Vec::new());
        for (id, Opened { listener: socket, .. }) in left {
            listener = Some(id);
            sockets.push(socket);
        }
        let Some(listener) = listener else { return false };
        let half = grace.map(|grace| u64::try_from((grace / 2).as_nanos()).unwrap_or(u64::MAX));
        let patience_ns = half.unwrap_or(u64::MAX).min(PATIENCE_NS);
        let until_ns = monotonic_ns().saturating_add(patience_ns);
        worker_entry.parting = Some(Parting { sockets, look_ns: until_ns, until_ns, grace });
        // Answered when everything before it has taken effect.
        self.command(Command::Leave { slot, listener });
        true
    }

    /// The next look at a queue.
    pub(super) fn next_parting_ns(&self) -> Option<u64> {
        let parting = self.workers.values().filter_map(|one| one.parting.as_ref());
        parting.map(|parting| parting.look_ns).min()
    }

    /// Asks those to leave that have accepted everything.
    pub(super) fn on_parting(&mut self) {
        let now_ns = monotonic_ns();
        if self.next_parting_ns().is_none_or(|look_ns| look_ns > now_ns) {
            return;
        }
        let parted = self.workers.values_mut().filter_map(|one| {
            let id = one.id();
            let parting = one.parting.as_mut().filter(|parting| parting.look_ns <= now_ns)?;
            parting.look_ns = now_ns.saturating_add(LOOK_NS);
            let waits =
                |socket: &Arc<Listener>| backlog::length(&**socket).is_ok_and(|all| all > 0);
            let is_over = now_ns >= parting.until_ns || !parting.sockets.iter().any(waits);
            is_over.then_some((id, parting.grace))
        });
        let parted: Vec<(WorkerId, Option<Duration>)> = parted.collect();
        parted.into_iter().for_each(|(id, grace)| _ = self.ask_to_leave(id, grace));
    }
}
