//! Hands accepted sockets over, and accepts only as fast as workers take them.
//!
//! Owns the promise that listeners do not wait for each other: each is accepted from, paused and
//! dispatched separately.

use super::acceptor::Acceptor;
use super::handoff::Accepted;
use super::{DataPath, DataPathStage};
use crate::id::{ListenerId, Slot};
use crate::protocol::scoreboard::Wake;

/// The state of a listener at one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Supply {
    /// None of its connections waits, and a worker has room.
    Accept,
    /// Living workers serve it and none has room, or its waiting connections are not handed over
    /// yet.
    Short,
    /// No living worker serves it.
    Unserved,
}

impl DataPath {
    /// Hands over what waits, as far as workers have room, and sends one message per worker.
    pub(super) fn dispatch(&mut self) {
        if self.intake.is_empty() {
            return;
        }
        self.observe();
        let in_a_row = self.coalescing.in_a_row(self.intake.len());
        let mut row: Option<(Slot, ListenerId, usize)> = None;
        self.intake.begin_round();
        while let Some(turn) = self.intake.next_turn() {
            let Some(first) = self.intake.first(turn) else { break };
            let Accepted { record, client, has_waited, .. } = first;
            let listener = record.listener;
            let idle = has_waited.then(|| self.roster.pick_idle(listener)).flatten();
            let same = row.filter(|(_, of, count)| *of == listener && *count < in_a_row);
            let same = same.filter(|_| idle.is_none());
            let again = same.filter(|(slot, ..)| self.roster.pick_again(*slot, listener));
            let chosen = idle.or_else(|| again.map(|(slot, ..)| slot));
            match chosen.or_else(|| self.roster.pick(listener, *client)) {
                Some(slot) => {
                    row = Some((slot, listener, again.map_or(1, |(_, _, count)| count + 1)));
                    let accepted = self.intake.take(turn).expect("a turn has a first one");
                    self.assign(slot, accepted);
                }
                // It keeps its place for the next round.
                None => self.intake.block(turn),
            }
        }
        for (link, slot) in self.links.iter_mut().zip((0..).map(Slot::new)) {
            let Some(link) = link else { continue };
            let count = link.finish(&mut self.ring);
            self.roster.deliver(slot, count, self.now_ns);
        }
    }

    fn assign(&mut self, slot: Slot, accepted: Accepted) {
        if let Some(counts) = self.listener_counts.get(accepted.record.listener) {
            counts.assigned.add(1);
        }
        self.look_at(slot, &accepted);
        let link = self.links[slot.index()].as_mut().expect("only attached workers are ready");
        let count = link.add(&mut self.ring, &mut self.spare, accepted, self.now_ns);
        self.roster.deliver(slot, count, self.now_ns);
    }

    /// Reads the workers' counters.
    pub(super) fn observe(&mut self) {
        for (link, slot) in self.links.iter().zip((0..).map(Slot::new)) {
            if let Some(link) = link {
                self.roster.observe(slot, link.page.sample(), self.now_ns);
                if let Some(times) = self.roster.take_claim_times(slot) {
                    link.page.show_claim_times(times);
                }
            }
        }
    }

    /// Accepts where workers have room. Elsewhere connections wait in the kernel's backlog, and the
    /// workers concerned are asked to wake this thread on progress.
    pub(super) fn control_intake(&mut self) {
        self.has_more = false;
        let open = self.stage == DataPathStage::Open;
        if !open && self.removals == 0 {
            return;
        }
        for attempt in 0..2 {
            self.admit(open, attempt == 1);
            self.ask_for_wakes();
            if self.short.is_empty() {
                return;
            }
            // A worker may have made progress between the choice and the request for a wake-up;
            // later progress wakes this thread.
            self.observe();
            self.dispatch();
        }
    }

    /// Checks every listener, and begins or stops accepting. Records listeners without room, or
    /// with connections that wait for it.
    fn admit(&mut self, open: bool, pauses: bool) {
        self.short.clear();
        for place in 0..self.acceptors.len() {
            let Some(acceptor) = &mut self.acceptors[place] else { continue };
            let (id, leaving) = (acceptor.id, acceptor.leaving);
            if acceptor.is_owned() || self.steerer.rules.lacks_inboxes {
                acceptor.pause(&mut self.ring);
                // What was taken from workers' own sockets waits for room, too.
                if self.intake.len_of(id) > 0 {
                    self.note_short(id);
                }
                continue;
            }
            let verdict = self.judge(id);
            self.intake.note_pause(id, open && verdict != Supply::Accept, self.now_ns);
            self.intake.note_served(id, !open || verdict != Supply::Unserved, self.now_ns);
            if verdict == Supply::Short {
                self.note_short(id);
            }
            if leaving {
                continue;
            }
            if open && verdict == Supply::Accept {
                self.begin_accepting(place, id);
            } else if pauses || verdict == Supply::Unserved {
                let acceptor = self.acceptors[place].as_mut();
                acceptor.expect("it was there").pause(&mut self.ring);
            }
        }
    }

    /// A listener with several sockets may be there several times.
    fn note_short(&mut self, listener: ListenerId) {
        if self.short.last() != Some(&listener) {
            self.short.push(listener);
        }
    }

    fn judge(&mut self, listener: ListenerId) -> Supply {
        let takes = self.roster.has_room(listener);
        if takes && self.intake.len_of(listener) == 0 {
            Supply::Accept
        } else if takes || self.roster.is_served(listener) {
            Supply::Short
        } else {
            Supply::Unserved
        }
    }

    /// A listener that every worker serves is accepted from as fast as connections arrive. From one
    /// that only some serve, only as many are accepted as these have room for: the rest would take
    /// descriptors from the others.
    fn begin_accepting(&mut self, place: usize, listener: ListenerId) {
        let acceptor = self.acceptors[place].as_mut().expect("it was there");
        if self.roster.is_served_by_all(listener) {
            return acceptor.arm(&mut self.ring, self.now_ns);
        }
        if !acceptor.begin_by_hand(&mut self.ring, self.now_ns) {
            return;
        }
        let taken = acceptor.accept_by_hand(self.roster.room_of(listener), self.now_ns);
        if taken.is_empty() {
            return self.await_next(place);
        }
        self.has_more |= acceptor.is_ready();
        taken.into_iter().for_each(|socket| self.accept(place, socket));
        self.dispatch();
    }

    /// Asks for a notification of arrivals in a queue that is accepted from by hand.
    fn await_next(&mut self, place: usize) {
        let Some(acceptor) = &mut self.acceptors[place] else { return };
        if acceptor.await_next()
            && let Some(listener) = acceptor.listener()
        {
            self.watch.ask(listener, place);
        }
    }

    /// Asks only workers that could take a waiting connection.
    fn ask_for_wakes(&mut self) {
        for (link, slot) in self.links.iter_mut().zip((0..).map(Slot::new)) {
            let Some(link) = link else { continue };
            let is_short = self.short.iter().any(|listener| self.roster.serves(slot, *listener));
            let is_looked_at = self.looked_at.iter().any(|looked| looked.slot == slot);
            let is_unseen = link.page.is_copied() && {
                let acceptors = self.acceptors.iter().flatten();
                let mut own = acceptors.filter(|one| one.owners.contains(&slot)).peekable();
                own.peek().is_some() && own.all(Acceptor::awaits_arrival)
            };
            let wake = match (is_short || is_looked_at, self.roster.is_suspected(slot)) {
                (true, _) => Wake::Always,
                (false, true) => Wake::Probe,
                (false, false) if is_unseen => Wake::Change,
                (false, false) => Wake::Never,
            };
            link.ask_for_wake(wake, &mut self.ring);
            if wake == Wake::Change {
                // Later changes wake this thread.
                link.page.copy_counters();
            }
        }
    }
}
