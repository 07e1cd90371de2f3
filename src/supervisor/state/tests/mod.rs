//! A world for the decisions: workers that do what a test says, and a simulated clock.

mod decisions;
mod properties;
mod ready;
mod replacing;

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::AddressKind;

pub(super) const MS: u64 = 1_000_000;
const GRACE: Duration = Duration::from_secs(10);

/// The world that the decisions act on.
pub(super) struct World {
    pub(super) state: State,
    pub(super) now_ns: u64,
    next_id: u32,
    /// The predecessors of started workers.
    pub(super) predecessors: BTreeMap<WorkerId, WorkerId>,
    /// No worker can be started.
    pub(super) program_is_away: bool,
    /// Workers started per turn to fill slots.
    pub(super) starts_a_turn: usize,
    pub(super) events: Vec<SupervisorEvent>,
    pub(super) finished: Vec<(Ticket, Option<GoalRefusal>)>,
    pub(super) disconnected: BTreeSet<WorkerId>,
    pub(super) killed: BTreeSet<WorkerId>,
    pub(super) opened: bool,
    pub(super) everyone_was_disconnected: bool,
    next_ticket: u64,
}

pub(super) fn rules() -> Rules {
    Rules {
        restart: RestartPolicy::default(),
        start_limit_ns: 60_000 * MS,
        settle_ns: 2_000 * MS,
        ready_after: ReadyAfter::Listening,
        grace: GRACE,
        drain_delay: Duration::ZERO,
        hang_kill_ns: None,
        held: 0,
        fatal_codes: vec![2, 3],
    }
}

pub(super) fn name(port: u16) -> Name {
    let address = format!("127.0.0.1:{port}");
    Name { kind: AddressKind::V4, address, ephemeral: port >= 32_768 }
}

pub(super) fn id(number: u32) -> WorkerId {
    WorkerId::new(number)
}

impl World {
    /// A world with this many starting workers.
    pub(super) fn new(rules: Rules, workers: u16) -> Self {
        let mut world = Self {
            state: State::new(rules, workers, 0),
            now_ns: 0,
            next_id: 1,
            predecessors: BTreeMap::new(),
            program_is_away: false,
            starts_a_turn: usize::MAX,
            events: Vec::new(),
            finished: Vec::new(),
            disconnected: BTreeSet::new(),
            killed: BTreeSet::new(),
            opened: false,
            everyone_was_disconnected: false,
            next_ticket: 0,
        };
        world.act();
        world
    }

    /// A world with this many workers that serve port 80.
    pub(super) fn serving(rules: Rules, workers: u16) -> Self {
        let mut world = Self::new(rules, workers);
        (1..=u32::from(workers)).for_each(|number| world.serves(number, 80));
        assert!(world.opened);
        world
    }

    /// Carries out the decisions.
    pub(super) fn act(&mut self) {
        let mut starts_left = self.starts_a_turn;
        let mut next = |state: &mut State| {
            state.next_action().or_else(|| {
                starts_left = starts_left.checked_sub(1)?;
                state.next_start()
            })
        };
        while let Some(action) = next(&mut self.state) {
            match action {
                Action::Spawn { slot, role, .. } if self.program_is_away => {
                    self.state.on_spawn_failed(slot, role, "it is away", self.now_ns);
                }
                Action::Spawn { slot, role, predecessor } => {
                    let worker = WorkerId::new(self.next_id);
                    self.next_id += 1;
                    self.predecessors.extend(predecessor.map(|old| (worker, old)));
                    self.state.on_spawned(slot, role, worker, self.now_ns);
                }
                Action::Disconnect { worker } => {
                    assert!(self.disconnected.insert(worker), "it is told once");
                }
                Action::DisconnectAll { .. } => self.everyone_was_disconnected = true,
                Action::Kill { worker } => assert!(self.killed.insert(worker), "it is killed once"),
                Action::Open => self.opened = true,
                Action::Shed { .. } => {}
                Action::Emit(event) => self.events.push(event),
                Action::Finish { ticket, refusal } => self.finished.push((ticket, refusal)),
            }
        }
    }

    pub(super) fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    /// The outcome of the request with this ticket, if it has ended.
    pub(super) fn outcome(&self, ticket: Ticket) -> Option<Option<GoalRefusal>> {
        let found = self.finished.iter().find(|(finished, _)| *finished == ticket);
        found.map(|(_, refusal)| refusal.clone())
    }

    pub(super) fn goes_online(&mut self, number: u32) {
        self.state.on_online(id(number), self.now_ns);
        self.act();
    }

    pub(super) fn serves(&mut self, number: u32, port: u16) {
        self.state.on_online(id(number), self.now_ns);
        self.state.on_listening(id(number), name(port), self.now_ns);
        self.act();
    }

    pub(super) fn says_ready(&mut self, number: u32) {
        self.state.on_ready(id(number), self.now_ns);
        self.act();
    }

    pub(super) fn closes(&mut self, number: u32, port: u16) {
        self.state.on_closed(id(number), &name(port), self.now_ns);
        self.act();
    }

    pub(super) fn leaves(&mut self, number: u32) {
        self.state.on_leaving(id(number), true, self.now_ns);
        self.act();
    }

    pub(super) fn ends(&mut self, number: u32, ending: Ending) {
        self.state.on_exit(id(number), ending, true, self.now_ns);
        self.act();
    }

    pub(super) fn crashes(&mut self, number: u32) {
        self.ends(number, Ending::Signal(11));
    }

    pub(super) fn reloads(&mut self) {
        self.state.reload(None, self.now_ns);
        self.act();
    }

    /// Lets time pass, and acts on every deadline.
    pub(super) fn pass(&mut self, time_ms: u64) {
        let until_ns = self.now_ns + time_ms * MS;
        while let Some(next_ns) = self.state.next_deadline_ns(self.now_ns) {
            if next_ns > until_ns {
                break;
            }
            self.now_ns = self.now_ns.max(next_ns);
            self.state.on_time(self.now_ns);
            self.act();
        }
        self.now_ns = until_ns;
        self.state.on_time(self.now_ns);
        self.act();
    }

    /// The workers that have slots, by their numbers.
    pub(super) fn currents(&self) -> Vec<Option<u32>> {
        let of = |slot: &Slot| match slot.occupancy {
            Occupancy::Current(worker) => Some(worker.get()),
            _ => None,
        };
        self.state.slots.iter().map(of).collect()
    }

    pub(super) fn alive(&self) -> Vec<u32> {
        self.state.children.keys().map(|worker| worker.get()).collect()
    }

    pub(super) fn count(&self, is: impl Fn(&SupervisorEvent) -> bool) -> usize {
        self.events.iter().filter(|event| is(event)).count()
    }

    pub(super) fn reloaded(&self) -> usize {
        self.count(|event| matches!(event, SupervisorEvent::Reloaded))
    }

    pub(super) fn stopped(&self) -> usize {
        self.count(|event| matches!(event, SupervisorEvent::ReloadStopped { .. }))
    }

    /// Whether a reload has stopped for a reason with these words.
    pub(super) fn stopped_with(&self, words: &str) -> bool {
        self.count(|event| match event {
            SupervisorEvent::ReloadStopped { reason } => reason.contains(words),
            _ => false,
        }) > 0
    }

    pub(super) fn given_up(&self) -> usize {
        self.count(|event| matches!(event, SupervisorEvent::GaveUp { .. }))
    }
}
