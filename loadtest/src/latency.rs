//! Latency histograms: recording, adding up, and what a report shows of them. Pure.
//!
//! Values are kept in nanoseconds with 3 significant digits from 1 µs to 60 s and never resized;
//! what lies above is recorded at the bound and counted by the caller. Histograms are added,
//! percentiles never averaged: that is why a second's rows and the total come from the same sums.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The smallest value with full precision.
const LOWEST_NS: u64 = 1_000;
/// The largest value that is recorded as it is.
pub(crate) const HIGHEST_NS: u64 = 60_000_000_000;
/// Steps of the percentile curve for each factor of ten.
const CURVE_STEPS_PER_DECADE: u32 = 20;
/// Factors of ten of the percentile curve: up to 99.999 %.
const CURVE_DECADES: u32 = 5;

/// An empty histogram of the bounds that all of them share.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(LOWEST_NS, HIGHEST_NS, 3)
        .expect("the bounds are constants that fit each other")
}

/// The latencies of one thread and second, or of any sum of those.
#[derive(Clone, Debug)]
pub struct Latencies {
    /// From a request's start to its connection's being established.
    pub connect: Histogram<u64>,
    /// From a request's start to the first byte of its answer.
    pub first_byte: Histogram<u64>,
    /// From a request's start to the last byte of its answer.
    pub response: Histogram<u64>,
    /// From a planned start to the actual one.
    pub lateness: Histogram<u64>,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            connect: histogram(),
            first_byte: histogram(),
            response: histogram(),
            lateness: histogram(),
        }
    }
}

impl Latencies {
    /// Adds what the other holds.
    pub fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.connect, &other.connect),
            (&mut self.first_byte, &other.first_byte),
            (&mut self.response, &other.response),
            (&mut self.lateness, &other.lateness),
        ];
        for (sum, part) in pairs {
            sum.add(part).expect("all histograms have the same bounds");
        }
    }

    /// Empties the histograms and keeps their memory. Clearing writes all counters, so empty
    /// ones are skipped.
    pub(crate) fn clear(&mut self) {
        let all = [&mut self.connect, &mut self.first_byte, &mut self.response, &mut self.lateness];
        for histogram in all {
            if !histogram.is_empty() {
                histogram.reset();
            }
        }
    }
}

/// What a report shows of one histogram.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Values recorded; without any, the others are `null`.
    pub count: u64,
    /// True if measured from planned starts, so that a stalled server cannot hide its stall.
    pub corrected: bool,
    /// The smallest.
    pub min_us: Option<f64>,
    /// The mean.
    pub mean_us: Option<f64>,
    /// The median.
    pub p50_us: Option<f64>,
    /// 90 of 100 were as fast.
    pub p90_us: Option<f64>,
    /// 95 of 100 were as fast.
    pub p95_us: Option<f64>,
    /// 98 of 100 were as fast.
    pub p98_us: Option<f64>,
    /// 99 of 100 were as fast.
    pub p99_us: Option<f64>,
    /// 999 of 1000 were as fast.
    pub p999_us: Option<f64>,
    /// 9999 of 10 000 were as fast.
    pub p9999_us: Option<f64>,
    /// The largest.
    pub max_us: Option<f64>,
    /// Percentiles for plotting, denser towards the tail.
    pub curve: Vec<CurvePoint>,
}

/// One point of a percentile curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// The share of values that are at most `value_us`, in percent.
    pub percentile: f64,
    /// The value.
    pub value_us: f64,
}

impl Latency {
    /// Sums up a histogram of nanoseconds.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>, corrected: bool) -> Self {
        let count = histogram.len();
        if count == 0 {
            return Self { corrected, ..Self::default() };
        }
        let at = |quantile| Some(quantile_us(histogram, quantile));
        Self {
            count,
            corrected,
            min_us: Some(microseconds(histogram.min())),
            mean_us: Some((histogram.mean()).round() / 1e3),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p95_us: at(0.95),
            p98_us: at(0.98),
            p99_us: at(0.99),
            p999_us: at(0.999),
            p9999_us: at(0.9999),
            max_us: Some(microseconds(histogram.max())),
            curve: curve(histogram),
        }
    }
}

/// A quantile in microseconds.
pub(crate) fn quantile_us(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    microseconds(histogram.value_at_quantile(quantile))
}

/// Nanoseconds as microseconds; exact to the nanosecond for every value a histogram can hold.
pub(crate) fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}

/// Quantiles 1 − 10^(−i/20) as far as the count has values above them, then the maximum.
fn curve(histogram: &Histogram<u64>) -> Vec<CurvePoint> {
    let mut points = Vec::new();
    for step in 0..=CURVE_STEPS_PER_DECADE * CURVE_DECADES {
        let share_above = 10_f64.powf(-f64::from(step) / f64::from(CURVE_STEPS_PER_DECADE));
        if share_above * (histogram.len() as f64) < 1.0 {
            break;
        }
        let quantile = 1.0 - share_above;
        points.push(CurvePoint {
            // Rounded, as people read reports, too: the steps differ in these digits.
            percentile: (quantile * 1e7).round() / 1e5,
            value_us: quantile_us(histogram, quantile),
        });
    }
    points.push(CurvePoint { percentile: 100.0, value_us: microseconds(histogram.max()) });
    points
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of_values(values: &[u64]) -> Histogram<u64> {
        let mut histogram = histogram();
        for &value in values {
            histogram.saturating_record(value);
        }
        histogram
    }

    fn values() -> impl Strategy<Value = Vec<u64>> {
        proptest::collection::vec(1_000_u64..HIGHEST_NS, 1..200)
    }

    proptest! {
        // Each case writes megabytes of counters: few are enough where sums are compared.
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn adding_up_loses_nothing_and_order_does_not_matter(a in values(), b in values()) {
            let all: Vec<u64> = a.iter().chain(&b).copied().collect();
            let mut forth = of_values(&a);
            forth.add(of_values(&b)).expect("same bounds");
            let mut back = of_values(&b);
            back.add(of_values(&a)).expect("same bounds");
            prop_assert_eq!(Latency::of(&forth, true), Latency::of(&of_values(&all), true));
            prop_assert_eq!(Latency::of(&forth, true), Latency::of(&back, true));
        }

        #[test]
        fn percentiles_are_within_a_thousandth_of_the_sorted_values(mut values in values()) {
            let latency = Latency::of(&of_values(&values), false);
            values.sort_unstable();
            let rank = values.len().div_ceil(2);
            let exact_us = values[rank - 1] as f64 / 1e3;
            let p50_us = latency.p50_us.expect("there are values");
            prop_assert!((p50_us - exact_us).abs() <= exact_us * 0.001 + 1.0);
        }

        #[test]
        fn curves_rise_and_end_at_the_maximum(values in values()) {
            let latency = Latency::of(&of_values(&values), false);
            let curve = &latency.curve;
            prop_assert!(curve.len() <= 102);
            let rises = |a: &CurvePoint, b: &CurvePoint| {
                a.percentile < b.percentile && a.value_us <= b.value_us
            };
            prop_assert!(curve.is_sorted_by(rises));
            prop_assert_eq!(curve.last().map(|point| point.value_us), latency.max_us);
        }
    }

    #[test]
    fn without_values_there_are_no_percentiles() {
        let latency = Latency::of(&histogram(), true);
        assert_eq!((latency.count, latency.p99_us, latency.max_us), (0, None, None));
        assert!(latency.curve.is_empty());
    }
}
