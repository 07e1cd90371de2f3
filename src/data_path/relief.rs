//! Workers that take no connection from the primary: programs that inherit their listening sockets
//! and have no inbox.
//!
//! Owns what happens to connections that such a worker does not accept. If the worker is stopped,
//! or gone, the kernel moves them to other workers' sockets, where it picks by the primary's maps.
//! Everywhere else they wait in the socket, for the worker or for the next one that inherits it. A
//! socket that moves its queue does not listen for a moment, and a program may end because of that:
//! so the queue of a worker that could accept stays where it is, however long it stands still.

use nix::errno::Errno;

use super::acceptor::Acceptor;
use super::{DataPath, DataPathReport};
use crate::error::Error;
use crate::id::{ListenerId, Slot};
use crate::schedule::Finding;
use crate::sys::{accepting, backlog};

impl DataPath {
    /// No process has this socket any more, or one has it again.
    pub(super) fn set_deserted(&mut self, listener: ListenerId, number: u16, is_deserted: bool) {
        let is_meant = |one: &Acceptor| one.id == listener && one.number == Some(number);
        let place = self.acceptors.iter().position(|one| one.as_ref().is_some_and(is_meant));
        let Some(place) = place else { return };
        let Some(acceptor) = self.acceptors[place].as_mut().filter(|one| !one.is_owned()) else {
            return;
        };
        (acceptor.is_deserted, acceptor.needs_relief) = (is_deserted, is_deserted);
        match is_deserted {
            true => self.ask(place),
            false => self.unwatch(place),
        }
    }

    /// Acts on a check of a queue. A stopped worker is excluded as soon as its queue stands still,
    /// any other one when it has stood still for too long.
    pub(super) fn look_after(&mut self, place: usize, finding: Finding) {
        if finding == Finding::Quiet {
            return self.ask(place);
        }
        let standing = self.acceptors[place].as_ref().filter(|one| one.may_be_stalled());
        let Some(owners) = standing.map(|acceptor| acceptor.owners.clone()) else { return };
        let is_stopped = owners.iter().all(|slot| {
            let link = self.links.get(slot.index()).and_then(Option::as_ref);
            link.is_none_or(|link| accepting::is_stopped(link.pid))
        });
        if !is_stopped && finding != Finding::Overdue {
            return;
        }
        let Some(acceptor) = &mut self.acceptors[place] else { return };
        acceptor.needs_relief = is_stopped;
        if let Some(stall_detector) = &mut acceptor.stall_detector {
            stall_detector.conclude(self.now_ns);
        }
        if !is_stopped {
            self.report_stall(&owners, 0);
        }
    }

    /// Moves what waits in sockets whose workers cannot accept it. Runs when these are excluded.
    pub(super) fn relieve(&mut self) {
        let rules = self.steerer.rules;
        for place in 0..self.acceptors.len() {
            if !rules.lacks_inboxes {
                return;
            }
            let Some(acceptor) = self.acceptors[place].as_mut().filter(|one| one.needs_relief)
            else {
                continue;
            };
            acceptor.needs_relief = false;
            let owners = acceptor.owners.clone();
            let moved = if rules.is_exact { self.move_queue(place) } else { None };
            self.report_stall(&owners, moved.unwrap_or(0));
            let Some(acceptor) = &mut self.acceptors[place] else { continue };
            match moved {
                Some(_) => {
                    acceptor.waiting = 0;
                    if let Some(stall_detector) = &mut acceptor.stall_detector {
                        // Only a new connection can show that the worker accepts again.
                        stall_detector.judge(u64::MAX, self.now_ns);
                    }
                    self.ask(place);
                }
                // When a worker comes, it gets them.
                None => acceptor.needs_relief = acceptor.is_deserted && rules.is_exact,
            }
        }
    }

    pub(super) fn report_stall(&mut self, owners: &[Slot], mut taken_back: u32) {
        for slot in owners.iter().copied() {
            if !self.suspected.contains(&slot) {
                self.suspected.push(slot);
                // Each connection is reported once, even if several accept from there.
                let taken_back = std::mem::take(&mut taken_back);
                self.report(DataPathReport::Hung { slot, taken_back });
            }
        }
    }

    /// Moves the queue of a socket, if another worker can take it. Returns how many moved.
    fn move_queue(&mut self, place: usize) -> Option<u32> {
        let from = self.acceptors[place].as_ref()?;
        let (id, number) = (from.id, from.number);
        let own: Vec<&Acceptor> = self.own_sockets_of(id);
        let is_able = |one: &&Acceptor| one.number != number && self.load_of(one).is_able;
        let length = backlog::length(from.listener()?).ok()?;
        if !own.iter().any(is_able) {
            return None;
        }
        if length == 0 {
            return Some(0);
        }
        let mut ports = std::mem::take(&mut self.steerer.ports);
        let own = self.own_sockets_of(id);
        let port = ports.iter_mut().find(|port| port.listener == id);
        let moved = port.map_or(Err(Errno::ENOENT), |port| self.move_among(port, &own, number));
        self.steerer.ports = ports;
        match moved {
            Ok(is_moved) => is_moved.then_some(length),
            Err(source) => {
                let step = "give other workers the connections of one that is stopped".into();
                let hint = "they wait for it; restart the run if its address stays silent".into();
                let error = Error::Environment { step, source: source.into(), hint };
                self.report(DataPathReport::Unsteered { error });
                None
            }
        }
    }
}
