//! A request to listen, from its arrival to its answer.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use crate::address::ListenAddress;
use crate::dialect::node::session::QueryId;
use crate::error::Result;
use crate::id::{ListenerId, WorkerId};
use crate::protocol::control::ListenOptions;

/// The addresses that a name stands for.
pub(crate) type Candidates = Arc<[ListenAddress]>;

/// A request for an address.
#[derive(Debug)]
pub(crate) struct ListenRequest {
    pub(crate) key: Key,
    /// The addresses for the key, once looked up.
    pub(crate) candidates: Option<Candidates>,
    pub(crate) opening: Opening,
    pub(crate) requester: Requester,
}

/// What has made a request, and gets the answer.
#[derive(Debug)]
pub(crate) enum Requester {
    /// A native worker wants to serve it.
    Native { worker: WorkerId, sequence: u32 },
    /// A Node worker wants to serve it.
    Node { worker: WorkerId, query: QueryId },
    /// The program wants to keep it open.
    Program { answer: SyncSender<Result<(ListenerId, String)>> },
}

impl Requester {
    pub(crate) fn worker(&self) -> Option<WorkerId> {
        match self {
            Self::Native { worker, .. } | Self::Node { worker, .. } => Some(*worker),
            Self::Program { .. } => None,
        }
    }
}

/// The key of a request: workers with equal keys share a socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The address as requested.
    pub(crate) address: ListenAddress,
    /// The options, without the backlog, which the first request decides.
    pub(crate) options: ListenOptions,
    /// For port 0: this worker's nth request for the address, from 0.
    index: u32,
}

/// The cluster's choices for opening a socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    /// Connections that may wait.
    pub(crate) backlog: u32,
    /// Each worker gets a separate socket (SO_REUSEPORT).
    pub(crate) socket_for_each: bool,
    /// `accept` on it blocks.
    pub(crate) blocking: bool,
    /// Connections wait in the kernel until their clients have sent data.
    pub(crate) defer_accept: bool,
}

impl Key {
    pub(crate) fn new(address: &ListenAddress, options: ListenOptions, index: u32) -> Self {
        let mut options = options;
        options.backlog = None;
        Self { address: address.clone(), options, index }
    }
}
