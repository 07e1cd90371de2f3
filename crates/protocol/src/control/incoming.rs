//! The receiving half of a control channel.
//!
//! Owns partially received frames and the assignment of descriptors to frames. Never blocks.
//! Rejects frames that are too long or malformed.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use serde::de::DeserializeOwned;

use super::Serialization;
use super::frame::{FRAME_DESCRIPTORS_MAX, HEADER_BYTES, Header, Kind, garbage};
use crate::error::{Error, Result};
use crate::sys::fdpass;

/// Maximum number of bytes per `recvmsg`.
const PART_BYTES: usize = 64 * 1024;
/// Maximum number of bytes received per call, so that one busy channel does not starve the others.
const TURN_BYTES_MAX: usize = 512 * 1024;
/// Descriptors taken from one message of the kernel: a frame's, and one that shows that there are
/// more. The kernel closes the rest.
const DESCRIPTORS_MAX: usize = FRAME_DESCRIPTORS_MAX + 1;
/// Frames with descriptors taken in one go.
const GROUPS_MAX: usize = 8;

/// The receiving half.
#[derive(Debug)]
pub struct Incoming {
    socket: Arc<OwnedFd>,
    bytes: Vec<u8>,
    part: Box<[u8]>,
    groups: VecDeque<Group>,
    closed: bool,
    /// A frame may lie in `bytes` that has not been looked at.
    has_more: bool,
    /// In all.
    received_bytes: u64,
}

/// The descriptors of one frame. The kernel never merges those of two frames into one receive call.
#[derive(Debug)]
struct Group {
    descriptors: Vec<OwnedFd>,
    /// The kernel dropped some because this process had no free descriptor.
    truncated: bool,
}

/// The contents of a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Body<W> {
    /// A control message.
    Control(W),
    /// A well-formed message of the program.
    Message {
        /// Format of the message.
        serialization: Serialization,
        /// The serialised message.
        bytes: Vec<u8>,
    },
}

/// A received frame.
#[derive(Debug)]
pub struct Received<W> {
    /// The contents.
    pub body: Body<W>,
    /// Descriptors that came with the frame.
    pub descriptors: Vec<OwnedFd>,
    /// Number of descriptors lost because this process had none free.
    pub lost: usize,
}

impl Incoming {
    pub(super) fn new(socket: Arc<OwnedFd>) -> Self {
        let part = vec![0; PART_BYTES].into_boxed_slice();
        Self {
            socket,
            bytes: Vec::new(),
            part,
            groups: VecDeque::new(),
            closed: false,
            has_more: false,
            received_bytes: 0,
        }
    }

    /// Whether the peer has closed its end and everything it sent has been received.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Frames are left of what has been received: [`receive_some`](Self::receive_some) finds them
    /// though the socket may have nothing more.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.has_more
    }

    /// How much has been received since the beginning.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// Appends what has arrived to `frames`. What one call leaves behind is there at the next.
    ///
    /// # Errors
    /// The peer violated the format; the channel is unusable. `frames` holds what came before.
    pub fn receive<W: DeserializeOwned>(&mut self, frames: &mut Vec<Received<W>>) -> Result<()> {
        self.receive_some(frames, usize::MAX, TURN_BYTES_MAX)
    }

    /// As [`receive`](Self::receive), up to this many frames and about this many bytes, for a
    /// caller that reads several channels.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn receive_some<W: DeserializeOwned>(
        &mut self,
        frames: &mut Vec<Received<W>>,
        frames_max: usize,
        bytes_max: usize,
    ) -> Result<()> {
        if !std::mem::take(&mut self.has_more) {
            self.fill(bytes_max)?;
        }
        let (mut start, mut count) = (0, 0);
        let outcome = loop {
            if count == frames_max {
                self.has_more = true;
                break Ok(());
            }
            match self.frame(start) {
                Ok(Some((frame, end))) => {
                    frames.push(frame);
                    (start, count) = (end, count + 1);
                }
                Ok(None) => break self.ensure_named(start),
                Err(error) => break Err(error),
            }
        };
        self.bytes.drain(..start);
        outcome
    }

    /// Descriptors come with the first byte of their frame. The only ones left must belong to a
    /// frame that is still incomplete.
    fn ensure_named(&self, start: usize) -> Result<()> {
        let begun = Header::at_start(&self.bytes[start..])?;
        let expected = match begun {
            Some(header) => usize::from(header.descriptors > 0),
            None => usize::from(self.bytes.len() > start),
        };
        match self.groups.len() > expected {
            true => Err(garbage("descriptors came without a frame that names them")),
            false => Ok(()),
        }
    }

    /// The frame at `start` and its end offset; `None` if it is incomplete.
    fn frame<W: DeserializeOwned>(&mut self, start: usize) -> Result<Option<(Received<W>, usize)>> {
        let Some(header) = Header::at_start(&self.bytes[start..])? else {
            return Ok(None);
        };
        let begin = start + HEADER_BYTES;
        let Some(body) = self.bytes.get(begin..begin + header.length) else {
            // Reserve the whole frame at once: growing for each part would copy it repeatedly.
            self.bytes.reserve(begin + header.length - self.bytes.len());
            return Ok(None);
        };
        let body = match header.kind {
            Kind::Control => Body::Control(
                serde_json::from_slice(body).map_err(|error| garbage(&error.to_string()))?,
            ),
            Kind::Message(serialization) if serialization.is_value(body) => {
                Body::Message { serialization, bytes: body.to_vec() }
            }
            Kind::Message(serialization) => {
                return Err(garbage(&format!("a message is not {}", serialization.name())));
            }
        };
        let (descriptors, lost) = self.take_descriptors(header.descriptors)?;
        Ok(Some((Received { body, descriptors, lost }, begin + header.length)))
    }

    fn take_descriptors(&mut self, count: usize) -> Result<(Vec<OwnedFd>, usize)> {
        if count == 0 {
            return Ok((Vec::new(), 0));
        }
        let group = self.groups.pop_front().ok_or_else(|| garbage("a descriptor is missing"))?;
        match count.checked_sub(group.descriptors.len()) {
            Some(lost) if lost == 0 || group.truncated => Ok((group.descriptors, lost)),
            _ => Err(garbage("a frame came with a different number of descriptors than it names")),
        }
    }

    /// Receives until the socket is empty or enough has arrived. Descriptors are assigned to their
    /// frames before more are received.
    fn fill(&mut self, bytes_max: usize) -> Result<()> {
        let mut received = 0;
        while received < bytes_max && !self.closed {
            let mut descriptors = Vec::new();
            let (socket, part) = (self.socket.as_fd(), &mut self.part);
            match fdpass::receive_up_to(socket, part, &mut descriptors, DESCRIPTORS_MAX) {
                Ok(arrival) if arrival.bytes == 0 => self.closed = true,
                Ok(arrival) => {
                    received += arrival.bytes;
                    self.received_bytes += arrival.bytes as u64;
                    self.bytes.extend_from_slice(&self.part[..arrival.bytes]);
                    if !descriptors.is_empty() || arrival.truncated {
                        let truncated = arrival.truncated;
                        self.groups.push_back(Group { descriptors, truncated });
                    }
                    if self.groups.len() >= GROUPS_MAX {
                        // There may be more; the socket stays readable.
                        break;
                    }
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => self.closed = true,
                Err(errno) => return Err(Error::system("receive on the control channel", errno)),
            }
        }
        Ok(())
    }
}

impl AsFd for Incoming {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
