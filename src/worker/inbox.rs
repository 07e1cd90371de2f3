//! The worker's end of the handoff channel, read only when the program accepts.
//!
//! A socket that is not read stays in the channel, where the primary can still take it back for
//! another worker. A program that does not accept therefore delays no connection.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use crate::error::Result;
use crate::id::ListenerId;
use crate::protocol::worker_end::{Count, DescriptorBudget, WorkerEnd};
use crate::sys::clock::monotonic_ns;
use crate::sys::engine::PAYLOAD_BYTES_MAX;
use crate::sys::{fdpass, limits};

/// A socket that the primary handed over.
#[derive(Debug)]
pub(super) struct HandedOver {
    pub(super) listener: ListenerId,
    pub(super) socket: OwnedFd,
    pub(super) accepted_ns: u64,
}

/// The worker's end.
#[derive(Debug)]
pub(super) struct Inbox {
    /// The control thread watches it, too, without the lock of those who read it.
    socket: Arc<OwnedFd>,
    payload: Box<[u8; PAYLOAD_BYTES_MAX]>,
    descriptors: Vec<OwnedFd>,
    budget: DescriptorBudget,
    is_closed: bool,
    /// The sockets of the last message.
    pub(super) arrived: VecDeque<HandedOver>,
}

/// The result of reading from the inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pulled {
    /// A message was read; its sockets have arrived.
    Message,
    /// The inbox is empty.
    Nothing,
    /// There may be a message, but too few descriptors are free to receive it.
    NoRoom,
    /// The primary has closed the channel.
    End,
}

impl Inbox {
    pub(super) fn new(socket: Arc<OwnedFd>) -> Result<Self> {
        let count = Count { limit: limits::descriptors_max()?, open: limits::descriptors_open() };
        Ok(Self {
            socket,
            payload: Box::new([0; PAYLOAD_BYTES_MAX]),
            descriptors: Vec::new(),
            budget: DescriptorBudget::shared(count),
            is_closed: false,
            arrived: VecDeque::new(),
        })
    }

    /// Reads one message, if its sockets fit beside this many connections.
    pub(super) fn pull(&mut self, end: &mut WorkerEnd, connections: usize) -> Pulled {
        if self.is_closed {
            return Pulled::End;
        }
        if !self.has_room(connections) {
            return Pulled::NoRoom;
        }
        let received =
            fdpass::receive(self.socket.as_fd(), &mut self.payload[..], &mut self.descriptors);
        let bytes = match received {
            Ok(arrival) if arrival.bytes > 0 => {
                if arrival.truncated {
                    self.budget.on_truncation();
                }
                arrival.bytes
            }
            Err(Errno::EAGAIN | Errno::EINTR) => return Pulled::Nothing,
            Ok(_) | Err(_) => {
                self.is_closed = true;
                return Pulled::End;
            }
        };
        if let Some(highest) = self.descriptors.iter().map(AsRawFd::as_raw_fd).max() {
            self.budget.saw(usize::try_from(highest).unwrap_or(0));
        }
        let records = end.received(&self.payload[..bytes], self.descriptors.len(), monotonic_ns());
        let sockets = self.descriptors.drain(..).zip(records);
        self.arrived.extend(sockets.map(|(socket, record)| HandedOver {
            listener: record.listener,
            socket,
            accepted_ns: record.accepted_ns,
        }));
        Pulled::Message
    }

    /// Whether the primary has closed the channel and everything has been read.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Whether the descriptors of a full message are certain to fit.
    pub(super) fn has_room(&mut self, connections: usize) -> bool {
        let now_ns = monotonic_ns();
        if self.budget.wants_limit(now_ns)
            && let Ok(limit) = limits::descriptors_max()
        {
            self.budget.set_limit(limit, now_ns);
        }
        self.budget.messages(connections, limits::descriptors_open) > 0
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
