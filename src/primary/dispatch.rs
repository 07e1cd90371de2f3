//! Giving accepted sockets away, and accepting only as fast as they are taken.

use super::acceptor::Acceptor;
use super::link::{Accepted, Link};
use super::{Primary, Report, Stage};
use crate::id::{ListenerId, Slot};
use crate::schedule::{Scheduler, WorkerLoad};

impl Primary {
    /// Gives away what waits, as far as there are takers, and sends one message a worker.
    pub(super) fn dispatch(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        self.refresh_loads();
        // Sockets whose listener has no taker stay in order for the next turn.
        let mut left = 0;
        while left < self.waiting.len() {
            let listener = self.waiting[left].record.listener;
            match self.pick(listener) {
                Some(slot) => {
                    let accepted = self.waiting.remove(left).expect("the position was checked");
                    self.assign(slot, accepted);
                }
                None if self.acceptors.len() == 1 => break,
                None => left += 1,
            }
        }
        for link in self.links.iter_mut().flatten() {
            link.flush(&mut self.ring);
        }
    }

    pub(super) fn assign(&mut self, slot: Slot, accepted: Accepted) {
        self.loads[slot.index()].in_flight += 1;
        let link = self.links[slot.index()].as_mut().expect("only attached workers are ready");
        link.add(&mut self.ring, &mut self.spare, accepted);
    }

    pub(super) fn refresh_loads(&mut self) {
        for (link, load) in self.links.iter().zip(&mut self.loads) {
            if let Some(link) = link {
                load.in_flight = u32::try_from(link.tally().in_flight()).unwrap_or(u32::MAX);
            }
        }
    }

    pub(super) fn pick(&mut self, listener: ListenerId) -> Option<Slot> {
        self.mask(listener);
        let rotation = &mut self.acceptors[listener.index()].rotation;
        let loads = if self.masked.is_empty() { &self.loads } else { &self.masked };
        rotation.pick(loads)
    }

    /// Prepares the loads as `listener` sees them: workers that do not serve it count as dead.
    pub(super) fn mask(&mut self, listener: ListenerId) {
        self.masked.clear();
        if self.uniform {
            return;
        }
        let pairs = self.links.iter().zip(&self.loads);
        self.masked.extend(pairs.map(|(link, load)| match link {
            Some(link) if link.has_joined(listener) => *load,
            _ => WorkerLoad::default(),
        }));
    }

    pub(super) fn has_room(&mut self, listener: ListenerId) -> bool {
        self.mask(listener);
        let loads = if self.masked.is_empty() { &self.loads } else { &self.masked };
        self.acceptors[listener.index()].rotation.has_room(loads)
    }

    /// Accepts while there are takers; otherwise lets the kernel's backlog be the queue and asks
    /// the workers to ring when they have done something.
    pub(super) fn control_intake(&mut self) {
        if self.stage != Stage::Open && self.stage != Stage::Quiescing {
            return;
        }
        for attempt in 0..2 {
            let held_up = !self.waiting.is_empty();
            let mut crowded = held_up;
            for place in 0..self.acceptors.len() {
                let takes = self.has_room(self.acceptors[place].id);
                crowded |= !takes;
                if self.stage == Stage::Open && takes && !held_up {
                    self.acceptors[place].arm(&mut self.ring, self.now_ns);
                } else if attempt == 1 {
                    self.acceptors[place].pause(&mut self.ring);
                }
            }
            self.ask_for_bell(crowded);
            if !crowded {
                return;
            }
            // A worker may have finished something between the choice and the request for the
            // bell; whoever finishes after it will ring.
            self.refresh_loads();
            self.dispatch();
        }
    }

    pub(super) fn ask_for_bell(&mut self, asked: bool) {
        if self.bell_asked != asked {
            self.bell_asked = asked;
            if asked {
                self.totals.pauses += 1;
            }
            self.links.iter().flatten().for_each(|link| link.board.set_waiting(asked));
        }
    }

    pub(super) fn finish_quiescing(&mut self) {
        if self.stage != Stage::Quiescing {
            return;
        }
        for place in 0..self.acceptors.len() {
            self.acceptors[place].pause(&mut self.ring);
            if self.acceptors[place].is_quiet() {
                let (id, mut last) = (self.acceptors[place].id, Vec::new());
                self.acceptors[place].close(|socket| last.push(socket));
                last.into_iter().for_each(|socket| self.accept(id, socket));
            }
        }
        self.dispatch();
        let closed = self.acceptors.iter().all(Acceptor::is_closed);
        let quiet = self.links.iter().flatten().all(Link::is_quiet);
        if closed && quiet && self.waiting.is_empty() {
            self.stage = Stage::Quiet;
            self.report(Report::Quiesced);
        }
    }
}
