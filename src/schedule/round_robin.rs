//! Round robin that passes over whoever cannot or should not take a connection. Pure.

use super::{Scheduler, Skips, Standing, WorkerLoad};
use crate::id::Slot;

/// A rotation. Each listener has its own, so that each spreads its connections evenly.
#[derive(Clone, Debug, Default)]
pub struct RoundRobin {
    /// Where the search for the next worker begins.
    cursor: usize,
    /// Most connections in flight at one worker; no limit by default.
    inflight_max: Option<u32>,
    skips: Skips,
}

impl RoundRobin {
    /// A rotation that begins at slot 0.
    #[must_use]
    pub fn new(inflight_max: Option<u32>) -> Self {
        Self { cursor: 0, inflight_max, skips: Skips::default() }
    }

    /// How often workers were passed over, by reason.
    #[must_use]
    pub fn skips(&self) -> Skips {
        self.skips
    }

    fn overloaded(&self, load: WorkerLoad) -> bool {
        self.inflight_max.is_some_and(|limit| load.in_flight >= limit)
    }

    fn takes(&mut self, load: WorkerLoad) -> bool {
        match load.standing {
            Standing::Dead => self.skips.dead += 1,
            Standing::Draining => self.skips.draining += 1,
            Standing::Full => self.skips.full += 1,
            Standing::Ready if self.overloaded(load) => self.skips.overloaded += 1,
            Standing::Ready => return true,
        }
        false
    }
}

impl Scheduler for RoundRobin {
    fn pick(&mut self, loads: &[WorkerLoad]) -> Option<Slot> {
        let count = loads.len();
        for step in 0..count {
            // The cursor may lie past the end after the table has shrunk.
            let place = (self.cursor + step) % count;
            if self.takes(loads[place]) {
                self.cursor = (place + 1) % count;
                return u16::try_from(place).ok().map(Slot);
            }
        }
        None
    }

    fn has_room(&self, loads: &[WorkerLoad]) -> bool {
        loads.iter().any(|load| load.standing == Standing::Ready && !self.overloaded(*load))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ready(in_flight: u32) -> WorkerLoad {
        WorkerLoad { standing: Standing::Ready, in_flight }
    }

    fn any_load() -> impl Strategy<Value = WorkerLoad> {
        let standing = prop_oneof![
            1 => Just(Standing::Dead),
            1 => Just(Standing::Draining),
            1 => Just(Standing::Full),
            4 => Just(Standing::Ready),
        ];
        (standing, 0u32..6).prop_map(|(standing, in_flight)| WorkerLoad { standing, in_flight })
    }

    #[test]
    fn nobody_means_none() {
        assert_eq!(RoundRobin::new(None).pick(&[]), None);
        let dead = [WorkerLoad::default(); 3];
        assert_eq!(RoundRobin::new(None).pick(&dead), None);
    }

    #[test]
    fn a_full_turn_visits_everybody_in_order() {
        let mut rotation = RoundRobin::new(None);
        let loads = [ready(0); 4];
        let order: Vec<u16> = (0..8).filter_map(|_| rotation.pick(&loads)).map(|s| s.0).collect();
        assert_eq!(order, [0, 1, 2, 3, 0, 1, 2, 3]);
    }

    #[test]
    fn reasons_are_counted() {
        let mut rotation = RoundRobin::new(Some(2));
        let loads = [
            WorkerLoad::default(),
            WorkerLoad { standing: Standing::Draining, in_flight: 0 },
            WorkerLoad { standing: Standing::Full, in_flight: 0 },
            ready(2),
        ];
        assert_eq!(rotation.pick(&loads), None);
        assert_eq!(rotation.skips(), Skips { dead: 1, draining: 1, full: 1, overloaded: 1 });
    }

    proptest! {
        #[test]
        fn only_the_eligible_are_chosen_and_somebody_is_if_anybody_is(
            loads in prop::collection::vec(any_load(), 1..70),
            limit in prop::option::of(0u32..6),
            picks in 1usize..200,
        ) {
            let mut rotation = RoundRobin::new(limit);
            let eligible = |load: &WorkerLoad| {
                load.standing == Standing::Ready && limit.is_none_or(|limit| load.in_flight < limit)
            };
            prop_assert_eq!(rotation.has_room(&loads), loads.iter().any(eligible));
            for _ in 0..picks {
                match rotation.pick(&loads) {
                    Some(slot) => prop_assert!(eligible(&loads[slot.index()])),
                    None => prop_assert!(!loads.iter().any(eligible)),
                }
            }
        }

        #[test]
        fn shares_differ_by_one_at_most_while_the_eligible_stay_the_same(
            loads in prop::collection::vec(any_load(), 1..70),
            picks in 1usize..500,
        ) {
            let mut rotation = RoundRobin::new(None);
            let mut counts = vec![0u32; loads.len()];
            for _ in 0..picks {
                if let Some(slot) = rotation.pick(&loads) {
                    counts[slot.index()] += 1;
                }
            }
            let pairs = loads.iter().zip(&counts);
            let ready = pairs.filter(|(load, _)| load.standing == Standing::Ready);
            let shares: Vec<u32> = ready.map(|(_, count)| *count).collect();
            let spread = shares.iter().max().copied().unwrap_or(0)
                - shares.iter().min().copied().unwrap_or(0);
            prop_assert!(spread <= 1);
        }

        #[test]
        fn whoever_becomes_eligible_is_served_within_one_turn(
            count in 1usize..70,
            warm_up in 0usize..200,
            late in any::<prop::sample::Index>(),
        ) {
            let late = late.index(count);
            let mut loads = vec![ready(0); count];
            loads[late].standing = Standing::Dead;
            let mut rotation = RoundRobin::new(None);
            for _ in 0..warm_up {
                rotation.pick(&loads);
            }
            loads[late].standing = Standing::Ready;
            let served = (0..count).filter_map(|_| rotation.pick(&loads));
            prop_assert!(served.into_iter().any(|slot| slot.index() == late));
        }
    }
}
