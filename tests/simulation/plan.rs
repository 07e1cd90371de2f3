//! The plan of a simulated run: arrivals, faults and settings. All of it is drawn from the seed;
//! time does not pass here.

use clusterlb_harness::work::ServiceTime;
use clusterlb_schedule::{
    CREDITS_MAX, CreditRule, Limits, OverloadFactor, Policy, SchedulerConfig,
};
use fastrand::Rng;

pub(crate) const MICROSECOND: u64 = 1_000;
pub(crate) const MILLISECOND: u64 = 1_000_000;
/// The start time. Not 0, which means "never" on a page of counters.
pub(crate) const START_NS: u64 = 1_000_000_000;
/// Duration of a stop without continuation.
pub(crate) const FOR_GOOD: u64 = u64::MAX;

/// A fault of the worker in a slot.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// SIGKILL.
    Kill,
    /// SIGSTOP, and SIGCONT after this time.
    Stop(u64),
    /// No free descriptors: it claims nothing for this time.
    Shut(u64),
    /// The kernel has too many descriptors in flight for this time (ETOOMANYREFS).
    Crowd(u64),
    /// From now on it publishes absurd counters.
    Lie,
    /// It leaves in order and is replaced.
    Retire,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Strike {
    pub(crate) at_ns: u64,
    pub(crate) slot: usize,
    pub(crate) fault: Fault,
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) workers: usize,
    pub(crate) listeners: u16,
    /// The listeners that each worker serves, as bits.
    pub(crate) served: Vec<u16>,
    pub(crate) policy: Policy,
    pub(crate) scheduling: SchedulerConfig,
    /// Capacity of a channel in messages.
    pub(crate) channel_messages: usize,
    pub(crate) service: ServiceTime,
    pub(crate) service_seed: u64,
    /// What each worker takes for a request, as a multiple of its service time.
    pub(crate) slowness: Vec<u64>,
    /// Percentage of connections that wait without keeping a worker's loop busy.
    pub(crate) held_percent: u8,
    /// Percentage of connections that the client resets before they are served.
    pub(crate) reset_percent: u8,
    /// Percentage of probes that the kernel refuses.
    pub(crate) probe_loss_percent: u8,
    /// Whether a worker reads messages between two requests of a turn.
    pub(crate) receives_midway: bool,
    /// Whether a worker publishes its claims before it works on them, and its turns are longer than
    /// the work in them, as those of the built-in worker.
    pub(crate) publishes_claims: bool,
    /// Maximum time from a wake-up to the turn.
    pub(crate) latency_ns: u64,
    pub(crate) arrivals: Vec<u64>,
    pub(crate) strikes: Vec<Strike>,
}

impl Plan {
    /// A run with every kind of fault.
    pub(crate) fn storm(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let workers = random.usize(1..=8);
        let listeners = [1, 1, 2, 3][random.usize(0..4)];
        let served = served(&mut random, workers, listeners);
        let (service, mean_ns) = service(&mut random);
        let count = random.usize(20..300);
        let between_ns = mean_ns / workers as u64 * random.u64(6..=20) / 10;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53 ns")]
        let arrivals = arrivals(&mut random, count, between_ns.max(1) as f64);
        let last_ns = arrivals.last().copied().unwrap_or(START_NS) + 20 * MILLISECOND;
        let strikes = (0..random.usize(0..8))
            .map(|_| Strike {
                at_ns: random.u64(START_NS..=last_ns),
                slot: random.usize(0..workers),
                fault: fault(&mut random, workers),
            })
            .filter(|strike| !matches!(strike.fault, Fault::Lie) || strike.slot > 0)
            .collect();
        Self {
            seed,
            workers,
            listeners,
            served,
            policy: policy(&mut random),
            scheduling: scheduling(&mut random),
            channel_messages: if random.bool() { 80 } else { random.usize(1..6) },
            service,
            service_seed: random.u64(..),
            slowness: (0..workers).map(|_| [1, 1, 1, 4][random.usize(0..4)]).collect(),
            held_percent: if random.bool() { 0 } else { random.u8(0..=100) },
            reset_percent: random.u8(0..20),
            probe_loss_percent: random.u8(0..30),
            receives_midway: random.bool(),
            latency_ns: random.u64(2..200) * MICROSECOND,
            publishes_claims: random.bool(),
            arrivals,
            strikes,
        }
    }

    /// The listeners that the worker in a slot serves.
    pub(crate) fn served_by(&self, slot: usize) -> impl Iterator<Item = u16> + use<> {
        let served = self.served[slot];
        (0..self.listeners).filter(move |listener| served >> listener & 1 == 1)
    }

    /// A run without faults, with Poisson arrivals at this utilisation: the same arrivals and
    /// service times as in `clusterlb_harness::queueing` for this seed.
    pub(crate) fn calm(
        seed: u64,
        workers: usize,
        service: ServiceTime,
        utilisation: f64,
        count: usize,
    ) -> Self {
        Self::uneven(seed, vec![1; workers], service, utilisation, count)
    }

    /// The same with workers that take these multiples of the service times.
    pub(crate) fn uneven(
        seed: u64,
        slowness: Vec<u64>,
        service: ServiceTime,
        utilisation: f64,
        count: usize,
    ) -> Self {
        let workers = slowness.len();
        let mut random = Rng::with_seed(seed);
        let service_seed = random.u64(..);
        // There the chooser has a separate seed.
        let _ = random.u64(..);
        #[expect(clippy::cast_precision_loss, reason = "a small multiple")]
        let capacity: f64 = slowness.iter().map(|one| 1.0 / *one as f64).sum();
        let between_ns = service.mean_ns() / (utilisation * capacity);
        let arrivals = arrivals(&mut random, count, between_ns);
        Self {
            seed,
            workers,
            listeners: 1,
            served: vec![1; workers],
            policy: Policy::Rr,
            scheduling: SchedulerConfig::default(),
            channel_messages: 80,
            service,
            service_seed,
            slowness,
            held_percent: 0,
            reset_percent: 0,
            probe_loss_percent: 0,
            receives_midway: true,
            publishes_claims: false,
            latency_ns: 20 * MICROSECOND,
            arrivals,
            strikes: Vec::new(),
        }
    }
}

/// The listeners that each worker serves: all workers serve the first one, and each of the others
/// has at least one worker.
fn served(random: &mut Rng, workers: usize, listeners: u16) -> Vec<u16> {
    let all = (1 << listeners) - 1;
    let unequal = random.bool();
    let draw = |slot| if slot == 0 || !unequal { all } else { random.u16(1..=all) };
    (0..workers).map(draw).collect()
}

/// Times of a Poisson process.
fn arrivals(random: &mut Rng, count: usize, between_ns: f64) -> Vec<u64> {
    let mut at_ns = START_NS;
    let mut draw = || {
        at_ns += whole(-(-random.f64()).ln_1p() * between_ns);
        at_ns
    };
    (0..count).map(|_| draw()).collect()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times are positive and far below 2^53 ns"
)]
fn whole(ns: f64) -> u64 {
    ns.round() as u64
}

fn service(random: &mut Rng) -> (ServiceTime, u64) {
    match random.u8(0..4) {
        0 => (ServiceTime::Constant { ns: 20 * MICROSECOND }, 20 * MICROSECOND),
        1 => (ServiceTime::Exponential { mean_ns: MILLISECOND }, MILLISECOND),
        2 => (ServiceTime::LogNormal { mean_ns: MILLISECOND, variation: 2.0 }, MILLISECOND),
        _ => (ServiceTime::heavy(), 1_490 * MICROSECOND),
    }
}

fn policy(random: &mut Rng) -> Policy {
    let handing_over =
        Policy::ALL.map(|policy| if policy == Policy::None { Policy::Rr } else { policy });
    handing_over[random.usize(0..handing_over.len())]
}

fn scheduling(random: &mut Rng) -> SchedulerConfig {
    let hang_after_ns = [None, Some(5), Some(100), Some(100)][random.usize(0..4)];
    SchedulerConfig {
        limits: Limits {
            inflight_max: random.bool().then(|| random.u32(1..40)),
            overload_factor: [
                OverloadFactor::Auto,
                OverloadFactor::Off,
                OverloadFactor::Times(1.5),
            ][random.usize(0..3)],
        },
        scheduler: None,
        credits: match random.bool() {
            true => CreditRule::Adaptive,
            false => CreditRule::Fixed(random.u32(1..60)),
        },
        credits_max: if random.bool() { CREDITS_MAX } else { random.u32(1..40) },
        hang_after_ns: hang_after_ns.map(|milliseconds| milliseconds * MILLISECOND),
        unserved_limit_ns: None,
        take_back_after_ns: [None, Some(1), Some(2), Some(10)][random.usize(0..4)]
            .map(|milliseconds: u64| milliseconds * MILLISECOND),
        eject_outliers_ns: [None, Some(50 * MILLISECOND)][random.usize(0..2)],
        slow_start_ns: [0, 50, 1_000][random.usize(0..3)] * MILLISECOND,
        coalesce_ns: None,
    }
}

fn fault(random: &mut Rng, workers: usize) -> Fault {
    let for_ns = random.u64(1..400) * MILLISECOND;
    match random.u8(0..12) {
        0..3 => Fault::Kill,
        3..6 => Fault::Stop(for_ns),
        6..8 => Fault::Shut(for_ns),
        8 => Fault::Crowd(for_ns / 8),
        // With a single worker that publishes absurd counters, no connection could be served.
        9 if workers > 1 => Fault::Lie,
        _ => Fault::Retire,
    }
}
