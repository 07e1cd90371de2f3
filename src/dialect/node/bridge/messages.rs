//! Messages between the control plane and the bridge. They are rare and never concern a single
//! connection.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use super::super::codec::{Listening, Query, Serialization, SocketName, UserMessage};
use super::super::session::{Answer, QueryId, WindowRule};
use super::send_quota::UserMessageOut;
use crate::id::{ListenerId, Slot, WorkerId};

/// A request of the control plane.
#[derive(Debug)]
pub enum BridgeRequest {
    /// A worker has been started. Its slot must already be attached to the data path.
    Admit {
        /// Which worker.
        worker: WorkerId,
        /// Its slot in the data path.
        slot: Slot,
        /// The bridge's ends of its channels.
        new_worker: Box<NewNodeWorker>,
    },
    /// The reply to [`Notice::Query`]. The bridge adds the worker to the listener in the data path,
    /// which must know the listener.
    Answer {
        /// Which worker.
        worker: WorkerId,
        /// Which request.
        query: QueryId,
        /// The reply.
        answer: Answer,
        /// The non-blocking socket for [`Answer::Share`].
        socket: Option<OwnedFd>,
    },
    /// A message for the worker's program.
    Send {
        /// Which worker.
        worker: WorkerId,
        /// The message.
        message_out: UserMessageOut,
    },
    /// Make the worker close its servers and leave, once everything in its inbox has been handed
    /// over. The data path ends the inbox: [`Command::Retire`](crate::data_path::Command::Retire).
    Disconnect {
        /// Which worker.
        worker: WorkerId,
    },
    /// The run is shutting down. A worker with the preload script tells its program, which keeps
    /// serving until it no longer delays the shutdown ([`Notice::Stopped`]).
    Stop {
        /// Which worker.
        worker: WorkerId,
    },
    /// The worker's process has ended or is given up: close its channel.
    Cut {
        /// Which worker.
        worker: WorkerId,
    },
    /// A listener has been removed, and its id may be reused.
    Forget {
        /// Which listener.
        listener: ListenerId,
    },
    /// Close everything and end.
    End,
}

/// The bridge's ends of a worker's channels.
#[derive(Debug)]
pub struct NewNodeWorker {
    /// The primary's end of its channel, non-blocking.
    pub channel: OwnedFd,
    /// Serialisation of its messages.
    pub serialization: Serialization,
    /// Its window of unacknowledged connections.
    pub window: WindowRule,
    /// The receiving end of its inbox.
    pub inbox: OwnedFd,
    /// Its scoreboard page.
    pub page: OwnedFd,
}

/// A notice of the bridge to the control plane.
#[derive(Debug)]
pub enum Notice {
    /// The worker's Node runs; its program has not started.
    Online {
        /// Which worker.
        worker: WorkerId,
    },
    /// The worker wants to listen; reply with [`BridgeRequest::Answer`].
    Query {
        /// Which worker.
        worker: WorkerId,
        /// Identifies the request in the reply.
        query: QueryId,
        /// The requested address and options.
        request: Box<Query>,
    },
    /// A server of the worker listens.
    Listening {
        /// Which worker.
        worker: WorkerId,
        /// Its address.
        listening: Listening,
    },
    /// The worker has closed its last server on a listener.
    Left {
        /// Which worker.
        worker: WorkerId,
        /// Which listener.
        listener: ListenerId,
    },
    /// The worker leaves voluntarily (Node's `exitedAfterDisconnect`).
    Leaving {
        /// Which worker.
        worker: WorkerId,
    },
    /// The worker's program has been told of the shutdown and no longer delays it.
    Stopped {
        /// Which worker.
        worker: WorkerId,
        /// It has started to close.
        closes: bool,
    },
    /// A message of the worker's program.
    Message {
        /// Which worker.
        worker: WorkerId,
        /// The message.
        message: UserMessage,
        /// The attached descriptor.
        descriptor: Option<OwnedFd>,
    },
    /// A socket sent to the worker's program was lost, together with its message, because the
    /// worker had no free descriptor.
    SocketLost {
        /// Which worker.
        worker: WorkerId,
    },
    /// The worker's channel is closed, and every connection that it had not taken is on its way
    /// back to the data path. This is the worker's last notice; its slot must not be reaped before.
    Gone {
        /// Which worker.
        worker: WorkerId,
        /// What was wrong, if the bridge closed the channel.
        failure: Option<String>,
    },
}

impl Notice {
    /// The worker that the notice is about.
    #[must_use]
    pub fn worker(&self) -> WorkerId {
        match self {
            Self::Online { worker }
            | Self::Query { worker, .. }
            | Self::Listening { worker, .. }
            | Self::Left { worker, .. }
            | Self::Leaving { worker }
            | Self::Stopped { worker, .. }
            | Self::Message { worker, .. }
            | Self::SocketLost { worker }
            | Self::Gone { worker, .. } => *worker,
        }
    }

    /// Number of attached descriptors.
    pub(super) fn descriptors(&self) -> usize {
        usize::from(matches!(self, Self::Message { descriptor: Some(_), .. }))
    }

    /// Size of the parts whose length the worker controls.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Query { request, .. } => request.bytes,
            Self::Message { message, .. } => message.bytes().len(),
            _ => 0,
        }
    }
}

impl From<SocketAddr> for SocketName {
    fn from(address: SocketAddr) -> Self {
        Self::new(address.ip().to_string(), address.is_ipv6(), address.port())
    }
}
