//! The stages that a worker must pass before it is considered: dead, hung, draining, full, at its
//! hard limit, out of credits, above the average. Pure.
//!
//! The absolute stages decide which workers can take a connection, the relative one which should.
//! That one is relative, with a fallback, because an absolute bound on load would exclude all
//! workers when all are loaded.

use serde::Serialize;

use super::loads::{Block, Loads, Normal};
use super::{Policy, WorkerLoad};

/// A worker at its hard limit is considered again at this percentage of it, so that it does not
/// flap around the limit.
const REENTRY_PERCENT: u32 = 90;

/// The limits of the stages.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Most connections in flight at one worker; by default unlimited, and one under
    /// [`Policy::Central`].
    pub inflight_max: Option<u32>,
    /// How far above the average a worker may be before it is skipped.
    pub overload_factor: OverloadFactor,
}

impl Limits {
    /// Most connections in flight at one worker under a policy.
    #[must_use]
    pub fn inflight_max_under(&self, policy: Policy) -> Option<u32> {
        let one = if policy == Policy::Central { Some(1) } else { None };
        self.inflight_max.or(one)
    }
}

/// A worker with more in flight than the average times this is skipped. The limit is at least one
/// connection. [`Policy::Least`] and [`Policy::Fastest`] compare all workers anyway and have no
/// such stage.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum OverloadFactor {
    /// 1.25 under [`Policy::Sticky`], where moving a client has a cost; otherwise 1, the average
    /// itself.
    #[default]
    Auto,
    /// Skips no worker.
    Off,
    /// This factor; below 1 it counts as 1.
    Times(f32),
}

impl OverloadFactor {
    /// The factor under a policy; `None` skips no worker.
    #[must_use]
    pub fn under(self, policy: Policy) -> Option<f32> {
        match (policy, self) {
            (_, Self::Off) => None,
            (_, Self::Times(factor)) => Some(factor),
            (Policy::Sticky, Self::Auto) => Some(1.25),
            (_, Self::Auto) => Some(1.0),
        }
    }

    /// The same in thousandths, at least 1000.
    #[must_use]
    pub fn permille_under(self, policy: Policy) -> Option<u32> {
        self.under(policy).map(permille)
    }
}

/// A factor in thousandths; beyond this it skips no worker anyway.
fn permille(factor: f32) -> u32 {
    const FACTOR_MAX: f32 = 1000.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is clamped")]
    let permille = (factor.clamp(1.0, FACTOR_MAX) * 1000.0).round() as u32;
    permille
}

/// How often each stage skipped a worker, and how often a fallback chose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Skips {
    /// It was dead.
    pub dead: u64,
    /// It had made no progress for too long.
    pub hung: u64,
    /// It was draining.
    pub draining: u64,
    /// Its channel was full.
    pub full: u64,
    /// It was at its limit of connections in flight.
    pub at_limit: u64,
    /// It had too many unclaimed connections.
    pub out_of_credits: u64,
    /// It had more in flight than the average allows.
    pub above_average: u64,
    /// Every eligible worker was above the average: the least loaded was chosen.
    pub fallbacks: u64,
}

impl Skips {
    /// Counts the skipped workers of `seen`, each at its first stage.
    pub(super) fn count(&mut self, filtered: &Filtered, seen: u64) {
        let ones = |stage: u64| u64::from((stage & seen).count_ones());
        self.dead += ones(filtered.dead);
        self.hung += ones(filtered.hung);
        self.draining += ones(filtered.draining);
        self.full += ones(filtered.full);
        self.at_limit += ones(filtered.at_limit);
        self.out_of_credits += ones(filtered.out_of_credits);
        self.above_average += ones(filtered.above_average);
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        self.dead += other.dead;
        self.hung += other.hung;
        self.draining += other.draining;
        self.full += other.full;
        self.at_limit += other.at_limit;
        self.out_of_credits += other.out_of_credits;
        self.above_average += other.above_average;
        self.fallbacks += other.fallbacks;
    }
}

/// The result for the workers of a block: each is in exactly one of the sets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filtered {
    dead: u64,
    hung: u64,
    draining: u64,
    full: u64,
    pub(super) at_limit: u64,
    out_of_credits: u64,
    pub(super) above_average: u64,
    pub(super) passing: u64,
}

/// Filters all workers of a block at once. `resting` were at their limit and are still too close to
/// it; `share` is the relative limit, if there is such a stage.
#[inline]
pub(super) fn judge(
    loads: &Loads,
    block: usize,
    inflight_max: Option<u32>,
    resting: u64,
    share: Option<RelativeLimit>,
) -> Filtered {
    let sets = &loads.blocks()[block];
    let ready = sets.present & !(sets.dead | sets.hung | sets.draining | sets.full);
    let at_limit = inflight_max.map_or(0, |limit| at_limit(sets, limit, resting)) & ready;
    let able = ready & !at_limit;
    let out_of_credits = able & sets.spent;
    let able = able & !out_of_credits;
    let above_average = share.map_or(0, |share| {
        let new_workers = able & sets.new;
        let settled = able & !new_workers & sets.in_flight.above(share.whole);
        settled | above_in_slow_start(loads.row_of(block), share, new_workers)
    });
    Filtered {
        dead: sets.dead,
        hung: sets.hung,
        draining: sets.draining,
        full: sets.full,
        at_limit,
        out_of_credits,
        above_average,
        passing: able & !above_average,
    }
}

fn at_limit(sets: &Block, limit: u32, resting: u64) -> u64 {
    let reached = limit.checked_sub(1).map_or(u64::MAX, |most| sets.in_flight.above(most));
    if resting & !reached == 0 {
        return reached;
    }
    reached | resting & sets.in_flight.above(reentry(limit))
}

/// At or below this many in flight, a worker that was at its limit is considered again. One
/// finished connection is always enough.
fn reentry(limit: u32) -> u32 {
    let share = u64::from(limit) * u64::from(REENTRY_PERCENT) / 100;
    u32::try_from(share).unwrap_or(u32::MAX).max(1).min(limit.saturating_sub(1))
}

/// The most that a worker may have in flight to pass the relative stage. In whole numbers, as a
/// program of the kernel computes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct RelativeLimit {
    /// In thousandths, of all normal workers together.
    sum_permille: u64,
    workers: u64,
    /// That of a worker past its slow start.
    pub(super) whole: u32,
}

/// The relative limit for a factor in thousandths; `None` while there is no worker to compare with.
pub(super) fn relative_limit(normal: Normal, permille: u32) -> Option<RelativeLimit> {
    let workers = u64::from(normal.workers);
    let sum_permille = normal.in_flight.saturating_mul(permille.into());
    let whole = sum_permille.checked_div(workers * 1000)?;
    Some(RelativeLimit {
        sum_permille,
        workers,
        whole: u32::try_from(whole).unwrap_or(u32::MAX).max(1),
    })
}

/// The `new_workers` above the relative limit at their stage of the slow start.
fn above_in_slow_start(row: &[WorkerLoad], share: RelativeLimit, mut new_workers: u64) -> u64 {
    let mut above = 0;
    while new_workers != 0 {
        let bit = new_workers.trailing_zeros();
        let load = &row[bit as usize];
        let most = share.sum_permille.saturating_mul(load.slow_start_permille.into());
        let own = u64::from(load.in_flight).saturating_mul(share.workers * 1_000_000);
        above |= u64::from(load.in_flight > 1 && own > most) << bit;
        new_workers &= new_workers - 1;
    }
    above
}
