//! Reports as pages for a browser. Pure.

use super::super::bench;
use super::super::chart::{Bar, HeatMap, HeatRow, Series, bars, heat_map, percentile_curves};
use super::super::imbalance;
use super::super::matrix::{Case, Cell, SHARE_CALLED_OUT};
use super::super::summary::{Comparisons, ratio_words};
use super::super::trial::{Outcome, Record};
use super::bench_text::{headings, ideal_rows, invalid_lines, legend, row};
use super::html::{figure, page, paragraph, surroundings, table, warnings};
use super::table::{digits, time};
use super::text::{column_headings, problems};

/// The matrix.
#[must_use]
pub fn imbalance(report: &imbalance::Report) -> String {
    let mut body = "<h1>Who takes the load</h1>\n".to_owned();
    let plural = if report.repeats == 1 { "" } else { "s" };
    body += &format!(
        "<p class=\"faint\">{} workers, up to {} connections a cell, {} run{plural} of each, \
         fresh processes every time; {:.0} s in all</p>\n",
        report.workers,
        report.loads.iter().map(|case| case.connections).max().unwrap_or(0),
        report.repeats,
        report.took_s
    );
    if report.interrupted {
        body += &warnings(&["Interrupted: cells that were not reached are empty.".to_owned()]);
    }
    body += &warnings(&report.environment.warnings);
    body += &warnings(report.missing.iter().chain(&problems(report)));
    let (first, explanations) = report.words.split_at(report.words.len().min(2));
    body.extend(first.iter().map(|words| paragraph(words)));
    body += "<h2>Share of the two busiest workers</h2>\n<p class=\"faint\">In percent of all \
             connections; framed above 70 %. The last row is what throwing dice would give.</p>\n\
             <div class=\"grid\">\n";
    body.extend(heat_maps(report));
    body += "</div>\n<h2>Every worker</h2>\n";
    body += &worker_bars(report);
    body += "<h2>In numbers</h2>\n<p class=\"faint\">Latencies of a closed loop flatter whoever \
             is slow: it asks less of them.</p>\n";
    for column in 0..report.loads.len() {
        body += &case_table(report, column);
    }
    body += "<h2>What it means</h2>\n";
    body.extend(explanations.iter().map(|words| paragraph(words)));
    body += &surroundings(&report.environment);
    page("clusterlb: who takes the load", &body)
}

/// A map for each kind of work, so that each is readable at the width of a phone.
fn heat_maps(report: &imbalance::Report) -> Vec<String> {
    let mut groups: Vec<(String, Vec<usize>)> = Vec::new();
    for (place, case) in report.loads.iter().enumerate() {
        let (group, _) = column_headings(case);
        match groups.last_mut() {
            Some((name, places)) if *name == group => places.push(place),
            _ => groups.push((group, vec![place])),
        }
    }
    // What is held open is one column: it goes with the group before it.
    if groups.len() > 1 && groups.last().is_some_and(|(name, _)| name == "held") {
        let (_, places) = groups.pop().expect("there are several");
        let (name, own) = groups.last_mut().expect("there is another");
        name.push_str(", and connections held open");
        own.extend(places);
    }
    let even = 200.0 / f64::from(u32::try_from(report.workers.max(2)).unwrap_or(u32::MAX));
    let map = |(name, places): &(String, Vec<usize>)| {
        let percent = |share: f64| Some(100.0 * share);
        let cells = |row: usize| {
            let cell = |column: &usize| report.cell(row, *column)?.summary;
            places.iter().map(move |column| percent(cell(column)?.top_two_share)).collect()
        };
        let targets = report.targets.iter().enumerate();
        let mut rows: Vec<HeatRow> = targets
            .map(|(row, target)| HeatRow { name: target.to_string(), cells: cells(row) })
            .collect();
        let chance = |column: &usize| percent(report.cell(0, *column)?.yardstick?.top_two_share);
        let chances = places.iter().map(chance).collect();
        rows.push(HeatRow { name: "by chance".into(), cells: chances });
        let columns = places.iter().map(|place| short_name(&report.loads[*place])).collect();
        let title = format!("Share of the two busiest workers: {name}");
        figure(
            name,
            &heat_map(&HeatMap {
                title,
                columns,
                rows,
                scale: (even, 100.0),
                decimals: 1,
                unit: String::new(),
                frame_above: Some(100.0 * SHARE_CALLED_OUT),
            }),
        )
    };
    groups.iter().map(map).collect()
}

fn short_name(case: &Case) -> String {
    if case.held {
        return "held open".to_owned();
    }
    case.name.split_once(", ").map_or(&*case.name, |(who, _)| who).to_owned()
}

/// The load whose bars are drawn: many clients without work, or else the first.
fn worker_bars(report: &imbalance::Report) -> String {
    let wanted = |case: &Case| case.clients > 8 && case.work.is_none();
    let column = report.loads.iter().position(wanted).unwrap_or(0);
    let Some(case) = report.loads.get(column) else {
        return String::new();
    };
    let mut text = format!(
        "<p class=\"faint\">Connections of each worker with {}, last run.</p>\n\
         <div class=\"grid\">\n",
        case.name
    );
    for (place, target) in report.targets.iter().enumerate() {
        let run = report.cell(place, column).and_then(|cell| cell.runs.last());
        if let Some(run) = run {
            let title = format!("{target}: connections of each worker");
            text += &figure(&target.to_string(), &connection_bars(&title, &run.connections));
        }
    }
    text + "</div>\n"
}

fn connection_bars(title: &str, connections: &[u64]) -> String {
    let total: u64 = connections.iter().sum();
    let all: Vec<Bar> = connections
        .iter()
        .enumerate()
        .map(|(place, count)| Bar {
            name: (place + 1).to_string(),
            percent: 100.0 * to_f64(*count) / to_f64(total.max(1)),
            note: count.to_string(),
        })
        .collect();
    bars(title, &all, Some(100.0 / to_f64(connections.len().max(1) as u64)))
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn to_f64(count: u64) -> f64 {
    count as f64
}

const CASE_HEADINGS: [&str; 10] =
    ["", "top two", "lowest", "highest", "max/mean", "CV", "Jain", "idle", "p50", "p99"];

fn case_table(report: &imbalance::Report, column: usize) -> String {
    let cells = (0..report.targets.len()).filter_map(|row| report.cell(row, column));
    let mut rows: Vec<Vec<String>> = cells.filter_map(case_row).collect();
    let chance = report.cell(0, column).and_then(|cell| cell.yardstick);
    if let Some(chance) = chance {
        rows.push(vec![
            "by chance".into(),
            format!("{:.1} %", 100.0 * chance.top_two_share),
            String::new(),
            String::new(),
            format!("{:.2}", chance.max_over_mean),
            format!("{:.3}", chance.variation),
        ]);
    }
    // Of a single run there is neither a lowest nor a highest.
    let once = report.repeats == 1;
    let shown = |place: &usize| !once || ![2, 3].contains(place);
    for row in &mut rows {
        let kept = std::mem::take(row).into_iter().enumerate().filter(|(place, _)| shown(place));
        *row = kept.map(|(_, cell)| cell).collect();
    }
    let headings = CASE_HEADINGS.into_iter().enumerate().filter(|(place, _)| shown(place));
    let headings = headings.map(|(_, heading)| heading);
    let name = super::html::escaped(&report.loads[column].name);
    format!("<h3>{name}</h3>\n{}", table(headings, rows))
}

fn case_row(cell: &Cell) -> Option<Vec<String>> {
    let summary = cell.summary?;
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    Some(vec![
        cell.target.to_string(),
        percent(summary.top_two_share),
        percent(summary.top_two_share_min),
        percent(summary.top_two_share_max),
        format!("{:.2}", summary.max_over_mean),
        format!("{:.3}", summary.variation),
        format!("{:.3}", summary.jain),
        format!("{:.0}", summary.idle_workers),
        time(summary.p50_us),
        time(summary.p99_us),
    ])
}

/// The comparison.
#[must_use]
pub fn bench(report: &bench::Report) -> String {
    let mut body = "<h1>Servers compared</h1>\n".to_owned();
    let settings = &report.settings;
    let targets: Vec<String> = report.targets.iter().map(ToString::to_string).collect();
    body += &format!(
        "<p class=\"faint\">{}; {} workers, {} rounds of {:?} after {:?} of warm-up, targets \
         taking turns; {:.0} s in all</p>\n",
        super::html::escaped(&targets.join(", ")),
        settings.workers,
        report.repeats,
        settings.duration,
        settings.warm_up,
        report.took_s
    );
    if report.interrupted {
        body += &warnings(&["Interrupted: trials that were not reached are missing.".to_owned()]);
    }
    body += &warnings(report.environment.warnings.iter().chain(&report.missing));
    if report.invalid_trials > 0 {
        body += &warnings(&[format!(
            "{} of {} trials do not count; they are listed below with the reasons.",
            report.invalid_trials,
            report.trials.len()
        )]);
    }
    body += &paragraph(&legend());
    for scenario in &report.scenarios {
        body += &scenario_part(report, scenario);
    }
    body += "<p class=\"faint\">Connections in flight over time are not drawn: not every server \
             tells them, and the generator counts by the second.</p>\n<h2>Every trial</h2>\n";
    body += &trials_table(&report.trials);
    let invalid = invalid_lines(&report.trials);
    if !invalid.is_empty() {
        body += "<h2>Trials that do not count</h2>\n";
        body.extend(invalid.iter().map(|line| format!("<p>{}</p>\n", super::html::escaped(line))));
    }
    body += &surroundings(&report.environment);
    page("clusterlb: servers compared", &body)
}

fn scenario_part(report: &bench::Report, scenario: &Comparisons) -> String {
    let mut text = format!(
        "<h2>{}</h2>\n<p>{}.</p>\n",
        super::html::escaped(&scenario.scenario.to_string()),
        super::html::escaped(&scenario.description)
    );
    let mut rows: Vec<Vec<String>> = scenario.summaries.iter().map(row).collect();
    if let Some(ideal) = &scenario.ideal {
        for (name, latencies) in ideal_rows(ideal) {
            let shown = latencies.map(|ns| time(Some(ns / 1e3)));
            rows.push([name.to_owned(), String::new()].into_iter().chain(shown).collect());
        }
    }
    text += &table(headings(), rows);
    text += &ratios(scenario);
    text.extend(scenario.left_out.iter().map(|line| paragraph(line)));
    let shown: Vec<(&Outcome, &Record)> = scenario
        .summaries
        .iter()
        .filter_map(|summary| {
            let own = report.trials.iter().filter(|trial| {
                trial.scenario == scenario.scenario && trial.target == summary.target
            });
            typical(own)
        })
        .collect();
    text += &pictures(&shown);
    text
}

/// A valid trial in the middle by its 99th percentile, or an invalid one if there is no other.
fn typical<'a>(trials: impl Iterator<Item = &'a Outcome>) -> Option<(&'a Outcome, &'a Record)> {
    let mut all: Vec<(&Outcome, &Record)> =
        trials.filter_map(|trial| Some((trial, trial.record.as_ref()?))).collect();
    if all.iter().any(|(trial, _)| trial.valid) {
        all.retain(|(trial, _)| trial.valid);
    }
    all.sort_by(|(_, left), (_, right)| {
        let tail = |record: &Record| record.response.p99_us.unwrap_or(f64::INFINITY);
        tail(left).total_cmp(&tail(right))
    });
    all.get(all.len() / 2).copied()
}

/// The ratios to the first target as a table.
fn ratios(scenario: &Comparisons) -> String {
    let Some((first, others)) = scenario.summaries.split_first() else {
        return String::new();
    };
    const KEYS: [(&str, &str); 6] = [
        ("rate", "rate_per_s"),
        ("p50", "p50_us"),
        ("p99", "p99_us"),
        ("p99.9", "p999_us"),
        ("cpu/req", "server_cpu_us_per_request"),
        ("machine", "machine_cpu_us_per_request"),
    ];
    let compared =
        others.iter().any(|other| other.values.iter().any(|value| value.ratio_to_first.is_some()));
    if !compared {
        return scenario.words.iter().map(|words| paragraph(words)).collect();
    }
    let rows = others.iter().map(|other| {
        let ratio = |key: &str| other.value(key).and_then(|value| value.ratio_to_first);
        let cells = KEYS
            .iter()
            .map(|(_, key)| ratio(key).map_or_else(|| "–".to_owned(), |ratio| ratio_words(&ratio)));
        std::iter::once(other.target.to_string()).chain(cells).collect()
    });
    let headings = std::iter::once("").chain(KEYS.iter().map(|key| key.0));
    format!("<h3>Against {}</h3>\n{}", first.target, table(headings, rows))
}

fn pictures(shown: &[(&Outcome, &Record)]) -> String {
    if shown.is_empty() {
        return String::new();
    }
    let curves: Vec<Series> = shown
        .iter()
        .map(|(trial, record)| {
            let points = record.curve.iter().filter(|point| point.percentile < 100.0);
            let points = points.map(|point| (point.percentile / 100.0, 1e3 * point.value_us));
            Series { name: name_of(trial), points: points.collect() }
        })
        .collect();
    let corrected = shown.iter().all(|(_, record)| record.corrected);
    let kind = if corrected { "from the planned start" } else { "uncorrected" };
    let mut text = figure(
        &format!("Latency by percentile, {kind}; of each target the trial in the middle"),
        &percentile_curves("Latency by percentile", &curves),
    );
    text += "<div class=\"grid\">\n";
    for (trial, record) in shown {
        text += &shares(trial, record);
    }
    text + "</div>\n"
}

fn name_of(trial: &Outcome) -> String {
    let mark = if trial.valid { "" } else { " (does not count)" };
    format!("{}{mark}", trial.target)
}

/// Who did how much: connections where they are counted, CPU time elsewhere.
fn shares(trial: &Outcome, record: &Record) -> String {
    let counts: Vec<u64> = record.workers.iter().filter_map(|share| share.connections).collect();
    if counts.iter().any(|count| *count > 0) {
        let heading = format!("{}: connections of each worker", name_of(trial));
        return figure(&heading, &connection_bars(&heading, &counts));
    }
    let times: Vec<f64> = record.workers.iter().filter_map(|share| share.cpu_ms).collect();
    let total: f64 = times.iter().sum();
    if total <= 0.0 {
        return String::new();
    }
    let all: Vec<Bar> = times
        .iter()
        .enumerate()
        .map(|(place, ms)| Bar {
            name: (place + 1).to_string(),
            percent: 100.0 * ms / total,
            note: format!("{} ms", digits(*ms)),
        })
        .collect();
    let heading = format!("{}: CPU time of each worker", name_of(trial));
    let even = 100.0 / to_f64(times.len().max(1) as u64);
    figure(&heading, &bars(&heading, &all, Some(even)))
}

const TRIAL_HEADINGS: [&str; 12] = [
    "scenario", "target", "round", "rate/s", "p50", "p99", "p99.9", "max", "cpu/req", "machine",
    "failed", "counts",
];

fn trials_table(trials: &[Outcome]) -> String {
    let rows = trials.iter().map(|trial| {
        let Outcome { scenario, target, repeat, valid, record, .. } = trial;
        let mut cells = vec![scenario.to_string(), target.to_string(), (repeat + 1).to_string()];
        if let Some(record) = record {
            let response = &record.response;
            cells.push(format!("{:.0}", record.rate_per_s));
            let latencies = [response.p50_us, response.p99_us, response.p999_us, response.max_us];
            cells.extend(latencies.map(time));
            let costs = [record.server_cpu_us_per_request, record.machine_cpu_us_per_request];
            cells.extend(costs.map(|us| time(Some(us))));
            cells.push(format!("{:.1} %", 100.0 * record.failed_share));
        } else {
            cells.extend(std::iter::repeat_n("–".to_owned(), 8));
        }
        cells.push(if *valid { "yes" } else { "no" }.to_owned());
        cells
    });
    table(TRIAL_HEADINGS, rows)
}
