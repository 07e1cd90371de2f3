//! Renders a comparison as an HTML page. Pure.

use super::super::aspect::Aspect;
use super::super::bench::BenchReport;
use super::super::chart::{Bar, Series, bars, over_time, percentile_curves};
use super::super::interval::{Comparison, Interval, Verdict};
use super::super::summary::{Comparisons, Ideal};
use super::super::trial::{Outcome, Record};
use super::bench_text::{headings, legend, objection_lines, rows};
use super::matrix_page::{connection_bars, to_f64};
use super::page_parts::{environment, figure, page, paragraph, table, table_with_keys, warnings};
use super::table::{digits, time};

/// The page of a comparison.
#[must_use]
pub fn bench(report: &BenchReport) -> String {
    let mut body = "<h1>Servers compared</h1>\n".to_owned();
    let settings = &report.settings;
    let targets: Vec<String> = report.targets.iter().map(ToString::to_string).collect();
    body += &format!(
        "<p class=\"faint\">{}; {} workers, {} rounds of {:?} after {:?} of warm-up, targets \
         taking turns; {:.0} s in all</p>\n",
        super::page_parts::escaped(&targets.join(", ")),
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
            "{} of {} trials do not count, or not in everything; the reasons are listed below.",
            report.invalid_trials,
            report.trials.len()
        )]);
    }
    body += &paragraph(&legend());
    for scenario in &report.scenarios {
        body += &scenario_part(report, scenario);
    }
    body += "<h2>Every trial</h2>\n";
    body += &trials_table(&report.trials);
    let against = objection_lines(&report.trials);
    if !against.is_empty() {
        body += "<h2>What speaks against trials</h2>\n";
        body.extend(
            against.iter().map(|line| format!("<p>{}</p>\n", super::page_parts::escaped(line))),
        );
    }
    body += &environment(&report.environment);
    page("clusterlb: servers compared", &body)
}

fn scenario_part(report: &BenchReport, scenario: &Comparisons) -> String {
    let mut text = format!(
        "<h2>{}</h2>\n<p>{}.</p>\n",
        super::page_parts::escaped(&scenario.scenario.to_string()),
        super::page_parts::escaped(&scenario.description)
    );
    text += &tables(&headings(scenario).collect::<Vec<_>>(), &rows(scenario));
    let of_chance = scenario.ideal.as_ref().and_then(Ideal::caution);
    text += &warnings(scenario.cautions.iter().chain(&of_chance));
    text += &ratios(scenario);
    text.extend(scenario.left_out.iter().map(|line| paragraph(line)));
    text += &warnings(&scenario.too_few);
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

/// The first column that is not about rate or latencies.
const FIRST_OF_COST: &str = "top 2";

/// A scenario's table as two, since it is wider than a page: rate and latencies, and the rest.
fn tables(headings: &[&str], rows: &[Vec<String>]) -> String {
    let at = headings.iter().position(|heading| *heading == FIRST_OF_COST);
    let at = at.unwrap_or(headings.len());
    let first = rows.iter().map(|row| row[..at.min(row.len())].to_vec());
    let mut text = table(headings[..at].iter().copied(), first);
    // Simulated rows have nothing to say of the rest.
    let measured = rows.iter().filter(|row| row.len() == headings.len());
    let rest = measured.map(|row| [&row[..1], &row[at..]].concat());
    text += &table(headings[..1].iter().chain(&headings[at..]).copied(), rest);
    text
}

/// The trial with the median 99th percentile, chosen from those with valid latencies if there are
/// any.
fn typical<'a>(trials: impl Iterator<Item = &'a Outcome>) -> Option<(&'a Outcome, &'a Record)> {
    let mut all: Vec<(&Outcome, &Record)> =
        trials.filter_map(|trial| Some((trial, trial.record.as_ref()?))).collect();
    if all.iter().any(|(trial, _)| trial.counts_for(Aspect::Speed)) {
        all.retain(|(trial, _)| trial.counts_for(Aspect::Speed));
    }
    all.sort_by(|(_, left), (_, right)| {
        let tail = |record: &Record| record.response.p99_us.unwrap_or(f64::INFINITY);
        tail(left).total_cmp(&tail(right))
    });
    all.get(all.len() / 2).copied()
}

/// Table of the ratios to the first target.
fn ratios(scenario: &Comparisons) -> String {
    let Some((first, others)) = scenario.summaries.split_first() else {
        return String::new();
    };
    const KEYS: [(&str, &str); 10] = [
        ("rate", "rate_per_s"),
        ("p50", "p50_us"),
        ("p98", "p98_us"),
        ("p99", "p99_us"),
        ("p99.9", "p999_us"),
        ("mean", "mean_us"),
        ("cpu/req", "server_cpu_us_per_request"),
        ("primary", "primary_cpu_us_per_request"),
        ("workers", "workers_cpu_us_per_request"),
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
            .map(|(_, key)| ratio(key).map_or_else(|| "–".to_owned(), |ratio| ratio_sign(&ratio)));
        std::iter::once(other.target.to_string()).chain(cells).collect()
    });
    let headings = std::iter::once("").chain(KEYS.iter().map(|key| key.0));
    format!(
        "<h3>Against {}</h3>\n<p class=\"faint\">× times as much, as the median of the rounds; \
         ≈ no difference shown, since the interval holds 1.</p>\n{}",
        first.target,
        table(headings, rows)
    )
}

/// A ratio with its interval, in short form.
fn ratio_sign(comparison: &Comparison) -> String {
    let Interval { low, median, high, .. } = comparison.interval;
    let same = comparison.verdict == Verdict::NoDifferenceShown;
    format!("{} {median:.2} [{low:.2}, {high:.2}]", if same { "≈" } else { "×" })
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
            Series { name: name_of(trial, Aspect::Speed), points: points.collect() }
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
    text += "</div>\n<h3>Connections in flight</h3>\n<p class=\"faint\">What each worker has \
             open, from the start of the load. Connections that no worker has taken yet are not \
             seen.</p>\n<div class=\"grid\">\n";
    let most = |record: &Record| match &record.in_flight.max[..] {
        // A curve for all workers together has another scale than one per worker.
        [_] => 0,
        workers => workers.iter().copied().max().unwrap_or(0),
    };
    let up_to = shown.iter().map(|(_, record)| most(record)).max().unwrap_or(0);
    for (trial, record) in shown {
        text += &in_flight(trial, record, if most(record) == 0 { 0.0 } else { to_f64(up_to) });
    }
    text + "</div>\n"
}

/// Name of a trial's target, marked if this kind of measure is invalid.
fn name_of(trial: &Outcome, aspect: Aspect) -> String {
    let mark = if trial.counts_for(aspect) { "" } else { " (does not count)" };
    format!("{}{mark}", trial.target)
}

/// Share of each worker: connections if the server counts them, otherwise CPU time.
fn shares(trial: &Outcome, record: &Record) -> String {
    let counts: Vec<u64> = record.workers.iter().filter_map(|share| share.connections).collect();
    if counts.iter().any(|count| *count > 0) {
        let heading = format!("{}: connections of each worker", name_of(trial, Aspect::Cost));
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
    let heading = format!("{}: CPU time of each worker", name_of(trial, Aspect::Cost));
    let even = 100.0 / to_f64(times.len().max(1) as u64);
    figure(&heading, &bars(&heading, &all, Some(even)))
}

/// Maximum number of workers with a curve each.
const CURVES_MAX: usize = 8;

/// Open connections of each worker over time.
fn in_flight(trial: &Outcome, record: &Record, up_to: f64) -> String {
    let at_s: Vec<f64> = record.in_flight.at_ms.iter().map(|ms| ms / 1e3).collect();
    let series = curves(&record.in_flight.connections)
        .into_iter()
        .map(|(name, counts)| Series { name, points: at_s.iter().copied().zip(counts).collect() });
    let heading = format!("{}: connections of each worker over time", name_of(trial, Aspect::Cost));
    let series: Vec<Series> = series.collect();
    figure(&name_of(trial, Aspect::Cost), &over_time(&heading, "connections", &series, up_to))
}

/// One curve per worker or, for too many workers, the maximum, mean and minimum at each sample.
fn curves(workers: &[Vec<u64>]) -> Vec<(String, Vec<f64>)> {
    let counts = |row: &Vec<u64>| row.iter().map(|count| to_f64(*count)).collect();
    match workers {
        [all] => return vec![("all together".to_owned(), counts(all))],
        few if few.len() <= CURVES_MAX => {
            let numbered = few.iter().enumerate();
            return numbered.map(|(place, row)| ((place + 1).to_string(), counts(row))).collect();
        }
        _ => {}
    }
    let moments = 0..workers.first().map_or(0, Vec::len);
    let moments: Vec<Vec<f64>> =
        moments.map(|look| workers.iter().map(|row| to_f64(row[look])).collect()).collect();
    let each = |of: fn(&Vec<f64>) -> f64| moments.iter().map(of).collect();
    vec![
        ("fullest".to_owned(), each(|all| all.iter().copied().fold(0.0, f64::max))),
        ("mean".to_owned(), each(|all| all.iter().sum::<f64>() / to_f64(all.len() as u64))),
        ("emptiest".to_owned(), each(|all| all.iter().copied().fold(f64::INFINITY, f64::min))),
    ]
}

const TRIAL_HEADINGS: [&str; 16] = [
    "scenario", "target", "round", "rate/s", "p50", "p98", "p99", "p99.9", "max", "mean",
    "cpu/req", "primary", "workers", "machine", "failed", "counts",
];

fn trials_table(trials: &[Outcome]) -> String {
    let rows = trials.iter().map(|trial| {
        let Outcome { scenario, target, repeat, counts_for, record, .. } = trial;
        let mut cells = vec![scenario.to_string(), target.to_string(), (repeat + 1).to_string()];
        if let Some(record) = record {
            let response = &record.response;
            cells.push(format!("{:.0}", record.rate_per_s));
            let tail = [response.p98_us, response.p99_us, response.p999_us, response.max_us];
            let latencies = [response.p50_us].into_iter().chain(tail).chain([response.mean_us]);
            cells.extend(latencies.map(time));
            cells.push(time(Some(record.server_cpu_us_per_request)));
            let parts = [record.primary_cpu_us_per_request, record.workers_cpu_us_per_request];
            cells.extend(parts.map(time));
            cells.push(time(Some(record.machine_cpu_us_per_request)));
            cells.push(format!("{:.1} %", 100.0 * record.failed_share));
        } else {
            cells.extend(std::iter::repeat_n("–".to_owned(), 12));
        }
        let counts = match &counts_for[..] {
            [] => "no",
            [Aspect::Speed] => "speed only",
            [Aspect::Cost] => "cost only",
            _ => "yes",
        };
        cells.push(counts.to_owned());
        cells
    });
    table_with_keys(3, TRIAL_HEADINGS, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_table_is_shown_as_two() {
        let row = |cells: &[&str]| -> Vec<String> {
            cells.iter().map(|cell| (*cell).to_owned()).collect()
        };
        let rows = [row(&["rr", "9", "25 %", "3"]), row(&["bound", "8", ""])];
        let text = tables(&["", "p50", "top 2", "memory"], &rows);
        let halves: Vec<&str> = text.split("</table>").collect();
        assert!(halves[0].contains("<td>8</td>") && !halves[0].contains("top"), "{text}");
        assert!(halves[1].contains("<td>rr</td><td>25\u{a0}%</td><td>3</td>"), "{text}");
        assert!(!halves[1].contains("bound"), "{text}");
    }

    #[test]
    fn few_workers_have_a_curve_each_and_many_share_three() {
        assert_eq!(curves(&[vec![3, 4]]), [("all together".to_owned(), vec![3.0, 4.0])]);
        let two = curves(&[vec![1, 2], vec![5, 0]]);
        assert_eq!(two, [("1".to_owned(), vec![1.0, 2.0]), ("2".to_owned(), vec![5.0, 0.0])]);
        let many: Vec<Vec<u64>> = (0..=8).map(|worker| vec![worker, 9]).collect();
        let three = curves(&many);
        let names: Vec<&str> = three.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["fullest", "mean", "emptiest"]);
        let values: Vec<&[f64]> = three.iter().map(|(_, values)| &**values).collect();
        assert_eq!(values, [[8.0, 9.0], [4.0, 9.0], [0.0, 9.0]]);
    }
}
