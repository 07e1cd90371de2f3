//! Outlier detection: a worker that finishes its connections far sooner than its peers attracts
//! load, since it is always free. If inspected connections turn out to be closed without an answer,
//! each one counts as load for as long as its peers would have served it. Pure.
//!
//! Times and numbers alone prove nothing: a worker may be fast, or its peers slow. They only select
//! whose connections to inspect. The caller reports the findings.

use super::Roster;
use crate::id::Slot;
use crate::loads::Normal;
use crate::{Policy, Status};

/// Consecutive findings that make a worker an outlier, or an outlier normal.
const STREAK: u32 = 5;
/// A worker's connections are inspected if they take less than its peers' divided by this,
const FASTER: f64 = 4.0;
/// or if this many times as many have ended as of its peers: it attracts load.
const MORE: f64 = 1.5;
/// An outlier whose connections take this share of its peers' time is normal if no failure was
/// found for a while: long connections cannot be inspected.
const AS_LONG: f64 = 0.75;
const FORGOTTEN_NS: u64 = 2_000_000_000;
/// Finished connections, weighted by age, after which a worker's time is known.
const KNOWN_AFTER: f64 = 8.0;
/// The same for a peer, which may be slow.
const PEER_KNOWN_AFTER: f64 = 2.0;
/// Half-life of observations.
const HALF_LIFE_NS: f64 = 1e9;
/// Interval of comparisons.
const COMPARE_NS: u64 = 50_000_000;
/// Pause between two inspections of one worker.
const PAUSE_NS: u64 = 10_000_000;
/// It is unknown when connections between two observations ended. They count half of that time, up
/// to this.
const ENDED_NS_MAX: u64 = 1_000_000;
/// A failure counts as load for at most this long.
const LOAD_NS_MAX: f64 = 1e9;
/// Ejections become longer up to this many times.
const EJECTIONS_MAX: u32 = 10;

/// The time of a worker's connections, and what inspections found.
#[derive(Clone, Debug, Default)]
pub(super) struct Conduct {
    observed_ns: u64,
    /// When the sums below were last aged.
    aged_ns: u64,
    finished: u64,
    /// Total time of connections in the worker's hands.
    busy_ns: f64,
    ended: f64,
    /// It finishes them much sooner than its peers, or many more.
    is_suspicious: bool,
    /// The time of the peers' connections.
    peers_ns: f64,
    /// Connections given to it, and taken back, when the present inspection began.
    look: Option<(u64, u64)>,
    looked_ns: u64,
    failed_ns: u64,
    failures: u32,
    answers: u32,
    is_outlier: bool,
    /// Failures that count as load.
    ghosts: f64,
    /// It has no credits, because its load is above the average.
    is_limited: bool,
    ejections: u32,
    ejected_until_ns: u64,
}

/// The peers to compare with.
#[derive(Clone, Copy, Debug)]
struct Peers {
    /// Usual time of a connection.
    usual_ns: f64,
    /// Connections that have ended, weighted by age.
    ended: f64,
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Progress of an inspection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// The worker has it.
    Pending,
    /// The worker has finished as many as it had been given. It may have finished later ones before
    /// this one, but hardly often enough to affect the verdict.
    Finished,
    /// The outcome cannot be determined.
    Void,
}

/// A change of a worker's verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It closes connections without an answer. Carries the length of its ejection, if any.
    Outlier {
        /// It gets no connections for this long.
        ejected_ns: Option<u64>,
    },
    /// It is no longer an outlier.
    Normal,
}

impl Conduct {
    /// Counts what happened since the last observation.
    pub(super) fn note(&mut self, given: u64, finished: u64, now_ns: u64) {
        let passed_ns = now_ns.saturating_sub(self.observed_ns);
        let ended = finished.saturating_sub(self.finished);
        self.observed_ns = now_ns;
        self.finished = finished;
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        if ended > 0 || given > finished {
            let whole_ns = given.saturating_sub(finished).saturating_mul(passed_ns);
            let part_ns = ended.saturating_mul((passed_ns / 2).min(ENDED_NS_MAX));
            self.busy_ns += whole_ns.saturating_add(part_ns) as f64;
            self.ended += ended as f64;
        }
        if self.ghosts > 0.0 || (self.is_outlier && ended > 0) {
            self.count_failures(ended, passed_ns);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn count_failures(&mut self, ended: u64, passed_ns: u64) {
        let lasts_ns = self.peers_ns.clamp(1.0, LOAD_NS_MAX);
        self.ghosts *= (-(passed_ns as f64) / lasts_ns).exp();
        if self.is_outlier {
            self.ghosts += ended as f64;
        }
        if self.ghosts < 0.01 {
            self.ghosts = 0.0;
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn age(&mut self, now_ns: u64) {
        let share = (-(now_ns.saturating_sub(self.aged_ns) as f64) / HALF_LIFE_NS).exp2();
        self.aged_ns = now_ns;
        self.busy_ns *= share;
        self.ended *= share;
    }

    /// Usual time of a connection, once enough have ended.
    fn usual_ns(&self, known_after: f64) -> Option<f64> {
        (self.ended >= known_after).then(|| self.busy_ns / self.ended)
    }

    /// No failure was found for a while.
    fn fails_no_more(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.failed_ns) > FORGOTTEN_NS
    }

    pub(super) fn is_ejected(&self, now_ns: u64) -> bool {
        now_ns < self.ejected_until_ns
    }

    /// Load that its failures stand for.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "never negative, and the conversion saturates"
    )]
    pub(super) fn failure_load(&self) -> u32 {
        // Rounded; `round` is a call on targets without an instruction for it.
        (self.ghosts + 0.5) as u32
    }

    /// Credits of a worker with this load. An outlier above the average has none: its peers may
    /// have none either, and then it would get everything.
    pub(super) fn limit_credits(&mut self, credits: u32, in_flight: u32, normal: Normal) -> u32 {
        if !self.is_outlier {
            self.is_limited = false;
            return credits;
        }
        let average = normal.in_flight / u64::from(normal.workers.max(1));
        let left = u32::try_from(average).unwrap_or(u32::MAX).max(1).saturating_sub(in_flight);
        self.is_limited = left == 0 && credits > 0;
        left.min(credits)
    }

    fn note_answer(&mut self) -> Option<Judgement> {
        self.failures = 0;
        self.answers = self.answers.saturating_add(1);
        let is_normal = self.is_outlier && self.answers >= STREAK;
        is_normal.then(|| self.clear())
    }

    fn clear(&mut self) -> Judgement {
        self.is_outlier = false;
        self.is_limited = false;
        self.ghosts = 0.0;
        self.failures = 0;
        self.ejected_until_ns = 0;
        Judgement::Normal
    }
}

impl Roster {
    /// Compares the workers at intervals. Returns an outlier that takes as long as its peers again.
    pub fn compare(&mut self, now_ns: u64) -> Option<(Slot, Judgement)> {
        if now_ns < self.compared_ns.saturating_add(COMPARE_NS) || !self.looks_for_outliers() {
            return None;
        }
        self.compared_ns = now_ns;
        self.workers.iter_mut().flatten().for_each(|worker| worker.conduct.age(now_ns));
        let mut normal = None;
        for place in 0..self.workers.len() {
            let peers = self.peers(place);
            let Some(worker) = &mut self.workers[place] else { continue };
            let conduct = &mut worker.conduct;
            let Some((peers, usual_ns)) = peers.zip(conduct.usual_ns(KNOWN_AFTER)) else {
                conduct.is_suspicious = false;
                continue;
            };
            let is_fast = usual_ns * FASTER < peers.usual_ns;
            conduct.is_suspicious = is_fast || conduct.ended > peers.ended * MORE;
            conduct.peers_ns = peers.usual_ns;
            let is_slow = usual_ns > peers.usual_ns * AS_LONG && conduct.fails_no_more(now_ns);
            if conduct.is_outlier && is_slow && normal.is_none() {
                normal = u16::try_from(place).ok().map(|slot| (Slot::new(slot), conduct.clear()));
            }
        }
        normal
    }

    /// The medians of workers that serve the same listeners.
    fn peers(&self, place: usize) -> Option<Peers> {
        let joined = &self.workers.get(place)?.as_ref()?.joined;
        let peers = self.workers.iter().enumerate().filter(|(peer, _)| *peer != place);
        let peers = peers.filter_map(|(_, worker)| worker.as_ref());
        let peers = peers.filter(|peer| peer.joined == *joined && !peer.conduct.is_outlier);
        let known = peers.filter_map(|peer| {
            let usual_ns = peer.conduct.usual_ns(PEER_KNOWN_AFTER)?;
            Some((usual_ns, peer.conduct.ended))
        });
        let (times, counts): (Vec<f64>, Vec<f64>) = known.unzip();
        Some(Peers { usual_ns: median(times)?, ended: median(counts)? })
    }

    /// Only where the load decides, under the built-in rules.
    fn looks_for_outliers(&self) -> bool {
        let by_load = !matches!(self.policy, Policy::Sticky | Policy::None);
        by_load && self.config.scheduler.is_none() && self.workers.len() > 1
    }

    /// Whether to inspect the connection that the worker has just been given. If so, one inspection
    /// begins, and [`Roster::look`] returns its progress.
    pub fn begin_look(&mut self, slot: Slot, now_ns: u64) -> bool {
        let Some(Some(worker)) = self.workers.get_mut(slot.index()) else { return false };
        let began = (worker.assigned, worker.returned);
        let conduct = &mut worker.conduct;
        let wanted = conduct.is_suspicious || conduct.is_outlier;
        if !wanted || conduct.look.is_some() || now_ns < conduct.looked_ns + PAUSE_NS {
            return false;
        }
        conduct.looked_ns = now_ns;
        conduct.look = Some(began);
        true
    }

    /// Progress of the inspection of a worker's connection.
    #[must_use]
    pub fn look(&self, slot: Slot) -> Look {
        let Some(Some(worker)) = self.workers.get(slot.index()) else { return Look::Void };
        match worker.conduct.look {
            Some((assigned, returned)) if returned == worker.returned => {
                let is_finished = worker.conduct.finished >= assigned - returned;
                if is_finished { Look::Finished } else { Look::Pending }
            }
            _ => Look::Void,
        }
    }

    /// Ends the inspection: answered, not answered, or unknown. Returns a change of the verdict.
    pub fn end_look(
        &mut self,
        slot: Slot,
        answered: Option<bool>,
        now_ns: u64,
    ) -> Option<Judgement> {
        let may_eject = self.may_eject(slot, now_ns);
        let eject_ns = self.config.eject_outliers_ns.filter(|_| may_eject);
        let conduct = &mut self.workers.get_mut(slot.index())?.as_mut()?.conduct;
        conduct.look = None;
        if answered? {
            return conduct.note_answer();
        }
        conduct.answers = 0;
        conduct.failed_ns = now_ns;
        conduct.failures = conduct.failures.saturating_add(1);
        if conduct.failures < STREAK {
            return None;
        }
        conduct.failures = 0;
        let was_outlier = std::mem::replace(&mut conduct.is_outlier, true);
        if let Some(base_ns) = eject_ns {
            conduct.ejections = (conduct.ejections + 1).min(EJECTIONS_MAX);
            let ejected_ns = base_ns.saturating_mul(conduct.ejections.into());
            conduct.ejected_until_ns = now_ns.saturating_add(ejected_ns);
            return Some(Judgement::Outlier { ejected_ns: Some(ejected_ns) });
        }
        (!was_outlier).then_some(Judgement::Outlier { ejected_ns: None })
    }

    /// At least half of the workers that serve the same listeners stay.
    fn may_eject(&self, slot: Slot, now_ns: u64) -> bool {
        let Some(Some(worker)) = self.workers.get(slot.index()) else { return false };
        let pairs = self.workers.iter().zip(&*self.loads);
        let serving = pairs.filter_map(|(peer, load)| {
            let serves = matches!(load.status, Status::Ready | Status::Full);
            peer.as_ref().filter(|peer| serves && peer.joined == worker.joined)
        });
        let (all, ejected) = serving.fold((0, 1), |(all, ejected), peer| {
            (all + 1, ejected + usize::from(peer.conduct.is_ejected(now_ns)))
        });
        ejected * 2 <= all
    }

    /// After workers left: an outlier without peers is needed, and no longer an outlier.
    pub(super) fn forgive_outliers_without_peers(&mut self) {
        for place in 0..self.workers.len() {
            let Some(Some(worker)) = self.workers.get(place) else { continue };
            if !worker.conduct.is_outlier {
                continue;
            }
            let pairs = self.workers.iter().zip(&*self.loads);
            let mut peers = pairs.filter_map(|(peer, load)| {
                let serves = matches!(load.status, Status::Ready | Status::Full);
                peer.as_ref().filter(|_| serves)
            });
            let has_peer =
                peers.any(|peer| !peer.conduct.is_outlier && peer.joined.meets(&worker.joined));
            if let (false, Some(worker)) = (has_peer, &mut self.workers[place]) {
                worker.conduct.clear();
                let hung = worker.suspected || worker.stalled;
                self.loads.change(place, |load| load.hung = hung);
            }
        }
    }

    /// When an outlier may have credits again without any event.
    pub(super) fn outlier_deadline_ns(&self) -> Option<u64> {
        let limited = self.workers.iter().flatten().filter(|worker| worker.conduct.is_limited);
        limited.map(|worker| worker.conduct.observed_ns.saturating_add(PAUSE_NS)).min()
    }
}

#[cfg(test)]
mod tests;
