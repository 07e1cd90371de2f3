//! The loads under which servers are compared, and the faults injected into some of them. Pure.
//!
//! Owns their names and sizes, the measures each is meant to show, and which findings are results
//! of a scenario rather than flaws of a trial.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::aspect::Aspect;
use super::duty_cycle;
use super::generator::{Load, Pace};
use super::queueing::Speed;
use super::target::{Peer, Target};
use crate::error::Error;
use crate::work::{ServiceTime, Work, WorkKind};

/// How long a stalled worker stays stopped.
pub const STALL: Duration = Duration::from_millis(400);
/// Request timeout in the scenario whose worker never resumes.
const TIMEOUT_WITHOUT_WORKER: Duration = Duration::from_secs(1);
/// Number of idle connections held beside short ones.
const HELD: u32 = 400;
/// A slow worker takes this many times as long as the others.
const SLOWNESS: f64 = 4.0;
/// One in this many workers is slow.
const SLOW_ONE_IN: usize = 4;
/// How busy unequal workers are together, in percent.
const UNEVEN_PERCENT: u8 = 70;
/// Clients of a burst, as a multiple of the usual number.
const BURST_FACTOR: u32 = 16;

/// A load to compare under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// One connection per request, at a fixed rate.
    Short,
    /// One connection per request, at the highest rate.
    Capacity,
    /// Requests on reused connections, at the highest rate.
    KeepAlive,
    /// Blocking requests, one in a hundred of them fifty times as long, at this percentage of the
    /// workers' capacity.
    Heavy(u8),
    /// Blocking requests while a quarter of the workers is slow.
    Uneven,
    /// Short connections beside idle ones.
    Mixed,
    /// Short connections while one worker is stopped for a time.
    Stall,
    /// Short connections while one worker is stopped permanently.
    Stopped,
    /// Many connections at the same time.
    Burst,
}

/// Every scenario.
pub const ALL: [Scenario; 12] = [
    Scenario::Short,
    Scenario::Capacity,
    Scenario::KeepAlive,
    Scenario::Heavy(25),
    Scenario::Heavy(50),
    Scenario::Heavy(70),
    Scenario::Heavy(85),
    Scenario::Uneven,
    Scenario::Mixed,
    Scenario::Stall,
    Scenario::Stopped,
    Scenario::Burst,
];

/// The default selection.
pub const DEFAULT: [Scenario; 4] =
    [Scenario::Short, Scenario::Capacity, Scenario::KeepAlive, Scenario::Heavy(70)];

/// Size of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Knobs {
    /// Workers per server.
    pub workers: usize,
    /// Connections per second, in open-loop scenarios.
    pub rate_per_s: f64,
    /// Concurrent clients, in closed-loop scenarios.
    pub connections: u32,
    /// Measured time of each trial.
    #[serde(serialize_with = "as_seconds", rename = "duration_s")]
    pub duration: Duration,
    /// Discarded time before it.
    #[serde(serialize_with = "as_seconds", rename = "warm_up_s")]
    pub warm_up: Duration,
    /// Seed of arrivals and service times.
    pub seed: u64,
}

fn as_seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

/// The fault: the busiest worker is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Time of the stop, from the start of the load.
    pub stop_at: Duration,
    /// Time of the continuation; `None` if it stays stopped.
    pub resume_at: Option<Duration>,
}

impl Scenario {
    /// One-line description.
    #[must_use]
    pub fn description(self) -> String {
        match self {
            Self::Short => "short connections, one request each, at a constant rate".into(),
            Self::Capacity => {
                "short connections, one request each, as many as the server takes (closed loop: \
                 latencies flatter a slow server)"
                    .into()
            }
            Self::KeepAlive => {
                "requests on connections that are kept open, as many as the server takes (closed \
                 loop: latencies flatter a slow server)"
                    .into()
            }
            Self::Heavy(percent) => format!(
                "requests that block their worker, 99 % of them 1 ms and 1 % 50 ms, a connection \
                 each, random arrivals at {percent} % of what the workers can do"
            ),
            Self::Uneven => format!(
                "requests that block their worker for 1 ms, a connection each, random arrivals at \
                 {UNEVEN_PERCENT} % of what the workers can do; a quarter of the workers takes \
                 about {SLOWNESS} times as long, stopped and continued in turns"
            ),
            Self::Mixed => {
                format!("short connections at a constant rate, beside {HELD} idle ones held open")
            }
            Self::Stall => format!(
                "short connections at a constant rate; the busiest worker is stopped for {STALL:?}"
            ),
            Self::Stopped => format!(
                "short connections at a constant rate; the busiest worker is stopped and never \
                 goes on; a request may take {TIMEOUT_WITHOUT_WORKER:?}"
            ),
            Self::Burst => "as many connections as shown, all in the same instant".into(),
        }
    }

    /// Cost of a request.
    #[must_use]
    pub fn work(self) -> Option<Work> {
        let time = match self {
            Self::Heavy(_) => ServiceTime::heavy(),
            Self::Uneven => ServiceTime::Constant { ns: 1_000_000 },
            _ => return None,
        };
        Some(Work { kind: WorkKind::Block, time })
    }

    /// How many of `workers` are slow.
    #[must_use]
    pub fn slow_workers(self, workers: usize) -> usize {
        if self == Self::Uneven { workers.div_ceil(SLOW_ONE_IN) } else { 0 }
    }

    /// The speed of each of the slow workers.
    #[must_use]
    pub fn slow_speeds(self, workers: usize) -> Vec<Speed> {
        vec![duty_cycle::SPEED; self.slow_workers(workers)]
    }

    /// How many workers at full speed do as much as these.
    #[must_use]
    pub fn capacity(self, workers: usize) -> f64 {
        let count = |workers| u32::try_from(workers).map_or(f64::MAX, f64::from);
        let slow = self.slow_workers(workers);
        count(workers - slow) + count(slow) / SLOWNESS
    }

    /// Utilisation of a worker that does nothing but serve.
    #[must_use]
    pub fn utilisation(self) -> Option<f64> {
        match self {
            Self::Heavy(percent) => Some(f64::from(percent) / 100.0),
            Self::Uneven => Some(f64::from(UNEVEN_PERCENT) / 100.0),
            _ => None,
        }
    }

    /// Why a target cannot run this scenario; `None` if it can.
    #[must_use]
    pub fn objection(self, target: Target) -> Option<&'static str> {
        let stops = matches!(self, Self::Stall | Self::Stopped | Self::Uneven);
        if stops && target == Target::Peer(Peer::Haproxy) {
            return Some(
                "HAProxy's workers are threads of one process, none of which can be stopped",
            );
        }
        self.work().and_then(|work| target.objection(&work))
    }

    /// The measured load.
    #[must_use]
    pub fn load(self, knobs: &Knobs, repeat: usize) -> Load {
        let seed = knobs.seed.wrapping_add(repeat as u64);
        let timed = |load: Load| Load { duration: Some(knobs.duration), seed, ..load };
        let at_rate = |per_s: f64, random: bool| {
            timed(Load { pace: Pace::Rate { per_s, random }, ..Load::clients(1) })
        };
        match self {
            Self::Short | Self::Stall => at_rate(knobs.rate_per_s, false),
            Self::Capacity => timed(Load::clients(knobs.connections)),
            Self::KeepAlive => timed(Load { keep_alive: true, ..Load::clients(knobs.connections) }),
            Self::Heavy(_) | Self::Uneven => at_rate(self.rate_per_s(knobs), true),
            Self::Mixed => Load { hold: HELD, ..at_rate(knobs.rate_per_s, false) },
            Self::Stopped => {
                Load { timeout: TIMEOUT_WITHOUT_WORKER, ..at_rate(knobs.rate_per_s, false) }
            }
            Self::Burst => {
                let clients = knobs.connections.saturating_mul(BURST_FACTOR);
                Load { requests: Some(u64::from(clients)), seed, ..Load::clients(clients) }
            }
        }
    }

    /// The warm-up load; `None` for a warm-up of zero.
    #[must_use]
    pub fn warm_up(self, knobs: &Knobs, repeat: usize) -> Option<Load> {
        let load = self.load(knobs, repeat.wrapping_add(1_000_000));
        let timed = load.duration.is_some();
        let duration = Some(knobs.warm_up).filter(|_| timed);
        (!knobs.warm_up.is_zero()).then_some(Load { duration, ..load })
    }

    /// Requests of a trial at a utilisation; at least one.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive count")]
    pub fn requests(self, knobs: &Knobs) -> usize {
        (self.rate_per_s(knobs) * knobs.duration.as_secs_f64()).max(1.0) as usize
    }

    /// Requests per second for the requested utilisation.
    fn rate_per_s(self, knobs: &Knobs) -> f64 {
        let capacity = self.capacity(knobs.workers);
        let mean_s = self.work().map_or(f64::MAX, |work| work.time.mean_ns() / 1e9);
        self.utilisation().unwrap_or(0.0) * capacity / mean_s
    }

    /// The fault to inject.
    #[must_use]
    pub fn fault(self, knobs: &Knobs) -> Option<Fault> {
        let stop_at = knobs.duration.mul_f64(0.25);
        match self {
            Self::Stall => Some(Fault { stop_at, resume_at: Some(stop_at + STALL) }),
            Self::Stopped => Some(Fault { stop_at, resume_at: None }),
            _ => None,
        }
    }

    /// The kinds of measures the scenario exists to show; a comparison without valid ones has
    /// failed.
    ///
    /// A closed loop shows what a request costs the server. Its rate and latencies are valid as
    /// long as the generator is not the bottleneck. Where it is, they are the generator's limit.
    /// With one CPU per side this is the usual case, because sending a request costs as much as
    /// answering it.
    #[must_use]
    pub fn is_about(self) -> &'static [Aspect] {
        if self.is_closed_loop() { &[Aspect::Cost] } else { &Aspect::ALL }
    }

    /// Whether the next request waits for an answer, so that a slow server receives fewer requests.
    #[must_use]
    pub fn is_closed_loop(self) -> bool {
        matches!(self, Self::Capacity | Self::KeepAlive | Self::Burst)
    }

    /// Codes of the generator's findings that are results of this scenario and not flaws of a
    /// trial: a server that loses a worker answers fewer requests than planned.
    #[must_use]
    pub fn tolerates(self, code: &str) -> bool {
        let of_a_fault = ["requests_failed", "rate_missed", "starts_dropped"].contains(&code);
        matches!(self, Self::Stall | Self::Stopped) && of_a_fault
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => f.write_str("short"),
            Self::Capacity => f.write_str("capacity"),
            Self::KeepAlive => f.write_str("keep-alive"),
            Self::Heavy(percent) => write!(f, "heavy-{percent}"),
            Self::Uneven => f.write_str("uneven"),
            Self::Mixed => f.write_str("mixed"),
            Self::Stall => f.write_str("stall"),
            Self::Stopped => f.write_str("stopped"),
            Self::Burst => f.write_str("burst"),
        }
    }
}

impl FromStr for Scenario {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        ALL.into_iter().find(|scenario| scenario.to_string() == text).ok_or_else(|| {
            let names: Vec<String> = ALL.iter().map(Self::to_string).collect();
            Error::usage(
                format!("`{text}` is no scenario"),
                format!("name one of {}, or all", names.join(", ")),
            )
        })
    }
}

impl Serialize for Scenario {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn knobs() -> Knobs {
        Knobs {
            workers: 8,
            rate_per_s: 3_000.0,
            connections: 64,
            duration: Duration::from_secs(4),
            warm_up: Duration::from_secs(1),
            seed: 5,
        }
    }

    #[test]
    fn names_are_read_back() {
        for scenario in ALL {
            assert_eq!(scenario.to_string().parse::<Scenario>().expect("its name"), scenario);
        }
        assert_eq!("heavy-60".parse::<Scenario>().expect_err("unknown").kind(), ErrorKind::Usage);
    }

    #[test]
    fn utilisation_is_rate_times_service_over_workers() {
        // 99 × 1 ms and 1 × 50 ms have a mean of 1.49 ms.
        let load = Scenario::Heavy(70).load(&knobs(), 0);
        let Pace::Rate { per_s, random: true } = load.pace else { panic!("{load:?}") };
        assert!((per_s * 0.00149 / 8.0 - 0.70).abs() < 1e-9);
        assert_eq!(
            Scenario::Heavy(70).work().expect("work").to_string(),
            "block:mix:99x1ms+1x50ms"
        );
    }

    #[test]
    fn slow_workers_count_for_as_much_less_as_they_are_slower() {
        let load = Scenario::Uneven.load(&knobs(), 0);
        let Pace::Rate { per_s, random: true } = load.pace else { panic!("{load:?}") };
        // Six of eight workers do a thousand a second, two a quarter of that.
        assert!((per_s - 0.7 * 6_500.0).abs() < 1e-6, "{per_s}");
        assert_eq!(Scenario::Uneven.slow_speeds(8).len(), 2);
        assert!(Scenario::Heavy(70).slow_speeds(8).is_empty());
        assert_eq!(Scenario::Uneven.slow_workers(2), 1);
        assert_eq!(Scenario::Short.slow_workers(8), 0);
    }

    #[test]
    fn repeats_differ_and_a_warm_up_is_another_run_of_the_same() {
        let (first, second) =
            (Scenario::Short.load(&knobs(), 0), Scenario::Short.load(&knobs(), 1));
        assert_ne!(first.seed, second.seed);
        let warm_up = Scenario::Short.warm_up(&knobs(), 0).expect("a second");
        assert_eq!(warm_up.duration, Some(Duration::from_secs(1)));
        assert_eq!(warm_up.pace, first.pace);
        let none = Knobs { warm_up: Duration::ZERO, ..knobs() };
        assert_eq!(Scenario::Short.warm_up(&none, 0), None);
        let burst = Scenario::Burst.warm_up(&knobs(), 0).expect("a burst");
        assert_eq!((burst.duration, burst.requests), (None, Some(1_024)));
    }

    #[test]
    fn faults_come_within_the_measured_time() {
        let stall = Scenario::Stall.fault(&knobs()).expect("a fault");
        assert_eq!(stall.stop_at, Duration::from_secs(1));
        assert_eq!(stall.resume_at, Some(Duration::from_millis(1_400)));
        assert_eq!(Scenario::Stopped.fault(&knobs()).map(|fault| fault.resume_at), Some(None));
        assert_eq!(Scenario::Short.fault(&knobs()), None);
        assert!(Scenario::Stopped.tolerates("requests_failed"));
        assert!(!Scenario::Stopped.tolerates("generator_busy"));
        assert!(!Scenario::Short.tolerates("requests_failed"));
    }

    #[test]
    fn closed_loops_are_those_without_a_rate() {
        for scenario in ALL {
            let pace = scenario.load(&knobs(), 0).pace;
            assert_eq!(scenario.is_closed_loop(), matches!(pace, Pace::Clients(_)), "{scenario}");
        }
        assert_eq!(Scenario::Capacity.is_about(), [Aspect::Cost]);
        assert_eq!(Scenario::Heavy(70).is_about(), Aspect::ALL);
    }

    #[test]
    fn what_cannot_be_is_left_out() {
        let haproxy = Target::Peer(Peer::Haproxy);
        assert!(Scenario::Stall.objection(haproxy).is_some());
        assert!(Scenario::Heavy(50).objection(haproxy).is_some());
        assert!(Scenario::Uneven.objection(haproxy).is_some());
        assert_eq!(Scenario::Short.objection(haproxy), None);
        assert_eq!(Scenario::Heavy(50).objection(Target::RR), None);
    }
}
