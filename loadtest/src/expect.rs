//! Conditions on the results of a run, as `--expect 'p99<5ms,errors=0'` names them. Pure.
//!
//! Owns the names of what is measured and how a condition is judged. A condition on something
//! that was not measured is not met.

use std::fmt;
use std::str::FromStr;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::latency::{Latencies, microseconds, quantile_us};
use crate::tally::Tally;
use crate::units;

/// A condition on the results of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Condition {
    metric: Metric,
    comparison: Comparison,
    bound: f64,
    /// The bound is a share in percent.
    percent: bool,
    text: String,
}

/// A condition, compared with what was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// As it was given.
    pub condition: String,
    /// What was measured, in words.
    pub measured: String,
    /// True if the run did as expected.
    pub met: bool,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Metric {
    Time(Part, Statistic),
    Rate,
    Count(Counter),
}

/// Which of a request's latencies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Connect,
    FirstByte,
    Response,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Statistic {
    Quantile(f64),
    Min,
    Mean,
    Max,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Counter {
    Completed,
    Errors,
    Status(usize),
    Non2xx,
    Late,
    Dropped,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Comparison {
    Below,
    AtMost,
    Above,
    AtLeast,
    Equal,
}

/// What conditions are judged by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured<'a> {
    pub(crate) latencies: &'a Latencies,
    pub(crate) tally: &'a Tally,
    pub(crate) rate_per_s: f64,
}

impl Condition {
    /// Compares it with what was measured.
    pub(crate) fn check(&self, measured: Measured<'_>) -> Checked {
        let (value, words) = match self.metric {
            Metric::Time(part, statistic) => {
                let value = part.of(measured.latencies).and_then(|all| statistic.of(all));
                (value, value.map(units::micros))
            }
            Metric::Rate => {
                let rate = measured.rate_per_s;
                (Some(rate), Some(format!("{rate:.1}/s")))
            }
            Metric::Count(counter) => {
                let (count, all) = counter.of(measured.tally);
                let share = count as f64 * 100.0 / all.max(1) as f64;
                let value = if self.percent { share } else { count as f64 };
                (Some(value), Some(format!("{count} of {all}")))
            }
        };
        Checked {
            condition: self.text.clone(),
            measured: words.unwrap_or_else(|| "nothing was measured".into()),
            met: value.is_some_and(|value| self.comparison.holds(value, self.bound)),
        }
    }
}

impl Part {
    /// The histogram; in connect mode a response is a connection.
    fn of(self, latencies: &Latencies) -> Option<&Histogram<u64>> {
        let all = match self {
            Self::Connect => &latencies.connect,
            Self::FirstByte => &latencies.first_byte,
            Self::Response if latencies.response.is_empty() => &latencies.connect,
            Self::Response => &latencies.response,
        };
        (!all.is_empty()).then_some(all)
    }
}

impl Statistic {
    fn of(self, histogram: &Histogram<u64>) -> Option<f64> {
        Some(match self {
            Self::Quantile(quantile) => quantile_us(histogram, quantile),
            Self::Min => microseconds(histogram.min()),
            Self::Mean => histogram.mean() / 1e3,
            Self::Max => microseconds(histogram.max()),
        })
    }
}

impl Counter {
    /// The count, and what it is a share of.
    fn of(self, tally: &Tally) -> (u64, u64) {
        let planned = tally.started + tally.dropped;
        match self {
            Self::Completed => (tally.completed, tally.started),
            Self::Errors => (tally.failed(), tally.started),
            Self::Status(class) => (tally.statuses[class], tally.completed),
            Self::Non2xx => (tally.completed - tally.statuses[2], tally.completed),
            Self::Late => (tally.late, planned),
            Self::Dropped => (tally.dropped, planned),
        }
    }
}

impl Comparison {
    /// The comparison at the front of a text, and what follows it.
    fn read(text: &str) -> Option<(Self, &str)> {
        let all = [
            ("<=", Self::AtMost),
            (">=", Self::AtLeast),
            ("==", Self::Equal),
            ("<", Self::Below),
            (">", Self::Above),
            ("=", Self::Equal),
        ];
        all.into_iter().find_map(|(sign, kind)| Some((kind, text.strip_prefix(sign)?)))
    }

    #[expect(clippy::float_cmp, reason = "counts below 2^53 are exact, times cannot be equal")]
    fn holds(self, value: f64, bound: f64) -> bool {
        match self {
            Self::Below => value < bound,
            Self::AtMost => value <= bound,
            Self::Above => value > bound,
            Self::AtLeast => value >= bound,
            Self::Equal => value == bound,
        }
    }
}

impl FromStr for Metric {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let name = text.trim().to_ascii_lowercase().replace('-', "_");
        let (part, rest) = [
            ("connect_", Part::Connect),
            ("first_byte_", Part::FirstByte),
            ("response_", Part::Response),
        ]
        .into_iter()
        .find_map(|(prefix, part)| Some((Some(part), name.strip_prefix(prefix)?)))
        .unwrap_or((None, &name));
        if let Some(statistic) = statistic(rest) {
            return Ok(Self::Time(part.unwrap_or(Part::Response), statistic));
        }
        match rest {
            _ if part.is_some() => Err(()),
            "rate" | "rps" => Ok(Self::Rate),
            "errors" | "failed" => Ok(Self::Count(Counter::Errors)),
            "requests" | "completed" => Ok(Self::Count(Counter::Completed)),
            "non_2xx" | "non2xx" => Ok(Self::Count(Counter::Non2xx)),
            "1xx" => Ok(Self::Count(Counter::Status(1))),
            "2xx" => Ok(Self::Count(Counter::Status(2))),
            "3xx" => Ok(Self::Count(Counter::Status(3))),
            "4xx" => Ok(Self::Count(Counter::Status(4))),
            "5xx" => Ok(Self::Count(Counter::Status(5))),
            "late" => Ok(Self::Count(Counter::Late)),
            "dropped" => Ok(Self::Count(Counter::Dropped)),
            _ => Err(()),
        }
    }
}

/// Reads `p99`, `p99.9`, `p999`, `min`, `mean`, `max`.
fn statistic(name: &str) -> Option<Statistic> {
    match name {
        "min" => return Some(Statistic::Min),
        "mean" | "avg" | "average" => return Some(Statistic::Mean),
        "median" => return Some(Statistic::Quantile(0.5)),
        "max" => return Some(Statistic::Max),
        _ => {}
    }
    let digits = name.strip_prefix('p')?;
    let percent = match digits {
        // p999 is a usual way to write p99.9.
        _ if digits.len() > 2 && digits.starts_with('9') && !digits.contains('.') => {
            units::number(&format!("{}.{}", digits.get(..2)?, digits.get(2..)?))?
        }
        _ => units::number(digits)?,
    };
    (percent <= 100.0).then_some(Statistic::Quantile(percent / 100.0))
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let sign =
            text.find(['<', '>', '=']).ok_or("write a comparison, as p99<5ms or errors=0")?;
        let (name, rest) = text.split_at(sign);
        let metric: Metric = name.parse().map_err(|()| {
            "compare p50, p99, p99.9, min, mean, max (also connect_p99, first_byte_p99), rate, \
             requests, errors, 2xx to 5xx, non_2xx, late or dropped"
                .to_owned()
        })?;
        let (comparison, bound) = Comparison::read(rest).ok_or("write <, <=, >, >= or =")?;
        let bound = bound.trim();
        let share = bound.strip_suffix('%').map(str::trim_end);
        let value = match metric {
            Metric::Time(..) if comparison == Comparison::Equal => {
                return Err("compare times with < or >, as p99<5ms".into());
            }
            Metric::Time(..) => {
                units::parse_micros(bound).ok_or("write a time with its unit, as 5ms or 1.5s")?
            }
            Metric::Rate => units::scaled(bound).ok_or("write a rate as 800 or 20k")?,
            Metric::Count(_) => share
                .map_or_else(|| units::scaled(bound), units::number)
                .ok_or("write a number or a share, as errors=0 or errors<1%")?,
        };
        let percent = matches!(metric, Metric::Count(_)) && share.is_some();
        Ok(Self { metric, comparison, bound: value, percent, text: text.to_owned() })
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<Condition> for String {
    fn from(condition: Condition) -> Self {
        condition.text
    }
}

impl TryFrom<String> for Condition {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Checked {
        let mut latencies = Latencies::default();
        for ms in 1..=1000_u64 {
            latencies.response.saturating_record(ms * 1_000_000);
        }
        latencies.connect.saturating_record(2_000_000);
        let tally = Tally {
            started: 1010,
            completed: 1000,
            statuses: [0, 0, 990, 0, 6, 4],
            errors: [10, 0, 0, 0, 0, 0, 0, 0, 0],
            late: 3,
            ..Tally::default()
        };
        let measured = Measured { latencies: &latencies, tally: &tally, rate_per_s: 250.5 };
        text.parse::<Condition>().expect(text).check(measured)
    }

    #[test]
    fn conditions_are_judged_by_what_was_measured() {
        for (text, met) in [
            ("p50<600ms", true),
            ("p50 < 400ms", false),
            ("p99.9<=1.1s", true),
            ("p999>998ms", true),
            ("P75>700ms", true),
            ("p100<1.1s", true),
            ("mean>400ms", true),
            ("max<900ms", false),
            ("min<=2ms", true),
            ("connect_p99<3ms", true),
            ("connect-max<1ms", false),
            ("first_byte_p99<1s", false),
            ("rate>250", true),
            ("rate>=1k", false),
            ("errors=0", false),
            ("errors==10", true),
            ("errors<1%", true),
            ("errors<0.5%", false),
            ("5xx=4", true),
            ("non-2xx<=1%", true),
            ("2xx=100%", false),
            ("requests>=1k", true),
            ("late=3", true),
            ("dropped=0", true),
        ] {
            assert_eq!(check(text).met, met, "{text}: {:?}", check(text));
        }
        assert_eq!(check("errors=0").measured, "10 of 1010");
        assert_eq!(check("first_byte_p99<1s").measured, "nothing was measured");
    }

    #[test]
    fn what_is_no_condition_is_refused_with_what_would_be_one() {
        for (text, word) in [
            ("p99", "comparison"),
            ("p99<5", "unit"),
            ("p99=5ms", "<"),
            ("p101<5ms", "p99.9"),
            ("p<5ms", "p99.9"),
            ("connect_rate>5", "rate"),
            ("speed>5", "rate"),
            ("rate>fast", "20k"),
            ("errors<some", "share"),
            ("", "comparison"),
        ] {
            let error = text.parse::<Condition>().expect_err(text);
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn conditions_read_back() {
        let condition: Condition = "p99 < 5ms".parse().expect("a condition");
        assert_eq!(condition.to_string().parse(), Ok(condition));
    }
}
