//! A run: turns events into output.
//!
//! Owns the totals of the run. Decides nothing about workers: the supervisor does.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clusterlb::topology::CpuPlan;
use clusterlb::{
    AcceptMechanism, Cluster, ClusterCounts, ClusterSettings, Companion, EngineDecision, Error,
    Event, Finished, Policy, Result, RunningCompanion, Signal, SupervisorEvent, SupervisorHandle,
    WorkerHandle, WorkerId,
};
use clusterlb_sys::passed::Passed;

use super::admin::{self, Admin, Doors, Run as Observed};
use super::assembly::{cluster, supervisor};
use super::companion::in_words;
use super::console::Console;
use super::dispatching::Dispatching;
use super::event::ConsoleEvent;
use super::failure;
use super::note_limit::NoteLimit;
use super::printer::{Destination, Printer};
use super::recycle::Recycling;
use super::reloading::Reloading;
use super::service_manager::ServiceManager;
use super::settings::{Program, Settings};
use super::start_errors::{in_words_of_the_command, still_waiting};
use super::summary::{Summary, WorkerSummary};
use super::unread_messages::UnreadMessages;

/// Longest time for a companion to end after the run, if the grace period is longer.
const COMPANION_GRACE_MAX: Duration = Duration::from_secs(5);
/// Longer messages are shown as null: parsed, they need many times the memory of their bytes.
const MESSAGE_BYTES_SHOWN_MAX: usize = 1024 * 1024;

/// Runs to the end. With a prefix, the printer prints the output of workers. Returns the signal
/// that cut the end short.
///
/// # Errors
/// An address is unavailable, the machine refuses what is needed, or the run could not continue. It
/// leaves nothing behind.
pub(super) fn run(
    settings: &Settings,
    plan: &CpuPlan,
    decision: &EngineDecision,
    dispatching: &Dispatching,
    passed: Vec<Passed>,
    console: Console,
    printer: &Printer,
) -> Result<Option<Signal>> {
    // A busy address is an error before anything is started.
    let doors = Doors::open(&settings.admin, &settings.agent_check, settings.admin_allows_actions)?;
    let feed = console.feed();
    let cluster = cluster(settings)?;
    let given = adopt(&cluster, passed)?;
    let dispatching = &dispatching.with_inherited(&given);
    let mut supervisor = supervisor(cluster.clone(), settings, plan);
    let handle = supervisor.handle()?;
    let listeners = settings.listen.len();
    let manager = ServiceManager::from_environment(listeners, &cluster, &handle, given)?;
    let reporter = Reporter::new(settings, plan, decision, dispatching, manager, console, printer);
    let reporter = Arc::new(Mutex::new(reporter));
    let told = Arc::clone(&reporter);
    let recycling = recycling(settings, &handle, &reporter)?;
    let companion = companion(settings, &cluster, &handle, &reporter)?;
    let told_of_reload = Arc::clone(&reporter);
    let mut reloading = Reloading::new(settings, cluster.clone(), move |text| {
        lock(&told_of_reload).note(text);
    });
    let supervisor = supervisor.before_reload(move || reloading.prepare());
    let observed = Observed::new(
        handle,
        cluster,
        feed,
        admin::config(settings, plan, decision),
        decision.clone(),
        plan.workers.len(),
    );
    let observed = Arc::new(observed);
    for address in doors.addresses() {
        let address = address.to_owned();
        lock(&reporter).console.emit(ConsoleEvent::Admin { address });
    }
    for address in doors.agents() {
        let address = address.to_owned();
        lock(&reporter).console.emit(ConsoleEvent::AgentCheck { address });
    }
    let observer = Arc::clone(&observed);
    let supervisor = supervisor.on_event(move |event| {
        observer.on_event(event);
        lock(&told).report(event);
    });
    let admin = (!doors.is_empty()).then(|| Admin::start(doors, observed)).transpose()?;
    let finished = supervisor.run();
    drop(recycling);
    if let (Some(companion), Ok(Finished { forced_by: None, .. })) = (companion, &finished) {
        companion.end_within(settings.grace.min(COMPANION_GRACE_MAX));
    }
    lock(&reporter).emit_summary();
    // Followers have got everything; the cluster has no other owner.
    drop(admin);
    drop(lock(&reporter).manager.take());
    let finished = finished
        .map_err(|error| in_words_of_the_command(error, settings, lock(&reporter).online))?;
    Ok(finished.forced_by)
}

/// Gives the cluster the sockets that the service manager passed. A descriptor that is not a
/// listening socket of this machine is closed.
fn adopt(cluster: &Cluster, passed: Vec<Passed>) -> Result<Vec<String>> {
    let mut addresses = Vec::new();
    for one in passed {
        match cluster.adopt(one.socket) {
            Ok(address) => addresses.push(address),
            Err(Error::Listen { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(addresses)
}

/// CPUs to which only one process of this run is pinned, and that is a worker.
fn own_cpus(plan: &CpuPlan) -> Vec<usize> {
    let workers = || plan.workers.iter().flatten().copied();
    let is_own = |cpu: &usize| {
        plan.primary != Some(*cpu) && workers().filter(|other| other == cpu).count() == 1
    };
    workers().filter(is_own).collect()
}

/// The thread that replaces workers at their limits, if there is a limit.
fn recycling(
    settings: &Settings,
    handle: &SupervisorHandle,
    reporter: &Arc<Mutex<Reporter>>,
) -> Result<Option<Recycling>> {
    if !settings.recycle.is_any() {
        return Ok(None);
    }
    let reporter = Arc::clone(reporter);
    let tell = move |id: WorkerId, reason: String| {
        lock(&reporter).console.emit(ConsoleEvent::Recycle { id, reason });
    };
    Recycling::start(settings.recycle.clone(), handle.clone(), tell).map(Some)
}

/// The program's own primary branch, if requested.
fn companion(
    settings: &Settings,
    cluster: &Cluster,
    handle: &SupervisorHandle,
    reporter: &Arc<Mutex<Reporter>>,
) -> Result<Option<RunningCompanion>> {
    let Some(program) = &settings.program else { return Ok(None) };
    let Some(arguments) = &program.companion else { return Ok(None) };
    let reporter = Arc::clone(reporter);
    let mut companion = Companion::new(arguments.clone()).on_event(move |event| {
        lock(&reporter).note(in_words(&event));
    });
    for (name, value) in &settings.worker_environment.environment {
        companion = companion.variable(name, value);
    }
    if let Some(script) = &program.script {
        companion = companion.script(script);
    }
    companion.start(cluster.clone(), handle.clone()).map(Some)
}

/// Prints events and keeps the totals.
struct Reporter {
    console: Console,
    manager: Option<ServiceManager>,
    printer: Printer,
    policy: Policy,
    dispatching: Dispatching,
    /// How workers accept, if they do.
    accept: Option<AcceptMechanism>,
    engine: EngineDecision,
    /// Slots.
    workers: usize,
    /// The data path's CPU.
    cpu: Option<usize>,
    /// CPUs of a single worker.
    own_cpus: Vec<usize>,
    summary: Summary,
    /// The program, and the time limit for its start.
    program: Option<Program>,
    start_limit: Duration,
    /// The log goes to a file that can be reopened.
    has_log_file: bool,
    /// The scheduling rules in words, used only to compare.
    rules: String,
    /// Workers accept and report no counts.
    uncounted: bool,
    /// A worker has reported that it runs.
    online: bool,
    hung: BTreeSet<WorkerId>,
    limit: NoteLimit,
    begun: Instant,
    unread: UnreadMessages,
    /// A program reads the messages of the workers.
    has_companion: bool,
    /// The summary, held until the companion has ended: it is the last line.
    last: Option<ConsoleEvent>,
}

/// Why a signal has had no effect.
fn unused(signal: Signal) -> String {
    let what = match signal {
        Signal::SIGTTOU => "leaves the last worker",
        _ => "changes nothing here",
    };
    format!(
        "{signal} {what}: SIGHUP replaces the workers, SIGTTIN adds one, SIGTTOU takes one away, \
         SIGTERM ends the run"
    )
}

fn lock(reporter: &Mutex<Reporter>) -> MutexGuard<'_, Reporter> {
    reporter.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reporter {
    /// For a run that has not started.
    fn new(
        settings: &Settings,
        plan: &CpuPlan,
        decision: &EngineDecision,
        dispatching: &Dispatching,
        manager: ServiceManager,
        console: Console,
        printer: &Printer,
    ) -> Self {
        let none = settings.policy == Policy::None;
        Self {
            console,
            manager: Some(manager),
            printer: printer.clone(),
            policy: settings.policy,
            dispatching: dispatching.clone(),
            accept: none.then_some(settings.accept),
            engine: decision.clone(),
            workers: plan.workers.len(),
            cpu: plan.primary,
            own_cpus: own_cpus(plan),
            summary: Summary::default(),
            uncounted: dispatching.is_uncounted,
            program: settings.program.clone(),
            start_limit: settings.start_limit,
            has_log_file: settings.has_log_file,
            rules: format!("{} {:?}", settings.policy, settings.scheduling),
            online: false,
            hung: BTreeSet::new(),
            limit: NoteLimit::default(),
            begun: Instant::now(),
            unread: UnreadMessages::default(),
            has_companion: settings.has_companion(),
            last: None,
        }
    }

    /// Prints the summary, unless that is done.
    fn emit_summary(&mut self) {
        if let Some(summary) = self.last.take() {
            self.console.emit(summary);
        }
    }

    fn report(&mut self, event: &SupervisorEvent) {
        if let Some(manager) = &mut self.manager {
            manager.on_event(event);
        }
        if let SupervisorEvent::Cluster(event) = event {
            return self.report_of_cluster(event);
        }
        if let SupervisorEvent::SignalUnused { signal: Signal::SIGUSR1 } = event
            && self.has_log_file
        {
            self.printer.reopen();
            return self.note("the log file is opened again".into());
        }
        if let SupervisorEvent::Scaled { to, .. } = event {
            self.workers = usize::from(*to);
        }
        if let Some(own) = self.in_our_words(event) {
            match own {
                ConsoleEvent::Summary(_) if self.has_companion => self.last = Some(own),
                own => self.console.emit(own),
            }
        }
    }

    /// Whether the scheduling rules changed, as far as they are printed.
    fn has_other_rules(&mut self, settings: &ClusterSettings) -> bool {
        let rules = format!("{} {:?}", settings.policy, settings.scheduling);
        std::mem::replace(&mut self.rules, rules.clone()) != rules
    }

    fn note(&mut self, text: String) {
        self.console.emit(ConsoleEvent::Note { text });
    }

    /// The supervisor's event as one of ours; some have none.
    fn in_our_words(&mut self, event: &SupervisorEvent) -> Option<ConsoleEvent> {
        let note = |text: String| ConsoleEvent::Note { text };
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Some(match event.clone() {
            SupervisorEvent::Listening { listener, address } => {
                let (dispatch, dispatch_form) = self.dispatching.at(&address);
                self.dispatching.note(&address).into_iter().for_each(|text| self.note(text));
                ConsoleEvent::Listening {
                    address,
                    listener,
                    policy: self.policy,
                    dispatch,
                    dispatch_form,
                    accept: self.accept,
                    engine: self.engine.kind.name(),
                    engine_reason: self.engine.reason.clone(),
                    feature_level: self.engine.level,
                    workers: self.workers,
                    pid: std::process::id(),
                    cpu: self.cpu,
                }
            }
            SupervisorEvent::Waiting { workers } => {
                let names: Vec<String> = workers.iter().map(ToString::to_string).collect();
                let (program, limit) = (self.program.as_ref(), self.start_limit);
                note(still_waiting(&names.join(", "), program, limit))
            }
            SupervisorEvent::Silent { worker } => {
                note(format!("worker {worker} serves nothing; the others do not wait for it"))
            }
            SupervisorEvent::Respawn { worker, delay, .. } => {
                ConsoleEvent::Respawn { id: worker, delay_ms: milliseconds(delay) }
            }
            SupervisorEvent::SpawnFailed { error, retry: Some(retry), .. } => {
                let (hint, retry_ms) = (error.hint(), milliseconds(retry));
                note(format!("{error}; {hint}; trying again in {retry_ms} ms"))
            }
            SupervisorEvent::GaveUp { slot, worker, reason } => {
                ConsoleEvent::GiveUp { slot, id: worker, reason }
            }
            SupervisorEvent::Reloading { workers } => ConsoleEvent::Reloading { ids: workers },
            SupervisorEvent::ReloadQueued => {
                note("the workers are replaced after what is under way".into())
            }
            SupervisorEvent::Reloaded => ConsoleEvent::Reloaded,
            SupervisorEvent::ReloadStopped { reason } => {
                note(format!("replacing stopped: {reason}; the other workers stay as they are"))
            }
            SupervisorEvent::Scaled { from, to } => ConsoleEvent::Scaled { from, to },
            SupervisorEvent::SignalUnused { signal } => note(unused(signal)),
            SupervisorEvent::Stopping { reason, delay } => {
                ConsoleEvent::Stopping { reason, delay_ms: milliseconds(delay) }
            }
            SupervisorEvent::Draining { reason, grace } => {
                ConsoleEvent::Draining { reason, grace_ms: milliseconds(grace) }
            }
            SupervisorEvent::Killed { workers, reason } => {
                ConsoleEvent::Kill { ids: workers, reason }
            }
            SupervisorEvent::ConnectionsReset { count } => note(format!(
                "{count} connections were reset that waited for a worker whose slot stays empty; \
                 with CAP_BPF, or net.ipv4.tcp_migrate_req=1, others would have got them"
            )),
            SupervisorEvent::Ended { counts } => ConsoleEvent::Summary(self.close(&counts)),
            _ => return None,
        })
    }

    fn note_left_out(&mut self, worker: WorkerId, count: u64) {
        if count > 0 {
            self.note(format!("worker {worker}: {count} more notes like these are left out"));
        }
    }

    fn report_of_cluster(&mut self, event: &Event) {
        for (worker, count) in self.limit.overdue(self.begun.elapsed()) {
            self.note_left_out(worker, count);
        }
        match event {
            Event::Setup { settings } if self.has_other_rules(settings) => {
                self.policy = settings.policy;
                let limits = &settings.scheduling.limits;
                self.console.emit(ConsoleEvent::Rescheduled {
                    policy: settings.policy,
                    max_inflight: limits.inflight_max_under(settings.policy),
                    overload_factor: limits.overload_factor.under(settings.policy),
                });
            }
            Event::Fork { worker } => {
                self.read_pipes(worker);
                let (id, pid, cpu) = (worker.id(), worker.pid(), worker.cpu());
                self.console.emit(ConsoleEvent::Fork { id, pid, cpu });
            }
            Event::Online { worker } => {
                self.online = true;
                self.console.emit(ConsoleEvent::Online { id: worker.id(), pid: worker.pid() });
            }
            Event::Refused { worker, error }
                if self.limit.admits(worker.id(), self.begun.elapsed()) =>
            {
                self.note(format!("worker {}: {error}", worker.id()));
            }
            Event::Message { worker, message } => {
                let (id, pid) = (worker.id(), worker.pid());
                let is_short = message.bytes().len() <= MESSAGE_BYTES_SHOWN_MAX;
                let message = is_short.then(|| message.value().ok()).flatten().unwrap_or_default();
                let unread = match self.has_companion {
                    true => None,
                    false => self.unread.note(&message),
                };
                self.console.emit(ConsoleEvent::Message { id, pid, message });
                unread.into_iter().for_each(|text| self.note(text));
            }
            Event::Exit { worker, ending, counts } => {
                let (id, pid) = (worker.id(), worker.pid());
                self.hung.remove(&id);
                let left_out = self.limit.forget(id);
                self.note_left_out(id, left_out);
                self.summary.enter(WorkerSummary::new(id, pid, worker.cpu(), *counts));
                self.console.emit(ConsoleEvent::exit(worker, *ending, counts.aborted));
            }
            Event::Hung { worker, taken_back } => {
                let (id, pid, taken_back) = (worker.id(), worker.pid(), *taken_back);
                self.hung.insert(id);
                self.console.emit(ConsoleEvent::Hung { id, pid, taken_back });
            }
            Event::Recovered { worker } => {
                let (id, pid) = (worker.id(), worker.pid());
                if self.hung.remove(&id) {
                    self.console.emit(ConsoleEvent::Recovered { id, pid });
                }
            }
            // Other failures end the run, which reports them, or a worker, which is killed.
            Event::Error { worker: None, error } => {
                if matches!(**error, Error::Environment { .. }) {
                    self.note(format!("{error}; {}", failure::remedy(error)));
                }
            }
            _ => self.report_outlier(event),
        }
    }

    fn report_outlier(&mut self, event: &Event) {
        match event {
            Event::Outlier { worker, ejected } => {
                let (id, pid) = (worker.id(), worker.pid());
                let ejected_ms =
                    ejected.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
                self.console.emit(ConsoleEvent::Outlier { id, pid, ejected_ms });
            }
            Event::OutlierEnded { worker } => {
                self.console
                    .emit(ConsoleEvent::OutlierEnded { id: worker.id(), pid: worker.pid() });
            }
            _ => {}
        }
    }

    /// Reads a worker's output from its pipes, if it has any.
    fn read_pipes(&self, worker: &WorkerHandle) {
        if let Some(pipe) = worker.take_stdout() {
            self.printer.print_lines_of(worker.id(), Destination::Output, pipe);
        }
        if let Some(pipe) = worker.take_stderr() {
            self.printer.print_lines_of(worker.id(), Destination::Errors, pipe);
        }
    }

    fn close(&mut self, counts: &ClusterCounts) -> Summary {
        self.summary.crowded(&self.own_cpus).into_iter().for_each(|text| self.note(text));
        let mut summary = std::mem::take(&mut self.summary);
        // Counts of what workers accepted come from the workers.
        let own: u64 = summary.workers.iter().map(|one| one.own).sum();
        summary.accepted = counts.accepted + own;
        summary.stolen = counts.stolen;
        summary.refused = counts.refused;
        summary.redispatched = counts.redispatched;
        summary.taken_back = counts.taken_back;
        summary.dropped = counts.dropped;
        summary.pauses = counts.pauses;
        summary.paused_ms = counts.paused_ns / 1_000_000;
        summary.coalesced = counts.coalesced;
        summary.steered = counts.steered;
        summary.skips = counts.skips;
        summary.uncounted = self.uncounted;
        summary.close();
        summary
    }
}
