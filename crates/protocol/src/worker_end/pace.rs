//! How much a worker claims at once. Pure: the caller reads the clock.
//!
//! A claimed connection cannot be given to another worker, so a claim means that work begins. A
//! worker whose turns are short claims all there is, which costs least. One that has just spent
//! long in a turn claims one and works on it; the rest stays where the primary can take it back for
//! an idle worker.

/// A turn of a worker's loop that takes longer makes others wait.
pub const SLOW_TURN_NS: u64 = 1_000_000;

/// Whether a turn has made others wait, so that the next one claims one connection or message.
#[must_use]
pub fn is_slow_turn(turn_ns: u64) -> bool {
    turn_ns > SLOW_TURN_NS
}

/// The pace of a worker that measures the turns of its loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TurnPace {
    /// The last turn that finished connections, or a later one, was long.
    is_slow: bool,
}

impl TurnPace {
    /// Whether the worker claims one connection or message at a time.
    #[must_use]
    pub fn is_slow(self) -> bool {
        self.is_slow
    }

    /// The turn has lasted this long, and goes on.
    pub fn on_work(&mut self, turn_ns: u64) {
        self.is_slow |= is_slow_turn(turn_ns);
    }

    /// The turn has ended. Only a short one that finished something ends a slow pace: one without
    /// work says nothing about the next.
    pub fn on_turn(&mut self, turn_ns: u64, has_finished: bool) {
        self.is_slow = is_slow_turn(turn_ns) || (self.is_slow && !has_finished);
    }
}

/// The pace of a worker whose loop is not ours to measure: it asks for one connection at a time,
/// and what it does in between is its turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClaimPace {
    /// When the worker last claimed a connection, found none, or went to work.
    asked_ns: u64,
    /// The connection claimed last had waited for a slow turn, and no work has been done since.
    is_behind: bool,
}

impl ClaimPace {
    /// The worker claims a connection that waits since `accepted_ns`.
    ///
    /// What it has waited since the worker last asked, it has waited for the worker's turn.
    pub fn on_claim(&mut self, accepted_ns: u64, now_ns: u64) {
        let turn_ns = now_ns.saturating_sub(accepted_ns.max(self.asked_ns));
        *self = Self { asked_ns: now_ns, is_behind: is_slow_turn(turn_ns) };
    }

    /// The worker claims a connection from its own socket, which does not show how long it waited.
    ///
    /// If others are still there (`more_wait`, asked only after a slow turn), they have come while
    /// the worker did something else, or all at once.
    pub fn on_claim_own(&mut self, now_ns: u64, more_wait: impl FnOnce() -> bool) {
        let turn_ns = now_ns.saturating_sub(self.asked_ns);
        *self = Self { asked_ns: now_ns, is_behind: is_slow_turn(turn_ns) && more_wait() };
    }

    /// The worker has asked and found nothing.
    pub fn on_nothing(&mut self, now_ns: u64) {
        *self = Self { asked_ns: now_ns, is_behind: false };
    }

    /// Whether the worker is to work on what it has claimed before it claims more. Asked of a
    /// worker that is about to claim; the answer is yes at most once for a claim.
    pub fn works_first(&mut self, now_ns: u64) -> bool {
        if self.is_behind {
            *self = Self { asked_ns: now_ns, is_behind: false };
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;

    /// How many connections a worker claims in each of its turns, if all of them wait from the
    /// beginning and each costs this much.
    fn turns(waiting: usize, cost_ns: u64, idle_before_ns: u64) -> Vec<usize> {
        let mut pace = ClaimPace::default();
        pace.on_nothing(MS);
        let mut now_ns = MS + idle_before_ns;
        let (accepted_ns, mut left, mut turns) = (now_ns, waiting, vec![]);
        while left > 0 {
            let mut claimed = 0;
            while left > 0 && !pace.works_first(now_ns) {
                now_ns += 1_000;
                pace.on_claim(accepted_ns, now_ns);
                (left, claimed) = (left - 1, claimed + 1);
            }
            now_ns += cost_ns * claimed as u64;
            turns.push(claimed);
        }
        turns
    }

    #[test]
    fn a_short_turn_ends_a_slow_pace_only_if_it_has_finished_something() {
        let mut pace = TurnPace::default();
        assert!(!pace.is_slow());
        pace.on_work(SLOW_TURN_NS + 1);
        assert!(pace.is_slow(), "at once, not only when the turn ends");
        // (length of a turn, whether it finished something, the pace behind it)
        let turns = [
            (50 * MS, true, true),
            (MS / 10, false, true),
            (MS / 10, true, false),
            (MS / 10, false, false),
            (SLOW_TURN_NS, true, false),
            (SLOW_TURN_NS + 1, false, true),
        ];
        for (turn_ns, has_finished, is_slow) in turns {
            pace.on_turn(turn_ns, has_finished);
            assert_eq!(pace.is_slow(), is_slow, "{turn_ns} {has_finished}");
        }
    }

    #[test]
    fn an_idle_worker_takes_all_that_comes_at_once() {
        assert_eq!(turns(32, 20_000, 500 * MS), [32]);
    }

    #[test]
    fn a_worker_that_is_behind_claims_one_at_a_time_until_its_turns_are_short() {
        let mut pace = ClaimPace::default();
        // The first has waited 3 ms for the turn before.
        pace.on_claim(MS, 4 * MS);
        assert!(pace.works_first(4 * MS) && !pace.works_first(4 * MS));
        // The second has waited for the 2 ms of the first.
        pace.on_claim(MS, 6 * MS);
        assert!(pace.works_first(6 * MS));
        // The third took 0.1 ms to come to: whatever is there can come with it.
        pace.on_claim(MS, 6 * MS + MS / 10);
        assert!(!pace.works_first(7 * MS));
    }

    #[test]
    fn of_its_own_socket_a_worker_claims_one_behind_a_slow_turn_if_more_wait() {
        let mut pace = ClaimPace::default();
        pace.on_nothing(MS);
        pace.on_claim_own(60 * MS, || false);
        assert!(!pace.works_first(60 * MS), "nothing waits behind it");
        pace.on_claim_own(110 * MS, || true);
        assert!(pace.works_first(110 * MS) && !pace.works_first(110 * MS));
        pace.on_claim_own(110 * MS + MS / 10, || unreachable!("the turn was short"));
        assert!(!pace.works_first(111 * MS));
    }

    #[test]
    fn time_in_which_nothing_waited_is_no_turn() {
        let mut pace = ClaimPace::default();
        pace.on_nothing(MS);
        pace.on_claim(900 * MS, 900 * MS + MS / 2);
        assert!(!pace.works_first(900 * MS + MS / 2));
    }

    proptest! {
        #[test]
        fn a_worker_is_slow_while_nothing_short_has_been_finished_since_its_last_long_turn(
            turns in prop::collection::vec((0..3 * MS, any::<bool>(), any::<bool>()), 1..60),
        ) {
            let mut pace = TurnPace::default();
            for (number, (turn_ns, has_finished, has_worked)) in turns.iter().enumerate() {
                if *has_worked {
                    pace.on_work(*turn_ns);
                }
                pace.on_turn(*turn_ns, *has_finished);
                let past = turns[..=number].iter().rev();
                let mut past = past.skip_while(|(turn_ns, has_finished, _)| {
                    !is_slow_turn(*turn_ns) && !has_finished
                });
                let was_long = past.next().is_some_and(|(turn_ns, ..)| is_slow_turn(*turn_ns));
                prop_assert_eq!(pace.is_slow(), was_long);
            }
        }

        #[test]
        fn nothing_is_slow_where_every_turn_is_short(
            gaps in prop::collection::vec((0_u64..=SLOW_TURN_NS, 0_u64..10 * MS), 1..100),
        ) {
            let (mut pace, mut now_ns) = (ClaimPace::default(), 20 * MS);
            pace.on_nothing(now_ns);
            for (gap_ns, waited_ns) in gaps {
                now_ns += gap_ns;
                pace.on_claim(now_ns - waited_ns, now_ns);
                prop_assert!(!pace.works_first(now_ns));
            }
        }

        #[test]
        fn a_worker_always_comes_to_the_next_connection(
            asks in prop::collection::vec((0_u64..5 * MS, 0_u64..10 * MS), 1..100),
        ) {
            let (mut pace, mut now_ns) = (ClaimPace::default(), 20 * MS);
            for (gap_ns, waited_ns) in asks {
                now_ns += gap_ns;
                if pace.works_first(now_ns) {
                    prop_assert!(!pace.works_first(now_ns));
                }
                pace.on_claim(now_ns - waited_ns, now_ns);
            }
        }
    }
}
