//! The stages that a worker must pass before it is considered: dead, hung, draining, full, at its
//! hard limit, out of credits, above the average. Pure.
//!
//! The absolute stages say who can take a connection, the relative one who should. Relative, and
//! with a fallback, because absolute gates on load lock everybody out when everybody is loaded.

use serde::Serialize;

use super::{Standing, WorkerLoad};

/// A worker that was at its hard limit is considered again at this share of it, in percent, so
/// that it does not flap around the limit.
const REENTRY_PERCENT: u32 = 90;

/// The limits of the stages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Most connections in flight at one worker; none by default.
    pub inflight_max: Option<u32>,
    /// A worker with more in flight than the average times this is passed over; none switches the
    /// relative stage off. Never below one connection.
    pub overload_factor: Option<f32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { inflight_max: None, overload_factor: Some(1.0) }
    }
}

/// How often each stage passed over a worker, and how often a fallback chose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Skips {
    /// It was dead.
    pub dead: u64,
    /// It had not moved for too long.
    pub hung: u64,
    /// It was draining.
    pub draining: u64,
    /// Its channel was full.
    pub full: u64,
    /// It had as many connections in flight as it may.
    pub at_limit: u64,
    /// It had too many connections that it had not claimed.
    pub out_of_credits: u64,
    /// It had more in flight than the average allows.
    pub above_average: u64,
    /// Everybody who could was above the average: the least loaded was chosen.
    pub fallbacks: u64,
}

/// A stage that a worker did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Dead,
    Hung,
    Draining,
    Full,
    AtLimit,
    OutOfCredits,
    AboveAverage,
}

impl Skips {
    pub(super) fn count(&mut self, stage: Stage) {
        let counter = match stage {
            Stage::Dead => &mut self.dead,
            Stage::Hung => &mut self.hung,
            Stage::Draining => &mut self.draining,
            Stage::Full => &mut self.full,
            Stage::AtLimit => &mut self.at_limit,
            Stage::OutOfCredits => &mut self.out_of_credits,
            Stage::AboveAverage => &mut self.above_average,
        };
        *counter += 1;
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

/// The first absolute stage that a worker does not pass. `resting`: it was at its limit and has
/// not come down far enough since.
#[inline]
pub(super) fn absolute(load: &WorkerLoad, limits: &Limits, resting: bool) -> Option<Stage> {
    let limit = limits.inflight_max.unwrap_or(u32::MAX);
    // Most can, and need not be asked one by one what is wrong with them.
    if load.can_take() && load.in_flight < limit && !resting {
        return None;
    }
    match load.standing {
        Standing::Dead => return Some(Stage::Dead),
        _ if load.hung => return Some(Stage::Hung),
        Standing::Draining => return Some(Stage::Draining),
        Standing::Full => return Some(Stage::Full),
        Standing::Ready => {}
    }
    if load.in_flight >= limit || (resting && load.in_flight > reentry(limit)) {
        return Some(Stage::AtLimit);
    }
    (load.credits == 0).then_some(Stage::OutOfCredits)
}

/// At or below this many in flight, a worker that was at its limit is considered again. One
/// finished connection is always enough.
fn reentry(limit: u32) -> u32 {
    let share = u64::from(limit) * u64::from(REENTRY_PERCENT) / 100;
    u32::try_from(share).unwrap_or(u32::MAX).max(1).min(limit - 1)
}

/// The most that a worker may have in flight to pass the relative stage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Share {
    exact: f32,
    /// The whole part of it, which is all that matters for a worker that is fully warm.
    whole: u32,
}

/// What the relative stage allows; none while there is nobody to compare with.
pub(super) fn relative_limit(loads: &[WorkerLoad], factor: f32) -> Option<Share> {
    let mut total: u64 = 0;
    let mut count: u32 = 0;
    // This is the part of a choice that looks at everybody, so it has no branch.
    for load in loads {
        // Whoever is stuck or new would only distort what is normal.
        let there = matches!(load.standing, Standing::Ready | Standing::Full);
        let normal = u32::from(there & !load.hung & (load.warmth_permille >= 1000));
        total += u64::from(load.in_flight & normal.wrapping_neg());
        count += normal;
    }
    if count == 0 {
        return None;
    }
    #[expect(clippy::cast_precision_loss, reason = "a ratio of counts needs no more")]
    let average = total as f32 / count as f32;
    let exact = (average * factor.max(1.0)).max(1.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is at least 1, and the conversion saturates"
    )]
    let whole = exact as u32;
    Some(Share { exact, whole })
}

/// Whether a worker is above what the average allows, less while it is new.
#[inline]
pub(super) fn above(load: &WorkerLoad, share: Share) -> bool {
    if load.warmth_permille >= 1000 {
        return load.in_flight > share.whole;
    }
    let warmth = f32::from(load.warmth_permille) / 1000.0;
    #[expect(clippy::cast_precision_loss, reason = "a comparison of counts needs no more")]
    let in_flight = load.in_flight as f32;
    in_flight > (share.exact * warmth).max(1.0)
}
