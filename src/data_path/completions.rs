//! The outcome of messages and workers: delivered, refused, taken back.
//!
//! Owns the rule that a socket which did not reach a worker goes back to the front of the queue.

use nix::errno::Errno;

use super::handoff::{self, Accepted};
use super::messages::Returned;
use super::{CROWDED_NS, DataPath, DataPathReport, SPARE_MESSAGES_MAX};
use crate::id::Slot;
use crate::protocol::handoff_layout;
use crate::schedule::Refusal;
use crate::sys::engine::{Key, Outcome, OutgoingMessage};

impl DataPath {
    /// Handles the completion of a message.
    pub(super) fn on_message_sent(
        &mut self,
        key: Key,
        mut message: Box<OutgoingMessage>,
        outcome: Outcome<()>,
    ) {
        let place = key.index as usize;
        let slot = slot_of(key);
        if let Some(link) = &mut self.links[place] {
            link.answered();
        }
        match outcome {
            // The channel holds its own references, and the ring has closed ours; an open copy
            // would keep the connection alive after the worker closes it.
            Ok(()) => {}
            Err(errno) => self.refused(slot, &mut message, errno),
        }
        if let Some(link) = &mut self.links[place] {
            link.close_if_retired();
        }
        if self.spare.len() < SPARE_MESSAGES_MAX {
            message.drain();
            self.spare.push(message);
        }
    }

    fn refused(&mut self, slot: Slot, message: &mut OutgoingMessage, errno: Errno) {
        let is_probe = handoff_layout::is_probe(message.payload());
        let returned = handoff::unpack(message);
        if is_probe {
            self.roster.probe_failed(slot);
        }
        let count = u32::try_from(returned.len()).expect("bounded by a message");
        self.totals.refused += u64::from(count);
        for accepted in &returned {
            if let Some(counts) = self.listener_counts.get(accepted.record.listener) {
                counts.refused.add(1);
            }
        }
        if let Some(link) = &mut self.links[slot.index()] {
            link.count_returned(returned.iter().map(|accepted| accepted.record));
            let refusal = match errno {
                Errno::EAGAIN | Errno::ETOOMANYREFS | Errno::ENOMEM | Errno::ENOBUFS => {
                    Refusal::Full
                }
                // The worker has closed its inbox; the control plane will learn of its end.
                _ => Refusal::Closed,
            };
            let first = self.roster.refused(slot, count, refusal);
            match errno {
                Errno::EAGAIN if first => link.await_room(&mut self.ring),
                // The kernel does not report when there is room for this.
                _ if first => self.crowded.push((slot, self.now_ns + CROWDED_NS)),
                _ => {}
            }
        }
        self.refused.extend(returned);
    }

    /// Puts back everything refused in this turn at once, which keeps the order.
    pub(super) fn put_back_refused(&mut self) {
        if !self.refused.is_empty() {
            let refused = std::mem::take(&mut self.refused);
            self.put_back(refused);
        }
    }

    /// Puts sockets back at the front of the queue, oldest first.
    fn put_back(&mut self, sockets: Vec<Accepted>) {
        self.totals.redispatched += sockets.len() as u64;
        for mut accepted in sockets.into_iter().rev() {
            accepted.client = self.client_of(&accepted.socket);
            let listener = accepted.record.listener;
            if let Some(counts) = self.listener_counts.get(listener) {
                counts.redispatched.add(1);
            }
            if self.intake.push_front(listener, accepted).is_err() {
                // Its listener was removed, and with it every worker that served it.
                self.totals.dropped += 1;
            }
        }
    }

    /// Puts sockets taken out of a channel back into the queue, and counts those that the kernel
    /// dropped on the way.
    fn rejoin(&mut self, taken: Vec<Accepted>, promised: u32) {
        let lost = u64::from(promised) - taken.len() as u64;
        self.totals.redispatched += lost;
        self.totals.dropped += lost;
        self.put_back(taken);
    }

    /// Takes what a worker sends back unclaimed, and pauses the worker. A worker can return at most
    /// what it has not claimed: the rest did not come from here.
    pub(super) fn take_in(&mut self, slot: Slot, mut sockets: Returned, backoff_ns: u64) {
        let Some(Some(link)) = self.links.get_mut(slot.index()) else { return };
        let unclaimed = usize::try_from(link.counters().unclaimed()).unwrap_or(usize::MAX);
        sockets.truncate(unclaimed);
        link.count_returned(sockets.iter().map(|(_, record)| *record));
        let count = u32::try_from(sockets.len()).expect("bounded by the worker's credits");
        self.roster.sent_back(slot, count);
        // A pausing worker counts as full until its time is over.
        if backoff_ns > 0 && self.roster.refused(slot, 0, Refusal::Full) {
            self.crowded.push((slot, self.now_ns.saturating_add(backoff_ns)));
        }
        let again = |(socket, record)| Accepted::again(socket, record);
        self.put_back(sockets.into_iter().map(again).collect());
    }

    /// A full channel has room again.
    pub(super) fn on_room(&mut self, key: Key) {
        let current = matches!(&self.links[key.index as usize], Some(link) if link.key() == key);
        if current {
            self.roster.has_room_again(slot_of(key));
        }
    }

    pub(super) fn retry_crowded(&mut self) {
        let now_ns = self.now_ns;
        let roster = &mut self.roster;
        self.crowded.retain(|(slot, until_ns)| {
            if *until_ns <= now_ns {
                roster.has_room_again(*slot);
            }
            *until_ns > now_ns
        });
    }

    /// Finds workers with connections unclaimed for too long, and gives these to others.
    pub(super) fn take_back_from_hung(&mut self) {
        if !self.is_due() {
            return;
        }
        self.observe();
        while let Some(slot) = self.roster.suspect(self.now_ns) {
            let Some(link) = &mut self.links[slot.index()] else { continue };
            let (taken, promised) = link.take_back();
            self.roster.taken_back(slot, promised);
            link.probe(&mut self.ring, &mut self.spare);
            self.suspected.push(slot);
            self.steerer.is_due = true;
            self.rejoin(taken, promised);
            self.report(DataPathReport::Hung { slot, taken_back: promised });
        }
    }

    /// Moves connections that wait behind a worker's work, if another worker is idle.
    pub(super) fn take_back_early(&mut self) {
        if !self.is_due() {
            // A worker that has become idle gets what waits before what has just arrived.
            if !self.roster.waits_late() || self.intake.is_empty() {
                return;
            }
            self.observe();
        }
        while let Some(slot) = self.roster.movable(self.now_ns) {
            let Some(link) = &mut self.links[slot.index()] else { break };
            let (mut taken, promised) = link.take_back();
            self.roster.taken_back(slot, promised);
            self.totals.taken_back += u64::from(promised);
            for accepted in &mut taken {
                accepted.has_waited = true;
                if let Some(counts) = self.listener_counts.get(accepted.record.listener) {
                    counts.taken_back.add(1);
                }
            }
            self.rejoin(taken, promised);
        }
    }

    fn is_due(&self) -> bool {
        self.roster.next_deadline_ns().is_some_and(|deadline_ns| deadline_ns <= self.now_ns)
    }

    /// Reports workers that have answered their probes.
    pub(super) fn report_recovered(&mut self) {
        self.trust_those_who_answered();
        let roster = &self.roster;
        let (still, free): (Vec<Slot>, Vec<Slot>) =
            self.suspected.iter().partition(|slot| roster.is_suspected(**slot));
        self.suspected = still;
        self.steerer.is_due |= !free.is_empty();
        free.into_iter().for_each(|slot| self.report(DataPathReport::Recovered { slot }));
    }

    /// Takes back what ended workers left, once no message to them is in flight.
    pub(super) fn reap(&mut self) {
        let mut unfinished = Vec::new();
        for slot in std::mem::take(&mut self.ended) {
            self.roster.mark_dead(slot);
            let Some(place) = self.links.get_mut(slot.index()) else { continue };
            let Some(link) = place else { continue };
            if !link.is_quiet() {
                unfinished.push(slot);
                continue;
            }
            let (taken, promised) = link.take_back();
            let (counters, given) = (link.counters(), link.given().to_vec());
            link.let_go(&mut self.ring);
            *place = None;
            self.roster.vacate(slot);
            self.rejoin(taken, promised);
            self.report(DataPathReport::Reaped { slot, counters, given });
        }
        self.ended = unfinished;
    }
}

fn slot_of(key: Key) -> Slot {
    Slot::new(u16::try_from(key.index).expect("keys of links are slots"))
}
