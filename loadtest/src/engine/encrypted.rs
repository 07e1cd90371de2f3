//! Connections that speak TLS: what is received is decrypted before it is read, what is sent is
//! encrypted into the slot's own bytes.
//!
//! The handshake counts as part of connecting. A server's plain close is taken as the end of its
//! answer, as many servers leave out TLS's closing alert.

use super::connection::Phase;
use super::events::Received;
use super::thread::Thread;
use crate::settings::CloseBy;
use crate::sys::socket;
use crate::tally::ErrorKind;

/// Bytes that are encrypted at a time: a large body needs no second copy in memory.
const PIECE_BYTES: usize = 64 * 1024;

impl Thread {
    /// Begins the handshake of a connection that has just been made, if its server speaks TLS.
    /// Returns true if it does.
    pub(super) fn begin_handshake(&mut self, slot: u32) -> bool {
        let connection = &mut self.connections[slot as usize];
        let name = &self.job.servers[connection.server].tls_name;
        let (Some(name), Some(connector)) = (name, &self.job.connector) else {
            return false;
        };
        match connector.open(name) {
            Ok(session) => {
                connection.phase = Phase::Handshaking;
                connection.tls = Some(Box::new(session));
                self.ring.socket(slot).inspect(|fd| socket::send_at_once(fd));
                self.send_encrypted(slot);
                self.ring.receive(slot, 0);
            }
            Err(why) => self.on_tls_failure(slot, &why),
        }
        true
    }

    /// Takes in encrypted bytes.
    pub(super) fn on_encrypted(&mut self, slot: u32, bytes: usize, now_ns: u64) {
        let connection = &mut self.connections[slot as usize];
        let Some(tls) = connection.tls.as_mut() else {
            return;
        };
        if let Err(why) = tls.receive(self.ring.received(slot, bytes), &mut connection.spill) {
            self.on_tls_failure(slot, &why);
            return;
        }
        let (handshaking, ended) = (tls.handshaking(), tls.ended());
        if connection.phase == Phase::Handshaking && !handshaking {
            self.on_open(slot, now_ns);
        }
        self.send_encrypted(slot);
        match self.connections[slot as usize].held {
            true if ended => self.on_held_failure(slot, "the server closed"),
            false if !handshaking => match self.read_spill(slot, now_ns) {
                // The server may leave its side of the connection open until this side closes.
                Received::More if ended => self.on_close(slot, now_ns),
                received => self.go_on(slot, received),
            },
            _ => self.ring.receive(slot, 0),
        }
    }

    /// Sends TLS's messages and the next piece of the requests, unless a send is under way.
    pub(super) fn send_encrypted(&mut self, slot: u32) {
        if self.ring.sending(slot) {
            return;
        }
        let connection = &mut self.connections[slot as usize];
        if connection.sending.0 >= connection.sending.1 {
            connection.next_send(&self.job.payload);
        }
        let Some(tls) = connection.tls.as_mut() else {
            return;
        };
        let (from, to) = connection.sending;
        let until = to.min(from + PIECE_BYTES);
        if from < until {
            tls.send(&self.job.payload.bytes[from..until]);
            connection.sending.0 = until;
        }
        let outgoing = self.ring.outgoing(slot);
        outgoing.clear();
        tls.take(outgoing);
        connection.encrypted_sent = 0;
        if !outgoing.is_empty() {
            self.ring.send_outgoing(slot, 0);
        }
    }

    /// Encrypted bytes have been sent: goes on with the rest of them, or with what comes next.
    pub(super) fn on_encrypted_sent(&mut self, slot: u32, bytes: usize) {
        let connection = &mut self.connections[slot as usize];
        connection.encrypted_sent += bytes;
        let sent = connection.encrypted_sent;
        if sent < self.ring.outgoing(slot).len() {
            self.ring.send_outgoing(slot, sent);
        } else {
            self.send_encrypted(slot);
        }
    }

    pub(super) fn on_tls_failure(&mut self, slot: u32, why: &str) {
        if self.connections[slot as usize].held {
            self.on_held_failure(slot, why);
            return;
        }
        self.demand.pause(self.now_ns());
        self.fail(slot, ErrorKind::TlsFailed, why);
        self.end(slot);
    }

    /// Sends TLS's closing alert, if there is room for it.
    pub(super) fn send_closing_alert(&mut self, slot: u32) {
        let connection = &mut self.connections[slot as usize];
        let Some(mut tls) = connection.tls.take() else {
            return;
        };
        if self.job.settings.close == CloseBy::Rst {
            return;
        }
        if !tls.handshaking() {
            tls.close();
        }
        let mut last = Vec::new();
        tls.take(&mut last);
        if !last.is_empty() {
            self.ring.socket(slot).inspect(|fd| socket::send_last(fd, &last));
        }
    }
}
