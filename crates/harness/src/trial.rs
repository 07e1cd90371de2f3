//! One trial: a fresh server, a warm-up, a measured load, and everything that was seen of it.
//!
//! The warm-up is a run of the generator of its own, so that the server's CPU time can be read
//! exactly before and after what is measured. Owns what a trial's record holds. Refuses to
//! compare trials.

use std::time::Duration;

use loadtest::Report;
use loadtest::latency::{CurvePoint, Latency};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use super::balance::Balance;
use super::generator::{self, Load};
use super::imbalance::unix_ms;
use super::in_flight::{InFlight, Watch};
use super::interrupt::{Halt, Interrupt};
use super::placement::Placement;
use super::scenario::{Fault, Knobs, Scenario};
use super::server::{Books, Server, Setup};
use super::target::Target;
use super::usage::{Memory, Usage};
use super::validity::{Aspect, Objection, counting, judged};
use crate::error::{Error, Result};

/// Rest between warm-up and measurement, for connections to be closed on both sides.
const SETTLE: Duration = Duration::from_millis(50);
/// A worker of Node has compiled its path from accept to answer after so many requests. Eight of
/// them on one CPU answered three times as many a second after that as before it.
const NODE_REQUESTS_TO_COMPILE: u64 = 4_000;
/// Who has not compiled by then is measured as it is.
const COMPILE_WITHIN: Duration = Duration::from_secs(40);

/// Percentiles of a latency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50_us: Option<f64>,
    /// 90 of 100 were as fast.
    pub p90_us: Option<f64>,
    /// 99 of 100 were as fast.
    pub p99_us: Option<f64>,
    /// 999 of 1000 were as fast.
    pub p999_us: Option<f64>,
    /// The slowest.
    pub max_us: Option<f64>,
}

/// What one worker did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Share {
    /// Its number, from one.
    pub worker: usize,
    /// Connections, the warm-up's among them; nothing if the server does not count.
    pub connections: Option<u64>,
    /// CPU time in the measured time; nothing if it is not a process of its own.
    pub cpu_ms: Option<f64>,
    /// Connections at once, the mean over the measured time; nothing if its workers share them.
    pub in_flight_mean: Option<f64>,
    /// The most of them at any look.
    pub in_flight_max: Option<u64>,
}

/// A trial's record.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Record {
    /// Requests answered a second.
    pub rate_per_s: f64,
    /// Requests answered.
    pub completed: u64,
    /// Requests that failed, over all that were begun.
    pub failed_share: f64,
    /// Until the connection was established.
    pub connect: Percentiles,
    /// Until the answer's first byte.
    pub first_byte: Percentiles,
    /// Until the answer's last byte.
    pub response: Percentiles,
    /// Latencies count from planned starts.
    pub corrected: bool,
    /// The response latency, for plotting.
    pub curve: Vec<CurvePoint>,
    /// CPU time of all of the server's processes.
    pub server_cpu_ms: f64,
    /// The same for each answered request.
    pub server_cpu_us_per_request: f64,
    /// What of it the process used that has started the others; nothing if there are no others.
    pub primary_cpu_us_per_request: Option<f64>,
    /// What of it these others used.
    pub workers_cpu_us_per_request: Option<f64>,
    /// CPU time of the whole machine, generator and everybody else included.
    pub machine_cpu_us_per_request: f64,
    /// Time that the hypervisor gave to others.
    pub stolen_ms: f64,
    /// The busiest thread of the generator.
    pub generator_cpu_percent: f64,
    /// What that thread waited for a CPU.
    pub generator_waiting_percent: f64,
    /// The server's processes' peaks, added up.
    pub memory_peak_mib: f64,
    /// What they hold at the end, shared pages divided.
    pub memory_proportional_mib: Option<f64>,
    /// The workers.
    pub workers: Vec<Share>,
    /// Connections that each of them held over time.
    pub in_flight: InFlight,
    /// How evenly connections were spread, where they were counted.
    pub balance: Option<Balance>,
    /// How evenly CPU time was.
    pub cpu_balance: Option<Balance>,
    /// What speaks against the trial, and against which of its measures.
    pub objections: Vec<Objection>,
    /// What the scenario brought about, and does not speak against the trial.
    pub consequences: Vec<String>,
}

/// What is tried.
#[derive(Clone, Copy, Debug)]
pub struct Trial<'a> {
    /// The server.
    pub target: Target,
    /// The load.
    pub scenario: Scenario,
    /// Which repeat, counted from zero.
    pub repeat: usize,
    /// The sizes.
    pub knobs: &'a Knobs,
    /// Who runs where.
    pub placement: &'a Placement,
}

impl Trial<'_> {
    /// Runs it.
    ///
    /// # Errors
    /// A signal; a server or generator that does not run at all.
    pub fn run(&self, interrupt: &mut Interrupt) -> std::result::Result<Record, Halt> {
        let Self { target, scenario, repeat, knobs, placement } = *self;
        let setup = Setup {
            workers: knobs.workers,
            cpus: placement.server_cpus.clone(),
            work: scenario.work(),
            seed: knobs.seed.wrapping_add(repeat as u64),
        };
        let server = Server::start(target, &setup, interrupt)?;
        let warm_up = scenario.warm_up(knobs, repeat);
        let compile = warm_up.as_ref().and_then(|_| compile(target, knobs));
        for load in compile.iter().chain(&warm_up) {
            let cpus = &placement.load_cpus;
            generator::run(load, server.address, cpus, interrupt, &mut |_| ())?;
            interrupt.sleep(SETTLE)?;
        }
        let mut saboteur = Saboteur::new(scenario.fault(knobs), &server);
        let before = Usage::of_tree(server.root());
        let load = scenario.load(knobs, repeat);
        let cpus = &placement.load_cpus;
        let mut watch = Watch::new(&server.workers, server.root());
        let loaded = generator::run(&load, server.address, cpus, interrupt, &mut |now| {
            saboteur.act(now);
            watch.look(now);
        })?;
        let used = Usage::of_tree(server.root()).since(&before);
        let memory = Memory::of_tree(server.root());
        saboteur.make_good();
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

/// What a target is loaded with before its warm-up, if it compiles while it runs.
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

/// Stops the busiest worker, and lets it go on.
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

    /// Does what is due after so much time.
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
            // A worker that has gone meanwhile was replaced, which its server's books say.
            let _ = kill(pid, signal);
        }
    }

    /// Lets the worker go on, so that the server can end in order.
    fn make_good(&self) {
        self.signal(Signal::SIGCONT);
    }
}

/// What was seen of a server.
struct Seen {
    used: Usage,
    memory: Memory,
    root: u32,
    workers: Vec<u32>,
    in_flight: InFlight,
    books: Books,
}

impl Seen {
    /// CPU time of the process that has started the others, and of these others.
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

/// Who did how much, by connections and by CPU time.
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
        p50_us: latency.p50_us,
        p90_us: latency.p90_us,
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

/// A trial that was run, or the reason why it was not.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The load.
    pub scenario: Scenario,
    /// The server.
    pub target: Target,
    /// Which repeat, counted from zero.
    pub repeat: usize,
    /// When it began, in milliseconds of Unix time.
    pub started_unix_ms: u64,
    /// The kinds of measures that it counts for.
    pub counts_for: Vec<Aspect>,
    /// Why there is no record.
    pub failure: Option<String>,
    /// What was seen.
    pub record: Option<Record>,
}

impl Outcome {
    /// Runs a trial and keeps what came of it, unless a signal has ended it.
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

    /// Whether all of its measures count.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        Aspect::ALL.iter().all(|aspect| self.counts_for(*aspect))
    }

    /// Whether measures of a kind count.
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
