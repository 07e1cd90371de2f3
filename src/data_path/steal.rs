//! Workers' own sockets, and stealing from them.
//!
//! The primary holds a duplicate of each. While a socket has no owner, the primary accepts from it;
//! otherwise the primary is notified of arrivals and checks that they are accepted in time. Owns
//! the set of watched queues. `schedule::stall_detector` decides when to steal.

use std::os::fd::AsFd as _;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::acceptor::Acceptor;
use super::handoff::Link;
use super::{DataPath, DataPathReport, DataPathStage, OwnSocketRules, WATCH};
use crate::error::{Error, Result};
use crate::id::{ListenerId, Slot};
use crate::protocol::worker_end::is_slow_turn;
use crate::schedule::{CHANGE_NS, Finding, Sample, StallDetector};
use crate::sys::limits;
use crate::sys::listener::Listener;
use crate::sys::picking::Alarm;

/// A worker that works on nothing has probably not been scheduled for this long, and another one
/// would not be either; later it is stopped.
const UNSCHEDULED_NS: u64 = 25_000_000;
/// Queues reported per turn; the rest follow in the next.
const TOLD_MAX: usize = 64;
/// Stands for the kernel's alarm, where others are places.
const ALARM: u64 = u64::MAX;

/// Reports arrivals in queues. An epoll set, because it holds no reference to its members: a poll
/// of the ring would keep a socket listening that every owner has closed.
#[derive(Debug)]
pub(super) struct ArrivalWatch {
    pub(super) epoll: Epoll,
    /// The engine reports when there are any.
    pub(super) is_polled: bool,
}

impl ArrivalWatch {
    pub(super) fn new() -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC);
        let epoll = epoll.map_err(|errno| Error::system("create an epoll set", errno))?;
        Ok(Self { epoll, is_polled: false })
    }

    /// Asks for one notification of a present or future connection in the queue.
    pub(super) fn ask(&self, listener: &Listener, place: usize) {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT;
        let mut event = EpollEvent::new(flags, place as u64);
        // Without memory for it the worker is left alone, which equals not watching.
        if self.epoll.modify(listener, &mut event) == Err(Errno::ENOENT) {
            let _ = self.epoll.add(listener, event);
        }
    }

    /// Reports when the kernel raises this alarm.
    pub(super) fn listen_to(&self, alarm: &Alarm) -> std::result::Result<(), Errno> {
        self.epoll.add(alarm, EpollEvent::new(EpollFlags::EPOLLIN, ALARM))
    }

    fn forget(&self, listener: &Listener) {
        let _ = self.epoll.delete(listener);
    }

    /// The places of queues with arrivals, and [`ALARM`].
    fn ready(&self) -> Vec<u64> {
        let mut ready = [EpollEvent::empty(); TOLD_MAX];
        let count = self.epoll.wait(&mut ready, EpollTimeout::ZERO).unwrap_or(0);
        ready[..count].iter().map(EpollEvent::data).collect()
    }
}

impl DataPath {
    /// Sets the workers that accept from a socket; if there are none, the primary does.
    pub(super) fn set_owners(&mut self, listener: ListenerId, number: u16, owners: Vec<Slot>) {
        let wanted = |acceptor: &Acceptor| {
            acceptor.id == listener && acceptor.number == Some(number) && !acceptor.leaving
        };
        let mut places = self.acceptors.iter_mut().enumerate();
        let found = places.find_map(|(place, acceptor)| {
            acceptor.as_mut().filter(|acceptor| wanted(acceptor)).map(|acceptor| (place, acceptor))
        });
        let Some((place, acceptor)) = found else { return };
        let is_steered = self.steerer.rules.is_steered;
        (acceptor.needs_relief, acceptor.is_deserted) = (false, false);
        let before = std::mem::replace(&mut acceptor.owners, owners);
        // The history of the old owners does not apply to the new ones.
        acceptor.stall_detector = self.hang_after_ns.map(|hang_after_ns| match is_steered {
            true => StallDetector::looking_every(CHANGE_NS, hang_after_ns),
            false => StallDetector::new(hang_after_ns),
        });
        (acceptor.own_before, acceptor.patience) = (None, 1);
        let is_checked = acceptor.stall_detector.is_some();
        self.steerer.is_due = true;
        match acceptor.is_owned() {
            true if is_checked => self.ask(place),
            _ => self.unwatch(place),
        }
        if !is_checked {
            // Without checks nothing would correct what the kernel counts.
            let owners = self.acceptors[place].iter().flat_map(|acceptor| &acceptor.owners);
            let links = owners.filter_map(|slot| self.links.get(slot.index())?.as_ref());
            links.for_each(|link| link.page.ignore_picks());
        }
        before.into_iter().for_each(|slot| self.update_stalled(slot));
        self.look_at_all();
    }

    /// Ends notifications for this place.
    pub(super) fn unwatch(&self, place: usize) {
        let listener = self.acceptors[place].as_ref().and_then(Acceptor::listener);
        if let Some(listener) = listener {
            self.watch.forget(listener);
        }
    }

    pub(super) fn ask(&self, place: usize) {
        let listener = self.acceptors[place].as_ref().and_then(Acceptor::listener);
        if let Some(listener) = listener {
            self.watch.ask(listener, place);
        }
    }

    /// Has the engine report arrivals, unless they are read at the next check anyway.
    pub(super) fn await_arrivals(&mut self) {
        if !self.watch.is_polled && !self.reads_arrivals_at_checks() {
            self.watch.is_polled = true;
            self.ring.poll_readable(WATCH, self.watch.epoll.0.as_fd());
        }
    }

    /// Whether queues are checked at the common moments now, so that this thread does not wake up
    /// for each of them that something arrives in. Where the kernel watches, or this thread
    /// accepts, an arrival is not to wait for that.
    fn reads_arrivals_at_checks(&self) -> bool {
        if !self.steerer.rules.is_steered || self.steerer.watches() {
            return false;
        }
        let soon_ns = self.now_ns.saturating_add(2 * CHANGE_NS);
        let mut acceptors = self.acceptors.iter().flatten();
        let is_soon = |one: &Acceptor| one.next_look_ns().is_some_and(|at_ns| at_ns <= soon_ns);
        acceptors.clone().all(|one| !one.awaits_by_hand()) && acceptors.any(is_soon)
    }

    /// Some queues have arrivals.
    pub(super) fn on_arrivals(&mut self) {
        for place in self.watch.ready() {
            if place == ALARM {
                self.on_alarm();
                continue;
            }
            let Ok(place) = usize::try_from(place) else { continue };
            let Some(Some(acceptor)) = self.acceptors.get_mut(place) else { continue };
            acceptor.has_come();
            acceptor.needs_relief |= acceptor.is_deserted;
            if let Some(stall_detector) = &mut acceptor.stall_detector {
                stall_detector.came(self.now_ns);
            }
            self.look_soon_behind_long_work(place);
        }
    }

    /// A worker's counts have changed while none of its queues was checked.
    pub(super) fn on_change(&mut self, slot: Slot) {
        let acceptors = self.acceptors.iter_mut().flatten();
        for acceptor in acceptors.filter(|acceptor| acceptor.owners.contains(&slot)) {
            if let Some(stall_detector) = &mut acceptor.stall_detector {
                stall_detector.on_worker_activity(self.now_ns);
            }
        }
    }

    /// Checks the queues that are due, and steals from workers that do not accept.
    pub(super) fn check_own_sockets(&mut self) {
        let mut looks = self.acceptors.iter().flatten().filter_map(Acceptor::next_look_ns);
        if !self.watch.is_polled && looks.any(|look_ns| look_ns <= self.now_ns) {
            self.on_arrivals();
        }
        let OwnSocketRules { is_steered, is_counted, is_exact, lacks_inboxes } = self.steerer.rules;
        let (mut looked_at, mut at_rest) = (Vec::new(), Vec::new());
        for place in 0..self.acceptors.len() {
            let Some(acceptor) = &mut self.acceptors[place] else { continue };
            if acceptor.next_look_ns().is_none_or(|look_ns| look_ns > self.now_ns) {
                continue;
            }
            let links = &self.links;
            let owners = acceptor.owners.iter();
            let owners = owners.filter_map(|slot| links.get(slot.index())?.as_ref());
            let is_counted = is_counted && owners.clone().all(Link::reports_ends);
            let all = is_exact && owners.clone().all(|link| link.page.waiting_picks() == 0);
            let own = is_counted.then(|| owners.map(|link| link.page.sample().own).sum());
            let finding = acceptor.look(own, all, self.now_ns);
            self.steerer.is_due = true;
            looked_at.push(place);
            match finding {
                None => continue,
                Some(finding) if self.may_rest(place, finding) => at_rest.push((place, finding)),
                Some(finding) if lacks_inboxes => self.look_after(place, finding),
                Some(Finding::Patient) if !is_steered => continue,
                Some(Finding::Patient) if is_counted => self.move_waiting(place),
                Some(Finding::Patient) => {}
                Some(Finding::Quiet) => self.ask(place),
                Some(Finding::Overdue) => self.steal(place),
            }
            if self.acceptors[place].as_ref().is_some_and(|acceptor| acceptor.waiting > 0) {
                self.look_soon_behind_long_work(place);
            }
            self.update_owners(place);
            self.report_doubt(place);
        }
        if !looked_at.is_empty() && is_steered {
            self.correct_picks();
            let were_higher = self.correct_what_the_kernel_watches(&looked_at);
            self.leave_to_the_kernel(&at_rest, &were_higher);
        }
        self.trust_for_want_of_others();
    }

    /// Tells the kernel how many of the connections that it picked workers for still wait for them:
    /// a handshake that never completes would count for ever. Of a queue whose check is still to
    /// come, the length is not known.
    fn correct_picks(&self) {
        for (link, slot) in self.links.iter().zip((0..).map(Slot::new)) {
            let Some(link) = link else { continue };
            let acceptors = self.acceptors.iter().flatten();
            let own = acceptors.filter(|acceptor| acceptor.owners.contains(&slot));
            // These are corrected when they are looked at.
            if own.clone().any(|acceptor| self.can_be_left(acceptor)) {
                continue;
            }
            let is_known =
                |one: &Acceptor| one.next_look_ns().is_none_or(|_| one.looked_ns == self.now_ns);
            if own.clone().all(is_known) {
                link.page.correct_picks(own.map(|acceptor| acceptor.waiting).sum());
            }
        }
    }

    /// Moves connections that wait behind a worker's work to idle workers, one for each.
    fn move_waiting(&mut self, place: usize) {
        let Some(acceptor) = self.acceptors[place].as_ref().filter(|one| one.may_be_stalled())
        else {
            return;
        };
        let (id, owners) = (acceptor.id, acceptor.owners.clone());
        let still_ns = acceptor.still_ns(self.now_ns);
        if self.stage != DataPathStage::Open || self.intake.len_of(id) > 0 {
            return;
        }
        self.observe();
        let is_at_work = owners.iter().any(|slot| self.roster.is_at_work(*slot));
        if !is_at_work && still_ns < UNSCHEDULED_NS {
            return;
        }
        owners.iter().for_each(|slot| self.roster.set_stalled(*slot, true));
        let idle = self.roster.idle_of(id);
        let Some(acceptor) = self.acceptors[place].as_mut().filter(|_| idle > 0) else { return };
        let taken =
            limits::with_descriptors_held_back(self.held_back, || acceptor.take_waiting(idle));
        acceptor.has_lost(taken.len());
        taken.into_iter().for_each(|socket| self.take_over(place, socket, true));
        self.probe_owners(place);
    }

    /// Checks a queue again soon if connections wait in it behind long work. They move then, if
    /// another worker is idle.
    fn look_soon_behind_long_work(&mut self, place: usize) {
        let Some(after_ns) = self.roster.take_back_after_ns() else { return };
        let is_behind = self.is_behind_long_work(place);
        let Some(acceptor) = self.acceptors[place].as_mut().filter(|_| is_behind) else { return };
        if let Some(stall_detector) = &mut acceptor.stall_detector {
            stall_detector.is_behind_long_work(after_ns / 2, self.now_ns);
        }
    }

    /// Whether what waits in a queue would move to idle workers, and a worker that accepts from it
    /// is in the middle of long work.
    fn is_behind_long_work(&self, place: usize) -> bool {
        let rules = self.steerer.rules;
        let may_move = rules.is_steered && rules.is_counted && !rules.lacks_inboxes;
        if !may_move || self.roster.take_back_after_ns().is_none() {
            return false;
        }
        let Some(acceptor) = &self.acceptors[place] else { return false };
        let does_long_work = |slot: &Slot| {
            let Some(Some(link)) = self.links.get(slot.index()) else { return false };
            // What a program calls progress is no turn.
            if link.page.program_reports() {
                return false;
            }
            let Sample { claimed, own, finished, turn_begun_ns, .. } = link.page.sample();
            let is_at_work = turn_begun_ns > 0 && claimed.saturating_add(own) > finished;
            is_at_work && is_slow_turn(self.now_ns.saturating_sub(turn_begun_ns))
        };
        acceptor.owners.iter().any(does_long_work)
    }

    /// Clears the suspicion against workers for which nothing has arrived that could confirm it.
    fn report_doubt(&mut self, place: usize) {
        let Some(acceptor) = self.acceptors[place].as_ref().filter(|one| one.is_doubtful()) else {
            return;
        };
        for slot in acceptor.owners.clone() {
            if let Some(suspected) = self.suspected.iter().position(|one| *one == slot) {
                self.suspected.remove(suspected);
                self.report(DataPathReport::Recovered { slot });
            }
        }
    }

    /// If all owners are stalled, retries those that may have recovered.
    fn trust_for_want_of_others(&mut self) {
        for place in 0..self.acceptors.len() {
            let doubtful = self.acceptors[place].as_ref().filter(|one| one.is_doubtful());
            let Some(id) = doubtful.map(|acceptor| acceptor.id) else { continue };
            let mut others = self.acceptors.iter().flatten().filter(|one| one.id == id);
            if others.any(|one| one.is_owned() && !one.is_stalled()) {
                continue;
            }
            if let Some(acceptor) = &mut self.acceptors[place] {
                acceptor.stall_detector = acceptor.stall_detector.take().map(StallDetector::anew);
            }
            self.update_owners(place);
        }
    }

    /// Steals what waits, if the oldest has waited too long and another worker can take it.
    fn steal(&mut self, place: usize) {
        let Some(acceptor) = &self.acceptors[place] else { return };
        if self.stage != DataPathStage::Open || self.intake.len_of(acceptor.id) > 0 {
            return;
        }
        let (id, owners) = (acceptor.id, acceptor.owners.clone());
        self.observe();
        // Never hand it to a worker that may be stalled.
        owners.iter().for_each(|slot| self.roster.set_stalled(*slot, true));
        if !self.roster.has_room(id) {
            return self.report_what_stays(place, &owners);
        }
        let Some(acceptor) = &mut self.acceptors[place] else { return };
        let now_ns = self.now_ns;
        // Reserves as many descriptors as accepting does.
        let taken = limits::with_descriptors_held_back(self.held_back, || acceptor.steal(now_ns));
        let stalled = acceptor.is_stalled();
        acceptor.has_lost(taken.len());
        let count = u32::try_from(taken.len()).expect("bounded");
        taken.into_iter().for_each(|socket| self.accept(place, socket));
        if stalled {
            self.report_stall(&owners, count);
        }
        if stalled && self.steerer.rules.is_counted {
            self.probe_owners(place);
        }
        self.ask(place);
    }

    /// No other worker can take what waits. The age of the oldest is unknown, but owners that count
    /// have accepted nothing for too long, and may have to be replaced.
    fn report_what_stays(&mut self, place: usize, owners: &[Slot]) {
        let Some(acceptor) =
            self.acceptors[place].as_mut().filter(|_| self.steerer.rules.is_counted)
        else {
            return;
        };
        if let Some(stall_detector) =
            acceptor.stall_detector.as_mut().filter(|one| !one.is_stalled())
        {
            stall_detector.conclude(self.now_ns);
            self.report_stall(owners, 0);
            self.probe_owners(place);
        }
    }

    /// Probes the owners of a socket, where possible.
    fn probe_owners(&mut self, place: usize) {
        let Some(acceptor) = &self.acceptors[place] else { return };
        for slot in acceptor.owners.clone() {
            let Some(Some(link)) = self.links.get_mut(slot.index()) else { continue };
            if self.roster.doubt(slot) {
                link.probe(&mut self.ring, &mut self.spare);
                self.probed.push(slot);
            }
        }
    }

    /// A worker that has answered is alive, so earlier findings on its sockets are void.
    pub(super) fn trust_those_who_answered(&mut self) {
        let roster = &self.roster;
        let (still, moves): (Vec<Slot>, Vec<Slot>) =
            self.probed.iter().partition(|slot| roster.is_probed(**slot));
        self.probed = still;
        for slot in moves {
            let own = self.acceptors.iter_mut().flatten().filter(|one| one.owners.contains(&slot));
            own.for_each(|acceptor| {
                if let Some(stall_detector) = &mut acceptor.stall_detector {
                    stall_detector.has_moved(self.now_ns);
                }
            });
            self.update_stalled(slot);
            self.steerer.is_due = true;
        }
    }

    fn update_owners(&mut self, place: usize) {
        let Some(acceptor) = &self.acceptors[place] else { return };
        let owners = acceptor.owners.clone();
        owners.into_iter().for_each(|slot| self.update_stalled(slot));
    }

    /// A worker gets no connections of others while one of its sockets is suspicious.
    fn update_stalled(&mut self, slot: Slot) {
        let acceptors = self.acceptors.iter().flatten();
        let mut own = acceptors.filter(|acceptor| acceptor.owners.contains(&slot));
        let stalled = match self.steerer.rules.lacks_inboxes {
            // They get none of others, and one that works has a queue.
            true => own.any(Acceptor::is_stalled),
            false => own.any(Acceptor::may_be_stalled),
        };
        self.roster.set_stalled(slot, stalled);
    }
}
