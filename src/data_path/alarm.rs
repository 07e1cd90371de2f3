//! What the kernel watches for this thread, so that it sleeps while no queue is stuck.
//!
//! The program by which the kernel picks has a timer that finds workers which do not accept
//! (`sys::picking`). Owns who watches a queue: this thread, from the kernel's alarm on until the
//! worker accepts again and its queue is empty, and the kernel at all other times.

use super::DataPath;
use super::acceptor::Acceptor;
use crate::id::Slot;
use crate::schedule::Finding;
use crate::sys::backlog;
use crate::sys::picking::{Alarm, TICK_NS, Told};

/// Longest patience in ticks: the handshakes of clients with a longer way look like stuck
/// connections.
const PATIENCE_MAX: u64 = 16;

impl DataPath {
    /// Lets the kernel watch queues, if it can; otherwise this thread looks at them.
    pub(super) fn listen_to_the_kernel(&mut self) {
        let alarm = Alarm::new().ok();
        self.steerer.alarm = alarm.filter(|alarm| self.watch.listen_to(alarm).is_ok());
    }

    /// The kernel has found workers that do not accept, or it is time to refresh what it picks by.
    pub(super) fn on_alarm(&mut self) {
        let Some(alarm) = &self.steerer.alarm else { return };
        alarm.clear();
        self.steerer.is_due = true;
        for slot in (0..self.links.len()).filter_map(|place| u16::try_from(place).ok()) {
            let slot = Slot::new(slot);
            let Some(Some(link)) = self.links.get(slot.index()) else { continue };
            let Some(told) = link.page.take_told() else { continue };
            link.page.set_patience(0);
            let own = link.page.sample().own;
            for acceptor in self.acceptors.iter_mut().flatten() {
                if acceptor.owners == [slot] {
                    acceptor.on_told(told, own, self.now_ns);
                }
            }
        }
    }

    /// Looks at all queues soon: the kernel may not know what waits in them.
    pub(super) fn look_at_all(&mut self) {
        if self.steerer.alarm.is_none() {
            return;
        }
        for acceptor in self.acceptors.iter_mut().flatten().filter(|one| one.is_owned()) {
            if let Some(stall_detector) = &mut acceptor.stall_detector {
                stall_detector.came(self.now_ns);
            }
        }
        self.links.iter().flatten().for_each(|link| link.page.set_patience(0));
    }

    /// Whether the kernel can watch a queue: one worker accepts from it, into the page by which the
    /// kernel picks.
    pub(super) fn can_be_left(&self, acceptor: &Acceptor) -> bool {
        let [slot] = acceptor.owners[..] else { return false };
        let link = self.links.get(slot.index()).and_then(Option::as_ref);
        let link = link.filter(|link| !link.page.is_copied());
        self.steerer.alarm.is_some()
            && link.is_some_and(|link| {
                self.steerer.is_watching(acceptor.id, acceptor.number, link.key())
            })
    }

    /// Whether this finding is no reason to look at the queue any longer.
    pub(super) fn may_rest(&mut self, place: usize, finding: Finding) -> bool {
        // The kernel's timer may not run: only a pick starts it.
        let can_be_left = self.acceptors[place]
            .as_ref()
            .is_some_and(|acceptor| acceptor.waiting == 0 && self.can_be_left(acceptor));
        let Some(acceptor) = self.acceptors[place].as_mut().filter(|_| can_be_left) else {
            return false;
        };
        let is_stuck = finding == Finding::Overdue || acceptor.may_be_stalled();
        if is_stuck {
            acceptor.patience = 1;
        } else if let Some(stall_detector) = &mut acceptor.stall_detector {
            stall_detector.rest();
        }
        !is_stuck
    }

    /// Corrects what the kernel counts for workers whose queues were looked at. Returns those for
    /// which it had counted more than waits.
    pub(super) fn correct_what_the_kernel_watches(&self, looked_at: &[usize]) -> Vec<Slot> {
        let acceptors = looked_at.iter().filter_map(|place| self.acceptors[*place].as_ref());
        let slots = acceptors.filter(|acceptor| self.can_be_left(acceptor));
        let mut slots: Vec<Slot> = slots.flat_map(|acceptor| &acceptor.owners).copied().collect();
        slots.sort_unstable();
        slots.dedup();
        slots.retain(|slot| {
            let link = self.links.get(slot.index()).and_then(Option::as_ref);
            let own = self.acceptors.iter().flatten().filter(|one| one.owners.contains(slot));
            let length = || {
                own.clone()
                    .map(|one| one.listener().and_then(|one| backlog::length(one).ok()))
                    .sum()
            };
            link.is_some_and(|link| link.page.correct_picks_by(length))
        });
        slots
    }

    /// Leaves queues to the kernel. `were_higher` are the workers for which it had counted more
    /// than waits.
    pub(super) fn leave_to_the_kernel(
        &mut self,
        queues: &[(usize, Finding)],
        were_higher: &[Slot],
    ) {
        for (place, finding) in queues.iter().copied() {
            let Some(acceptor) = &mut self.acceptors[place] else { continue };
            let [slot] = acceptor.owners[..] else { continue };
            // A handshake may be under way that is not counted any more.
            let is_expected = were_higher.contains(&slot);
            let was_wrong = is_expected && finding == Finding::Quiet;
            if std::mem::take(&mut acceptor.is_told_stuck) && was_wrong {
                acceptor.patience = PATIENCE_MAX.min(2 * acceptor.patience);
            }
            let patience = acceptor.patience;
            let mut own = self.acceptors.iter().flatten().filter(|one| one.owners.contains(&slot));
            let is_looked_at = own.any(|one| one.is_stalled() || one.next_look_ns().is_some());
            let link = self.links.get(slot.index()).and_then(Option::as_ref);
            let mut may_wait = is_expected || is_looked_at;
            if let Some(link) = link.filter(|_| !is_looked_at) {
                link.page.set_patience(patience);
                // Picked before that, for which the kernel's timer may not run.
                may_wait |= link.page.waiting_picks() > 0;
            }
            if may_wait {
                self.ask(place);
            }
        }
    }
}

impl Acceptor {
    /// The kernel has told about the only worker that accepts from it, which has accepted `own`.
    fn on_told(&mut self, told: Told, own: u64, now_ns: u64) {
        let Some(stall_detector) = &mut self.stall_detector else { return };
        let is_stuck = told == Told::Stuck;
        if is_stuck {
            self.own_before = Some(own);
        }
        self.is_told_stuck = is_stuck;
        let still_ns = if is_stuck { self.patience * TICK_NS } else { 0 };
        stall_detector.told(now_ns.saturating_sub(still_ns), now_ns);
    }
}
