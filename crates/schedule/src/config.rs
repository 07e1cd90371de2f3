//! How workers are chosen and judged, as it is set for a run.

use super::credits::{CREDITS_MAX, CreditRule};
use super::filter::Limits;
use super::scheduler::SchedulerFactory;

/// How workers are chosen and judged.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    /// The limits of the filters.
    pub limits: Limits,
    /// Makes schedulers that choose instead of the built-in policy; the policy does, if none.
    pub scheduler: Option<SchedulerFactory>,
    /// How credits are found.
    pub credits: CreditRule,
    /// Most credits of a worker.
    pub credits_max: u32,
    /// A worker that has not claimed, or not finished a turn of its loop, for this long is passed
    /// over, and what it has not claimed goes to others; never, if none.
    pub hang_after_ns: Option<u64>,
    /// A connection that no living worker serves is closed and counted after this long; never, if
    /// none.
    pub unserved_limit_ns: Option<u64>,
    /// A connection that a worker at work has not claimed for this long goes to an idle worker of
    /// the same listener, if there is one; never, if none. With the built-in scheduler, and not
    /// under [`Policy::Sticky`](crate::Policy).
    pub take_back_after_ns: Option<u64>,
    /// An outlier, which is a worker that closes connections without an answer and attracts load by
    /// that, gets no connections for this long, longer each time; never, if none. It counts as
    /// hung for that time. At least half of the workers that serve the same stay.
    pub eject_outliers_ns: Option<u64>,
    /// How long a new worker takes to get its full share.
    pub slow_start_ns: u64,
    /// How long handing over waits for more connections while at least three arrive in two such
    /// times, and at least while all workers have plenty to do; never, if none. See
    /// [`Coalescing`](super::Coalescing).
    pub coalesce_ns: Option<u64>,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            scheduler: None,
            credits: CreditRule::Adaptive,
            credits_max: CREDITS_MAX,
            hang_after_ns: Some(100_000_000),
            unserved_limit_ns: Some(60_000_000_000),
            take_back_after_ns: Some(2_000_000),
            eject_outliers_ns: None,
            slow_start_ns: 1_000_000_000,
            coalesce_ns: Some(75_000),
        }
    }
}

impl SchedulerConfig {
    /// The same rules with at most this many credits for a worker, and at least one.
    #[must_use]
    pub fn with_credits_up_to(self, credits_max: u32) -> Self {
        Self { credits_max: self.credits_max.min(credits_max).max(1), ..self }
    }
}
