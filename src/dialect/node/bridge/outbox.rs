//! Frames on their way to a worker, each with the descriptor that travels with it.
//!
//! Owns the order, and the rule of one descriptor a message: two in one would be told apart by
//! nobody, and Node would lose the second.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::super::session::ConnectionId;
use super::send_quota::Permit;
use crate::sys::fdpass;

/// What travels with a frame.
#[derive(Debug)]
pub(super) enum Attached {
    Nothing,
    /// A connection, of which the sender keeps its copy.
    Connection(ConnectionId),
    /// A socket that is closed once it has been sent.
    Socket(OwnedFd),
}

#[derive(Debug)]
struct Frame {
    bytes: Vec<u8>,
    sent: usize,
    attached: Attached,
    /// For a message of the program's, which is counted until it has gone.
    permit: Option<Permit>,
}

/// Why frames are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// None are.
    Nothing,
    /// The channel is full; it becomes writable when it is not.
    Full,
    /// The kernel has too many descriptors under way and does not say when it has fewer.
    Crowded,
    /// The channel is closed.
    Closed,
}

/// Frames in order.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    frames: VecDeque<Frame>,
    /// Of frames that are not counted elsewhere.
    bytes: usize,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes that wait, without messages of the program's.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, bytes: Vec<u8>, attached: Attached, permit: Option<Permit>) {
        if permit.is_none() {
            self.bytes += bytes.len();
        }
        self.frames.push_back(Frame { bytes, sent: 0, attached, permit });
    }

    /// Sends what there is room for. `lookup` finds the sockets of connections.
    pub(super) fn flush<'a>(
        &mut self,
        channel: BorrowedFd<'_>,
        lookup: impl Fn(ConnectionId) -> Option<BorrowedFd<'a>>,
    ) -> Left {
        while let Some(frame) = self.frames.front_mut() {
            let attachment = match &frame.attached {
                Attached::Nothing => None,
                Attached::Connection(connection) => lookup(*connection),
                Attached::Socket(socket) => Some(socket.as_fd()),
            };
            match fdpass::send(channel, &frame.bytes[frame.sent..], attachment.as_slice()) {
                Ok(sent) => {
                    // A descriptor travels with the first byte.
                    frame.attached = Attached::Nothing;
                    frame.sent += sent;
                    if frame.permit.is_none() {
                        self.bytes -= sent;
                    }
                    if frame.sent == frame.bytes.len() {
                        self.frames.pop_front();
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Left::Full,
                Err(Errno::ETOOMANYREFS | Errno::ENOMEM | Errno::ENOBUFS) => return Left::Crowded,
                Err(_) => return Left::Closed,
            }
        }
        Left::Nothing
    }
}
