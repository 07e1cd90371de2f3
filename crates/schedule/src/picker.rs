//! The policies: rotation, least in flight, fastest, one queue, sticky. All use the same filter
//! stages. Pure.

use super::filter::{Limits, Skips, judge, relative_limit};
use super::loads::{BLOCK, Loads};
use super::{Client, Policy, Scheduler, WorkerLoad};
use crate::id::Slot;

/// A policy. Each listener has its own, so that each spreads its connections evenly.
#[derive(Clone, Debug)]
pub struct Picker {
    policy: Policy,
    inflight_max: Option<u32>,
    /// The relative stage's factor in thousandths; `None` if there is no such stage.
    overload_permille: Option<u32>,
    /// Where the search for the next worker begins.
    cursor: usize,
    /// State of the workers in addition to their loads, sixty-four per entry.
    memory: Vec<Memory>,
    skips: Skips,
}

#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    /// Workers that were at the hard limit and are still too close to it.
    resting: u64,
    /// Workers above the average at the last look that pass all other stages.
    above_average: u64,
}

/// The first of the offered workers with the lowest rank.
#[derive(Debug, Default)]
struct Lowest(Option<(u64, usize)>);

impl Lowest {
    fn offer(&mut self, rank: u64, place: usize) {
        if self.0.is_none_or(|(lowest, _)| rank < lowest) {
            self.0 = Some((rank, place));
        }
    }

    /// Offers these workers of a block by what they have in flight.
    fn offer_loads(&mut self, loads: &Loads, block: usize, workers: u64) {
        if let Some(place) = first_of(block, loads.blocks()[block].in_flight.lowest(workers)) {
            self.offer(loads[place].in_flight.into(), place);
        }
    }

    /// Offers these workers of a block by when they should finish one more.
    fn offer_times(&mut self, loads: &Loads, times: &Times, block: usize, mut workers: u64) {
        while let Some(place) = first_of(block, workers) {
            let load = &loads[place];
            self.offer((u64::from(load.in_flight) + 1) * times.of(load), place);
            workers &= workers - 1;
        }
    }

    /// Offers these workers of a block by the client's preference.
    fn offer_homes(&mut self, client: Client, block: usize, mut workers: u64) {
        while let Some(place) = first_of(block, workers) {
            self.offer(weight(client, place), place);
            workers &= workers - 1;
        }
    }

    fn place(&self) -> Option<usize> {
        self.0.map(|(_, place)| place)
    }
}

/// Times per connection, as [`Policy::Fastest`] compares them.
struct Times {
    /// The lowest time that counts: differences below a half are equal, and take turns.
    least_us: u64,
    /// The highest time that counts, so that a slow worker gets some when the others are busy.
    most_us: u64,
}

/// A slow worker counts as at most this many times slower than the fastest.
const SLOWER_MAX: u64 = 16;

impl Times {
    fn new(loads: &Loads) -> Self {
        let known = loads.iter().filter(|load| load.can_take() && load.usual_us > 0);
        let fastest_us = known.map(|load| u64::from(load.usual_us)).min().unwrap_or(1);
        Self { least_us: (fastest_us * 3).div_ceil(2), most_us: fastest_us * SLOWER_MAX }
    }

    /// An unknown worker counts as the fastest.
    fn of(&self, load: &WorkerLoad) -> u64 {
        u64::from(load.usual_us).clamp(self.least_us, self.most_us)
    }
}

/// What [`Policy::Fastest`] multiplies by for each slot: what a connection takes there, in
/// microseconds, within bounds that depend on the others.
pub fn compared_times(loads: &Loads) -> impl Iterator<Item = u64> {
    let times = Times::new(loads);
    loads.iter().map(move |load| times.of(load))
}

/// The factor of the relative stage in thousandths. Computed once: rounding it takes a quarter of
/// the time of a pick.
fn overload_permille(policy: Policy, limits: Limits) -> Option<u32> {
    match policy {
        Policy::Least | Policy::Fastest => None,
        policy => limits.overload_factor.permille_under(policy),
    }
}

/// The place of the first of these workers of a block.
fn first_of(block: usize, workers: u64) -> Option<usize> {
    (workers != 0).then(|| block * BLOCK + workers.trailing_zeros() as usize)
}

impl Picker {
    /// A policy that starts at slot 0.
    #[must_use]
    pub fn new(policy: Policy, limits: Limits) -> Self {
        Self {
            policy,
            inflight_max: limits.inflight_max_under(policy),
            overload_permille: overload_permille(policy, limits),
            cursor: 0,
            memory: Vec::new(),
            skips: Skips::default(),
        }
    }

    /// Changes the policy and the limits.
    pub(super) fn reconfigure(&mut self, policy: Policy, limits: Limits) {
        self.policy = policy;
        self.inflight_max = limits.inflight_max_under(policy);
        self.overload_permille = overload_permille(policy, limits);
    }

    /// The best of the workers that pass every stage.
    fn best(&mut self, loads: &Loads, client: Client) -> Option<usize> {
        let share =
            self.overload_permille.and_then(|permille| relative_limit(loads.normal(), permille));
        let times = (self.policy == Policy::Fastest).then(|| Times::new(loads));
        let mut best = Lowest::default();
        // The first block comes again after all others.
        let mut first = None;
        for (block, span) in loads.spans(self.cursor) {
            let memory = &mut self.memory[block];
            let filtered = match first {
                Some((place, filtered)) if place == block => filtered,
                _ => judge(loads, block, self.inflight_max, memory.resting, share),
            };
            first.get_or_insert((block, filtered));
            let passing = filtered.passing & span;
            let seen = match self.policy {
                // A rotation stops at the first worker.
                Policy::Rr | Policy::Central | Policy::None => {
                    span & (passing ^ passing.wrapping_sub(1))
                }
                _ => span,
            };
            memory.resting = memory.resting & !seen | filtered.at_limit & seen;
            memory.above_average = filtered.above_average;
            if seen & !passing != 0 {
                self.skips.count(&filtered, seen);
            }
            match self.policy {
                Policy::Rr | Policy::Central | Policy::None => match first_of(block, passing) {
                    None => {}
                    first => return first,
                },
                Policy::Least => best.offer_loads(loads, block, passing),
                Policy::Fastest => {
                    let times = times.as_ref().expect("made for this policy");
                    best.offer_times(loads, times, block, passing);
                }
                Policy::Sticky => best.offer_homes(client, block, passing),
            }
        }
        best.place()
    }

    /// The least in flight of the workers that fail only the average. The cursor breaks ties.
    fn least_above(&mut self, loads: &Loads) -> Option<usize> {
        let mut least = Lowest::default();
        for (block, span) in loads.spans(self.cursor) {
            least.offer_loads(loads, block, self.memory[block].above_average & span);
        }
        self.skips.fallbacks += u64::from(least.place().is_some());
        least.place()
    }

    /// Fits the state to the row, which may also have become shorter.
    fn fit(&mut self, workers: usize) {
        self.memory.resize(workers.div_ceil(BLOCK), Memory::default());
        if let (Some(last), left @ 1..) = (self.memory.last_mut(), workers % BLOCK) {
            last.resting &= !(u64::MAX << left);
        }
    }
}

impl Scheduler for Picker {
    fn pick(&mut self, loads: &Loads, client: Client) -> Option<Slot> {
        self.fit(loads.len());
        let place = self.best(loads, client).or_else(|| self.least_above(loads))?;
        self.cursor = if place + 1 < loads.len() { place + 1 } else { 0 };
        u16::try_from(place).ok().map(Slot::new)
    }

    fn has_room(&self, loads: &Loads) -> bool {
        loads.spans(0).any(|(block, places)| {
            let resting = self.memory.get(block).map_or(0, |memory| memory.resting);
            judge(loads, block, self.inflight_max, resting, None).passing & places != 0
        })
    }

    fn wants_client(&self) -> bool {
        self.policy == Policy::Sticky
    }

    fn skips(&self) -> Skips {
        self.skips
    }
}

/// A client's preference for a place: a mix of both (`splitmix64`), so that a worker that leaves
/// moves only its own clients.
fn weight(client: Client, place: usize) -> u64 {
    let mut mixed = client.0 ^ (place as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests;
