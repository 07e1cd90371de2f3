//! The policies: rotation, least in flight, sticky. All on the same stages. Pure.

use serde::{Deserialize, Serialize};

use super::cascade::{Limits, Share, Skips, Stage, above, absolute, relative_limit};
use super::{Client, Scheduler, WorkerLoad};
use crate::id::Slot;

/// In which order those who pass the stages are preferred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// One after the other.
    #[default]
    Rotation,
    /// The least in flight; ties go round.
    Least,
    /// The same client to the same worker, as far as that one is not overloaded (rendezvous
    /// hashing with bounded load).
    Sticky,
}

/// A policy. Each listener has its own, so that each spreads its connections evenly.
#[derive(Clone, Debug)]
pub struct Picker {
    order: Order,
    limits: Limits,
    /// Where the search for the next worker begins.
    cursor: usize,
    /// Who was at the hard limit and has not come down far enough since.
    resting: Vec<bool>,
    skips: Skips,
}

impl Picker {
    /// A policy that begins at slot 0.
    #[must_use]
    pub fn new(order: Order, limits: Limits) -> Self {
        Self { order, limits, cursor: 0, resting: Vec::new(), skips: Skips::default() }
    }

    /// Places from the cursor on, all the way round.
    fn places(&self, count: usize) -> impl Iterator<Item = usize> + use<> {
        // The cursor may lie past the end after the row has shrunk.
        let start = self.cursor.min(count);
        (start..count).chain(0..start)
    }

    fn passes(&mut self, load: &WorkerLoad, place: usize) -> bool {
        let stage = absolute(load, &self.limits, self.resting[place]);
        let rests = stage == Some(Stage::AtLimit);
        if self.resting[place] != rests {
            self.resting[place] = rests;
        }
        match stage {
            Some(stage) => self.skips.count(stage),
            None => return true,
        }
        false
    }

    fn is_above(&mut self, load: &WorkerLoad, share: Option<Share>) -> bool {
        let above = share.is_some_and(|share| above(load, share));
        if above {
            self.skips.count(Stage::AboveAverage);
        }
        above
    }

    /// The first in the rotation who passes every stage.
    fn first(&mut self, loads: &[WorkerLoad], share: Option<Share>) -> Option<usize> {
        let (mut above_average, mut fallback, mut least) = (0, None, u32::MAX);
        let found = self.places(loads.len()).find(|place| {
            let load = &loads[*place];
            if !self.passes(load, *place) {
                return false;
            }
            if !share.is_some_and(|share| above(load, share)) {
                return true;
            }
            above_average += 1;
            // Ties follow the cursor: only somebody with less takes the place of an earlier one.
            if fallback.is_none() || load.in_flight < least {
                (fallback, least) = (Some(*place), load.in_flight);
            }
            false
        });
        self.skips.above_average += above_average;
        self.skips.fallbacks += u64::from(found.is_none() && fallback.is_some());
        found.or(fallback)
    }

    /// The best by `rank` who passes every stage; among the overloaded, the least in flight.
    fn best<R: Ord>(
        &mut self,
        loads: &[WorkerLoad],
        share: Option<Share>,
        rank: impl Fn(usize) -> R,
    ) -> Option<usize> {
        let mut best: Option<(bool, R, usize)> = None;
        for place in self.places(loads.len()) {
            if !self.passes(&loads[place], place) {
                continue;
            }
            let candidate = (self.is_above(&loads[place], share), rank(place), place);
            let better = best.as_ref().is_none_or(|(above, rank, place)| match *above {
                true if candidate.0 => loads[candidate.2].in_flight < loads[*place].in_flight,
                above => (candidate.0, &candidate.1) < (above, rank),
            });
            if better {
                best = Some(candidate);
            }
        }
        let (above, _, place) = best?;
        self.skips.fallbacks += u64::from(above);
        Some(place)
    }
}

impl Scheduler for Picker {
    fn pick(&mut self, loads: &[WorkerLoad], client: Client) -> Option<Slot> {
        self.resting.resize(loads.len(), false);
        let share = self.limits.overload_factor.and_then(|factor| relative_limit(loads, factor));
        let place = match self.order {
            Order::Rotation => self.first(loads, share),
            Order::Least => self.best(loads, None, |place| loads[place].in_flight),
            Order::Sticky => self.best(loads, share, |place| weight(client, place)),
        }?;
        self.cursor = (place + 1) % loads.len();
        u16::try_from(place).ok().map(Slot)
    }

    fn has_room(&self, loads: &[WorkerLoad]) -> bool {
        let resting = |place| self.resting.get(place).copied().unwrap_or(false);
        loads
            .iter()
            .enumerate()
            .any(|(place, load)| absolute(load, &self.limits, resting(place)).is_none())
    }

    fn wants_client(&self) -> bool {
        self.order == Order::Sticky
    }

    fn skips(&self) -> Skips {
        self.skips
    }
}

/// How much a client prefers a place: a mix of both (`splitmix64`), so that a worker that goes
/// away moves its own clients only.
fn weight(client: Client, place: usize) -> u64 {
    let mut mixed = client.0 ^ (place as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests;
