//! The model of a worker: a loop that claims, serves and publishes, like the built-in one
//! (`src/command/server`).

use clusterlb_schedule::Sample;

use super::plan::MILLISECOND;
use super::world::{Connection, Event, Place, World};

#[derive(Debug, Default)]
pub(crate) struct Worker {
    /// Number of this worker among those of its slot, from 1.
    pub(crate) life: u32,
    pub(crate) alive: bool,
    pub(crate) stopped: bool,
    pub(crate) leaving: bool,
    pub(crate) lies: bool,
    pub(crate) shut_until_ns: u64,
    pub(crate) crowded_until_ns: u64,
    /// Events that were due while it was stopped.
    pub(crate) deferred: Vec<Event>,
    /// It is in a turn, or about to begin one.
    busy: bool,
    /// The time at which the current turn began.
    turn_ns: u64,
    /// Requests to serve in sequence; the first is being served.
    work: Vec<Connection>,
    /// Its last request took longer than a millisecond.
    is_slow: bool,
    held: Vec<Connection>,
    ripe: Vec<Connection>,
    claimed: u64,
    pub(crate) finished: u64,
    probes: u64,
    probed: bool,
    pub(crate) aborted: u64,
    /// The published contents of its page.
    pub(crate) page: Sample,
}

impl Worker {
    pub(crate) fn new(life: u32) -> Self {
        Self { life, alive: true, ..Self::default() }
    }

    pub(crate) fn lives(&self, life: u32) -> bool {
        self.alive && self.life == life
    }

    /// All connections claimed and not finished.
    pub(crate) fn unfinished(&self) -> impl Iterator<Item = Connection> {
        self.work.iter().chain(&self.held).chain(&self.ripe).copied()
    }

    pub(crate) fn ripen(&mut self, connection: Connection) {
        let place = self.held.iter().position(|one| *one == connection).expect("it was held");
        self.held.remove(place);
        self.ripe.push(connection);
    }

    pub(crate) fn die(&mut self) -> Vec<Connection> {
        self.alive = false;
        let unfinished = self.unfinished().collect();
        self.work.clear();
        self.held.clear();
        self.ripe.clear();
        unfinished
    }
}

impl World {
    /// Starts a turn if the worker is waiting and has something to do.
    pub(crate) fn wake(&mut self, slot: usize) {
        let worker = &self.workers[slot];
        let arrived = self.links[slot].as_ref().is_some_and(|link| !link.channel.is_empty());
        let takes = self.now_ns >= worker.shut_until_ns;
        let reason = (arrived && takes) || !worker.ripe.is_empty() || self.is_done(slot);
        if worker.alive && !worker.stopped && !worker.busy && reason {
            let (life, at_ns) = (worker.life, self.soon());
            self.workers[slot].busy = true;
            self.enter(at_ns, Event::Begin { slot, life });
        }
    }

    pub(crate) fn begin(&mut self, slot: usize) {
        self.workers[slot].turn_ns = self.now_ns;
        self.workers[slot].page.turn_begun_ns = self.now_ns;
        for connection in std::mem::take(&mut self.workers[slot].ripe) {
            self.finish(slot, connection);
        }
        self.claim(slot);
        self.go_on(slot);
    }

    /// Reads all messages from the channel; after slow work a single one, so that the rest can go
    /// to other workers.
    fn claim(&mut self, slot: usize) {
        if self.now_ns < self.workers[slot].shut_until_ns {
            return;
        }
        let is_slow = self.workers[slot].is_slow;
        let Some(link) = &mut self.links[slot] else { return };
        let most = if is_slow { 1 } else { link.channel.len() };
        let messages: Vec<_> = link.channel.drain(..most.min(link.channel.len())).collect();
        for message in messages {
            let worker = &mut self.workers[slot];
            if message.connections.is_empty() {
                worker.probes += 1;
                worker.probed = true;
                continue;
            }
            worker.claimed += message.connections.len() as u64;
            worker.page.claimed_at_ns = worker.turn_ns;
            for connection in message.connections {
                self.take(slot, connection);
            }
        }
        self.channel_drained(slot);
    }

    fn take(&mut self, slot: usize, connection: Connection) {
        let record = &mut self.records[connection];
        assert_eq!(record.place, Place::Channel, "{connection} was claimed from nowhere");
        record.place = Place::Worker;
        let (held, needs_ns) = (record.held, record.needs_ns);
        let worker = &mut self.workers[slot];
        let life = worker.life;
        if needs_ns == 0 {
            self.finish(slot, connection);
        } else if held {
            worker.held.push(connection);
            let needs_ns = needs_ns * self.plan.slowness[slot];
            self.enter(self.now_ns + needs_ns, Event::Ripe { slot, life, connection });
        } else {
            worker.work.push(connection);
        }
    }

    /// Starts the next request of this turn, or ends it.
    fn go_on(&mut self, slot: usize) {
        let life = self.workers[slot].life;
        match self.workers[slot].work.first() {
            Some(&connection) => {
                let needs_ns = self.records[connection].needs_ns * self.plan.slowness[slot];
                if self.plan.publishes_claims {
                    self.publish(slot);
                }
                let at_ns = self.now_ns + needs_ns;
                self.enter(at_ns, Event::Served { slot, life });
            }
            None => self.enter(self.now_ns + 2_000, Event::End { slot, life }),
        }
    }

    pub(crate) fn served(&mut self, slot: usize) {
        let connection = self.workers[slot].work.remove(0);
        let took_ns = self.records[connection].needs_ns * self.plan.slowness[slot];
        let turn_ns = took_ns + u64::from(self.plan.publishes_claims);
        self.workers[slot].is_slow = turn_ns > MILLISECOND;
        self.finish(slot, connection);
        self.publish(slot);
        let has_work = !self.workers[slot].work.is_empty();
        if self.plan.receives_midway && !(has_work && self.workers[slot].is_slow) {
            self.claim(slot);
        }
        self.go_on(slot);
    }

    fn finish(&mut self, slot: usize, connection: Connection) {
        let record = &mut self.records[connection];
        assert_eq!(record.place, Place::Worker, "{connection} is served twice, or not at all");
        record.place = Place::Finished;
        record.finished_ns = self.now_ns;
        self.workers[slot].finished += 1;
        self.finished += 1;
    }

    pub(crate) fn end(&mut self, slot: usize) {
        let worker = &mut self.workers[slot];
        worker.page.turn_begun_ns = 0;
        worker.busy = false;
        self.publish(slot);
        if self.is_done(slot) {
            self.workers[slot].alive = false;
            self.reap_soon(slot);
        } else {
            self.wake(slot);
        }
    }

    /// Whether a leaving worker has seen the end of its inbox and has nothing left to do.
    fn is_done(&self, slot: usize) -> bool {
        let (worker, link) = (&self.workers[slot], self.links[slot].as_ref());
        let ended = link.is_some_and(|link| link.closed && link.channel.is_empty());
        worker.leaving && ended && worker.unfinished().next().is_none()
    }

    fn publish(&mut self, slot: usize) {
        let worker = &mut self.workers[slot];
        let probed = std::mem::take(&mut worker.probed);
        if worker.lies {
            let random = &mut self.random;
            let mut absurd = || if random.bool() { random.u64(..) } else { random.u64(0..9) };
            worker.page = Sample {
                own: 0,
                open_us: absurd(),
                claimed: absurd(),
                finished: absurd(),
                claimed_at_ns: absurd(),
                turn_begun_ns: absurd(),
                answered_probes: absurd(),
            };
        } else {
            worker.page.claimed = worker.claimed;
            worker.page.finished = worker.finished;
            worker.page.answered_probes = worker.probes;
        }
        self.ring(slot, probed);
    }
}
