//! Connections that begin with a header of the PROXY protocol.
//!
//! Owns that a session sees no byte of it, and that a connection without one is closed and counted.
//! What the header says is of no interest to the built-in sessions.

use clusterlb::ListenerId;
use clusterlb::protocol::proxy_protocol::parse;
use clusterlb::protocol::scoreboard::Statistic;
use clusterlb_sys::engine::{Chunk, Key};

use super::{Connections, memory};
use crate::command::server::surroundings::Surroundings;

impl Connections {
    /// Connections of this listener begin with a header.
    pub(in crate::command::server) fn expect_headers(&mut self, listener: ListenerId) {
        self.proxied.insert(listener);
    }

    /// Takes bytes of a connection that waits for its header.
    pub(super) fn take_header(&mut self, around: &mut Surroundings, key: Key, chunk: Chunk) {
        let connection = &mut self.table[key.index as usize];
        memory::keep(&mut connection.input, around.engine.bytes(&chunk));
        around.engine.recycle(chunk);
        match parse(&connection.input) {
            Ok(Some((_, length))) => {
                connection.awaits_header = false;
                connection.input.drain(..length);
                self.step_from_input(around, key);
            }
            Ok(None) => {}
            Err(_) => return self.refuse(around, key),
        }
        self.advance(around, key);
    }

    /// Closes a connection that has no header.
    pub(super) fn refuse(&mut self, around: &mut Surroundings, key: Key) {
        around.end.add(Statistic::HeadersRefused, 1);
        self.close(around, key);
    }
}
