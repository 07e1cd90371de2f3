//! A companion: a Node program's own primary branch, as one more process beside the workers.
//!
//! Owns that process: its channel, what it is told and what it asks for, and its restarts. It is
//! never on a connection's path, and nothing waits for it: what it does not read in time is dropped
//! and counted ([`outbox`]). In the process a script makes `cluster` what it would be in Node's own
//! primary (`src/dialect/node/preload/companion.cjs`). Everything here is done by what any program
//! can do with a [`Cluster`] and a [`SupervisorHandle`].

mod back_off;
mod driver;
mod lines;
mod outbox;
mod process;

use std::ffi::OsString;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use driver::Driver;

use crate::sys::signal::spawn_without_signals;
use crate::sys::waker::Waker;
use crate::{Cluster, Ending, Error, Result, SupervisorHandle};

/// A variable in the environment of workers whose messages a companion reads. It makes log4js send
/// its lines there, as with Node's own primary.
pub const COMPANION_VARIABLE: &str = "CLUSTERLB_COMPANION";

type OnEvent = Box<dyn FnMut(CompanionEvent) + Send>;

/// A Node program's own primary branch, to be run beside the workers of a supervised cluster of
/// [`Dialect::Node`](crate::Dialect::Node).
///
/// In its process `cluster.isPrimary` is true, and `cluster.workers`, its events and the methods of
/// a worker are those of the real workers. `cluster.fork()` returns a worker that runs or is about
/// to, and adds a slot where there is none that it has not returned yet. It is started when the
/// first worker runs, and again when it ends, with a back-off.
///
/// Workers need [`COMPANION_VARIABLE`] in their environment
/// ([`Supervisor::variable`](crate::Supervisor::variable)).
#[must_use = "it does nothing before it is started"]
pub struct Companion {
    arguments: Vec<OsString>,
    script: Option<String>,
    environment: Vec<(OsString, OsString)>,
    on_event: Option<OnEvent>,
}

/// Something happened to a companion.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CompanionEvent {
    /// Its process was started.
    Started {
        /// The process.
        pid: u32,
    },
    /// It could not be started.
    StartFailed {
        /// Why.
        error: Error,
        /// When that is tried again.
        retry: Duration,
    },
    /// Its process has ended while the run goes on.
    Ended {
        /// With which code, or by which signal.
        ending: Ending,
        /// When another one is started.
        retry: Duration,
    },
    /// It is behind: messages of workers are dropped from now on.
    Behind,
    /// It has read what waited.
    CaughtUp {
        /// How many messages of workers were dropped.
        dropped: u64,
    },
    /// It has asked for something that is not done.
    Refused {
        /// Why.
        reason: String,
    },
}

/// A companion that has been started. Dropping it ends its process by force.
#[derive(Debug)]
pub struct RunningCompanion {
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread is told.
#[derive(Debug)]
struct Control {
    waker: Arc<Waker>,
    /// When the process has to have ended.
    end: Mutex<Option<Instant>>,
}

impl Companion {
    /// A program that Node is given by these arguments, its script first. What comes before them is
    /// what workers are started with ([`ClusterSettings::exec`](crate::ClusterSettings::exec) and
    /// `exec_argv`), and so are user, folder and limits.
    pub fn new(arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        let arguments = arguments.into_iter().map(Into::into).collect();
        Self { arguments, script: None, environment: Vec::new(), on_event: None }
    }

    /// The script that the workers run, so that a program is warned that asks for another one.
    pub fn script(mut self, script: impl Into<String>) -> Self {
        self.script = Some(script.into());
        self
    }

    /// A variable in its environment.
    pub fn variable(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Calls back for what happens to it, on its thread.
    pub fn on_event(mut self, callback: impl FnMut(CompanionEvent) + Send + 'static) -> Self {
        self.on_event = Some(Box::new(callback));
        self
    }

    /// Starts the thread for it, which hears of the workers from now on: call it before the
    /// supervisor runs.
    ///
    /// # Errors
    /// Too few descriptors or threads.
    pub fn start(self, cluster: Cluster, supervisor: SupervisorHandle) -> Result<RunningCompanion> {
        let control = Arc::new(Control { waker: Arc::new(Waker::new()?), end: Mutex::new(None) });
        let events = supervisor.events()?;
        let driver = Driver::new(self, cluster, supervisor, events, Arc::clone(&control));
        let thread = spawn_without_signals("companion", move || driver.run())?;
        Ok(RunningCompanion { control, thread: Some(thread) })
    }
}

impl RunningCompanion {
    /// Lets it end in order, now that the run has: it gets what is still on its way to it, and is
    /// told. What runs after this time is killed.
    pub fn end_within(mut self, time: Duration) {
        self.end(time);
    }

    fn end(&mut self, time: Duration) {
        if let Some(thread) = self.thread.take() {
            self.control.set_end(Instant::now() + time);
            // Where it has panicked, it has said so, and its process has ended with it.
            let _ = thread.join();
        }
    }
}

impl Control {
    fn set_end(&self, at: Instant) {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
        self.waker.wake();
    }

    fn end(&self) -> Option<Instant> {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RunningCompanion {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

impl fmt::Debug for Companion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Companion").field("arguments", &self.arguments).finish_non_exhaustive()
    }
}
