//! The cost of a request: a kind of work and a distribution of service times. Pure; all randomness
//! comes from a seed.
//!
//! Owns the syntax of `--work` and the sampling of service times. The built-in server and the
//! harness share it, so both mean the same work. Does not perform the work.

#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use fastrand::Rng;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Maximum service time, both requested and drawn, in nanoseconds. Longer draws are clamped.
pub const SERVICE_NS_MAX: u64 = 60_000_000_000;
/// Maximum number of parts in a mix.
pub const MIX_PARTS_MAX: usize = 8;
/// Maximum coefficient of variation; with a heavier tail the mean does not converge in a practical
/// run.
const VARIATION_MAX: f64 = 20.0;

const FORMS: &str = "write cpu:TIME or block:TIME, where TIME is 200us, exp:1ms, \
     lognormal:1ms,cv=2, mix:99x1ms+1x50ms or heavy (the last two are the same)";

/// The work of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Work {
    /// Busy or blocked.
    pub kind: WorkKind,
    /// Distribution of its duration.
    pub time: ServiceTime,
}

/// What the worker does during the service time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkKind {
    /// Computes, and occupies its CPU.
    Cpu,
    /// Blocks in a system call: the CPU is free, but the worker serves nothing else.
    Block,
}

/// A distribution of service times. Times are in nanoseconds, from 1 to [`SERVICE_NS_MAX`], which
/// [`FromStr`] checks.
#[derive(Clone, Debug, PartialEq)]
pub enum ServiceTime {
    /// Always the same.
    Constant {
        /// The time.
        ns: u64,
    },
    /// Memoryless: most times are short, few are several times the mean.
    Exponential {
        /// The mean.
        mean_ns: u64,
    },
    /// Skewed, as in real services.
    LogNormal {
        /// The mean.
        mean_ns: u64,
        /// Standard deviation over mean.
        variation: f64,
    },
    /// One of several times, chosen by weight.
    Mix {
        /// Weight and time (in nanoseconds) of each part.
        parts: Vec<(u32, u64)>,
    },
}

impl ServiceTime {
    /// 99 of 100 requests take 1 ms, one takes 50 ms: a mix that separates good balancers from bad
    /// ones.
    #[must_use]
    pub fn heavy() -> Self {
        Self::Mix { parts: vec![(99, 1_000_000), (1, 50_000_000)] }
    }

    /// The mean, in nanoseconds.
    #[must_use]
    pub fn mean_ns(&self) -> f64 {
        match self {
            Self::Constant { ns } => to_f64(*ns),
            Self::Exponential { mean_ns } | Self::LogNormal { mean_ns, .. } => to_f64(*mean_ns),
            Self::Mix { parts } => weighted(parts, |ns| ns),
        }
    }

    /// Variance over squared mean: 0 for a constant, 1 for an exponential, more for heavy tails.
    #[must_use]
    pub fn squared_variation(&self) -> f64 {
        match self {
            Self::Constant { .. } => 0.0,
            Self::Exponential { .. } => 1.0,
            Self::LogNormal { variation, .. } => variation * variation,
            Self::Mix { parts } => {
                let mean = self.mean_ns();
                weighted(parts, |ns| (ns - mean) * (ns - mean)) / (mean * mean)
            }
        }
    }
}

/// Draws service times; the same seed gives the same times.
#[derive(Clone, Debug)]
pub struct Sampler {
    time: ServiceTime,
    random: Rng,
}

impl Sampler {
    /// Creates a sampler; the same seed gives the same times.
    #[must_use]
    pub fn new(time: ServiceTime, seed: u64) -> Self {
        Self { time, random: Rng::with_seed(seed) }
    }

    /// Draws a service time, in nanoseconds.
    pub fn draw_ns(&mut self) -> u64 {
        match &self.time {
            ServiceTime::Constant { ns } => *ns,
            ServiceTime::Exponential { mean_ns } => {
                bounded(to_f64(*mean_ns) * exponential(&mut self.random))
            }
            ServiceTime::LogNormal { mean_ns, variation } => {
                let sigma_squared = (variation * variation).ln_1p();
                let deviation = sigma_squared.sqrt() * normal(&mut self.random);
                bounded(to_f64(*mean_ns) * (deviation - sigma_squared / 2.0).exp())
            }
            ServiceTime::Mix { parts } => drawn_part(parts, &mut self.random),
        }
    }
}

fn drawn_part(parts: &[(u32, u64)], random: &mut Rng) -> u64 {
    let total: u64 = parts.iter().map(|(weight, _)| u64::from(*weight)).sum();
    let mut left = random.u64(0..total.max(1));
    for (weight, ns) in parts {
        match left.checked_sub(u64::from(*weight)) {
            Some(rest) => left = rest,
            None => return *ns,
        }
    }
    0
}

/// An exponential variate of mean 1.
pub(crate) fn exponential(random: &mut Rng) -> f64 {
    // A uniform variate lies below 1, so the logarithm is finite.
    -(-random.f64()).ln_1p()
}

/// A normal variate of mean 0 and deviation 1 (Box and Muller).
pub(crate) fn normal(random: &mut Rng) -> f64 {
    let radius = (2.0 * exponential(random)).sqrt();
    radius * (std::f64::consts::TAU * random.f64()).cos()
}

fn weighted(parts: &[(u32, u64)], value: impl Fn(f64) -> f64) -> f64 {
    let total: f64 = parts.iter().map(|(weight, _)| f64::from(*weight)).sum();
    let sum: f64 = parts.iter().map(|(weight, ns)| f64::from(*weight) * value(to_f64(*ns))).sum();
    sum / total
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "bounded to 1 … SERVICE_NS_MAX before"
)]
fn bounded(ns: f64) -> u64 {
    ns.clamp(1.0, to_f64(SERVICE_NS_MAX)).round() as u64
}

#[expect(clippy::cast_precision_loss, reason = "service times stay far below 2^53 ns")]
fn to_f64(ns: u64) -> f64 {
    ns as f64
}

impl FromStr for Work {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |why: String| Error::usage(format!("no work {text}: {why}"), FORMS);
        let (kind, time) = text
            .split_once(':')
            .ok_or_else(|| wrong("no colon between what is done and for how long".into()))?;
        let kind = match kind {
            "cpu" => WorkKind::Cpu,
            "block" => WorkKind::Block,
            _ => return Err(wrong(format!("`{kind}` is neither `cpu` nor `block`"))),
        };
        let time = service_time(time).map_err(wrong)?;
        Ok(Self { kind, time })
    }
}

impl FromStr for ServiceTime {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        service_time(text).map_err(|why| Error::usage(format!("service time {text}: {why}"), FORMS))
    }
}

/// Parses a distribution; the error says what is wrong with the text.
fn service_time(text: &str) -> Result<ServiceTime, String> {
    if text == "heavy" {
        return Ok(ServiceTime::heavy());
    }
    match text.split_once(':') {
        None => Ok(ServiceTime::Constant { ns: time_ns(text)? }),
        Some(("exp", mean)) => Ok(ServiceTime::Exponential { mean_ns: time_ns(mean)? }),
        Some(("lognormal", shape)) => log_normal(shape),
        Some(("mix", parts)) => mix(parts),
        Some((name, _)) => Err(format!("there is no distribution `{name}`")),
    }
}

fn log_normal(shape: &str) -> Result<ServiceTime, String> {
    let (mean, variation) = shape
        .split_once(",cv=")
        .ok_or("a lognormal needs a mean and a variation, as in `1ms,cv=2`")?;
    let variation: f64 = variation.parse().map_err(|_| format!("`{variation}` is not a number"))?;
    if !(variation > 0.0 && variation <= VARIATION_MAX) {
        return Err(format!("cv={variation} is not above 0 and at most {VARIATION_MAX}"));
    }
    Ok(ServiceTime::LogNormal { mean_ns: time_ns(mean)?, variation })
}

fn mix(text: &str) -> Result<ServiceTime, String> {
    let part = |text: &str| {
        let (weight, time) = text
            .split_once('x')
            .ok_or_else(|| format!("`{text}` is not a weight and a time, as in `99x1ms`"))?;
        let weight = weight.parse().ok().filter(|weight| *weight > 0);
        let weight = weight.ok_or_else(|| format!("the weight in `{text}` is not from 1 on"))?;
        Ok::<_, String>((weight, time_ns(time)?))
    };
    let parts = text.split('+').map(part).collect::<Result<Vec<_>, _>>()?;
    if parts.len() > MIX_PARTS_MAX {
        return Err(format!("{} parts are more than {MIX_PARTS_MAX}", parts.len()));
    }
    Ok(ServiceTime::Mix { parts })
}

/// Units of time in nanoseconds, longest first.
const UNITS: [(&str, u64); 4] = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000), ("ns", 1)];

fn time_ns(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let (number, unit) = text.split_at(digits.len());
    let (_, unit_ns) = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(|| format!("`{text}` has no unit of s, ms, us or ns"))?;
    let number: u64 =
        number.parse().map_err(|_| format!("`{number}` in `{text}` is not a whole number"))?;
    let ns = number.saturating_mul(*unit_ns);
    match ns {
        0 => Err("no time at all; leave --work out".into()),
        1..=SERVICE_NS_MAX => Ok(ns),
        _ => Err(format!("`{text}` is longer than 60s")),
    }
}

/// Formats a time in the longest unit that needs no fraction.
struct Time(u64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, unit_ns): &&(&str, u64)| self.0.is_multiple_of(*unit_ns);
        let (name, unit_ns) = UNITS.iter().find(fits).unwrap_or(&UNITS[3]);
        write!(f, "{}{name}", self.0 / unit_ns)
    }
}

impl fmt::Display for ServiceTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant { ns } => write!(f, "{}", Time(*ns)),
            Self::Exponential { mean_ns } => write!(f, "exp:{}", Time(*mean_ns)),
            Self::LogNormal { mean_ns, variation } => {
                write!(f, "lognormal:{},cv={variation}", Time(*mean_ns))
            }
            Self::Mix { parts } => {
                let part = |(weight, ns): &(u32, u64)| format!("{weight}x{}", Time(*ns));
                let parts: Vec<String> = parts.iter().map(part).collect();
                write!(f, "mix:{}", parts.join("+"))
            }
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            WorkKind::Cpu => "cpu",
            WorkKind::Block => "block",
        };
        write!(f, "{kind}:{}", self.time)
    }
}

impl TryFrom<String> for Work {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Work> for String {
    fn from(work: Work) -> Self {
        work.to_string()
    }
}
