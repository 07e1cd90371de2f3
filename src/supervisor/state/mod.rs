//! The decisions of a supervisor. Pure: events, requests and the time go in, actions come out.
//!
//! Owns slots, their workers and the stage of the run. Starts no process, reads no clock and waits
//! for nothing: the loop above does, and tests simulate it.

mod child;
mod goals;
mod refill;
mod rolling;
mod scale;
mod shutdown;
mod start;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::ReadyAfter;
use super::event::SupervisorEvent;
use super::restart::{Budget, Decision, Life, RestartPolicy};
use crate::{Ending, WorkerId};
pub(super) use child::{Child, Name, Names, Role};
use goals::Goal;
pub(super) use goals::{GoalRefusal, Ticket};
use refill::Start;
use rolling::Rolling;

/// How long after its grace period a worker that does not end is left alone.
const KILL_SLACK_NS: u64 = 250_000_000;
/// How long a worker may live without its channel before its slot is refilled.
const LOST_NS: u64 = 500_000_000;

/// The rules of the decisions.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) restart: RestartPolicy,
    /// How long workers may take until they serve, at the start and as successors.
    pub(super) start_limit_ns: u64,
    /// How long a successor serves before its predecessor leaves.
    pub(super) settle_ns: u64,
    /// When a worker is ready.
    pub(super) ready_after: ReadyAfter,
    /// The grace period of a leaving worker.
    pub(super) grace: Duration,
    /// How long serving continues after a signal to end.
    pub(super) drain_delay: Duration,
    /// A worker that hangs for this long is killed.
    pub(super) hang_kill_ns: Option<u64>,
    /// The number of held addresses, which each worker serves from the start.
    pub(super) held: usize,
    /// Exit codes that end the start at once.
    pub(super) fatal_codes: Vec<i32>,
}

/// An action for the loop.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a few exist, and for a moment")]
pub(super) enum Action {
    /// Start a worker, beside the predecessor, if there is one.
    Spawn { slot: u16, role: Role, predecessor: Option<WorkerId> },
    /// Let a worker leave within the grace period.
    Disconnect { worker: WorkerId },
    /// Let every worker leave within this time, and close everything.
    DisconnectAll { grace: Duration },
    /// Kill a worker.
    Kill { worker: WorkerId },
    /// Begin to accept.
    Open,
    /// Close the sockets of slots that stay empty, except this many.
    Shed { coming: usize },
    /// Emit an event.
    Emit(SupervisorEvent),
    /// A request has ended.
    Finish { ticket: Ticket, refusal: Option<GoalRefusal> },
}

/// The stage of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunStage {
    /// The first workers are starting.
    Starting {
        began_ns: u64,
        until_ns: u64,
        /// Once one serves, the deadline for the others.
        patience_ns: Option<u64>,
    },
    /// Connections are accepted.
    Serving,
    /// Workers finish their connections.
    Draining { since_ns: u64, cut_ns: u64 },
    /// Every worker has been killed.
    Killing,
}

/// The run will end, and keeps serving until then.
#[derive(Debug)]
struct DelayedStop {
    reason: String,
    since_ns: u64,
    at_ns: u64,
}

/// Why a run cannot continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Workers did not serve within the start limit.
    StartTimeout,
    /// A worker ended before it served, as did those before it; or its code says that a restart
    /// cannot help.
    StartFailed { worker: WorkerId, ending: Ending, fatal: bool },
    /// No worker is left, and none will be started.
    NoWorkersLeft,
}

/// A place for one worker and its successors. Its number stays the same.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) occupancy: Occupancy,
    budget: Budget,
    /// Workers that ended here before the run had begun to serve.
    early_ends: u32,
    /// Workers started here after the first one.
    pub(super) restarts: u64,
    was_filled: bool,
    /// The addresses of its last worker.
    names: Names,
    /// Its last worker, which leaves and may still run.
    leaver: Option<WorkerId>,
    /// Its workers serve nothing, as far as known.
    silent: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Occupancy {
    /// Empty for good.
    #[default]
    Empty,
    /// Empty until the next reload.
    GivenUp,
    /// Empty until this time.
    Waiting { at_ns: u64 },
    /// A worker is being started.
    Spawning,
    /// A worker.
    Current(WorkerId),
}

/// The state.
#[derive(Debug)]
pub(super) struct State {
    pub(super) rules: Rules,
    pub(super) stage: RunStage,
    delayed_stop: Option<DelayedStop>,
    pub(super) slots: Vec<Slot>,
    pub(super) children: BTreeMap<WorkerId, Child>,
    rolling: Option<Rolling>,
    /// A reload that follows the present one, and its callers.
    queued_reload: Option<Vec<Ticket>>,
    goals: Vec<(Ticket, Goal)>,
    actions: VecDeque<Action>,
    /// Starts for slots that are being filled.
    starts: VecDeque<Start>,
    failure: Option<Failure>,
    /// The slow start was reported.
    late_told: bool,
    /// A worker has failed and was not replaced.
    lost_worker: bool,
    /// A slot has stayed empty, so there are fewer workers than sockets.
    shrunk: bool,
    /// The published state has changed.
    changed: bool,
}

impl State {
    /// Starts with this many workers to spawn.
    pub(super) fn new(rules: Rules, workers: u16, now_ns: u64) -> Self {
        let until_ns = now_ns.saturating_add(rules.start_limit_ns);
        let mut state = Self {
            rules,
            stage: RunStage::Starting { began_ns: now_ns, until_ns, patience_ns: None },
            delayed_stop: None,
            slots: Vec::new(),
            children: BTreeMap::new(),
            rolling: None,
            queued_reload: None,
            goals: Vec::new(),
            actions: VecDeque::new(),
            starts: VecDeque::new(),
            failure: None,
            late_told: false,
            lost_worker: false,
            shrunk: false,
            changed: true,
        };
        state.add_slots(workers);
        state
    }

    /// The next action, if there is one that does not start a worker for a slot. Its outcome is
    /// reported before the next call.
    pub(super) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Whether the published state has changed since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub(super) fn is_reloading(&self) -> bool {
        self.rolling.is_some() || self.queued_reload.is_some()
    }

    /// Why the run could not continue, if it failed.
    pub(super) fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    fn act(&mut self, action: Action) {
        self.changed = true;
        self.actions.push_back(action);
    }

    fn emit(&mut self, event: SupervisorEvent) {
        self.act(Action::Emit(event));
    }

    fn slot_mut(&mut self, slot: u16) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(slot))
    }

    fn is_current(&self, worker: WorkerId) -> bool {
        self.children.get(&worker).is_some_and(|child| child.role == Role::Current)
    }

    /// The worker in a slot.
    fn current(&self, slot: u16) -> Option<WorkerId> {
        match self.slots.get(usize::from(slot))?.occupancy {
            Occupancy::Current(worker) => Some(worker),
            _ => None,
        }
    }

    /// A worker was started.
    pub(super) fn on_spawned(&mut self, slot: u16, role: Role, worker: WorkerId, now_ns: u64) {
        self.changed = true;
        let Some(place) = self.slot_mut(slot) else { return };
        if std::mem::replace(&mut place.was_filled, true) {
            place.restarts += 1;
        }
        let wanted = place.names.clone();
        if role == Role::Current {
            place.occupancy = Occupancy::Current(worker);
        }
        let ready = self.rules.ready_after == ReadyAfter::Listening;
        self.children.insert(worker, Child::new(slot, role, wanted, ready, now_ns));
        if role == Role::Successor {
            self.successor_spawned(worker);
        }
    }

    /// A worker could not be started. Returns when it is tried again. A failure of the very first
    /// start is not handled here: it ends the run.
    pub(super) fn on_spawn_failed(
        &mut self,
        slot: u16,
        role: Role,
        reason: &str,
        now_ns: u64,
    ) -> Option<Duration> {
        if role == Role::Successor {
            self.stop_rolling(reason.to_owned(), now_ns);
            return None;
        }
        let others_live = !self.children.is_empty();
        let policy = &self.rules.restart;
        let place = self.slots.get_mut(usize::from(slot))?;
        match place.budget.after_failed_spawn(policy, others_live, now_ns) {
            Decision::After { delay_ns } => {
                place.occupancy = Occupancy::Waiting { at_ns: now_ns.saturating_add(delay_ns) };
                self.changed = true;
                Some(Duration::from_nanos(delay_ns))
            }
            Decision::Leave | Decision::GiveUp => {
                self.give_up(slot, None, "no worker can be started".into(), now_ns);
                None
            }
        }
    }

    /// A worker has reported that it runs.
    pub(super) fn on_online(&mut self, worker: WorkerId, now_ns: u64) {
        if let Some(child) = self.children.get_mut(&worker) {
            child.online = true;
            self.look(worker, now_ns);
        }
    }

    /// A worker serves an address.
    pub(super) fn on_listening(&mut self, worker: WorkerId, name: Name, now_ns: u64) {
        if let Some(child) = self.children.get_mut(&worker) {
            child.online = true;
            child.serving.insert(name);
            self.look(worker, now_ns);
        }
    }

    /// A worker no longer serves an address.
    pub(super) fn on_closed(&mut self, worker: WorkerId, name: &Name, now_ns: u64) {
        if let Some(child) = self.children.get_mut(&worker) {
            child.serving.remove(name);
            self.look(worker, now_ns);
        }
    }

    /// The addresses of a worker have changed.
    fn look(&mut self, worker: WorkerId, now_ns: u64) {
        self.changed = true;
        if let Some(child) = self.children.get_mut(&worker)
            && child.ready
            && !child.serving.is_empty()
        {
            // Closing an address later does not shorten the worker's life.
            child.serving_since_ns.get_or_insert(now_ns);
        }
        match self.stage {
            RunStage::Starting { .. } => self.look_at_start(now_ns),
            RunStage::Serving => {
                self.look_at_rolling(now_ns);
                self.shed();
                self.look_at_goals();
            }
            RunStage::Draining { .. } | RunStage::Killing => {}
        }
    }

    /// Whether a worker serves all it should.
    pub(super) fn is_ready(&self, worker: WorkerId) -> bool {
        let Some(child) = self.children.get(&worker) else { return false };
        if child.role == Role::Successor {
            return self.is_ready_to_succeed(worker, child);
        }
        child.ready && child.serving.len() >= self.rules.held.max(1)
    }

    /// How long a worker has served; how long it has lived, if those of its slot serve nothing.
    fn served_ns(&self, child: &Child, now_ns: u64) -> Option<u64> {
        let silent = self.slots.get(usize::from(child.slot)).is_some_and(|slot| slot.silent);
        let since_ns = child.serving_since_ns.or_else(|| silent.then_some(child.born_ns));
        since_ns.map(|since_ns| now_ns.saturating_sub(since_ns))
    }

    /// A worker has announced that it leaves, and gets no more connections: another one takes its
    /// slot, without waiting for its end.
    pub(super) fn on_leaving(&mut self, worker: WorkerId, was_used: bool, now_ns: u64) {
        self.changed = true;
        let cut_ns = self.cut_ns(now_ns);
        let Some(child) = self.children.get_mut(&worker) else { return };
        child.cut_ns.get_or_insert(cut_ns);
        if self.stage != RunStage::Serving || child.role == Role::Leaving {
            return;
        }
        self.give_up_worker(worker, true, was_used, now_ns);
    }

    /// A worker gets no more connections: it loses its slot, and is not a successor.
    pub(super) fn give_up_worker(
        &mut self,
        worker: WorkerId,
        in_order: bool,
        was_used: bool,
        now_ns: u64,
    ) {
        if let Some(child) = self.children.get_mut(&worker)
            && child.role == Role::Successor
        {
            child.role = Role::Leaving;
        }
        self.give_slot_up(worker, in_order, was_used, now_ns);
        self.successor_ended(worker, now_ns);
    }

    /// A worker gets no more connections, and loses its slot without waiting for its end.
    fn give_slot_up(&mut self, worker: WorkerId, in_order: bool, was_used: bool, now_ns: u64) {
        let Some(child) = self.children.get(&worker).filter(|one| one.role == Role::Current) else {
            return;
        };
        let (slot, served_ns) = (child.slot, self.served_ns(child, now_ns));
        self.remember_names(worker);
        if let Some(child) = self.children.get_mut(&worker) {
            child.role = Role::Leaving;
        }
        if let Some(place) = self.slot_mut(slot) {
            place.leaver = Some(worker);
        }
        if !self.is_rolled(worker, now_ns) {
            self.replace(slot, worker, Life { served_ns, in_order, was_used }, now_ns);
        }
    }

    /// A worker's channel has ended. It gets no more connections, so it has as long to end as one
    /// that was told to leave.
    pub(super) fn on_disconnect(
        &mut self,
        worker: WorkerId,
        in_order: bool,
        was_used: bool,
        now_ns: u64,
    ) {
        if in_order {
            return self.on_leaving(worker, was_used, now_ns);
        }
        self.changed = true;
        let cut_ns = self.cut_ns(now_ns);
        if let Some(child) = self.children.get_mut(&worker) {
            child.cut_ns.get_or_insert(cut_ns);
            // Most have crashed, and their end is reported in a moment.
            child.lost_ns = Some(now_ns.saturating_add(LOST_NS));
        }
    }

    fn cut_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_add(super::restart::ns(self.rules.grace)).saturating_add(KILL_SLACK_NS)
    }

    /// A worker's process has ended.
    pub(super) fn on_exit(
        &mut self,
        worker: WorkerId,
        ending: Ending,
        was_used: bool,
        now_ns: u64,
    ) {
        self.changed = true;
        let ready = self.is_ready(worker);
        if self.is_current(worker) {
            self.remember_names(worker);
        }
        let Some(child) = self.children.remove(&worker) else { return };
        let slot = child.slot;
        if self.current(slot) == Some(worker)
            && let Some(place) = self.slot_mut(slot)
        {
            place.occupancy = Occupancy::Empty;
        }
        let life = Life::ended(ending, self.served_ns(&child, now_ns), was_used);
        match (self.stage, child.role) {
            (RunStage::Starting { .. }, Role::Current) => {
                match self.early_end(slot, worker, ending, ready) {
                    Some(failure) => self.fail(failure),
                    None => self.replace(slot, worker, life, now_ns),
                }
            }
            (RunStage::Starting { .. }, _) => {}
            (RunStage::Serving, Role::Leaving) => self.predecessor_ended(worker, now_ns),
            (RunStage::Serving, Role::Successor) => self.successor_ended(worker, now_ns),
            // A socket may have been kept for it.
            (RunStage::Serving, Role::Current) if self.is_rolled(worker, now_ns) => self.shed(),
            (RunStage::Serving, Role::Current) => {
                self.replace(slot, worker, life, now_ns);
                self.successor_ended(worker, now_ns);
            }
            (RunStage::Draining { .. } | RunStage::Killing, _) => {}
        }
        self.look_at_goals();
    }

    /// The addresses of a worker are those that the next one in its slot should serve.
    fn remember_names(&mut self, worker: WorkerId) {
        let Some(child) = self.children.get(&worker) else { return };
        let names = child.wanted_of_successor();
        if let Some(place) = self.slots.get_mut(usize::from(child.slot)) {
            place.names = names;
        }
    }

    /// A worker hangs.
    pub(super) fn on_hung(&mut self, worker: WorkerId, now_ns: u64) {
        if let Some(child) = self.children.get_mut(&worker) {
            child.hung_since_ns = Some(now_ns);
            self.changed = true;
        }
    }

    /// A worker responds again.
    pub(super) fn on_recovered(&mut self, worker: WorkerId) {
        if let Some(child) = self.children.get_mut(&worker) {
            child.hung_since_ns = None;
            self.changed = true;
        }
    }
}
