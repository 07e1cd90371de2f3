//! How handles reach the control plane: a queue of requests and a waker.

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

/// What the control plane is asked for.
#[derive(Debug)]
pub(crate) enum Request {
    /// Start a worker.
    Fork {
        /// How.
        settings: Arc<ClusterSettings>,
        /// What is for this one alone.
        fork_request: ForkRequest,
        /// Where the answer goes.
        answer: SyncSender<Result<WorkerHandle>>,
    },
    /// Open an address and keep it open, even while no worker serves it.
    Hold {
        /// What concerns the whole cluster.
        settings: Arc<ClusterSettings>,
        /// Which address.
        address: ListenAddress,
        /// Where the answer goes: the number and the bound address.
        answer: SyncSender<Result<(ListenerId, String)>>,
    },
    /// Tell of the listeners.
    Listeners {
        /// Where the answer goes.
        answer: SyncSender<Result<Vec<ListenerSnapshot>>>,
    },
    /// Accept.
    Open,
    /// A message for the program of a Node worker.
    Post {
        /// Whose.
        id: WorkerId,
        /// What.
        message_out: UserMessageOut,
    },
    /// Something waits for room in a worker's channel.
    Flush {
        /// Whose.
        id: WorkerId,
    },
    /// Let a worker leave.
    Disconnect {
        /// Which one.
        id: WorkerId,
        /// Time after which its connections are cut.
        grace: Option<Duration>,
    },
    /// Let all workers leave and close everything.
    DisconnectAll {
        /// Time after which connections are cut.
        grace: Option<Duration>,
        /// Kept when nothing is left.
        guard: CompletionGuard,
    },
    /// Close the sockets of places that stay empty.
    Shed {
        /// Number of workers that are still to start.
        coming: usize,
        /// Where the number of connections goes that were lost by that.
        answer: SyncSender<Result<usize>>,
    },
    /// Keep a listening socket for whatever asks for its address.
    Adopt {
        /// The socket.
        listener: Box<Listener>,
        /// Where the answer goes: the bound address.
        answer: SyncSender<Result<String>>,
    },
    /// Duplicate the sockets of listeners.
    Sockets {
        /// Where the answer goes.
        answer: SyncSender<Result<Vec<ListenerSocket>>>,
    },
    /// Share connections out by other rules from now on.
    Reschedule {
        /// Who chooses.
        policy: Policy,
        /// The rules.
        scheduling: Box<SchedulerConfig>,
    },
    /// Answer, and let the data path answer, if there is one.
    Ping {
        /// Where the answer goes.
        answer: SyncSender<Result<()>>,
    },
    /// End whatever is left by force, and the control plane.
    End {
        /// Where the sums go.
        answer: SyncSender<Result<ClusterCounts>>,
    },
}

/// What a fork asks for beyond the settings.
#[derive(Debug)]
pub(crate) struct ForkRequest {
    /// Variables for this worker alone.
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// Its debugger's port.
    pub(crate) inspect_port: Option<u16>,
    /// Its place; the first free one, if none is wanted.
    pub(crate) slot: Option<Slot>,
    /// Whom it is going to replace.
    pub(crate) predecessor: Option<WorkerId>,
    /// The number that it and its successors are known by.
    pub(crate) instance: Option<u16>,
    /// Signals that are blocked where the fork was asked for.
    pub(crate) blocked_signals: BlockedSignals,
}

/// The asking end.
#[derive(Clone, Debug)]
pub(crate) struct ControlHandle {
    requests: Sender<Request>,
    waker: Arc<Waker>,
    outcome: Arc<Outcome>,
}

/// What becomes of the control plane.
#[derive(Debug, Default)]
struct Outcome {
    /// Why it could not go on.
    failure: OnceLock<Error>,
    /// Its thread has left nothing behind.
    ended: Completion,
}

/// Completes a completion when it is dropped, wherever that happens: even in a request that is
/// never read.
#[derive(Debug)]
pub(crate) struct CompletionGuard {
    completion: Completion,
    outcome: Arc<Outcome>,
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

    /// What completes `completion` when it is dropped.
    pub(crate) fn guard(&self, completion: Completion) -> CompletionGuard {
        CompletionGuard { completion, outcome: Arc::clone(&self.outcome) }
    }

    /// Records that the control plane has failed. Called before anything of it is dropped, so that
    /// callers that wait for that learn why.
    pub(crate) fn fail(&self, error: &Error) {
        let _ = self.outcome.failure.set(error.clone());
    }

    /// Why the control plane could not go on, if it could not.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.outcome.failure.get().cloned()
    }

    /// Says that nothing of the control plane is left.
    pub(crate) fn end(&self) {
        self.outcome.ended.complete();
    }

    /// Why there is no answer. The reply channel can close before the failure is recorded, so this
    /// waits for the end.
    fn ended(&self) -> Error {
        self.outcome.ended.wait();
        self.failure().unwrap_or_else(ended)
    }

    /// Asks for something.
    ///
    /// # Errors
    /// The cluster has ended, or failed.
    pub(crate) fn send(&self, request: Request) -> Result<()> {
        self.requests.send(request).map_err(|_| self.ended())?;
        self.waker.wake();
        Ok(())
    }

    /// Asks for something and waits for the answer.
    ///
    /// # Errors
    /// What the answer is, or the cluster has ended, or failed.
    pub(crate) fn ask<T>(
        &self,
        request: impl FnOnce(SyncSender<Result<T>>) -> Request,
    ) -> Result<T> {
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        self.send(request(answer))?;
        answered.recv().unwrap_or_else(|_| Err(self.ended()))
    }

    /// As [`ask`](Self::ask), and gives up after some time.
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
