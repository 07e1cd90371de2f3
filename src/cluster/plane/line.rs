//! How handles reach the control plane: requests and a bell.

use std::ffi::OsString;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::time::Duration;

use nix::sys::eventfd::EventFd;
use serde_json::Value;

use super::super::completion::Completion;
use super::super::mailbox::ring;
use super::super::{ClusterSettings, WorkerHandle};
use crate::address::ListenAddress;
use crate::error::{Error, Result};
use crate::id::{ListenerId, Slot, WorkerId};
use crate::primary::Totals;

/// What the control plane is asked for.
#[derive(Debug)]
pub(in crate::cluster) enum Request {
    /// Start a worker.
    Fork {
        /// How.
        settings: Arc<ClusterSettings>,
        /// Variables of its own.
        environment: Vec<(OsString, OsString)>,
        /// Its debugger's port.
        inspect_port: Option<u16>,
        /// Its place; the first free one, if none is wanted.
        slot: Option<Slot>,
        /// Where the answer goes.
        answer: SyncSender<Result<WorkerHandle>>,
    },
    /// Open an address and keep it open, whoever serves it.
    Hold {
        /// What concerns the whole cluster.
        settings: Arc<ClusterSettings>,
        /// Which address.
        address: ListenAddress,
        /// Where the answer goes: the number and the bound address.
        answer: SyncSender<Result<(ListenerId, String)>>,
    },
    /// Accept.
    Open,
    /// A message for the program of a Node worker.
    Post {
        /// Whose.
        id: WorkerId,
        /// What.
        message: Value,
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
        /// After which time its connections shall be cut.
        grace: Option<Duration>,
    },
    /// Let everybody leave and close everything.
    DisconnectAll {
        /// After which time connections shall be cut.
        grace: Option<Duration>,
        /// Told when nothing is left.
        completion: Completion,
    },
    /// End whatever is left by force, and the control plane.
    End {
        /// Where the sums go.
        answer: SyncSender<Result<Totals>>,
    },
}

/// The asking end.
#[derive(Clone, Debug)]
pub(in crate::cluster) struct Line {
    requests: Sender<Request>,
    bell: Arc<EventFd>,
}

impl Line {
    pub(in crate::cluster) fn new(bell: Arc<EventFd>) -> (Self, Receiver<Request>) {
        let (requests, received) = channel();
        (Self { requests, bell }, received)
    }

    /// Asks for something.
    ///
    /// # Errors
    /// The cluster has ended.
    pub(in crate::cluster) fn send(&self, request: Request) -> Result<()> {
        self.requests.send(request).map_err(|_| ended())?;
        ring(&self.bell);
        Ok(())
    }

    /// Asks for something and waits for the answer.
    ///
    /// # Errors
    /// What the answer is, or the cluster has ended.
    pub(in crate::cluster) fn ask<T>(
        &self,
        request: impl FnOnce(SyncSender<Result<T>>) -> Request,
    ) -> Result<T> {
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        self.send(request(answer))?;
        answered.recv().unwrap_or_else(|_| Err(ended()))
    }
}

fn ended() -> Error {
    Error::Workers {
        what: "the cluster has ended".into(),
        hint: "keep a `Cluster` as long as there are workers; the error event says if it failed"
            .into(),
    }
}
