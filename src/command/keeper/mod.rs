//! A run of the command: so many workers, kept alive, until a signal ends them in order.
//!
//! Owns the policy of keeping: who is replaced and when, how long a start, a hang and the end may
//! take, and the books. It does nothing to workers by itself but what any program can do with a
//! [`Cluster`].

mod ending;
mod event;
mod hearing;
mod lines;
mod printer;
mod restart;
mod rolling;
mod summary;
mod unready;

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

pub(super) use event::Event;
pub(super) use printer::{Printer, Target};
pub(super) use summary::{Summary, WorkerSummary};

use crate::command::settings::{MessageFormat, Program, Settings, WorkerEnvironment};
use crate::command::signals::{self, Terminal, Wish};
use clusterlb::ListenerId;
use clusterlb::protocol::control::Serialization;
use clusterlb::topology::CpuPlan;
use clusterlb::{Cluster, Events, ForkOptions, InspectPort, WorkerHandle};
use clusterlb::{Dialect, Policy};
use clusterlb::{Error, Result};
use clusterlb_sys::clock::monotonic_ns;
use clusterlb_sys::probe::FeatureLevel;
use clusterlb_sys::process::reap_orphans;
use clusterlb_sys::signal::{Received, Signals};
use restart::Budget;
use rolling::Rolling;

/// How long after the grace period a worker that does not end by itself is left alone.
const KILL_SLACK_NS: u64 = 250_000_000;
/// A signal that follows the first this closely is its echo, not a second one.
const ECHO_NS: u64 = 50_000_000;
/// How soon a worker that could not be started is tried again.
const RETRY_NS: u64 = 1_000_000_000;

/// A place for a worker.
#[derive(Debug, Default)]
struct Place {
    occupant: Occupant,
    budget: Budget,
    /// Workers that ended here before the run had begun to serve.
    early_ends: u32,
}

#[derive(Debug, Default)]
enum Occupant {
    /// Nobody, and nobody will come.
    #[default]
    Nobody,
    /// Nobody, until this moment.
    Awaited { at_ns: u64 },
    /// A worker.
    Alive(Ward),
}

/// A worker as the keeper sees it.
#[derive(Debug)]
struct Ward {
    worker: WorkerHandle,
    born_ns: u64,
    /// What it serves, or has served.
    served: BTreeSet<String>,
    /// At how many of them it is ready.
    wanted: usize,
    /// It has been told to leave, or has left, and is killed at this moment.
    cut_ns: Option<u64>,
    /// It has been killed by us.
    killed: bool,
    /// Since when it has hung.
    hung_since_ns: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The first workers are on their way.
    Starting {
        until_ns: u64,
    },
    Serving,
    /// The workers get what has been accepted and finish what they have.
    Draining,
    /// Everybody has been killed.
    Killing,
}

/// How a run ended.
#[derive(Debug)]
pub(super) struct Outcome {
    /// The books.
    pub summary: Summary,
    /// The signal that cut the end short.
    pub forced_by: Option<Signal>,
    /// Why the run could not go on.
    pub failure: Option<Error>,
}

/// A run.
pub(super) struct Keeper<'a> {
    settings: &'a Settings,
    plan: &'a CpuPlan,
    level: FeatureLevel,
    on_event: &'a mut dyn FnMut(Event),
    printer: &'a Printer,
    signals: Signals,
    terminal: Terminal,
    cluster: Cluster,
    events: Events,
    /// What was opened and has not been told: first in the order of `--listen`.
    addresses: Vec<(ListenerId, String)>,
    /// What is or has been among these.
    known: BTreeSet<ListenerId>,
    /// Workers are being replaced.
    rolling: Option<Rolling>,
    /// Why a worker could not have an address.
    refusal: Option<Arc<Error>>,
    places: Vec<Place>,
    stage: Stage,
    stopped_ns: u64,
    cut_ns: Option<u64>,
    summary: Summary,
    forced_by: Option<Signal>,
    failure: Option<Error>,
    /// A worker has ended with an error and stayed dead.
    lost_worker: bool,
    /// A worker has stayed dead, so there are fewer than there are sockets for.
    shrunk: bool,
    /// A worker has called home.
    online: bool,
}

impl std::fmt::Debug for Keeper<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("stage", &self.stage).finish_non_exhaustive()
    }
}

impl<'a> Keeper<'a> {
    /// Opens the listeners and starts the workers. What these print goes by way of the printer, if
    /// it shall be prefixed.
    ///
    /// # Errors
    /// An address is not to be had, or the machine refuses what is needed. Nothing is left behind.
    pub(super) fn start(
        settings: &'a Settings,
        plan: &'a CpuPlan,
        level: FeatureLevel,
        on_event: &'a mut dyn FnMut(Event),
        printer: &'a Printer,
    ) -> Result<Self> {
        // Blocked before there are threads, so that nobody else receives them.
        let signals = signals::receive()?;
        let cluster = cluster(settings, plan)?;
        let events = cluster.events()?;
        // Before there are workers, so that a busy port is told at once.
        let addresses = settings.listen.iter().map(|address| cluster.hold(address));
        let addresses = addresses.collect::<Result<_>>()?;
        let addresses: Vec<(ListenerId, String)> = addresses;
        let until_ns = monotonic_ns().saturating_add(nanoseconds(settings.start_limit));
        let mut keeper = Self {
            settings,
            plan,
            level,
            on_event,
            printer,
            signals,
            terminal: Terminal::look(),
            cluster,
            events,
            known: addresses.iter().map(|(listener, _)| *listener).collect(),
            addresses,
            rolling: None,
            refusal: None,
            places: plan.workers.iter().map(|_| Place::default()).collect(),
            stage: Stage::Starting { until_ns },
            stopped_ns: 0,
            cut_ns: None,
            summary: Summary::default(),
            forced_by: None,
            failure: None,
            lost_worker: false,
            shrunk: false,
            online: false,
        };
        for place in 0..keeper.places.len() {
            keeper.fork(place, None)?;
        }
        Ok(keeper)
    }

    fn tell(&mut self, event: Event) {
        (self.on_event)(event);
    }

    fn fork(&mut self, place: usize, predecessor: Option<&WorkerHandle>) -> Result<()> {
        let number = u16::try_from(place).expect("workers are bounded");
        let mut options = ForkOptions::default().place(number);
        for (name, value) in &self.settings.worker_environment.environment {
            options = options.variable(name, value);
        }
        if let Some(predecessor) = predecessor {
            options = options.successor_of(predecessor);
        }
        let worker = self.cluster.fork_with(options)?;
        if let Some(pipe) = worker.take_stdout() {
            self.printer.attend(worker.id(), Target::Output, pipe);
        }
        if let Some(pipe) = worker.take_stderr() {
            self.printer.attend(worker.id(), Target::Errors, pipe);
        }
        self.places[place].occupant = Occupant::Alive(Ward {
            worker,
            born_ns: monotonic_ns(),
            served: BTreeSet::new(),
            wanted: self.settings.listen.len().max(1),
            cut_ns: None,
            killed: false,
            hung_since_ns: None,
        });
        Ok(())
    }

    /// Starts a successor; if that fails for want of something, tries again later.
    fn fork_again(&mut self, place: usize) -> Result<()> {
        match self.fork(place, None) {
            Err(Error::System { step, source: Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE }) => {
                let at_ns = monotonic_ns() + RETRY_NS;
                self.places[place].occupant = Occupant::Awaited { at_ns };
                self.tell(Event::Note { text: format!("{step} failed; trying again in 1 s") });
                Ok(())
            }
            result => result,
        }
    }

    /// Runs until the end and gives the books.
    ///
    /// # Errors
    /// The cluster itself failed. Workers are ended all the same.
    pub(super) fn run(mut self) -> Result<Outcome> {
        while !self.is_over() {
            self.wait()?;
            while let Some(received) = self.signals.next_signal()? {
                self.on_signal(received);
            }
            while let Some(event) = self.events.try_next() {
                self.hear(event);
            }
            self.attend_to_time()?;
        }
        self.close_books()
    }

    fn on_signal(&mut self, received: Received) {
        match self.terminal.wish(received) {
            Wish::Reload => self.reload(),
            Wish::Stop(reason) => self.stop(received.signal, reason),
            Wish::Reap => drop(reap_orphans()),
            Wish::Note(text) => self.tell(Event::Note { text }),
            Wish::Nothing => {}
        }
    }

    fn wait(&self) -> Result<()> {
        let readable = |descriptor| PollFd::new(descriptor, PollFlags::POLLIN);
        let mut watched = [readable(self.signals.as_fd()), readable(self.events.as_fd())];
        match poll(&mut watched, self.until_next_deadline()) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(Error::system("wait for events (poll)", errno)),
        }
    }

    fn until_next_deadline(&self) -> PollTimeout {
        let awaited = self.places.iter().filter_map(|place| match place.occupant {
            Occupant::Awaited { at_ns } => Some(at_ns),
            _ => None,
        });
        let start = match self.stage {
            Stage::Starting { until_ns } => Some(until_ns),
            _ => None,
        };
        let cut = self.cut_ns.filter(|_| self.stage != Stage::Killing);
        let cut = cut.map(|cut_ns| cut_ns.saturating_add(KILL_SLACK_NS));
        let hung = (0..self.places.len()).filter_map(|place| self.hang_deadline_ns(place));
        let next_ns =
            awaited.chain(start).chain(cut).chain(hung).chain(self.roll_deadlines_ns()).min();
        next_ns.map_or(PollTimeout::NONE, |next_ns| {
            let left = Duration::from_nanos(next_ns.saturating_sub(monotonic_ns()));
            // Rounded up: waking a moment too early would make the loop spin until the time.
            let left_ms = u16::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(u16::MAX);
            PollTimeout::from(left_ms)
        })
    }

    fn attend_to_time(&mut self) -> Result<()> {
        let now_ns = monotonic_ns();
        self.kill_hung(now_ns);
        self.attend_to_rolling(now_ns);
        for place in 0..self.places.len() {
            let occupant = &self.places[place].occupant;
            if matches!(occupant, Occupant::Awaited { at_ns } if *at_ns <= now_ns) {
                self.fork_again(place)?;
            }
        }
        match self.stage {
            Stage::Starting { until_ns } if until_ns <= now_ns => self.fail(self.unready()),
            Stage::Draining => {
                let cut_ns = self.cut_ns.unwrap_or(u64::MAX).saturating_add(KILL_SLACK_NS);
                if cut_ns <= now_ns {
                    self.kill_all("the grace period is over".into());
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn close_books(mut self) -> Result<Outcome> {
        let totals = self.cluster.finish()?;
        // What workers have accepted by themselves they have told.
        let own: u64 = self.summary.workers.iter().map(|one| one.own).sum();
        self.summary.accepted = totals.accepted + own;
        self.summary.stolen = totals.stolen;
        self.summary.refused = totals.refused;
        self.summary.redispatched = totals.redispatched;
        self.summary.dropped = totals.dropped;
        self.summary.pauses = totals.pauses;
        self.summary.paused_ms = totals.paused_ns / 1_000_000;
        self.summary.coalesced = totals.coalesced;
        self.summary.skips = totals.skips;
        let foreign = |program: &Program| program.dialect != Dialect::Native;
        self.summary.uncounted = self.settings.policy == Policy::None
            && self.settings.program.as_ref().is_some_and(foreign);
        self.summary.close();
        Ok(Outcome { summary: self.summary, forced_by: self.forced_by, failure: self.failure })
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A cluster as the settings want it, without workers.
fn cluster(settings: &Settings, plan: &CpuPlan) -> Result<Cluster> {
    let cluster = Cluster::with_policy(settings.policy)?;
    cluster.setup_primary(|cluster| {
        cluster.accept = settings.accept;
        cluster.scheduling = settings.scheduling.clone();
        cluster.backlog = settings.backlog;
        cluster.serialization = match settings.message_format {
            MessageFormat::Json => Serialization::Json,
            MessageFormat::Advanced => Serialization::Advanced,
        };
        cluster.cpus.clone_from(&plan.workers);
        cluster.primary_cpu = plan.primary;
        let workers = NonZeroUsize::new(plan.workers.len());
        cluster.workers_expected = workers.unwrap_or(NonZeroUsize::MIN);
        // Nobody gets anything before everybody is there, so that all begin with an equal share.
        cluster.start_closed = true;
        let WorkerEnvironment { directory, user, group, .. } = &settings.worker_environment;
        cluster.descriptor_limit = settings.worker_environment.descriptor_limit;
        cluster.cwd.clone_from(directory);
        cluster.silent = settings.worker_environment.prefix;
        (cluster.uid, cluster.gid) = (*user, *group);
        if let Some(program) = &settings.program {
            cluster.exec.clone_from(&program.path);
            cluster.exec_argv.clone_from(&program.options);
            cluster.args.clone_from(&program.arguments);
            cluster.dialect = program.dialect;
            cluster.preload = settings.preload;
            cluster.readiness = program.readiness;
            cluster.socket_names.clone_from(&program.socket_names);
            // Node's primary has the first port itself; here the first worker does.
            let before = program.inspect_port.map(|port| port.saturating_sub(1));
            cluster.inspect_port = before.map(InspectPort::From);
            cluster.own_groups = true;
            // Connections wait for the next worker when the last one has crashed.
            cluster.hold = true;
        }
    })?;
    Ok(cluster)
}
