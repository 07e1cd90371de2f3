//! Suspicion: a worker that leaves connections unclaimed for too long is skipped until it answers a
//! probe. Pure.

use super::Roster;
use crate::Status;
use crate::id::Slot;

impl Roster {
    /// A worker that has left a connection unclaimed for too long. From now on it is skipped until
    /// it answers a probe; the caller takes its channel back and sends the probe.
    pub fn suspect(&mut self, now_ns: u64) -> Option<Slot> {
        let hang_after_ns = self.config.hang_after_ns?;
        for (place, worker) in self.workers.iter_mut().enumerate() {
            let Some(worker) = worker else { continue };
            let late = worker
                .credits
                .oldest_ns()
                .is_some_and(|oldest| now_ns.saturating_sub(oldest) > hang_after_ns);
            // A leaving worker does not answer and gets no more anyway, but its unclaimed
            // connections go to others just the same.
            let alive = self.loads[place].status != Status::Dead;
            if late && alive && !worker.suspected {
                worker.suspected = true;
                worker.probes += 1;
                self.loads.change(place, |load| load.hung = true);
                return u16::try_from(place).ok().map(Slot::new);
            }
        }
        None
    }

    /// The worker has not accepted what waits for it: it is skipped until it answers a probe.
    /// Returns whether the caller has to send one; not if one is outstanding, or the worker is
    /// gone.
    pub fn doubt(&mut self, slot: Slot) -> bool {
        let is_dead = self.loads.get(slot.index()).is_none_or(|load| load.status == Status::Dead);
        let Some(Some(worker)) = self.workers.get_mut(slot.index()) else { return false };
        if is_dead || worker.suspected {
            return false;
        }
        worker.suspected = true;
        worker.probes += 1;
        self.loads.change(slot.index(), |load| load.hung = true);
        true
    }

    /// Whether the worker has an unanswered probe.
    #[must_use]
    pub fn is_probed(&self, slot: Slot) -> bool {
        let worker = self.workers.get(slot.index());
        matches!(worker, Some(Some(worker)) if worker.suspected)
    }

    /// The probe could not be sent: the worker is no longer suspected, and judged anew.
    pub fn probe_failed(&mut self, slot: Slot) {
        if let Some(Some(worker)) = self.workers.get_mut(slot.index()) {
            worker.suspected = false;
            worker.probes -= 1;
            self.loads.change(slot.index(), |load| load.hung = false);
        }
    }

    /// Whether the worker is under suspicion.
    #[must_use]
    pub fn is_suspected(&self, slot: Slot) -> bool {
        let worker = self.workers.get(slot.index());
        matches!(worker, Some(Some(worker)) if worker.suspected || worker.stalled)
    }

    /// The worker apparently does not accept from its own socket, or does again: while it does not,
    /// it gets no connections of others either.
    pub fn set_stalled(&mut self, slot: Slot, stalled: bool) {
        if let Some(Some(worker)) = self.workers.get_mut(slot.index()) {
            worker.stalled = stalled;
            let hung = worker.suspected || stalled;
            self.loads.change(slot.index(), |load| load.hung = hung);
        }
    }

    pub(super) fn hang_deadline_ns(&self) -> Option<u64> {
        let hang_after_ns = self.config.hang_after_ns?;
        let pairs = self.workers.iter().zip(&*self.loads);
        let watched = pairs.filter_map(|(worker, load)| {
            let worker = worker.as_ref().filter(|worker| !worker.suspected)?;
            (load.status != Status::Dead).then(|| worker.credits.oldest_ns()).flatten()
        });
        // One past the limit, so that the check at that moment finds it exceeded.
        watched.min().map(|oldest| oldest.saturating_add(hang_after_ns).saturating_add(1))
    }
}
