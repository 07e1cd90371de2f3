//! Everything the primary knows of its workers, and what follows from it. Pure: time and the
//! workers' counters are arguments.
//!
//! Owns standing, credits, suspicion and the row of loads. The data path tells it what happened to
//! sockets and does what it says; a simulation can do the same.

use super::cascade::Skips;
use super::chooser::Chooser;
use super::credits::Credits;
use super::loads::Loads;
use super::picker::Picker;
use super::rules::Rules;
use super::{Client, Scheduler, Standing, WorkerLoad};
use crate::id::{ListenerId, Slot};

/// What a worker's page says at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Connections that it has received.
    pub claimed: u64,
    /// Connections that it has done with.
    pub finished: u64,
    /// When it last received one.
    pub claimed_at_ns: u64,
    /// Since when its loop has been in its present turn; 0 while it waits.
    pub turn_begun_ns: u64,
    /// Probes that it has answered.
    pub answered_probes: u64,
}

/// Why a message came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The channel has no room; it will say when it has.
    Full,
    /// The worker takes nothing any more.
    Closed,
}

/// A worker in its slot.
#[derive(Clone, Debug)]
struct Seat {
    joined: u64,
    assigned: u64,
    returned: u64,
    credits: Credits,
    /// When it came, if others had been serving.
    came_ns: Option<u64>,
    /// Probes sent; it is suspected until it has answered them all.
    probes: u64,
    suspected: bool,
    /// It leaves connections in its own socket, or may be about to.
    stalled: bool,
    sample: Sample,
}

/// All workers.
#[derive(Debug)]
pub struct Roster {
    rules: Rules,
    seats: Vec<Option<Seat>>,
    loads: Loads,
    /// The loads as one listener sees them, when not every worker serves every listener.
    masked: Loads,
    uniform: bool,
    lanes: Vec<Option<Lane>>,
    /// Of listeners that are gone.
    skips_before: Skips,
}

/// A listener with its own rotation. Its position is its bit in `Seat::joined`.
#[derive(Debug)]
struct Lane {
    listener: ListenerId,
    chooser: Chooser,
}

/// A worker with so many connections has enough to do for a while, if it is slow to claim them.
const PLENTY: u32 = 4;
/// Most listeners at a time: the bits of `Seat::joined`.
const LANES_MAX: usize = 64;

impl Roster {
    /// A roster without workers, for the listeners from 0 to so many.
    ///
    /// # Panics
    /// When that is more than 64.
    #[must_use]
    pub fn new(rules: Rules, listeners: u16) -> Self {
        let mut roster = Self {
            rules,
            seats: Vec::new(),
            loads: Loads::default(),
            masked: Loads::default(),
            uniform: true,
            lanes: Vec::new(),
            skips_before: Skips::default(),
        };
        (0..listeners).map(ListenerId).for_each(|listener| roster.add_listener(listener));
        roster
    }

    /// A listener has come, with a rotation of its own; nobody serves it yet.
    ///
    /// # Panics
    /// When there are 64 already.
    pub fn add_listener(&mut self, listener: ListenerId) {
        let chooser = match &self.rules.scheduler {
            None => Chooser::BuiltIn(Picker::new(self.rules.order, self.rules.limits)),
            Some(factory) => Chooser::Foreign(factory.make(listener)),
        };
        let lane = Some(Lane { listener, chooser });
        match self.lanes.iter_mut().find(|lane| lane.is_none()) {
            Some(place) => *place = lane,
            None => self.lanes.push(lane),
        }
        assert!(self.lanes.len() <= LANES_MAX, "listeners are bounded");
        self.note_uniformity();
    }

    /// A listener has gone.
    pub fn remove_listener(&mut self, listener: ListenerId) {
        let Some(place) = self.lane_of(listener) else { return };
        if let Some(lane) = self.lanes[place].take() {
            self.skips_before.add(&lane.chooser.skips());
        }
        self.seats.iter_mut().flatten().for_each(|seat| seat.joined &= !(1 << place));
        self.note_uniformity();
    }

    fn lane_of(&self, listener: ListenerId) -> Option<usize> {
        let has = |lane: &Option<Lane>| matches!(lane, Some(lane) if lane.listener == listener);
        self.lanes.iter().position(has)
    }

    /// Whether somebody takes connections of a listener, now or as soon as there is room.
    #[must_use]
    pub fn is_served(&self, listener: ListenerId) -> bool {
        let Some(place) = self.lane_of(listener) else { return false };
        self.seats.iter().zip(&*self.loads).any(|(seat, load)| {
            let joined = matches!(seat, Some(seat) if seat.joined & (1 << place) != 0);
            joined && matches!(load.standing, Standing::Ready | Standing::Full)
        })
    }

    /// A worker has come.
    pub fn attach(&mut self, slot: Slot, now_ns: u64) {
        let place = slot.index();
        // Slow start is for who comes to others that have long been serving. Those of the beginning
        // are all as new as each other, and are compared with each other from the first connection.
        let is_beginning = self.seats.iter().flatten().all(|seat| seat.assigned == 0);
        if place >= self.seats.len() {
            self.seats.resize_with(place + 1, || None);
            self.loads.extend_to(place + 1);
        }
        self.seats[place] = Some(Seat {
            joined: 0,
            assigned: 0,
            returned: 0,
            credits: Credits::new(self.rules.credits, self.rules.credits_max),
            came_ns: (!is_beginning).then_some(now_ns),
            probes: 0,
            suspected: false,
            stalled: false,
            sample: Sample::default(),
        });
        let came = WorkerLoad { standing: Standing::Ready, ..WorkerLoad::default() };
        self.loads.set(place, came);
        self.note_uniformity();
        self.observe(slot, Sample::default(), now_ns);
    }

    /// The worker serves a listener from now on.
    pub fn join(&mut self, slot: Slot, listener: ListenerId) {
        let lane = self.lane_of(listener);
        if let (Some(Some(seat)), Some(place)) = (self.seats.get_mut(slot.index()), lane) {
            seat.joined |= 1 << place;
        }
        self.note_uniformity();
    }

    /// The worker does not serve a listener any more.
    pub fn leave(&mut self, slot: Slot, listener: ListenerId) {
        let lane = self.lane_of(listener);
        if let (Some(Some(seat)), Some(place)) = (self.seats.get_mut(slot.index()), lane) {
            seat.joined &= !(1 << place);
        }
        self.note_uniformity();
    }

    /// Bounds the credits of every worker that is there or comes.
    pub fn bound_credits(&mut self, credits_max: u32) {
        self.rules.credits_max = self.rules.credits_max.min(credits_max).max(1);
        let most = self.rules.credits_max;
        self.seats.iter_mut().flatten().for_each(|seat| seat.credits.bound(most));
    }

    /// Bounds the credits of one worker, for as long as it is there.
    pub fn bound_credits_of(&mut self, slot: Slot, credits_max: u32) {
        if let Some(Some(seat)) = self.seats.get_mut(slot.index()) {
            seat.credits.bound(credits_max);
        }
    }

    /// The worker leaves: nothing more for it.
    pub fn retire(&mut self, slot: Slot) {
        self.loads.change(slot.index(), |load| load.standing = Standing::Draining);
    }

    /// The worker is gone.
    pub fn vacate(&mut self, slot: Slot) {
        self.seats[slot.index()] = None;
        self.loads.set(slot.index(), WorkerLoad::default());
        self.note_uniformity();
    }

    /// The worker's process has ended, but its seat is still being cleared.
    pub fn bury(&mut self, slot: Slot) {
        self.loads.change(slot.index(), |load| load.standing = Standing::Dead);
    }

    /// Takes note of a worker's counters.
    pub fn observe(&mut self, slot: Slot, sample: Sample, now_ns: u64) {
        let Some(Some(seat)) = self.seats.get_mut(slot.index()) else { return };
        // Counts of another process: cut to what is possible.
        let given = seat.assigned - seat.returned;
        seat.sample = sample;
        let claimed = sample.claimed.min(given);
        let finished = sample.finished.min(given);
        seat.credits.observe(claimed, sample.claimed_at_ns, now_ns);
        if seat.suspected && sample.answered_probes >= seat.probes {
            seat.suspected = false;
        }
        let stuck = match (self.rules.hang_after_ns, sample.turn_begun_ns) {
            (Some(hang_after_ns), begun_ns @ 1..) => {
                now_ns.saturating_sub(begun_ns) > hang_after_ns
            }
            _ => false,
        };
        let warmth_permille = seat
            .came_ns
            .map_or(1000, |came_ns| warmth(now_ns.saturating_sub(came_ns), &self.rules));
        self.loads.change(slot.index(), |load| {
            load.hung = seat.suspected || seat.stalled || stuck;
            load.in_flight = narrow(given - finished);
            load.credits = seat.credits.left(narrow(given - claimed));
            load.warmth_permille = warmth_permille;
        });
    }

    /// Who shall have the next connection of a listener. The choice is counted at once.
    pub fn pick(&mut self, listener: ListenerId, client: Client) -> Option<Slot> {
        let lane = self.mask(listener)?;
        let loads = if self.uniform { &self.loads } else { &self.masked };
        let slot = self.lanes[lane].as_mut()?.chooser.pick(loads, client)?;
        let seat = self.seats[slot.index()].as_mut()?;
        seat.assigned += 1;
        self.loads.change(slot.index(), |load| {
            load.in_flight += 1;
            load.credits = load.credits.saturating_sub(1);
        });
        Some(slot)
    }

    /// Whether somebody could have a connection of a listener.
    pub fn has_room(&mut self, listener: ListenerId) -> bool {
        let Some(place) = self.mask(listener) else { return false };
        let loads = if self.uniform { &self.loads } else { &self.masked };
        self.lanes[place].as_ref().is_some_and(|lane| lane.chooser.has_room(loads))
    }

    /// Whether the policy wants to know the client.
    #[must_use]
    pub fn wants_client(&self) -> bool {
        self.lanes.iter().flatten().any(|lane| lane.chooser.wants_client())
    }

    /// How long connections usually wait for the fastest worker to claim them; none while a worker
    /// that may have more has so few that it may be through with them before long.
    #[must_use]
    pub fn slack_ns(&self) -> Option<u64> {
        let pairs = self.seats.iter().zip(self.loads.iter());
        let mut slack_ns = None;
        for (seat, load) in pairs {
            let Some(Seat { credits, .. }) = seat.as_ref().filter(|_| load.can_take()) else {
                continue;
            };
            if load.in_flight < PLENTY {
                return None;
            }
            slack_ns = Some(slack_ns.unwrap_or(u64::MAX).min(credits.usual_ns()));
        }
        slack_ns
    }

    /// Connections go into the worker's channel, unless they are [`Roster::refused`] there.
    pub fn deliver(&mut self, slot: Slot, count: u32, now_ns: u64) {
        if let Some(Some(seat)) = self.seats.get_mut(slot.index()) {
            seat.credits.deliver(count, now_ns);
        }
    }

    /// Connections came back without having been in the channel. Tells whether the caller should
    /// wait for room, which is so only for the first refusal.
    pub fn refused(&mut self, slot: Slot, count: u32, refusal: Refusal) -> bool {
        self.give_back(slot, count);
        if let Some(Some(seat)) = self.seats.get_mut(slot.index()) {
            seat.credits.undo(count);
        }
        let Some(standing) = self.loads.get(slot.index()).map(|load| load.standing) else {
            return false;
        };
        let was_ready = standing == Standing::Ready;
        self.loads.change(slot.index(), |load| match refusal {
            Refusal::Full if was_ready => load.standing = Standing::Full,
            Refusal::Closed if standing != Standing::Dead => load.standing = Standing::Draining,
            _ => {}
        });
        was_ready && refusal == Refusal::Full
    }

    /// The channel has room again.
    pub fn has_room_again(&mut self, slot: Slot) {
        self.loads.change(slot.index(), |load| {
            if load.standing == Standing::Full {
                load.standing = Standing::Ready;
            }
        });
    }

    /// Connections were taken out of the worker's channel again.
    pub fn taken_back(&mut self, slot: Slot, count: u32) {
        self.give_back(slot, count);
        if let Some(Some(seat)) = self.seats.get_mut(slot.index()) {
            seat.credits.withdraw(count);
        }
    }

    /// The worker has sent connections back that it had taken and not claimed.
    pub fn sent_back(&mut self, slot: Slot, count: u32) {
        self.give_back(slot, count);
        if let Some(Some(seat)) = self.seats.get_mut(slot.index()) {
            seat.credits.send_back(count);
        }
    }

    fn give_back(&mut self, slot: Slot, count: u32) {
        if let Some(Some(seat)) = self.seats.get_mut(slot.index()) {
            seat.returned += u64::from(count);
            let give_back = |load: &mut WorkerLoad| {
                load.in_flight = load.in_flight.saturating_sub(count);
            };
            self.loads.change(slot.index(), give_back);
        }
    }

    /// A worker that has left a connection unclaimed for too long. From now on it is passed over
    /// until it answers a probe; the caller takes its channel back and sends the probe.
    pub fn suspect(&mut self, now_ns: u64) -> Option<Slot> {
        let hang_after_ns = self.rules.hang_after_ns?;
        for (place, seat) in self.seats.iter_mut().enumerate() {
            let Some(seat) = seat else { continue };
            let late = seat
                .credits
                .oldest_ns()
                .is_some_and(|oldest| now_ns.saturating_sub(oldest) > hang_after_ns);
            // One that leaves will not answer and gets nothing more anyway, but what it does not
            // take belongs to others just the same.
            let alive = self.loads[place].standing != Standing::Dead;
            if late && alive && !seat.suspected {
                seat.suspected = true;
                seat.probes += 1;
                self.loads.change(place, |load| load.hung = true);
                return u16::try_from(place).ok().map(Slot);
            }
        }
        None
    }

    /// The probe could not be sent: the worker is no longer suspected, and judged again.
    pub fn probe_failed(&mut self, slot: Slot) {
        if let Some(Some(seat)) = self.seats.get_mut(slot.index()) {
            seat.suspected = false;
            seat.probes -= 1;
            self.loads.change(slot.index(), |load| load.hung = false);
        }
    }

    /// Whether the worker is under suspicion.
    #[must_use]
    pub fn is_suspected(&self, slot: Slot) -> bool {
        let seat = self.seats.get(slot.index());
        matches!(seat, Some(Some(seat)) if seat.suspected || seat.stalled)
    }

    /// The worker does not accept from its own socket as far as can be seen, or does so again:
    /// while it does not, it gets nothing of others either.
    pub fn set_stalled(&mut self, slot: Slot, stalled: bool) {
        if let Some(Some(seat)) = self.seats.get_mut(slot.index()) {
            seat.stalled = stalled;
            let hung = seat.suspected || stalled;
            self.loads.change(slot.index(), |load| load.hung = hung);
        }
    }

    /// When somebody may have to be suspected, if nothing is claimed until then.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        let hang_after_ns = self.rules.hang_after_ns?;
        let pairs = self.seats.iter().zip(&*self.loads);
        let watched = pairs.filter_map(|(seat, load)| {
            let seat = seat.as_ref().filter(|seat| !seat.suspected)?;
            (load.standing != Standing::Dead).then(|| seat.credits.oldest_ns()).flatten()
        });
        // One past the limit, so that the check at that moment finds it exceeded.
        watched.min().map(|oldest| oldest.saturating_add(hang_after_ns).saturating_add(1))
    }

    /// The row of loads, one a slot.
    #[must_use]
    pub fn loads(&self) -> &Loads {
        &self.loads
    }

    /// How often each stage passed over a worker, over all listeners.
    #[must_use]
    pub fn skips(&self) -> Skips {
        let mut sum = self.skips_before;
        self.lanes.iter().flatten().for_each(|lane| sum.add(&lane.chooser.skips()));
        sum
    }

    fn note_uniformity(&mut self) {
        let lanes = self.lanes.iter().enumerate().filter(|(_, lane)| lane.is_some());
        let everything = lanes.fold(0, |sum, (place, _)| sum | 1 << place);
        self.uniform = self.seats.iter().flatten().all(|seat| seat.joined == everything);
    }

    /// Prepares the loads as `listener` sees them: workers that do not serve it count as dead.
    /// Tells the listener's lane.
    fn mask(&mut self, listener: ListenerId) -> Option<usize> {
        let place = self.lane_of(listener)?;
        if self.uniform {
            return Some(place);
        }
        self.masked.clone_from(&self.loads);
        for (slot, seat) in self.seats.iter().enumerate() {
            if !matches!(seat, Some(seat) if seat.joined & 1 << place != 0) {
                self.masked.set(slot, WorkerLoad::default());
            }
        }
        Some(place)
    }
}

fn narrow(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// How far a worker of this age has come in its slow start.
fn warmth(age_ns: u64, rules: &Rules) -> u16 {
    let permille = age_ns.saturating_mul(1000).checked_div(rules.slow_start_ns).unwrap_or(1000);
    u16::try_from(permille).unwrap_or(1000).min(1000)
}

#[cfg(test)]
mod tests;
