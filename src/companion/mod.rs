//! A companion: a Node program's own primary branch, as one more process beside the workers.
//!
//! Owns that process: its channel, its lines, its requests, and its restarts. It is never on a
//! connection's path, and nothing waits for it: lines that it does not read in time are dropped and
//! counted ([`outbox`]). A script in the process gives `cluster` the behaviour it has in Node's own
//! primary (`src/dialect/node/preload/companion.cjs`). Everything here uses means that any program
//! has with a [`Cluster`] and a [`SupervisorHandle`].

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
/// to, and adds a slot when all of them have been returned. It is started when the first worker
/// runs, and again when it ends, with a back-off, unless the run has been told to end.
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

/// An event of a companion.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CompanionEvent {
    /// Its process was started.
    Started {
        /// Its process id.
        pid: u32,
    },
    /// It could not be started.
    StartFailed {
        /// The cause.
        error: Error,
        /// The delay until the next attempt.
        retry: Duration,
    },
    /// Its process has ended during the run.
    Ended {
        /// Its exit code or signal.
        ending: Ending,
        /// The delay until the next one starts; `None` if the run ends, too, as when a service
        /// manager signals every process.
        retry: Option<Duration>,
    },
    /// It is behind: messages of workers are dropped.
    Behind,
    /// It has read the waiting messages.
    CaughtUp {
        /// The number of dropped messages.
        dropped: u64,
    },
    /// Its request was refused.
    Refused {
        /// The reason.
        reason: String,
    },
}

/// A started companion. Dropping it kills its process.
#[derive(Debug)]
pub struct RunningCompanion {
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread is told.
#[derive(Debug)]
struct Control {
    waker: Arc<Waker>,
    /// The deadline for the process to end.
    end: Mutex<Option<Instant>>,
}

impl Companion {
    /// A program that Node runs with these arguments, its script first. Options before them are
    /// those of the workers ([`ClusterSettings::exec`](crate::ClusterSettings::exec) and
    /// `exec_argv`), and so are user, folder and limits.
    pub fn new(arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        let arguments = arguments.into_iter().map(Into::into).collect();
        Self { arguments, script: None, environment: Vec::new(), on_event: None }
    }

    /// The script of the workers, so that a program that asks for another one is warned.
    pub fn script(mut self, script: impl Into<String>) -> Self {
        self.script = Some(script.into());
        self
    }

    /// A variable in its environment.
    pub fn variable(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Calls back for its events, on its thread.
    pub fn on_event(mut self, callback: impl FnMut(CompanionEvent) + Send + 'static) -> Self {
        self.on_event = Some(Box::new(callback));
        self
    }

    /// Starts its thread, which follows the workers from now on: call it before the supervisor
    /// runs.
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
    /// Ends it in order after the run: it gets the remaining lines and a notification. It is killed
    /// after this time.
    pub fn end_within(mut self, time: Duration) {
        self.end(time);
    }

    fn end(&mut self, time: Duration) {
        if let Some(thread) = self.thread.take() {
            self.control.set_end(Instant::now() + time);
            // A panic was reported, and has ended the process.
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
