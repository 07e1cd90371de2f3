//! A request to listen, from its arrival to its answer.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use crate::address::ListenAddress;
use crate::dialect::node::session::QueryId;
use crate::error::Result;
use crate::id::{ListenerId, WorkerId};
use crate::protocol::control::ListenOptions;

/// What an address stands for.
pub(crate) type Candidates = Arc<[ListenAddress]>;

/// A request for an address.
#[derive(Debug)]
pub(crate) struct ListenRequest {
    pub(crate) key: Key,
    /// What the key's address stands for, once it has been looked up.
    pub(crate) candidates: Option<Candidates>,
    pub(crate) opening: Opening,
    pub(crate) origin: Origin,
}

/// Where a request for an address comes from, and its answer goes.
#[derive(Debug)]
pub(crate) enum Origin {
    /// A native worker wants to serve it.
    Native { worker: WorkerId, sequence: u32 },
    /// A Node worker wants to serve it.
    Node { worker: WorkerId, query: QueryId },
    /// The program wants to keep it open.
    Program { answer: SyncSender<Result<(ListenerId, String)>> },
}

impl Origin {
    pub(crate) fn worker(&self) -> Option<WorkerId> {
        match self {
            Self::Native { worker, .. } | Self::Node { worker, .. } => Some(*worker),
            Self::Program { .. } => None,
        }
    }
}

/// What a worker asks for: workers that ask for the same share a socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The address as it was asked for.
    pub(crate) address: ListenAddress,
    /// How to open it, without the backlog, which the first request decides.
    pub(crate) options: ListenOptions,
    /// For port 0: this worker's nth request for the address, from 0.
    index: u32,
}

/// How a socket is opened, as far as that is the cluster's choice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    /// Connections that may wait.
    pub(crate) backlog: u32,
    /// Each worker gets a separate socket (SO_REUSEPORT).
    pub(crate) socket_for_each: bool,
    /// `accept` on it blocks.
    pub(crate) blocking: bool,
    /// Connections wait in the kernel until their clients have sent something.
    pub(crate) defer_accept: bool,
}

impl Key {
    pub(crate) fn new(address: &ListenAddress, options: ListenOptions, index: u32) -> Self {
        let mut options = options;
        options.backlog = None;
        Self { address: address.clone(), options, index }
    }
}
