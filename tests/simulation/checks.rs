//! The invariants after every step of a simulated run, and at its end.

use clusterlb_schedule::id::Slot;

use super::front::Notice;
use super::world::{Connection, Place, World};

impl World {
    /// Every accepted connection is in exactly one place, and the counters agree.
    pub(crate) fn check(&mut self) {
        let mut met = self.finished + self.aborted;
        let waiting: Vec<Connection> = self.front.queue.iter().copied().collect();
        met += self.meet_all(waiting.into_iter(), Place::Queue);
        for number in 0..self.front.notices.len() {
            met += match &self.front.notices[number] {
                Notice::Accepted(connection) => self.meet(*connection, Place::Queue),
                Notice::Sent { message, outcome: Err(_), .. } => {
                    let connections = message.connections.clone();
                    self.meet_all(connections.into_iter(), Place::UnderWay)
                }
                _ => 0,
            };
        }
        for slot in 0..self.links.len() {
            if let Some(link) = self.links[slot].take() {
                for message in &link.channel {
                    met += self.meet_all(message.connections.iter().copied(), Place::Channel);
                }
                self.links[slot] = Some(link);
            }
            let worker = std::mem::take(&mut self.workers[slot]);
            met += self.meet_all(worker.unfinished(), Place::Worker);
            self.workers[slot] = worker;
        }
        assert_eq!(met as u64, self.front.accepted, "a connection is nowhere");
        let coming = self.front.notices.iter();
        let coming = coming.filter(|notice| matches!(notice, Notice::Accepted(_))).count();
        assert_eq!(
            self.front.accepted + self.front.redispatched,
            self.front.assigned + (self.front.queue.len() + coming) as u64,
            "accepted and redispatched, against assigned and waiting"
        );
    }

    fn meet_all(&mut self, them: impl Iterator<Item = Connection>, place: Place) -> usize {
        them.map(|connection| self.meet(connection, place)).sum()
    }

    fn meet(&mut self, connection: Connection, place: Place) -> usize {
        let record = &mut self.records[connection];
        assert_ne!(record.met, self.step, "{connection} is in two places");
        assert_eq!(record.place, place, "{connection} is in the wrong place");
        record.met = self.step;
        1
    }

    /// The roster's view of an honest worker is correct.
    pub(crate) fn check_load(&self, slot: usize) {
        let (worker, link) = (&self.workers[slot], self.links[slot].as_ref());
        // A page belongs to the worker until its successor has one.
        let Some(link) = link.filter(|link| link.generation == worker.life) else { return };
        if worker.lies {
            return;
        }
        let refused: usize = self.refused_of(slot);
        let open = link.unclaimed() + refused + worker.unfinished().count();
        let unpublished = worker.finished - worker.page.finished;
        let truth = open as u64 + unpublished + worker.aborted;
        let load = self.front.roster.loads()[slot];
        assert_eq!(u64::from(load.in_flight), truth, "worker {slot}: in flight");
        let given = link.assigned - link.returned;
        assert_eq!(given, truth + worker.page.finished, "worker {slot}: given");
    }

    /// Between two reads of the workers' counters, the roster tracks assigned and returned
    /// connections itself.
    pub(crate) fn check_belief(&self) {
        for (slot, link) in self.links.iter().enumerate() {
            let Some(link) = link.as_ref().filter(|_| !self.workers[slot].lies) else { continue };
            let believed = u64::from(self.front.roster.loads()[slot].in_flight);
            let given = link.assigned - link.returned;
            assert_eq!(believed + link.seen, given, "worker {slot}: believed in flight");
        }
    }

    fn refused_of(&self, place: usize) -> usize {
        let refused = self.front.notices.iter().map(|notice| match notice {
            Notice::Sent { slot, message, outcome: Err(_) } if *slot == place => {
                message.connections.len()
            }
            _ => 0,
        });
        refused.sum()
    }

    /// The counters of a worker when it is reaped.
    pub(crate) fn check_books(&self, slot: usize) {
        let worker = &self.workers[slot];
        let link = self.links[slot].as_ref().expect("it is being ended");
        assert!(!worker.alive, "worker {slot} is ended alive");
        assert_eq!(
            link.assigned,
            link.returned + worker.finished + worker.aborted,
            "worker {slot}: assigned, against returned, finished and aborted"
        );
    }

    /// Whether a worker that is not stopped serves a listener.
    fn has_worker(&self, listener: u16) -> bool {
        let sound = self.workers.iter().enumerate().filter(|(_, one)| one.alive && !one.stopped);
        sound.into_iter().any(|(slot, _)| self.plan.served_by(slot).any(|one| one == listener))
    }

    /// After the last fault and enough time, no connection is left.
    pub(crate) fn check_end(&mut self) {
        self.observe();
        let stopped = self.workers.iter().filter(|worker| worker.stopped);
        let frozen: usize = stopped.map(|worker| worker.unfinished().count()).sum();
        let mut waiting = 0;
        for (connection, record) in self.records.iter().enumerate() {
            let over = matches!(record.place, Place::Finished | Place::Aborted);
            let held = record.place == Place::Worker && frozen > 0;
            let waits = matches!(record.place, Place::Outside | Place::Queue);
            let left = waits && !self.has_worker(record.listener);
            assert!(over || held || left, "{connection} is left: {record:?}");
            waiting += usize::from(waits);
        }
        assert_eq!(self.finished + self.aborted + frozen + waiting, self.records.len());
        for (slot, worker) in self.workers.iter().enumerate() {
            let sound = worker.alive && !worker.stopped && !worker.lies && !worker.leaving;
            let id = u16::try_from(slot).expect("few workers");
            let suspected = self.front.roster.is_suspected(Slot::new(id));
            assert!(!(sound && suspected), "worker {slot} stays suspected");
        }
    }
}
