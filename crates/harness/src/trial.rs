//! One trial: a fresh server, a warm-up, a measured load, and a record of everything observed.
//!
//! The warm-up is a separate run of the generator, so that the server's CPU time can be read
//! exactly before and after the measured load. Owns the contents of a record. Does not compare
//! trials.

use std::time::Duration;

use loadtest::Report;
use loadtest::latency::{CurvePoint, Latency};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use super::aspect::Aspect;
use super::balance::Balance;
use super::duty_cycle::DutyCycle;
use super::generator::{self, Load};
use super::imbalance::unix_ms;
use super::in_flight::{InFlight, Watch};
use super::interrupt::{Halt, Interrupt};
use super::placement::Placement;
use super::scenario::{Fault, Knobs, Scenario};
use super::server::{Books, Server, Setup};
use super::steps::late_share;
use super::target::Target;
use super::usage::{Memory, Usage};
use super::validity::{Objection, counting, judged};
use crate::error::{Error, Result};

/// Pause between warm-up and measurement, in which both sides close their connections.
const SETTLE: Duration = Duration::from_millis(50);
/// Number of requests after which a Node worker has compiled its path from accept to answer.
/// Measured with eight workers on one CPU: the rate afterwards is three times the rate before.
const NODE_REQUESTS_TO_COMPILE: u64 = 4_000;
/// Time limit for this; a worker that has not compiled by then is measured as it is.
const COMPILE_WITHIN: Duration = Duration::from_secs(40);

/// Percentiles of a latency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// The mean.
    pub mean_us: Option<f64>,
    /// The median.
    pub p50_us: Option<f64>,
    /// The 90th percentile.
    pub p90_us: Option<f64>,
    /// The 95th percentile.
    pub p95_us: Option<f64>,
    /// The 98th percentile.
    pub p98_us: Option<f64>,
    /// The 99th percentile.
    pub p99_us: Option<f64>,
    /// The 99.9th percentile.
    pub p999_us: Option<f64>,
    /// The maximum.
    pub max_us: Option<f64>,
}

/// The record of one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Share {
    /// Number of the worker, from 1.
    pub worker: usize,
    /// Connections, including the warm-up; `None` if the server does not count them.
    pub connections: Option<u64>,
    /// CPU time during the measured time; `None` if the worker is not a process.
    pub cpu_ms: Option<f64>,
    /// Mean number of connections in flight; `None` if the workers cannot be distinguished.
    pub in_flight_mean: Option<f64>,
    /// Maximum number of connections in flight in any sample.
    pub in_flight_max: Option<u64>,
}

/// The record of a trial.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Record {
    /// Requests answered per second.
    pub rate_per_s: f64,
    /// Requests answered.
    pub completed: u64,
    /// Failed requests over all requests started.
    pub failed_share: f64,
    /// Time until the connection is established.
    pub connect: Percentiles,
    /// Time until the first byte of the answer.
    pub first_byte: Percentiles,
    /// Time until the last byte of the answer.
    pub response: Percentiles,
    /// Latencies count from planned starts, which corrects for coordinated omission.
    pub corrected: bool,
    /// The response latency as a curve for plotting.
    pub curve: Vec<CurvePoint>,
    /// Short requests that took more than 5 ms, over all short ones; `None` in scenarios without
    /// long ones.
    pub late_share: Option<f64>,
    /// CPU time of all processes of the server.
    pub server_cpu_ms: f64,
    /// The same per answered request.
    pub server_cpu_us_per_request: f64,
    /// The part of the first process, which started the others; `None` if it is the only one.
    pub primary_cpu_us_per_request: Option<f64>,
    /// The part of all other processes.
    pub workers_cpu_us_per_request: Option<f64>,
    /// CPU time of the whole machine, including the generator and unrelated processes.
    pub machine_cpu_us_per_request: f64,
    /// Time that the hypervisor took for other guests.
    pub stolen_ms: f64,
    /// Utilisation of the generator's busiest thread.
    pub generator_cpu_percent: f64,
    /// Share of its time that this thread waited for a CPU.
    pub generator_waiting_percent: f64,
    /// Sum of the server processes' peak memory.
    pub memory_peak_mib: f64,
    /// Memory at the end, with shared pages divided between their users.
    pub memory_proportional_mib: Option<f64>,
    /// The workers.
    pub workers: Vec<Share>,
    /// Connections in flight per worker over time.
    pub in_flight: InFlight,
    /// Evenness of the connections, if they are counted.
    pub balance: Option<Balance>,
    /// Evenness of the CPU time.
    pub cpu_balance: Option<Balance>,
    /// Objections to the trial, with the measures each invalidates.
    pub objections: Vec<Objection>,
    /// Findings that are results of the scenario and not objections.
    pub consequences: Vec<String>,
}

/// The parameters of a trial.
#[derive(Clone, Copy, Debug)]
pub struct Trial<'a> {
    /// The server.
    pub target: Target,
    /// The load.
    pub scenario: Scenario,
    /// Index of the repeat, from 0.
    pub repeat: usize,
    /// Sizes and durations.
    pub knobs: &'a Knobs,
    /// CPUs of server and generator.
    pub placement: &'a Placement,
}

impl Trial<'_> {
    /// Runs the trial.
    ///
    /// # Errors
    /// A signal, or a server or generator that does not run.
    pub fn run(&self, interrupt: &mut Interrupt) -> std::result::Result<Record, Halt> {
        let Self { target, scenario, repeat, knobs, placement } = *self;
        let setup = Setup {
            workers: knobs.workers,
            cpus: placement.server_cpus.clone(),
            work: scenario.work(),
            seed: knobs.seed.wrapping_add(repeat as u64),
            // Connections that are held send nothing.
            accept_at_once: scenario.load(knobs, repeat).hold > 0,
        };
        let server = Server::start(target, &setup, interrupt)?;
        let slow = scenario.slow_workers(knobs.workers).min(server.workers.len());
        let slowed = DutyCycle::of(&server.workers[..slow]);
        let warm_up = scenario.warm_up(knobs, repeat);
        let compile = warm_up.as_ref().and_then(|_| compile(target, knobs));
        for load in compile.iter().chain(&warm_up) {
            generator::run(load, server.address, placement, interrupt, &mut |_| ())?;
            interrupt.sleep(SETTLE)?;
        }
        let mut saboteur = Saboteur::new(scenario.fault(knobs), &server);
        let before = Usage::of_tree(server.root());
        let load = scenario.load(knobs, repeat);
        let mut watch = Watch::new(&server.workers, server.root());
        let loaded = generator::run(&load, server.address, placement, interrupt, &mut |now| {
            saboteur.act(now);
            watch.look(now);
        })?;
        let used = Usage::of_tree(server.root()).since(&before);
        let memory = Memory::of_tree(server.root());
        saboteur.make_good();
        drop(slowed);
        let (root, workers) = (server.root(), server.workers.clone());
        let in_flight = watch.finish();
        let books = server.end()?;
        if loaded.totals.completed == 0 {
            let why = loaded.failure.map_or_else(String::new, |failure| failure.cause);
            return Err(Halt::Failed(unanswered(target, &why)));
        }
        let seen = Seen { used, memory, root, workers, in_flight, books };
        Ok(record(self, &loaded, seen))
    }
}

/// Load before the warm-up, for targets with a just-in-time compiler.
fn compile(target: Target, knobs: &Knobs) -> Option<Load> {
    let requests = NODE_REQUESTS_TO_COMPILE * knobs.workers as u64;
    let clients = Load::clients(knobs.connections);
    let load = Load { requests: Some(requests), duration: Some(COMPILE_WITHIN), ..clients };
    target.runs_node().then_some(load)
}

fn unanswered(target: Target, why: &str) -> Error {
    Error::Workers {
        what: format!("{target} answered nothing ({why})"),
        hint: "start it by hand and look at what it says".into(),
    }
}

/// Stops the busiest worker and continues it later.
struct Saboteur {
    fault: Option<Fault>,
    workers: Vec<u32>,
    root: u32,
    stopped: Option<Pid>,
}

impl Saboteur {
    fn new(fault: Option<Fault>, server: &Server) -> Self {
        Self { fault, workers: server.workers.clone(), root: server.root(), stopped: None }
    }

    /// Performs the steps due at `now`.
    fn act(&mut self, now: Duration) {
        let Some(fault) = self.fault else { return };
        if now >= fault.stop_at && self.stopped.is_none() {
            let usage = Usage::of_tree(self.root);
            let used = |pid: &&u32| usage.processes_ns.get(*pid).copied().unwrap_or(0);
            let busiest = self.workers.iter().max_by_key(used);
            self.stopped = busiest.and_then(|pid| i32::try_from(*pid).ok()).map(Pid::from_raw);
            self.signal(Signal::SIGSTOP);
        }
        if fault.resume_at.is_some_and(|resume_at| now >= resume_at) {
            self.signal(Signal::SIGCONT);
            self.fault = None;
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.stopped {
            // If the worker has ended, it was replaced, which the server's counters show.
            let _ = kill(pid, signal);
        }
    }

    /// Continues the worker, so that the server can end cleanly.
    fn make_good(&self) {
        self.signal(Signal::SIGCONT);
    }
}

/// Observations of a server.
struct Seen {
    used: Usage,
    memory: Memory,
    root: u32,
    workers: Vec<u32>,
    in_flight: InFlight,
    books: Books,
}

impl Seen {
    /// CPU time of the first process, and of all others.
    fn split_ns(&self) -> Option<(u64, u64)> {
        let primary = self.used.processes_ns.get(&self.root).copied().unwrap_or(0);
        (!self.workers.is_empty()).then(|| (primary, self.used.server_ns().saturating_sub(primary)))
    }
}

fn record(trial: &Trial<'_>, loaded: &Report, seen: Seen) -> Record {
    let completed = to_f64(loaded.totals.completed);
    let begun = loaded.totals.started.max(1);
    let (balance, cpu_balance, shares) = shares(&seen);
    let (objections, consequences) = judged(trial.scenario, loaded, seen.books.restarted);
    let per_request = |ns: u64| to_f64(ns) / 1e3 / completed;
    let split = seen.split_ns();
    let Seen { used, memory, in_flight, .. } = seen;
    let latency = &loaded.latency;
    Record {
        rate_per_s: loaded.rates.completed_per_s,
        completed: loaded.totals.completed,
        failed_share: to_f64(loaded.totals.failed) / to_f64(begun),
        connect: percentiles(&latency.connect),
        first_byte: percentiles(&latency.first_byte),
        response: percentiles(&latency.response),
        corrected: latency.response.corrected,
        curve: latency.response.curve.clone(),
        late_share: late_share(trial.scenario.work().as_ref(), &latency.response.curve),
        server_cpu_ms: to_f64(used.server_ns()) / 1e6,
        server_cpu_us_per_request: per_request(used.server_ns()),
        primary_cpu_us_per_request: split.map(|(primary, _)| per_request(primary)),
        workers_cpu_us_per_request: split.map(|(_, workers)| per_request(workers)),
        machine_cpu_us_per_request: per_request(used.machine_ns),
        stolen_ms: to_f64(used.stolen_ns) / 1e6,
        generator_cpu_percent: loaded.cpu.busiest_thread_percent,
        generator_waiting_percent: loaded.cpu.busiest_thread_waiting_percent,
        memory_peak_mib: mebibytes(memory.peak_bytes),
        memory_proportional_mib: memory.proportional_bytes.map(mebibytes),
        workers: shares,
        in_flight,
        balance,
        cpu_balance,
        objections,
        consequences,
    }
}

/// Shares of the workers by connections and by CPU time.
fn shares(seen: &Seen) -> (Option<Balance>, Option<Balance>, Vec<Share>) {
    let Seen { used, workers, in_flight, books, .. } = seen;
    let connections = books.connections.clone().unwrap_or_default();
    let cpu_ns: Vec<u64> =
        workers.iter().map(|pid| used.processes_ns.get(pid).copied().unwrap_or(0)).collect();
    let shares = (0..connections.len().max(cpu_ns.len())).map(|place| Share {
        worker: place + 1,
        connections: connections.get(place).copied(),
        cpu_ms: cpu_ns.get(place).map(|ns| to_f64(*ns) / 1e6),
        in_flight_mean: workers.get(place).and_then(|_| in_flight.mean.get(place).copied()),
        in_flight_max: workers.get(place).and_then(|_| in_flight.max.get(place).copied()),
    });
    (Balance::of(&connections), Balance::of(&cpu_ns), shares.collect())
}

fn percentiles(latency: &Latency) -> Percentiles {
    Percentiles {
        mean_us: latency.mean_us,
        p50_us: latency.p50_us,
        p90_us: latency.p90_us,
        p95_us: latency.p95_us,
        p98_us: latency.p98_us,
        p99_us: latency.p99_us,
        p999_us: latency.p999_us,
        max_us: latency.max_us,
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn to_f64(count: u64) -> f64 {
    count as f64
}

fn mebibytes(bytes: u64) -> f64 {
    to_f64(bytes) / f64::from(1 << 20)
}

/// A finished trial, or the reason why it failed.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The load.
    pub scenario: Scenario,
    /// The server.
    pub target: Target,
    /// Index of the repeat, from 0.
    pub repeat: usize,
    /// Start time, in milliseconds of Unix time.
    pub started_unix_ms: u64,
    /// The kinds of measures that are valid.
    pub counts_for: Vec<Aspect>,
    /// Why there is no record.
    pub failure: Option<String>,
    /// The record.
    pub record: Option<Record>,
}

impl Outcome {
    /// Runs a trial and keeps its result, whether it succeeds or fails.
    ///
    /// # Errors
    /// [`Halt::Interrupted`] only.
    pub fn of(trial: &Trial<'_>, interrupt: &mut Interrupt) -> std::result::Result<Self, Halt> {
        let started_unix_ms = unix_ms();
        let result: Result<Record> = match trial.run(interrupt) {
            Ok(record) => Ok(record),
            Err(Halt::Failed(error)) => Err(error),
            Err(halt) => return Err(halt),
        };
        let Trial { scenario, target, repeat, .. } = *trial;
        let (record, failure) = match result {
            Ok(record) => (Some(record), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let objections = record.as_ref().map(|record| &*record.objections);
        let counts_for = objections.map_or_else(Vec::new, counting);
        Ok(Self { scenario, target, repeat, started_unix_ms, counts_for, failure, record })
    }

    /// Whether all measures are valid.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        Aspect::ALL.iter().all(|aspect| self.counts_for(*aspect))
    }

    /// Whether this kind of measure is valid.
    #[must_use]
    pub fn counts_for(&self, aspect: Aspect) -> bool {
        self.counts_for.contains(&aspect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_compiles_is_given_the_time() {
        let knobs = Knobs {
            workers: 8,
            rate_per_s: 1.0,
            connections: 64,
            duration: Duration::from_secs(1),
            warm_up: Duration::from_secs(1),
            seed: 1,
        };
        for node in ["node", "rr+node"] {
            let node = node.parse().expect("a target");
            assert_eq!(compile(node, &knobs).and_then(|load| load.requests), Some(32_000));
        }
        assert_eq!(compile(Target::RR, &knobs), None);
    }
}
