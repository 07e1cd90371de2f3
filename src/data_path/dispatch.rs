//! Giving accepted sockets away, and accepting only as fast as they are taken.

use super::link::Accepted;
use super::{DataPath, Stage};
use crate::id::Slot;
use crate::protocol::scoreboard::Wake;

impl DataPath {
    /// Gives away what waits, as far as there are takers, and sends one message a worker.
    pub(super) fn dispatch(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        self.observe();
        // Sockets whose listener has no taker stay in order for the next turn.
        let mut left = 0;
        while left < self.waiting.len() {
            let Accepted { record, client, has_waited, .. } = &self.waiting[left];
            let idle = has_waited.then(|| self.roster.pick_idle(record.listener)).flatten();
            match idle.or_else(|| self.roster.pick(record.listener, *client)) {
                Some(slot) => {
                    let accepted = self.waiting.remove(left).expect("the position was checked");
                    self.assign(slot, accepted);
                }
                None if self.listeners == 1 => break,
                None => left += 1,
            }
        }
        for (link, slot) in self.links.iter_mut().zip((0..).map(Slot)) {
            let Some(link) = link else { continue };
            let count = link.finish(&mut self.ring);
            self.roster.deliver(slot, count, self.now_ns);
        }
    }

    fn assign(&mut self, slot: Slot, accepted: Accepted) {
        let link = self.links[slot.index()].as_mut().expect("only attached workers are ready");
        let count = link.add(&mut self.ring, &mut self.spare, accepted);
        self.roster.deliver(slot, count, self.now_ns);
    }

    /// Reads what the workers say of themselves.
    pub(super) fn observe(&mut self) {
        for (link, slot) in self.links.iter().zip((0..).map(Slot)) {
            if let Some(link) = link {
                self.roster.observe(slot, link.page.sample(), self.now_ns);
            }
        }
    }

    /// Accepts while there are takers; otherwise lets the kernel's backlog be the queue and asks
    /// the workers to ring when they have done something.
    pub(super) fn control_intake(&mut self) {
        let open = self.stage == Stage::Open;
        if !open && self.removals == 0 {
            return;
        }
        for attempt in 0..2 {
            let held_up = !self.waiting.is_empty();
            let mut crowded = held_up;
            for acceptor in self.acceptors.iter_mut().flatten() {
                if acceptor.is_owned() {
                    acceptor.pause(&mut self.ring);
                    continue;
                }
                let takes = self.roster.has_room(acceptor.id);
                crowded |= !takes;
                if acceptor.leaving {
                    continue;
                }
                if open && takes && !held_up {
                    acceptor.arm(&mut self.ring, self.now_ns);
                } else if attempt == 1 {
                    acceptor.pause(&mut self.ring);
                }
            }
            self.note_pause(crowded && open);
            self.ask_for_wake(crowded);
            if !crowded {
                return;
            }
            // A worker may have finished something between the choice and the request for the
            // bell; whoever finishes after it will ring.
            self.observe();
            self.dispatch();
        }
    }

    fn note_pause(&mut self, crowded: bool) {
        match (crowded, self.paused_since_ns) {
            (true, None) => {
                self.totals.pauses += 1;
                self.paused_since_ns = Some(self.now_ns);
            }
            (false, Some(since_ns)) => {
                self.totals.paused_ns += self.now_ns.saturating_sub(since_ns);
                self.paused_since_ns = None;
            }
            _ => {}
        }
    }

    fn ask_for_wake(&mut self, crowded: bool) {
        for (link, slot) in self.links.iter_mut().zip((0..).map(Slot)) {
            let Some(link) = link else { continue };
            let wake = match (crowded, self.roster.is_suspected(slot)) {
                (true, _) => Wake::Always,
                (false, true) => Wake::Probe,
                (false, false) => Wake::Never,
            };
            link.page.set_wake(wake);
        }
    }
}
