//! The row of loads, with what makes a choice cheap: sets of workers, one bit each, and the sum for
//! the average. Pure.
//!
//! Owns the promise that all of it agrees: a load changes only through [set](Loads::set). Decides
//! nothing.

use std::ops::Deref;

use super::{Status, WorkerLoad};

/// Workers in a block: one bit of a word each.
pub(super) const BLOCK: usize = u64::BITS as usize;

/// The state of the workers, one per slot: a slice of [`WorkerLoad`]s that changes only through
/// [`Loads::set`].
///
/// ```
/// use clusterlb_schedule::{Loads, WorkerLoad};
///
/// let mut loads: Loads = [3, 1, 2].map(WorkerLoad::ready).into_iter().collect();
/// loads.set(0, WorkerLoad::default());
/// assert_eq!(loads.iter().position(WorkerLoad::can_take), Some(1));
/// ```
#[derive(Debug, Default)]
pub struct Loads {
    row: Vec<WorkerLoad>,
    blocks: Vec<Block>,
    normal: Normal,
}

/// Sets of sixty-four workers. Dead, hung, draining and full are disjoint: a worker in several of
/// these states is in the first set.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Block {
    /// Workers with a place in the row.
    pub(super) present: u64,
    pub(super) dead: u64,
    pub(super) hung: u64,
    pub(super) draining: u64,
    pub(super) full: u64,
    /// Workers without a credit.
    pub(super) spent: u64,
    /// Workers in their slow start.
    pub(super) new: u64,
    pub(super) in_flight: Counts,
}

/// A count for each of sixty-four workers, laid out so that a word holds one digit of all of them:
/// a comparison with all takes a step per digit, not one per worker.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// The workers whose count has the binary digit of this value, lowest digit first.
    digits: [u64; u32::BITS as usize],
    /// Number of digits in use so far.
    used: usize,
}

/// The sets of its block that a worker belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one set")]
struct Marks {
    dead: bool,
    hung: bool,
    draining: bool,
    full: bool,
    spent: bool,
    new: bool,
}

/// The workers that define the average. Stuck and new ones would distort it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Normal {
    /// The sum of their connections in flight.
    pub(super) in_flight: u64,
    pub(super) workers: u32,
}

impl Counts {
    fn change(&mut self, bit: usize, before: u32, after: u32) {
        let mut changed = before ^ after;
        while changed != 0 {
            let digit = changed.trailing_zeros() as usize;
            self.digits[digit] ^= 1 << bit;
            self.used = self.used.max(digit + 1);
            changed &= changed - 1;
        }
    }

    /// The workers with a count above the limit.
    pub(super) fn above(&self, limit: u32) -> u64 {
        let digits = &self.digits[..self.used];
        if u64::from(limit) >> digits.len() != 0 {
            return 0;
        }
        // From the lowest digit on: a higher digit decides, unless it is equal.
        let mut higher = 0;
        for (place, has) in digits.iter().enumerate() {
            let limit_has = 0u64.wrapping_sub(u64::from(limit >> place & 1));
            higher = has & !limit_has | higher & (has | !limit_has);
        }
        higher
    }

    /// The workers of `places` with the lowest count.
    pub(super) fn lowest(&self, places: u64) -> u64 {
        self.digits[..self.used].iter().rev().fold(places, |lowest, has| match lowest & !has {
            0 => lowest,
            without => without,
        })
    }
}

impl Block {
    fn mark(&mut self, bit: usize, marks: Marks) {
        let assign = |set: &mut u64, belongs: bool| {
            *set = *set & !(1 << bit) | u64::from(belongs) << bit;
        };
        assign(&mut self.dead, marks.dead);
        assign(&mut self.hung, marks.hung);
        assign(&mut self.draining, marks.draining);
        assign(&mut self.full, marks.full);
        assign(&mut self.spent, marks.spent);
        assign(&mut self.new, marks.new);
    }
}

impl Marks {
    fn of(load: &WorkerLoad) -> Self {
        let moves = (load.status != Status::Dead) & !load.hung;
        Self {
            dead: load.status == Status::Dead,
            hung: (load.status != Status::Dead) & load.hung,
            draining: moves & (load.status == Status::Draining),
            full: moves & (load.status == Status::Full),
            spent: load.credits == 0,
            new: load.slow_start_permille < 1000,
        }
    }

    fn is_normal(self) -> bool {
        !(self.dead | self.hung | self.draining | self.new)
    }
}

impl Loads {
    /// Sets the load of the worker at `place`.
    ///
    /// # Panics
    /// If the row is shorter.
    #[inline(always)]
    pub fn set(&mut self, place: usize, load: WorkerLoad) {
        let before = self.row[place];
        // Most workers read have not changed.
        if before == load {
            return;
        }
        self.row[place] = load;
        let of = |load: &WorkerLoad| (Marks::of(load), load.in_flight);
        self.account(place, of(&before), of(&load));
    }

    /// Changes the load of the worker at `place`, if the row is long enough.
    #[inline(always)]
    pub(super) fn change(&mut self, place: usize, change: impl FnOnce(&mut WorkerLoad)) {
        if let Some(load) = self.row.get(place) {
            let mut load = *load;
            change(&mut load);
            self.set(place, load);
        }
    }

    /// Updates sets and sum. It takes the parts as arguments, and its caller is inlined, so that a
    /// changed load is not written to memory and read again at once.
    #[inline(never)]
    fn account(&mut self, place: usize, before: (Marks, u32), after: (Marks, u32)) {
        let (block, bit) = (&mut self.blocks[place / BLOCK], place % BLOCK);
        if before.0 != after.0 {
            block.mark(bit, after.0);
        }
        block.in_flight.change(bit, before.1, after.1);
        let part = |(marks, in_flight): (Marks, u32)| match marks.is_normal() {
            true => (1, u64::from(in_flight)),
            false => (0, 0),
        };
        let ((workers, in_flight), (more_workers, more)) = (part(before), part(after));
        self.normal.workers = self.normal.workers + more_workers - workers;
        self.normal.in_flight = self.normal.in_flight + more - in_flight;
    }

    /// Makes the row at least this long, with empty new places.
    pub(super) fn extend_to(&mut self, workers: usize) {
        self.blocks.resize(workers.max(self.row.len()).div_ceil(BLOCK), Block::default());
        for place in self.row.len()..workers {
            let empty = WorkerLoad::default();
            self.row.push(empty);
            let block = &mut self.blocks[place / BLOCK];
            block.present |= 1 << (place % BLOCK);
            block.mark(place % BLOCK, Marks::of(&empty));
        }
    }

    /// The loads of a block, by bit.
    pub(super) fn row_of(&self, block: usize) -> &[WorkerLoad] {
        &self.row[block * BLOCK..self.row.len().min((block + 1) * BLOCK)]
    }

    pub(super) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    pub(super) fn normal(&self) -> Normal {
        self.normal
    }

    /// The places from `start` on, all the way round: blocks, with a mask of their places. From the
    /// first place, if the row ends before `start`.
    pub(super) fn spans(&self, start: usize) -> impl Iterator<Item = (usize, u64)> + '_ {
        let start = if start < self.row.len() { start } else { 0 };
        let (first, behind) = (start / BLOCK, u64::MAX << (start % BLOCK));
        let count = self.blocks.len();
        // The first block comes again at the end, with the places before the start.
        let spans = (0..=count).map(move |step| {
            let block = first + step;
            match step {
                0 => (block, behind),
                _ if step == count => (first, !behind),
                _ if block < count => (block, u64::MAX),
                _ => (block - count, u64::MAX),
            }
        });
        let spans = spans.map(|(block, places)| {
            (block, places & self.blocks.get(block).map_or(0, |block| block.present))
        });
        spans.filter(|(_, places)| *places != 0)
    }
}

impl Deref for Loads {
    type Target = [WorkerLoad];

    fn deref(&self) -> &[WorkerLoad] {
        &self.row
    }
}

impl FromIterator<WorkerLoad> for Loads {
    fn from_iter<I: IntoIterator<Item = WorkerLoad>>(loads: I) -> Self {
        let mut row = Self::default();
        for (place, load) in loads.into_iter().enumerate() {
            row.extend_to(place + 1);
            row.set(place, load);
        }
        row
    }
}

impl Clone for Loads {
    fn clone(&self) -> Self {
        Self { row: self.row.clone(), blocks: self.blocks.clone(), normal: self.normal }
    }

    /// Needs no memory once there is enough.
    fn clone_from(&mut self, other: &Self) {
        self.row.clone_from(&other.row);
        self.blocks.clone_from(&other.blocks);
        self.normal = other.normal;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bits(set: u64) -> impl Iterator<Item = usize> {
        (0..BLOCK).filter(move |bit| set >> bit & 1 == 1)
    }

    fn any_count() -> impl Strategy<Value = u32> {
        prop_oneof![4 => 0u32..9, 2 => 0u32..5000, 1 => any::<u32>()]
    }

    proptest! {
        #[test]
        fn counts_compare_as_numbers_do(
            numbers in prop::collection::vec((any_count(), any_count()), BLOCK),
            limits in prop::collection::vec(any_count(), 1..20),
            places in any::<u64>(),
        ) {
            let mut counts = Counts::default();
            let mut now = [0; BLOCK];
            for (bit, (first, second)) in numbers.into_iter().enumerate() {
                counts.change(bit, 0, first);
                counts.change(bit, first, second);
                now[bit] = second;
            }
            for limit in limits.into_iter().chain(now) {
                let above = (0..BLOCK).filter(|bit| now[*bit] > limit);
                prop_assert!(bits(counts.above(limit)).eq(above));
            }
            let least = bits(places).map(|bit| now[bit]).min();
            let lowest = bits(places).filter(|bit| Some(now[*bit]) == least);
            prop_assert!(bits(counts.lowest(places)).eq(lowest));
        }
    }

    #[test]
    fn spans_go_all_the_way_round_once() {
        for count in [1usize, 2, 63, 64, 65, 128, 130, 1024] {
            let loads: Loads = (0..count).map(|_| WorkerLoad::ready(0)).collect();
            for start in [0, 1, count / 2, count - 1] {
                let spans = loads.spans(start);
                let places = spans
                    .flat_map(|(block, places)| bits(places).map(move |bit| block * BLOCK + bit));
                let expected: Vec<_> = (start..count).chain(0..start).collect();
                assert_eq!(places.collect::<Vec<_>>(), expected, "{count} from {start}");
            }
        }
    }
}
