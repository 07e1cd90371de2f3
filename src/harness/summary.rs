//! What the trials of a comparison come to: medians with their intervals, ratios to the first
//! target, and the sentences about them. Pure.

use serde::Serialize;

use super::interval::{Comparison, Interval, Verdict, median};
use super::queueing::{Discipline, Latencies, Queue};
use super::scenario::{Knobs, Scenario};
use super::target::Target;
use super::trial::{Outcome, Record};

/// Requests of a simulated queue: enough for a steady 99.9th percentile.
const SIMULATED_REQUESTS: usize = 400_000;

/// Something that is compared.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// Its name in data, with the unit.
    pub key: &'static str,
    /// Its name in sentences.
    pub name: &'static str,
    of: fn(&Record) -> Option<f64>,
    /// A count that may be zero is not compared by ratios.
    compared: bool,
}

/// All of them, in the order in which they are told.
pub const MEASURES: [Measure; 11] = [
    measure("rate_per_s", "rate", |record| Some(record.rate_per_s)),
    measure("p50_us", "median latency", |record| record.response.p50_us),
    measure("p90_us", "90th percentile", |record| record.response.p90_us),
    measure("p99_us", "99th percentile", |record| record.response.p99_us),
    measure("p999_us", "99.9th percentile", |record| record.response.p999_us),
    measure("max_us", "longest", |record| record.response.max_us),
    measure("server_cpu_us_per_request", "CPU of the server per request", |record| {
        Some(record.server_cpu_us_per_request)
    }),
    measure("machine_cpu_us_per_request", "CPU of the machine per request", |record| {
        Some(record.machine_cpu_us_per_request)
    }),
    measure("memory_peak_mib", "peak memory", |record| Some(record.memory_peak_mib)),
    uncompared("top_two_share", "share of the two busiest workers", |record| {
        record.balance.or(record.cpu_balance).map(|balance| balance.top_two_share)
    }),
    uncompared("failed_share", "failed requests", |record| Some(record.failed_share)),
];

const fn measure(key: &'static str, name: &'static str, of: fn(&Record) -> Option<f64>) -> Measure {
    Measure { key, name, of, compared: true }
}

const fn uncompared(
    key: &'static str,
    name: &'static str,
    of: fn(&Record) -> Option<f64>,
) -> Measure {
    Measure { key, name, of, compared: false }
}

/// A measure of a target: its median over valid trials, and what can be said beyond.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Value {
    /// What is measured, with its unit.
    pub measure: &'static str,
    /// The median.
    pub median: f64,
    /// Where the true median lies; nothing for fewer than six trials.
    pub interval: Option<Interval>,
    /// The ratio to the first target, round by round; nothing for the first target, and for fewer
    /// than six rounds in which both are valid.
    pub ratio_to_first: Option<Comparison>,
}

/// What a target came to in a scenario.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The server.
    pub target: Target,
    /// Trials that were run.
    pub trials: usize,
    /// Trials that count.
    pub valid_trials: usize,
    /// No trial counts: the values are medians of trials that do not, for orientation only.
    pub invalid_only: bool,
    /// The measures.
    pub values: Vec<Value>,
}

impl Summary {
    /// A measure by its key.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.values.iter().find(|value| value.measure == key)
    }

    /// Sums up the trials of a target, against those of the first.
    fn of(target: Target, trials: &[&Outcome], first: &[&Outcome]) -> Self {
        let own = trials.iter().filter(|outcome| outcome.target == target);
        let own: Vec<&Outcome> = own.copied().collect();
        let valid_trials = own.iter().filter(|outcome| outcome.valid).count();
        let values = MEASURES.iter().filter_map(|measure| match valid_trials {
            0 => orientation(measure, &own),
            _ => value(measure, &own, first),
        });
        let values = values.collect();
        Self { target, trials: own.len(), valid_trials, invalid_only: valid_trials == 0, values }
    }
}

/// What a valid trial measured.
fn read(measure: &Measure, outcome: &Outcome) -> Option<f64> {
    outcome.record.as_ref().filter(|_| outcome.valid).and_then(measure.of)
}

/// What trials say that do not count.
fn orientation(measure: &Measure, own: &[&Outcome]) -> Option<Value> {
    let records = own.iter().filter_map(|outcome| outcome.record.as_ref());
    let values: Vec<f64> = records.filter_map(measure.of).collect();
    let median = median(&values)?;
    Some(Value { measure: measure.key, median, interval: None, ratio_to_first: None })
}

fn value(measure: &Measure, own: &[&Outcome], first: &[&Outcome]) -> Option<Value> {
    let values: Vec<f64> = own.iter().filter_map(|outcome| read(measure, outcome)).collect();
    let is_first =
        own.first().map(|outcome| outcome.target) == first.first().map(|outcome| outcome.target);
    let pairs = own.iter().filter_map(|outcome| {
        let other = first.iter().find(|other| other.repeat == outcome.repeat)?;
        Some((read(measure, outcome)?, read(measure, other)?))
    });
    let (mine, theirs): (Vec<f64>, Vec<f64>) = pairs.unzip();
    let compared = measure.compared && !is_first;
    Some(Value {
        measure: measure.key,
        median: median(&values)?,
        interval: Interval::of(&values),
        ratio_to_first: compared.then(|| Comparison::of_ratios(&mine, &theirs)).flatten(),
    })
}

/// The bound that no way of assigning requests can beat, and what simple ways would give.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ideal {
    /// The share of its time that a worker is busy.
    pub utilisation: f64,
    /// All requests wait in one queue and whoever is free takes the first.
    pub central_queue: Latencies,
    /// The workers in turn.
    pub round_robin: Latencies,
    /// A worker by chance.
    pub random: Latencies,
}

/// What the targets came to in a scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Comparisons {
    /// The load.
    pub scenario: Scenario,
    /// What happens in it.
    pub description: String,
    /// The targets in order; all are compared with the first.
    pub summaries: Vec<Summary>,
    /// Targets that cannot be in this scenario, and why.
    pub left_out: Vec<String>,
    /// The simulated bound, where requests have a known cost.
    pub ideal: Option<Ideal>,
    /// What it means, in sentences.
    pub words: Vec<String>,
}

impl Comparisons {
    /// Sums up the trials of a scenario.
    #[must_use]
    pub fn of(
        scenario: Scenario,
        targets: &[Target],
        left_out: Vec<String>,
        trials: &[Outcome],
        knobs: &Knobs,
    ) -> Self {
        let own: Vec<&Outcome> =
            trials.iter().filter(|outcome| outcome.scenario == scenario).collect();
        let first: Vec<&Outcome> = own
            .iter()
            .filter(|outcome| Some(&outcome.target) == targets.first())
            .copied()
            .collect();
        let summaries: Vec<Summary> =
            targets.iter().map(|target| Summary::of(*target, &own, &first)).collect();
        let words = sentences(&summaries);
        Self {
            scenario,
            description: scenario.description(),
            summaries,
            left_out,
            ideal: ideal(scenario, knobs),
            words,
        }
    }
}

fn ideal(scenario: Scenario, knobs: &Knobs) -> Option<Ideal> {
    let (work, utilisation) = scenario.work().zip(scenario.utilisation())?;
    let queue = Queue::new(knobs.workers, work.time, utilisation, SIMULATED_REQUESTS).ok()?;
    Some(Ideal {
        utilisation,
        central_queue: queue.simulate(Discipline::CentralQueue, knobs.seed),
        round_robin: queue.simulate(Discipline::RoundRobin, knobs.seed),
        random: queue.simulate(Discipline::Random, knobs.seed),
    })
}

/// What is said of each target but the first, a sentence for each measure.
fn sentences(summaries: &[Summary]) -> Vec<String> {
    let Some((first, others)) = summaries.split_first() else {
        return Vec::new();
    };
    let told = [
        "rate_per_s",
        "p50_us",
        "p99_us",
        "server_cpu_us_per_request",
        "machine_cpu_us_per_request",
    ];
    let mut words = Vec::new();
    for other in others {
        let parts: Vec<String> = told
            .iter()
            .filter_map(|key| {
                let comparison = other.value(key)?.ratio_to_first?;
                let name = MEASURES.iter().find(|measure| measure.key == *key)?.name;
                Some(format!("{name} {}", ratio_words(&comparison)))
            })
            .collect();
        words.push(if parts.is_empty() {
            format!(
                "{} against {}: too few rounds in which both trials are valid to compare them.",
                other.target, first.target
            )
        } else {
            format!("{} against {}: {}.", other.target, first.target, parts.join("; "))
        });
    }
    words
}

/// A ratio with its interval, or that there is none to be seen.
#[must_use]
pub fn ratio_words(comparison: &Comparison) -> String {
    let Interval { low, median, high, .. } = comparison.interval;
    let range = format!("× {median:.2} [{low:.2}, {high:.2}]");
    match comparison.verdict {
        Verdict::NoDifferenceShown => format!("no difference shown ({range})"),
        Verdict::FirstLower | Verdict::SecondLower => range,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::trial::Percentiles;
    use super::*;

    fn outcome(target: &str, repeat: usize, p99_us: f64, valid: bool) -> Outcome {
        let response = Percentiles { p99_us: Some(p99_us), ..Percentiles::default() };
        let record = Record { response, rate_per_s: 100.0, ..Record::default() };
        Outcome {
            scenario: Scenario::Short,
            target: target.parse().expect("a target"),
            repeat,
            started_unix_ms: 0,
            valid,
            failure: None,
            record: Some(record),
        }
    }

    fn knobs() -> Knobs {
        Knobs {
            workers: 4,
            rate_per_s: 1.0,
            connections: 1,
            duration: Duration::from_secs(1),
            warm_up: Duration::ZERO,
            seed: 1,
        }
    }

    fn compared(trials: &[Outcome]) -> Comparisons {
        let targets = [Target::RR, "none:uring".parse().expect("a target")];
        Comparisons::of(Scenario::Short, &targets, Vec::new(), trials, &knobs())
    }

    #[test]
    fn pairs_are_compared_round_by_round() {
        let drift = [10.0, 20.0, 40.0, 80.0, 160.0, 320.0];
        let trials: Vec<Outcome> = drift
            .iter()
            .enumerate()
            .flat_map(|(repeat, p99_us)| {
                [
                    outcome("rr", repeat, *p99_us, true),
                    outcome("none:uring", repeat, 2.0 * p99_us, true),
                ]
            })
            .collect();
        let found = compared(&trials);
        let value = found.summaries[1].value("p99_us").expect("measured");
        let ratio = value.ratio_to_first.expect("six rounds");
        assert_eq!((ratio.interval.low, ratio.interval.high), (2.0, 2.0));
        assert_eq!(ratio.verdict, Verdict::SecondLower);
        assert_eq!(found.summaries[0].value("p99_us").and_then(|value| value.ratio_to_first), None);
        assert!(found.words[0].contains("99th percentile × 2.00 [2.00, 2.00]"), "{found:?}");
        assert!(found.words[0].contains("rate no difference shown"));
    }

    #[test]
    fn invalid_trials_do_not_count_and_leave_too_few() {
        let trials: Vec<Outcome> = (0..6)
            .flat_map(|repeat| {
                [outcome("rr", repeat, 5.0, repeat != 3), outcome("none:uring", repeat, 5.0, true)]
            })
            .collect();
        let found = compared(&trials);
        assert_eq!((found.summaries[0].trials, found.summaries[0].valid_trials), (6, 5));
        assert_eq!(found.summaries[0].value("p99_us").and_then(|value| value.interval), None);
        assert!(found.words[0].contains("too few rounds"));
        assert!(!found.summaries[0].invalid_only);
        let none: Vec<Outcome> = (0..6).map(|repeat| outcome("rr", repeat, 7.0, false)).collect();
        let found_none = compared(&none);
        assert!(found_none.summaries[0].invalid_only);
        let value = found_none.summaries[0].value("p99_us").expect("for orientation");
        assert_eq!((value.median, value.interval), (7.0, None));
        // What was never measured has no median.
        assert!(found.summaries[0].value("p50_us").is_none());
    }

    #[test]
    fn the_bound_stands_beside_requests_of_known_cost() {
        let bound = ideal(Scenario::Heavy(70), &knobs()).expect("a bound");
        assert!(bound.central_queue.p99_ns < bound.round_robin.p99_ns);
        assert!(bound.central_queue.mean_ns < bound.random.mean_ns);
        assert_eq!(ideal(Scenario::Short, &knobs()), None);
    }
}
