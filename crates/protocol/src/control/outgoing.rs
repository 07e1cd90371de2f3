//! The sending half of a control channel.
//!
//! Owns the queue of frames that wait for the socket, and its bounds. Never blocks.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{Shutdown, shutdown};
use serde::Serialize;

use super::Serialization;
use super::frame::{FRAME_DESCRIPTORS_MAX, Header, Kind};
use crate::error::{Error, Result};
use crate::sys::fdpass;

/// Maximum number of queued bytes. At the bound, sending fails because the peer is not reading.
pub const WAITING_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Maximum number of queued frames.
pub const WAITING_FRAMES_MAX: usize = 16 * 1024;
/// Reserve beyond these bounds for control messages, so that a worker that does not read can still
/// be told to leave.
const RESERVED_BYTES: usize = 1024 * 1024;
const RESERVED_FRAMES: usize = 1024;
/// Maximum number of queued descriptors.
pub const WAITING_DESCRIPTORS_MAX: usize = 256;

/// The sending half.
#[derive(Debug)]
pub struct Outgoing {
    socket: Arc<OwnedFd>,
    waiting: VecDeque<Frame>,
    waiting_bytes: usize,
    waiting_descriptors: usize,
    closed: bool,
}

#[derive(Debug)]
struct Frame {
    bytes: Vec<u8>,
    sent: usize,
    descriptors: Vec<OwnedFd>,
}

/// Result of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// The queue is empty.
    Everything,
    /// The socket is full: continue when it is writable.
    Full,
    /// The user has too many descriptors in flight (ETOOMANYREFS). The kernel does not signal the
    /// end of this state, so retry later.
    Crowded,
}

impl Outgoing {
    pub(super) fn new(socket: Arc<OwnedFd>) -> Self {
        Self {
            socket,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            waiting_descriptors: 0,
            closed: false,
        }
    }

    /// Sends a control message, or queues it until the socket has room.
    ///
    /// # Errors
    /// The peer has closed its end, or has not read for so long that the queue is full.
    pub fn send<M: Serialize>(
        &mut self,
        message: &M,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Flushed> {
        let body = Serialization::Json.encode(message)?;
        self.enqueue(Kind::Control, &body, descriptors)
    }

    /// Sends a serialised message of the program, or queues it until the socket has room.
    ///
    /// # Errors
    /// EMSGSIZE for a message that is too long (16 MiB) or has too many descriptors (8); EAGAIN
    /// when the queue is full (32 MiB, 16,384 frames or 256 descriptors), because the peer does not
    /// read; EPIPE when the peer has closed its end.
    pub fn send_message(
        &mut self,
        serialization: Serialization,
        body: &[u8],
        descriptors: Vec<OwnedFd>,
    ) -> Result<Flushed> {
        self.enqueue(Kind::Message(serialization), body, descriptors)
    }

    fn enqueue(&mut self, kind: Kind, body: &[u8], descriptors: Vec<OwnedFd>) -> Result<Flushed> {
        let failed = |errno| Error::system("send on the control channel", errno);
        if self.closed {
            return Err(failed(Errno::EPIPE));
        }
        if body.len() > kind.bytes_max() || descriptors.len() > FRAME_DESCRIPTORS_MAX {
            return Err(failed(Errno::EMSGSIZE));
        }
        let (bytes_max, frames_max) = match kind {
            Kind::Control => {
                (WAITING_BYTES_MAX + RESERVED_BYTES, WAITING_FRAMES_MAX + RESERVED_FRAMES)
            }
            Kind::Message(_) => (WAITING_BYTES_MAX, WAITING_FRAMES_MAX),
        };
        if self.waiting_bytes + body.len() > bytes_max
            || self.waiting.len() >= frames_max
            || self.waiting_descriptors + descriptors.len() > WAITING_DESCRIPTORS_MAX
        {
            return Err(failed(Errno::EAGAIN));
        }
        let header = Header { length: body.len(), descriptors: descriptors.len(), kind };
        let bytes = [&header.to_bytes()[..], body].concat();
        self.waiting_bytes += bytes.len();
        self.waiting_descriptors += descriptors.len();
        self.waiting.push_back(Frame { bytes, sent: 0, descriptors });
        self.flush()
    }

    /// Sends queued data, as far as the socket has room.
    ///
    /// # Errors
    /// The peer has closed its end.
    pub fn flush(&mut self) -> Result<Flushed> {
        while let Some(frame) = self.waiting.front_mut() {
            let descriptors: Vec<_> = frame.descriptors.iter().map(AsFd::as_fd).collect();
            let rest = &frame.bytes[frame.sent..];
            match fdpass::send(self.socket.as_fd(), rest, &descriptors) {
                Ok(sent) => {
                    // Descriptors are sent with the first byte, so they can be closed.
                    self.waiting_descriptors -= frame.descriptors.len();
                    frame.descriptors.clear();
                    frame.sent += sent;
                    self.waiting_bytes -= sent;
                    if frame.sent == frame.bytes.len() {
                        self.waiting.pop_front();
                    }
                }
                Err(Errno::EAGAIN) => return Ok(Flushed::Full),
                Err(Errno::ETOOMANYREFS) => return Ok(Flushed::Crowded),
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    self.close();
                    return Err(Error::system("send on the control channel", errno));
                }
            }
        }
        Ok(Flushed::Everything)
    }

    /// Whether the queue is not empty.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Shuts the channel down in both directions: the peer receives what has been sent, then the
    /// end of file. Queued frames are dropped.
    pub fn close(&mut self) {
        if !self.closed {
            self.closed = true;
            self.waiting.clear();
            (self.waiting_bytes, self.waiting_descriptors) = (0, 0);
            // Fails only if the peer has already closed.
            let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        }
    }

    /// Whether this side has closed the channel.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }
}

impl AsFd for Outgoing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
