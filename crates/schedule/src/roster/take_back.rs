//! Early take-back: what a busy worker has not claimed goes to an idle one. Pure.
//!
//! Gives separate processes the tail of one central queue: a connection that waits behind a long
//! job moves as soon as another worker has nothing to do. While no worker is idle nothing moves,
//! since a connection would only wait elsewhere.

use super::{Roster, WorkerEntry};
use crate::id::{ListenerId, Slot};
use crate::index_set::IndexSet;
use crate::{Policy, Status, WorkerLoad};

/// A further look is due after this share of the time that the oldest connection has waited.
const LOOKS_SHARE: u64 = 8;
/// After this time a worker is a case for the hang limit.
const LOOKS_END_NS: u64 = 1_000_000_000;

impl Roster {
    /// A worker that is at work and has left a connection unclaimed for
    /// [`take_back_after_ns`](crate::SchedulerConfig::take_back_after_ns), while a worker of the
    /// same listeners is idle. The caller takes its channel back and prefers
    /// [`pick_idle`](Self::pick_idle) for what was in it.
    ///
    /// A worker with nothing in service is not meant: it has not been scheduled yet, and neither
    /// would another be.
    pub fn movable(&mut self, now_ns: u64) -> Option<Slot> {
        let after_ns = self.take_back_after_ns()?;
        self.looked_ns = now_ns;
        let is_late = |worker: &WorkerEntry| {
            let oldest_ns = worker.credits.oldest_ns();
            oldest_ns.is_some_and(|oldest_ns| now_ns.saturating_sub(oldest_ns) > after_ns)
        };
        let found = self.workers.iter().zip(&*self.loads).position(|(worker, load)| {
            let Some(worker) = worker else { return false };
            // A draining worker's rest is for others as well; a suspected one has been emptied.
            load.status != Status::Dead
                && !worker.suspected
                && is_late(worker)
                && worker.is_at_work()
                && self.has_idle(&worker.joined)
        });
        found.and_then(|place| u16::try_from(place).ok()).map(Slot)
    }

    /// An idle worker of a listener, which gets the connection. The choice is counted at once.
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

    /// How many workers of a listener are idle; none where connections may not move.
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

    /// When a worker may have to give something up, if nothing is claimed until then.
    pub(super) fn take_back_deadline_ns(&self) -> Option<u64> {
        let after_ns = self.take_back_after_ns()?;
        let workers = self.workers.iter().flatten().filter(|worker| !worker.suspected);
        let oldest_ns = workers.filter_map(|worker| worker.credits.oldest_ns()).min()?;
        if self.looked_ns <= oldest_ns {
            return Some(oldest_ns.saturating_add(after_ns).saturating_add(1));
        }
        // No worker was idle at the last look. The longer this lasts the rarer are the looks, and
        // they end: a worker that never claims costs a few wake-ups and not hundreds a second.
        let waited_ns = self.looked_ns - oldest_ns;
        let pause_ns = after_ns.max(waited_ns / LOOKS_SHARE);
        let next_ns = self.looked_ns.saturating_add(pause_ns).saturating_add(1);
        (waited_ns < LOOKS_END_NS).then_some(next_ns)
    }

    /// The limit, where a connection may move: a sticky policy has its reasons for the worker that
    /// it chose, and so may a scheduler of the user's.
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

    /// A worker that usually takes longer is not worth moving to, idle or not: twice what the
    /// fastest takes. Where that is not kept, every worker is.
    fn usual_us_max(&self) -> u32 {
        let known = self.loads.iter().map(|load| load.usual_us).filter(|usual_us| *usual_us > 0);
        known.min().map_or(u32::MAX, |fastest_us| fastest_us.saturating_mul(2))
    }
}

impl WorkerEntry {
    /// It has claimed something that is not finished.
    fn is_at_work(&self) -> bool {
        self.sample.claimed.saturating_add(self.sample.own) > self.sample.finished
    }
}

fn is_idle(load: &WorkerLoad, usual_us_max: u32) -> bool {
    load.in_flight == 0 && load.can_take() && load.usual_us <= usual_us_max
}
