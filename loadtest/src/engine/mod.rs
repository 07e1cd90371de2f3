//! Carries a run out: starts the threads, gathers what they see, sums it up.
//!
//! The calling thread does everything else: merging, printing (through an observer), watching for
//! a target that is gone. The generator threads share only a stop flag and live counters.

mod connection;
mod demand;
mod encrypted;
mod events;
mod job;
mod payload;
mod recorder;
mod resolve;
mod starting;
mod thread;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::collect::{Collector, Interval, Row};
use crate::environment::{Environment, ListenLosses};
use crate::error::Error;
use crate::report::{Parts, Report};
use crate::settings::Settings;
use crate::sys::process::CpuTime;
use crate::verdict::{GiveUp, Standing, Watch};
use job::Job;
use recorder::Live;
use thread::Ends;

/// How often the observer is called and the target watched.
const TICK_MS: u64 = 100;
/// Between the moment when all threads are ready and the first start: time to wake up.
const BEGIN_MS: u64 = 5;

/// Ends a run early when set; clones share the flag.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Ends the run: no more starts, and what is under way counts as unfinished.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// True once it was set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where a run stands, for a live view. Counters include the warm-up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Since the warm-up's beginning.
    pub elapsed: Duration,
    /// Requests begun.
    pub started: u64,
    /// Requests answered.
    pub completed: u64,
    /// Requests failed.
    pub failed: u64,
    /// Measured starts more than a millisecond late.
    pub late: u64,
    /// Requests under way.
    pub in_flight: u64,
}

/// Follows a run. Called on the thread that called [`measure`].
pub trait Observer {
    /// The run was prepared; notes may be printed before it begins.
    fn prepared(&mut self, environment: &Environment) {
        let _ = environment;
    }

    /// All threads are ready; the measured time begins at this instant.
    fn began(&mut self, measured_from_unix_ms: u64) {
        let _ = measured_from_unix_ms;
    }

    /// A second is complete.
    fn second(&mut self, interval: &Interval, row: &Row) {
        let _ = (interval, row);
    }

    /// Called about ten times a second.
    fn tick(&mut self, progress: &Progress) {
        let _ = progress;
    }
}

/// Observes nothing.
impl Observer for () {}

/// What threads report.
#[derive(Debug)]
enum Message {
    /// Held connections are open; these ring flags are in force.
    Ready(&'static str),
    Interval(Box<Interval>),
    Done(Result<Done, Error>),
}

/// What a thread reports at its end.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    cpu: CpuTime,
    end_ns: u64,
}

/// The calling thread's ends of what a generator thread shares.
struct Generator {
    begin: Sender<Instant>,
    spare: Sender<Box<Interval>>,
    live: Arc<Live>,
}

/// Carries out a run and returns its results. An `Err` means that it could not begin or had to be
/// broken off; a target that does not answer is reported in [`Report::failure`] instead.
pub fn measure(
    settings: &Settings,
    stop: &StopFlag,
    observer: &mut dyn Observer,
) -> Result<Report, Error> {
    let (job, environment) = Job::prepare(settings, &mut || {
        observer.tick(&Progress::default());
        stop.is_set()
    })?;
    observer.prepared(&environment);
    let job = Arc::new(job);
    // A failing thread ends the others, but leaves the caller's flag alone.
    let halt = StopFlag::default();
    std::thread::scope(|scope| {
        let (sender, messages) = channel();
        let mut generators = Vec::new();
        let mut handles = Vec::new();
        for number in 0..job.settings.threads {
            let (generator, handle) = start(scope, &job, number, &sender, &halt)?;
            generators.push(generator);
            handles.push(handle);
        }
        drop(sender);
        let mut run = Run {
            job: &job,
            stop,
            halt: &halt,
            observer,
            generators,
            messages,
            collector: Collector::new(handles.len()),
            done: Vec::new(),
            error: None,
            given_up: None,
            next_spare: 0,
        };
        let outcome = run.carry_out(environment);
        halt.set();
        // Threads still waiting for the beginning end when their channel does.
        drop(run);
        for handle in handles {
            if let Err(panic) = handle.join() {
                std::panic::resume_unwind(panic);
            }
        }
        outcome
    })
}

fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    job: &Arc<Job>,
    number: u32,
    sender: &Sender<Message>,
    halt: &StopFlag,
) -> Result<(Generator, ScopedJoinHandle<'scope, ()>), Error> {
    let (begin, begin_end) = channel();
    let (spare, spare_end) = channel();
    let live = Arc::new(Live::default());
    let ends = Ends {
        sender: sender.clone(),
        spare: spare_end,
        begin: begin_end,
        live: Arc::clone(&live),
        stop: halt.clone(),
    };
    let (job, sender) = (Arc::clone(job), sender.clone());
    let handle = std::thread::Builder::new()
        .name(format!("load-{number}"))
        .spawn_scoped(scope, move || {
            let done = thread::run(job, number, ends);
            // The run is over if the receiver is gone.
            let _ = sender.send(Message::Done(done));
        })
        .map_err(|error| Error::system("start a generator thread", crate::error::errno_of(&error)));
    let generator = Generator { begin, spare, live };
    match handle {
        Ok(handle) => Ok((generator, handle)),
        Err(error) => {
            halt.set();
            Err(error)
        }
    }
}

/// A run under way, seen from the calling thread.
struct Run<'a> {
    job: &'a Job,
    stop: &'a StopFlag,
    halt: &'a StopFlag,
    observer: &'a mut dyn Observer,
    generators: Vec<Generator>,
    messages: Receiver<Message>,
    collector: Collector,
    done: Vec<Done>,
    error: Option<Error>,
    given_up: Option<GiveUp>,
    next_spare: usize,
}

impl Run<'_> {
    fn carry_out(&mut self, mut environment: Environment) -> Result<Report, Error> {
        environment.ring_flags = self.await_ready()?.to_owned();
        let losses = ListenLosses::now();
        let epoch = Instant::now() + Duration::from_millis(BEGIN_MS);
        let started_unix_ms = unix_ms() + BEGIN_MS;
        self.observer.began(started_unix_ms + self.job.settings.warmup_ms);
        for generator in &self.generators {
            // A thread that is gone has reported why, or panics when it is joined.
            let _ = generator.begin.send(epoch);
        }
        let interrupted = self.follow(epoch);
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        let observer = &mut *self.observer;
        self.collector.finish(&mut |interval, row| observer.second(interval, row));
        let losses = ListenLosses::now().since(losses);
        environment.listen_overflows = losses.overflows;
        environment.listen_drops = losses.drops;
        let end_ns = self.done.iter().map(|done| done.end_ns).max().unwrap_or(0);
        let total = self.collector.total().clone();
        let collector = std::mem::replace(&mut self.collector, Collector::new(0));
        let (rows, rows_cut) = collector.into_rows();
        Ok(Report::of(Parts {
            settings: self.job.settings.clone(),
            environment,
            started_unix_ms,
            interrupted,
            given_up: self.given_up,
            measured_ns: end_ns.saturating_sub(self.job.bounds.warmup_ns),
            cpu: self.done.iter().map(|done| done.cpu).collect(),
            total,
            rows,
            rows_cut,
        }))
    }

    /// Waits until every thread has its ring and its held connections.
    fn await_ready(&mut self) -> Result<&'static str, Error> {
        let mut flags = "";
        let mut ready = 0;
        while ready < self.generators.len() {
            match self.messages.recv_timeout(Duration::from_millis(TICK_MS)) {
                Ok(Message::Ready(granted)) => {
                    flags = granted;
                    ready += 1;
                }
                Ok(Message::Done(Err(error))) => return Err(error),
                Ok(Message::Done(Ok(_)) | Message::Interval(_)) => {}
                Err(RecvTimeoutError::Timeout) => {
                    self.observer.tick(&Progress::default());
                    if self.stop.is_set() {
                        self.halt.set();
                    }
                }
                // Every thread has panicked; joining them shows it.
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        Ok(flags)
    }

    /// Gathers until every thread is done. Returns true if the caller ended the run.
    fn follow(&mut self, epoch: Instant) -> bool {
        let mut watch = Watch::default();
        let mut next_tick = epoch;
        let mut interrupted = false;
        while self.done.len() < self.generators.len() && self.error.is_none() {
            let until_tick = next_tick.saturating_duration_since(Instant::now());
            match self.messages.recv_timeout(until_tick) {
                Ok(message) => self.on_message(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if Instant::now() < next_tick {
                continue;
            }
            next_tick = Instant::now() + Duration::from_millis(TICK_MS);
            let (progress, standing) = self.standing(epoch);
            self.observer.tick(&progress);
            if self.stop.is_set() {
                interrupted = true;
                self.halt.set();
            }
            if let Some(reason) = watch.look(standing).filter(|_| !self.halt.is_set()) {
                self.given_up = Some(reason);
                self.halt.set();
            }
        }
        interrupted
    }

    fn on_message(&mut self, message: Message) {
        match message {
            Message::Interval(interval) => {
                let observer = &mut *self.observer;
                let mut show = |whole: &Interval, row: &Row| observer.second(whole, row);
                let spare = self.collector.absorb(interval, &mut show);
                // In turn, so that each gets back as many as it hands over.
                self.next_spare = (self.next_spare + 1) % self.generators.len();
                if let Some(mut spare) = spare {
                    spare.clear();
                    // A thread that is done needs none.
                    let _ = self.generators[self.next_spare].spare.send(spare);
                }
            }
            Message::Done(Ok(done)) => self.done.push(done),
            Message::Done(Err(error)) => {
                self.halt.set();
                self.error.get_or_insert(error);
            }
            Message::Ready(_) => {}
        }
    }

    fn standing(&self, epoch: Instant) -> (Progress, Standing) {
        let sum = |counter: fn(&Live) -> &AtomicU64| -> u64 {
            let each = self.generators.iter().map(|generator| counter(&generator.live));
            each.map(|value| value.load(Ordering::Relaxed)).sum()
        };
        let elapsed = Instant::now().saturating_duration_since(epoch);
        let progress = Progress {
            elapsed,
            started: sum(|live| &live.started),
            completed: sum(|live| &live.completed),
            failed: sum(|live| &live.failed),
            late: sum(|live| &live.late),
            in_flight: sum(|live| &live.in_flight),
        };
        let standing = Standing {
            elapsed_ns: u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX),
            completed: progress.completed,
            failed: progress.failed,
            refused: sum(|live| &live.refused),
            in_flight: progress.in_flight,
        };
        (progress, standing)
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
