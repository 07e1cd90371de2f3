//! The sending half of a control channel.
//!
//! Owns what waits for room in the socket, and its bounds. Never blocks.

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

/// Most bytes waiting for room. At the bound, sending fails: the other side does not read.
pub const WAITING_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Most frames waiting.
pub const WAITING_FRAMES_MAX: usize = 16 * 1024;
/// Bytes and frames beyond these bounds that are kept free for words of ours: one must be able to
/// tell a worker to leave, however much it has not read.
const RESERVED_BYTES: usize = 1024 * 1024;
const RESERVED_FRAMES: usize = 1024;
/// Most descriptors waiting.
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

/// How far sending has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Nothing waits.
    Everything,
    /// The socket is full: go on when it is writable.
    Full,
    /// The kernel has too many descriptors of this user under way (ETOOMANYREFS) and does not say
    /// when that ends: go on a little later.
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

    /// Sends a word of ours, or keeps it until there is room.
    ///
    /// # Errors
    /// The other end is gone, or has not read for too long.
    pub fn send<M: Serialize>(&mut self, word: &M, descriptors: Vec<OwnedFd>) -> Result<Flushed> {
        let body = Serialization::Json.encode(word)?;
        self.enqueue(Kind::Control, &body, descriptors)
    }

    /// Sends a message of the program, written down already, or keeps it until there is room.
    ///
    /// # Errors
    /// EMSGSIZE for one that is too long (16 MiB) or has too many descriptors (8); EAGAIN when too
    /// much waits (32 MiB, 16,384 frames or 256 descriptors), because the other end does not read;
    /// EPIPE when it is gone.
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

    /// Sends what waits, as far as there is room.
    ///
    /// # Errors
    /// The other end is gone.
    pub fn flush(&mut self) -> Result<Flushed> {
        while let Some(frame) = self.waiting.front_mut() {
            let descriptors: Vec<_> = frame.descriptors.iter().map(AsFd::as_fd).collect();
            let rest = &frame.bytes[frame.sent..];
            match fdpass::send(self.socket.as_fd(), rest, &descriptors) {
                Ok(sent) => {
                    // Descriptors travel with the first byte, so they are gone now.
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

    /// Something waits for room.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Ends the channel in both directions: the other end sees what has been sent, then the end.
    /// What waits is given up.
    pub fn close(&mut self) {
        if !self.closed {
            self.closed = true;
            self.waiting.clear();
            (self.waiting_bytes, self.waiting_descriptors) = (0, 0);
            // It can only fail if the other end has been faster.
            let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        }
    }

    /// The channel has been ended from this side.
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
