//! Inspects and controls a run from outside: an HTTP server on its own thread, and the commands
//! that are its clients.
//!
//! Owns that thread. It reads memory and asks the supervisor. A client that hangs holds a place in
//! a bounded table until its time limit, and blocks no other.

mod actions;
mod agent;
mod answers;
mod client;
mod commands;
mod config;
mod door;
mod exposition;
mod feed;
mod ledger;
mod metrics;
mod observed;
mod policy;
mod query;
mod routes;
mod server;
mod top;
mod views;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime};

use super::addresses::look_up;
use super::admin_address::AdminAddress;
use super::values;
use clusterlb::{Cluster, EngineDecision, Error, Result, SupervisorEvent, SupervisorHandle};
use clusterlb_sys::error::errno_of;
use clusterlb_sys::listener::{Listener, OpenOptions};
use clusterlb_sys::signal::spawn_without_signals;
use tokio::sync::{Semaphore, oneshot};

use agent::CpuUse;
pub(super) use commands::{
    AdminArguments, ClientArguments, DrainArguments, PolicyArguments, ScaleArguments,
    StatusArguments, TopArguments, WorkerArguments,
};
pub(super) use config::config;
use door::Door;
pub(super) use feed::Feed;
use ledger::Ledger;
use metrics::CpuTimes;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// The permissions of a socket file.
const MODE: u32 = 0o600;
/// Actions in progress at once.
const ACTIONS_MAX: usize = 16;
/// Readers of `/events` at once.
const FOLLOWERS_MAX: usize = 16;

/// A run as the admin thread sees it.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) handle: SupervisorHandle,
    pub(super) cluster: Cluster,
    pub(super) feed: Feed,
    /// The settings, as `/config` shows them.
    pub(super) config: serde_json::Value,
    pub(super) engine: EngineDecision,
    /// When it began: as a date, and for its age, which a clock that is set must not change.
    pub(super) started: SystemTime,
    pub(super) began: Instant,
    ledger: Mutex<Ledger>,
    cpu_times: Mutex<CpuTimes>,
    cpu_use: Mutex<CpuUse>,
    /// Held between reading the number of workers and requesting another.
    scaling: tokio::sync::Mutex<()>,
    actions: Arc<Semaphore>,
    followers: Arc<Semaphore>,
}

impl Run {
    pub(super) fn new(
        handle: SupervisorHandle,
        cluster: Cluster,
        feed: Feed,
        config: serde_json::Value,
        engine: EngineDecision,
        workers: usize,
    ) -> Self {
        let mut ledger = Ledger::default();
        ledger.wanted = u16::try_from(workers).unwrap_or(u16::MAX);
        Self {
            handle,
            cluster,
            feed,
            config,
            engine,
            started: SystemTime::now(),
            began: Instant::now(),
            ledger: Mutex::new(ledger),
            cpu_times: Mutex::default(),
            cpu_use: Mutex::default(),
            scaling: tokio::sync::Mutex::default(),
            actions: Arc::new(Semaphore::new(ACTIONS_MAX)),
            followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
        }
    }

    /// Records an event.
    pub(super) fn on_event(&self, event: &SupervisorEvent) {
        self.ledger().on_event(event);
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cpu_use(&self) -> MutexGuard<'_, CpuUse> {
        self.cpu_use.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cpu_times(&self) -> MutexGuard<'_, CpuTimes> {
        self.cpu_times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bound sockets, not yet served.
#[derive(Debug)]
pub(super) struct Doors {
    listeners: Vec<Listener>,
    /// Addresses of HAProxy's agent-check.
    agents: Vec<Listener>,
    allow_actions: bool,
}

impl Doors {
    /// Binds the addresses.
    ///
    /// # Errors
    /// An address is taken or unavailable.
    pub(super) fn open(
        addresses: &[AdminAddress],
        agents: &[AdminAddress],
        allow_actions: bool,
    ) -> Result<Self> {
        let options = OpenOptions {
            backlog: BACKLOG,
            share_port: false,
            ipv6_only: false,
            mode: Some(MODE),
            blocking: false,
            defer_accept: false,
        };
        let open = |address: &AdminAddress| {
            let address = address.resolve()?;
            let address = look_up(&address);
            let address = address.map_err(|error| of_admin(&error, error.hint()))?.swap_remove(0);
            Listener::open(&address, options).map_err(|error| in_words_of_admin(&error, &address))
        };
        let all = |addresses: &[AdminAddress]| addresses.iter().map(open).collect::<Result<_>>();
        Ok(Self { listeners: all(addresses)?, agents: all(agents)?, allow_actions })
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.listeners.is_empty() && self.agents.is_empty()
    }

    /// The bound addresses of HAProxy's agent-check.
    pub(super) fn agents(&self) -> impl Iterator<Item = &str> {
        self.agents.iter().map(Listener::address)
    }

    /// The bound addresses.
    pub(super) fn addresses(&self) -> impl Iterator<Item = &str> {
        self.listeners.iter().map(Listener::address)
    }
}

fn in_words_of_admin(error: &Error, address: &impl std::fmt::Display) -> Error {
    let hint = match error.kind() {
        clusterlb::ErrorKind::AddressInUse => format!(
            "another run, or something else, has it: `clusterlb status --admin {address}` shows a \
             run; choose another --admin, or remove a file that is no socket"
        ),
        _ => error.hint(),
    };
    of_admin(error, hint)
}

fn of_admin(error: &Error, hint: String) -> Error {
    Error::cluster(error.kind(), format!("admin interface: {error}"), hint)
}

/// The thread. Dropping it ends the thread and removes the socket files.
#[derive(Debug)]
pub(super) struct Admin {
    run: Arc<Run>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _listeners: [Vec<Listener>; 2],
}

impl Admin {
    /// Starts serving.
    ///
    /// # Errors
    /// Too few descriptors or threads.
    pub(super) fn start(doors: Doors, run: Arc<Run>) -> Result<Self> {
        let open = |listener: &Listener| Door::new(listener, doors.allow_actions);
        let open = doors.listeners.iter().map(open).collect::<Result<Vec<Door>>>()?;
        let agents = doors.agents.iter().map(|one| Door::new(one, false));
        let agents = agents.collect::<Result<Vec<Door>>>()?;
        let (end, ended) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(ACTIONS_MAX)
            .thread_name("admin-wait")
            .build()
            .map_err(|error| Error::system("start the admin interface", errno_of(&error)))?;
        let served = Arc::clone(&run);
        let body = move || {
            runtime.block_on(server::serve(open, agents, served, ended));
            // Requests that still wait for the supervisor are answered by now, or never will be.
            runtime.shutdown_background();
        };
        let thread = spawn_without_signals("admin", body)?;
        Ok(Self {
            run,
            end: Some(end),
            thread: Some(thread),
            _listeners: [doors.listeners, doors.agents],
        })
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.run.feed.close();
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // A panic there leaves nothing to clean up here.
            let _ = thread.join();
        }
    }
}
