//! What a supervisor decides. Pure: events, requests and the time come in, actions come out.
//!
//! Owns slots, the workers in them and the stage of the run. Starts no process, reads no clock and
//! waits for nothing: the loop above does that, and tests play it.

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
pub(super) use goals::{Refusal, Ticket};
use rolling::Rolling;

/// How long after its grace period a worker that does not end is left alone.
const KILL_SLACK_NS: u64 = 250_000_000;
/// How long a worker may live on without its channel before another one is started for its slot.
const LOST_NS: u64 = 500_000_000;

/// How a supervisor decides.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) restart: RestartPolicy,
    /// How long workers may take until they serve, at the start and as successors.
    pub(super) start_limit_ns: u64,
    /// How long a successor serves before its predecessor leaves.
    pub(super) settle_ns: u64,
    /// What makes a worker ready.
    pub(super) ready_after: ReadyAfter,
    /// How long a worker that leaves may take.
    pub(super) grace: Duration,
    /// How long serving goes on once a signal wants the end.
    pub(super) drain_delay: Duration,
    /// A worker that hangs for this long is killed.
    pub(super) hang_kill_ns: Option<u64>,
    /// Addresses that each worker serves from the start: those that are held for them.
    pub(super) held: usize,
    /// Exit codes that end the start at once.
    pub(super) fatal_codes: Vec<i32>,
}

/// What the loop has to do.
#[derive(Debug)]
pub(super) enum Action {
    /// Start a worker, in place of another one that still lives, if there is one.
    Spawn { slot: u16, role: Role, predecessor: Option<WorkerId> },
    /// Let a worker leave within the grace period.
    Disconnect { worker: WorkerId },
    /// Let every worker leave within this time, and close everything.
    DisconnectAll { grace: Duration },
    /// End a worker by force.
    Kill { worker: WorkerId },
    /// Begin to accept.
    Open,
    /// Close the sockets of slots that stay empty, but for this many.
    Shed { coming: usize },
    /// Tell of something.
    Emit(SupervisorEvent),
    /// Something that was asked for has come to its end.
    Finish { ticket: Ticket, refusal: Option<Refusal> },
}

/// How far the run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The first workers are on their way.
    Starting {
        began_ns: u64,
        until_ns: u64,
        /// The others are not waited for any longer than this, once one serves.
        patience_ns: Option<u64>,
    },
    /// Connections are accepted.
    Serving,
    /// Workers finish what they have.
    Draining { since_ns: u64, cut_ns: u64 },
    /// Every worker has been killed.
    Killing,
}

/// The run is to end, and goes on serving until then.
#[derive(Debug)]
struct DelayedStop {
    reason: String,
    since_ns: u64,
    at_ns: u64,
}

/// Why a run cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Workers did not serve within the start limit.
    StartTimeout,
    /// A worker ended before it served, and those before it did, too; or its code says that the
    /// next one would.
    StartFailed { worker: WorkerId, ending: Ending, fatal: bool },
    /// No worker is left, and none will be started.
    NoWorkersLeft,
}

/// A place for one worker, and for its successors after it. Its number stays the same.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) occupancy: Occupancy,
    budget: Budget,
    /// Workers that ended here before the run had begun to serve.
    early_ends: u32,
    /// Workers that were started here after the first one.
    pub(super) restarts: u64,
    was_filled: bool,
    /// What its last worker served.
    names: Names,
    /// Its last worker, which leaves and may still live.
    leaver: Option<WorkerId>,
    /// Its workers serve nothing, as far as that is known.
    silent: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Occupancy {
    /// No worker, and none will come.
    #[default]
    Empty,
    /// No worker, and none will come before the next reload.
    GivenUp,
    /// No worker until this moment.
    Waiting { at_ns: u64 },
    /// One is being started.
    Spawning,
    /// A worker.
    Current(WorkerId),
}

/// The state.
#[derive(Debug)]
pub(super) struct State {
    pub(super) rules: Rules,
    pub(super) stage: Stage,
    delayed_stop: Option<DelayedStop>,
    pub(super) slots: Vec<Slot>,
    pub(super) children: BTreeMap<WorkerId, Child>,
    rolling: Option<Rolling>,
    /// A reload that follows what is under way, and who waits for it.
    queued_reload: Option<Vec<Ticket>>,
    goals: Vec<(Ticket, Goal)>,
    actions: VecDeque<Action>,
    failure: Option<Failure>,
    /// It has been told that the start takes long.
    late_told: bool,
    /// A worker has ended with an error and stayed dead.
    lost_worker: bool,
    /// A slot has stayed empty, so there are fewer workers than sockets.
    shrunk: bool,
    /// Something has changed that others can look at.
    changed: bool,
}

impl State {
    /// Begins with this many workers to start.
    pub(super) fn new(rules: Rules, workers: u16, now_ns: u64) -> Self {
        let until_ns = now_ns.saturating_add(rules.start_limit_ns);
        let mut state = Self {
            rules,
            stage: Stage::Starting { began_ns: now_ns, until_ns, patience_ns: None },
            delayed_stop: None,
            slots: Vec::new(),
            children: BTreeMap::new(),
            rolling: None,
            queued_reload: None,
            goals: Vec::new(),
            actions: VecDeque::new(),
            failure: None,
            late_told: false,
            lost_worker: false,
            shrunk: false,
            changed: true,
        };
        state.add_slots(workers);
        state
    }

    /// The next thing to do. Its outcome is told before the next is asked for.
    pub(super) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Whether something has changed since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub(super) fn is_reloading(&self) -> bool {
        self.rolling.is_some() || self.queued_reload.is_some()
    }

    /// Why the run could not go on, if it could not.
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

    /// A worker could not be started, for this reason. Tells when it is tried again. The first
    /// start of all is not for here: it ends the run.
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

    /// A worker runs and has said so.
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

    /// A worker does not serve an address any more.
    pub(super) fn on_closed(&mut self, worker: WorkerId, name: &Name, now_ns: u64) {
        if let Some(child) = self.children.get_mut(&worker) {
            child.serving.remove(name);
            self.look(worker, now_ns);
        }
    }

    /// What a worker serves has changed.
    fn look(&mut self, worker: WorkerId, now_ns: u64) {
        self.changed = true;
        if let Some(child) = self.children.get_mut(&worker)
            && child.ready
            && !child.serving.is_empty()
        {
            // What a worker closes later does not make its life shorter.
            child.serving_since_ns.get_or_insert(now_ns);
        }
        match self.stage {
            Stage::Starting { .. } => self.look_at_start(now_ns),
            Stage::Serving => {
                self.look_at_rolling(now_ns);
                self.shed();
                self.look_at_goals();
            }
            Stage::Draining { .. } | Stage::Killing => {}
        }
    }

    /// Whether a worker serves what it should.
    pub(super) fn is_ready(&self, worker: WorkerId) -> bool {
        let Some(child) = self.children.get(&worker) else { return false };
        if child.role == Role::Successor {
            return self.is_ready_to_succeed(worker, child);
        }
        child.ready && child.serving.len() >= self.rules.held.max(1)
    }

    /// How long a worker has served, or lived, if those of its slot serve nothing.
    fn served_ns(&self, child: &Child, now_ns: u64) -> Option<u64> {
        let silent = self.slots.get(usize::from(child.slot)).is_some_and(|slot| slot.silent);
        let since_ns = child.serving_since_ns.or_else(|| silent.then_some(child.born_ns));
        since_ns.map(|since_ns| now_ns.saturating_sub(since_ns))
    }

    /// A worker has said that it leaves, and gets nothing more: another one takes its slot, without
    /// waiting for its end.
    pub(super) fn on_leaving(&mut self, worker: WorkerId, was_used: bool, now_ns: u64) {
        self.changed = true;
        let cut_ns = self.cut_ns(now_ns);
        let Some(child) = self.children.get_mut(&worker) else { return };
        child.cut_ns.get_or_insert(cut_ns);
        if self.stage != Stage::Serving || child.role == Role::Leaving {
            return;
        }
        self.give_up_worker(worker, true, was_used, now_ns);
    }

    /// A worker gets nothing more: it has no slot from now on, and is no successor.
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

    /// A worker gets nothing more, and its slot is another's, without waiting for its end.
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

    /// A worker's channel has ended. It gets nothing more, so it has as long to end as one that was
    /// told to leave.
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
            // Most have crashed, and their end is told in a moment.
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
            (Stage::Starting { .. }, Role::Current) => {
                match self.early_end(slot, worker, ending, ready) {
                    Some(failure) => self.fail(failure),
                    None => self.replace(slot, worker, life, now_ns),
                }
            }
            (Stage::Starting { .. }, _) => {}
            (Stage::Serving, Role::Leaving) => self.predecessor_ended(worker, now_ns),
            (Stage::Serving, Role::Successor) => self.successor_ended(worker, now_ns),
            // It may have been one for which a socket was kept.
            (Stage::Serving, Role::Current) if self.is_rolled(worker, now_ns) => self.shed(),
            (Stage::Serving, Role::Current) => {
                self.replace(slot, worker, life, now_ns);
                self.successor_ended(worker, now_ns);
            }
            (Stage::Draining { .. } | Stage::Killing, _) => {}
        }
        self.look_at_goals();
    }

    /// What a worker serves is what the next one in its slot should.
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

    /// A worker answers again.
    pub(super) fn on_recovered(&mut self, worker: WorkerId) {
        if let Some(child) = self.children.get_mut(&worker) {
            child.hung_since_ns = None;
            self.changed = true;
        }
    }

    /// Ends a worker by force. It is replaced like others that end.
    pub(super) fn kill(&mut self, worker: WorkerId, reason: String) {
        let Some(child) = self.children.get_mut(&worker) else { return };
        if !std::mem::replace(&mut child.killed, true) {
            self.act(Action::Kill { worker });
            self.emit(SupervisorEvent::Killed { workers: vec![worker], reason });
        }
    }
}
