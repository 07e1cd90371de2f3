//! The model of the primary: it drives the real [`Roster`] step by step like `src/data_path`, with
//! numbers for sockets. Keep the two in step.

use std::collections::VecDeque;

use clusterlb_protocol::scoreboard::Wake;
use clusterlb_schedule::id::{ListenerId, Slot};
use clusterlb_schedule::{Intake, Refusal, Roster};

use super::plan::MILLISECOND;
use super::world::{Connection, Event, Message, Place, World};

/// Pause for a worker after the kernel had too many descriptors in flight.
const CROWDED_NS: u64 = 5 * MILLISECOND;

/// A notification from the primary's ring or control plane.
#[derive(Clone, Debug)]
pub(crate) enum Notice {
    Accepted(Connection),
    Sent {
        slot: usize,
        message: Message,
        outcome: Result<(), Trouble>,
    },
    Room(usize, u32),
    Woken,
    /// A connection has arrived at a listener without an armed accept.
    Come,
    Attach(usize),
    Retire(usize, u32),
    Reap(usize),
}

/// Why the kernel refused a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// EAGAIN.
    Full,
    /// ETOOMANYREFS.
    Crowded,
}

#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) roster: Roster,
    pub(crate) queue: Intake<Connection>,
    pub(crate) notices: Vec<Notice>,
    pub(crate) accepting: Vec<bool>,
    /// Listeners that the primary polls for the next connection.
    pub(crate) watched: Vec<bool>,
    ended: Vec<usize>,
    crowded: Vec<(usize, u64)>,
    /// Time of its loop's next turn, if scheduled.
    due_ns: Option<u64>,
    pub(crate) accepted: u64,
    pub(crate) redispatched: u64,
    pub(crate) assigned: u64,
}

/// The primary's state of a worker, with the channel between them.
#[derive(Debug, Default)]
pub(crate) struct Link {
    pub(crate) generation: u32,
    pub(crate) channel: VecDeque<Message>,
    pub(super) outbox: Vec<Message>,
    pub(crate) under_way: u32,
    pub(super) retired: bool,
    pub(crate) closed: bool,
    pub(crate) awaits_room: bool,
    pub(crate) wake: Wake,
    pub(crate) assigned: u64,
    pub(crate) returned: u64,
    /// Remaining picks under the credits last read.
    pub(super) quota: u32,
    pub(super) probes: u64,
    /// Finished connections of the worker, as last read.
    pub(crate) seen: u64,
}

impl Link {
    /// Number of connections assigned and not claimed.
    pub(crate) fn unclaimed(&self) -> usize {
        self.channel.iter().chain(&self.outbox).map(|message| message.connections.len()).sum()
    }

    fn is_quiet(&self) -> bool {
        self.under_way == 0 && self.outbox.is_empty()
    }

    fn close_if_retired(&mut self) {
        self.closed |= self.retired && self.is_quiet();
    }
}

impl Front {
    pub(crate) fn new(roster: Roster, listeners: u16) -> Self {
        let mut queue = Intake::default();
        (0..listeners).map(ListenerId::new).for_each(|listener| queue.add_listener(listener));
        Self {
            roster,
            queue,
            notices: Vec::new(),
            accepting: vec![false; usize::from(listeners)],
            watched: vec![false; usize::from(listeners)],
            ended: Vec::new(),
            crowded: Vec::new(),
            due_ns: None,
            accepted: 0,
            redispatched: 0,
            assigned: 0,
        }
    }
}

pub(super) fn narrow(count: usize) -> u32 {
    u32::try_from(count).expect("bounded by a channel")
}

pub(super) fn slot_of(place: usize) -> Slot {
    Slot::new(u16::try_from(place).expect("few workers"))
}

impl World {
    /// Queues a notification for the primary's next turn.
    pub(crate) fn tell(&mut self, notice: Notice) {
        if let Notice::Accepted(connection) = &notice {
            self.front.accepted += 1;
            self.records[*connection].place = Place::Queue;
        }
        self.front.notices.push(notice);
        let at_ns = self.soon();
        self.turn_at(at_ns);
    }

    pub(super) fn turn_at(&mut self, at_ns: u64) {
        if self.front.due_ns.is_none_or(|due_ns| at_ns < due_ns) {
            self.front.due_ns = Some(at_ns);
            self.enter(at_ns, Event::Primary);
        }
    }

    pub(crate) fn primary_turn(&mut self) {
        // Turns made obsolete by an earlier one.
        if self.front.due_ns != Some(self.now_ns) {
            return;
        }
        self.front.due_ns = None;
        for notice in std::mem::take(&mut self.front.notices) {
            self.on_notice(notice);
        }
        self.reap();
        self.retry_crowded();
        self.take_back_from_hung();
        self.take_back_early();
        self.dispatch();
        self.control_intake();
        self.submit();
        self.check_belief();
        let crowded = self.front.crowded.iter().map(|(_, until_ns)| *until_ns).min();
        let deadline = self.front.roster.next_deadline_ns().into_iter().chain(crowded).min();
        if let Some(at_ns) = deadline {
            self.turn_at(at_ns.max(self.now_ns + 1));
        }
        if self.awaits_answers() {
            let at_ns = self.soon();
            self.turn_at(at_ns);
        }
    }

    /// Whether anything waits for sent messages.
    fn awaits_answers(&self) -> bool {
        let ending = !self.front.ended.is_empty();
        let mut links = self.links.iter().flatten();
        links.any(|link| !link.is_quiet() && (ending || link.retired))
    }

    fn on_notice(&mut self, notice: Notice) {
        let now_ns = self.now_ns;
        match notice {
            Notice::Accepted(connection) => self.queue_up(connection),
            Notice::Sent { slot, message, outcome } => self.on_message_sent(slot, message, outcome),
            Notice::Room(slot, generation) => {
                let current =
                    self.links[slot].as_ref().is_some_and(|link| link.generation == generation);
                if current {
                    self.front.roster.has_room_again(slot_of(slot));
                }
            }
            Notice::Woken | Notice::Come => {}
            Notice::Attach(slot) => {
                let generation = self.workers[slot].life;
                self.links[slot] = Some(Link { generation, ..Link::default() });
                self.front.roster.attach(slot_of(slot), now_ns);
                for listener in self.plan.served_by(slot) {
                    self.front.roster.join(slot_of(slot), ListenerId::new(listener));
                }
            }
            Notice::Retire(slot, life) => {
                let link = self.links[slot].as_mut().filter(|link| link.generation == life);
                if let Some(link) = link {
                    link.retired = true;
                    link.close_if_retired();
                    self.front.roster.retire(slot_of(slot));
                    self.wake(slot);
                }
            }
            Notice::Reap(slot) => self.front.ended.push(slot),
        }
    }

    fn on_message_sent(&mut self, slot: usize, message: Message, outcome: Result<(), Trouble>) {
        let link = self.links[slot].as_mut().expect("ended only when quiet");
        link.under_way -= 1;
        let count = narrow(message.connections.len());
        let roster = &mut self.front.roster;
        match outcome {
            Ok(()) => {}
            Err(trouble) => {
                if count == 0 {
                    roster.probe_failed(slot_of(slot));
                    link.probes -= 1;
                }
                link.returned += u64::from(count);
                let first = roster.refused(slot_of(slot), count, Refusal::Full);
                if first && trouble == Trouble::Full {
                    link.awaits_room = true;
                } else if first {
                    self.front.crowded.push((slot, self.now_ns + CROWDED_NS));
                }
                self.put_back(message.connections);
                self.channel_drained(slot);
            }
        }
        if let Some(link) = &mut self.links[slot] {
            link.close_if_retired();
        }
        self.wake(slot);
    }

    /// Puts connections back at the front of the queue, oldest first.
    fn put_back(&mut self, connections: Vec<Connection>) {
        self.front.redispatched += connections.len() as u64;
        let batch = connections.clone();
        for connection in connections.into_iter().rev() {
            self.records[connection].place = Place::Queue;
            self.records[connection].returns += 1;
            let listener = ListenerId::new(self.records[connection].listener);
            self.front.queue.push_front(listener, connection).expect("listeners stay");
        }
        for listener in 0..self.plan.listeners {
            let own = batch.iter().filter(|one| self.records[**one].listener == listener).count();
            let first = self.front.queue.iter_of(ListenerId::new(listener)).take(own);
            let sorted = first.is_sorted_by_key(|one| self.records[*one].given);
            assert!(sorted, "connections came back in another order than they were given");
        }
    }

    fn take_back(&mut self, slot: usize) -> Vec<Connection> {
        let Some(link) = &mut self.links[slot] else { return Vec::new() };
        let messages = std::mem::take(&mut link.channel);
        let taken: Vec<Connection> =
            messages.into_iter().flat_map(|message| message.connections).collect();
        link.returned += taken.len() as u64;
        self.channel_drained(slot);
        taken
    }

    fn reap(&mut self) {
        for slot in std::mem::take(&mut self.front.ended) {
            self.front.roster.mark_dead(slot_of(slot));
            let Some(link) = &self.links[slot] else { continue };
            if !link.is_quiet() {
                self.front.ended.push(slot);
                continue;
            }
            let taken = self.take_back(slot);
            self.check_books(slot);
            self.links[slot] = None;
            self.front.roster.vacate(slot_of(slot));
            self.put_back(taken);
            let at_ns = self.now_ns + self.random.u64(1..50) * MILLISECOND;
            self.enter(at_ns, Event::Respawn { slot });
        }
    }

    fn retry_crowded(&mut self) {
        let (now_ns, roster) = (self.now_ns, &mut self.front.roster);
        self.front.crowded.retain(|(slot, until_ns)| {
            if *until_ns <= now_ns {
                roster.has_room_again(slot_of(*slot));
            }
            *until_ns > now_ns
        });
    }

    fn take_back_from_hung(&mut self) {
        if !self.is_due() {
            return;
        }
        self.observe();
        while let Some(slot) = self.front.roster.suspect(self.now_ns) {
            let slot = slot.index();
            let taken = self.take_back(slot);
            self.front.roster.taken_back(slot_of(slot), narrow(taken.len()));
            let link = self.links[slot].as_mut().expect("only attached workers are suspected");
            if !link.closed {
                link.outbox.push(Message::default());
                link.under_way += 1;
            }
            link.probes += 1;
            self.put_back(taken);
            let noted = self.stopped.as_mut().filter(|stopped| stopped.slot == slot);
            if let Some(stopped) = noted {
                stopped.suspected_ns.get_or_insert(self.now_ns);
            }
        }
    }

    fn take_back_early(&mut self) {
        if !self.is_due() {
            if !self.front.roster.waits_late() || self.front.queue.is_empty() {
                return;
            }
            self.observe();
        }
        while let Some(slot) = self.front.roster.movable(self.now_ns) {
            let taken = self.take_back(slot.index());
            self.front.roster.taken_back(slot, narrow(taken.len()));
            taken.iter().for_each(|connection| self.records[*connection].has_waited = true);
            self.put_back(taken);
        }
    }

    fn is_due(&self) -> bool {
        let deadline_ns = self.front.roster.next_deadline_ns();
        deadline_ns.is_some_and(|deadline_ns| deadline_ns <= self.now_ns)
    }
}
