//! Numbers with units, as people write and read them: times, rates, counts, bytes. Pure.
//!
//! A time without a unit is in seconds, as for `wrk` and `oha`.

use std::time::Duration;

/// Reads `10`, `2.5s`, `500ms`, `5m` or `1h 30m`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let refused = || "write 10 (seconds), 10s, 500ms, 5m or 1h 30m".to_owned();
    let text = text.trim();
    if let Some(seconds) = with_unit(text, 1.0) {
        return Duration::try_from_secs_f64(seconds).map_err(|_| refused());
    }
    humantime::parse_duration(text).map_err(|_| refused())
}

/// A decimal number with one unit of time, in seconds; `plain_s` is what a bare number counts.
fn with_unit(text: &str, plain_s: f64) -> Option<f64> {
    let units = [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0)];
    let found = units.into_iter().find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, scale)));
    let (digits, scale) = found.unwrap_or((text, plain_s));
    number(digits.trim_end()).map(|value| value * scale)
}

/// Reads a time with its unit, in microseconds: where a bare number could mean anything.
pub(crate) fn parse_micros(text: &str) -> Option<f64> {
    let has_unit = text.ends_with(|last: char| last.is_alphabetic());
    with_unit(text, 1.0).filter(|_| has_unit).map(|seconds| seconds * 1e6)
}

/// A decimal number that is not negative.
pub(crate) fn number(text: &str) -> Option<f64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    text.parse().ok().filter(|value: &f64| plain && value.is_finite())
}

/// Reads `20k`, `1.5M`, `800`.
pub(crate) fn parse_rate(text: &str) -> Result<f64, String> {
    match scaled(text) {
        Some(rate) if rate > 0.0 => Ok(rate),
        Some(_) => Err("a rate must be above 0; write 20k, 1.5M or 800".into()),
        None => Err("write 20k, 1.5M or 800".into()),
    }
}

/// A decimal number with k or M behind it, or neither.
pub(crate) fn scaled(text: &str) -> Option<f64> {
    let (digits, factor) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 1e3),
        b'm' | b'M' => (&text[..text.len() - 1], 1e6),
        _ => (text, 1.0),
    };
    number(digits).map(|value| value * factor)
}

/// Reads a number of requests: `100000`, `100k`, `1M`.
pub(crate) fn parse_count(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1000),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1_000_000),
        _ => (text, 1),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| "write 100000, 100k or 1M".into())
}

/// A duration with three digits and its unit.
pub(crate) fn micros(us: f64) -> String {
    let (value, unit) = match us {
        _ if us < 1e3 => (us, "µs"),
        _ if us < 1e6 => (us / 1e3, "ms"),
        _ => (us / 1e6, "s"),
    };
    match value {
        _ if value < 10.0 => format!("{value:.2}{unit}"),
        _ if value < 100.0 => format!("{value:.1}{unit}"),
        _ => format!("{value:.0}{unit}"),
    }
}

/// A count, shortened to fit a column.
pub(crate) fn count(number: u64) -> String {
    match number {
        0..=99_999 => number.to_string(),
        100_000..=99_999_999 => format!("{:.1}k", number as f64 / 1e3),
        _ => format!("{:.1}M", number as f64 / 1e6),
    }
}

/// A number of bytes with its unit.
pub(crate) fn bytes(number: u64) -> String {
    match number {
        0..=9_999 => format!("{number} B"),
        10_000..=9_999_999 => format!("{:.1} kB", number as f64 / 1e3),
        _ => format!("{:.1} MB", number as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_keep_three_digits() {
        for (us, text) in [
            (0.5, "0.50µs"),
            (12.34, "12.3µs"),
            (999.0, "999µs"),
            (1_234.0, "1.23ms"),
            (60e6, "60.0s"),
        ] {
            assert_eq!(micros(us), text);
        }
    }

    #[test]
    fn a_time_without_a_unit_is_in_seconds() {
        for (text, ms) in [
            ("10", 10_000),
            ("0.5", 500),
            ("10s", 10_000),
            ("1.5s", 1500),
            ("500ms", 500),
            ("2500us", 2),
            ("1m", 60_000),
            ("1h 30m", 5_400_000),
            ("2min", 120_000),
        ] {
            assert_eq!(parse_duration(text).expect(text).as_millis(), ms, "{text}");
        }
        for text in ["", "s", "-1", "1e3", "ten", "1x", "inf", "nan", "99999999999999999999999"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_bound_needs_its_unit() {
        assert_eq!(parse_micros("5ms"), Some(5000.0));
        assert_eq!(parse_micros("1.5s"), Some(1_500_000.0));
        assert_eq!(parse_micros("80us"), Some(80.0));
        for text in ["5", "5 parsecs", "ms", "-5ms"] {
            assert_eq!(parse_micros(text), None, "{text}");
        }
    }
}
