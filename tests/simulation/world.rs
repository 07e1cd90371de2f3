//! The simulated world: time, the kernel's backlogs and channels, and the control plane.
//!
//! Owns the agenda. Time jumps from event to event, and ties keep the order of their insertion, so
//! that a seed always gives the same run. The reactions of primary and workers are in `front` and
//! `worker`, the invariants in `checks`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use clusterlb_harness::work::Sampler;
use clusterlb_protocol::scoreboard::Wake;
use clusterlb_schedule::Roster;
use fastrand::Rng;

use super::front::{Front, Link, Notice};
use super::plan::{FOR_GOOD, Fault, MICROSECOND, MILLISECOND, Plan, START_NS};
use super::worker::Worker;

/// Number of a connection, in order of arrival.
pub(crate) type Connection = usize;

/// The location of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Not arrived, or in the kernel's backlog.
    Outside,
    Queue,
    UnderWay,
    Channel,
    Worker,
    Finished,
    /// Its worker was killed after claiming it.
    Aborted,
}

/// The history of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) place: Place,
    pub(crate) listener: u16,
    pub(crate) needs_ns: u64,
    pub(crate) held: bool,
    pub(crate) came_ns: u64,
    pub(crate) finished_ns: u64,
    /// Its position in the order of assignment, the last time it was assigned.
    pub(crate) given: u64,
    /// Number of times that it came back.
    pub(crate) returns: u32,
    /// It has waited behind other work of its worker.
    pub(crate) has_waited: bool,
    /// The step at which the checks last visited it.
    pub(crate) met: u64,
}

/// An event. `life` distinguishes a worker from its successor in the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    Arrive(Connection),
    /// A turn of the primary's loop.
    Primary,
    /// A worker's turn begins.
    Begin {
        slot: usize,
        life: u32,
    },
    /// A worker has served the current request.
    Served {
        slot: usize,
        life: u32,
    },
    /// A worker's turn ends.
    End {
        slot: usize,
        life: u32,
    },
    /// A connection that only waited is due to finish.
    Ripe {
        slot: usize,
        life: u32,
        connection: Connection,
    },
    Strike(usize),
    Continue {
        slot: usize,
        life: u32,
    },
    Reopen {
        slot: usize,
        life: u32,
    },
    /// The control plane notices the end of a worker.
    Noticed {
        slot: usize,
    },
    Respawn {
        slot: usize,
    },
}

/// A message; an empty one is a probe.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    pub(crate) connections: Vec<Connection>,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) random: Rng,
    pub(crate) now_ns: u64,
    pub(crate) step: u64,
    sequence: u64,
    agenda: BinaryHeap<Reverse<(u64, u64, Event)>>,
    pub(crate) records: Vec<Record>,
    pub(crate) front: Front,
    pub(crate) links: Vec<Option<Link>>,
    pub(crate) workers: Vec<Worker>,
    /// The kernel's backlog of each listener.
    pub(crate) backlog: Vec<VecDeque<Connection>>,
    pub(crate) finished: usize,
    pub(crate) aborted: usize,
    /// State recorded by a check for the end of the run.
    pub(crate) stopped: Option<Stopped>,
}

/// The record of a worker that was stopped permanently.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopped {
    pub(crate) slot: usize,
    /// Assigned and unclaimed when it was stopped.
    pub(crate) exposed: usize,
    /// Assigned later.
    pub(crate) later: usize,
    pub(crate) suspected_ns: Option<u64>,
}

impl World {
    pub(crate) fn new(plan: Plan) -> Self {
        let mut random = Rng::with_seed(plan.seed ^ 0x5eed);
        let mut sampler = Sampler::new(plan.service.clone(), plan.service_seed);
        let records = plan.arrivals.iter().map(|at_ns| Record {
            place: Place::Outside,
            listener: random.u16(0..plan.listeners),
            needs_ns: sampler.draw_ns() * u64::from(random.u8(0..100) >= plan.reset_percent),
            held: random.u8(0..100) < plan.held_percent,
            came_ns: *at_ns,
            finished_ns: 0,
            given: 0,
            returns: 0,
            has_waited: false,
            met: 0,
        });
        let records = records.collect();
        let mut world = Self {
            front: Front::new(
                Roster::new(plan.policy, plan.scheduling.clone(), plan.listeners),
                plan.listeners,
            ),
            links: (0..plan.workers).map(|_| None).collect(),
            workers: (0..plan.workers).map(|_| Worker::default()).collect(),
            backlog: (0..plan.listeners).map(|_| VecDeque::new()).collect(),
            records,
            plan,
            random,
            now_ns: START_NS,
            step: 0,
            sequence: 0,
            agenda: BinaryHeap::new(),
            finished: 0,
            aborted: 0,
            stopped: None,
        };
        for connection in 0..world.plan.arrivals.len() {
            world.enter(world.plan.arrivals[connection], Event::Arrive(connection));
        }
        for number in 0..world.plan.strikes.len() {
            world.enter(world.plan.strikes[number].at_ns, Event::Strike(number));
        }
        (0..world.plan.workers).for_each(|slot| world.respawn(slot));
        world
    }

    /// Runs to the end, and checks every invariant after each step.
    pub(crate) fn run(&mut self) {
        let bound = 5_000 + 400 * self.records.len() as u64;
        while let Some(Reverse((at_ns, _, event))) = self.agenda.pop() {
            assert!(at_ns >= self.now_ns, "time runs backwards");
            self.now_ns = at_ns;
            self.step += 1;
            assert!(self.step < bound, "a livelock: {bound} steps and no end");
            self.happen(event);
            self.check();
        }
        self.check_end();
    }

    pub(crate) fn enter(&mut self, at_ns: u64, event: Event) {
        self.sequence += 1;
        self.agenda.push(Reverse((at_ns, self.sequence, event)));
    }

    /// A time shortly after now, as a scheduler might delay a process.
    pub(crate) fn soon(&mut self) -> u64 {
        self.now_ns + self.random.u64(MICROSECOND..=self.plan.latency_ns)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive(connection) => self.arrive(connection),
            Event::Primary => self.primary_turn(),
            Event::Begin { slot, life }
            | Event::Served { slot, life }
            | Event::End { slot, life } => {
                let worker = &mut self.workers[slot];
                if worker.lives(life) && worker.stopped {
                    worker.deferred.push(event);
                } else if worker.lives(life) {
                    match event {
                        Event::Begin { .. } => self.begin(slot),
                        Event::Served { .. } => self.served(slot),
                        _ => self.end(slot),
                    }
                }
            }
            Event::Ripe { slot, life, connection } => {
                if self.workers[slot].lives(life) {
                    self.workers[slot].ripen(connection);
                    self.wake(slot);
                }
            }
            Event::Strike(number) => self.strike(number),
            Event::Continue { slot, life } if self.workers[slot].lives(life) => {
                self.workers[slot].stopped = false;
                for event in std::mem::take(&mut self.workers[slot].deferred) {
                    self.enter(self.now_ns, event);
                }
                self.wake(slot);
            }
            Event::Reopen { slot, life } if self.workers[slot].lives(life) => self.wake(slot),
            Event::Continue { .. } | Event::Reopen { .. } => {}
            Event::Noticed { slot } => self.tell(Notice::Reap(slot)),
            Event::Respawn { slot } => self.respawn(slot),
        }
    }

    fn arrive(&mut self, connection: Connection) {
        let listener = usize::from(self.records[connection].listener);
        self.backlog[listener].push_back(connection);
        self.drain_backlog(listener);
        if std::mem::take(&mut self.front.watched[listener]) {
            self.tell(Notice::Come);
        }
    }

    /// The kernel accepts for the primary while an accept is armed.
    pub(crate) fn drain_backlog(&mut self, listener: usize) {
        while self.front.accepting[listener] {
            let Some(connection) = self.backlog[listener].pop_front() else { break };
            self.tell(Notice::Accepted(connection));
        }
    }

    fn respawn(&mut self, slot: usize) {
        let life = self.workers[slot].life + 1;
        self.workers[slot] = Worker::new(life);
        self.tell(Notice::Attach(slot));
    }

    fn strike(&mut self, number: usize) {
        let (slot, fault) = (self.plan.strikes[number].slot, self.plan.strikes[number].fault);
        let (life, now_ns) = (self.workers[slot].life, self.now_ns);
        if !self.workers[slot].alive {
            return;
        }
        match fault {
            Fault::Kill => self.kill(slot),
            Fault::Stop(for_ns) => {
                self.workers[slot].stopped = true;
                if for_ns == FOR_GOOD {
                    let exposed = self.links[slot].as_ref().map_or(0, Link::unclaimed);
                    let (later, suspected_ns) = (0, None);
                    self.stopped = Some(Stopped { slot, exposed, later, suspected_ns });
                } else {
                    self.enter(now_ns + for_ns, Event::Continue { slot, life });
                }
            }
            Fault::Shut(for_ns) => {
                self.workers[slot].shut_until_ns = now_ns + for_ns;
                self.enter(now_ns + for_ns, Event::Reopen { slot, life });
            }
            Fault::Crowd(for_ns) => self.workers[slot].crowded_until_ns = now_ns + for_ns,
            Fault::Lie => self.workers[slot].lies = true,
            Fault::Retire => {
                self.workers[slot].leaving = true;
                self.tell(Notice::Retire(slot, life));
            }
        }
    }

    /// SIGKILL: its claimed connections are lost, those in its channel are not.
    fn kill(&mut self, slot: usize) {
        for connection in self.workers[slot].die() {
            self.records[connection].place = Place::Aborted;
            self.aborted += 1;
            self.workers[slot].aborted += 1;
        }
        self.reap_soon(slot);
    }

    pub(crate) fn reap_soon(&mut self, slot: usize) {
        let at_ns = self.now_ns + self.random.u64(10 * MICROSECOND..5 * MILLISECOND);
        self.enter(at_ns, Event::Noticed { slot });
    }

    /// Messages have been taken from a channel.
    pub(crate) fn channel_drained(&mut self, slot: usize) {
        let Some(link) = &mut self.links[slot] else { return };
        // The kernel reports a socket writable when at most a quarter of its memory is in use.
        if link.awaits_room && link.channel.len() * 4 <= self.plan.channel_messages {
            link.awaits_room = false;
            let generation = link.generation;
            self.tell(Notice::Room(slot, generation));
        }
    }

    /// Wakes the primary, if the worker was asked to.
    pub(crate) fn ring(&mut self, slot: usize, probed: bool) {
        let wake = self.links[slot].as_ref().map_or(Wake::Never, |link| link.wake);
        if wake == Wake::Always || (wake == Wake::Probe && probed) {
            self.tell(Notice::Woken);
        }
    }
}
