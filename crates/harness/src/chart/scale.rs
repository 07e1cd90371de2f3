//! Axes: the position of a value and the values that get a label.

/// Limits of the values drawn: nothing measured lies beyond them, and they keep floats finite.
const VALUE_MIN: f64 = 1e-9;
const VALUE_MAX: f64 = 1e18;

/// Maps values to positions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    /// Positions of `low` and `high`.
    from: f64,
    to: f64,
    logarithmic: bool,
}

impl Scale {
    /// A linear scale from zero.
    pub(super) fn linear(high: f64, from: f64, to: f64) -> Self {
        // An axis needs an extent even if every value is zero.
        let high = if high > 0.0 { high.clamp(VALUE_MIN, VALUE_MAX) } else { 1.0 };
        Self { low: 0.0, high, from, to, logarithmic: false }
    }

    /// A logarithmic scale between the round numbers (1, 2 or 5 times a power of ten) that enclose
    /// the values. Both must be positive.
    pub(super) fn logarithmic(low: f64, high: f64, from: f64, to: f64) -> Self {
        let low = low.clamp(VALUE_MIN, VALUE_MAX);
        let (low, high) = (round_down(low), round_up(high.clamp(low, VALUE_MAX)));
        let high = if high > low { high } else { 10.0 * low };
        Self { low, high, from, to, logarithmic: true }
    }

    /// Position of a value, clamped to the axis.
    pub(super) fn place(&self, value: f64) -> f64 {
        let share = if self.logarithmic {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// The values to label, few enough to stay legible.
    pub(super) fn ticks(&self) -> Vec<f64> {
        if self.logarithmic { self.logarithmic_ticks() } else { self.linear_ticks() }
    }

    fn linear_ticks(&self) -> Vec<f64> {
        let step = round_up(self.high / 5.0);
        // Slightly beyond the end, to allow for rounding.
        let steps = (0..=10).map(|count| f64::from(count) * step);
        steps.take_while(|tick| *tick <= self.high * (1.0 + 1e-9)).collect()
    }

    fn logarithmic_ticks(&self) -> Vec<f64> {
        let decades = (self.high / self.low).log10();
        let factors: &[f64] = match decades {
            ..=1.2 => &[1.0, 2.0, 5.0],
            ..=2.5 => &[1.0, 3.0],
            _ => &[1.0],
        };
        // Above eight decades only every second one is labelled, above sixteen every third, and so
        // on.
        let stride = (decades / 8.0).ceil().max(1.0);
        let mut ticks = Vec::new();
        let mut power = self.low.log10().floor();
        while power <= self.high.log10() + 1e-9 {
            let powers = factors.iter().map(|factor| factor * 10.0_f64.powf(power));
            let inside = |tick: &f64| *tick >= self.low * 0.999 && *tick <= self.high * 1.001;
            ticks.extend(powers.filter(inside));
            power += stride;
        }
        ticks
    }
}

/// The largest of 1, 2 and 5 times a power of ten that is at most the value.
fn round_down(value: f64) -> f64 {
    let power = 10.0_f64.powf(value.log10().floor());
    let fits = |factor: &&f64| **factor * power <= value * (1.0 + 1e-9);
    [5.0, 2.0, 1.0].iter().find(fits).unwrap_or(&1.0) * power
}

/// The smallest of 1, 2 and 5 times a power of ten that is at least the value.
pub(super) fn round_up(value: f64) -> f64 {
    let power = 10.0_f64.powf(value.log10().floor());
    let fits = |factor: &&f64| **factor * power >= value * (1.0 - 1e-9);
    [1.0, 2.0, 5.0].iter().find(fits).unwrap_or(&10.0) * power
}

/// Formats a time, with the precision suited to its size.
pub(super) fn time_words(ns: f64) -> String {
    let (value, unit) = match ns {
        ..1e3 => (ns, "ns"),
        ..1e6 => (ns / 1e3, "µs"),
        ..1e9 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    format!("{} {unit}", number_words(value))
}

/// Formats a number with three significant digits and a suffix for thousands and millions.
pub(super) fn number_words(value: f64) -> String {
    let (value, letter) = match value.abs() {
        ..1e4 => (value, ""),
        ..1e6 => (value / 1e3, "k"),
        ..1e9 => (value / 1e6, "M"),
        _ => (value / 1e9, "G"),
    };
    let places = match value.abs() {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    let text = format!("{value:.places$}");
    let text = if places > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    let text = if text == "-0" { "0" } else { text };
    format!("{text}{letter}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ticks_are_round() {
        assert_eq!(Scale::linear(100.0, 0.0, 1.0).ticks(), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(Scale::linear(7.0, 0.0, 1.0).ticks(), [0.0, 2.0, 4.0, 6.0]);
        assert_eq!(Scale::linear(0.0, 0.0, 1.0).ticks().len(), 6);
        let words = |low, high| {
            let ticks = Scale::logarithmic(low, high, 0.0, 1.0).ticks();
            ticks.into_iter().map(time_words).collect::<Vec<_>>().join(", ")
        };
        assert_eq!(words(120e3, 900e3), "100 µs, 200 µs, 500 µs, 1 ms");
        assert_eq!(words(120e3, 9e6), "100 µs, 300 µs, 1 ms, 3 ms, 10 ms");
        assert_eq!(words(120e3, 2e9), "100 µs, 1 ms, 10 ms, 100 ms, 1 s");
    }

    #[test]
    fn numbers_are_short() {
        let words = [0.0, 1.0, 0.256, 12.34, 99.99, 1234.5, 20_000.0, 1.25e6, -3.0];
        let words = words.map(number_words);
        assert_eq!(words, ["0", "1", "0.26", "12.3", "100", "1234", "20k", "1.25M", "-3"]);
        assert_eq!(time_words(212_400.0), "212 µs");
        assert_eq!(time_words(1_100_000.0), "1.1 ms");
        assert_eq!(time_words(3e9), "3 s");
    }

    proptest! {
        #[test]
        fn places_lie_on_the_axis_in_order(
            low in 1e-3..1e12, factor in 1.0..1e9, at in 0.0..1.0, step in 0.0..1.0,
        ) {
            let high = low * factor;
            let linear = Scale::linear(high, 10.0, 90.0);
            for scale in [linear, Scale::logarithmic(low, high, 10.0, 90.0)] {
                let value = low + at * (high - low);
                let place = scale.place(value);
                prop_assert!((10.0..=90.0).contains(&place));
                prop_assert!(scale.place(value * (1.0 + step)) >= place);
                prop_assert!((2..=12).contains(&scale.ticks().len()), "{:?}", scale.ticks());
            }
        }
    }
}
