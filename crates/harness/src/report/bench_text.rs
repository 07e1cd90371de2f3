//! Renders a comparison as text for a terminal. Pure.

use super::super::aspect::Aspect;
use super::super::bench::BenchReport;
use super::super::queueing::Latencies;
use super::super::summary::{Comparisons, Ideal, Standing, Summary, Value};
use super::super::trial::Outcome;
use super::super::validity::Objection;
use super::table::{Table, digits, time, wrapped};
use super::text::{COLUMNS, heading};

/// A column of a scenario's table: heading, key of the measure, formatter.
type Column = (&'static str, &'static str, fn(f64) -> String);

const COLUMNS_SHOWN: [Column; 16] = [
    ("rate/s", "rate_per_s", |value| format!("{value:.0}")),
    ("p50", "p50_us", |value| time(Some(value))),
    ("p90", "p90_us", |value| time(Some(value))),
    ("p95", "p95_us", |value| time(Some(value))),
    ("p98", "p98_us", |value| time(Some(value))),
    ("p99", "p99_us", |value| time(Some(value))),
    ("p99.9", "p999_us", |value| time(Some(value))),
    ("mean", "mean_us", |value| time(Some(value))),
    ("late", "late_share", |value| format!("{:.2} %", 100.0 * value)),
    ("top 2", "top_two_share", |value| format!("{:.1} %", 100.0 * value)),
    ("max/mean", "max_over_mean", |value| format!("{value:.2}")),
    ("cpu/req", "server_cpu_us_per_request", |value| time(Some(value))),
    ("primary", "primary_cpu_us_per_request", |value| time(Some(value))),
    ("workers", "workers_cpu_us_per_request", |value| time(Some(value))),
    ("machine", "machine_cpu_us_per_request", |value| time(Some(value))),
    ("memory", "memory_peak_mib", |value| format!("{} MiB", digits(value))),
];

/// The whole report.
#[must_use]
pub fn bench(report: &BenchReport) -> String {
    let mut text = heading(&report.environment);
    let settings = &report.settings;
    text += &format!(
        "{} workers, {} rounds of {:?} after {:?} of warm-up, targets taking turns; medians of \
         what counts\n",
        settings.workers, report.repeats, settings.duration, settings.warm_up
    );
    if report.interrupted {
        text += "Interrupted: trials that were not reached are missing.\n";
    }
    for line in &report.missing {
        text += &wrapped(&format!("! {line}"), COLUMNS, 0);
    }
    for scenario in &report.scenarios {
        text.push('\n');
        text += &scenario_text(scenario);
    }
    text.push('\n');
    text += &wrapped(&legend(), COLUMNS, 0);
    text += &invalid(&report.trials);
    text
}

/// The legend of the columns.
#[must_use]
pub fn legend() -> String {
    "cpu/req is the CPU time of all processes of the server per answered request; primary is \
     the part of the process that started the others, workers the part of these; machine is \
     that of the whole machine, including the generator and unrelated processes: on loopback \
     the sender does protocol work of the receiver. late is the share of short requests that \
     took more than 5 ms. top 2 is the share of the two busiest workers, max/mean the busiest \
     one's load over the mean, by connections where the server counts them, by CPU time for \
     nginx. × is the median of the ratios round by round, with the interval that holds the \
     true one with 95 % or more; where the interval holds 1, no difference is shown. speed ok \
     and cost ok are the trials that count for rate and latencies and for everything else. In \
     parentheses: no trial counts; ≥ before the rate of a closed loop: none counts because \
     the generator could not send more requests; the server reached at least this rate."
        .to_owned()
}

fn scenario_text(scenario: &Comparisons) -> String {
    let mut text = wrapped(&format!("{}: {}", scenario.scenario, scenario.description), COLUMNS, 0);
    let mut table = Table::new(headings(scenario));
    rows(scenario).into_iter().for_each(|row| table.row(row));
    text += &table.render();
    let of_chance = scenario.ideal.as_ref().and_then(Ideal::caution);
    let cautions = scenario.cautions.iter().chain(&of_chance);
    let notes = cautions.chain(&scenario.left_out);
    for line in notes.chain(&scenario.too_few).chain(&scenario.words) {
        text += &wrapped(line, COLUMNS, 0);
    }
    text
}

/// The columns that say something of a scenario.
fn columns(scenario: &Comparisons) -> impl Iterator<Item = &'static Column> {
    // Only loads of short and long requests have late ones.
    let has_late = scenario.summaries.iter().any(|summary| summary.value("late_share").is_some());
    COLUMNS_SHOWN.iter().filter(move |(_, key, _)| has_late || *key != "late_share")
}

/// The rows of a scenario's table: the targets, and what is simulated.
#[must_use]
pub fn rows(scenario: &Comparisons) -> Vec<Vec<String>> {
    let targets = scenario.summaries.iter().map(|summary| row(scenario, summary));
    let ideal = scenario.ideal.iter().flat_map(ideal_rows);
    let ideal = ideal.map(|(name, latencies)| ideal_row(scenario, name, &latencies));
    targets.chain(ideal).collect()
}

/// Names and simulated latencies.
fn ideal_rows(ideal: &Ideal) -> [(&'static str, Latencies); 4] {
    [
        ("bound: one queue", ideal.central_queue),
        ("bound: rr's rule", ideal.round_robin_relative),
        ("bound: in turn", ideal.round_robin),
        ("bound: by chance", ideal.random),
    ]
}

fn ideal_row(scenario: &Comparisons, name: &str, latencies: &Latencies) -> Vec<String> {
    let cell = |(_, key, write): &Column| {
        let ns = match *key {
            "p50_us" => latencies.p50_ns,
            "p90_us" => latencies.p90_ns,
            "p95_us" => latencies.p95_ns,
            "p98_us" => latencies.p98_ns,
            "p99_us" => latencies.p99_ns,
            "p999_us" => latencies.p999_ns,
            "mean_us" => latencies.mean_ns,
            _ => return String::new(),
        };
        write(ns / 1e3)
    };
    std::iter::once(name.to_owned()).chain(columns(scenario).map(cell)).collect()
}

/// The column after [`COLUMNS_SHOWN`].
const FAILED: Column = ("failed", "failed_share", |share| format!("{:.1} %", 100.0 * share));
/// Headings of that column and of the last ones.
const LAST_HEADINGS: [&str; 3] = ["failed", "speed ok", "cost ok"];

/// Cells of a target's row, starting with its name.
fn row(scenario: &Comparisons, summary: &Summary) -> Vec<String> {
    let mut cells = vec![summary.target.to_string()];
    for (_, key, write) in columns(scenario).chain([&FAILED]) {
        let value = summary.value(key).map(|value| cell(value, *write));
        cells.push(value.unwrap_or_else(|| "–".to_owned()));
    }
    let counts = Aspect::ALL.map(|aspect| summary.trials_for(aspect));
    cells.extend(counts.map(|count| format!("{count}/{}", summary.trials)));
    cells
}

/// A median, marked if it is invalid.
fn cell(value: &Value, write: fn(f64) -> String) -> String {
    let median = write(value.median);
    match value.standing {
        Standing::Counts => median,
        Standing::AtLeast => format!("≥ {median}"),
        Standing::Orientation => format!("({median})"),
    }
}

/// Headings of the columns of [`rows`].
pub fn headings(scenario: &Comparisons) -> impl Iterator<Item = &'static str> {
    let shown = columns(scenario).map(|column| column.0);
    std::iter::once("").chain(shown).chain(LAST_HEADINGS)
}

/// Objections to trials and the measures they invalidate. One line per kind of reason, scenario and
/// target, because a closed loop often has the same objection in every round.
#[must_use]
pub fn objection_lines(trials: &[Outcome]) -> Vec<String> {
    let mut groups: Vec<(String, Vec<usize>, String)> = Vec::new();
    let mut enter = |trial: &Outcome, code: &str, text: String| {
        let name = format!("{}, {}", trial.scenario, trial.target);
        let key = format!("{name}, {code}");
        match groups.iter_mut().find(|(known, ..)| *known == key) {
            Some((_, rounds, _)) => rounds.push(trial.repeat + 1),
            None => groups.push((key, vec![trial.repeat + 1], format!("{name}, {{}}: {text}"))),
        }
    };
    for trial in trials {
        if let Some(why) = &trial.failure {
            enter(trial, "failed", format!("not run: {why}"));
        }
        for objection in trial.record.iter().flat_map(|record| &record.objections) {
            enter(trial, objection.code, objection_words(objection));
        }
    }
    groups
        .into_iter()
        .map(|(_, rounds, text)| match &rounds[..] {
            [round] => text.replacen("{}", &format!("round {round}"), 1),
            [first, ..] => {
                let all: Vec<String> = rounds.iter().map(ToString::to_string).collect();
                let text = text.replacen("{}", &format!("rounds {}", all.join(", ")), 1);
                format!("{text} (in round {first})")
            }
            [] => text,
        })
        .collect()
}

fn objection_words(objection: &Objection) -> String {
    let Objection { text, against, .. } = objection;
    match against {
        [aspect] => format!("{text}; {aspect} do not count"),
        _ => text.clone(),
    }
}

fn invalid(trials: &[Outcome]) -> String {
    let unsound = trials.iter().filter(|trial| !trial.is_sound()).count();
    if unsound == 0 {
        return format!("All {} trials count.\n", trials.len());
    }
    let all = trials.len();
    let mut text = format!("\n{unsound} of {all} trials do not count, or not in everything:\n");
    for line in objection_lines(trials) {
        text += &wrapped(&line, COLUMNS, 2);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::super::scenario::Scenario;
    use super::super::super::target::Target;
    use super::super::super::trial::Record;
    use super::*;

    fn trial(repeat: usize, objections: Vec<Objection>, failure: Option<&str>) -> Outcome {
        Outcome {
            scenario: Scenario::Capacity,
            target: Target::RR,
            repeat,
            started_unix_ms: 0,
            counts_for: Vec::new(),
            failure: failure.map(str::to_owned),
            record: failure.is_none().then(|| Record { objections, ..Record::default() }),
        }
    }

    #[test]
    fn the_same_reason_is_told_once_for_all_rounds() {
        let busy = |percent: u32| Objection {
            code: "generator_busy",
            text: format!("busy {percent} %"),
            against: &[Aspect::Speed],
        };
        let trials = [
            trial(0, vec![busy(95)], None),
            trial(1, vec![], None),
            trial(2, vec![busy(97)], None),
            trial(3, vec![], Some("no {} port")),
        ];
        let lines = objection_lines(&trials);
        assert_eq!(lines.len(), 2, "{lines:#?}");
        let told = "capacity, rr, rounds 1, 3: busy 95 %; rate and latencies do not count \
                    (in round 1)";
        assert_eq!(lines[0], told);
        assert_eq!(lines[1], "capacity, rr, round 4: not run: no {} port");
    }
}
