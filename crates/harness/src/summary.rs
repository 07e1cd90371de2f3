//! Summarises the trials of a comparison: medians with intervals, ratios to the first target, and
//! the sentences about them. Pure.

use serde::Serialize;

use super::aspect::Aspect;
use super::interval::{Comparison, Interval, SAMPLES_MIN, Verdict, median};
use super::queueing::{Discipline, Latencies, Queue};
use super::scenario::{Knobs, Scenario};
use super::steps::cautions;
use super::target::Target;
use super::trial::{Outcome, Record};
use crate::schedule::{OverloadFactor, Policy};

/// Simulated runs of each discipline.
const SIMULATED_RUNS_MAX: usize = 201;
/// Requests of all of them together, which bounds their time to about a second.
const SIMULATED_REQUESTS_MAX: usize = 8_000_000;
/// A figure whose highest usual value is this multiple of its lowest one is left to chance.
const CHANCE: f64 = 1.5;

/// A measure to compare.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// Key in the data, with the unit.
    pub key: &'static str,
    /// Its name in sentences.
    pub name: &'static str,
    /// The kind of measure, which decides the objections that invalidate it.
    pub aspect: Aspect,
    of: fn(&Record) -> Option<f64>,
    /// Whether ratios are computed; a count that may be zero has none.
    compared: bool,
}

/// All measures, in the order of the report.
pub const MEASURES: [Measure; 19] = [
    speed("rate_per_s", "rate", |record| Some(record.rate_per_s)),
    speed("p50_us", "median latency", |record| record.response.p50_us),
    speed("p90_us", "90th percentile", |record| record.response.p90_us),
    speed("p95_us", "95th percentile", |record| record.response.p95_us),
    speed("p98_us", "98th percentile", |record| record.response.p98_us),
    speed("p99_us", "99th percentile", |record| record.response.p99_us),
    speed("p999_us", "99.9th percentile", |record| record.response.p999_us),
    speed("max_us", "longest", |record| record.response.max_us),
    speed("mean_us", "mean latency", |record| record.response.mean_us),
    Measure {
        compared: false,
        ..speed("late_share", "short requests that took more than 5 ms", |record| record.late_share)
    },
    cost("server_cpu_us_per_request", "CPU of the server per request", |record| {
        Some(record.server_cpu_us_per_request)
    }),
    cost("primary_cpu_us_per_request", "of it the primary's", |record| {
        record.primary_cpu_us_per_request
    }),
    cost("workers_cpu_us_per_request", "the workers'", |record| record.workers_cpu_us_per_request),
    cost("machine_cpu_us_per_request", "CPU of the machine per request", |record| {
        Some(record.machine_cpu_us_per_request)
    }),
    cost("memory_peak_mib", "peak memory", |record| Some(record.memory_peak_mib)),
    uncompared("top_two_share", "share of the two busiest workers", |record| {
        record.balance.or(record.cpu_balance).map(|balance| balance.top_two_share)
    }),
    uncompared("max_over_mean", "load of the busiest worker over the mean", |record| {
        record.balance.or(record.cpu_balance).map(|balance| balance.max_over_mean)
    }),
    uncompared("in_flight_spread", "connections of the fullest worker beyond the emptiest's", {
        |record| record.in_flight.spread_mean
    }),
    uncompared("failed_share", "failed requests", |record| Some(record.failed_share)),
];

type Of = fn(&Record) -> Option<f64>;

const fn speed(key: &'static str, name: &'static str, of: Of) -> Measure {
    Measure { key, name, aspect: Aspect::Speed, of, compared: true }
}

const fn cost(key: &'static str, name: &'static str, of: Of) -> Measure {
    Measure { key, name, aspect: Aspect::Cost, of, compared: true }
}

const fn uncompared(key: &'static str, name: &'static str, of: Of) -> Measure {
    Measure { key, name, aspect: Aspect::Cost, of, compared: false }
}

/// Validity of a median.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// From valid trials.
    Counts,
    /// From invalid trials of a closed loop: a lower bound of the rate.
    AtLeast,
    /// From invalid trials: for orientation only.
    Orientation,
}

/// A measure of a target: its median over the valid trials, with interval and ratio where possible.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Value {
    /// Key of the measure, with its unit.
    pub measure: &'static str,
    /// The median.
    pub median: f64,
    /// Its validity.
    pub standing: Standing,
    /// Number of valid trials.
    pub trials: usize,
    /// Interval of the median; `None` for fewer than six trials.
    pub interval: Option<Interval>,
    /// Ratio to the first target, paired by round. `None` for the first target, and for fewer than
    /// six rounds in which both are valid.
    pub ratio_to_first: Option<Comparison>,
}

/// Summary of a target in a scenario.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The server.
    pub target: Target,
    /// Number of trials.
    pub trials: usize,
    /// Trials valid for rate and latencies.
    pub speed_trials: usize,
    /// Trials valid for all other measures.
    pub cost_trials: usize,
    /// The measures.
    pub values: Vec<Value>,
}

impl Summary {
    /// Finds a measure by its key.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.values.iter().find(|value| value.measure == key)
    }

    /// Number of trials valid for a kind of measure.
    #[must_use]
    pub fn trials_for(&self, aspect: Aspect) -> usize {
        match aspect {
            Aspect::Speed => self.speed_trials,
            Aspect::Cost => self.cost_trials,
        }
    }

    /// Summarises the trials of a target, relative to those of the first.
    fn of(scenario: Scenario, target: Target, trials: &[&Outcome], first: &[&Outcome]) -> Self {
        let own = trials.iter().filter(|outcome| outcome.target == target);
        let own: Vec<&Outcome> = own.copied().collect();
        let count = |aspect| own.iter().filter(|outcome| outcome.counts_for(aspect)).count();
        let values = MEASURES.iter().filter_map(|measure| match count(measure.aspect) {
            0 => orientation(scenario, measure, &own),
            _ => value(measure, &own, first),
        });
        Self {
            target,
            trials: own.len(),
            speed_trials: count(Aspect::Speed),
            cost_trials: count(Aspect::Cost),
            values: values.collect(),
        }
    }

    /// The kinds of measures that the scenario exists to show and that have too few valid trials.
    fn too_few(&self, scenario: Scenario) -> impl Iterator<Item = String> {
        let Self { target, trials, .. } = self;
        let counts = scenario.is_about().iter().map(|aspect| (*aspect, self.trials_for(*aspect)));
        let lacking = counts.filter(|(_, count)| *trials > 0 && *count < SAMPLES_MIN);
        lacking.map(move |(aspect, count)| {
            format!(
                "{target}: {count} of {trials} trials count for {aspect}; it takes {SAMPLES_MIN} \
                 to show anything."
            )
        })
    }
}

/// The value of a measure in a trial; `None` if it is invalid there.
fn read(measure: &Measure, outcome: &Outcome) -> Option<f64> {
    let record = outcome.record.as_ref().filter(|_| outcome.counts_for(measure.aspect));
    record.and_then(measure.of)
}

/// A value from invalid trials.
fn orientation(scenario: Scenario, measure: &Measure, own: &[&Outcome]) -> Option<Value> {
    let records = own.iter().filter_map(|outcome| outcome.record.as_ref());
    let values: Vec<f64> = records.filter_map(measure.of).collect();
    let reached = scenario.is_closed_loop() && measure.key == "rate_per_s";
    Some(Value {
        measure: measure.key,
        median: median(&values)?,
        standing: if reached { Standing::AtLeast } else { Standing::Orientation },
        trials: 0,
        interval: None,
        ratio_to_first: None,
    })
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
        standing: Standing::Counts,
        trials: values.len(),
        interval: Interval::of(&values),
        ratio_to_first: compared.then(|| Comparison::of_ratios(&mine, &theirs)).flatten(),
    })
}

/// Simulated latencies: the bound for any assignment of requests, the rule of `rr` at no overhead,
/// and two simple rules. Each is the median of several runs as long as a trial.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ideal {
    /// Utilisation of a worker.
    pub utilisation: f64,
    /// Simulated runs.
    pub runs: usize,
    /// Requests of each, as many as in a trial if the limit allows.
    pub requests: usize,
    /// One queue for all; a free worker takes the first request.
    pub central_queue: Latencies,
    /// What nineteen of twenty runs with one queue have at least.
    pub central_queue_low: Latencies,
    /// What nineteen of twenty runs with one queue have at most.
    pub central_queue_high: Latencies,
    /// The workers in turn, skipping those with more than the average.
    pub round_robin_relative: Latencies,
    /// The workers in turn.
    pub round_robin: Latencies,
    /// A random worker.
    pub random: Latencies,
}

impl Ideal {
    /// A sentence about the percentiles that depend on chance in a single trial; `None` if there
    /// are none.
    #[must_use]
    pub fn caution(&self) -> Option<String> {
        let (low, high) = (&self.central_queue_low, &self.central_queue_high);
        let percentiles = [
            ("p90", low.p90_ns, high.p90_ns),
            ("p95", low.p95_ns, high.p95_ns),
            ("p98", low.p98_ns, high.p98_ns),
        ];
        let told = percentiles.iter().filter(|(_, low, high)| *high > CHANCE * low);
        let told = told.map(|(name, low, high)| {
            format!("{name} between {:.1} and {:.1} ms", low / 1e6, high / 1e6)
        });
        let told: Vec<String> = told.collect();
        (!told.is_empty()).then(|| {
            format!(
                "Even one ideal queue has, in nine of ten trials of {} requests, {}. Compare the \
                 medians of many trials, or longer ones.",
                self.requests,
                told.join(", ")
            )
        })
    }
}

/// Summary of a scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Comparisons {
    /// The load.
    pub scenario: Scenario,
    /// One-line description.
    pub description: String,
    /// Summaries of the targets, in order; all are compared with the first.
    pub summaries: Vec<Summary>,
    /// Targets that cannot run this scenario, with the reasons.
    pub left_out: Vec<String>,
    /// The simulated bound, if the cost of a request is known.
    pub ideal: Option<Ideal>,
    /// The findings, one sentence each.
    pub words: Vec<String>,
    /// Figures that mean little under this load, one sentence each.
    pub cautions: Vec<String>,
    /// Measures the scenario exists to show that have too few valid trials, one sentence each.
    pub too_few: Vec<String>,
}

impl Comparisons {
    /// Summarises the trials of a scenario.
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
            targets.iter().map(|target| Summary::of(scenario, *target, &own, &first)).collect();
        let words = sentences(&summaries);
        let too_few = summaries.iter().flat_map(|summary| summary.too_few(scenario)).collect();
        Self {
            scenario,
            description: scenario.description(),
            summaries,
            left_out,
            ideal: ideal(scenario, knobs),
            words,
            cautions: scenario.work().map_or_else(Vec::new, |work| cautions(&work)),
            too_few,
        }
    }
}

fn ideal(scenario: Scenario, knobs: &Knobs) -> Option<Ideal> {
    let (work, utilisation) = scenario.work().zip(scenario.utilisation())?;
    let (runs, requests) = simulated(scenario.requests(knobs));
    let queue = Queue::new(knobs.workers, work.time, utilisation, requests).ok()?;
    let (speeds, capacity) =
        (scenario.slow_speeds(knobs.workers), scenario.capacity(knobs.workers));
    let queue = queue.with_speeds(&speeds, capacity).ok()?;
    let repeat = |discipline| queue.repeat(discipline, knobs.seed, runs);
    let factor = OverloadFactor::Auto.under(Policy::Rr).map_or(1.0, f64::from);
    let central = repeat(Discipline::CentralQueue);
    Some(Ideal {
        utilisation,
        runs,
        requests,
        central_queue: central.median,
        central_queue_low: central.low,
        central_queue_high: central.high,
        round_robin_relative: repeat(Discipline::RoundRobinRelative { factor }).median,
        round_robin: repeat(Discipline::RoundRobin).median,
        random: repeat(Discipline::Random).median,
    })
}

/// How many runs are simulated, and of how many requests each, for trials of this many.
fn simulated(requests: usize) -> (usize, usize) {
    let requests = requests.clamp(1, SIMULATED_REQUESTS_MAX);
    ((SIMULATED_REQUESTS_MAX / requests).min(SIMULATED_RUNS_MAX), requests)
}

/// Sentences about each target but the first, one per measure.
fn sentences(summaries: &[Summary]) -> Vec<String> {
    let Some((first, others)) = summaries.split_first() else {
        return Vec::new();
    };
    let told = [
        "rate_per_s",
        "p50_us",
        "p98_us",
        "p99_us",
        "mean_us",
        "server_cpu_us_per_request",
        "primary_cpu_us_per_request",
        "workers_cpu_us_per_request",
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
                "{} against {}: too few rounds in which both trials count to compare them.",
                other.target, first.target
            )
        } else {
            format!("{} against {}: {}.", other.target, first.target, parts.join("; "))
        });
    }
    words
}

/// A ratio with its interval, or the statement that no difference was shown.
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
mod tests;
