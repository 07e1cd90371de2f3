//! Measures how evenly a load was spread, from one count per worker.
//!
//! Most of the measures are the same number in another form: χ²/N = CV² and Jain = 1/(1 + CV²). The
//! reports give all of them because readers from different fields look for different ones. The
//! yardstick beside them is the spread of random assignment, which a balancer must beat.

use fastrand::Rng;
use serde::Serialize;

use crate::work::normal;

/// How evenly a load was spread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Balance {
    /// Number of workers that shared the load.
    pub workers: usize,
    /// Sum of the counts.
    pub total: u64,
    /// The two largest counts over the total: 2/k when even, 1 at worst.
    pub top_two_share: f64,
    /// The largest count over the mean: 1 when even, k at worst. Its inverse is the utilisation at
    /// which the busiest worker saturates.
    pub max_over_mean: f64,
    /// Standard deviation (of the population) over mean: 0 when even, √(k − 1) at worst.
    pub variation: f64,
    /// Jain's index: 1 when even, 1/k at worst.
    pub jain: f64,
    /// Gini's coefficient: 0 when even, 1 − 1/k at worst.
    pub gini: f64,
    /// Workers with a count of zero.
    pub idle: usize,
}

impl Balance {
    /// Measures the spread; `None` if there is no worker or the total is zero.
    #[must_use]
    pub fn of(counts: &[u64]) -> Option<Self> {
        // `None` if the sum overflows 64 bits.
        let total = counts.iter().try_fold(0_u64, |sum, count| sum.checked_add(*count))?;
        if total == 0 {
            return None;
        }
        let mut sorted: Vec<f64> = counts.iter().map(|count| to_f64(*count)).collect();
        sorted.sort_by(f64::total_cmp);
        let workers = to_f64(counts.len() as u64);
        let sum = to_f64(total);
        let mean = sum / workers;
        let variation = (mean_of(&sorted, |count| (count - mean).powi(2))).sqrt() / mean;
        // With counts in rising order, Σ (2i − k − 1) x₍ᵢ₎ / (k N).
        let ranked = sorted.iter().enumerate();
        let ranked =
            ranked.map(|(place, count)| (2.0 * to_f64(place as u64) + 1.0 - workers) * count);
        Some(Self {
            workers: counts.len(),
            total,
            top_two_share: sorted.iter().rev().take(2).sum::<f64>() / sum,
            max_over_mean: sorted.last().map_or(0.0, |most| most / mean),
            variation,
            jain: 1.0 / (1.0 + variation * variation),
            gini: ranked.sum::<f64>() / (workers * sum),
            idle: counts.iter().filter(|count| **count == 0).count(),
        })
    }

    /// Pearson's χ² against an even spread, with k − 1 degrees of freedom. It grows with the total,
    /// so with enough connections any spread but a perfect one is "significantly" uneven. Use it to
    /// ask whether chance explains a small run, not as a headline figure.
    #[must_use]
    pub fn chi_squared(&self) -> f64 {
        self.variation * self.variation * to_f64(self.total)
    }
}

/// The expected spread of random assignment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Yardstick {
    /// The two largest counts over the total, the mean of many simulated runs.
    pub top_two_share: f64,
    /// The largest count over the mean, about 1 + √(2 ln k · k/N); slightly too high.
    pub max_over_mean: f64,
    /// Standard deviation over mean, about √((k − 1)/N).
    pub variation: f64,
}

/// Budget of random draws for one simulation, whatever the number of connections.
const DRAWS_MAX: u64 = 1_000_000;
/// With at least this many connections per worker, counts are drawn as normal variates instead of
/// connection by connection.
const NORMAL_FROM: u64 = 100;

impl Yardstick {
    /// The yardstick for `total` connections assigned at random to `workers` workers; `None` if
    /// either is zero.
    #[must_use]
    pub fn random(workers: usize, total: u64, seed: u64) -> Option<Self> {
        if workers == 0 || total == 0 {
            return None;
        }
        let (count, sum) = (to_f64(workers as u64), to_f64(total));
        let spread = 2.0 * count.ln() * count / sum;
        Some(Self {
            top_two_share: simulated_top_two(workers, total, seed),
            max_over_mean: (1.0 + spread.sqrt()).min(count),
            variation: ((count - 1.0) / sum).sqrt(),
        })
    }
}

/// The mean share of the top two workers, over as many simulated runs as the budget allows.
fn simulated_top_two(workers: usize, total: u64, seed: u64) -> f64 {
    let mut random = Rng::with_seed(seed);
    let many = total / workers as u64 >= NORMAL_FROM;
    let draws = if many { workers as u64 } else { total };
    let rounds = (DRAWS_MAX / draws).clamp(1, 2_000);
    let mut counts = vec![0.0; workers];
    let mut sum = 0.0;
    for _ in 0..rounds {
        if many {
            throw_roughly(&mut counts, total, &mut random);
        } else {
            throw(&mut counts, total, &mut random);
        }
        counts.sort_by(f64::total_cmp);
        sum += counts.iter().rev().take(2).sum::<f64>() / to_f64(total);
    }
    sum / to_f64(rounds)
}

/// Assigns every connection to a random worker.
fn throw(counts: &mut [f64], total: u64, random: &mut Rng) {
    counts.fill(0.0);
    for _ in 0..total {
        counts[random.usize(0..counts.len())] += 1.0;
    }
}

/// Approximates [`throw`] for large counts: each count is nearly normal around the mean and the
/// counts sum to the total, so the deviations are independent except for their common mean, which
/// is subtracted.
fn throw_roughly(counts: &mut [f64], total: u64, random: &mut Rng) {
    let mean = to_f64(total) / to_f64(counts.len() as u64);
    counts.fill_with(|| normal(random) * mean.sqrt());
    let common = mean_of(counts, |deviation| deviation);
    for count in counts {
        *count += mean - common;
    }
}

fn mean_of(values: &[f64], of: impl Fn(f64) -> f64) -> f64 {
    values.iter().map(|value| of(*value)).sum::<f64>() / to_f64(values.len() as u64)
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn to_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use proptest::prelude::*;

    use super::*;

    fn balance(counts: &[u64]) -> Balance {
        Balance::of(counts).expect("something is spread")
    }

    fn close(left: f64, right: f64, tolerance: f64) -> bool {
        (left - right).abs() <= tolerance
    }

    #[test]
    fn seventy_percent_in_two_of_eight() {
        let spread = balance(&[35, 35, 5, 5, 5, 5, 5, 5]);
        assert!(close(spread.top_two_share, 0.70, 1e-12));
        assert!(close(spread.max_over_mean, 2.8, 1e-12));
        assert!(close(spread.variation, 1.039, 0.001));
        assert!(close(spread.jain, 0.481, 0.001));
        assert_eq!(spread.idle, 0);
    }

    #[test]
    fn spreads_that_were_reported_of_servers() {
        // Eight processes; two of them have 70 % of the connections.
        let node = balance(&[3625, 3375, 700, 700, 700, 300, 300, 300]);
        assert!(close(node.top_two_share, 0.70, 1e-12));
        assert!(close(node.max_over_mean, 2.9, 1e-12));
        assert!(close(node.variation, 1.05, 0.005));
        assert!(close(node.jain, 0.48, 0.005));
        // Twelve nginx workers, four of them idle. The four largest counts are published figures;
        // the rest of the total is distributed by assumption.
        let nginx = balance(&[59_114, 27_425, 9_846, 3_769, 700, 200, 80, 29, 0, 0, 0, 0]);
        assert_eq!(nginx.total, 101_163);
        assert!(close(nginx.top_two_share, 0.855, 0.001));
        assert!(close(nginx.max_over_mean, 7.0, 0.02));
        assert!(close(nginx.variation, 2.03, 0.01));
        assert!(close(nginx.jain, 0.20, 0.005));
        assert_eq!(nginx.idle, 4);
    }

    #[test]
    fn an_even_spread_and_the_worst() {
        let even = balance(&[7; 8]);
        assert!(close(even.top_two_share, 0.25, 1e-12));
        assert_eq!((even.max_over_mean, even.variation, even.jain), (1.0, 0.0, 1.0));
        assert!(close(even.gini, 0.0, 1e-12));
        let worst = balance(&[0, 0, 90, 0]);
        assert_eq!((worst.top_two_share, worst.max_over_mean, worst.idle), (1.0, 4.0, 3));
        assert!(close(worst.variation, 3.0_f64.sqrt(), 1e-12));
        assert!(close(worst.jain, 0.25, 1e-12));
        assert!(close(worst.gini, 0.75, 1e-12));
        assert!(close(worst.chi_squared(), 90.0 * 3.0, 1e-9));
    }

    #[test]
    fn one_worker_or_nothing_to_spread() {
        assert_eq!(balance(&[5]).top_two_share, 1.0);
        assert_eq!(Balance::of(&[]), None);
        assert_eq!(Balance::of(&[0, 0]), None);
        assert_eq!(Balance::of(&[u64::MAX, 1]), None);
        assert_eq!(Yardstick::random(0, 5, 1), None);
        assert_eq!(Yardstick::random(5, 0, 1), None);
        assert_eq!(Yardstick::random(1, 5, 1).map(|random| random.top_two_share), Some(1.0));
    }

    #[test]
    fn chance_spreads_as_the_formulas_say() {
        let random = Yardstick::random(8, 100_000, 1).expect("a yardstick");
        assert!(close(random.variation, 0.00837, 1e-5));
        assert!(close(random.max_over_mean, 1.0182, 1e-4));
        // The expected two largest of eight standard normal variates are 1.4236 and 0.8522.
        let deviation = (8.0_f64 / 100_000.0).sqrt();
        let expected = 0.25 * (1.0 + (1.4236 + 0.8522) / 2.0 * deviation);
        assert!(close(random.top_two_share, expected, 0.0001));
    }

    #[test]
    fn both_ways_to_simulate_agree() {
        let mut counts = vec![0.0; 8];
        let mean_share = |throw: fn(&mut [f64], u64, &mut Rng), counts: &mut [f64]| {
            let mut random = Rng::with_seed(3);
            let mut sum = 0.0;
            for _ in 0..1_000 {
                throw(counts, 800, &mut random);
                counts.sort_by(f64::total_cmp);
                assert!(close(counts.iter().sum::<f64>(), 800.0, 1e-6));
                sum += counts[6] + counts[7];
            }
            sum / 800.0 / 1_000.0
        };
        let (exact, rough) =
            (mean_share(throw, &mut counts), mean_share(throw_roughly, &mut counts));
        assert!(close(exact, rough, 0.002), "{exact} and {rough}");
    }

    proptest! {
        #[test]
        fn the_identities_hold(counts in prop::collection::vec(0u64..1_000_000, 1..64)) {
            let Some(spread) = Balance::of(&counts) else { return Ok(()) };
            let sum = to_f64(spread.total);
            let squares: f64 = counts.iter().map(|count| to_f64(*count).powi(2)).sum();
            let workers = to_f64(counts.len() as u64);
            prop_assert!(close(spread.jain, sum * sum / (workers * squares), 1e-9));
            let mean = sum / workers;
            let chi: f64 = counts.iter().map(|count| (to_f64(*count) - mean).powi(2) / mean).sum();
            prop_assert!(close(spread.chi_squared() / sum, chi / sum, 1e-9));
        }

        #[test]
        fn measures_stay_within_their_bounds(counts in prop::collection::vec(any::<u32>(), 1..64)) {
            let counts: Vec<u64> = counts.into_iter().map(u64::from).collect();
            let Some(spread) = Balance::of(&counts) else { return Ok(()) };
            let workers = to_f64(counts.len() as u64);
            let just_above = 1.0 + 1e-9;
            prop_assert!(spread.top_two_share <= just_above);
            prop_assert!(spread.top_two_share * just_above >= (2.0 / workers).min(1.0));
            prop_assert!((1.0 / just_above..=workers * just_above).contains(&spread.max_over_mean));
            prop_assert!(spread.variation <= (workers - 1.0).sqrt() * just_above);
            prop_assert!((-1e-9..=1.0 - 1.0 / workers + 1e-9).contains(&spread.gini));
        }

        #[test]
        fn names_and_units_do_not_matter(
            counts in prop::collection::vec(0u64..1_000_000, 2..64),
            factor in 1u64..1000,
        ) {
            let Some(spread) = Balance::of(&counts) else { return Ok(()) };
            let mut other: Vec<u64> = counts.iter().map(|count| count * factor).collect();
            other.reverse();
            let other = balance(&other);
            prop_assert!(close(spread.variation, other.variation, 1e-9));
            prop_assert!(close(spread.gini, other.gini, 1e-9));
            prop_assert!(close(spread.top_two_share, other.top_two_share, 1e-9));
            prop_assert_eq!(spread.idle, other.idle);
        }
    }
}
