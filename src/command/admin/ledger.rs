//! Sums of a run for the admin interface: counts by slot that outlive workers, and counts of
//! events.
//!
//! Owns the sums. The supervisor's events feed it; counters of living workers are read from their
//! pages on request.

use std::collections::{BTreeMap, BTreeSet};

use clusterlb::{Ending, Event, SupervisorEvent, WorkerCounts, WorkerId, WorkerSnapshot};

/// Ended workers that are remembered, in case an older snapshot still lists them.
const RECENT_MAX: usize = 2048;

/// How workers of a slot ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Exits {
    /// With code 0.
    pub(super) success: u64,
    /// With another code.
    pub(super) failure: u64,
    /// By a signal.
    pub(super) signal: u64,
}

/// The sums of a slot.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SlotRecord {
    /// Of ended workers; [`Ledger::by_slot`] adds the living ones.
    pub(super) counts: WorkerCounts,
    /// Given to living workers and not yet received.
    pub(super) unclaimed: u64,
    pub(super) exits: Exits,
    /// Workers started in it after the first one. A slot that scaling brings back begins anew.
    pub(super) restarts: u64,
    was_filled: bool,
    /// How often one of its workers hung.
    pub(super) hangs: u64,
    /// How often one of its workers was an outlier.
    pub(super) outliers: u64,
}

/// The sums of a run.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    slots: BTreeMap<u16, SlotRecord>,
    /// Workers that ended lately. Their counts are in the sums.
    recent: BTreeSet<WorkerId>,
    /// Target number of workers.
    pub(super) wanted: u16,
    pub(super) reloads_complete: u64,
    pub(super) reloads_stopped: u64,
    /// Slots that were given up.
    pub(super) given_up: u64,
}

impl Ledger {
    /// Counts an event.
    pub(super) fn on_event(&mut self, event: &SupervisorEvent) {
        match event {
            SupervisorEvent::Cluster(Event::Hung { worker, .. }) => {
                self.slot(worker.instance()).hangs += 1;
            }
            SupervisorEvent::Cluster(Event::Outlier { worker, .. }) => {
                self.slot(worker.instance()).outliers += 1;
            }
            SupervisorEvent::Cluster(Event::Exit { worker, ending, counts }) => {
                self.on_exit(worker.id(), worker.instance(), *ending, counts);
            }
            SupervisorEvent::Cluster(Event::Fork { worker }) => self.on_fork(worker.instance()),
            SupervisorEvent::Scaled { to, .. } => self.on_scaled(*to),
            SupervisorEvent::Reloaded => self.reloads_complete += 1,
            SupervisorEvent::ReloadStopped { .. } => self.reloads_stopped += 1,
            SupervisorEvent::GaveUp { .. } => self.given_up += 1,
            _ => {}
        }
    }

    fn slot(&mut self, number: Option<u16>) -> &mut SlotRecord {
        self.slots.entry(number.unwrap_or_default()).or_default()
    }

    fn on_fork(&mut self, slot: Option<u16>) {
        let record = self.slot(slot);
        record.restarts += u64::from(std::mem::replace(&mut record.was_filled, true));
    }

    fn on_scaled(&mut self, to: u16) {
        self.wanted = to;
        self.slots.range_mut(to..).for_each(|(_, record)| record.was_filled = false);
    }

    fn on_exit(
        &mut self,
        worker: WorkerId,
        slot: Option<u16>,
        ending: Ending,
        counts: &WorkerCounts,
    ) {
        let record = self.slot(slot);
        record.counts.add(counts);
        match ending {
            Ending::Code(0) => record.exits.success += 1,
            Ending::Code(_) => record.exits.failure += 1,
            Ending::Signal(_) => record.exits.signal += 1,
        }
        self.recent.insert(worker);
        if self.recent.len() > RECENT_MAX {
            self.recent.pop_first();
        }
    }

    /// Every slot that exists or existed, with its living workers. The snapshot is older than the
    /// ledger, so a worker that ended in between counts once, by its last counts.
    pub(super) fn by_slot(&self, living: &[WorkerSnapshot]) -> BTreeMap<u16, SlotRecord> {
        let mut slots = self.slots.clone();
        (0..self.wanted).for_each(|slot| _ = slots.entry(slot).or_default());
        for worker in living.iter().filter(|one| !self.recent.contains(&one.id)) {
            let record = slots.entry(worker.slot).or_default();
            record.counts.add(&worker.counts);
            record.unclaimed += worker.counts.unclaimed();
        }
        slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(finished: u64) -> WorkerCounts {
        let mut counts = WorkerCounts::default();
        (counts.assigned, counts.claimed, counts.finished) = (finished, finished, finished);
        counts
    }

    #[test]
    fn a_slot_s_counts_outlive_its_workers() {
        let mut ledger = Ledger { wanted: 2, ..Ledger::default() };
        ledger.on_exit(WorkerId::new(1), Some(1), Ending::Code(0), &counts(5));
        ledger.on_exit(WorkerId::new(2), Some(1), Ending::Signal(9), &counts(7));
        ledger.on_exit(WorkerId::new(3), Some(4), Ending::Code(1), &counts(1));
        let slots = ledger.by_slot(&[]);
        assert_eq!(slots.keys().copied().collect::<Vec<_>>(), [0, 1, 4]);
        assert_eq!((slots[&1].counts.finished, slots[&4].counts.finished), (12, 1));
        assert_eq!(slots[&1].exits, Exits { success: 1, failure: 0, signal: 1 });
        assert_eq!(slots[&0].counts, WorkerCounts::default());
    }

    #[test]
    fn restarts_are_kept_when_a_slot_comes_back() {
        let mut ledger = Ledger { wanted: 2, ..Ledger::default() };
        [0, 1, 1, 1].into_iter().for_each(|slot| ledger.on_fork(Some(slot)));
        let restarts = |ledger: &Ledger| ledger.by_slot(&[]).get(&1).map(|slot| slot.restarts);
        assert_eq!(restarts(&ledger), Some(2));
        ledger.on_scaled(1);
        assert_eq!(restarts(&ledger), Some(2));
        ledger.on_scaled(2);
        ledger.on_fork(Some(1));
        assert_eq!(restarts(&ledger), Some(2), "the first one of a new slot");
        ledger.on_fork(Some(1));
        assert_eq!(restarts(&ledger), Some(3));
        assert_eq!(ledger.by_slot(&[])[&0].restarts, 0);
    }

    #[test]
    fn many_ended_workers_are_summed_up_without_losing_a_connection() {
        let mut ledger = Ledger::default();
        for id in 1..=5000 {
            ledger.on_exit(WorkerId::new(id), Some(0), Ending::Code(0), &counts(3));
        }
        assert_eq!(ledger.recent.len(), RECENT_MAX);
        let slots = ledger.by_slot(&[]);
        assert_eq!((slots[&0].counts.finished, slots[&0].exits.success), (15_000, 5000));
    }
}
