//! Renders the matrix as an HTML page. Pure.

use super::super::chart::{Bar, HeatMap, HeatRow, bars, heat_map};
use super::super::imbalance;
use super::super::matrix::{Case, Cell, SHARE_CALLED_OUT};
use super::page_parts::{environment, figure, page, paragraph, table, warnings};
use super::table::time;
use super::text::{amount, column_headings, problems};

/// The page of a matrix.
#[must_use]
pub fn imbalance(report: &imbalance::ImbalanceReport) -> String {
    let mut body = "<h1>Who takes the load</h1>\n".to_owned();
    let plural = if report.repeats == 1 { "" } else { "s" };
    body += &format!(
        "<p class=\"faint\">{} workers, {} a cell, {} run{plural} of each, \
         fresh processes every time; {:.0} s in all</p>\n",
        report.workers,
        amount(&report.loads),
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
    body += "<h2>In numbers</h2>\n<p class=\"faint\">Latencies of a closed loop flatter slow \
             servers: they receive fewer requests.</p>\n";
    for column in 0..report.loads.len() {
        body += &case_table(report, column);
    }
    body += "<h2>What it means</h2>\n";
    body.extend(explanations.iter().map(|words| paragraph(words)));
    body += &environment(&report.environment);
    page("clusterlb: who takes the load", &body)
}

/// One heat map per kind of work, so that each fits the width of a phone.
fn heat_maps(report: &imbalance::ImbalanceReport) -> Vec<String> {
    let mut groups: Vec<(String, Vec<usize>)> = Vec::new();
    for (place, case) in report.loads.iter().enumerate() {
        let (group, _) = column_headings(case);
        match groups.last_mut() {
            Some((name, places)) if *name == group => places.push(place),
            _ => groups.push((group, vec![place])),
        }
    }
    // Held connections are a single column, so it joins the previous group.
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

/// The load shown as bars: many clients without work, or else the first.
fn worker_bars(report: &imbalance::ImbalanceReport) -> String {
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

/// Bars of counts, with a mark at the even share.
pub(super) fn connection_bars(title: &str, connections: &[u64]) -> String {
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
pub(super) fn to_f64(count: u64) -> f64 {
    count as f64
}

const CASE_HEADINGS: [&str; 10] =
    ["", "top two", "lowest", "highest", "max/mean", "CV", "Jain", "idle", "p50", "p99"];

fn case_table(report: &imbalance::ImbalanceReport, column: usize) -> String {
    let cells = (0..report.targets.len()).filter_map(|row| report.cell(row, column));
    let mut rows: Vec<Vec<String>> = cells.filter_map(case_row).collect();
    let chance = report.cell(0, column).and_then(|cell| cell.yardstick);
    if let Some(chance) = chance {
        let mut cells = vec![
            "by chance".into(),
            format!("{:.1} %", 100.0 * chance.top_two_share),
            String::new(),
            String::new(),
            format!("{:.2}", chance.max_over_mean),
            format!("{:.3}", chance.variation),
        ];
        cells.resize(CASE_HEADINGS.len(), String::new());
        rows.push(cells);
    }
    // A single run has no range.
    let once = report.repeats == 1;
    let shown = |place: &usize| !once || ![2, 3].contains(place);
    for row in &mut rows {
        let kept = std::mem::take(row).into_iter().enumerate().filter(|(place, _)| shown(place));
        *row = kept.map(|(_, cell)| cell).collect();
    }
    let headings = CASE_HEADINGS.into_iter().enumerate().filter(|(place, _)| shown(place));
    let headings = headings.map(|(_, heading)| heading);
    let name = super::page_parts::escaped(&report.loads[column].name);
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
