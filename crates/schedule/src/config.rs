//! The rules for choosing and judging workers.

use super::credits::{CREDITS_MAX, CreditRule};
use super::filter::Limits;
use super::scheduler::SchedulerFactory;

/// The rules for choosing and judging workers.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    /// The limits of the filters.
    pub limits: Limits,
    /// Makes schedulers that replace the built-in policy, if set.
    pub scheduler: Option<SchedulerFactory>,
    /// The rule for credits.
    pub credits: CreditRule,
    /// Most credits of a worker.
    pub credits_max: u32,
    /// A worker that has not claimed, or not finished a turn of its loop, for this long is skipped,
    /// and its unclaimed connections go to others; never, if `None`.
    pub hang_after_ns: Option<u64>,
    /// A connection without a living worker to serve it is closed and counted after this long;
    /// never, if `None`.
    pub unserved_limit_ns: Option<u64>,
    /// A connection that a working worker has not claimed for this long goes to an idle worker of
    /// the same listener, if there is one; never, if `None`. Applies to the built-in scheduler,
    /// except for [`Policy::Sticky`](crate::Policy).
    pub take_back_after_ns: Option<u64>,
    /// An outlier closes connections without an answer and so attracts load. It is ejected for this
    /// long, longer each time; never, if `None`. While ejected it counts as hung. At least half of
    /// the workers that serve the same listeners stay.
    pub eject_outliers_ns: Option<u64>,
    /// How long a new worker takes to get its full share.
    pub slow_start_ns: u64,
    /// How long handing over waits for more connections while at least three arrive within twice
    /// this time, and at least while all workers have plenty to do; never, if `None`. See
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
