//! Statistics of a few repeated runs: medians, distribution-free intervals and verdicts.
//!
//! The ends of a median's interval are two of the measured values (order statistics). Its coverage
//! is exact for every distribution, because the true median lies outside only if enough coin flips
//! fall on one side. Runs on a busy machine are not normally distributed, and six of them support
//! no stronger claim. Fewer than six give no interval.

use std::fmt;

use serde::Serialize;

/// Minimum number of values for an interval of [`COVERAGE_WANTED`].
pub const SAMPLES_MIN: usize = 6;
/// Minimum coverage of an interval. Six values give 96.9 %, and more values never less than this
/// bound.
pub const COVERAGE_WANTED: f64 = 0.95;

/// The median, which is the mean of the middle two for an even count. `None` for no values or a
/// NaN.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values)?;
    let middle = sorted.len().checked_sub(1)? / 2;
    let other = sorted.len() / 2;
    Some(sorted[middle] + (sorted[other] - sorted[middle]) / 2.0)
}

/// (Largest − smallest) / median: the relative range of the runs.
#[must_use]
pub fn spread(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values)?;
    let middle = median(values)?;
    let range = sorted.last()? - sorted.first()?;
    let spread = range / middle.abs();
    if range == 0.0 { Some(0.0) } else { Some(spread).filter(|spread| spread.is_finite()) }
}

/// A median and its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// Lower end, one of the values.
    pub low: f64,
    /// The median.
    pub median: f64,
    /// Upper end, one of the values.
    pub high: f64,
    /// Probability that the interval contains the true median.
    pub coverage: f64,
    /// Number of values.
    pub samples: usize,
}

impl Interval {
    /// The narrowest symmetric interval that covers the median with [`COVERAGE_WANTED`]; `None` for
    /// fewer than [`SAMPLES_MIN`] values or a NaN.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let sorted = sorted(values)?;
        let (rank, coverage) = rank_and_coverage(sorted.len())?;
        Some(Self {
            low: sorted[rank - 1],
            median: median(values)?,
            high: sorted[sorted.len() - rank],
            coverage,
            samples: sorted.len(),
        })
    }
}

/// Formats the interval for print beside its median: ends, coverage and number of values.
impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = f.precision().unwrap_or(2);
        let Self { low, median, high, coverage, samples } = self;
        let percent = 100.0 * coverage;
        write!(f, "{median:.places$} [{low:.places$}, {high:.places$}] ")?;
        write!(f, "({percent:.1} %, n = {samples})")
    }
}

/// Which of two things is smaller, as far as the runs show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The whole interval says that the first is lower.
    FirstLower,
    /// The whole interval says that the second is lower.
    SecondLower,
    /// The interval contains equality.
    NoDifferenceShown,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FirstLower => "the first is lower",
            Self::SecondLower => "the second is lower",
            Self::NoDifferenceShown => "no difference shown",
        })
    }
}

/// Two things measured in the same rounds, so that a disturbance of a round affects both.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Interval of the median paired difference or ratio.
    pub interval: Interval,
    /// The conclusion.
    pub verdict: Verdict,
}

impl Comparison {
    /// Compares first − second per round. `None` for unpaired values, or as for [`Interval::of`].
    #[must_use]
    pub fn of_differences(first: &[f64], second: &[f64]) -> Option<Self> {
        Self::new(first, second, 0.0, |first, second| first - second)
    }

    /// Compares first ÷ second per round, for quantities whose size varies between rounds. All
    /// values must be positive.
    #[must_use]
    pub fn of_ratios(first: &[f64], second: &[f64]) -> Option<Self> {
        if first.iter().chain(second).any(|value| *value <= 0.0) {
            return None;
        }
        Self::new(first, second, 1.0, |first, second| first / second)
    }

    fn new(first: &[f64], second: &[f64], same: f64, pair: fn(f64, f64) -> f64) -> Option<Self> {
        if first.len() != second.len() {
            return None;
        }
        let pairs = first.iter().zip(second);
        let paired: Vec<f64> = pairs.map(|(first, second)| pair(*first, *second)).collect();
        let interval = Interval::of(&paired)?;
        let verdict = if interval.high < same {
            Verdict::FirstLower
        } else if interval.low > same {
            Verdict::SecondLower
        } else {
            Verdict::NoDifferenceShown
        };
        Some(Self { interval, verdict })
    }
}

/// The values in ascending order; `None` if one of them is NaN.
fn sorted(values: &[f64]) -> Option<Vec<f64>> {
    if values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some(sorted)
}

/// The largest rank, counted from either end, whose values still cover the median well enough, and
/// the coverage. The chance of fewer than `rank` of n values below the median equals that of fewer
/// than `rank` heads in n coin flips.
fn rank_and_coverage(samples: usize) -> Option<(usize, f64)> {
    let mut best = None;
    // The probability of exactly `heads`, as a logarithm: 2^-n underflows a float.
    let mut chance_ln = -to_f64(samples) * std::f64::consts::LN_2;
    let mut below = 0.0;
    for heads in 0..samples / 2 {
        below += chance_ln.exp();
        let coverage = 1.0 - 2.0 * below;
        if coverage < COVERAGE_WANTED {
            break;
        }
        best = Some((heads + 1, coverage));
        chance_ln += to_f64(samples - heads).ln() - to_f64(heads + 1).ln();
    }
    best
}

#[expect(clippy::cast_precision_loss, reason = "samples are few")]
fn to_f64(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[1.0, f64::NAN]), None);
        assert_eq!(spread(&[1.0, 2.0, 4.0]), Some(1.5));
        assert_eq!(spread(&[0.0, 0.0]), Some(0.0));
        assert_eq!(spread(&[-1.0, 0.0, 1.0]), None);
    }

    #[test]
    fn ranks_and_coverages_are_those_of_the_tables() {
        let close = |samples, rank, coverage: f64| {
            let (found, exact) = rank_and_coverage(samples).expect("enough samples");
            assert_eq!(found, rank, "{samples}");
            assert!((exact - coverage).abs() < 5e-4, "{samples}: {exact}");
        };
        assert_eq!(rank_and_coverage(5), None);
        close(6, 1, 0.969);
        close(7, 1, 0.984);
        close(8, 1, 0.992);
        close(9, 2, 0.961);
        close(10, 2, 0.979);
        close(20, 6, 0.959);
        close(100, 40, 0.965);
        assert!(rank_and_coverage(100_000).is_some());
    }

    #[test]
    fn six_values_give_their_range() {
        let interval = Interval::of(&[5.0, 3.0, 9.0, 4.0, 7.0, 6.0]).expect("six values");
        assert_eq!((interval.low, interval.median, interval.high), (3.0, 5.5, 9.0));
        assert_eq!(interval.to_string(), "5.50 [3.00, 9.00] (96.9 %, n = 6)");
        assert_eq!(format!("{interval:.0}"), "6 [3, 9] (96.9 %, n = 6)");
        assert_eq!(Interval::of(&[1.0; 5]), None);
    }

    #[test]
    fn verdicts_follow_the_pairs() {
        let base = [10.0, 20.0, 30.0, 40.0, 50.0, 60.0];
        let less = base.map(|value| value * 0.9);
        let verdict = |comparison: Option<Comparison>| comparison.expect("pairs").verdict;
        // The values overlap widely, but the second is lower in every round.
        assert_eq!(verdict(Comparison::of_differences(&base, &less)), Verdict::SecondLower);
        assert_eq!(verdict(Comparison::of_differences(&less, &base)), Verdict::FirstLower);
        let ratios = Comparison::of_ratios(&less, &base).expect("pairs");
        assert_eq!(ratios.verdict, Verdict::FirstLower);
        assert!((ratios.interval.median - 0.9).abs() < 1e-12);
        let mut mixed = less;
        mixed[3] = 41.0;
        let comparison = Comparison::of_differences(&mixed, &base).expect("pairs");
        assert_eq!(comparison.verdict, Verdict::NoDifferenceShown);
        assert_eq!(comparison.verdict.to_string(), "no difference shown");
        assert_eq!(verdict(Comparison::of_ratios(&base, &base)), Verdict::NoDifferenceShown);
        assert_eq!(Comparison::of_differences(&base, &base[1..]), None);
        assert_eq!(Comparison::of_ratios(&[0.0; 6], &base), None);
    }

    #[test]
    fn the_coverage_is_what_it_claims() {
        // A skewed distribution whose median is known: ln 2.
        let mut random = Rng::with_seed(5);
        for samples in [6, 9, 25] {
            let rounds = 20_000;
            let mut covered = 0;
            let mut claimed = 0.0;
            for _ in 0..rounds {
                let values: Vec<f64> = (0..samples).map(|_| -random.f64().ln()).collect();
                let interval = Interval::of(&values).expect("enough values");
                let inside = interval.low <= 2.0_f64.ln() && 2.0_f64.ln() <= interval.high;
                covered += u32::from(inside);
                claimed = interval.coverage;
            }
            let share = f64::from(covered) / f64::from(rounds);
            assert!((share - claimed).abs() < 0.005, "{samples}: {share}, not {claimed}");
        }
    }

    proptest! {
        #[test]
        fn intervals_enclose_their_median_and_ignore_order(
            values in prop::collection::vec(-1e12..1e12, 6..200),
        ) {
            let interval = Interval::of(&values).expect("enough values");
            prop_assert!(interval.low <= interval.median && interval.median <= interval.high);
            prop_assert!(interval.coverage >= COVERAGE_WANTED && interval.coverage < 1.0);
            let mut reversed = values;
            reversed.reverse();
            prop_assert_eq!(Interval::of(&reversed), Some(interval));
        }

        #[test]
        fn verdicts_turn_round_with_their_sides(
            pairs in prop::collection::vec((0.1..1e6, 0.1..1e6), 6..40),
        ) {
            let (first, second): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
            for compare in [Comparison::of_differences, Comparison::of_ratios] {
                let there = compare(&first, &second).expect("pairs").verdict;
                let back = compare(&second, &first).expect("pairs").verdict;
                let turned = match there {
                    Verdict::FirstLower => Verdict::SecondLower,
                    Verdict::SecondLower => Verdict::FirstLower,
                    Verdict::NoDifferenceShown => Verdict::NoDifferenceShown,
                };
                prop_assert_eq!(back, turned);
            }
        }
    }
}
