//! Which of the workers' own sockets the kernel may choose, and how often. Pure.
//!
//! Owns the decision, its timing, and its reason. It takes effect at once when workers come or go,
//! otherwise at most once per [`CHANGE_NS`]; a postponed decision is made again after that.

use serde::Serialize;

use super::filter::relative_limit;
use super::loads::Normal;
use super::{Limits, Policy};

/// Least time between two changes.
pub const CHANGE_NS: u64 = 5_000_000;
/// Highest weight of a socket.
const WEIGHT_MAX: u32 = 16;

/// State of a socket that workers accept from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnSocketLoad {
    /// A worker accepts from it.
    pub is_owned: bool,
    /// One of its workers is ready, and neither hung nor stalled.
    pub is_able: bool,
    /// Connections in flight of its workers.
    pub in_flight: u32,
}

/// How often the kernel chooses a socket: its share of the sum of all weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Index of the socket at its port, in the order of opening.
    pub socket: u16,
    /// At least 1.
    pub weight: u32,
}

/// Why the weights change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Workers came or left.
    Workers,
    /// A worker stopped accepting, or resumed.
    Stalls,
    /// The loads changed.
    Loads,
}

/// Changes so far, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// Workers came or left.
    pub workers: u64,
    /// A worker stopped accepting, or resumed.
    pub stalls: u64,
    /// The loads changed.
    pub loads: u64,
}

/// The weights of the sockets. Without any weight the kernel may choose any of them: no worker
/// accepts from one.
///
/// Sockets whose workers cannot take a connection are left out, unless none can; of the others,
/// those above the average, as in the policies' filter. The kernel draws at random: under
/// [`Policy::Least`] the fewer connections a worker has in flight, the higher its socket's weight.
#[must_use]
pub fn weigh(policy: Policy, limits: &Limits, sockets: &[OwnSocketLoad]) -> Vec<Weight> {
    let chosen = |is_meant: &dyn Fn(&OwnSocketLoad) -> bool| {
        let pairs = (0..).zip(sockets).filter(|(_, one)| is_meant(one));
        pairs.map(|(socket, one)| (socket, one.in_flight)).collect::<Vec<(u16, u32)>>()
    };
    let able = chosen(&|one| one.is_owned && one.is_able);
    if able.is_empty() {
        let owned = chosen(&|one| one.is_owned);
        return owned.into_iter().map(|(socket, _)| Weight { socket, weight: 1 }).collect();
    }
    let in_flight = able.iter().map(|(_, in_flight)| u64::from(*in_flight)).sum();
    let workers = u32::try_from(able.len()).expect("workers are bounded");
    let limit = limits.overload_factor.permille_under(policy).and_then(|permille| {
        relative_limit(Normal { in_flight, workers }, permille).map(|share| share.whole)
    });
    let light = able.into_iter().filter(|(_, one)| limit.is_none_or(|limit| *one <= limit));
    let light: Vec<(u16, u32)> = light.collect();
    let highest = light.iter().map(|(_, in_flight)| *in_flight).max().unwrap_or(0);
    let weight = |in_flight: u32| match policy {
        Policy::Least => (highest - in_flight).saturating_add(1).min(WEIGHT_MAX),
        _ => 1,
    };
    light
        .into_iter()
        .map(|(socket, in_flight)| Weight { socket, weight: weight(in_flight) })
        .collect()
}

/// The weights in effect for the sockets of a port.
#[derive(Clone, Debug, Default)]
pub struct Steering {
    weights: Vec<Weight>,
    sockets: Vec<OwnSocketLoad>,
    changed_ns: Option<u64>,
    waits: bool,
}

impl Steering {
    /// Whether to apply a new decision now, and why. After applying it, call [`Steering::note`].
    pub fn change(
        &mut self,
        weights: &[Weight],
        sockets: &[OwnSocketLoad],
        now_ns: u64,
    ) -> Option<Change> {
        self.waits = false;
        if self.weights == weights {
            return None;
        }
        let differ = |of: fn(&OwnSocketLoad) -> bool| {
            let (old, new) = (self.sockets.iter().map(of), sockets.iter().map(of));
            !old.eq(new)
        };
        let change = match (differ(|one| one.is_owned), differ(|one| one.is_able)) {
            (true, _) => Change::Workers,
            (false, true) => Change::Stalls,
            (false, false) => Change::Loads,
        };
        // Workers rarely come and go, and until the change the others get everything.
        let is_early = self.next_ns().is_some_and(|next_ns| now_ns < next_ns);
        self.waits = is_early && change != Change::Workers;
        (!self.waits).then_some(change)
    }

    /// Records the weights in effect.
    pub fn note(&mut self, weights: Vec<Weight>, sockets: Vec<OwnSocketLoad>, now_ns: u64) {
        self.weights = weights;
        self.sockets = sockets;
        self.changed_ns = Some(now_ns);
    }

    /// When to decide again, if that was postponed.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.next_ns().filter(|_| self.waits)
    }

    fn next_ns(&self) -> Option<u64> {
        self.changed_ns.map(|changed_ns| changed_ns.saturating_add(CHANGE_NS))
    }
}

impl Changes {
    /// Counts one.
    pub fn count(&mut self, change: Change) {
        *match change {
            Change::Workers => &mut self.workers,
            Change::Stalls => &mut self.stalls,
            Change::Loads => &mut self.loads,
        } += 1;
    }

    /// Whether there was no change.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::OverloadFactor;

    fn able(in_flight: u32) -> OwnSocketLoad {
        OwnSocketLoad { is_owned: true, is_able: true, in_flight }
    }

    fn pairs(policy: Policy, sockets: &[OwnSocketLoad]) -> Vec<(u16, u32)> {
        let weights = weigh(policy, &Limits::default(), sockets);
        weights.into_iter().map(|Weight { socket, weight }| (socket, weight)).collect()
    }

    #[test]
    fn sockets_of_workers_that_cannot_take_anything_are_left_out() {
        let gone = OwnSocketLoad::default();
        let stuck = OwnSocketLoad { is_able: false, ..able(0) };
        assert_eq!(pairs(Policy::Rr, &[able(0), gone, stuck, able(1)]), [(0, 1), (3, 1)]);
        assert_eq!(pairs(Policy::Rr, &[gone, stuck, stuck]), [(1, 1), (2, 1)], "none is better");
        assert_eq!(pairs(Policy::Rr, &[gone, gone]), []);
    }

    #[test]
    fn those_above_the_average_are_left_out_and_the_least_loaded_drawn_more_often() {
        let sockets = [able(2), able(9), able(0), able(1)];
        assert_eq!(pairs(Policy::Rr, &sockets), [(0, 1), (2, 1), (3, 1)]);
        assert_eq!(pairs(Policy::Least, &sockets), [(0, 1), (2, 3), (3, 2)]);
        let limits = Limits { overload_factor: OverloadFactor::Off, ..Limits::default() };
        assert_eq!(weigh(Policy::Rr, &limits, &sockets).len(), 4);
    }

    #[test]
    fn a_change_waits_for_its_time_and_says_why_it_comes() {
        let mut steering = Steering::default();
        let sockets = vec![able(0), able(0)];
        let both = weigh(Policy::Rr, &Limits::default(), &sockets);
        assert_eq!(steering.change(&both, &sockets, 7), Some(Change::Workers));
        steering.note(both.clone(), sockets.clone(), 7);
        assert_eq!(steering.change(&both, &sockets, 8), None);
        assert_eq!(steering.next_deadline_ns(), None);
        let one = vec![Weight { socket: 0, weight: 1 }];
        let stuck = vec![able(0), OwnSocketLoad { is_able: false, ..able(0) }];
        assert_eq!(steering.change(&one, &stuck, 8), None);
        assert_eq!(steering.next_deadline_ns(), Some(7 + CHANGE_NS));
        assert_eq!(steering.change(&one, &stuck, 7 + CHANGE_NS), Some(Change::Stalls));
        assert_eq!(steering.change(&one, &[able(0), able(5)], 7 + CHANGE_NS), Some(Change::Loads));
        let gone = [able(0), OwnSocketLoad::default()];
        assert_eq!(steering.change(&one, &gone, 8), Some(Change::Workers), "at once");
        assert_eq!(steering.next_deadline_ns(), None);
    }

    proptest! {
        #[test]
        fn the_chosen_worker_has_room_if_any_has(
            sockets in prop::collection::vec((any::<bool>(), any::<bool>(), 0u32..50), 0..70),
            least in any::<bool>(),
        ) {
            let sockets: Vec<OwnSocketLoad> = sockets
                .into_iter()
                .map(|(is_owned, is_able, in_flight)| {
                    OwnSocketLoad { is_owned, is_able, in_flight }
                })
                .collect();
            let policy = if least { Policy::Least } else { Policy::Rr };
            let weights = weigh(policy, &Limits::default(), &sockets);
            let is_able = |one: &OwnSocketLoad| one.is_owned && one.is_able;
            prop_assert_eq!(weights.is_empty(), !sockets.iter().any(|one| one.is_owned));
            for Weight { socket, weight } in &weights {
                prop_assert!((1..=WEIGHT_MAX).contains(weight));
                let chosen = sockets[usize::from(*socket)];
                prop_assert!(is_able(&chosen) || !sockets.iter().any(is_able));
            }
            prop_assert!(weights.is_sorted_by(|one, other| one.socket < other.socket));
        }
    }
}
