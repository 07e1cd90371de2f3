//! A comparison for people at a terminal. Pure.

use super::super::bench::Report;
use super::super::summary::{Comparisons, Ideal, Summary};
use super::super::trial::Outcome;
use super::table::{Table, digits, time, wrapped};
use super::text::{COLUMNS, heading};

/// A column of a scenario's table: heading, key of the measure, how it is written.
type Column = (&'static str, &'static str, fn(f64) -> String);

const COLUMNS_SHOWN: [Column; 9] = [
    ("rate/s", "rate_per_s", |value| format!("{value:.0}")),
    ("p50", "p50_us", |value| time(Some(value))),
    ("p90", "p90_us", |value| time(Some(value))),
    ("p99", "p99_us", |value| time(Some(value))),
    ("p99.9", "p999_us", |value| time(Some(value))),
    ("top 2", "top_two_share", |value| format!("{:.1} %", 100.0 * value)),
    ("cpu/req", "server_cpu_us_per_request", |value| time(Some(value))),
    ("machine", "machine_cpu_us_per_request", |value| time(Some(value))),
    ("memory", "memory_peak_mib", |value| format!("{} MiB", digits(value))),
];

/// The whole report.
#[must_use]
pub fn bench(report: &Report) -> String {
    let mut text = heading(&report.environment);
    let settings = &report.settings;
    text += &format!(
        "{} workers, {} rounds of {:?} after {:?} of warm-up, targets taking turns; medians over \
         valid trials\n",
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

/// What the columns hold.
#[must_use]
pub fn legend() -> String {
    "cpu/req is the CPU time of all processes of the server for each answered request, machine \
     that of the whole machine with the generator and everybody else on it: on loopback whoever \
     sends does protocol work of the receiver. top 2 is the share of the two busiest workers, by \
     connections where the server counts them, by CPU time for nginx. × is the median of the \
     ratios round by round, with the interval that holds the true one with 95 % or more; where \
     the interval holds 1, no difference is shown. In parentheses: no trial counts."
        .to_owned()
}

fn scenario_text(scenario: &Comparisons) -> String {
    let mut text = wrapped(&format!("{}: {}", scenario.scenario, scenario.description), COLUMNS, 0);
    let headings = COLUMNS_SHOWN.iter().map(|column| column.0);
    let mut table = Table::new(std::iter::once("").chain(headings).chain(["failed", "valid"]));
    for summary in &scenario.summaries {
        table.row(row(summary));
    }
    if let Some(ideal) = &scenario.ideal {
        for (name, latencies) in ideal_rows(ideal) {
            let shown = latencies.map(|ns| time(Some(ns / 1e3)));
            let cells = [name.to_owned(), String::new()].into_iter().chain(shown);
            table.row(cells);
        }
    }
    text += &table.render();
    for line in scenario.left_out.iter().chain(&scenario.words) {
        text += &wrapped(line, COLUMNS, 0);
    }
    text
}

/// Names and latencies (50, 90, 99, 99.9 %) of what was simulated, in nanoseconds.
#[must_use]
pub fn ideal_rows(ideal: &Ideal) -> [(&'static str, [f64; 4]); 3] {
    let of = |latencies: &super::super::queueing::Latencies| {
        [latencies.p50_ns, latencies.p90_ns, latencies.p99_ns, latencies.p999_ns]
    };
    [
        ("bound: one queue", of(&ideal.central_queue)),
        ("bound: in turn", of(&ideal.round_robin)),
        ("bound: by chance", of(&ideal.random)),
    ]
}

/// Cells of a target's row, its name first.
#[must_use]
pub fn row(summary: &Summary) -> Vec<String> {
    let mut cells = vec![summary.target.to_string()];
    let failed: fn(f64) -> String = |share| format!("{:.1} %", 100.0 * share);
    let shown = COLUMNS_SHOWN.iter().map(|(_, key, write)| (*key, *write));
    for (key, write) in shown.chain([("failed_share", failed)]) {
        let value = summary.value(key).map(|value| write(value.median));
        let value = value.unwrap_or_else(|| "–".to_owned());
        // What does not count must not look as if it did.
        cells.push(if summary.invalid_only { format!("({value})") } else { value });
    }
    cells.push(format!("{}/{}", summary.valid_trials, summary.trials));
    cells
}

/// Headings of the columns of [`row`].
pub fn headings() -> impl Iterator<Item = &'static str> {
    std::iter::once("target")
        .chain(COLUMNS_SHOWN.iter().map(|column| column.0))
        .chain(["failed", "valid"])
}

/// Trials that do not count, with the reasons, a line each.
#[must_use]
pub fn invalid_lines(trials: &[Outcome]) -> Vec<String> {
    let bad = trials.iter().filter(|outcome| !outcome.valid);
    bad.map(|outcome| {
        let Outcome { scenario, target, repeat, failure, record, .. } = outcome;
        let against = record.iter().flat_map(|record| record.objections.clone());
        let why: Vec<String> = failure.iter().cloned().chain(against).collect();
        format!("{scenario}, {target}, round {}: {}", repeat + 1, why.join("; "))
    })
    .collect()
}

fn invalid(trials: &[Outcome]) -> String {
    let lines = invalid_lines(trials);
    if lines.is_empty() {
        return format!("All {} trials count.\n", trials.len());
    }
    let mut text = format!("\n{} of {} trials do not count:\n", lines.len(), trials.len());
    for line in lines {
        text += &wrapped(&line, COLUMNS, 2);
    }
    text
}
