//! A supervisor as other threads see it: what they can ask of it, and what they can look at.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::event::{Subscribers, SupervisorEvents};
use crate::sys::waker::Waker;
use crate::{Completion, Error, ErrorKind, Result, WorkerCounts, WorkerHandle, WorkerId};

/// Requests that may wait for the supervisor's loop.
const REQUESTS_MAX: usize = 64;

/// A [`Supervisor`](super::Supervisor) as other threads see it. Clones are the same supervisor.
///
/// Requests go through one queue of 64 and are carried out in their order by the supervisor's
/// thread; each is answered. One beyond the bound is refused at once
/// ([`ErrorKind::Busy`]). Looking at the state asks no thread.
#[derive(Clone, Debug)]
pub struct SupervisorHandle {
    pub(super) shared: Arc<Shared>,
    requests: SyncSender<Order>,
}

/// A request, and where the answer goes.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) request: Request,
    pub(super) answer: SyncSender<Result<Completion>>,
}

/// What can be asked of a supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Reload,
    Scale(u16),
    Stop(Option<Duration>),
    Replace(WorkerId),
    Drain(WorkerId),
    Kill(WorkerId),
}

/// What a supervisor and its handles share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) waker: Arc<Waker>,
    pub(super) subscribers: Mutex<Subscribers>,
    published: Mutex<Published>,
}

/// What can be looked at.
#[derive(Debug, Default)]
pub(super) struct Published {
    pub(super) stage: SupervisorStage,
    pub(super) reloading: bool,
    pub(super) slots: Vec<SlotSnapshot>,
    pub(super) workers: Vec<PublishedWorker>,
}

#[derive(Debug)]
pub(super) struct PublishedWorker {
    pub(super) worker: WorkerHandle,
    pub(super) slot: u16,
    pub(super) state: WorkerState,
    pub(super) started: SystemTime,
    pub(super) since: SystemTime,
    pub(super) addresses: Vec<String>,
}

/// How far a supervisor's run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SupervisorStage {
    /// Not every worker serves yet, and nothing is accepted.
    #[default]
    Starting,
    /// Connections are accepted.
    Serving,
    /// Connections are accepted for a while yet, and then the run ends.
    Stopping,
    /// Nothing new is accepted, and workers finish what they have.
    Draining,
    /// Workers are being ended by force.
    Killing,
    /// The run has ended.
    Ended,
}

/// What a supervisor was at one moment. The counts are those of the moment it was looked at.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// How far the run is.
    pub stage: SupervisorStage,
    /// Workers are being replaced, one after the other.
    pub reloading: bool,
    /// The slots, by their numbers.
    pub slots: Vec<SlotSnapshot>,
    /// The workers, by their ids: those in slots, successors, and those that leave.
    pub workers: Vec<WorkerSnapshot>,
}

/// A slot.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SlotSnapshot {
    /// Its number, from 0, as its workers see it in `CLUSTERLB_INSTANCE`.
    pub number: u16,
    /// What is in it.
    pub state: SlotState,
    /// Workers that were started in it after the first one.
    pub restarts: u64,
}

/// What is in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SlotState {
    /// This worker.
    Filled(WorkerId),
    /// Nothing until this moment.
    Waiting(SystemTime),
    /// Nothing until the next reload: its workers had too many short lives.
    GivenUp,
    /// Nothing: its worker left, and the policy says that it is not replaced.
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
    /// The slot that it has, is going to have, or had.
    pub slot: u16,
    /// How far its life is.
    pub state: WorkerState,
    /// When it was started.
    pub started: SystemTime,
    /// Since when it has been in this state.
    pub since: SystemTime,
    /// What it serves.
    pub addresses: Vec<String>,
    /// Its connections.
    pub counts: WorkerCounts,
}

/// How far a worker's life is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkerState {
    /// It serves nothing yet.
    Starting,
    /// It serves.
    Serving,
    /// It leaves connections unclaimed and gets none.
    Hung,
    /// It gets nothing new and finishes what it has.
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

    fn ask(&self, request: Request) -> Result<Completion> {
        let (answer, answered) = sync_channel(1);
        match self.requests.try_send(Order { request, answer }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(busy()),
            Err(TrySendError::Disconnected(_)) => return Err(ended()),
        }
        self.shared.waker.wake();
        answered.recv().unwrap_or_else(|_| Err(ended()))
    }

    /// Replaces every worker, one after the other, fills slots that were given up, and forgets what
    /// was held against any slot. During the start, or while workers are being replaced, that
    /// follows, once. Complete when all are replaced, or replacing has stopped, which is the
    /// completion's failure then.
    ///
    /// # Errors
    /// The run is ending or has ended; too many requests wait.
    pub fn reload(&self) -> Result<Completion> {
        self.ask(Request::Reload)
    }

    /// Changes the number of slots, and so of workers: from 1 to 1024. New ones are started at
    /// once; those with the highest numbers leave in order. Complete when as many serve, or cannot,
    /// and those that are too many have ended.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for another number; the run is ending or has ended; too many requests
    /// wait.
    pub fn scale(&self, workers: u16) -> Result<Completion> {
        super::ensure_count(workers)?;
        self.ask(Request::Scale(workers))
    }

    /// Ends the run in order: nothing new is accepted, and workers have this long to finish what
    /// they have, or as long as the supervisor was told. Complete when the run has ended.
    ///
    /// # Errors
    /// The run has ended; too many requests wait.
    pub fn stop(&self, grace: Option<Duration>) -> Result<Completion> {
        self.ask(Request::Stop(grace))
    }

    /// Replaces one worker as a reload does. Complete when it has been replaced, or replacing has
    /// stopped, which is the completion's failure then.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchWorker`]; the run does not serve; too many requests wait.
    pub fn replace(&self, worker: WorkerId) -> Result<Completion> {
        self.ask(Request::Replace(worker))
    }

    /// Lets one worker leave, and starts another one for its slot without waiting for its end.
    /// Complete when it has ended.
    ///
    /// # Errors
    /// As [`replace`](Self::replace).
    pub fn drain(&self, worker: WorkerId) -> Result<Completion> {
        self.ask(Request::Drain(worker))
    }

    /// Ends one worker by force; it is replaced as any that ends. Complete when it has ended.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchWorker`]; too many requests wait.
    pub fn kill(&self, worker: WorkerId) -> Result<Completion> {
        self.ask(Request::Kill(worker))
    }

    /// What there is: stage, slots and workers with their counts. Reads memory, asks no thread, and
    /// can be called as often as one likes.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let published = self.shared.published();
        let workers = published.workers.iter().map(|one| WorkerSnapshot {
            id: one.worker.id(),
            pid: one.worker.pid(),
            cpu: one.worker.cpu(),
            slot: one.slot,
            state: one.state,
            started: one.started,
            since: one.since,
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

    /// What happens from now on.
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
