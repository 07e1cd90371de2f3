//! One generator thread: its ring, its connections and its share of the requests.
//!
//! The loop here is the parent: it looks at the clock, starts what is due, waits, and hands each
//! completion to its handler in `events`. Only the ring's wait blocks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::connection::Connection;
use super::demand::Demand;
use super::job::Job;
use super::recorder::{Live, Recorder};
use super::{Done, Message, StopFlag};
use crate::collect::Interval;
use crate::error::Error;
use crate::protocol::Reader;
use crate::settings::Load;
use crate::sys::process::{CpuTime, ask_for_precise_timers, pin_thread};
use crate::sys::ring::{Completion, Ring};

/// The longest wait in the ring: stop flags and ended seconds are looked at this often.
const HEARTBEAT_NS: u64 = 50_000_000;
/// Starts made before completions are looked at again, when many are due at once.
pub(super) const STARTS_PER_TURN: usize = 32;

/// When a request's time is over. Requests of one thread start in order and have one timeout, so
/// a queue of them is sorted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    pub(super) at_ns: u64,
    pub(super) slot: u32,
    pub(super) tenancy: u32,
    pub(super) number: u32,
}

/// Connections opened before the run and kept.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) opening: usize,
    pub(super) open: usize,
    pub(super) failure: Option<String>,
}

/// The ends of the channels and flags that a thread shares with the rest of the run.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) sender: Sender<Message>,
    pub(super) spare: Receiver<Box<Interval>>,
    /// Brings the instant at which the run begins.
    pub(super) begin: Receiver<Instant>,
    pub(super) live: Arc<Live>,
    pub(super) stop: StopFlag,
}

/// Connections of one server that may take another request: slot and tenancy, possibly outdated.
#[derive(Debug, Default)]
pub(super) struct Available {
    /// Without requests.
    pub(super) idle: Vec<(u32, u32)>,
    /// With room in their pipeline.
    pub(super) roomy: VecDeque<(u32, u32)>,
}

/// One generator thread.
pub(super) struct Thread {
    pub(super) job: Arc<Job>,
    pub(super) ring: Ring,
    pub(super) connections: Vec<Connection>,
    /// Free slots; the one last used is used next, while its memory is still in the cache.
    pub(super) free: Vec<u32>,
    pub(super) demand: Demand,
    pub(super) recorder: Recorder,
    /// Each server's open connections that may take another request.
    pub(super) available: Vec<Available>,
    /// The address of each server that was reached last, and is tried first.
    pub(super) preferred: Vec<usize>,
    /// Whose turn it is among the targets.
    pub(super) next_route: usize,
    /// What every connection reads its answers with, at its beginning.
    pub(super) reader: Reader,
    pub(super) deadlines: VecDeque<Deadline>,
    pub(super) random: Rng,
    pub(super) next_source: usize,
    /// Connections for requests: the most, and how many there are.
    pub(super) limit: usize,
    pub(super) busy: usize,
    pub(super) held: Held,
    epoch: Instant,
    cpu_before: Option<CpuTime>,
    cpu_after: Option<CpuTime>,
}

/// Runs thread number `number` from its ring's opening to its last interval.
pub(super) fn run(job: Arc<Job>, number: u32, ends: Ends) -> Result<Done, Error> {
    if let Some(cpu) = job.cpus.get(number as usize) {
        pin_thread(*cpu).map_err(|errno| {
            let step = format!("pin a thread to CPU {cpu}");
            Error::environment(step, errno.desc(), "give --pin none or CPUs that are allowed")
        })?;
    }
    ask_for_precise_timers();
    let Ends { sender, spare, begin, live, stop } = ends;
    let recorder = Recorder::new(job.window(), sender.clone(), spare, live);
    let mut thread = Thread::new(job, number, recorder)?;
    thread.open_held(number, &stop)?;
    // Both ends of this exchange live in the same scope: if the other is gone, the run is over.
    let _ = sender.send(Message::Ready(thread.ring.flags()));
    let Ok(epoch) = begin.recv() else {
        return Ok(Done::default());
    };
    thread.epoch = epoch;
    std::thread::sleep(epoch.saturating_duration_since(Instant::now()));
    thread.load(&stop)
}

impl Thread {
    fn new(job: Arc<Job>, number: u32, recorder: Recorder) -> Result<Self, Error> {
        let limit = job.connections(number);
        let slots = limit + job.held(number);
        let reader = Reader::new(&job.settings);
        let mut connections = Vec::new();
        connections.resize_with(slots, || Connection::free(reader));
        let last = u32::try_from(slots).map_err(|_| Error::usage("too many slots", "fewer"))?;
        let seed = job.settings.seed.wrapping_add(u64::from(number) << 32);
        Ok(Self {
            ring: Ring::new(slots, job.payload.bytes.clone(), job.addresses.clone())?,
            connections,
            free: (0..last).rev().collect(),
            demand: job.demand(number),
            recorder,
            available: job.servers.iter().map(|_| Available::default()).collect(),
            preferred: job.servers.iter().map(|server| server.addresses.start).collect(),
            next_route: number as usize % job.routes.len(),
            reader,
            deadlines: VecDeque::new(),
            random: Rng::with_seed(seed),
            next_source: number as usize,
            limit,
            busy: 0,
            held: Held::default(),
            epoch: Instant::now(),
            cpu_before: None,
            cpu_after: None,
            job,
        })
    }

    /// Nanoseconds since the run's beginning.
    pub(super) fn now_ns(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The loop: starts what is due, waits, handles completions.
    fn load(mut self, stop: &StopFlag) -> Result<Done, Error> {
        let mut completions = Vec::new();
        let mut now_ns = self.now_ns();
        loop {
            self.recorder.roll(now_ns);
            self.take_cpu_time(now_ns);
            let more_due = self.start_due(now_ns);
            let finished = self.demand.over() && self.recorder.in_flight() == 0;
            if finished || stop.is_set() {
                break;
            }
            let wait = if more_due { None } else { self.wait() };
            self.ring.turn(wait, &mut completions)?;
            now_ns = self.now_ns();
            for completion in completions.drain(..) {
                self.on_completion(completion, now_ns);
            }
            self.expire(now_ns);
        }
        Ok(self.finish(stop.is_set()))
    }

    /// Opens this thread's share of the held connections, or reports why that fails.
    fn open_held(&mut self, number: u32, stop: &StopFlag) -> Result<(), Error> {
        let wanted = self.job.held(number);
        let mut completions = Vec::new();
        let mut progress = (0, Instant::now());
        while self.held.open < wanted && !stop.is_set() {
            while self.held.open + self.held.opening < wanted
                && self.held.opening < STARTS_PER_TURN
                && self.held.failure.is_none()
            {
                self.open_held_one();
            }
            let wait = Some(Duration::from_nanos(HEARTBEAT_NS));
            self.ring.turn(wait, &mut completions)?;
            for completion in completions.drain(..) {
                let completion: Completion = completion;
                self.on_completion(completion, 0);
            }
            if self.held.open > progress.0 {
                progress = (self.held.open, Instant::now());
            }
            let waited = progress.1.elapsed();
            if waited > Duration::from_millis(self.job.settings.timeout_ms) {
                self.held.failure = Some("no connection within the timeout".into());
            }
            if let Some(cause) = self.held.failure.take() {
                let open = self.held.open;
                return Err(Error::Target {
                    step: format!("open {wanted} idle connections to {}", self.job.settings.target),
                    cause: format!("{cause} after {open} of them"),
                    hint: "start the server, raise its connection limit, or give a smaller --hold"
                        .into(),
                });
            }
        }
        Ok(())
    }

    /// How long the ring may wait; nothing if something is due now.
    fn wait(&self) -> Option<Duration> {
        let now_ns = self.now_ns();
        let spin_ns = self.job.settings.spin_us * 1000;
        let start_ns = self.demand.wake_ns().map(|at_ns| at_ns.saturating_sub(spin_ns));
        let deadline_ns = self.deadlines.front().map(|deadline| deadline.at_ns);
        let wait_ns = [start_ns, deadline_ns]
            .into_iter()
            .flatten()
            .map(|at_ns| at_ns.saturating_sub(now_ns))
            .fold(HEARTBEAT_NS, u64::min);
        (wait_ns > 0).then(|| Duration::from_nanos(wait_ns))
    }

    /// CPU time counts from the warm-up's end to the last start.
    fn take_cpu_time(&mut self, now_ns: u64) {
        if self.cpu_before.is_none() && now_ns >= self.job.bounds.warmup_ns {
            self.cpu_before = Some(CpuTime::of_thread());
        }
        if self.cpu_after.is_none() && self.demand.over() {
            self.cpu_after = Some(CpuTime::of_thread());
        }
    }

    fn finish(mut self, stopped: bool) -> Done {
        let now_ns = self.now_ns();
        let unfinished = |connection: &Connection| {
            connection.requests.iter().filter(|request| request.start.measured).count() as u64
        };
        let cut_off: u64 = self.connections.iter().map(unfinished).sum();
        self.recorder.unfinished(cut_off + self.demand.waiting());
        self.recorder.roll(now_ns);
        self.recorder.finish();
        let cpu_after = self.cpu_after.unwrap_or_else(CpuTime::of_thread);
        Done {
            cpu: cpu_after.since(self.cpu_before.unwrap_or(cpu_after)),
            end_ns: self.end_ns(now_ns, stopped),
        }
    }

    /// Where the measured time of this thread ended.
    fn end_ns(&self, now_ns: u64, stopped: bool) -> u64 {
        let planned_ns = self.demand.end_ns().unwrap_or(u64::MAX);
        if stopped && !self.demand.over() {
            return now_ns.min(planned_ns);
        }
        match self.job.settings.load {
            Load::Open { .. } => planned_ns,
            // Ended by the number of requests, a closed loop ends with the last of them.
            Load::Closed { .. } => planned_ns.min(self.recorder.last_end_ns()),
        }
    }
}
