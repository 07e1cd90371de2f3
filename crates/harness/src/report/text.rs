//! Renders the matrix as text for a terminal. Pure.

use super::super::environment::Environment;
use super::super::imbalance::ImbalanceReport;
use super::super::matrix::{Case, CellSummary, SHARE_CALLED_OUT};
use super::super::other_load::OtherLoad;
use super::table::{Table, time, wrapped};
use crate::balance::Yardstick;

/// Width of running text.
pub const COLUMNS: usize = 96;
/// Most runs that are named because the machine was busy.
const BUSY_NAMED_MAX: usize = 3;

/// A measure with a matrix of its values.
struct Measure {
    title: &'static str,
    of: fn(&CellSummary) -> String,
    by_chance: Option<fn(&Yardstick) -> String>,
}

const MEASURES: [Measure; 6] = [
    Measure {
        title: "Share of the two busiest workers in percent, * above 70",
        of: |cell| {
            let mark = if cell.top_two_share > SHARE_CALLED_OUT { "*" } else { "" };
            format!("{:.1}{mark}", 100.0 * cell.top_two_share)
        },
        by_chance: Some(|chance| format!("{:.1}", 100.0 * chance.top_two_share)),
    },
    Measure {
        title: "Busiest worker over the mean (1 is even)",
        of: |cell| format!("{:.2}", cell.max_over_mean),
        by_chance: Some(|chance| format!("{:.2}", chance.max_over_mean)),
    },
    Measure {
        title: "Coefficient of variation (0 is even)",
        of: |cell| format!("{:.3}", cell.variation),
        by_chance: Some(|chance| format!("{:.3}", chance.variation)),
    },
    Measure {
        title: "Jain's index (1 is even)",
        of: |cell| format!("{:.3}", cell.jain),
        by_chance: None,
    },
    Measure {
        title: "Workers that got nothing",
        of: |cell| format!("{:.0}", cell.idle_workers),
        by_chance: None,
    },
    Measure {
        title: "Latency, 99th percentile (closed loop: it flatters slow servers)",
        of: |cell| time(cell.p99_us),
        by_chance: None,
    },
];

/// The whole report.
#[must_use]
pub fn imbalance(report: &ImbalanceReport) -> String {
    let mut text = heading(&report.environment);
    text += &format!(
        "{} workers, {} a cell, {} run{} of each; even is {:.1} %\n",
        report.workers,
        amount(&report.loads),
        report.repeats,
        if report.repeats == 1 { "" } else { "s" },
        100.0 * (2.0 / workers(report)).min(1.0),
    );
    if report.interrupted {
        text += "Interrupted: cells that were not reached are empty.\n";
    }
    for measure in &MEASURES {
        text += &format!("\n{}\n{}", measure.title, matrix(report, measure));
    }
    text.push('\n');
    for line in report.missing.iter().chain(&problems(report)) {
        text += &wrapped(&format!("! {line}"), COLUMNS, 0);
    }
    for words in &report.words {
        text.push('\n');
        text += &wrapped(words, COLUMNS, 0);
    }
    text
}

/// Number of connections per cell.
#[must_use]
pub fn amount(loads: &[Case]) -> String {
    let most = loads.iter().map(|case| case.connections).max().unwrap_or(0);
    match loads.iter().filter_map(|case| case.limit).max() {
        Some(limit) => format!("up to {most} connections or {limit:?}"),
        None => format!("up to {most} connections"),
    }
}

#[expect(clippy::cast_precision_loss, reason = "workers are few")]
fn workers(report: &ImbalanceReport) -> f64 {
    report.workers as f64
}

/// Head of every report: warnings first, then two lines on the machine.
#[must_use]
pub fn heading(environment: &Environment) -> String {
    let mut text = String::new();
    for warning in &environment.warnings {
        text += &wrapped(&format!("! {warning}"), COLUMNS, 0);
    }
    let Environment { version, commit, build_profile, kernel, cpu_model, .. } = environment;
    let list = |cpus: &[usize]| match cpus {
        [] => "any".to_owned(),
        cpus => crate::sys::cpu::format_cpu_list(cpus),
    };
    text +=
        &format!("clusterlb {version} ({commit}, {build_profile}), Linux {kernel}, {cpu_model}\n");
    text += &format!(
        "server on CPU {}, generator on CPU {}, io_uring {}, load average {}\n",
        list(&environment.placement.server_cpus),
        list(&environment.placement.load_cpus),
        environment.io_uring,
        environment.load_average,
    );
    for (name, version) in &environment.peers {
        text += &format!("{name}: {version}\n");
    }
    text
}

/// Headings of a column: cost of a request, and number of clients.
#[must_use]
pub fn column_headings(case: &Case) -> (String, String) {
    if case.held {
        return ("held".to_owned(), "open".to_owned());
    }
    let (who, cost) = case.name.split_once(", ").unwrap_or((&case.name, "no work"));
    let clients = who.replace("one client", "1").replace(" clients", "");
    (cost.to_owned(), clients)
}

fn matrix(report: &ImbalanceReport, measure: &Measure) -> String {
    let headings: Vec<(String, String)> = report.loads.iter().map(column_headings).collect();
    // The name of a group is printed above its first column only.
    let mut shown = Vec::new();
    for (place, (group, _)) in headings.iter().enumerate() {
        let new = place == 0 || headings[place - 1].0 != *group;
        let short = group.replace("computing", "cpu").replace("blocking", "block");
        shown.push(if new { short } else { String::new() });
    }
    let groups = std::iter::once("").chain(shown.iter().map(String::as_str));
    let mut table = Table::new(groups);
    let clients = headings.iter().map(|(_, clients)| clients.clone());
    table.row(std::iter::once("clients".to_owned()).chain(clients));
    for (row, target) in report.targets.iter().enumerate() {
        let cells = (0..report.loads.len()).map(|column| {
            let summary = report.cell(row, column).and_then(|cell| cell.summary.as_ref());
            summary.map_or_else(|| "–".to_owned(), measure.of)
        });
        table.row(std::iter::once(target.to_string()).chain(cells));
    }
    if let Some(by_chance) = measure.by_chance {
        let cells = (0..report.loads.len()).map(|column| {
            let chance = report.cell(0, column).and_then(|cell| cell.yardstick.as_ref());
            chance.map_or_else(|| "–".to_owned(), by_chance)
        });
        table.row(std::iter::once("by chance".to_owned()).chain(cells));
    }
    table.render()
}

/// Problems, one line each.
#[must_use]
pub fn problems(report: &ImbalanceReport) -> Vec<String> {
    let mut lines = Vec::new();
    let mut of_runs = Vec::new();
    for cell in &report.cells {
        let name = format!("{}, {}", cell.target, cell.load);
        lines.extend(cell.failures.iter().map(|why| format!("{name}: not run: {why}")));
        of_runs.extend(cell.runs.iter().map(|run| (name.clone(), &*run.problems)));
    }
    lines.extend(named(&of_runs));
    lines
}

/// The problems of runs, each with the name of its run. On a machine that is busy throughout, one
/// line stands for all that say so.
fn named(of_runs: &[(String, &[String])]) -> Vec<String> {
    let is_busy = |problems: &[String]| problems.iter().any(|what| OtherLoad::is_objection(what));
    let busy = of_runs.iter().filter(|(_, problems)| is_busy(problems)).count();
    let is_told_once = busy > BUSY_NAMED_MAX;
    let mut lines = Vec::new();
    if is_told_once {
        lines.push(OtherLoad::objection_to(busy, of_runs.len()));
    }
    for (name, problems) in of_runs {
        let problems =
            problems.iter().filter(|what| !is_told_once || !OtherLoad::is_objection(what));
        lines.extend(problems.map(|what| format!("{name}: {what}")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_is_busy_throughout_is_told_once() {
        let text = "other processes took 50 % of the CPUs: they may have shifted the load";
        let (busy, other) = ([text.to_owned()], ["workers ended".to_owned(), text.to_owned()]);
        let runs = |count| vec![("rr".to_owned(), &busy[..]); count];
        assert_eq!(named(&runs(3)), vec![format!("rr: {}", busy[0]); 3]);
        let mut many = runs(4);
        many.extend([("none".to_owned(), &other[..]), ("even".to_owned(), &[][..])]);
        let lines = named(&many);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("In 5 of 6 runs other processes took"), "{lines:?}");
        assert_eq!(lines[1], "none: workers ended");
    }
}
