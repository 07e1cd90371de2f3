//! Both halves of a control channel, for whoever has one thread for both.
//!
//! Never blocks: what the socket has no room for waits, up to a bound, until `flush`.

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

/// Takes over one end of a stream socket pair, as two halves.
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

    /// The other end is gone and everything it said has been received.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.incoming.is_closed()
    }

    /// Sends a word, or keeps it until there is room.
    ///
    /// # Errors
    /// The other end is gone, or has not read for too long.
    pub fn send<W: Serialize>(&mut self, word: &W, descriptors: Vec<OwnedFd>) -> Result<Flushed> {
        self.outgoing.send(word, descriptors)
    }

    /// Sends what waits, as far as there is room.
    ///
    /// # Errors
    /// The other end is gone.
    pub fn flush(&mut self) -> Result<Flushed> {
        self.outgoing.flush()
    }

    /// The words that have arrived, with their descriptors. Messages of the program are for those
    /// who hold the halves; here they are dropped.
    ///
    /// # Errors
    /// The other side does not keep to the format; the channel is of no use any more.
    pub fn receive<W: DeserializeOwned>(&mut self) -> Result<Vec<(W, Vec<OwnedFd>)>> {
        let mut frames: Vec<Received<W>> = Vec::new();
        self.incoming.receive(&mut frames)?;
        let words = frames.into_iter().filter_map(|frame| match frame.body {
            Body::Word(word) => Some((word, frame.descriptors)),
            Body::Message { .. } => None,
        });
        Ok(words.collect())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.incoming.as_fd()
    }
}

#[cfg(test)]
mod tests;
