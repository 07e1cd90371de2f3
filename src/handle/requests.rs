//! The handles' way to the control plane: a queue of requests and a waker.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::{ListenerSnapshot, WorkerHandle};
use crate::address::ListenAddress;
use crate::data_path::ClusterCounts;
use crate::dialect::node::bridge::UserMessageOut;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{ListenerId, Slot, WorkerId};
use crate::schedule::SchedulerConfig;
use crate::settings::{ClusterSettings, Policy};
use crate::sync::completion::Completion;
use crate::sys::listener::Listener;
use crate::sys::signal::BlockedSignals;
use crate::sys::waker::Waker;

/// A listener, its bound address, and a duplicate of its socket.
pub(crate) type ListenerSocket = (ListenerId, String, OwnedFd);

/// A request to the control plane.
#[derive(Debug)]
pub(crate) enum Request {
    /// Start a worker.
    Fork {
        /// The settings.
        settings: Arc<ClusterSettings>,
        /// Options of this worker.
        fork_request: ForkRequest,
        /// Receives the answer.
        answer: SyncSender<Result<WorkerHandle>>,
    },
    /// Open an address and keep it open, even while no worker serves it.
    Hold {
        /// Settings of the whole cluster.
        settings: Arc<ClusterSettings>,
        /// The address.
        address: ListenAddress,
        /// Receives the number and the bound address.
        answer: SyncSender<Result<(ListenerId, String)>>,
    },
    /// List the listeners.
    Listeners {
        /// Receives the answer.
        answer: SyncSender<Result<Vec<ListenerSnapshot>>>,
        /// Dropped behind the answer.
        guard: CompletionGuard,
    },
    /// Accept.
    Open,
    /// A message for the program of a Node worker.
    Post {
        /// The worker.
        id: WorkerId,
        /// The message.
        message_out: UserMessageOut,
    },
    /// Something waits for room in a worker's channel.
    Flush {
        /// The worker.
        id: WorkerId,
    },
    /// Let a worker leave.
    Disconnect {
        /// The worker.
        id: WorkerId,
        /// Time after which its connections are cut.
        grace: Option<Duration>,
    },
    /// Let all workers leave and close everything.
    DisconnectAll {
        /// Time after which connections are cut.
        grace: Option<Duration>,
        /// Dropped when nothing is left.
        guard: CompletionGuard,
    },
    /// Close the sockets of places that stay empty.
    Shed {
        /// Number of workers that are still to start.
        coming: usize,
        /// Receives the number of lost connections.
        answer: SyncSender<Result<usize>>,
    },
    /// Keep a listening socket for a request of its address.
    Adopt {
        /// The socket.
        listener: Box<Listener>,
        /// Receives the bound address.
        answer: SyncSender<Result<String>>,
    },
    /// Duplicate the sockets of listeners.
    Sockets {
        /// Receives the answer.
        answer: SyncSender<Result<Vec<ListenerSocket>>>,
    },
    /// Change the scheduling rules.
    Reschedule {
        /// The policy.
        policy: Policy,
        /// The rules.
        scheduling: Box<SchedulerConfig>,
    },
    /// Answer, and let the data path answer, if there is one.
    Ping {
        /// Receives the answer.
        answer: SyncSender<Result<()>>,
    },
    /// Kill what is left, and end the control plane.
    End {
        /// Receives the sums.
        answer: SyncSender<Result<ClusterCounts>>,
    },
}

/// Options of a fork in addition to the settings.
#[derive(Debug)]
pub(crate) struct ForkRequest {
    /// Variables of this worker.
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// Its debugger's port.
    pub(crate) inspect_port: Option<u16>,
    /// Its place; by default the first free one.
    pub(crate) slot: Option<Slot>,
    /// The worker that it will replace.
    pub(crate) predecessor: Option<WorkerId>,
    /// Its number, which successors inherit.
    pub(crate) instance: Option<u16>,
    /// Signals blocked in the thread that forks.
    pub(crate) blocked_signals: BlockedSignals,
}

/// The sending end.
#[derive(Clone, Debug)]
pub(crate) struct ControlHandle {
    requests: Sender<Request>,
    waker: Arc<Waker>,
    outcome: Arc<ControlPlaneEnd>,
}

/// The end of the control plane.
#[derive(Debug, Default)]
struct ControlPlaneEnd {
    /// Why it failed.
    failure: OnceLock<Error>,
    /// Its thread has left nothing behind.
    ended: Completion,
}

/// Completes a completion when dropped, wherever that happens: even in a request that is never
/// read.
#[derive(Debug)]
pub(crate) struct CompletionGuard {
    completion: Completion,
    outcome: Arc<ControlPlaneEnd>,
}

impl Drop for CompletionGuard {
    fn drop(&mut self) {
        self.completion.settle(self.outcome.failure.get().cloned());
    }
}

impl ControlHandle {
    pub(crate) fn new(waker: Arc<Waker>) -> (Self, Receiver<Request>) {
        let (requests, received) = channel();
        (Self { requests, waker, outcome: Arc::default() }, received)
    }

    /// Completes `completion` when dropped.
    pub(crate) fn guard(&self, completion: Completion) -> CompletionGuard {
        CompletionGuard { completion, outcome: Arc::clone(&self.outcome) }
    }

    /// Records that the control plane has failed. Called before any of its state is dropped, so
    /// that waiting callers learn the cause.
    pub(crate) fn fail(&self, error: &Error) {
        let _ = self.outcome.failure.set(error.clone());
    }

    /// Why the control plane failed, if it did.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.outcome.failure.get().cloned()
    }

    /// Reports that nothing of the control plane is left.
    pub(crate) fn end(&self) {
        self.outcome.ended.complete();
    }

    /// Why there is no answer. The reply channel can close before the failure is recorded, so this
    /// waits for the end.
    fn ended(&self) -> Error {
        self.outcome.ended.wait();
        self.failure().unwrap_or_else(ended)
    }

    /// Sends a request.
    ///
    /// # Errors
    /// The cluster has ended, or failed.
    pub(crate) fn send(&self, request: Request) -> Result<()> {
        self.requests.send(request).map_err(|_| self.ended())?;
        self.waker.wake();
        Ok(())
    }

    /// Sends a request and waits for the answer.
    ///
    /// # Errors
    /// The answer's error, or the cluster has ended, or failed.
    pub(crate) fn ask<T>(
        &self,
        request: impl FnOnce(SyncSender<Result<T>>) -> Request,
    ) -> Result<T> {
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        self.send(request(answer))?;
        answered.recv().unwrap_or_else(|_| Err(self.ended()))
    }

    /// As [`ask`](Self::ask), for a task. The guard completes it, when the control plane drops it
    /// behind its answer, or instead of one.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub(crate) async fn ask_async<T>(
        &self,
        request: impl FnOnce(SyncSender<Result<T>>, CompletionGuard) -> Request,
    ) -> Result<T> {
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        let completion = Completion::default();
        if self.requests.send(request(answer, self.guard(completion.clone()))).is_ok() {
            self.waker.wake();
        }
        completion.clone().await;
        let failure = || completion.failure().unwrap_or_else(ended);
        answered.try_recv().unwrap_or_else(|_| Err(failure()))
    }

    /// As [`ask`](Self::ask), with a time limit.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub(crate) fn ask_within<T>(
        &self,
        within: Duration,
        request: impl FnOnce(SyncSender<Result<T>>) -> Request,
    ) -> Result<Option<T>> {
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        self.send(request(answer))?;
        match answered.recv_timeout(within) {
            Ok(answer) => answer.map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(self.ended()),
        }
    }
}

fn ended() -> Error {
    Error::cluster(
        ErrorKind::Ended,
        "the cluster has ended",
        "keep a `Cluster` as long as there are workers",
    )
}
