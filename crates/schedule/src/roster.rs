//! The primary's knowledge of its workers, and the decisions from it. Pure: time and the workers'
//! counters are arguments.
//!
//! Owns status, credits, suspicion and the row of loads. The data path reports what happened to
//! sockets and carries out the decisions; a simulation can do the same.

use super::config::SchedulerConfig;
use super::credits::Credits;
use super::filter::Skips;
use super::index_set::IndexSet;
use super::loads::Loads;
use super::pace::Pace;
use super::scheduler::Chooser;
use super::{Client, Policy, Scheduler, Status, WorkerLoad};
use crate::id::{ListenerId, Slot};
use outliers::Conduct;
pub use outliers::{Judgement, Look};
use take_back::Emptied;

/// A reading of a worker's page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Connections that the worker accepted.
    pub own: u64,
    /// How long its connections have been open, summed over them, if it accepts any itself.
    pub open_us: u64,
    /// Connections that it has received.
    pub claimed: u64,
    /// Connections that it has finished.
    pub finished: u64,
    /// When it last received one.
    pub claimed_at_ns: u64,
    /// Start of its loop's present turn; 0 while it waits.
    pub turn_begun_ns: u64,
    /// Probes that it has answered.
    pub answered_probes: u64,
}

/// Why a message came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The channel has no room; it reports when it has.
    Full,
    /// The worker receives no more.
    Closed,
}

/// A worker in its slot.
#[derive(Clone, Debug)]
struct WorkerEntry {
    joined: IndexSet,
    assigned: u64,
    returned: u64,
    credits: Credits,
    /// When it joined, if others were already serving.
    came_ns: Option<u64>,
    /// Probes sent; it is suspected until it has answered them all.
    probes: u64,
    suspected: bool,
    /// It leaves connections in its own socket, or may be about to.
    stalled: bool,
    sample: Sample,
    pace: Pace,
    /// Total of assigned connections when it got its last one.
    assigned_at: u64,
    /// It was at work and lost what waited for it.
    emptied: Option<Emptied>,
    conduct: Conduct,
}

/// All workers.
#[derive(Debug)]
pub struct Roster {
    policy: Policy,
    config: SchedulerConfig,
    workers: Vec<Option<WorkerEntry>>,
    loads: Loads,
    /// The loads as one listener sees them, when not every worker serves every listener.
    masked: Loads,
    uniform: bool,
    /// The slots of the workers that do not serve a listener, by its position; made when first
    /// needed after a change, so that a pick does not have to search all workers.
    absent: Vec<Option<Vec<usize>>>,
    /// Positions of listeners that every serving worker serves.
    common: IndexSet,
    /// The listeners' choosers. Their positions are the numbers in `WorkerEntry::joined`.
    listeners: Vec<Option<Chooser>>,
    /// The positions in `listeners`, by the numbers of the listeners.
    indices: Vec<u16>,
    /// Of removed listeners.
    skips_before: Skips,
    /// When unclaimed connections were last checked for one that could move.
    looked_ns: u64,
    /// One that had waited for long enough could not move then.
    waits_late: bool,
    /// When counters were last read.
    observed_ns: u64,
    /// When the times per connection were last updated.
    paced_ns: u64,
    /// Connections assigned so far.
    assigned: u64,
    /// When the workers were last compared.
    compared_ns: u64,
}

/// A worker that claims slowly and has this many connections stays busy for a while.
const PLENTY: u32 = 4;
/// Most listeners at a time.
pub const LISTENERS_MAX: usize = 1024;
/// Marks a missing listener in [`Roster::indices`].
const NOWHERE: u16 = u16::MAX;

impl Roster {
    /// A roster without workers, for this many listeners.
    ///
    /// # Panics
    /// If that is more than [`LISTENERS_MAX`].
    #[must_use]
    pub fn new(policy: Policy, config: SchedulerConfig, listeners: u16) -> Self {
        let mut roster = Self {
            policy,
            config,
            workers: Vec::new(),
            loads: Loads::default(),
            masked: Loads::default(),
            uniform: true,
            absent: Vec::new(),
            common: IndexSet::default(),
            listeners: Vec::new(),
            indices: Vec::new(),
            skips_before: Skips::default(),
            looked_ns: 0,
            waits_late: false,
            observed_ns: 0,
            paced_ns: 0,
            assigned: 0,
            compared_ns: 0,
        };
        (0..listeners).map(ListenerId::new).for_each(|listener| roster.add_listener(listener));
        roster
    }

    /// Adds a worker.
    pub fn attach(&mut self, slot: Slot, now_ns: u64) {
        let place = slot.index();
        // Slow start applies to a worker that joins others that have long been serving. Workers
        // started together are equally new, and compared with each other from the first connection.
        let is_beginning = self.workers.iter().flatten().all(|worker| worker.assigned == 0);
        if place >= self.workers.len() {
            self.workers.resize_with(place + 1, || None);
            self.loads.extend_to(place + 1);
        }
        self.workers[place] = Some(WorkerEntry {
            joined: IndexSet::default(),
            assigned: 0,
            returned: 0,
            credits: Credits::new(self.config.credits, self.config.credits_max),
            came_ns: (!is_beginning).then_some(now_ns),
            probes: 0,
            suspected: false,
            stalled: false,
            sample: Sample::default(),
            pace: Pace::new(now_ns),
            assigned_at: self.assigned,
            emptied: None,
            conduct: Conduct::default(),
        });
        let came = WorkerLoad { status: Status::Ready, ..WorkerLoad::default() };
        self.loads.set(place, came);
        self.update_common();
        self.observe(slot, Sample::default(), now_ns);
    }

    /// Bounds the credits of every present and future worker.
    pub fn bound_credits(&mut self, credits_max: u32) {
        self.config.credits_max = self.config.credits_max.min(credits_max).max(1);
        let most = self.config.credits_max;
        self.workers.iter_mut().flatten().for_each(|worker| worker.credits.bound(most));
    }

    /// Bounds the credits of one worker while it is attached.
    pub fn bound_credits_of(&mut self, slot: Slot, credits_max: u32) {
        if let Some(Some(worker)) = self.workers.get_mut(slot.index()) {
            worker.credits.bound(credits_max);
        }
    }

    /// The worker leaves and gets no more connections.
    pub fn retire(&mut self, slot: Slot) {
        self.loads.change(slot.index(), |load| load.status = Status::Draining);
        self.update_common();
    }

    /// The worker is gone.
    pub fn vacate(&mut self, slot: Slot) {
        self.workers[slot.index()] = None;
        self.loads.set(slot.index(), WorkerLoad::default());
        self.update_common();
    }

    /// The worker's process has ended, but its slot is still being cleared.
    pub fn mark_dead(&mut self, slot: Slot) {
        self.loads.change(slot.index(), |load| load.status = Status::Dead);
        self.update_common();
    }

    /// Records a worker's counters.
    pub fn observe(&mut self, slot: Slot, sample: Sample, now_ns: u64) {
        self.observed_ns = now_ns;
        let Some(Some(worker)) = self.workers.get_mut(slot.index()) else { return };
        // Another process wrote these counts: limit them to what is possible.
        let given = worker.assigned - worker.returned;
        let accepted = sample.own.saturating_sub(worker.sample.own);
        if accepted > 0 {
            self.assigned = self.assigned.saturating_add(accepted);
            worker.assigned_at = self.assigned;
        }
        let claimed = sample.claimed.min(given);
        let all = given.saturating_add(sample.own);
        let finished = sample.finished.min(all);
        worker.credits.observe(claimed, sample.claimed_at_ns, now_ns);
        worker.conduct.note(all, finished, now_ns);
        if worker.emptied.is_some_and(|emptied| !emptied.holds(&sample, now_ns)) {
            worker.emptied = None;
        }
        if worker.suspected && sample.answered_probes >= worker.probes {
            worker.suspected = false;
        }
        let stuck = match (self.config.hang_after_ns, sample.turn_begun_ns) {
            (Some(hang_after_ns), begun_ns @ 1..) => {
                now_ns.saturating_sub(begun_ns) > hang_after_ns
            }
            _ => false,
        };
        let normal = self.loads.normal();
        let slow_start_permille = worker
            .came_ns
            .map_or(1000, |came_ns| slow_start(now_ns.saturating_sub(came_ns), &self.config));
        self.loads.change(slot.index(), |load| {
            let ejected = worker.conduct.is_ejected(now_ns);
            load.hung = worker.suspected || worker.stalled || stuck || ejected;
            let failures = worker.conduct.failure_load();
            load.in_flight = narrow(all - finished).saturating_add(failures);
            let credits = match worker.emptied {
                Some(_) => 0,
                None => worker.credits.left(narrow(given - claimed)),
            };
            load.credits = worker.conduct.limit_credits(credits, load.in_flight, normal);
            load.slow_start_permille = slow_start_permille;
        });
        // Last: the caller has just written the counters one by one, and copying all of them right
        // away stalls the CPU until these writes are done.
        worker.sample = sample;
    }

    /// Picks the worker for the next connection of a listener, and counts it at once.
    pub fn pick(&mut self, listener: ListenerId, client: Client) -> Option<Slot> {
        if self.policy == Policy::Fastest && self.paced_ns != self.observed_ns {
            self.update_paces();
        }
        let place = self.mask(listener)?;
        let loads = if self.uniform { &self.loads } else { &self.masked };
        let slot = self.listeners[place].as_mut()?.pick(loads, client)?;
        self.assign(slot)
    }

    /// Counts a connection for a worker.
    fn assign(&mut self, slot: Slot) -> Option<Slot> {
        let place = slot.index();
        let worker = self.workers[place].as_mut()?;
        worker.assigned += 1;
        self.assigned += 1;
        worker.assigned_at = self.assigned;
        self.loads.change(place, |load| {
            load.in_flight += 1;
            load.credits = load.credits.saturating_sub(1);
        });
        Some(slot)
    }

    /// Whether a worker can take a connection of a listener.
    pub fn has_room(&mut self, listener: ListenerId) -> bool {
        let Some(place) = self.mask(listener) else { return false };
        let loads = if self.uniform { &self.loads } else { &self.masked };
        self.listeners[place].as_ref().is_some_and(|chooser| chooser.has_room(loads))
    }

    /// How many connections of a listener its workers can take now.
    pub fn room_of(&mut self, listener: ListenerId) -> u32 {
        if !self.has_room(listener) {
            return 0;
        }
        let loads = if self.uniform { &self.loads } else { &self.masked };
        let able = loads.iter().filter(|load| load.can_take());
        able.fold(0, |sum, load| sum.saturating_add(load.credits))
    }

    /// Whether the policy needs the client.
    #[must_use]
    pub fn wants_client(&self) -> bool {
        self.listeners.iter().flatten().any(Chooser::wants_client)
    }

    /// The usual wait until the fastest worker claims a connection; `None` while a worker with free
    /// credits has so few that it may soon be idle.
    #[must_use]
    pub fn slack_ns(&self) -> Option<u64> {
        let pairs = self.workers.iter().zip(self.loads.iter());
        let mut slack_ns = None;
        for (worker, load) in pairs {
            let Some(WorkerEntry { credits, .. }) = worker.as_ref().filter(|_| load.can_take())
            else {
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
        if let Some(Some(worker)) = self.workers.get_mut(slot.index()) {
            worker.credits.deliver(count, now_ns);
        }
    }

    /// Connections came back without having been in the channel. Returns whether the caller should
    /// wait for room, which only the first refusal asks for.
    pub fn refused(&mut self, slot: Slot, count: u32, refusal: Refusal) -> bool {
        self.give_back(slot, count);
        if let Some(Some(worker)) = self.workers.get_mut(slot.index()) {
            worker.credits.undo(count);
        }
        let Some(status) = self.loads.get(slot.index()).map(|load| load.status) else {
            return false;
        };
        let was_ready = status == Status::Ready;
        self.loads.change(slot.index(), |load| match refusal {
            Refusal::Full if was_ready => load.status = Status::Full,
            Refusal::Closed if status != Status::Dead => load.status = Status::Draining,
            _ => {}
        });
        was_ready && refusal == Refusal::Full
    }

    /// The channel has room again.
    pub fn has_room_again(&mut self, slot: Slot) {
        self.loads.change(slot.index(), |load| {
            if load.status == Status::Full {
                load.status = Status::Ready;
            }
        });
    }

    /// When a worker may have to be suspected or lose unclaimed connections, if nothing is claimed
    /// until then.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        let deadlines =
            [self.hang_deadline_ns(), self.take_back_deadline_ns(), self.outlier_deadline_ns()];
        deadlines.into_iter().flatten().min()
    }

    /// The row of loads, one per slot.
    #[must_use]
    pub fn loads(&self) -> &Loads {
        &self.loads
    }

    /// How often each stage skipped a worker, over all listeners.
    #[must_use]
    pub fn skips(&self) -> Skips {
        let mut sum = self.skips_before;
        self.listeners.iter().flatten().for_each(|chooser| sum.add(&chooser.skips()));
        sum
    }
}

fn narrow(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Progress of the slow start of a worker of this age.
fn slow_start(age_ns: u64, config: &SchedulerConfig) -> u16 {
    let permille = age_ns.saturating_mul(1000).checked_div(config.slow_start_ns).unwrap_or(1000);
    u16::try_from(permille).unwrap_or(1000).min(1000)
}

mod in_a_row;
mod outliers;
mod paces;
mod reconfigure;
mod returns;
mod served;
mod suspicion;
mod take_back;

#[cfg(test)]
mod tests;
