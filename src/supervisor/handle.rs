//! A supervisor's handle for other threads: requests and snapshots.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::calendar::Calendar;
use super::event::{Subscribers, SupervisorEvents};
use crate::sys::clock::monotonic_ns;
use crate::sys::waker::Waker;
use crate::{Completion, Error, ErrorKind, Result, WorkerCounts, WorkerHandle, WorkerId};

/// Requests that may wait for the supervisor's loop.
const REQUESTS_MAX: usize = 64;

/// A handle of a [`Supervisor`](super::Supervisor) for other threads. Clones refer to the same one.
///
/// Requests go through one queue of 64, and the supervisor's thread carries them out in order; each
/// is answered. One beyond the bound is refused at once ([`ErrorKind::Busy`]). Snapshots ask no
/// thread.
#[derive(Clone, Debug)]
pub struct SupervisorHandle {
    pub(super) shared: Arc<Shared>,
    requests: SyncSender<Order>,
}

/// A request, and where its answer goes.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) request: SupervisorRequest,
    pub(super) answer: SyncSender<Result<Completion>>,
}

/// A request to a supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SupervisorRequest {
    Reload,
    Scale(u16),
    Stop(Option<Duration>),
    Replace(WorkerId),
    Drain(WorkerId),
    Kill(WorkerId),
}

/// Shared by a supervisor and its handles.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) waker: Arc<Waker>,
    pub(super) subscribers: Mutex<Subscribers>,
    published: Mutex<Published>,
}

/// The published state.
#[derive(Debug, Default)]
pub(super) struct Published {
    pub(super) stage: SupervisorStage,
    pub(super) reloading: bool,
    pub(super) slots: Vec<SlotSnapshot>,
    pub(super) workers: Vec<PublishedWorker>,
    pub(super) calendar: Calendar,
}

#[derive(Debug)]
pub(super) struct PublishedWorker {
    pub(super) worker: WorkerHandle,
    pub(super) slot: u16,
    pub(super) state: WorkerState,
    /// On the monotonic clock, as its age must not change when the other clock is set.
    pub(super) started_ns: u64,
    pub(super) since_ns: u64,
    pub(super) addresses: Vec<String>,
}

/// The stage of a supervisor's run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SupervisorStage {
    /// Not every worker serves yet, and nothing is accepted.
    #[default]
    Starting,
    /// Connections are accepted.
    Serving,
    /// Connections are accepted for a while longer, then the run ends.
    Stopping,
    /// Accepting has stopped, and workers finish their connections.
    Draining,
    /// Workers are being killed.
    Killing,
    /// The run has ended.
    Ended,
}

/// The state of a supervisor at one moment. The counts are as of the snapshot.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// The stage of the run.
    pub stage: SupervisorStage,
    /// Workers are being replaced, one after the other.
    pub reloading: bool,
    /// The slots, by number.
    pub slots: Vec<SlotSnapshot>,
    /// The workers, by id: those in slots, successors, and leaving ones.
    pub workers: Vec<WorkerSnapshot>,
}

/// A slot.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SlotSnapshot {
    /// Its number, from 0, as its workers see it in `CLUSTERLB_INSTANCE`.
    pub number: u16,
    /// Its contents.
    pub state: SlotState,
    /// Workers started in it after the first one.
    pub restarts: u64,
}

/// The contents of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SlotState {
    /// This worker.
    Filled(WorkerId),
    /// Empty until this moment.
    Waiting(SystemTime),
    /// Empty until the next reload: its workers had too many short lives.
    GivenUp,
    /// Empty: its worker left, and the policy does not replace it.
    Empty,
}

/// A worker.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WorkerSnapshot {
    /// Its number.
    pub id: WorkerId,
    /// Its process id.
    pub pid: u32,
    /// Its CPU, if it is pinned.
    pub cpu: Option<usize>,
    /// Its present, future or former slot.
    pub slot: u16,
    /// Its state.
    pub state: WorkerState,
    /// When it was started.
    pub started: SystemTime,
    /// When it entered this state.
    pub since: SystemTime,
    /// The addresses it serves.
    pub addresses: Vec<String>,
    /// Its connections.
    pub counts: WorkerCounts,
}

/// The state of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkerState {
    /// It serves nothing yet.
    Starting,
    /// It serves.
    Serving,
    /// It leaves connections unclaimed and gets none.
    Hung,
    /// It gets no new connections and finishes those it has.
    Leaving,
}

impl Shared {
    pub(super) fn subscribers(&self) -> MutexGuard<'_, Subscribers> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn published(&self) -> MutexGuard<'_, Published> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SupervisorHandle {
    pub(super) fn new() -> Result<(Self, Receiver<Order>)> {
        let (requests, received) = sync_channel(REQUESTS_MAX);
        let shared = Shared {
            waker: Arc::new(Waker::new()?),
            subscribers: Mutex::default(),
            published: Mutex::default(),
        };
        Ok((Self { shared: Arc::new(shared), requests }, received))
    }

    fn ask(&self, request: SupervisorRequest) -> Result<Completion> {
        let (answer, answered) = sync_channel(1);
        match self.requests.try_send(Order { request, answer }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(busy()),
            Err(TrySendError::Disconnected(_)) => return Err(ended()),
        }
        self.shared.waker.wake();
        answered.recv().unwrap_or_else(|_| Err(ended()))
    }

    /// Replaces every worker, one after the other, fills slots that were given up, and resets all
    /// restart budgets. During the start or another reload it follows afterwards, once. Completes
    /// when all are replaced, or when the reload stops, which is the completion's failure.
    ///
    /// # Errors
    /// The run is ending or has ended; too many requests wait.
    pub fn reload(&self) -> Result<Completion> {
        self.ask(SupervisorRequest::Reload)
    }

    /// Changes the number of slots, and so of workers: from 1 to 1024. New workers are started at
    /// once; those with the highest numbers leave in order. Completes when as many serve, and the
    /// surplus ones have ended. Slots that were given up are the completion's failure
    /// ([`ErrorKind::StartFailed`]).
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for another number; the run is ending or has ended; too many requests
    /// wait.
    pub fn scale(&self, workers: u16) -> Result<Completion> {
        super::ensure_count(workers)?;
        self.ask(SupervisorRequest::Scale(workers))
    }

    /// Ends the run in order: accepting stops, and workers have this long to finish their
    /// connections, or the supervisor's grace period. Completes when the run has ended.
    ///
    /// # Errors
    /// The run has ended; too many requests wait.
    pub fn stop(&self, grace: Option<Duration>) -> Result<Completion> {
        self.ask(SupervisorRequest::Stop(grace))
    }

    /// Replaces one worker as a reload does. Completes when it has been replaced, or when that
    /// stops, which is the completion's failure.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchWorker`]; the run does not serve; too many requests wait.
    pub fn replace(&self, worker: WorkerId) -> Result<Completion> {
        self.ask(SupervisorRequest::Replace(worker))
    }

    /// Lets one worker leave, and starts another one for its slot without waiting for its end.
    /// Completes when it has ended.
    ///
    /// # Errors
    /// As [`replace`](Self::replace).
    pub fn drain(&self, worker: WorkerId) -> Result<Completion> {
        self.ask(SupervisorRequest::Drain(worker))
    }

    /// Kills one worker; it is replaced like any that ends. Completes when it has ended.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchWorker`]; too many requests wait.
    pub fn kill(&self, worker: WorkerId) -> Result<Completion> {
        self.ask(SupervisorRequest::Kill(worker))
    }

    /// A snapshot: stage, slots and workers with their counts. Reads memory, asks no thread, and is
    /// cheap to call.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut published = self.shared.published();
        published.calendar.update(SystemTime::now(), monotonic_ns());
        let calendar = &published.calendar;
        let workers = published.workers.iter().map(|one| WorkerSnapshot {
            id: one.worker.id(),
            pid: one.worker.pid(),
            cpu: one.worker.cpu(),
            slot: one.slot,
            state: one.state,
            started: calendar.date(one.started_ns),
            since: calendar.date(one.since_ns),
            addresses: one.addresses.clone(),
            counts: one.worker.counts(),
        });
        Snapshot {
            stage: published.stage,
            reloading: published.reloading,
            slots: published.slots.clone(),
            workers: workers.collect(),
        }
    }

    /// The events from now on.
    ///
    /// # Errors
    /// Too few descriptors.
    pub fn events(&self) -> Result<SupervisorEvents> {
        self.shared.subscribers().subscribe()
    }
}

fn busy() -> Error {
    Error::cluster(
        ErrorKind::Busy,
        format!("{REQUESTS_MAX} requests wait for the supervisor already"),
        "wait for the answers to those before you ask for more",
    )
}

fn ended() -> Error {
    Error::cluster(
        ErrorKind::Ended,
        "the supervisor has ended",
        "look at the result of its `run` for the reason",
    )
}
