//! Early take-back: a busy worker's unclaimed connections go to an idle one. Pure.
//!
//! Gives separate processes the tail latency of one central queue: a connection that waits behind a
//! long job moves as soon as another worker is idle. While none is idle nothing moves, since a
//! connection would only wait elsewhere.

use super::{Roster, Sample, WorkerEntry};
use crate::id::{ListenerId, Slot};
use crate::index_set::IndexSet;
use crate::{Policy, Status, WorkerLoad};

/// The next check is due after this share of the time that the oldest connection has waited, and
/// not before the other share of the limit.
const LOOKS_SHARE: u64 = 8;
const LIMIT_SHARE: u64 = 4;
/// A worker that has lost what waited for it gets nothing until it has gone on, or for this time.
const EMPTIED_NS: u64 = 100_000_000;
/// After this time the hang limit takes over.
const LOOKS_END_NS: u64 = 1_000_000_000;

/// The state of a worker when connections were taken from it because it was at work.
#[derive(Clone, Copy, Debug)]
pub(super) struct Emptied {
    finished: u64,
    turn_begun_ns: u64,
    until_ns: u64,
}

impl Emptied {
    /// Whether the worker still does what it did then. Another connection would wait as long.
    pub(super) fn holds(&self, sample: &Sample, now_ns: u64) -> bool {
        now_ns < self.until_ns
            && sample.finished == self.finished
            && sample.turn_begun_ns == self.turn_begun_ns
    }
}

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
        let mut waits = false;
        let found = self.workers.iter().zip(&*self.loads).position(|(worker, load)| {
            let Some(worker) = worker else { return false };
            // A draining worker's rest also goes to others; a suspected one has been emptied.
            let may_move = load.status != Status::Dead
                && !worker.suspected
                && is_late(worker)
                && worker.is_at_work();
            waits |= may_move;
            may_move && self.has_idle(&worker.joined)
        });
        self.waits_late = waits;
        let place = found?;
        if let Some(Some(worker)) = self.workers.get_mut(place) {
            let Sample { finished, turn_begun_ns, .. } = worker.sample;
            let until_ns = now_ns.saturating_add(EMPTIED_NS);
            // What is taken back is never claimed, so its claim would never count as slow.
            worker.credits.collapse();
            worker.emptied = Some(Emptied { finished, turn_begun_ns, until_ns });
            self.loads.change(place, |load| load.credits = 0);
        }
        u16::try_from(place).ok().map(Slot::new)
    }

    /// Whether a connection has waited for longer than the limit, and no worker was idle at the
    /// last check. One that is idle when the next connection arrives is to get the older one.
    #[must_use]
    pub fn waits_late(&self) -> bool {
        self.waits_late
    }

    /// Whether a worker has begun connections that are not finished, as of the last reading.
    #[must_use]
    pub fn is_at_work(&self, slot: Slot) -> bool {
        let worker = self.workers.get(slot.index()).and_then(Option::as_ref);
        worker.is_some_and(WorkerEntry::is_at_work)
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
        self.assign(u16::try_from(place).ok().map(Slot::new)?)
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
        let emptied = self.workers.iter().flatten().filter_map(|worker| worker.emptied);
        let emptied_ns = emptied.map(|emptied| emptied.until_ns).min();
        let waiting_ns = self.late_deadline_ns(after_ns);
        waiting_ns.into_iter().chain(emptied_ns).min()
    }

    fn late_deadline_ns(&self, after_ns: u64) -> Option<u64> {
        let workers = self.workers.iter().flatten().filter(|worker| !worker.suspected);
        let oldest_ns = workers.filter_map(|worker| worker.credits.oldest_ns()).min()?;
        if self.looked_ns <= oldest_ns {
            return Some(oldest_ns.saturating_add(after_ns).saturating_add(1));
        }
        // No worker was idle at the last check. The longer this lasts the rarer are the checks, and
        // they end: a worker that never claims costs a few wake-ups, not hundreds a second.
        let waited_ns = self.looked_ns - oldest_ns;
        let pause_ns = (after_ns / LIMIT_SHARE).max(waited_ns / LOOKS_SHARE);
        let next_ns = self.looked_ns.saturating_add(pause_ns).saturating_add(1);
        (waited_ns < LOOKS_END_NS).then_some(next_ns)
    }

    /// The limit, where a connection may move: a sticky policy or a custom scheduler has reasons
    /// for its choice.
    #[must_use]
    pub fn take_back_after_ns(&self) -> Option<u64> {
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
