//! Early take-back: a busy worker's unclaimed connections go to an idle one. Pure.
//!
//! Gives separate processes the tail latency of one central queue: a connection that waits behind a
//! long job moves as soon as another worker is idle. While none is idle nothing moves, since a
//! connection would only wait elsewhere.

use super::{Roster, WorkerEntry};
use crate::id::{ListenerId, Slot};
use crate::index_set::IndexSet;
use crate::{Policy, Status, WorkerLoad};

/// The next check is due after this share of the time that the oldest connection has waited.
const LOOKS_SHARE: u64 = 8;
/// After this time the hang limit takes over.
const LOOKS_END_NS: u64 = 1_000_000_000;

impl Roster {
    /// A working worker that has left a connection unclaimed for
    /// [`take_back_after_ns`](crate::SchedulerConfig::take_back_after_ns), while a worker of the
    /// same listeners is idle. The caller takes its channel back and prefers
    /// [`pick_idle`](Self::pick_idle) for the connections in it.
    ///
    /// A worker with nothing in service does not count: it has not been scheduled yet, and another
    /// one would not be either.
    pub fn movable(&mut self, now_ns: u64) -> Option<Slot> {
        let after_ns = self.take_back_after_ns()?;
        self.looked_ns = now_ns;
        let is_late = |worker: &WorkerEntry| {
            let oldest_ns = worker.credits.oldest_ns();
            oldest_ns.is_some_and(|oldest_ns| now_ns.saturating_sub(oldest_ns) > after_ns)
        };
        let found = self.workers.iter().zip(&*self.loads).position(|(worker, load)| {
            let Some(worker) = worker else { return false };
            // A draining worker's rest also goes to others; a suspected one has been emptied.
            load.status != Status::Dead
                && !worker.suspected
                && is_late(worker)
                && worker.is_at_work()
                && self.has_idle(&worker.joined)
        });
        found.and_then(|place| u16::try_from(place).ok()).map(Slot::new)
    }

    /// An idle worker of a listener for the connection. The choice is counted at once.
    pub fn pick_idle(&mut self, listener: ListenerId) -> Option<Slot> {
        let index = self.listener_index(listener)?;
        let most_us = self.usual_us_max();
        let mut pairs = self.workers.iter().zip(&*self.loads);
        let place = pairs.position(|(worker, load)| {
            let serves = matches!(worker, Some(worker) if worker.joined.contains(index));
            serves && is_idle(load, most_us)
        })?;
        self.assign(place)
    }

    /// The number of idle workers of a listener; `None` where connections may not move.
    #[must_use]
    pub fn idle_of(&self, listener: ListenerId) -> usize {
        let Some(index) = self.listener_index(listener) else { return 0 };
        let most_us = self.usual_us_max();
        let pairs = self.workers.iter().zip(&*self.loads);
        let idle = pairs.filter(|(worker, load)| {
            let serves = matches!(worker, Some(worker) if worker.joined.contains(index));
            serves && is_idle(load, most_us)
        });
        self.take_back_after_ns().map_or(0, |_| idle.count())
    }

    /// When a worker may have to lose unclaimed connections, if nothing is claimed until then.
    pub(super) fn take_back_deadline_ns(&self) -> Option<u64> {
        let after_ns = self.take_back_after_ns()?;
        let workers = self.workers.iter().flatten().filter(|worker| !worker.suspected);
        let oldest_ns = workers.filter_map(|worker| worker.credits.oldest_ns()).min()?;
        if self.looked_ns <= oldest_ns {
            return Some(oldest_ns.saturating_add(after_ns).saturating_add(1));
        }
        // No worker was idle at the last check. The longer this lasts the rarer are the checks, and
        // they end: a worker that never claims costs a few wake-ups, not hundreds a second.
        let waited_ns = self.looked_ns - oldest_ns;
        let pause_ns = after_ns.max(waited_ns / LOOKS_SHARE);
        let next_ns = self.looked_ns.saturating_add(pause_ns).saturating_add(1);
        (waited_ns < LOOKS_END_NS).then_some(next_ns)
    }

    /// The limit, where a connection may move: a sticky policy or a custom scheduler has reasons
    /// for its choice.
    fn take_back_after_ns(&self) -> Option<u64> {
        let moves = !matches!(self.policy, Policy::Sticky);
        let moves = moves && self.config.scheduler.is_none() && self.workers.len() > 1;
        self.config.take_back_after_ns.filter(|_| moves)
    }

    fn has_idle(&self, joined: &IndexSet) -> bool {
        let most_us = self.usual_us_max();
        let mut pairs = self.workers.iter().zip(&*self.loads);
        pairs.any(|(worker, load)| {
            let serves = matches!(worker, Some(worker) if worker.joined.meets(joined));
            serves && is_idle(load, most_us)
        })
    }

    /// A worker that usually takes longer is not worth moving to, even if idle: twice the time of
    /// the fastest. Without known times, every worker is.
    fn usual_us_max(&self) -> u32 {
        let known = self.loads.iter().map(|load| load.usual_us).filter(|usual_us| *usual_us > 0);
        known.min().map_or(u32::MAX, |fastest_us| fastest_us.saturating_mul(2))
    }
}

impl WorkerEntry {
    /// It has claimed connections that are not finished.
    fn is_at_work(&self) -> bool {
        self.sample.claimed.saturating_add(self.sample.own) > self.sample.finished
    }
}

fn is_idle(load: &WorkerLoad, usual_us_max: u32) -> bool {
    load.in_flight == 0 && load.can_take() && load.usual_us <= usual_us_max
}
