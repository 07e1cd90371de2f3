//! Reports as tables for other programs: one row for each worker of each run. Pure.

use super::super::imbalance::Report;

/// A value as it may stand between commas.
fn field(text: &str) -> String {
    let plain = !text.contains([',', '"', '\n', '\r']);
    if plain { text.to_owned() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
}

/// One row, ending in a line feed.
#[must_use]
pub fn row(fields: &[String]) -> String {
    let fields: Vec<String> = fields.iter().map(|text| field(text)).collect();
    fields.join(",") + "\n"
}

/// A number, or nothing where there is none.
#[must_use]
pub fn number(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

/// The matrix.
#[must_use]
pub fn imbalance(report: &Report) -> String {
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
