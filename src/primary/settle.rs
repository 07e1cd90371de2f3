//! What became of messages and workers: delivered, refused, taken back.
//!
//! Owns the rule that a socket which did not reach a worker goes back to the front of the queue.

use nix::errno::Errno;

use super::link::{self, Accepted};
use super::{CROWDED_NS, Primary, Report, SPARE_MESSAGES_MAX};
use crate::id::Slot;
use crate::schedule::{Standing, WorkerLoad};
use crate::sys::ring::{Key, Outcome, OutgoingMessage};

impl Primary {
    /// A message has gone, or has not.
    pub(super) fn settle(
        &mut self,
        key: Key,
        mut message: Box<OutgoingMessage>,
        outcome: Outcome<()>,
    ) {
        let place = key.index as usize;
        if let Some(link) = &mut self.links[place] {
            link.answered();
        }
        match outcome {
            Ok(()) => {
                // The channel holds its own references now; ours would keep a connection from
                // ending when the worker closes it.
                for socket in message.drain() {
                    self.ring.close(socket);
                }
            }
            Err(errno) => self.refused(key, &mut message, errno),
        }
        if let Some(link) = &mut self.links[place] {
            link.close_if_retired();
        }
        if self.spare.len() < SPARE_MESSAGES_MAX {
            message.drain();
            self.spare.push(message);
        }
    }

    pub(super) fn refused(&mut self, key: Key, message: &mut OutgoingMessage, errno: Errno) {
        let place = key.index as usize;
        let returned = link::unpack(message);
        self.totals.refused += returned.len() as u64;
        if let Some(link) = &mut self.links[place] {
            link.board.add_returned(returned.len() as u64);
            let load = &mut self.loads[place];
            let slot = Slot(u16::try_from(key.index).expect("keys of links are slots"));
            load.standing = match (load.standing, errno) {
                (Standing::Ready, Errno::EAGAIN) => {
                    link.await_room(&mut self.ring);
                    Standing::Full
                }
                (Standing::Ready, Errno::ETOOMANYREFS | Errno::ENOMEM | Errno::ENOBUFS) => {
                    self.crowded.push((slot, self.now_ns + CROWDED_NS));
                    Standing::Full
                }
                // Already known to be full: one waiter is enough.
                (standing, Errno::EAGAIN | Errno::ETOOMANYREFS) => standing,
                // The worker has closed its inbox; the supervisor will hear of its end.
                _ => Standing::Draining,
            };
        }
        self.put_back(returned);
    }

    /// Puts sockets back to the front of the queue, oldest first.
    pub(super) fn put_back(&mut self, sockets: Vec<Accepted>) {
        self.totals.redispatched += sockets.len() as u64;
        for accepted in sockets.into_iter().rev() {
            self.waiting.push_front(accepted);
        }
    }

    /// Notes whether every worker serves every listener, which spares the masking.
    pub(super) fn note_uniformity(&mut self) {
        let links = self.links.iter().flatten();
        self.uniform = links
            .into_iter()
            .all(|link| self.acceptors.iter().all(|acceptor| link.has_joined(acceptor.id)));
    }

    /// A full channel has room again.
    pub(super) fn revive(&mut self, key: Key) {
        let place = key.index as usize;
        let Some(Some(link)) = self.links.get(place) else {
            return;
        };
        if link.key() == key && self.loads[place].standing == Standing::Full {
            self.loads[place].standing = Standing::Ready;
        }
    }

    pub(super) fn relieve_crowded(&mut self) {
        let now_ns = self.now_ns;
        let loads = &mut self.loads;
        self.crowded.retain(|(slot, until_ns)| {
            let over = *until_ns <= now_ns;
            if over && loads[slot.index()].standing == Standing::Full {
                loads[slot.index()].standing = Standing::Ready;
            }
            !over
        });
    }

    /// Takes back what ended workers left, once nothing is under way to them.
    pub(super) fn bury(&mut self) {
        let mut unfinished = Vec::new();
        for slot in std::mem::take(&mut self.buried) {
            let Some(place) = self.links.get_mut(slot.index()) else {
                continue;
            };
            let Some(link) = place else { continue };
            self.loads[slot.index()].standing = Standing::Dead;
            if !link.is_quiet() {
                unfinished.push(slot);
                continue;
            }
            let taken = link.take_back();
            let tally = link.tally();
            *place = None;
            self.note_uniformity();
            self.loads[slot.index()] = WorkerLoad::default();
            self.put_back(taken);
            self.report(Report::Buried { slot, tally });
        }
        self.buried = unfinished;
    }
}
