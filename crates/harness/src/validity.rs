//! What of a trial counts. Pure.
//!
//! Facts of a trial can speak against it, and then against what they have spoilt and nothing else:
//! a generator that was the bottleneck says nothing about the server's speed, and still everything
//! about what a request has cost it. What does not count is shown with the reasons, never dropped
//! quietly.

use std::fmt;
use std::time::Duration;

use loadtest::Report;
use serde::Serialize;

use super::scenario::Scenario;

/// The least share of the wanted rate that has to be reached.
const ACHIEVED_SHARE_MIN: f64 = 0.99;
/// A generator that wants more than this share of its CPU measures itself, whether it gets it or
/// has to wait while others have it.
const GENERATOR_CPU_SHARE_MAX: f64 = 0.90;
/// How late the 99th percentile of starts may be.
const START_LATENESS_NS_MAX: u64 = 1_000_000;

/// A kind of measure. What spoils one of a kind spoils all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aspect {
    /// Rate and latencies.
    Speed,
    /// CPU time, memory, balance and failures: what serving takes, and how it is shared.
    Cost,
}

impl Aspect {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Speed, Self::Cost];
}

impl fmt::Display for Aspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Speed => "rate and latencies",
            Self::Cost => "CPU, memory and balance",
        })
    }
}

/// Something that speaks against a trial.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Objection {
    /// For programs: `nothing_measured`, `rate_missed`, `generator_busy`, `starts_late`,
    /// `listen_overflows`, `workers_restarted`, `requests_failed`, `server_errors`,
    /// `starts_dropped` or `values_saturated`.
    pub code: &'static str,
    /// For people.
    pub text: String,
    /// Measures of these kinds do not count.
    pub against: &'static [Aspect],
}

/// The kinds of measures that count in spite of these objections.
#[must_use]
pub fn counting(objections: &[Objection]) -> Vec<Aspect> {
    let spoilt = |aspect: &Aspect| objections.iter().any(|one| one.against.contains(aspect));
    Aspect::ALL.into_iter().filter(|aspect| !spoilt(aspect)).collect()
}

/// What was measured of a trial beside its results.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Facts {
    /// The rate that was asked for, in an open-loop trial.
    pub target_rate_per_s: Option<f64>,
    /// The rate that was reached.
    pub achieved_rate_per_s: f64,
    /// The share of its time that the busiest thread of the generator spent computing.
    pub generator_cpu_share: f64,
    /// The share that it waited for a CPU.
    pub generator_waiting_share: f64,
    /// How late starts were, in an open-loop trial.
    pub start_lateness_p99_ns: Option<u64>,
    /// Connections that found the listen queue full.
    pub listen_overflows: u64,
    /// Workers that ended and were replaced.
    pub workers_restarted: u64,
}

/// Why a trial does not count, or some of its measures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    /// Nothing at all was answered.
    NothingMeasured,
    /// Less than 99 % of the wanted rate was reached.
    RateMissed {
        /// What was reached.
        achieved_rate_per_s: f64,
        /// What was wanted.
        target_rate_per_s: f64,
    },
    /// The generator was the bottleneck.
    GeneratorBusy {
        /// Share of its time that its busiest thread computed.
        cpu_share: f64,
        /// Share that it waited for a CPU.
        waiting_share: f64,
    },
    /// Requests started too late for their latency to mean what it should.
    StartsLate {
        /// The 99th percentile.
        p99_ns: u64,
    },
    /// The kernel threw connections away, so latencies hold retries.
    ListenOverflowed {
        /// How many.
        connections: u64,
    },
    /// A worker ended on the way, so there were fewer for a while.
    WorkerRestarted {
        /// How many.
        workers: u64,
    },
}

impl Reason {
    fn code(&self) -> &'static str {
        match self {
            Self::NothingMeasured => "nothing_measured",
            Self::RateMissed { .. } => "rate_missed",
            Self::GeneratorBusy { .. } => "generator_busy",
            Self::StartsLate { .. } => "starts_late",
            Self::ListenOverflowed { .. } => "listen_overflows",
            Self::WorkerRestarted { .. } => "workers_restarted",
        }
    }

    /// What it spoils. A load that was not the intended one spoils everything: what came in lumps
    /// is cheaper to serve, what was less is dearer. A busy generator is late to look at answers,
    /// and one that waits for them asks for less than it could get; what a request takes of the
    /// server is none of its doing. Retries make connections slow and requests no dearer.
    fn against(&self) -> &'static [Aspect] {
        match self {
            Self::GeneratorBusy { .. } | Self::ListenOverflowed { .. } => &[Aspect::Speed],
            Self::NothingMeasured
            | Self::RateMissed { .. }
            | Self::StartsLate { .. }
            | Self::WorkerRestarted { .. } => &Aspect::ALL,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingMeasured => write!(f, "nothing was answered"),
            Self::RateMissed { achieved_rate_per_s, target_rate_per_s } => write!(
                f,
                "reached {achieved_rate_per_s:.0} of {target_rate_per_s:.0} a second, \
                 less than 99 %"
            ),
            Self::GeneratorBusy { cpu_share, waiting_share } => {
                let (computed, waited) = (100.0 * cpu_share, 100.0 * waiting_share);
                write!(f, "the generator computed {computed:.0} % of the time")?;
                if waited >= 1.0 {
                    write!(f, " and waited for its CPU {waited:.0} %, together")?;
                } else {
                    write!(f, ",")?;
                }
                write!(f, " more than 90 %")
            }
            Self::StartsLate { p99_ns } => {
                let late = Duration::from_nanos(*p99_ns);
                write!(f, "one start in a hundred was {late:.1?} late or more, the limit is 1 ms")
            }
            Self::ListenOverflowed { connections } => {
                write!(f, "connections found the listen queue full: {connections}")
            }
            Self::WorkerRestarted { workers } => {
                write!(f, "workers ended and were replaced: {workers}")
            }
        }
    }
}

/// Everything in the facts that speaks against a trial; nothing means that all of it counts.
#[must_use]
pub fn objections(facts: &Facts) -> Vec<Reason> {
    let mut reasons = Vec::new();
    // Written so that a value that is no number counts as bad.
    let answered = facts.achieved_rate_per_s > 0.0;
    if !answered {
        reasons.push(Reason::NothingMeasured);
    }
    if let Some(target_rate_per_s) = facts.target_rate_per_s {
        let achieved_rate_per_s = facts.achieved_rate_per_s;
        let reached = achieved_rate_per_s >= ACHIEVED_SHARE_MIN * target_rate_per_s;
        if answered && !reached {
            reasons.push(Reason::RateMissed { achieved_rate_per_s, target_rate_per_s });
        }
    }
    let (cpu_share, waiting_share) = (facts.generator_cpu_share, facts.generator_waiting_share);
    let idle_enough = cpu_share + waiting_share <= GENERATOR_CPU_SHARE_MAX;
    if !idle_enough {
        reasons.push(Reason::GeneratorBusy { cpu_share, waiting_share });
    }
    if let Some(p99_ns) = facts.start_lateness_p99_ns.filter(|ns| *ns > START_LATENESS_NS_MAX) {
        reasons.push(Reason::StartsLate { p99_ns });
    }
    if facts.listen_overflows > 0 {
        let connections = facts.listen_overflows;
        reasons.push(Reason::ListenOverflowed { connections });
    }
    if facts.workers_restarted > 0 {
        let workers = facts.workers_restarted;
        reasons.push(Reason::WorkerRestarted { workers });
    }
    reasons
}

/// What the generator finds beyond the facts that are judged here, and what that spoils.
const FURTHER: [(&str, &[Aspect]); 4] = [
    ("requests_failed", &Aspect::ALL),
    ("server_errors", &Aspect::ALL),
    ("starts_dropped", &Aspect::ALL),
    ("values_saturated", &[Aspect::Speed]),
];

/// What speaks against a trial, and what is a result of its scenario, in words.
#[must_use]
pub fn judged(
    scenario: Scenario,
    loaded: &Report,
    workers_restarted: u64,
) -> (Vec<Objection>, Vec<String>) {
    let own = objections(&facts(loaded, workers_restarted)).into_iter().map(|reason| Objection {
        code: reason.code(),
        text: reason.to_string(),
        against: reason.against(),
    });
    let further = FURTHER.iter().filter_map(|(code, against)| {
        let found = loaded.validity.reasons.iter().find(|reason| reason.code == *code)?;
        Some(Objection { code, text: found.text.clone(), against })
    });
    let (consequences, against): (Vec<Objection>, Vec<Objection>) =
        own.chain(further).partition(|one| scenario.tolerates(one.code));
    (against, consequences.into_iter().map(|one| one.text).collect())
}

/// What a run of the generator is judged by.
fn facts(loaded: &Report, workers_restarted: u64) -> Facts {
    let target_rate_per_s = loaded.rates.asked_per_s;
    let lateness_us = loaded.starts.and_then(|starts| starts.start_lateness_p99_us);
    let kept = Kept {
        planned: loaded.totals.started + loaded.starts.map_or(0, |starts| starts.dropped),
        in_time: loaded.totals.completed_in_time,
        mean_s: loaded.latency.response.mean_us.unwrap_or(0.0) / 1e6,
        measured_s: loaded.measured_ms / 1e3,
    };
    Facts {
        target_rate_per_s,
        achieved_rate_per_s: target_rate_per_s
            .map_or(loaded.rates.completed_per_s, |asked| asked * achieved(&kept)),
        generator_cpu_share: loaded.cpu.busiest_thread_percent / 100.0,
        generator_waiting_share: loaded.cpu.busiest_thread_waiting_percent / 100.0,
        start_lateness_p99_ns: lateness_us.map(nanoseconds),
        listen_overflows: loaded.environment.listen_overflows,
        workers_restarted,
    }
}

/// What an open loop's rate is judged by.
struct Kept {
    planned: u64,
    in_time: u64,
    mean_s: f64,
    measured_s: f64,
}

/// The share of the planned requests that were answered, from 0 to 1.
///
/// Requests take time, so some are under way when the measured time ends: the rate times the mean
/// latency, says Little's law, and random arrivals make it more or less. Half as many again are
/// allowed. A server that does not keep up has twice as many, since its latency grows all the
/// way, and is found out.
fn achieved(kept: &Kept) -> f64 {
    if kept.planned == 0 {
        return 0.0;
    }
    let under_way = to_f64(kept.planned) * (kept.mean_s / kept.measured_s).min(1.0);
    ((to_f64(kept.in_time) + 1.5 * under_way) / to_f64(kept.planned)).min(1.0)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "histograms end at a minute"
)]
fn nanoseconds(us: f64) -> u64 {
    (us * 1e3).max(0.0) as u64
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn to_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            target_rate_per_s: Some(20_000.0),
            achieved_rate_per_s: 19_801.0,
            generator_cpu_share: 0.9,
            generator_waiting_share: 0.0,
            start_lateness_p99_ns: Some(1_000_000),
            listen_overflows: 0,
            workers_restarted: 0,
        }
    }

    /// The only objection after one thing has changed, in words.
    fn objection(change: impl FnOnce(&mut Facts)) -> String {
        let mut facts = good();
        change(&mut facts);
        let reasons = objections(&facts);
        assert_eq!(reasons.len(), 1, "{reasons:?}");
        reasons[0].to_string()
    }

    #[test]
    fn each_fact_can_speak_against_a_trial() {
        assert_eq!(objections(&good()), []);
        let closed = Facts { target_rate_per_s: None, start_lateness_p99_ns: None, ..good() };
        assert_eq!(objections(&closed), []);
        let said = objection(|facts| facts.achieved_rate_per_s = 19_799.0);
        assert_eq!(said, "reached 19799 of 20000 a second, less than 99 %");
        let said = objection(|facts| facts.generator_cpu_share = 0.93);
        assert_eq!(said, "the generator computed 93 % of the time, more than 90 %");
        let said = objection(|facts| {
            (facts.generator_cpu_share, facts.generator_waiting_share) = (0.5, 0.45);
        });
        let told = "the generator computed 50 % of the time and waited for its CPU 45 %, together \
                    more than 90 %";
        assert_eq!(said, told);
        let said = objection(|facts| facts.start_lateness_p99_ns = Some(2_500_000));
        assert_eq!(said, "one start in a hundred was 2.5ms late or more, the limit is 1 ms");
        let said = objection(|facts| facts.listen_overflows = 3);
        assert_eq!(said, "connections found the listen queue full: 3");
        let said = objection(|facts| facts.workers_restarted = 1);
        assert_eq!(said, "workers ended and were replaced: 1");
        let said = objection(|facts| facts.achieved_rate_per_s = 0.0);
        assert_eq!(said, "nothing was answered");
        let said = objection(|facts| facts.generator_cpu_share = f64::NAN);
        assert!(said.starts_with("the generator"));
        assert_eq!(objections(&Facts::default()), [Reason::NothingMeasured]);
    }

    #[test]
    fn an_objection_spoils_what_it_is_about_and_nothing_else() {
        let one = |reason: Reason| Objection {
            code: reason.code(),
            text: reason.to_string(),
            against: reason.against(),
        };
        let busy = one(Reason::GeneratorBusy { cpu_share: 0.96, waiting_share: 0.0 });
        let late = one(Reason::StartsLate { p99_ns: 5_000_000 });
        assert_eq!(counting(&[]), Aspect::ALL);
        assert_eq!(counting(std::slice::from_ref(&busy)), [Aspect::Cost]);
        assert_eq!(counting(std::slice::from_ref(&late)), []);
        assert_eq!(counting(&[busy, late]), []);
    }

    #[test]
    fn what_is_under_way_at_the_end_is_no_missed_rate() {
        let kept =
            |in_time, mean_s| achieved(&Kept { planned: 10_000, in_time, mean_s, measured_s: 4.0 });
        // All answered but what Little's law has under way.
        assert_eq!(kept(9_900, 0.040), 1.0);
        // A tenth more than can be done: in the end 400 ms behind, 200 ms in the mean.
        assert!(kept(9_000, 0.200) < 0.99);
        assert!(kept(9_800, 0.001) < 0.99);
        assert_eq!(achieved(&Kept { planned: 0, in_time: 0, mean_s: 0.0, measured_s: 1.0 }), 0.0);
    }
}
