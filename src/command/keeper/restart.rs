//! Whether and when an ended worker is replaced. Pure: time is an argument.

use std::collections::VecDeque;

use crate::command::settings::Restart;
use clusterlb::Ending;

/// A worker that lived this long starts with a clean slate.
const SETTLED_NS: u64 = 10_000_000_000;
/// The first delay after a quick end; it doubles with each further one.
const DELAY_NS: u64 = 50_000_000;
/// The longest delay.
const DELAY_NS_MAX: u64 = 5_000_000_000;
/// So many ends within the window are too many.
const DEATHS_MAX: usize = 10;
/// The window.
const WINDOW_NS: u64 = 60_000_000_000;

/// What to do about an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Start another one after this time.
    After {
        /// Nanoseconds.
        delay_ns: u64,
    },
    /// The settings say that this end is final.
    Leave,
    /// It ends too often: nothing would change.
    GiveUp,
}

/// One slot's memory of its workers' ends.
#[derive(Clone, Debug, Default)]
pub(super) struct Budget {
    deaths_ns: VecDeque<u64>,
    quick: u32,
}

impl Budget {
    /// Decides about a worker that was born and ended at these times.
    pub(super) fn after_end(
        &mut self,
        restart: Restart,
        ending: Ending,
        born_ns: u64,
        now_ns: u64,
    ) -> Decision {
        let failed = ending != Ending::Code(0);
        match restart {
            Restart::Never => return Decision::Leave,
            Restart::OnFailure if !failed => return Decision::Leave,
            Restart::OnFailure | Restart::Always => {}
        }
        while self.deaths_ns.front().is_some_and(|death| death + WINDOW_NS <= now_ns) {
            self.deaths_ns.pop_front();
        }
        self.deaths_ns.push_back(now_ns);
        if self.deaths_ns.len() > DEATHS_MAX {
            return Decision::GiveUp;
        }
        if now_ns.saturating_sub(born_ns) >= SETTLED_NS {
            self.quick = 0;
            return Decision::After { delay_ns: 0 };
        }
        // The first quick end may be an accident, such as a kill; it costs no time.
        let delay_ns = match self.quick {
            0 => 0,
            quick => (DELAY_NS << (quick - 1).min(10)).min(DELAY_NS_MAX),
        };
        self.quick += 1;
        Decision::After { delay_ns }
    }
}

/// The budget in words.
pub(super) fn budget_in_words() -> String {
    format!("more than {DEATHS_MAX} ends within {} s", WINDOW_NS / 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KILLED: Ending = Ending::Signal(9);

    #[test]
    fn settings_decide_what_is_final() {
        let decide = |restart, ending| Budget::default().after_end(restart, ending, 0, 1);
        assert_eq!(decide(Restart::Never, KILLED), Decision::Leave);
        assert_eq!(decide(Restart::OnFailure, Ending::Code(0)), Decision::Leave);
        assert_eq!(decide(Restart::OnFailure, Ending::Code(1)), Decision::After { delay_ns: 0 });
        assert_eq!(decide(Restart::Always, Ending::Code(0)), Decision::After { delay_ns: 0 });
    }

    #[test]
    fn quick_ends_wait_longer_and_longer_until_the_budget_is_spent() {
        let mut budget = Budget::default();
        let mut delays = Vec::new();
        let last = loop {
            match budget.after_end(Restart::Always, KILLED, 0, 1) {
                Decision::After { delay_ns } => delays.push(delay_ns / 1_000_000),
                other => break other,
            }
        };
        assert_eq!(delays, [0, 50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(last, Decision::GiveUp);
    }

    proptest! {
        #[test]
        fn a_worker_that_ends_now_and_then_is_always_replaced_at_once(
            lives_s in prop::collection::vec(10u64..1000, 1..100),
        ) {
            let mut budget = Budget::default();
            let mut now_ns = 0;
            for life_s in lives_s {
                let born_ns = now_ns;
                now_ns += life_s * 1_000_000_000;
                let decision = budget.after_end(Restart::Always, KILLED, born_ns, now_ns);
                prop_assert_eq!(decision, Decision::After { delay_ns: 0 });
            }
        }
    }
}
