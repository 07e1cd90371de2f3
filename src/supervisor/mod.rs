//! Keeps a number of workers alive: replaces those that end, replaces all one by one on a reload,
//! and ends the run in order.
//!
//! Owns the policy. The decisions are pure ([`state`]); the loop ([`driver`]) only waits and
//! carries them out, by means that any program has with a [`Cluster`].

mod calendar;
mod driver;
mod event;
mod failures;
mod handle;
mod reload_changes;
mod restart;
mod signals;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::mpsc::Receiver;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub use event::{SupervisorEvent, SupervisorEvents};
pub use handle::{
    SlotSnapshot, SlotState, Snapshot, SupervisorHandle, SupervisorStage, WorkerSnapshot,
    WorkerState,
};
pub use reload_changes::ReloadChanges;
pub use restart::{Restart, RestartPolicy};

use crate::sys::clock::monotonic_ns;
use crate::sys::signal::Signals;
use crate::topology::CpuPlan;
use crate::{
    Cluster, ClusterCounts, Error, ListenAddress, ListenerId, Result, Signal, WORKERS_MAX,
};
use driver::Driver;
use handle::Order;
use reload_changes::BeforeReload;
use restart::ns;
use signals::Terminal;
use state::{Rules, State};

/// The message with which a worker reports that it is ready ([`ReadyAfter::Message`]).
const READY: &str = "ready";

/// When a worker is ready, at the start and as a successor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadyAfter {
    /// It listens. A successor then settles ([`Supervisor::settle`]).
    #[default]
    Listening,
    /// It listens, and its program has sent the message `"ready"` (`process.send('ready')`, or
    /// [`Worker::send`](crate::Worker::send)). A successor has settled then.
    Message,
}

type OnEvent = Box<dyn FnMut(&SupervisorEvent) + Send>;

/// Keeps a number of workers alive, and ends them in order.
///
/// Each worker has a **slot**, whose number from 0 it sees in `CLUSTERLB_INSTANCE` and
/// `NODE_APP_INSTANCE`; its successors inherit the number, and the CPU. A worker that ends is
/// replaced ([`restart`](Self::restart)), one that announces that it leaves already then. A reload
/// replaces all, one after the other; each successor serves beside its predecessor for a while
/// before that leaves ([`settle`](Self::settle)).
///
/// ```no_run
/// use clusterlb::{Role, Supervisor};
///
/// match clusterlb::role()? {
///     Role::Primary(cluster) => {
///         Supervisor::new(cluster).workers(4).handle_signals().run()?;
///     }
///     Role::Worker(worker) => {
///         for connection in worker.bind("127.0.0.1:8000")?.incoming() {
///             drop(connection?);
///         }
///     }
/// }
/// # Ok::<(), clusterlb::Error>(())
/// ```
#[must_use = "it does nothing before it runs"]
pub struct Supervisor {
    cluster: Cluster,
    workers: u16,
    plan: Option<CpuPlan>,
    hold: Vec<ListenAddress>,
    environment: Vec<(OsString, OsString)>,
    rules: Rules,
    handles_signals: bool,
    on_event: Option<Mutex<OnEvent>>,
    before_reload: Option<Mutex<BeforeReload>>,
    channel: Option<(SupervisorHandle, Mutex<Receiver<Order>>)>,
}

/// The result of a run that ended in order.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Finished {
    /// The counts of all connections.
    pub counts: ClusterCounts,
    /// The signal that cut the end short.
    pub forced_by: Option<Signal>,
}

impl Supervisor {
    /// For a cluster without workers. By default there is a worker for each CPU that this process
    /// may use.
    pub fn new(cluster: Cluster) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self {
            cluster,
            workers: u16::try_from(cpus.min(WORKERS_MAX)).expect("that is the most"),
            plan: None,
            hold: Vec::new(),
            environment: Vec::new(),
            rules: Rules {
                restart: RestartPolicy::default(),
                start_limit_ns: ns(Duration::from_secs(60)),
                settle_ns: ns(Duration::from_secs(1)),
                ready_after: ReadyAfter::default(),
                grace: Duration::from_secs(10),
                drain_delay: Duration::ZERO,
                hang_kill_ns: None,
                held: 0,
                fatal_codes: Vec::new(),
            },
            handles_signals: false,
            on_event: None,
            before_reload: None,
            channel: None,
        }
    }

    /// The number of workers, from 1 to 1024. [`SupervisorHandle::scale`] changes it later.
    pub fn workers(mut self, workers: u16) -> Self {
        self.workers = workers;
        self
    }

    /// The number of workers, and the CPU of each of them and of the data path, by slot.
    pub fn plan(mut self, plan: CpuPlan) -> Self {
        self.workers = u16::try_from(plan.workers.len()).unwrap_or(u16::MAX);
        self.plan = Some(plan);
        self
    }

    /// Adds an address that is opened before there are workers ([`Cluster::hold`]), so that a busy
    /// one fails at once, and held whichever worker serves it. The run begins when each worker
    /// serves as many.
    pub fn hold(mut self, address: ListenAddress) -> Self {
        self.hold.push(address);
        self
    }

    /// A variable in the environment of each worker.
    pub fn variable(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Which ended workers are replaced, and how soon.
    pub fn restart(mut self, policy: impl Into<RestartPolicy>) -> Self {
        self.rules.restart = policy.into();
        self
    }

    /// How long workers may take until they serve, at the start and as successors: 60 s by default.
    /// Beyond it a start fails, and a reload stops.
    pub fn start_limit(mut self, limit: Duration) -> Self {
        self.rules.start_limit_ns = ns(limit);
        self
    }

    /// How long a successor serves before its predecessor leaves: 1 s by default. If it ends within
    /// that time, the reload stops. At zero the predecessor leaves as soon as the successor serves.
    pub fn settle(mut self, time: Duration) -> Self {
        self.rules.settle_ns = ns(time);
        self
    }

    /// When a worker is ready: by default when it listens. The run begins when all workers are
    /// ready, and a predecessor leaves when its successor is; [`start_limit`](Self::start_limit)
    /// covers both. While others serve, a worker gets connections as soon as it listens.
    pub fn ready_after(mut self, what: ReadyAfter) -> Self {
        self.rules.ready_after = what;
        self
    }

    /// How long leaving workers may take to finish their connections: 10 s by default. Then they
    /// are killed.
    pub fn grace(mut self, time: Duration) -> Self {
        self.rules.grace = time;
        self
    }

    /// How long serving continues after a signal to end, so that balancers notice before accepting
    /// stops; by default not at all. A second signal begins the end at once. The grace period
    /// follows.
    pub fn drain_delay(mut self, time: Duration) -> Self {
        self.rules.drain_delay = time;
        self
    }

    /// Kills a worker that has hung for this long ([`Event::Hung`](crate::Event::Hung)), so that it
    /// is replaced; by default none.
    pub fn hang_kill(mut self, time: Option<Duration>) -> Self {
        self.rules.hang_kill_ns = time.map(ns);
        self
    }

    /// Exit codes by which a worker reports, before it serves, that a restart cannot help: they end
    /// the start at once. Otherwise three workers of a slot have to fail.
    pub fn fatal_exit_codes(mut self, codes: &[i32]) -> Self {
        self.rules.fatal_codes = codes.to_vec();
        self
    }

    /// SIGTERM, SIGINT, SIGQUIT, SIGUSR2 and SIGPWR end the run in order, a second one at once.
    /// SIGHUP reloads, unless the terminal was closed: that ends the run, if it was not ignored
    /// when this process was started (`nohup`). SIGTTIN adds a worker, SIGTTOU removes one, but
    /// never the last. SIGUSR1 changes nothing ([`SupervisorEvent::SignalUnused`]). On SIGCHLD the
    /// thread reaps processes that this one did not start, as PID 1 of a container must.
    ///
    /// The thread that runs the supervisor blocks these signals, so call this on the main thread,
    /// before the program starts other threads. Each worker gets its own process group and session,
    /// so that a terminal's Ctrl-C reaches only the supervisor.
    pub fn handle_signals(mut self) -> Self {
        self.handles_signals = true;
        self
    }

    /// Calls back for every event, on the thread that runs the supervisor: the run waits for it.
    /// The callback must not send requests to a [`SupervisorHandle`]; it may take a snapshot.
    pub fn on_event(mut self, callback: impl FnMut(&SupervisorEvent) + Send + 'static) -> Self {
        self.on_event = Some(Mutex::new(Box::new(callback)));
        self
    }

    /// Calls back before a reload replaces any worker, on the thread that runs the supervisor: the
    /// program reads its settings again, changes those of the cluster, and returns the changes for
    /// the supervisor. On an error nothing changes and no worker is replaced
    /// ([`SupervisorEvent::ReloadStopped`]). The callback must not send requests to a
    /// [`SupervisorHandle`].
    pub fn before_reload(
        mut self,
        callback: impl FnMut() -> Result<ReloadChanges> + Send + 'static,
    ) -> Self {
        self.before_reload = Some(Mutex::new(Box::new(callback)));
        self
    }

    /// A handle for other threads.
    ///
    /// # Errors
    /// Too few descriptors.
    pub fn handle(&mut self) -> Result<SupervisorHandle> {
        if let Some((handle, _)) = &self.channel {
            return Ok(handle.clone());
        }
        let (handle, orders) = SupervisorHandle::new()?;
        self.channel = Some((handle.clone(), Mutex::new(orders)));
        Ok(handle)
    }

    /// Starts the workers, and keeps them until the run ends: by a signal, by a request of a
    /// handle, or because no worker is left.
    ///
    /// # Errors
    /// An address is unavailable, the machine refuses what is needed, workers cannot be started or
    /// do not serve ([`ErrorKind`](crate::ErrorKind) distinguishes these), none is left because of
    /// failures, or the cluster itself failed. In any case no worker is left.
    pub fn run(mut self) -> Result<Finished> {
        ensure_count(self.workers)?;
        let handle = self.handle()?;
        // Before there are workers and other threads, so that no signal is lost.
        let signals = self.handles_signals.then(|| Signals::receive(&signals::RECEIVED));
        let signals = signals.transpose()?;
        self.prepare_cluster()?;
        let events = self.cluster.events()?;
        let addresses = self.hold.iter().map(|address| self.cluster.hold(address));
        let addresses = addresses.collect::<Result<Vec<(ListenerId, String)>>>()?;
        self.rules.held = addresses.len();
        let (_, orders) = self.channel.take().expect("the handle has the other end");
        let driver = Driver {
            cluster: self.cluster,
            events,
            signals,
            terminal: Terminal::look(),
            orders: orders.into_inner().unwrap_or_else(PoisonError::into_inner),
            handle,
            start_limit: Duration::from_nanos(self.rules.start_limit_ns),
            grace: self.rules.grace,
            ready_after: self.rules.ready_after,
            state: State::new(self.rules, self.workers, monotonic_ns()),
            starts_left: 0,
            environment: self.environment,
            on_event: self
                .on_event
                .map(|one| one.into_inner().unwrap_or_else(PoisonError::into_inner)),
            before_reload: self
                .before_reload
                .map(|one| one.into_inner().unwrap_or_else(PoisonError::into_inner)),
            known: addresses.iter().map(|(listener, _)| *listener).collect(),
            addresses,
            workers: BTreeMap::new(),
            waiting: BTreeMap::new(),
            next_ticket: 0,
            forced_by: None,
            failure: None,
            filled: BTreeSet::new(),
            refusal: None,
            served: BTreeSet::new(),
            past_primary: None,
        };
        driver.run()
    }

    /// The settings of a supervised cluster.
    fn prepare_cluster(&self) -> Result<()> {
        let workers = NonZeroUsize::new(usize::from(self.workers)).unwrap_or(NonZeroUsize::MIN);
        self.cluster.prepare(|settings, is_fresh| {
            if let Some(plan) = &self.plan {
                settings.cpus.clone_from(&plan.workers);
            }
            if self.handles_signals {
                settings.own_groups = true;
            }
            if is_fresh {
                settings.primary_cpu = self.plan.as_ref().and_then(|plan| plan.primary);
                settings.workers_expected = workers;
                // No worker gets a connection before all are ready, so all begin with an equal
                // share.
                settings.start_closed = true;
            }
        })
    }
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("workers", &self.workers).finish_non_exhaustive()
    }
}

fn ensure_count(workers: u16) -> Result<()> {
    if (1..=WORKERS_MAX).contains(&usize::from(workers)) {
        return Ok(());
    }
    Err(Error::usage(
        format!("{workers} workers"),
        format!("ask for at least 1, and at most {WORKERS_MAX}"),
    ))
}
