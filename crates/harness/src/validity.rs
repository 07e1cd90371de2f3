//! Decides which measures of a trial are valid. Pure.
//!
//! An objection invalidates only the measures it affects: a generator that was the bottleneck says
//! nothing about the server's speed, but the cost of a request stays valid. Invalid measures stay
//! in the report, with the reasons.

use std::fmt;
use std::time::Duration;

use loadtest::Report;
use serde::Serialize;

use super::aspect::Aspect;
use super::scenario::Scenario;

/// Minimum share of the target rate.
const ACHIEVED_SHARE_MIN: f64 = 0.99;
/// Maximum share of a CPU that the generator may need. Above it the trial measures the generator,
/// whether it ran or waited for the CPU.
const GENERATOR_CPU_SHARE_MAX: f64 = 0.90;
/// Maximum lateness of the 99th percentile of starts.
const START_LATENESS_NS_MAX: u64 = 1_000_000;

/// An objection to a trial.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Objection {
    /// Code for programs: `nothing_measured`, `rate_missed`, `generator_busy`, `starts_late`,
    /// `listen_overflows`, `workers_restarted`, `requests_failed`, `server_errors`,
    /// `starts_dropped` or `values_saturated`.
    pub code: &'static str,
    /// Text for people.
    pub text: String,
    /// The kinds of measures it invalidates.
    pub against: &'static [Aspect],
}

/// The kinds of measures that stay valid under these objections.
#[must_use]
pub fn counting(objections: &[Objection]) -> Vec<Aspect> {
    let spoilt = |aspect: &Aspect| objections.iter().any(|one| one.against.contains(aspect));
    Aspect::ALL.into_iter().filter(|aspect| !spoilt(aspect)).collect()
}

/// Facts about a trial other than its results.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Facts {
    /// Target rate of an open-loop trial.
    pub target_rate_per_s: Option<f64>,
    /// Achieved rate.
    pub achieved_rate_per_s: f64,
    /// Utilisation of the generator's busiest thread.
    pub generator_cpu_share: f64,
    /// Share of its time that this thread waited for a CPU.
    pub generator_waiting_share: f64,
    /// Lateness of starts in an open-loop trial.
    pub start_lateness_p99_ns: Option<u64>,
    /// Connections that met a full listen queue.
    pub listen_overflows: u64,
    /// Workers that ended and were replaced.
    pub workers_restarted: u64,
}

/// Why a trial, or some of its measures, are invalid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    /// No request was answered.
    NothingMeasured,
    /// The achieved rate is below 99 % of the target.
    RateMissed {
        /// Achieved rate.
        achieved_rate_per_s: f64,
        /// Target rate.
        target_rate_per_s: f64,
    },
    /// The generator was the bottleneck.
    GeneratorBusy {
        /// Utilisation of its busiest thread.
        cpu_share: f64,
        /// Share of its time that this thread waited for a CPU.
        waiting_share: f64,
    },
    /// Requests started so late that their latencies are wrong.
    StartsLate {
        /// The 99th percentile.
        p99_ns: u64,
    },
    /// The kernel dropped connections, so latencies include retries.
    ListenOverflowed {
        /// Number of connections.
        connections: u64,
    },
    /// A worker ended, so fewer served for a time.
    WorkerRestarted {
        /// Number of workers.
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

    /// The kinds of measures it invalidates. A load other than the planned one invalidates
    /// everything: bursts are cheaper to serve, and a lower rate is dearer. A busy generator reads
    /// answers late and, in a closed loop, sends fewer requests than the server could answer, but
    /// does not change what a request costs the server. Retries make connections slower and
    /// requests no dearer.
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

/// All objections that follow from the facts; empty if every measure is valid.
#[must_use]
pub fn objections(facts: &Facts) -> Vec<Reason> {
    let mut reasons = Vec::new();
    // Written so that NaN counts as bad.
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

/// The generator's findings that the facts do not cover, with the measures they invalidate.
const FURTHER: [(&str, &[Aspect]); 4] = [
    ("requests_failed", &Aspect::ALL),
    ("server_errors", &Aspect::ALL),
    ("starts_dropped", &Aspect::ALL),
    ("values_saturated", &[Aspect::Speed]),
];

/// The objections to a trial, and the findings that are results of its scenario.
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

/// The facts about a run of the generator.
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

/// The input of [`achieved`].
struct Kept {
    planned: u64,
    in_time: u64,
    mean_s: f64,
    measured_s: f64,
}

/// The share of the planned requests that were answered, from 0 to 1.
///
/// Some requests are still in flight when the measured time ends: by Little's law, the rate times
/// the mean latency, give or take random arrivals. The check allows 1.5 times that number. A server
/// that cannot keep up has twice that number in flight, because its latency grows during the whole
/// run, so the check detects it.
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

    /// The only objection after a single change of the facts, as text.
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
        // All answered except those that Little's law has in flight.
        assert_eq!(kept(9_900, 0.040), 1.0);
        // Overloaded by a tenth: 400 ms behind at the end, 200 ms on average.
        assert!(kept(9_000, 0.200) < 0.99);
        assert!(kept(9_800, 0.001) < 0.99);
        assert_eq!(achieved(&Kept { planned: 0, in_time: 0, mean_s: 0.0, measured_s: 1.0 }), 0.0);
    }
}
