//! The second half of the primary's turn in the model: picking workers, accepting, sending.

use clusterlb_protocol::scoreboard::Wake;
use clusterlb_schedule::Client;
use clusterlb_schedule::id::ListenerId;

use super::front::{Notice, Trouble, narrow, slot_of};
use super::world::{Connection, Message, Place, World};

/// Maximum number of sockets in a message.
const MESSAGE_MAX: usize = 32;

impl World {
    pub(super) fn dispatch(&mut self) {
        if self.front.queue.is_empty() {
            return;
        }
        self.observe();
        self.front.queue.begin_round();
        while let Some(turn) = self.front.queue.next_turn() {
            let connection = *self.front.queue.first(turn).expect("a turn has a first one");
            let listener = ListenerId::new(self.records[connection].listener);
            // Eleven clients, so that some return.
            let client = Client(connection as u64 % 11);
            let roster = &mut self.front.roster;
            let has_waited = self.records[connection].has_waited;
            let idle = has_waited.then(|| roster.pick_idle(listener)).flatten();
            match idle.or_else(|| roster.pick(listener, client)) {
                Some(slot) => {
                    self.front.queue.take(turn);
                    self.assign(slot.index(), connection);
                }
                None => self.front.queue.block(turn),
            }
        }
    }

    pub(super) fn queue_up(&mut self, connection: Connection) {
        let listener = ListenerId::new(self.records[connection].listener);
        self.front.queue.push(listener, connection).expect("listeners stay");
    }

    fn assign(&mut self, slot: usize, connection: Connection) {
        self.check_choice(slot);
        self.front.assigned += 1;
        self.records[connection].place = Place::UnderWay;
        self.records[connection].given = self.front.assigned;
        let link = self.links[slot].as_mut().expect("only attached workers are ready");
        link.assigned += 1;
        let full = |message: &Message| {
            message.connections.is_empty() || message.connections.len() >= MESSAGE_MAX
        };
        // A probe is a separate message.
        if link.outbox.last().is_none_or(full) {
            link.outbox.push(Message::default());
            link.under_way += 1;
        }
        let message = link.outbox.last_mut().expect("there is one now");
        message.connections.push(connection);
    }

    /// A choice is valid if the worker has a credit left and no outstanding probe.
    fn check_choice(&mut self, slot: usize) {
        let (worker, most) = (&self.workers[slot], self.plan.scheduling.credits_max as usize);
        let link = self.links[slot].as_mut().expect("only attached workers are ready");
        assert!(!link.retired, "worker {slot} leaves and was given something");
        assert!(link.quota > 0, "worker {slot} has no credit left and was given something");
        link.quota -= 1;
        if !worker.lies {
            let answered = worker.page.answered_probes;
            assert!(answered >= link.probes, "worker {slot} is suspected and was given something");
            let unclaimed = link.unclaimed();
            assert!(unclaimed < most, "worker {slot} has {unclaimed} unclaimed, {most} at most");
        }
        if let Some(stopped) = self.stopped.as_mut().filter(|stopped| stopped.slot == slot) {
            assert_eq!(stopped.suspected_ns, None, "a stopped worker was given something");
            stopped.later += 1;
        }
    }

    pub(crate) fn observe(&mut self) {
        for slot in 0..self.links.len() {
            let Some(link) = &mut self.links[slot] else { continue };
            let sample = self.workers[slot].page;
            self.front.roster.observe(slot_of(slot), sample, self.now_ns);
            link.quota = self.front.roster.loads()[slot].credits;
            link.seen = sample.finished;
            self.check_load(slot);
        }
    }

    pub(super) fn control_intake(&mut self) {
        for _ in 0..2 {
            let mut short = Vec::new();
            for listener in (0..self.plan.listeners).map(ListenerId::new) {
                let takes = self.front.roster.has_room(listener);
                let waits = self.front.queue.len_of(listener) > 0;
                if (waits || !takes) && (takes || self.front.roster.is_served(listener)) {
                    short.push(listener);
                }
                self.accept_from(listener, takes && !waits);
            }
            for slot in 0..self.links.len() {
                let suspected = self.front.roster.is_suspected(slot_of(slot));
                let is_short =
                    short.iter().any(|one| self.front.roster.serves(slot_of(slot), *one));
                let Some(link) = &mut self.links[slot] else { continue };
                link.wake = match (is_short, suspected) {
                    (true, _) => Wake::Always,
                    (false, true) => Wake::Probe,
                    (false, false) => Wake::Never,
                };
            }
            if short.is_empty() {
                return;
            }
            self.observe();
            self.dispatch();
        }
    }

    /// With an armed accept if every worker serves the listener; otherwise one by one, up to the
    /// room of those that do.
    fn accept_from(&mut self, listener: ListenerId, accepts: bool) {
        let place = listener.index();
        let by_ring = accepts && self.front.roster.is_served_by_all(listener);
        self.front.accepting[place] = by_ring;
        self.front.watched[place] = false;
        if by_ring {
            return self.drain_backlog(place);
        }
        if !accepts {
            return;
        }
        let room = (self.front.roster.room_of(listener) as usize).min(MESSAGE_MAX);
        let count = room.min(self.backlog[place].len());
        if count == 0 {
            self.front.watched[place] = true;
            return;
        }
        for connection in self.backlog[place].drain(..count).collect::<Vec<_>>() {
            self.front.accepted += 1;
            self.records[connection].place = Place::Queue;
            self.queue_up(connection);
        }
        self.dispatch();
        let at_ns = self.soon();
        self.turn_at(at_ns);
    }

    /// The kernel moves messages into the channels, or refuses them.
    pub(super) fn submit(&mut self) {
        for slot in 0..self.links.len() {
            let Some(link) = &mut self.links[slot] else { continue };
            for message in std::mem::take(&mut link.outbox) {
                let link = self.links[slot].as_mut().expect("it was there");
                let full = link.channel.len() >= self.plan.channel_messages;
                let crowded = self.now_ns < self.workers[slot].crowded_until_ns;
                let probe = message.connections.is_empty();
                // A probe holds no descriptors, but memory for it may be exhausted.
                let starved = probe && self.random.u8(0..100) < self.plan.probe_loss_percent;
                let outcome = match (full, (crowded && !probe) || starved) {
                    (_, true) => Err(Trouble::Crowded),
                    (true, false) => Err(Trouble::Full),
                    (false, false) => Ok(()),
                };
                if outcome.is_ok() {
                    let sent = &message.connections;
                    sent.iter().for_each(|one| self.records[*one].place = Place::Channel);
                    link.channel.push_back(message.clone());
                    self.wake(slot);
                }
                let count = narrow(message.connections.len());
                self.front.roster.deliver(slot_of(slot), count, self.now_ns);
                let notice = Notice::Sent { slot, message, outcome };
                // The primary learns of a sent message at its next turn.
                match outcome {
                    Ok(()) => self.front.notices.push(notice),
                    Err(_) => self.tell(notice),
                }
            }
        }
    }
}
