//! Cancels operations. A cancelled operation still reports, with its own completion.

use io_uring::opcode;

use super::Ring;
use super::operation::{Operation, Token, place_key};
use crate::engine::Key;

impl Ring {
    /// Cancels the accept armed under `key`.
    pub fn cancel_accept(&mut self, key: Key) {
        self.cancel(Operation::Accept, key);
    }

    /// Cancels the receive armed under `key`.
    pub fn cancel_receive(&mut self, key: Key) {
        self.cancel(Operation::Receive, key);
    }

    /// Cancels the receive of messages of `key`.
    pub fn cancel_receive_messages(&mut self, key: Key) {
        self.cancel(Operation::ReceiveMessage, key);
    }

    /// Cancels the poll of `key`.
    pub fn cancel_poll(&mut self, key: Key) {
        self.cancel(Operation::Poll, key);
    }

    /// Cancels the send of `key`; its buffer comes back with the number of bytes sent.
    pub fn cancel_send(&mut self, key: Key) {
        // A search over all sends, which is rare: only a client that does not read its answer
        // causes it.
        let found = self.sends.iter().find(|(_, (owner, _))| *owner == key);
        if let Some((place, _)) = found {
            self.cancel(Operation::Send, place_key(place));
        }
    }

    fn cancel(&mut self, operation: Operation, key: Key) {
        let target = Token::new(operation, key);
        let entry = opcode::AsyncCancel::new(target.0).build();
        self.push(Operation::Cancel, key, entry);
    }
}
