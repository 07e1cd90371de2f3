//! Listeners added and removed while others are accepted from.
//!
//! Owns the rule that a closing listener loses no connection: its backlog is accepted, accepted
//! connections are handed over, and only then is it removed.

use std::sync::Arc;

use super::acceptor::Acceptor;
use super::handoff::Mark;
use super::{DataPath, DataPathReport};
use crate::id::{ListenerId, Slot};
use crate::sys::listener::Listener;

/// A worker that no longer serves a listener, until all messages in flight have arrived.
#[derive(Debug)]
pub(super) struct Departure {
    slot: Slot,
    listener: ListenerId,
    mark: Option<Mark>,
}

impl DataPath {
    pub(super) fn add_listener(&mut self, id: ListenerId, listener: Arc<Listener>) {
        self.add_acceptor(id, listener, None);
    }

    pub(super) fn add_socket(&mut self, id: ListenerId, number: u16, socket: Arc<Listener>) {
        self.add_acceptor(id, socket, Some(number));
        self.steerer.add(id);
    }

    fn add_acceptor(&mut self, id: ListenerId, listener: Arc<Listener>, number: Option<u16>) {
        let is_new = self.acceptor_of(id).is_none();
        let free = self.acceptors.iter().position(Option::is_none);
        let place = free.unwrap_or(self.acceptors.len());
        let acceptor = Some(Acceptor::new(id, listener, number, place, self.held_back));
        match free {
            Some(place) => self.acceptors[place] = acceptor,
            None => self.acceptors.push(acceptor),
        }
        if is_new {
            self.listener_counts.add(id, &self.endpoints.live_counts.listeners);
            self.intake.add_listener(id);
            self.roster.add_listener(id);
        }
    }

    /// A unix socket was opened anew, because its path had been removed.
    pub(super) fn replace_listener(&mut self, id: ListenerId, listener: Arc<Listener>) {
        self.removals += self.begin_leaving(id);
        self.add_acceptor(id, listener, None);
    }

    pub(super) fn remove_listener(&mut self, listener: ListenerId) {
        match self.begin_leaving(listener) {
            0 => self.report(DataPathReport::ListenerRemoved { listener }),
            found => self.removals += found,
        }
    }

    /// Marks the sockets of a listener as leaving. Returns how many.
    fn begin_leaving(&mut self, listener: ListenerId) -> usize {
        let mut found = 0;
        for place in 0..self.acceptors.len() {
            let Some(acceptor) = &mut self.acceptors[place] else { continue };
            if acceptor.id == listener && !acceptor.leaving {
                acceptor.leaving = true;
                // The primary accepts the rest, whichever worker accepted before.
                acceptor.owners.clear();
                found += 1;
                self.unwatch(place);
            }
        }
        found
    }

    pub(super) fn acceptor_of(&self, listener: ListenerId) -> Option<&Acceptor> {
        self.acceptors.iter().flatten().find(|acceptor| acceptor.id == listener)
    }

    /// Closes leaving listeners as soon as nothing is armed on them, and reports removed ones.
    pub(super) fn finish_removals(&mut self) {
        if self.removals == 0 {
            return;
        }
        for place in 0..self.acceptors.len() {
            let Some(acceptor) = &mut self.acceptors[place] else { continue };
            if !acceptor.leaving {
                continue;
            }
            acceptor.pause(&mut self.ring);
            if self.steerer.rules.lacks_inboxes {
                acceptor.leave_behind();
            }
            if acceptor.is_quiet() && !acceptor.is_closed() {
                let mut last = Vec::new();
                acceptor.close(self.now_ns, |socket| last.push(socket));
                last.into_iter().for_each(|socket| self.accept(place, socket));
            }
        }
        self.dispatch();
        self.drop_left_behind();
        for place in 0..self.acceptors.len() {
            if self.is_gone(place) {
                let Some(acceptor) = self.acceptors[place].take() else { continue };
                self.removals -= 1;
                if self.acceptor_of(acceptor.id).is_none() {
                    self.totals.dropped += self.intake.remove_listener(acceptor.id, self.now_ns);
                    self.roster.remove_listener(acceptor.id);
                    let directory = &self.endpoints.live_counts.listeners;
                    self.listener_counts.remove(acceptor.id, directory);
                    self.steerer.remove(acceptor.id);
                    self.report(DataPathReport::ListenerRemoved { listener: acceptor.id });
                }
            }
        }
    }

    /// Drops connections of closing listeners that no worker serves any more.
    fn drop_left_behind(&mut self) {
        let leaving = self.acceptors.iter().flatten().filter(|one| one.leaving);
        let unserved = leaving.map(|one| one.id).filter(|id| !self.roster.is_served(*id));
        let unserved: Vec<ListenerId> = unserved.collect();
        for listener in unserved {
            self.drop_waiting(listener);
        }
    }

    /// Whether a listener is closed and none of its connections waits or is in flight. A message in
    /// flight may still come back, so those of this moment are awaited.
    fn is_gone(&mut self, place: usize) -> bool {
        let Some(acceptor) = &mut self.acceptors[place] else { return false };
        if !acceptor.leaving || !acceptor.is_closed() {
            return false;
        }
        if self.intake.len_of(acceptor.id) > 0 {
            acceptor.marks = None;
            return false;
        }
        let links = &self.links;
        let marks = acceptor
            .marks
            .get_or_insert_with(|| links.iter().flatten().map(|link| link.mark()).collect());
        marks.retain(|mark| match &links[mark.key.index as usize] {
            Some(link) => link.key() == mark.key && !link.has_passed(*mark),
            None => false,
        });
        marks.is_empty()
    }

    pub(super) fn part(&mut self, slot: Slot, listener: ListenerId) {
        self.roster.leave(slot, listener);
        let link = self.links.get(slot.index()).and_then(Option::as_ref);
        let mark = link.map(|link| link.mark());
        self.departures.push(Departure { slot, listener, mark });
    }

    /// Reports workers to which no connection of a listener they left is in flight any more.
    pub(super) fn finish_departures(&mut self) {
        if self.departures.is_empty() {
            return;
        }
        let links = &self.links;
        let arrived = |departure: &Departure| {
            departure.mark.is_none_or(|mark| match &links[mark.key.index as usize] {
                Some(link) => link.key() != mark.key || link.has_passed(mark),
                None => true,
            })
        };
        let (done, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.departures).into_iter().partition(arrived);
        self.departures = left;
        for Departure { slot, listener, .. } in done {
            self.report(DataPathReport::Left { slot, listener });
        }
    }
}
