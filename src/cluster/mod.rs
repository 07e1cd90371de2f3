//! Clusters of worker processes that share listeners: `node:cluster` for Rust programs.
//!
//! Owns the cluster as the program in the primary sees it (Node's `cluster` in the primary).

mod role;
mod steering;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use role::{Role, is_primary, is_worker, role};

use crate::address::ListenAddress;
use crate::control_plane::ControlPlane;
use crate::data_path::{ClusterCounts, ListenerCounts, LiveCounts};
use crate::error::{Error, Result, errno_of};
use crate::handle::{
    Bus, ControlHandle, Event, Events, ForkRequest, ListenerSnapshot, Registered, Registry,
    Request, WorkerCounts, WorkerHandle,
};
use crate::id::{ListenerId, Slot, WorkerId};
use crate::settings::{
    ClusterSettings, Policy, dispatch_from_environment, policy_from_environment,
};
use crate::sync::completion::Completion;
use crate::sys::engine::EngineChoice;
use crate::sys::limits;
use crate::sys::signal::BlockedSignals;
use crate::sys::waker::Waker;

/// A primary's workers and everything they share. Clones are the same cluster.
///
/// Two threads do the work: one starts workers, reads their messages and publishes events, the
/// other accepts connections and hands them over. Dropping the last clone kills remaining workers
/// and closes every listener; to end in order, wait for [`disconnect`](Self::disconnect) first.
///
/// If the first of the two threads ever fails, everything ends as if the cluster had been dropped,
/// and no caller waits forever: there is an [`Event::Error`] without a worker, then the events end;
/// completions complete with a [`failure`](Completion::failure); calls return it.
#[derive(Clone, Debug)]
pub struct Cluster {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    control: ControlHandle,
    bus: Arc<Bus>,
    registry: Registry,
    live_counts: Arc<LiveCounts>,
    setup: Mutex<Setup>,
}

#[derive(Debug)]
struct Setup {
    settings: Arc<ClusterSettings>,
    /// The settings of the whole cluster are fixed.
    fixed: bool,
    /// A worker was started or a listener opened with them.
    in_use: bool,
    /// Forks with the present rule for debugger ports.
    inspected: u32,
}

/// What one worker is started with, in addition to the settings.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct ForkOptions {
    environment: Vec<(OsString, OsString)>,
    place: Option<Slot>,
    predecessor: Option<WorkerId>,
    instance: Option<u16>,
}

impl ForkOptions {
    /// A variable in the environment of this worker.
    pub fn variable(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Its place, from 0: a worker that takes another's place inherits its turn in the rotation and
    /// its CPU. Otherwise it gets the first free one.
    pub fn place(mut self, place: u16) -> Self {
        self.place = Some(Slot::new(place));
        self
    }

    /// Its instance number, from 0, independent of its place: it sees it in `CLUSTERLB_INSTANCE`
    /// and `NODE_APP_INSTANCE`, and gets the CPU of that number. A successor gets the same number.
    pub fn instance(mut self, number: u16) -> Self {
        self.instance = Some(number);
        self
    }

    /// The worker that it will replace. Where workers have their own listening sockets
    /// ([`AcceptMechanism::Reuseport`](crate::settings::AcceptMechanism)), both accept from the
    /// same one until the predecessor leaves, so that no connection waits in a socket without a
    /// worker.
    pub fn successor_of(mut self, predecessor: &WorkerHandle) -> Self {
        self.predecessor = Some(predecessor.id());
        self
    }
}

impl Cluster {
    /// Makes this process a primary. Raises its limit of descriptors to the hard one, as Node
    /// does. A process can have several clusters.
    ///
    /// # Errors
    /// [`Error::Usage`] in a worker, which cannot have workers, and for a policy, an engine or a
    /// dispatcher in the environment that there is not; [`Error::System`] when threads or
    /// descriptors are short.
    pub fn primary() -> Result<Self> {
        Self::with_policy(policy_from_environment()?)
    }

    /// As [`primary`](Self::primary), but ignores the policy in the environment.
    ///
    /// # Errors
    /// [`Error::Usage`] in a worker, and for an engine in the environment that there is not, or a
    /// dispatcher that cannot follow the policy; [`Error::System`] when threads or descriptors are
    /// short.
    pub fn with_policy(policy: Policy) -> Result<Self> {
        if is_worker() {
            return Err(Error::usage(
                "a worker cannot be a primary",
                "ask `clusterlb::role` which of the two this process is",
            ));
        }
        limits::raise_descriptor_limit()?;
        let engine = EngineChoice::from_environment()?;
        let dispatch = dispatch_from_environment()?;
        let settings = ClusterSettings::with_policy(policy);
        let settings = ClusterSettings { engine, dispatch, ..settings };
        settings.validate()?;
        let settings = Arc::new(settings);
        let waker = Arc::new(Waker::new()?);
        let (control, requests) = ControlHandle::new(Arc::clone(&waker));
        let bus = Arc::new(Bus::new(Arc::clone(&waker)));
        let registry = Registry::default();
        let live_counts = Arc::new(LiveCounts::default());
        ControlPlane::start(
            control.clone(),
            requests,
            waker,
            Arc::clone(&bus),
            Arc::clone(&registry),
            Arc::clone(&live_counts),
        )?;
        let setup = Mutex::new(Setup { settings, fixed: false, in_use: false, inspected: 0 });
        Ok(Self { shared: Arc::new(Shared { control, bus, registry, live_counts, setup }) })
    }

    fn setup(&self) -> MutexGuard<'_, Setup> {
        // A change that panics has changed nothing: it works on a copy.
        self.shared.setup.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the settings (Node: `cluster.setupPrimary()`). Can be called any number of times;
    /// what is not changed stays. Concerns workers forked afterwards. Tells [`Event::Setup`].
    ///
    /// ```
    /// use clusterlb::{Cluster, InspectPort};
    ///
    /// let cluster = Cluster::primary()?;
    /// cluster.setup_primary(|settings| settings.args = vec!["--verbose".into()])?;
    /// cluster.setup_primary(|settings| settings.inspect_port = Some(InspectPort::From(9229)))?;
    /// assert_eq!(cluster.settings().args, ["--verbose"]);
    /// # Ok::<(), clusterlb::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Usage`] for settings that cannot be, and for what concerns the whole cluster, such
    /// as the policy, and is fixed by the first setup or fork. Nothing is changed then.
    ///
    /// # Panics
    /// Only if `change` panics; the settings stay unchanged. Calling this cluster from `change`
    /// deadlocks.
    pub fn setup_primary(&self, change: impl FnOnce(&mut ClusterSettings)) -> Result<()> {
        let mut setup = self.setup();
        let mut settings = (*setup.settings).clone();
        change(&mut settings);
        if setup.fixed && !settings.has_same_cluster_settings(&setup.settings) {
            return Err(Error::usage(
                "the policy, and what else concerns the whole cluster, cannot change any more",
                "set it in the first setup, before any worker is forked",
            ));
        }
        settings.validate()?;
        setup.fixed = true;
        setup.inspected = 0;
        setup.settings = Arc::new(settings);
        let settings = Arc::clone(&setup.settings);
        // Under the lock, so that setups are published in order.
        self.shared.bus.publish(&Event::Setup { settings });
        Ok(())
    }

    /// Changes settings of a cluster that will be supervised. Settings of the whole cluster may
    /// change only if `change` is told that nothing has been started with them.
    pub(crate) fn prepare(&self, change: impl FnOnce(&mut ClusterSettings, bool)) -> Result<()> {
        let mut setup = self.setup();
        let mut settings = (*setup.settings).clone();
        change(&mut settings, !setup.in_use);
        settings.validate()?;
        setup.fixed = true;
        setup.settings = Arc::new(settings);
        let settings = Arc::clone(&setup.settings);
        self.shared.bus.publish(&Event::Setup { settings });
        Ok(())
    }

    /// Why the control plane failed, if it did.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.shared.control.failure()
    }

    /// The present settings (Node: `cluster.settings`).
    #[must_use]
    pub fn settings(&self) -> Arc<ClusterSettings> {
        Arc::clone(&self.setup().settings)
    }

    /// Who chooses the worker for a connection (Node: `cluster.schedulingPolicy`).
    #[must_use]
    pub fn scheduling_policy(&self) -> Policy {
        self.setup().settings.policy
    }

    /// Starts a worker (Node: `cluster.fork()`).
    ///
    /// # Errors
    /// [`Error::System`] when processes, descriptors or memory are short, or the program cannot be
    /// executed; [`Error::Workers`] beyond 1024 workers.
    pub fn fork(&self) -> Result<WorkerHandle> {
        self.fork_with(ForkOptions::default())
    }

    /// Starts a worker with additional variables (Node: `cluster.fork(env)`).
    ///
    /// # Errors
    /// As [`fork`](Self::fork); also when the place is taken.
    pub fn fork_with(&self, options: ForkOptions) -> Result<WorkerHandle> {
        let mut setup = self.setup();
        (setup.fixed, setup.in_use) = (true, true);
        setup.inspected += 1;
        let (settings, nth) = (Arc::clone(&setup.settings), setup.inspected);
        drop(setup);
        // It may be the program's function, which may ask this cluster something.
        let inspect_port = settings.inspect_port.as_ref().map(|port| port.nth(nth));
        let ForkOptions { environment, place: slot, predecessor, instance } = options;
        let fork_request = ForkRequest {
            environment,
            inspect_port,
            slot,
            predecessor,
            instance,
            blocked_signals: BlockedSignals::of_this_thread()?,
        };
        self.shared.control.ask(|answer| Request::Fork { settings, fork_request, answer })
    }

    /// The workers that have not both disconnected and exited, by their numbers (Node:
    /// `cluster.workers`). One is removed before the last of these two events is told.
    #[must_use]
    pub fn workers(&self) -> BTreeMap<WorkerId, WorkerHandle> {
        self.registered().workers.clone()
    }

    fn registered(&self) -> MutexGuard<'_, Registered> {
        self.shared.registry.lock().expect("nothing panics while it holds the workers")
    }

    /// The data path's counts of all connections so far. Reads memory, asks no thread, and is cheap
    /// to call; after the end, returns the last counts. Under the policy `none` the data path
    /// accepts nothing, and [`worker_counts`](Self::worker_counts) has what workers accepted.
    #[must_use]
    pub fn counts(&self) -> ClusterCounts {
        self.shared.live_counts.read()
    }

    /// The counts of each listener. Reads memory, asks no thread. Closed listeners are not
    /// included.
    #[must_use]
    pub fn listener_counts(&self) -> BTreeMap<ListenerId, ListenerCounts> {
        let mut counts = self.shared.live_counts.read_listeners();
        // Under the policy `none` the workers alone count.
        let workers_accept = counts.is_empty();
        for (id, end) in self.registered().by_listener() {
            if workers_accept || counts.contains_key(&id) {
                let sum = counts.entry(id).or_default();
                sum.accepted += end.own;
                sum.assigned += end.own;
                sum.finished += end.finished;
                sum.aborted += end.aborted;
            }
        }
        counts
    }

    /// The sum of all workers' counts, including ended ones. Reads memory, as
    /// [`WorkerHandle::counts`] does.
    #[must_use]
    pub fn worker_counts(&self) -> WorkerCounts {
        let registered = self.registered();
        let mut sum = registered.ended;
        registered.workers.values().for_each(|worker| sum.add(&worker.counts()));
        sum
    }

    /// Opens an address before any worker asks for it, and keeps it open until
    /// [`disconnect`](Self::disconnect): connections wait in the kernel while no worker serves it.
    /// Returns the address that was bound. Port 0 can be opened several times, for the
    /// first, second and further call of each worker to serve it.
    ///
    /// # Errors
    /// [`Error::Listen`], as for any server whose address is unavailable; [`Error::Workers`] beyond
    /// 64 listeners.
    pub fn hold(&self, address: &ListenAddress) -> Result<(ListenerId, String)> {
        let mut setup = self.setup();
        (setup.fixed, setup.in_use) = (true, true);
        let settings = Arc::clone(&setup.settings);
        drop(setup);
        let address = address.clone();
        self.shared.control.ask(|answer| Request::Hold { settings, address, answer })
    }

    /// The listeners, in the order in which they were opened, and how many connections wait in the
    /// kernel for each. Asks the control plane, and waits for its answer.
    ///
    /// # Errors
    /// The cluster has ended, or failed.
    pub fn listeners(&self) -> Result<Vec<ListenerSnapshot>> {
        let guard = self.shared.control.guard(Completion::default());
        self.shared.control.ask(|answer| Request::Listeners { answer, guard })
    }

    /// As [`listeners`](Self::listeners), on any async runtime.
    ///
    /// # Errors
    /// As [`listeners`](Self::listeners).
    pub async fn listeners_async(&self) -> Result<Vec<ListenerSnapshot>> {
        let listeners = |answer, guard| Request::Listeners { answer, guard };
        self.shared.control.ask_async(listeners).await
    }

    /// Begins to accept, when the settings say
    /// [`start_closed`](ClusterSettings::start_closed).
    ///
    /// # Errors
    /// The cluster has failed before.
    pub fn open(&self) -> Result<()> {
        self.shared.control.send(Request::Open)
    }

    /// Lets every worker leave (Node: `cluster.disconnect()`): listeners are closed after what
    /// waits in their backlogs has been handed over, workers finish what they have. Complete when
    /// the **last** worker has gone and every listener is closed, also if there were none.
    pub fn disconnect(&self) -> Completion {
        self.part(None)
    }

    /// As [`disconnect`](Self::disconnect), and tells the workers when to cut connections, as
    /// [`Worker::grace`](crate::Worker::grace). The built-in worker does so; a program's worker may
    /// ask for it.
    pub fn disconnect_within(&self, grace: Duration) -> Completion {
        self.part(Some(grace))
    }

    fn part(&self, grace: Option<Duration>) -> Completion {
        for worker in self.workers().values() {
            let mut life = worker.state.life();
            if life.connected {
                life.voluntary = Some(true);
            }
        }
        let completion = Completion::default();
        let guard = self.shared.control.guard(completion.clone());
        // If the control plane has ended, so has everything else, and the completion resolves.
        let _ = self.shared.control.send(Request::DisconnectAll { grace, guard });
        completion
    }

    /// What happens from now on, for threads and for async runtimes (Node: `cluster.on`).
    ///
    /// # Errors
    /// Too few descriptors; the cluster has failed.
    pub fn events(&self) -> Result<Events> {
        match self.shared.control.failure() {
            Some(failure) => Err(failure),
            None => self.shared.bus.subscribe(None),
        }
    }

    /// Calls back for every event from now on, until the cluster ends (Node: `cluster.on`). Each
    /// callback runs on a separate thread, where it may do anything, forking included; a slow one
    /// does not delay others.
    ///
    /// ```
    /// use clusterlb::{Cluster, Event};
    ///
    /// let cluster = Cluster::primary()?;
    /// cluster.on(|event| {
    ///     if let Event::Exit { worker, ending, .. } = event {
    ///         println!("worker {} has ended: {ending:?}", worker.id());
    ///     }
    /// })?;
    /// # Ok::<(), clusterlb::Error>(())
    /// ```
    ///
    /// # Errors
    /// Too few descriptors or threads; the cluster has failed.
    pub fn on(&self, mut callback: impl FnMut(Event) + Send + 'static) -> Result<()> {
        let events = self.events()?;
        let thread = std::thread::Builder::new().name("cluster-events".into());
        let body = move || events.for_each(&mut callback);
        thread
            .spawn(body)
            .map(drop)
            .map_err(|error| Error::system("start a thread for events", errno_of(&error)))
    }

    /// If every worker has its own sockets, closes those of slots that stay empty: except for
    /// `coming` of them, no worker will accept from these. Their queues go to the other sockets, if
    /// the kernel lets this process arrange that. Returns how many connections were lost.
    ///
    /// # Errors
    /// The cluster has ended, or failed.
    pub(crate) fn shed(&self, coming: usize) -> Result<usize> {
        self.shared.control.ask(|answer| Request::Shed { coming, answer })
    }

    /// Kills remaining workers, and returns the sums of the data path.
    ///
    /// # Errors
    /// The cluster has ended, or failed.
    pub(crate) fn finish(&self) -> Result<ClusterCounts> {
        self.shared.control.ask(|answer| Request::End { answer })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // A control plane that has already ended has left nothing behind.
        let _: Result<ClusterCounts> = self.control.ask(|answer| Request::End { answer });
    }
}
