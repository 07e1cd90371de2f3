//! What percentiles say where service times come in steps: which of them lies on a step, and how
//! many of the short requests were late. Pure.

use loadtest::latency::CurvePoint;

use super::work::{ServiceTime, Work};

/// A short request that takes longer than this was late.
pub const LATE_NS: u64 = 5_000_000;
/// Percentiles that reports show.
const SHOWN: [f64; 6] = [50.0, 90.0, 95.0, 98.0, 99.0, 99.9];
/// A percentile this close to a step lies on it, as a part of what is beyond the step: chance moves
/// the number of long requests by as much in a short trial.
const NEAR: f64 = 0.25;
/// Times that differ by less than this factor are no step.
const STEP_MIN: f64 = 2.0;

/// A step of a distribution: this percentage takes at most the shorter time, the others at least
/// the longer one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The percentage below the step.
    pub percent: f64,
    /// Longest time below it.
    pub below_ns: u64,
    /// Shortest time above it.
    pub above_ns: u64,
}

/// The steps of a distribution, shortest times first.
#[must_use]
pub fn steps(time: &ServiceTime) -> Vec<Step> {
    let ServiceTime::Mix { parts } = time else { return Vec::new() };
    let mut parts: Vec<(u32, u64)> = parts.iter().copied().filter(|part| part.0 > 0).collect();
    parts.sort_unstable_by_key(|(_, ns)| *ns);
    let total: f64 = parts.iter().map(|(weight, _)| f64::from(*weight)).sum();
    let mut weight = 0.0;
    let pairs = parts.windows(2).map(|pair| {
        weight += f64::from(pair[0].0);
        Step { percent: 100.0 * weight / total, below_ns: pair[0].1, above_ns: pair[1].1 }
    });
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53 ns")]
    let is_step = |step: &Step| step.above_ns as f64 >= STEP_MIN * step.below_ns as f64;
    pairs.filter(is_step).collect()
}

/// The step that a percentile lies on.
#[must_use]
pub fn step_at(time: &ServiceTime, percentile: f64) -> Option<Step> {
    steps(time).into_iter().find(|step| {
        let smaller = step.percent.min(100.0 - step.percent);
        (percentile - step.percent).abs() <= NEAR * smaller
    })
}

/// A sentence for each percentile that means little under this work.
#[must_use]
pub fn cautions(work: &Work) -> Vec<String> {
    let on_a_step = |percentile: &f64| Some((*percentile, step_at(&work.time, *percentile)?));
    let told = SHOWN.iter().filter_map(on_a_step).map(|(percentile, step)| {
        let (below, above) = (milliseconds(step.below_ns), milliseconds(step.above_ns));
        format!(
            "p{percentile} means little here: it lies on a step of the service time, since {:.0} % \
             of the requests take {above} and the others {below} or less. Chance decides on which \
             side of the step it falls; the other percentiles and the mean tell more.",
            100.0 - step.percent
        )
    });
    told.collect()
}

fn milliseconds(ns: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53 ns")]
    let value = ns as f64 / 1e6;
    format!("{value} ms")
}

/// The share of the short requests that took longer than [`LATE_NS`], from the curve of all; `None`
/// if no requests are long.
#[must_use]
pub fn late_share(work: Option<&Work>, curve: &[CurvePoint]) -> Option<f64> {
    let steps = steps(&work?.time);
    let is_apart = |step: &&Step| step.below_ns < LATE_NS && LATE_NS < step.above_ns;
    let step = steps.iter().find(is_apart)?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53 ns")]
    let within = percent_within(curve, LATE_NS as f64 / 1e3)?;
    Some(((step.percent - within) / step.percent).clamp(0.0, 1.0))
}

/// The percentage of values that are at most this, between the points of the curve in proportion.
fn percent_within(curve: &[CurvePoint], limit_us: f64) -> Option<f64> {
    curve.first()?;
    let Some(above) = curve.iter().position(|point| point.value_us > limit_us) else {
        return Some(100.0);
    };
    let Some(below) = above.checked_sub(1) else { return Some(0.0) };
    let (below, above) = (curve[below], curve[above]);
    let share = (limit_us - below.value_us) / (above.value_us - below.value_us);
    Some(below.percentile + share * (above.percentile - below.percentile))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn time(text: &str) -> ServiceTime {
        text.parse().expect("a distribution")
    }

    fn point(percentile: f64, value_us: f64) -> CurvePoint {
        CurvePoint { percentile, value_us }
    }

    #[test]
    fn the_99th_percentile_lies_on_the_step_of_the_heavy_mix_and_no_other_does() {
        let heavy = ServiceTime::heavy();
        let step = Step { percent: 99.0, below_ns: 1_000_000, above_ns: 50_000_000 };
        assert_eq!(steps(&heavy), [step]);
        for percentile in SHOWN {
            let expected = (percentile == 99.0).then_some(step);
            assert_eq!(step_at(&heavy, percentile), expected, "{percentile}");
        }
        let words = cautions(&"block:heavy".parse().expect("work"));
        assert_eq!(words.len(), 1);
        assert!(words[0].starts_with("p99 means little"), "{words:?}");
        assert!(words[0].contains("1 % of the requests take 50 ms and the others 1 ms"));
    }

    #[test]
    fn smooth_and_constant_times_have_no_step() {
        for text in ["1ms", "exp:1ms", "lognormal:1ms,cv=2", "mix:50x2ms+50x3ms"] {
            assert_eq!(steps(&time(text)), [], "{text}");
        }
    }

    #[test]
    fn a_mix_has_a_step_between_any_two_unlike_parts() {
        let percents = |text: &str| -> Vec<f64> {
            steps(&time(text)).iter().map(|step| step.percent).collect()
        };
        assert_eq!(percents("mix:10x50ms+40x1ms+50x5ms"), [40.0, 90.0]);
        assert!(step_at(&time("mix:90x1ms+10x9ms"), 90.0).is_some());
        assert!(step_at(&time("mix:90x1ms+10x9ms"), 95.0).is_none());
    }

    #[test]
    fn short_requests_that_were_late_are_those_above_5_ms_that_were_not_long() {
        let work: Work = "block:heavy".parse().expect("work");
        let curve = [point(0.0, 1_000.0), point(90.0, 2_000.0), point(95.0, 8_000.0)];
        let curve = [&curve[..], &[point(99.0, 50_000.0), point(100.0, 60_000.0)]].concat();
        // Half way between 90 and 95 is 5 ms; 1 % are long.
        let late = late_share(Some(&work), &curve).expect("a share");
        assert!((late - (99.0 - 92.5) / 99.0).abs() < 1e-9, "{late}");
        let quick = [point(0.0, 1_000.0), point(100.0, 4_000.0)];
        assert_eq!(late_share(Some(&work), &quick), Some(0.0));
        assert_eq!(late_share(Some(&work), &[]), None);
        assert_eq!(late_share(None, &quick), None);
        assert_eq!(late_share(Some(&"block:1ms".parse().expect("work")), &quick), None);
    }

    proptest! {
        #[test]
        fn the_late_share_is_a_share(
            values in prop::collection::vec(1.0f64..100_000.0, 2..60),
        ) {
            let mut values = values;
            values.sort_unstable_by(f64::total_cmp);
            #[expect(clippy::cast_precision_loss, reason = "few")]
            let percent = |place: usize| 100.0 * place as f64 / (values.len() - 1) as f64;
            let curve: Vec<CurvePoint> =
                values.iter().enumerate().map(|(place, us)| point(percent(place), *us)).collect();
            let work: Work = "block:heavy".parse().expect("work");
            let late = late_share(Some(&work), &curve).expect("a share");
            prop_assert!((0.0..=1.0).contains(&late));
        }
    }
}
