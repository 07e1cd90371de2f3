//! What the control plane and the bridge tell each other. Rare, and never about one connection.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use crate::sys::waker::Waker;

use super::super::codec::{Listening, Query, Serialization, SocketName, UserMessage};
use super::super::session::{Answer, QueryId, WindowRule};
use super::notices::Notices;
use super::send_quota::UserMessageOut;
use crate::data_path::Command;
use crate::id::{ListenerId, Slot, WorkerId};

/// What the control plane asks for.
#[derive(Debug)]
pub enum BridgeRequest {
    /// A worker has been started. Its slot must have been attached to the data path before.
    Admit {
        /// Which worker.
        worker: WorkerId,
        /// Its slot in the data path.
        slot: Slot,
        /// What the bridge needs for it.
        new_worker: Box<NewNodeWorker>,
    },
    /// The answer to [`Notice::Query`]. The bridge lets the worker join the listener in the data
    /// path, which must know it.
    Answer {
        /// Which worker.
        worker: WorkerId,
        /// Which request.
        query: QueryId,
        /// What it is told.
        answer: Answer,
        /// The socket for [`Answer::Share`], not blocking.
        socket: Option<OwnedFd>,
    },
    /// A message for the worker's program.
    Send {
        /// Which worker.
        worker: WorkerId,
        /// What.
        message_out: UserMessageOut,
    },
    /// The worker shall close its servers and leave, after everything in its inbox has been handed
    /// over. The end of the inbox is the data path's to make: [`Command::Retire`].
    Disconnect {
        /// Which worker.
        worker: WorkerId,
    },
    /// Everything stops: the worker's program, which has our own script in it, is told so and goes
    /// on serving until it does not wait any more ([`Notice::Stopped`]).
    Stop {
        /// Which worker.
        worker: WorkerId,
    },
    /// The worker's process has ended, or is to be given up: close its channel.
    Cut {
        /// Which worker.
        worker: WorkerId,
    },
    /// A listener has gone, and its number may be given to another.
    Forget {
        /// Which listener.
        listener: ListenerId,
    },
    /// Close everything and end.
    End,
}

/// What the bridge needs to speak for a worker.
#[derive(Debug)]
pub struct NewNodeWorker {
    /// Our end of its channel, not blocking.
    pub channel: OwnedFd,
    /// How its messages are written.
    pub serialization: Serialization,
    /// How many connections it may leave unacknowledged.
    pub window: WindowRule,
    /// The receiving end of its inbox.
    pub inbox: OwnedFd,
    /// Its page of the load board.
    pub page: OwnedFd,
}

/// What the bridge tells the control plane.
#[derive(Debug)]
pub enum Notice {
    /// The worker's Node runs; its program does not yet.
    Online {
        /// Which worker.
        worker: WorkerId,
    },
    /// The worker wants to listen; to be answered with [`BridgeRequest::Answer`].
    Query {
        /// Which worker.
        worker: WorkerId,
        /// Names the request in the answer.
        query: QueryId,
        /// Where and how.
        request: Box<Query>,
    },
    /// A server of the worker listens.
    Listening {
        /// Which worker.
        worker: WorkerId,
        /// Where.
        listening: Listening,
    },
    /// The worker has closed its last server on a listener.
    Left {
        /// Which worker.
        worker: WorkerId,
        /// Which listener.
        listener: ListenerId,
    },
    /// The worker leaves by itself, in order (Node's `exitedAfterDisconnect`).
    Leaving {
        /// Which worker.
        worker: WorkerId,
    },
    /// The worker's program has heard that everything stops and does not wait any more.
    Stopped {
        /// Which worker.
        worker: WorkerId,
        /// It has begun to close.
        closes: bool,
    },
    /// A message of the worker's program.
    Message {
        /// Which worker.
        worker: WorkerId,
        /// What.
        message: UserMessage,
        /// The descriptor that came with it.
        descriptor: Option<OwnedFd>,
    },
    /// A socket that was sent to the worker's program did not arrive: the worker had no descriptor
    /// for it. What was sent with it is lost, too.
    SocketLost {
        /// Which worker.
        worker: WorkerId,
    },
    /// The worker's channel is closed and everything that it had not taken is on its way back to
    /// the data path. The worker's last notice. Only after it may the slot be buried.
    Gone {
        /// Which worker.
        worker: WorkerId,
        /// What was wrong, if the channel was closed by us.
        failure: Option<String>,
    },
}

/// How bridge, control plane and data path reach each other.
#[derive(Debug)]
pub struct Endpoints {
    /// Orders to the bridge; ring the bell after sending.
    pub requests: Receiver<BridgeRequest>,
    /// Rung after an order, and when notices have room again.
    pub request_waker: Arc<Waker>,
    /// Notices to the control plane; they ring its bell, and the bell of the orders when there is
    /// room again.
    pub notices: Arc<Notices>,
    /// Commands to the data path.
    pub commands: Sender<Command>,
    /// Rung by the bridge after a command, and in the name of workers that were asked to.
    pub command_waker: Arc<Waker>,
}

impl Notice {
    /// Whose it is.
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

    /// Descriptors that travel with it.
    pub(super) fn descriptors(&self) -> usize {
        usize::from(matches!(self, Self::Message { descriptor: Some(_), .. }))
    }

    /// Bytes that a worker can make as many as it likes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Query { request, .. } => request.bytes,
            Self::Message { message, .. } => message.bytes().len(),
            _ => 0,
        }
    }
}

impl Endpoints {
    pub(super) fn notify(&self, notice: Notice) {
        self.notices.push(notice);
    }

    pub(super) fn command(&self, command: Command) {
        // A data path that is gone has dropped its listeners: the process is ending.
        let _ = self.commands.send(command);
        self.ring_data_path();
    }

    pub(super) fn ring_data_path(&self) {
        self.command_waker.wake();
    }
}

impl From<SocketAddr> for SocketName {
    fn from(address: SocketAddr) -> Self {
        Self::new(address.ip().to_string(), address.is_ipv6(), address.port())
    }
}
