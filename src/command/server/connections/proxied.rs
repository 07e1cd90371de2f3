//! Connections that begin with a header of the PROXY protocol.
//!
//! Owns that a session sees no byte of it, and that a connection without one is closed and counted.
//! What the header says is of no interest to the built-in sessions.

use clusterlb::ListenerId;
use clusterlb::protocol::proxy_protocol::parse;
use clusterlb::protocol::scoreboard::Statistic;
use clusterlb_sys::engine::{Chunk, Key};

use super::{Connections, memory};
use crate::command::server::shared::Shared;

impl Connections {
    /// Connections of this listener begin with a header.
    pub(in crate::command::server) fn expect_headers(&mut self, listener: ListenerId) {
        self.proxied.insert(listener);
    }

    /// Takes bytes of a connection that waits for its header.
    pub(super) fn take_header(&mut self, shared: &mut Shared, key: Key, chunk: Chunk) {
        let connection = &mut self.table[key.index as usize];
        memory::keep(&mut connection.input, shared.engine.bytes(&chunk));
        shared.engine.recycle(chunk);
        match parse(&connection.input) {
            Ok(Some((_, length))) => {
                connection.awaits_header = false;
                connection.input.drain(..length);
                self.step_from_input(shared, key);
            }
            Ok(None) => {}
            Err(_) => return self.refuse(shared, key),
        }
        self.advance(shared, key);
    }

    /// Closes a connection that has no header.
    pub(super) fn refuse(&mut self, shared: &mut Shared, key: Key) {
        shared.end.add(Statistic::HeadersRefused, 1);
        self.close(shared, key);
    }
}
