//! Workers replaced one after the other while the run goes on (SIGHUP).
//!
//! Owns the order: a successor is started and serves what its predecessor does; only then is the
//! predecessor told to leave, and only when that has gone is the next one's turn. A successor that
//! fails ends the replacing, and whoever has not been replaced stays.

use std::collections::VecDeque;

use super::{Event, KILL_SLACK_NS, Keeper, Occupant, Stage, Ward, nanoseconds};
use clusterlb::WORKERS_MAX;
use clusterlb::WorkerHandle;
use clusterlb::WorkerId;
use clusterlb_sys::clock::monotonic_ns;

/// Workers being replaced.
#[derive(Debug, Default)]
pub(super) struct Rolling {
    todo: VecDeque<WorkerHandle>,
    step: Step,
}

/// How far the replacing of one worker is.
#[derive(Debug, Default)]
enum Step {
    #[default]
    Nothing,
    /// The successor is on its way.
    Awaiting { old: WorkerHandle, successor: WorkerHandle, until_ns: u64 },
    /// The successor serves and the predecessor finishes what it has.
    Leaving { old: WorkerHandle },
}

impl Keeper<'_> {
    /// Begins to replace everybody who is there now.
    pub(super) fn reload(&mut self) {
        if self.stage != Stage::Serving {
            let text = "workers are replaced only while they serve; nothing was done".into();
            return self.tell(Event::Note { text });
        }
        let wards = self.places.iter().filter_map(|place| match &place.occupant {
            Occupant::Alive(ward) if ward.cut_ns.is_none() => Some(ward.worker.clone()),
            _ => None,
        });
        let todo: VecDeque<WorkerHandle> = wards.collect();
        let ids: Vec<WorkerId> = todo.iter().map(WorkerHandle::id).collect();
        self.tell(Event::Reloading { ids });
        let rolling = self.rolling.get_or_insert_default();
        rolling.todo = todo;
        if let Step::Awaiting { old, .. } = &rolling.step {
            // Its turn has come already. Its successor, which may be older than what the signal
            // is about, is replaced again.
            let old = old.clone();
            rolling.todo.retain(|worker| *worker != old);
        }
        self.roll_on();
    }

    /// Begins with the next worker, unless one is being replaced.
    fn roll_on(&mut self) {
        let Some(rolling) = &mut self.rolling else { return };
        if !matches!(rolling.step, Step::Nothing) {
            return;
        }
        let Some(old) = rolling.todo.pop_front() else {
            self.rolling = None;
            // What none of the new workers has asked for is not served any more. A cluster that
            // has failed says so by an event.
            let _ = self.cluster.release_unused();
            return self.tell(Event::Reloaded);
        };
        let Some(place) = self.place_of(&old) else {
            // It has ended meanwhile, and its successor is new anyway.
            return self.roll_on();
        };
        let wanted = match &self.places[place].occupant {
            Occupant::Alive(ward) => ward.served.len().max(ward.wanted),
            Occupant::Nobody | Occupant::Awaited { .. } => 1,
        };
        match self.fork_beside(&old, wanted) {
            Ok(successor) => {
                let until_ns =
                    monotonic_ns().saturating_add(nanoseconds(self.settings.start_limit));
                self.set_step(Step::Awaiting { old, successor, until_ns });
            }
            Err(why) => self.stop_rolling(&why),
        }
    }

    /// Starts a worker in a place that nobody has.
    fn fork_beside(&mut self, old: &WorkerHandle, wanted: usize) -> Result<WorkerHandle, String> {
        let free = |place: &super::Place| matches!(place.occupant, Occupant::Nobody);
        let place = match self.places.iter().position(free) {
            Some(place) => place,
            None if self.places.len() < WORKERS_MAX => {
                self.places.push(super::Place::default());
                self.places.len() - 1
            }
            None => return Err(format!("there is no room beside {WORKERS_MAX} workers")),
        };
        self.fork(place, Some(old)).map_err(|error| error.to_string())?;
        match &mut self.places[place].occupant {
            Occupant::Alive(ward) => {
                ward.wanted = wanted;
                Ok(ward.worker.clone())
            }
            Occupant::Nobody | Occupant::Awaited { .. } => Err("it ended at once".into()),
        }
    }

    fn set_step(&mut self, step: Step) {
        if let Some(rolling) = &mut self.rolling {
            rolling.step = step;
        }
    }

    fn stop_rolling(&mut self, why: &str) {
        self.rolling = None;
        let text = format!("replacing stopped: {why}; the other workers stay as they are");
        self.tell(Event::Note { text });
    }

    /// Somebody serves more than before: if it is the successor and serves everything, its
    /// predecessor leaves.
    pub(super) fn attend_to_successor(&mut self) {
        let Some(Rolling { step: Step::Awaiting { old, successor, .. }, .. }) = &self.rolling
        else {
            return;
        };
        let (old, successor) = (old.clone(), successor.clone());
        if !self.ward_of(&successor).is_some_and(|ward| ward.is_ready()) {
            return;
        }
        let grace_ns = nanoseconds(self.settings.grace);
        let cut_ns = monotonic_ns().saturating_add(grace_ns).saturating_add(KILL_SLACK_NS);
        match self.ward_of(&old) {
            Some(ward) => {
                ward.cut_ns = Some(cut_ns);
                old.disconnect_within(self.settings.grace);
                self.set_step(Step::Leaving { old });
            }
            None => {
                self.set_step(Step::Nothing);
                self.roll_on();
            }
        }
    }

    fn ward_of(&mut self, worker: &WorkerHandle) -> Option<&mut Ward> {
        let place = self.place_of(worker)?;
        match &mut self.places[place].occupant {
            Occupant::Alive(ward) => Some(ward),
            Occupant::Nobody | Occupant::Awaited { .. } => None,
        }
    }

    /// Whether the end of a worker, which has left its place already, is part of the replacing, so
    /// that nobody is to be started for it.
    pub(super) fn is_rolled(&mut self, ward: &Ward) -> bool {
        let Some(rolling) = &self.rolling else { return false };
        match &rolling.step {
            Step::Leaving { old } if *old == ward.worker => {
                self.set_step(Step::Nothing);
                self.roll_on();
                true
            }
            // The successor is on its way already.
            Step::Awaiting { old, .. } if *old == ward.worker => true,
            Step::Awaiting { old, successor, .. } if *successor == ward.worker => {
                let old = old.clone();
                let why = format!("worker {} ended before it served", ward.worker.id());
                self.stop_rolling(&why);
                // Without a predecessor it is like any other that ends.
                self.place_of(&old).is_some()
            }
            _ => false,
        }
    }

    /// When something is to be done about the replacing.
    pub(super) fn roll_deadlines_ns(&self) -> impl Iterator<Item = u64> {
        let until = match &self.rolling {
            Some(Rolling { step: Step::Awaiting { until_ns, .. }, .. }) => Some(*until_ns),
            _ => None,
        };
        let cuts = self.places.iter().filter_map(|place| match &place.occupant {
            Occupant::Alive(ward) if !ward.killed => ward.cut_ns,
            _ => None,
        });
        until.into_iter().chain(cuts)
    }

    /// Ends successors and predecessors that take too long.
    pub(super) fn attend_to_rolling(&mut self, now_ns: u64) {
        for place in 0..self.places.len() {
            let cut_ns = match &self.places[place].occupant {
                Occupant::Alive(ward) => ward.cut_ns,
                Occupant::Nobody | Occupant::Awaited { .. } => None,
            };
            if cut_ns.is_some_and(|cut_ns| cut_ns <= now_ns) {
                self.kill(place, "the grace period is over".into());
            }
        }
        if let Some(Rolling { step: Step::Awaiting { successor, until_ns, .. }, .. }) =
            &mut self.rolling
            && *until_ns <= now_ns
        {
            // Its end is what stops the replacing.
            *until_ns = u64::MAX;
            let successor = successor.clone();
            if let Some(place) = self.place_of(&successor) {
                self.kill(place, "it did not serve in time (--start-limit)".into());
            }
        }
    }
}
