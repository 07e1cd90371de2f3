//! Replaces workers that reached a limit: requests, age or memory.
//!
//! Owns the limits and a thread that checks once a second. It replaces one worker at a time, as a
//! reload does. If new workers exceed a limit at once, their slot waits longer each time.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::str::FromStr;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use clap::Args;
use clusterlb::{Result, SupervisorHandle, SupervisorStage, WorkerId, WorkerSnapshot, WorkerState};
use clusterlb_sys::signal::spawn_without_signals;

use super::headings::WORKERS;
use super::usage::usage_of;

/// Interval of the checks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A worker that reaches a limit before this age makes its slot wait.
const SHORT_LIFE: Duration = Duration::from_secs(60);
/// Least age of workers in such a slot, at first and at most.
const WAIT_MIN: Duration = Duration::from_secs(10);
const WAIT_MAX: Duration = Duration::from_secs(600);

/// Limits after which workers are replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub(super) struct RecycleArguments {
    /// Replace a worker after N requests, give or take J
    ///
    /// Connections count where the worker does not count requests.
    #[arg(
        long,
        value_name = "N[±J]",
        value_parser = spread::<u64>,
        help_heading = WORKERS,
        hide_short_help = true
    )]
    max_requests: Option<Spread<u64>>,

    /// Replace a worker of this age, give or take J
    #[arg(
        long,
        value_name = "TIME[±J]",
        value_parser = spread::<Time>,
        help_heading = WORKERS,
        hide_short_help = true
    )]
    lifetime: Option<Spread<Time>>,

    /// Replace a worker with more resident memory: bytes, or a number and K, M or G
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = size,
        help_heading = WORKERS,
        hide_short_help = true
    )]
    max_rss: Option<u64>,
}

/// A limit that differs between workers, so that they do not reach it together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spread<T> {
    middle: T,
    jitter: T,
}

/// A time on the command line, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Time(u64);

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let time = super::values::time(text)?;
        Ok(Self(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// A value with an order, convertible from a plain number.
trait Plain: Copy {
    fn plain(self) -> u64;
}

impl Plain for u64 {
    fn plain(self) -> u64 {
        self
    }
}

impl Plain for Time {
    fn plain(self) -> u64 {
        self.0
    }
}

fn spread<T>(text: &str) -> std::result::Result<Spread<T>, String>
where
    T: FromStr<Err: fmt::Display> + Plain,
{
    let parse = |text: &str| text.parse::<T>().map_err(|error| format!("{text}: {error}"));
    let (middle, jitter) = match text.split_once('±').or_else(|| text.split_once("+-")) {
        Some((middle, jitter)) => (parse(middle)?, parse(jitter)?),
        // No jitter.
        None => {
            let zero = "0".parse::<T>().or_else(|_| "0s".parse()).map_err(|one| one.to_string())?;
            (parse(text)?, zero)
        }
    };
    match middle.plain() > jitter.plain() {
        true => Ok(Spread { middle, jitter }),
        false => Err("it must be larger than what it may differ by, and not 0".into()),
    }
}

fn size(text: &str) -> std::result::Result<u64, String> {
    let (number, unit) = match text.chars().last() {
        Some('K') => (&text[..text.len() - 1], 1 << 10),
        Some('M') => (&text[..text.len() - 1], 1 << 20),
        Some('G') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1_u64),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    let wrong = || "write a number of bytes, or one with K, M or G behind it, such as 512M";
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| wrong().into())
}

impl<T: Plain> Spread<T> {
    /// The limit of one worker.
    fn of(self, draw: u64) -> u64 {
        let jitter = self.jitter.plain();
        let width = jitter.saturating_mul(2).saturating_add(1);
        (self.middle.plain() - jitter).saturating_add(draw % width)
    }
}

impl RecycleArguments {
    /// Whether there is a limit.
    pub(super) fn is_any(&self) -> bool {
        *self != Self::default()
    }

    /// The limit that a worker has reached, if any.
    fn reached(&self, readings: Readings) -> Option<String> {
        if self.max_requests.is_some_and(|limit| readings.served >= limit.of(readings.draw)) {
            return Some(format!("it has served {}", readings.served));
        }
        if self.lifetime.is_some_and(|limit| readings.age_ms >= limit.of(readings.draw)) {
            return Some(format!("it has lived for {} s", readings.age_ms / 1000));
        }
        let resident =
            readings.resident_bytes.filter(|bytes| self.max_rss.is_some_and(|max| *bytes > max));
        resident.map(|bytes| format!("it has {} MiB resident", bytes >> 20))
    }
}

/// A worker's readings.
#[derive(Clone, Copy, Debug)]
struct Readings {
    served: u64,
    age_ms: u64,
    resident_bytes: Option<u64>,
    /// Position of this worker's limits within their range.
    draw: u64,
}

/// The least age per slot before a limit counts.
#[derive(Debug, Default)]
struct Waits {
    slots: BTreeMap<u16, Duration>,
}

impl Waits {
    fn is_over(&self, slot: u16, age: Duration) -> bool {
        age >= self.slots.get(&slot).copied().unwrap_or_default()
    }

    /// The slot's worker is replaced at this age.
    fn on_replaced(&mut self, slot: u16, age: Duration) {
        let wait = self.slots.entry(slot).or_default();
        // Its own wait made it older, not its limit.
        *wait = match age < SHORT_LIFE.max(*wait * 2) {
            true => (*wait * 2).clamp(WAIT_MIN, WAIT_MAX),
            false => Duration::ZERO,
        };
    }
}

/// The thread. Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct Recycling {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Recycling {
    /// Starts the checks. Replacements and their reasons are reported.
    ///
    /// # Errors
    /// Too many threads.
    pub(super) fn start(
        limits: RecycleArguments,
        handle: SupervisorHandle,
        mut tell: impl FnMut(WorkerId, String) + Send + 'static,
    ) -> Result<Self> {
        let (end, ended) = channel::<()>();
        let body = move || {
            let (draws, mut waits) = (RandomState::new(), Waits::default());
            while ended.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                let Some((worker, age, why)) = first_due(&limits, &handle, &waits, &draws) else {
                    continue;
                };
                waits.on_replaced(worker.slot, age);
                tell(worker.id, why);
                let Ok(replaced) = handle.replace(worker.id) else { continue };
                // The end of the run ends this, too.
                while !replaced.wait_timeout(LOOK_EVERY) {
                    if ended.try_recv() == Err(std::sync::mpsc::TryRecvError::Disconnected) {
                        return;
                    }
                }
            }
        };
        let thread = spawn_without_signals("recycle", body)?;
        Ok(Self { end: Some(end), thread: Some(thread) })
    }
}

impl Drop for Recycling {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // A panic there leaves nothing to clean up here.
            let _ = thread.join();
        }
    }
}

/// The oldest worker that has reached a limit, unless a replacement is in progress.
fn first_due(
    limits: &RecycleArguments,
    handle: &SupervisorHandle,
    waits: &Waits,
    draws: &RandomState,
) -> Option<(WorkerSnapshot, Duration, String)> {
    let snapshot = handle.snapshot();
    if snapshot.stage != SupervisorStage::Serving || snapshot.reloading {
        return None;
    }
    let serving = snapshot.workers.into_iter().filter(|one| one.state == WorkerState::Serving);
    serving.into_iter().find_map(|worker| {
        let age = SystemTime::now().duration_since(worker.started).unwrap_or_default();
        let readings = Readings {
            served: worker.counts.requests.max(worker.counts.claimed),
            age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            resident_bytes: limits
                .max_rss
                .and_then(|_| usage_of(worker.pid))
                .map(|usage| usage.resident_bytes),
            draw: draws.hash_one(worker.id),
        };
        let why = limits.reached(readings).filter(|_| waits.is_over(worker.slot, age))?;
        Some((worker, age, why))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Readings =
        Readings { served: 100, age_ms: 5000, resident_bytes: Some(9 << 20), draw: 3 };

    #[test]
    fn limits_are_read_and_nonsense_is_refused() {
        let read = spread::<u64>("1000±50").expect("a limit");
        assert_eq!(read, Spread { middle: 1000, jitter: 50 });
        assert_eq!(spread::<u64>("7+-2").expect("a limit"), Spread { middle: 7, jitter: 2 });
        let time = spread::<Time>("1h±5m").expect("a limit");
        assert_eq!(time, Spread { middle: Time(3_600_000), jitter: Time(300_000) });
        assert_eq!(spread::<Time>("2s").expect("a limit").jitter, Time(0));
        for text in ["", "0", "5±5", "5±", "many", "-3"] {
            assert!(spread::<u64>(text).is_err(), "{text}");
        }
        assert_eq!((size("512M"), size("1000")), (Ok(512 << 20), Ok(1000)));
        for text in ["", "0", "M", "12X", "99999999999999G"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_worker_has_a_limit_within_the_width() {
        let limit = Spread { middle: 100_u64, jitter: 10 };
        let drawn: Vec<u64> = (0..21).map(|draw| limit.of(draw)).collect();
        assert_eq!((drawn[0], drawn[20]), (90, 110));
        assert!((90..=110).contains(&limit.of(u64::MAX)));
    }

    #[test]
    fn a_limit_that_is_reached_is_told() {
        let none = RecycleArguments::default();
        assert!(!none.is_any() && none.reached(LOOK).is_none());
        let requests = Some(Spread { middle: 100, jitter: 0 });
        let limits = RecycleArguments { max_requests: requests, ..none.clone() };
        assert!(limits.reached(LOOK).is_some_and(|why| why.contains("100")));
        assert!(limits.reached(Readings { served: 99, ..LOOK }).is_none());
        let lifetime = Some(Spread { middle: Time(5000), jitter: Time(0) });
        let limits = RecycleArguments { lifetime, ..none.clone() };
        assert!(limits.reached(LOOK).is_some_and(|why| why.contains("5 s")));
        let limits = RecycleArguments { max_rss: Some(8 << 20), ..none };
        assert!(limits.reached(LOOK).is_some_and(|why| why.contains("9 MiB")));
        assert!(limits.reached(Readings { resident_bytes: None, ..LOOK }).is_none());
    }

    #[test]
    fn a_limit_that_new_workers_exceed_waits_longer_each_time() {
        let mut waits = Waits::default();
        assert!(waits.is_over(0, Duration::ZERO));
        for seconds in [10, 20, 40, 80, 160, 320, 600, 600] {
            // At the first permitted moment.
            let age = waits.slots.get(&0).copied().unwrap_or_default();
            waits.on_replaced(0, age);
            assert!(!waits.is_over(0, Duration::from_secs(seconds - 1)), "{seconds}");
            assert!(waits.is_over(0, Duration::from_secs(seconds)), "{seconds}");
        }
        waits.on_replaced(0, Duration::from_secs(3600));
        assert!(waits.is_over(0, Duration::ZERO) && waits.is_over(1, Duration::ZERO));
    }
}
