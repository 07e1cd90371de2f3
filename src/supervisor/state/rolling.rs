//! Replaces workers one after the other during the run.
//!
//! Owns the order: a successor is started beside its predecessor, serves the same addresses, and
//! keeps serving for the settling time; only then is the predecessor told to leave, and only after
//! its end does the next one follow. A failing successor stops the reload, and the remaining
//! workers stay.

use std::collections::VecDeque;

use super::child::{Name, Names};
use super::{Action, Child, GoalRefusal, Occupancy, Role, RunStage, State, Ticket};
use crate::WorkerId;
use crate::supervisor::ReadyAfter;
use crate::supervisor::event::SupervisorEvent;
use crate::supervisor::restart::Budget;

/// The reload in progress.
#[derive(Debug)]
pub(super) struct Rolling {
    /// The workers still to replace.
    todo: VecDeque<WorkerId>,
    step: RollingStep,
    settle_ns: u64,
    /// The callers that wait for the end.
    tickets: Vec<Ticket>,
    /// What the successor did not do in time; it is being killed for that.
    late: Option<String>,
}

/// Progress of replacing one worker.
#[derive(Clone, Copy, Debug)]
enum RollingStep {
    Idle,
    /// The successor is being started, and has to serve.
    Starting {
        slot: u16,
        old: WorkerId,
        successor: Option<WorkerId>,
        until_ns: u64,
    },
    /// The successor serves, and has to keep serving until this time.
    Settling {
        slot: u16,
        old: WorkerId,
        successor: WorkerId,
        until_ns: u64,
    },
    /// The successor has the slot, and the predecessor finishes its connections.
    Leaving {
        old: WorkerId,
    },
}

impl RollingStep {
    /// The worker to replace, its successor and their slot, before the slot changes hands.
    fn pair(self) -> Option<(u16, WorkerId, Option<WorkerId>)> {
        match self {
            Self::Starting { slot, old, successor, .. } => Some((slot, old, successor)),
            Self::Settling { slot, old, successor, .. } => Some((slot, old, Some(successor))),
            Self::Idle | Self::Leaving { .. } => None,
        }
    }
}

impl State {
    /// Replaces every worker, starts those of slots that were given up, and resets all restart
    /// budgets. During the start or another reload it follows afterwards, once.
    pub(in crate::supervisor) fn reload(&mut self, ticket: Option<Ticket>, now_ns: u64) {
        self.changed = true;
        let tickets = ticket.into_iter();
        match self.stage {
            RunStage::Serving if self.rolling.is_none() => {
                self.begin_reload(tickets.collect(), self.rules.settle_ns, now_ns);
            }
            RunStage::Serving | RunStage::Starting { .. } => {
                self.queued_reload.get_or_insert_default().extend(tickets);
                self.emit(SupervisorEvent::ReloadQueued);
            }
            RunStage::Draining { .. } | RunStage::Killing => {
                let reason = "the run is ending".to_owned();
                self.finish_all(tickets.collect(), Some(GoalRefusal::Ending));
                self.emit(SupervisorEvent::ReloadStopped { reason });
            }
        }
    }

    /// Replaces one worker.
    pub(in crate::supervisor) fn replace_worker(
        &mut self,
        worker: WorkerId,
        ticket: Ticket,
        now_ns: u64,
    ) {
        self.changed = true;
        if !self.children.get(&worker).is_some_and(Child::stays) {
            return self.finish(ticket, Some(GoalRefusal::NoSuchWorker(worker)));
        }
        if self.stage != RunStage::Serving {
            return self.finish(ticket, Some(GoalRefusal::NotServing));
        }
        match &mut self.rolling {
            Some(rolling) => {
                if !rolling.todo.contains(&worker) {
                    rolling.todo.push_back(worker);
                }
                rolling.tickets.push(ticket);
            }
            None => self.begin_rolling(vec![worker], vec![ticket], self.rules.settle_ns, now_ns),
        }
    }

    pub(super) fn begin_reload(&mut self, tickets: Vec<Ticket>, settle_ns: u64, now_ns: u64) {
        let stays = |slot: &super::Slot| match slot.occupancy {
            Occupancy::Current(worker) => self.children.get(&worker).is_some_and(Child::stays),
            _ => false,
        };
        let todo: Vec<WorkerId> = self
            .slots
            .iter()
            .filter(|slot| stays(slot))
            .filter_map(|slot| match slot.occupancy {
                Occupancy::Current(worker) => Some(worker),
                _ => None,
            })
            .collect();
        for place in &mut self.slots {
            place.budget = Budget::default();
            if !matches!(place.occupancy, Occupancy::Current(_) | Occupancy::Spawning) {
                place.occupancy = Occupancy::Waiting { at_ns: now_ns };
            }
        }
        self.begin_rolling(todo, tickets, settle_ns, now_ns);
        self.fill_slots(now_ns);
    }

    fn begin_rolling(
        &mut self,
        workers: Vec<WorkerId>,
        tickets: Vec<Ticket>,
        settle_ns: u64,
        now_ns: u64,
    ) {
        self.emit(SupervisorEvent::Reloading { workers: workers.clone() });
        let todo = workers.into();
        self.rolling =
            Some(Rolling { todo, step: RollingStep::Idle, settle_ns, tickets, late: None });
        self.roll_on(now_ns);
    }

    /// Begins with the next worker, unless one is being replaced.
    fn roll_on(&mut self, now_ns: u64) {
        let until_ns = now_ns.saturating_add(self.rules.start_limit_ns);
        loop {
            let Some(rolling) = &mut self.rolling else { return };
            if !matches!(rolling.step, RollingStep::Idle) {
                return;
            }
            let Some(old) = rolling.todo.pop_front() else {
                let tickets = std::mem::take(&mut rolling.tickets);
                self.rolling = None;
                self.emit(SupervisorEvent::Reloaded);
                self.finish_all(tickets, None);
                return self.begin_queued_reload(now_ns);
            };
            // A worker that has ended has been replaced anyway.
            if let Some(child) = self.children.get(&old).filter(|child| child.stays()) {
                let slot = child.slot;
                rolling.step = RollingStep::Starting { slot, old, successor: None, until_ns };
                let (role, predecessor) = (Role::Successor, Some(old));
                return self.act(Action::Spawn { slot, role, predecessor });
            }
        }
    }

    fn begin_queued_reload(&mut self, now_ns: u64) {
        if self.stage == RunStage::Serving
            && let Some(tickets) = self.queued_reload.take()
        {
            self.begin_reload(tickets, self.rules.settle_ns, now_ns);
        }
    }

    fn set_step(&mut self, step: RollingStep) {
        if let Some(rolling) = &mut self.rolling {
            rolling.step = step;
        }
    }

    fn step(&self) -> RollingStep {
        self.rolling.as_ref().map_or(RollingStep::Idle, |rolling| rolling.step)
    }

    /// Stops the reload. There is no successor any more.
    pub(super) fn stop_rolling(&mut self, reason: String, now_ns: u64) {
        let Some(rolling) = self.rolling.take() else { return };
        self.finish_all(rolling.tickets, Some(GoalRefusal::Stopped(reason.clone())));
        self.emit(SupervisorEvent::ReloadStopped { reason });
        self.begin_queued_reload(now_ns);
    }

    /// Abandons the reload because the run ends. Its callers are answered by the end of the run.
    pub(super) fn forget_rolling(&mut self) {
        let rolling = self.rolling.take().map(|rolling| rolling.tickets);
        let tickets = rolling.into_iter().chain(self.queued_reload.take()).flatten().collect();
        self.finish_all(tickets, Some(GoalRefusal::Ending));
    }

    /// The successor has been started.
    pub(super) fn successor_spawned(&mut self, worker: WorkerId) {
        if let RollingStep::Starting { slot, old, successor: None, until_ns } = self.step() {
            self.set_step(RollingStep::Starting { slot, old, successor: Some(worker), until_ns });
        }
    }

    /// Whether a successor serves, by name, its predecessor's present addresses. If the predecessor
    /// serves nothing, it only has to run.
    pub(super) fn is_ready_to_succeed(&self, worker: WorkerId, child: &Child) -> bool {
        let old = match self.step().pair() {
            Some((_, old, Some(successor))) if successor == worker => self.children.get(&old),
            _ => None,
        };
        let wanted = old.map_or_else(|| child.wanted.clone(), Child::wanted_of_successor);
        let (named, own) = match old {
            Some(old) => self.without_own(old, wanted),
            None => (wanted, 0),
        };
        let further = child.serving.difference(&named).count();
        let serves = named.is_subset(&child.serving) && further >= own;
        !child.goes() && child.online && child.ready && serves
    }

    /// What a successor did not do in time.
    fn lateness(&self, old: WorkerId, successor: WorkerId) -> String {
        let (old, child) = (self.children.get(&old), self.children.get(&successor));
        let missing = match (old, child) {
            (_, Some(child)) if !child.ready => {
                return "did not serve and send the message \"ready\" within the start limit"
                    .into();
            }
            (Some(old), Some(child)) if !child.serving.is_empty() => {
                let (named, _) = self.without_own(old, old.wanted_of_successor());
                named.difference(&child.serving).next().map(|name| name.address.clone())
            }
            _ => None,
        };
        match missing {
            Some(address) => {
                format!("did not listen on {address} in time, as its predecessor does")
            }
            None => "did not serve within the start limit".into(),
        }
    }

    /// If each worker has separate addresses, such as a port derived from its number, the
    /// successor's differ: only their number counts.
    fn without_own(&self, old: &Child, wanted: Names) -> (Names, usize) {
        let others = || {
            let stays = |one: &&Child| one.stays() && !std::ptr::eq(*one, old);
            self.children.values().filter(stays)
        };
        let is_shared = |name: &Name| others().any(|other| other.serving.contains(name));
        let (shared, own): (Names, Names) = wanted.iter().cloned().partition(is_shared);
        let has_own = |other: &Child| other.serving.difference(&old.serving).count() >= own.len();
        match own.is_empty() || others().next().is_none() || !others().all(has_own) {
            true => (wanted, 0),
            false => (shared, own.len()),
        }
    }

    /// The addresses of a worker have changed: the successor may have become ready, or have ceased
    /// to be.
    pub(super) fn look_at_rolling(&mut self, now_ns: u64) {
        let settle_ns = match self.rules.ready_after {
            ReadyAfter::Listening => self.rolling.as_ref().map_or(0, |rolling| rolling.settle_ns),
            // Its program has decided that it has settled.
            ReadyAfter::Message => 0,
        };
        match self.step() {
            RollingStep::Starting { slot, old, successor: Some(successor), .. }
                if self.is_ready(successor) =>
            {
                let until_ns = now_ns.saturating_add(settle_ns);
                self.set_step(RollingStep::Settling { slot, old, successor, until_ns });
                self.settle(now_ns);
            }
            RollingStep::Settling { slot, old, successor, .. }
                if !self.is_ready(successor) && !self.goes(successor) =>
            {
                let until_ns = now_ns.saturating_add(self.rules.start_limit_ns);
                let successor = Some(successor);
                self.set_step(RollingStep::Starting { slot, old, successor, until_ns });
            }
            _ => {}
        }
    }

    /// Whether a worker is dying or leaving.
    fn goes(&self, worker: WorkerId) -> bool {
        self.children.get(&worker).is_some_and(Child::goes)
    }

    /// A successor that has settled takes the slot, and its predecessor leaves.
    fn settle(&mut self, now_ns: u64) {
        let RollingStep::Settling { slot, old, successor, until_ns } = self.step() else { return };
        // The end of a dying successor stops the reload.
        if until_ns > now_ns || self.goes(successor) {
            return;
        }
        self.hand_slot_to(slot, successor);
        if !self.children.contains_key(&old) {
            self.set_step(RollingStep::Idle);
            return self.roll_on(now_ns);
        }
        self.set_step(RollingStep::Leaving { old });
        self.leave(old, now_ns);
    }

    fn hand_slot_to(&mut self, slot: u16, successor: WorkerId) {
        if let Some(child) = self.children.get_mut(&successor) {
            child.role = Role::Current;
        }
        if let Some(place) = self.slot_mut(slot) {
            place.occupancy = Occupancy::Current(successor);
        }
    }

    /// Tells a worker to leave, which frees its slot.
    pub(super) fn leave(&mut self, worker: WorkerId, now_ns: u64) {
        let cut_ns = self.cut_ns(now_ns);
        if let Some(child) = self.children.get_mut(&worker)
            && child.role != Role::Leaving
        {
            child.role = Role::Leaving;
            child.cut_ns.get_or_insert(cut_ns);
            self.act(Action::Disconnect { worker });
        }
    }

    /// Whether the end of a worker, or its leaving, is part of the reload, so that no other one is
    /// started for it: its successor is already starting.
    pub(super) fn is_rolled(&mut self, worker: WorkerId, now_ns: u64) -> bool {
        let Some((slot, old, successor)) = self.step().pair() else { return false };
        if old != worker {
            return false;
        }
        if let Some(successor) = successor {
            self.hand_slot_to(slot, successor);
            self.look_at_rolling(now_ns);
        }
        true
    }

    /// A worker has ended, or leaves. If it is a successor that has not settled, the reload stops.
    pub(super) fn successor_ended(&mut self, worker: WorkerId, now_ns: u64) {
        if !matches!(self.step().pair(), Some((_, _, Some(successor))) if successor == worker) {
            return;
        }
        let late = self.rolling.as_mut().and_then(|rolling| rolling.late.take());
        let how = match (self.step(), self.rules.ready_after) {
            _ if late.is_some() => late.as_deref().unwrap_or_default(),
            (RollingStep::Settling { .. }, _) => "ended before it had settled",
            (_, ReadyAfter::Message) => "ended before it served and had sent the message \"ready\"",
            _ => "ended before it served",
        };
        self.stop_rolling(format!("worker {worker} {how}"), now_ns);
    }

    /// A worker that was told to leave has ended.
    pub(super) fn predecessor_ended(&mut self, worker: WorkerId, now_ns: u64) {
        if matches!(self.step(), RollingStep::Leaving { old } if old == worker) {
            self.set_step(RollingStep::Idle);
            self.roll_on(now_ns);
        }
    }

    /// A successor whose slot was removed is not waited for. Its end does not affect the reload.
    pub(super) fn forget_slots_from(&mut self, count: u16, now_ns: u64) {
        let Some((slot, _, successor)) = self.step().pair() else { return };
        if slot < count {
            return;
        }
        self.set_step(RollingStep::Idle);
        if let Some(successor) = successor {
            self.leave(successor, now_ns);
        }
        self.roll_on(now_ns);
    }

    /// The next deadline of the reload.
    pub(super) fn rolling_deadline_ns(&self) -> Option<u64> {
        match self.step() {
            RollingStep::Settling { successor, .. } if self.goes(successor) => None,
            RollingStep::Starting { successor: Some(_), until_ns, .. }
            | RollingStep::Settling { until_ns, .. } => Some(until_ns),
            _ => None,
        }
    }

    pub(super) fn on_rolling_time(&mut self, now_ns: u64) {
        match self.step() {
            RollingStep::Starting { slot, old, successor: Some(successor), until_ns }
                if until_ns <= now_ns =>
            {
                // Its end stops the reload.
                let (successor_, until_ns) = (Some(successor), u64::MAX);
                self.set_step(RollingStep::Starting { slot, old, successor: successor_, until_ns });
                let late = self.lateness(old, successor);
                self.kill(successor, format!("it {late}"));
                if let Some(rolling) = &mut self.rolling {
                    rolling.late = Some(late);
                }
            }
            RollingStep::Settling { .. } => {
                self.look_at_rolling(now_ns);
                self.settle(now_ns);
            }
            _ => {}
        }
    }
}
