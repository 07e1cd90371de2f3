//! Frames queued for a worker, each with at most one descriptor.
//!
//! Owns their order, and the rule of one descriptor per message: with two, neither side could
//! assign them, and Node would lose the second.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::super::session::ConnectionId;
use super::send_quota::Permit;
use crate::sys::fdpass;

/// The descriptor of a frame.
#[derive(Debug)]
pub(super) enum Attached {
    Nothing,
    /// A connection; the sender keeps its copy.
    Connection(ConnectionId),
    /// A socket that is closed once it has been sent.
    Socket(OwnedFd),
}

#[derive(Debug)]
struct Frame {
    bytes: Vec<u8>,
    sent: usize,
    attached: Attached,
    /// The permit of a program's message, held until it is sent.
    permit: Option<Permit>,
}

/// Why frames are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// No frames are left.
    Nothing,
    /// The channel is full; wait until it is writable.
    Full,
    /// The kernel has too many descriptors in flight and does not signal when that ends.
    Crowded,
    /// The channel is closed.
    Closed,
}

/// Frames in order.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    frames: VecDeque<Frame>,
    /// Bytes of frames without a permit.
    bytes: usize,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Number of queued bytes, without messages of the program.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, bytes: Vec<u8>, attached: Attached, permit: Option<Permit>) {
        if permit.is_none() {
            self.bytes += bytes.len();
        }
        self.frames.push_back(Frame { bytes, sent: 0, attached, permit });
    }

    /// Sends as many frames as the channel has room for. `lookup` finds the sockets of connections.
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
                    // The descriptor is sent with the first byte.
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
