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
use super::frame::{HEADER_BYTES, Header, Kind, garbage};
use crate::error::{Error, Result};
use crate::sys::fdpass;

/// Maximum number of bytes per `recvmsg`.
const PART_BYTES: usize = 64 * 1024;
/// Maximum number of bytes received per call, so that one busy channel does not starve the others.
const TURN_BYTES_MAX: usize = 512 * 1024;
/// Maximum number of frames whose descriptors have arrived before their bodies are complete.
/// Usually there is one.
const GROUPS_MAX: usize = 64;

/// The receiving half.
#[derive(Debug)]
pub struct Incoming {
    socket: Arc<OwnedFd>,
    bytes: Vec<u8>,
    part: Box<[u8]>,
    groups: VecDeque<Group>,
    closed: bool,
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
    Word(W),
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
        Self { socket, bytes: Vec::new(), part, groups: VecDeque::new(), closed: false }
    }

    /// Whether the peer has closed its end and everything it sent has been received.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Appends the frames that have arrived to `frames`. A call receives a bounded amount; the rest
    /// is left for the next call.
    ///
    /// # Errors
    /// The peer violated the format; the channel is unusable. `frames` holds what came before.
    pub fn receive<W: DeserializeOwned>(&mut self, frames: &mut Vec<Received<W>>) -> Result<()> {
        self.fill()?;
        let mut start = 0;
        let outcome = loop {
            match self.frame(start) {
                Ok(Some((frame, end))) => {
                    frames.push(frame);
                    start = end;
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.bytes.drain(..start);
        outcome
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
            Kind::Control => Body::Word(
                serde_json::from_slice(body).map_err(|error| garbage(&error.to_string()))?,
            ),
            Kind::Message(serialization) if serialization.is_value(body) => {
                Body::Message { serialization, bytes: body.to_vec() }
            }
            Kind::Message(serialization) => {
                return Err(garbage(&format!("a message is not {}", serialization.name())));
            }
        };
        let (descriptors, lost) = self.passengers(header.descriptors)?;
        Ok(Some((Received { body, descriptors, lost }, begin + header.length)))
    }

    fn passengers(&mut self, count: usize) -> Result<(Vec<OwnedFd>, usize)> {
        if count == 0 {
            return Ok((Vec::new(), 0));
        }
        let group = self.groups.pop_front().ok_or_else(|| garbage("a descriptor is missing"))?;
        match count.checked_sub(group.descriptors.len()) {
            Some(lost) if lost == 0 || group.truncated => Ok((group.descriptors, lost)),
            _ => Err(garbage("a frame came with another number of descriptors than it says")),
        }
    }

    fn fill(&mut self) -> Result<()> {
        let mut received = 0;
        while received < TURN_BYTES_MAX && !self.closed {
            let mut descriptors = Vec::new();
            match fdpass::receive(self.socket.as_fd(), &mut self.part, &mut descriptors) {
                Ok(arrival) if arrival.bytes == 0 => self.closed = true,
                Ok(arrival) => {
                    received += arrival.bytes;
                    self.bytes.extend_from_slice(&self.part[..arrival.bytes]);
                    if !descriptors.is_empty() || arrival.truncated {
                        let truncated = arrival.truncated;
                        self.groups.push_back(Group { descriptors, truncated });
                    }
                    if self.groups.len() > GROUPS_MAX {
                        return Err(garbage("descriptors came without frames"));
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
