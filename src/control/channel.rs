//! Frames over a stream socket: four bytes of length (little endian), one byte that counts the
//! descriptors travelling with the frame, three zero bytes, then JSON.
//!
//! Owns buffering and bounds. Never blocks: what the socket has no room for waits here, up to a
//! bound, until `flush`. Refuses frames that are too long or not what they should be.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::sys::fdpass;

/// Longest frame, in bytes of JSON. A longer one ends the channel.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Most frames waiting for room. At the bound, sending fails: the other side does not read.
const WAITING_FRAMES_MAX: usize = 256;
/// Most descriptors beside one frame.
const FRAME_DESCRIPTORS_MAX: usize = 8;
const HEADER_BYTES: usize = 8;

/// One end of a control channel.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    incoming: Vec<u8>,
    arrived: VecDeque<OwnedFd>,
    outgoing: VecDeque<Frame>,
    closed: bool,
}

#[derive(Debug)]
struct Frame {
    bytes: Vec<u8>,
    sent: usize,
    descriptors: Vec<OwnedFd>,
}

/// A message and the descriptors that came with it.
#[derive(Debug)]
pub struct Received<M> {
    /// The message.
    pub message: M,
    /// Its descriptors.
    pub descriptors: Vec<OwnedFd>,
}

impl Channel {
    /// Takes over one end of a stream socket pair.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            incoming: Vec::new(),
            arrived: VecDeque::new(),
            outgoing: VecDeque::new(),
            closed: false,
        }
    }

    /// The other end is gone and everything it said has been received.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Frames are waiting for room in the socket; call `flush` when it is writable.
    #[must_use]
    pub fn wants_room(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Sends a message, or keeps it until there is room.
    ///
    /// # Errors
    /// The other end is gone, or has not read for too long.
    pub fn send<M: Serialize>(&mut self, message: &M, descriptors: Vec<OwnedFd>) -> Result<()> {
        if self.outgoing.len() >= WAITING_FRAMES_MAX {
            return Err(Error::system("send a control message", Errno::EAGAIN));
        }
        let frame = encode(message, descriptors)?;
        self.outgoing.push_back(frame);
        self.flush()
    }

    /// Sends what waits, as far as there is room.
    ///
    /// # Errors
    /// The other end is gone.
    pub fn flush(&mut self) -> Result<()> {
        while let Some(frame) = self.outgoing.front_mut() {
            let descriptors: Vec<_> = frame.descriptors.iter().map(AsFd::as_fd).collect();
            match fdpass::send(self.socket.as_fd(), &frame.bytes[frame.sent..], &descriptors) {
                Ok(sent) => {
                    // Descriptors travel with the first byte, so they are gone now.
                    frame.descriptors.clear();
                    frame.sent += sent;
                    if frame.sent == frame.bytes.len() {
                        self.outgoing.pop_front();
                    }
                }
                Err(Errno::EAGAIN | Errno::ETOOMANYREFS) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::system("send a control message", errno)),
            }
        }
        Ok(())
    }

    /// Receives what has arrived.
    ///
    /// # Errors
    /// The other side does not keep to the format; the channel is of no use any more.
    pub fn receive<M: DeserializeOwned>(&mut self) -> Result<Vec<Received<M>>> {
        self.fill()?;
        let mut messages = Vec::new();
        let mut start = 0;
        while let Some((body, count)) = frame_at(&self.incoming[start..])? {
            let end = start + HEADER_BYTES + body;
            let message = serde_json::from_slice(&self.incoming[start + HEADER_BYTES..end])
                .map_err(|error| garbage(&error.to_string()))?;
            if self.arrived.len() < count {
                return Err(garbage("a descriptor is missing"));
            }
            messages.push(Received { message, descriptors: self.arrived.drain(..count).collect() });
            start = end;
        }
        self.incoming.drain(..start);
        Ok(messages)
    }

    fn fill(&mut self) -> Result<()> {
        let mut bytes = [0; 16 * 1024];
        let mut descriptors = Vec::new();
        // What one call leaves behind is offered again by the next readiness.
        while self.incoming.len() <= FRAME_BYTES_MAX + HEADER_BYTES {
            match fdpass::receive(self.socket.as_fd(), &mut bytes, &mut descriptors) {
                Ok(arrival) if arrival.bytes == 0 => {
                    self.closed = true;
                    break;
                }
                Ok(arrival) => {
                    self.incoming.extend_from_slice(&bytes[..arrival.bytes]);
                    self.arrived.extend(descriptors.drain(..));
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => {
                    self.closed = true;
                    break;
                }
                Err(errno) => return Err(Error::system("receive control messages", errno)),
            }
        }
        Ok(())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn encode<M: Serialize>(message: &M, descriptors: Vec<OwnedFd>) -> Result<Frame> {
    let body = serde_json::to_vec(message).map_err(|error| garbage(&error.to_string()))?;
    if body.len() > FRAME_BYTES_MAX || descriptors.len() > FRAME_DESCRIPTORS_MAX {
        return Err(Error::system("send a control message", Errno::EMSGSIZE));
    }
    let length = u32::try_from(body.len()).expect("checked against the bound above");
    let count = u8::try_from(descriptors.len()).expect("checked against the bound above");
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&[count, 0, 0, 0]);
    bytes.extend_from_slice(&body);
    Ok(Frame { bytes, sent: 0, descriptors })
}

/// Length of the body and number of descriptors of the frame at the start, once it is whole.
fn frame_at(bytes: &[u8]) -> Result<Option<(usize, usize)>> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let count = usize::from(header[4]);
    if length > FRAME_BYTES_MAX || count > FRAME_DESCRIPTORS_MAX || header[5..] != [0, 0, 0] {
        return Err(garbage("the frame's header is impossible"));
    }
    Ok((rest.len() >= length).then_some((length, count)))
}

fn garbage(why: &str) -> Error {
    Error::Workers {
        what: format!("the control channel carries garbage: {why}"),
        hint: "the worker is ended and replaced; let primary and workers be of one version".into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::control::{ToPrimary, ToWorker};

    fn pair() -> (Channel, Channel) {
        let (left, right) = fdpass::stream_pair().expect("a pair");
        (Channel::new(left), Channel::new(right))
    }

    #[test]
    fn messages_and_their_descriptors_stay_together() {
        let (mut left, mut right) = pair();
        let (passenger, _far) = fdpass::stream_pair().expect("a pair");
        left.send(&ToWorker::Drain { grace_ms: 1 }, vec![]).expect("room");
        left.send(&ToWorker::Drain { grace_ms: 2 }, vec![passenger]).expect("room");
        left.send(&ToWorker::Drain { grace_ms: 3 }, vec![]).expect("room");
        let received: Vec<Received<ToWorker>> = right.receive().expect("frames");
        let counts: Vec<usize> = received.iter().map(|one| one.descriptors.len()).collect();
        assert_eq!(counts, [0, 1, 0]);
        assert_eq!(received[2].message, ToWorker::Drain { grace_ms: 3 });
    }

    #[test]
    fn a_full_socket_delays_but_loses_nothing() {
        let (mut left, mut right) = pair();
        fdpass::bound_send_buffer(left.as_fd(), 4096).expect("a bound");
        let address = "x".repeat(3000);
        for sequence in 0..100 {
            let message = ToPrimary::Listen { sequence, address: address.clone() };
            left.send(&message, vec![]).expect("below the bound");
        }
        assert!(left.wants_room());
        let mut seen = 0;
        while seen < 100 {
            for received in right.receive::<ToPrimary>().expect("frames") {
                let expected = ToPrimary::Listen { sequence: seen, address: address.clone() };
                assert_eq!(received.message, expected);
                seen += 1;
            }
            left.flush().expect("the other end lives");
        }
    }

    #[test]
    fn a_reader_that_never_reads_is_noticed() {
        let (mut left, _right) = pair();
        let message = ToPrimary::Listen { sequence: 0, address: "x".repeat(60_000) };
        let failed = (0..1_000).find_map(|_| left.send(&message, vec![]).err());
        assert!(failed.is_some());
    }

    proptest! {
        #[test]
        fn garbage_ends_the_channel_without_panic(
            bytes in prop::collection::vec(any::<u8>(), 1..400),
        ) {
            let (left, mut right) = pair();
            fdpass::send(left.as_fd(), &bytes, &[]).expect("room");
            drop(left);
            let _ = right.receive::<ToPrimary>();
        }
    }
}
