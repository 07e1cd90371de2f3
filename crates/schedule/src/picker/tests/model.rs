//! The policies in their plainest form: one worker after the other, stage by stage. The picker,
//! which uses sets of workers, must give the same results.

use crate::Policy;
use crate::filter::{Limits, Skips};
use crate::picker::weight;
use crate::{Client, Status, WorkerLoad};

/// A policy that checks one worker at a time.
pub(super) struct Model {
    pub(super) policy: Policy,
    pub(super) limits: Limits,
    pub(super) cursor: usize,
    pub(super) resting: Vec<bool>,
    pub(super) skips: Skips,
}

impl Model {
    pub(super) fn new(policy: Policy, limits: Limits) -> Self {
        let limits = super::under(policy, limits);
        Self { policy, limits, cursor: 0, resting: Vec::new(), skips: Skips::default() }
    }

    pub(super) fn pick(&mut self, loads: &[WorkerLoad], client: Client) -> Option<usize> {
        self.resting.resize(loads.len(), false);
        let compares = matches!(self.policy, Policy::Least | Policy::Fastest);
        let factor = self.limits.overload_factor.permille_under(self.policy).filter(|_| !compares);
        let share = factor.and_then(|factor| share(loads, factor));
        let start = self.cursor.min(loads.len());
        let mut best: Option<(bool, u64, usize)> = None;
        for place in (start..loads.len()).chain(0..start) {
            let load = &loads[place];
            if !self.passes(load, place) {
                continue;
            }
            let above = share.is_some_and(|share| above(load, share));
            self.skips.above_average += u64::from(above);
            let rank = match self.policy {
                _ if above => u64::from(load.in_flight),
                Policy::Rr | Policy::Central | Policy::None => 0,
                Policy::Fastest => u64::from(load.in_flight + 1) * time(load, loads),
                Policy::Least => u64::from(load.in_flight),
                Policy::Sticky => weight(client, place),
            };
            if best.is_none_or(|(other, lowest, _)| (above, rank) < (other, lowest)) {
                best = Some((above, rank, place));
            }
            if matches!(self.policy, Policy::Rr | Policy::Central) && !above {
                break;
            }
        }
        let (above, _, place) = best?;
        self.skips.fallbacks += u64::from(above);
        self.cursor = (place + 1) % loads.len();
        Some(place)
    }

    pub(super) fn has_room(&self, loads: &[WorkerLoad]) -> bool {
        let mut pairs = loads.iter().enumerate();
        pairs.any(|(place, load)| load.can_take() && !self.is_at_limit(load, place))
    }

    fn is_at_limit(&self, load: &WorkerLoad, place: usize) -> bool {
        let rests = self.resting.get(place).is_some_and(|resting| *resting);
        let limit = self.limits.inflight_max;
        limit.is_some_and(|limit| {
            load.in_flight >= limit || (rests && load.in_flight > reentry(limit))
        })
    }

    fn passes(&mut self, load: &WorkerLoad, place: usize) -> bool {
        let at_limit = self.is_at_limit(load, place);
        self.resting[place] = false;
        let counter = match load.status {
            Status::Dead => &mut self.skips.dead,
            _ if load.hung => &mut self.skips.hung,
            Status::Draining => &mut self.skips.draining,
            Status::Full => &mut self.skips.full,
            Status::Ready if at_limit => {
                self.resting[place] = true;
                &mut self.skips.at_limit
            }
            Status::Ready if load.credits == 0 => &mut self.skips.out_of_credits,
            Status::Ready => return true,
        };
        *counter += 1;
        false
    }
}

/// Nine tenths of the limit, at least one, and always below it.
fn reentry(limit: u32) -> u32 {
    let share = u64::from(limit) * 9 / 10;
    u32::try_from(share).expect("less than the limit").max(1).min(limit - 1)
}

/// The average of all normal workers times the factor, as a fraction; `None` while there is no
/// worker to compare with.
pub(super) fn share(loads: &[WorkerLoad], permille: u32) -> Option<(u128, u128)> {
    let is_normal = |load: &&WorkerLoad| {
        let there = matches!(load.status, Status::Ready | Status::Full);
        there && !load.hung && load.slow_start_permille >= 1000
    };
    let normal: Vec<_> = loads.iter().filter(is_normal).collect();
    let total: u128 = normal.iter().map(|load| u128::from(load.in_flight)).sum();
    (!normal.is_empty()).then(|| (total * u128::from(permille), normal.len() as u128 * 1000))
}

/// A worker's time per connection, from half above the fastest to sixteen times that.
fn time(load: &WorkerLoad, loads: &[WorkerLoad]) -> u64 {
    let able = loads.iter().filter(|load| load.can_take() && load.usual_us > 0);
    let fastest = able.map(|load| u64::from(load.usual_us)).min().unwrap_or(1);
    u64::from(load.usual_us).max((fastest * 3).div_ceil(2)).min(fastest * 16)
}

/// Whether a worker is above the relative limit, which is lower while it is new and at least one.
pub(super) fn above(load: &WorkerLoad, (sum, count): (u128, u128)) -> bool {
    let stage = u128::from(load.slow_start_permille.min(1000));
    load.in_flight > 1 && u128::from(load.in_flight) * count * 1000 > sum * stage
}
