//! The start: connections are accepted once every worker serves, so that all begin with equal
//! shares.

use super::{Failure, Occupancy, RunStage, State};
use crate::supervisor::event::SupervisorEvent;
use crate::supervisor::state::Action;
use crate::{Ending, WorkerId};

/// This many workers of a slot that end before the run has begun end it.
const EARLY_ENDS_MAX: u32 = 3;
/// Least time to wait for the others, once one worker serves.
const PATIENCE_NS: u64 = 3_000_000_000;
/// After this time the workers that do not serve yet are reported.
const LATE_NS: u64 = 5_000_000_000;

impl State {
    /// A worker has ended before the run has begun. Returns whether that ends the run: because its
    /// code says so, or because those before it failed, too.
    pub(super) fn early_end(
        &mut self,
        slot: u16,
        worker: WorkerId,
        ending: Ending,
        ready: bool,
    ) -> Option<Failure> {
        if ready {
            return None;
        }
        let is_fatal = |code: &i32| ending == Ending::Code(*code);
        let fatal = self.rules.fatal_codes.iter().any(is_fatal);
        let place = self.slot_mut(slot)?;
        place.early_ends += 1;
        let hopeless = place.early_ends >= EARLY_ENDS_MAX;
        (fatal || hopeless).then_some(Failure::StartFailed { worker, ending, fatal })
    }

    /// A worker's program has reported that it is ready.
    pub(in crate::supervisor) fn on_ready(&mut self, worker: WorkerId, now_ns: u64) {
        if let Some(child) = self.children.get_mut(&worker)
            && !std::mem::replace(&mut child.ready, true)
        {
            self.look(worker, now_ns);
        }
    }

    /// Begins to accept, if every worker serves.
    pub(super) fn look_at_start(&mut self, now_ns: u64) {
        let RunStage::Starting { began_ns, until_ns, patience_ns } = self.stage else { return };
        let workers: Vec<Option<WorkerId>> = self
            .slots
            .iter()
            .map(|slot| match slot.occupancy {
                Occupancy::Current(worker) => Some(worker),
                _ => None,
            })
            .collect();
        let is_ready = |worker: &Option<WorkerId>| worker.is_some_and(|one| self.is_ready(one));
        if workers.iter().all(is_ready) {
            return self.begin_to_serve(now_ns);
        }
        if patience_ns.is_none() && workers.iter().any(is_ready) {
            let patience_ns = now_ns.saturating_sub(began_ns).saturating_mul(2).max(PATIENCE_NS);
            let patience_ns = Some(now_ns.saturating_add(patience_ns));
            self.stage = RunStage::Starting { began_ns, until_ns, patience_ns };
        }
    }

    /// The deadline of the start, or of waiting for the last workers.
    pub(super) fn start_deadline_ns(&self, now_ns: u64) -> Option<u64> {
        match self.stage {
            RunStage::Starting { began_ns, until_ns, patience_ns } => {
                let patience_ns = patience_ns.filter(|patience_ns| *patience_ns > now_ns);
                let late_ns = Some(began_ns.saturating_add(LATE_NS)).filter(|_| !self.late_told);
                [Some(until_ns), patience_ns, late_ns].into_iter().flatten().min()
            }
            _ => None,
        }
    }

    pub(super) fn on_start_time(&mut self, now_ns: u64) {
        let RunStage::Starting { began_ns, until_ns, patience_ns } = self.stage else { return };
        if !self.late_told && began_ns.saturating_add(LATE_NS) <= now_ns {
            self.late_told = true;
            let workers = self.slots.iter().filter_map(|slot| match slot.occupancy {
                Occupancy::Current(worker) if !self.is_ready(worker) => Some(worker),
                _ => None,
            });
            let workers = workers.collect();
            self.emit(SupervisorEvent::Waiting { workers });
        }
        let is_over = |time_ns: Option<u64>| time_ns.is_some_and(|time_ns| time_ns <= now_ns);
        if (is_over(patience_ns) || is_over(Some(until_ns))) && self.begin_without_silent() {
            return self.begin_to_serve(now_ns);
        }
        if until_ns <= now_ns {
            self.fail(Failure::StartTimeout);
        }
    }

    /// Whether the workers that do not serve are valid ones that serve nothing: one of several may
    /// have another task.
    fn begin_without_silent(&mut self) -> bool {
        let mut silent = Vec::new();
        let mut serving = 0;
        for slot in &self.slots {
            let Occupancy::Current(worker) = slot.occupancy else { return false };
            let Some(child) = self.children.get(&worker) else { return false };
            match self.is_ready(worker) {
                true => serving += 1,
                false if child.online && child.ready && child.serving.is_empty() => {
                    silent.push(worker);
                }
                false => return false,
            }
        }
        if serving == 0 || self.rules.held > 0 {
            return false;
        }
        for worker in silent {
            let slot = self.children[&worker].slot;
            if let Some(place) = self.slot_mut(slot) {
                place.silent = true;
            }
            self.emit(SupervisorEvent::Silent { worker });
        }
        true
    }

    fn begin_to_serve(&mut self, now_ns: u64) {
        self.stage = RunStage::Serving;
        self.act(Action::Open);
        self.emit(SupervisorEvent::Started);
        self.look_at_goals();
        if let Some(tickets) = self.queued_reload.take() {
            // No worker has served yet that would have to be protected from the new version.
            self.begin_reload(tickets, 0, now_ns);
        }
    }

    /// Whether a worker has begun to serve, or is one that serves nothing.
    pub(super) fn is_serving(&self, worker: WorkerId) -> bool {
        self.children.get(&worker).is_some_and(|child| self.served_ns(child, u64::MAX).is_some())
    }
}
