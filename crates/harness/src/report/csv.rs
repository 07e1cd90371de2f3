//! Renders reports as CSV for other programs: one row per worker of each run. Pure.

use super::super::aspect::Aspect;
use super::super::trial::{Outcome, Share};
use super::super::{bench, imbalance};

/// A value, quoted if necessary.
fn field(text: &str) -> String {
    let plain = !text.contains([',', '"', '\n', '\r']);
    if plain { text.to_owned() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
}

/// One row with its line feed.
#[must_use]
pub fn row(fields: &[String]) -> String {
    let fields: Vec<String> = fields.iter().map(|text| field(text)).collect();
    fields.join(",") + "\n"
}

/// A number, or an empty field.
#[must_use]
pub fn number(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

/// The matrix.
#[must_use]
pub fn imbalance(report: &imbalance::ImbalanceReport) -> String {
    let mut text = "target,load,repeat,worker,connections,top_two_share,max_over_mean,variation,\
                    jain,idle_workers,rate_per_s,p50_us,p99_us,problems\n"
        .to_owned();
    for cell in &report.cells {
        for run in &cell.runs {
            for (worker, connections) in run.connections.iter().enumerate() {
                text += &row(&[
                    cell.target.to_string(),
                    cell.load.clone(),
                    run.repeat.to_string(),
                    (worker + 1).to_string(),
                    connections.to_string(),
                    run.balance.top_two_share.to_string(),
                    run.balance.max_over_mean.to_string(),
                    run.balance.variation.to_string(),
                    run.balance.jain.to_string(),
                    run.balance.idle.to_string(),
                    number(run.rate_per_s),
                    number(run.p50_us),
                    number(run.p99_us),
                    run.problems.join("; "),
                ]);
            }
        }
    }
    text
}

/// The trials of a comparison.
#[must_use]
pub fn bench(report: &bench::BenchReport) -> String {
    let mut text = "scenario,target,repeat,speed_counts,cost_counts,worker,connections,\
                    worker_cpu_ms,in_flight_mean,in_flight_max,rate_per_s,completed,\
                    failed_share,p50_us,p90_us,p95_us,p98_us,p99_us,p999_us,max_us,mean_us,\
                    late_share,server_cpu_ms,\
                    server_cpu_us_per_request,primary_cpu_us_per_request,\
                    workers_cpu_us_per_request,machine_cpu_us_per_request,memory_peak_mib,\
                    objections\n"
        .to_owned();
    for trial in &report.trials {
        text += &trial_rows(trial);
    }
    text
}

fn trial_rows(trial: &Outcome) -> String {
    let Outcome { scenario, target, repeat, failure, record, .. } = trial;
    let mut head = vec![scenario.to_string(), target.to_string(), repeat.to_string()];
    head.extend(Aspect::ALL.map(|aspect| trial.counts_for(aspect).to_string()));
    let Some(record) = record else {
        let rest = std::iter::repeat_n(String::new(), 23).chain(failure.clone());
        return row(&head.into_iter().chain(rest).collect::<Vec<_>>());
    };
    let objections: Vec<&str> = record.objections.iter().map(|one| &*one.text).collect();
    let tail = [
        record.rate_per_s.to_string(),
        record.completed.to_string(),
        record.failed_share.to_string(),
        number(record.response.p50_us),
        number(record.response.p90_us),
        number(record.response.p95_us),
        number(record.response.p98_us),
        number(record.response.p99_us),
        number(record.response.p999_us),
        number(record.response.max_us),
        number(record.response.mean_us),
        number(record.late_share),
        record.server_cpu_ms.to_string(),
        record.server_cpu_us_per_request.to_string(),
        number(record.primary_cpu_us_per_request),
        number(record.workers_cpu_us_per_request),
        record.machine_cpu_us_per_request.to_string(),
        record.memory_peak_mib.to_string(),
        objections.join("; "),
    ];
    // A server whose workers cannot be distinguished still gets one row.
    let unknown = [Share::default()];
    let workers = if record.workers.is_empty() { &unknown[..] } else { &record.workers };
    let mut text = String::new();
    for share in workers {
        let own = [
            share.worker.to_string(),
            share.connections.map_or_else(String::new, |count| count.to_string()),
            number(share.cpu_ms),
            number(share.in_flight_mean),
            share.in_flight_max.map_or_else(String::new, |count| count.to_string()),
        ];
        text += &row(&[&head[..], &own, &tail].concat());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_and_quotes_are_kept_apart() {
        let fields = ["plain", "a,b", "say \"x\"", ""].map(str::to_owned);
        assert_eq!(row(&fields), "plain,\"a,b\",\"say \"\"x\"\"\",\n");
        assert_eq!((number(Some(1.5)), number(None)), ("1.5".into(), String::new()));
    }
}
