//! Whether and when an ended worker is replaced. Pure: time is an argument.
//!
//! Owns the budget. It counts short lives, not ends: a worker that serves for a while and then ends
//! is replaced at once, always; one that ends right after it began to serve, or before, waits
//! longer each time, and is given up in the end.

use std::collections::VecDeque;
use std::time::Duration;

use crate::Ending;

/// Which ended workers are replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Restart {
    /// All of them.
    #[default]
    Always,
    /// Those that ended by a signal, or with a code other than 0.
    OnFailure,
    /// None.
    Never,
}

/// How ended workers are replaced.
///
/// A life is short when the worker ended before it served, or within
/// [`short_life`](Self::short_life) of beginning to. The first short life in a row costs no time,
/// the next one waits for [`delay`](Self::delay), and each further one twice as long, up to
/// [`delay_max`](Self::delay_max). A slot with more than [`short_lives_max`](Self::short_lives_max)
/// within [`window`](Self::window) is given up until the next reload.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestartPolicy {
    /// Which ended workers are replaced; by default all of them.
    pub restart: Restart,
    /// A worker that served for less than this had a short life; by default 1 s.
    pub short_life: Duration,
    /// The delay after the second short life in a row; by default 50 ms.
    pub delay: Duration,
    /// The longest delay; by default 5 s.
    pub delay_max: Duration,
    /// Allowed short lives of a slot within the window; by default 10.
    pub short_lives_max: usize,
    /// The window; by default 60 s.
    pub window: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            restart: Restart::default(),
            short_life: Duration::from_secs(1),
            delay: Duration::from_millis(50),
            delay_max: Duration::from_secs(5),
            short_lives_max: 10,
            window: Duration::from_secs(60),
        }
    }
}

impl From<Restart> for RestartPolicy {
    fn from(restart: Restart) -> Self {
        Self { restart, ..Self::default() }
    }
}

/// How a worker's life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Life {
    /// How long it served; `None` if it never did.
    pub(super) served_ns: Option<u64>,
    /// It left in order: it announced that it leaves, or ended with code 0.
    pub(super) in_order: bool,
    /// It had received a connection.
    pub(super) was_used: bool,
}

/// The reaction to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Start another one after this delay.
    After {
        /// Nanoseconds.
        delay_ns: u64,
    },
    /// The policy does not replace it.
    Leave,
    /// Too many short lives: the next one would be no longer.
    GiveUp,
}

/// One slot's memory of its workers' short lives.
#[derive(Clone, Debug, Default)]
pub(super) struct Budget {
    short_lives_ns: VecDeque<u64>,
    /// Short lives in a row.
    in_a_row: u32,
}

impl Life {
    /// The life of a worker that ended with this code or signal.
    pub(super) fn ended(ending: Ending, served_ns: Option<u64>, was_used: bool) -> Self {
        Self { served_ns, in_order: ending == Ending::Code(0), was_used }
    }
}

impl Budget {
    /// Decides after a worker's life.
    pub(super) fn after_life(
        &mut self,
        policy: &RestartPolicy,
        life: Life,
        now_ns: u64,
    ) -> Decision {
        match policy.restart {
            Restart::Never => return Decision::Leave,
            Restart::OnFailure if life.in_order => return Decision::Leave,
            Restart::OnFailure | Restart::Always => {}
        }
        let long = life.served_ns.is_some_and(|served_ns| served_ns >= ns(policy.short_life));
        // A worker that leaves in order after use, for example after a number of requests, has not
        // failed, however soon that was.
        if long || (life.in_order && life.was_used) {
            self.in_a_row = 0;
            return Decision::After { delay_ns: 0 };
        }
        self.count(policy, now_ns);
        if self.short_lives_ns.len() > policy.short_lives_max {
            return Decision::GiveUp;
        }
        Decision::After { delay_ns: self.next_delay_ns(policy) }
    }

    /// Decides after a failed start. The missing program may return, so while others serve the slot
    /// is not given up.
    pub(super) fn after_failed_spawn(
        &mut self,
        policy: &RestartPolicy,
        others_live: bool,
        now_ns: u64,
    ) -> Decision {
        if policy.restart == Restart::Never {
            return Decision::Leave;
        }
        if !others_live {
            self.count(policy, now_ns);
            if self.short_lives_ns.len() > policy.short_lives_max {
                return Decision::GiveUp;
            }
        }
        // The first failure waits, too: nothing has changed since the attempt.
        self.in_a_row = self.in_a_row.max(1);
        Decision::After { delay_ns: self.next_delay_ns(policy) }
    }

    fn count(&mut self, policy: &RestartPolicy, now_ns: u64) {
        let window_ns = ns(policy.window);
        let is_over = |at_ns: &u64| at_ns.saturating_add(window_ns) <= now_ns;
        while self.short_lives_ns.front().is_some_and(is_over) {
            self.short_lives_ns.pop_front();
        }
        self.short_lives_ns.push_back(now_ns);
    }

    fn next_delay_ns(&mut self, policy: &RestartPolicy) -> u64 {
        let (delay_ns, delay_max_ns) = (ns(policy.delay), ns(policy.delay_max));
        let delay_ns = match self.in_a_row {
            0 => 0,
            earlier => delay_ns.saturating_mul(1 << (earlier - 1).min(32)).min(delay_max_ns),
        };
        self.in_a_row = self.in_a_row.saturating_add(1);
        delay_ns
    }
}

/// Why a slot is given up, in words.
pub(super) fn budget_in_words(policy: &RestartPolicy) -> String {
    format!("more than {} short lives within {} s", policy.short_lives_max, policy.window.as_secs())
}

pub(super) fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KILLED: Life = Life { served_ns: Some(0), in_order: false, was_used: true };
    const LEFT: Life = Life { served_ns: Some(0), in_order: true, was_used: true };
    const SECOND_NS: u64 = 1_000_000_000;

    fn policy(restart: Restart) -> RestartPolicy {
        restart.into()
    }

    fn decide(restart: Restart, life: Life) -> Decision {
        Budget::default().after_life(&policy(restart), life, 1)
    }

    fn delays_until_given_up(mut next: impl FnMut() -> Decision) -> Vec<u64> {
        let mut delays = Vec::new();
        loop {
            match next() {
                Decision::After { delay_ns } => delays.push(delay_ns / 1_000_000),
                other => {
                    assert_eq!(other, Decision::GiveUp);
                    return delays;
                }
            }
        }
    }

    #[test]
    fn the_policy_decides_what_is_final() {
        let at_once = Decision::After { delay_ns: 0 };
        assert_eq!(decide(Restart::Never, KILLED), Decision::Leave);
        assert_eq!(decide(Restart::OnFailure, LEFT), Decision::Leave);
        assert_eq!(decide(Restart::OnFailure, KILLED), at_once);
        assert_eq!(decide(Restart::Always, LEFT), at_once);
    }

    #[test]
    fn short_lives_wait_longer_and_longer_until_the_budget_is_spent() {
        let policy = policy(Restart::Always);
        for life in [KILLED, Life { served_ns: None, ..KILLED }, Life { was_used: false, ..LEFT }] {
            let mut budget = Budget::default();
            let delays = delays_until_given_up(|| budget.after_life(&policy, life, 1));
            assert_eq!(delays, [0, 50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        }
    }

    #[test]
    fn a_worker_that_leaves_in_order_after_use_is_replaced_at_once_for_ever() {
        let (mut budget, policy) = (Budget::default(), policy(Restart::Always));
        for _ in 0..1000 {
            assert_eq!(budget.after_life(&policy, LEFT, 1), Decision::After { delay_ns: 0 });
        }
    }

    #[test]
    fn a_program_that_is_away_is_waited_for_as_long_as_others_serve() {
        let (mut budget, policy) = (Budget::default(), policy(Restart::Always));
        let mut fails = |others| budget.after_failed_spawn(&policy, others, 1);
        assert_eq!(fails(true), Decision::After { delay_ns: 50_000_000 });
        let longest = (0..1000).map(|_| fails(true)).last();
        assert_eq!(longest, Some(Decision::After { delay_ns: 5 * SECOND_NS }));
        let delays = delays_until_given_up(|| fails(false));
        assert_eq!(delays, [5000; 10]);
    }

    #[test]
    fn a_long_life_ends_the_row_and_old_ones_leave_the_window() {
        let (mut budget, policy) = (Budget::default(), policy(Restart::Always));
        let mut now_ns = 0;
        let mut ends = |life| {
            now_ns += 7 * SECOND_NS;
            budget.after_life(&policy, life, now_ns)
        };
        assert_eq!(ends(KILLED), Decision::After { delay_ns: 0 });
        assert_eq!(ends(KILLED), Decision::After { delay_ns: 50_000_000 });
        let long = Life { served_ns: Some(SECOND_NS), ..KILLED };
        assert_eq!(ends(long), Decision::After { delay_ns: 0 });
        assert_eq!(ends(KILLED), Decision::After { delay_ns: 0 });
        assert!((0..1000).all(|_| ends(KILLED) != Decision::GiveUp), "nine in a minute are few");
    }

    proptest! {
        #[test]
        fn a_worker_that_serves_for_a_while_is_always_replaced_at_once(
            lives_ms in prop::collection::vec(1_000u64..10_000, 1..200),
        ) {
            let (mut budget, policy) = (Budget::default(), policy(Restart::Always));
            let mut now_ns = 0;
            for life_ms in lives_ms {
                now_ns += life_ms * 1_000_000;
                let life = Life { served_ns: Some(life_ms * 1_000_000), ..KILLED };
                let decision = budget.after_life(&policy, life, now_ns);
                prop_assert_eq!(decision, Decision::After { delay_ns: 0 });
            }
        }
    }
}
