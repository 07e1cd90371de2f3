//! A control channel whose two halves are used from a single thread.
//!
//! Never blocks: data that the socket does not accept is queued, up to a bound, until `flush`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Body, Flushed, Incoming, Outgoing, Received};
use crate::error::Result;

/// One end of a control channel.
#[derive(Debug)]
pub struct Channel {
    incoming: Incoming,
    outgoing: Outgoing,
}

/// Splits one end of a stream socket pair into its receiving and sending halves.
#[must_use]
pub fn halves(socket: OwnedFd) -> (Incoming, Outgoing) {
    let socket = Arc::new(socket);
    (Incoming::new(Arc::clone(&socket)), Outgoing::new(socket))
}

impl Channel {
    /// Takes over one end of a stream socket pair.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        let (incoming, outgoing) = halves(socket);
        Self { incoming, outgoing }
    }

    /// Whether the peer has closed its end and everything it sent has been received.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.incoming.is_closed()
    }

    /// Sends a control message, or queues it until the socket has room.
    ///
    /// # Errors
    /// The peer has closed its end, or has not read for so long that the queue is full.
    pub fn send<W: Serialize>(
        &mut self,
        message: &W,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Flushed> {
        self.outgoing.send(message, descriptors)
    }

    /// Sends queued data, as far as the socket has room.
    ///
    /// # Errors
    /// The peer has closed its end.
    pub fn flush(&mut self) -> Result<Flushed> {
        self.outgoing.flush()
    }

    /// The control messages that have arrived, with their descriptors. Messages of the program are
    /// dropped; use the two halves to receive them.
    ///
    /// # Errors
    /// The peer violated the format; the channel is unusable.
    pub fn receive<W: DeserializeOwned>(&mut self) -> Result<Vec<(W, Vec<OwnedFd>)>> {
        let mut frames: Vec<Received<W>> = Vec::new();
        self.incoming.receive(&mut frames)?;
        let messages = frames.into_iter().filter_map(|frame| match frame.body {
            Body::Control(message) => Some((message, frame.descriptors)),
            Body::Message { .. } => None,
        });
        Ok(messages.collect())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.incoming.as_fd()
    }
}

#[cfg(test)]
mod tests;
