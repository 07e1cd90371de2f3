//! How connections end: deadlines, leaving, lingering, and closing once nothing is in progress.
//!
//! Owns the order: operations end first, then the socket, and the connection counts as finished
//! only once the kernel has its last answer.

use nix::sys::socket::Shutdown;

use super::{Connections, context};
use crate::command::handler::Waiting;
use crate::command::server::connection::{ConnectionStage, Receive};
use crate::command::server::deadlines::Class;
use crate::command::server::shared::Shared;
use clusterlb::protocol::scoreboard::Statistic;
use clusterlb_sys::engine::Key;

impl Connections {
    pub(super) fn linger(&mut self, shared: &mut Shared, key: Key) {
        let connection = &mut self.table[key.index as usize];
        connection.stage = ConnectionStage::Lingering;
        connection.input = Vec::new();
        // A system call: as an operation of the ring it would start a kernel thread. It fails
        // harmlessly if the client is gone.
        connection.shut_down(Shutdown::Write);
        self.deadlines.arm(key.index, Class::Linger, shared.now_ns);
        if connection.ended {
            return self.close(shared, key);
        }
        self.keep_receiving(shared, key);
    }

    /// Sets the deadline for what the session waits for. A head must be complete by its deadline,
    /// in however many pieces it arrives, so the deadline does not move.
    pub(super) fn watch(&mut self, shared: &Shared, key: Key) {
        let connection = &self.table[key.index as usize];
        let armed = self.deadlines.class(key.index);
        let waiting = match connection.awaits_header {
            true => Waiting::FirstRequest,
            false => connection.session.waiting(),
        };
        let wanted = match waiting {
            Waiting::FirstRequest if shared.draining => Some(Class::Leave),
            Waiting::FirstRequest | Waiting::Head => Some(Class::Head),
            Waiting::NextRequest => Some(Class::Idle),
            Waiting::Body => Some(Class::Body),
            Waiting::Stream => None,
        };
        match wanted {
            None => self.deadlines.disarm(key.index),
            // Each piece of a body renews its deadline.
            Some(class) if armed == Some(class) && class != Class::Body => {}
            Some(class) => self.deadlines.arm(key.index, class, shared.now_ns),
        }
    }

    /// Ends every wait past its deadline.
    pub(in super::super) fn expire(&mut self, shared: &mut Shared) {
        while let Some((index, class)) = self.deadlines.expire(shared.now_ns) {
            let connection = &mut self.table[index as usize];
            let key = Key { index, generation: connection.generation };
            if matches!(class, Class::Head | Class::Body | Class::Send) {
                shared.end.add(Statistic::Timeouts, 1);
            }
            if matches!(class, Class::Send | Class::Linger) {
                connection.reset_on_close();
            }
            if matches!(class, Class::Send | Class::Linger | Class::Leave) {
                self.close(shared, key);
                continue;
            }
            if connection.awaits_header {
                self.refuse(shared, key);
                continue;
            }
            let context = context(shared, &self.limits, connection.input.len());
            connection.next = connection.session.on_timeout(&mut connection.output, &context);
            self.advance(shared, key);
        }
    }

    /// The worker is leaving: close idle connections now, others after their answer.
    pub(in super::super) fn drain(&mut self, shared: &mut Shared) {
        let keys: Vec<Key> = self
            .table
            .iter()
            .map(|(place, connection)| Key {
                index: u32::try_from(place).expect("connections are bounded by descriptors"),
                generation: connection.generation,
            })
            .collect();
        for key in keys {
            let connection = &self.table[key.index as usize];
            let busy = connection.sending || connection.stage != ConnectionStage::Open;
            match connection.session.waiting() {
                Waiting::NextRequest if !busy => self.close(shared, key),
                Waiting::FirstRequest if !busy => self.watch(shared, key),
                _ if connection.awaits_header => self.watch(shared, key),
                _ => {}
            }
        }
    }

    /// Closes once nothing is in progress.
    pub(in super::super) fn close(&mut self, shared: &mut Shared, key: Key) {
        let connection = &mut self.table[key.index as usize];
        if connection.stage != ConnectionStage::Closing {
            connection.stage = ConnectionStage::Closing;
            self.deadlines.disarm(key.index);
            if connection.receive != Receive::Off || connection.sending {
                // Ends the armed operations on the socket; fails harmlessly if the client has
                // closed.
                connection.shut_down(Shutdown::Both);
            }
        } else if connection.socket.is_none() && connection.sending {
            shared.engine.cancel_send(key);
        }
        self.free_when_quiet(shared, key);
    }

    pub(super) fn free_when_quiet(&mut self, shared: &mut Shared, key: Key) {
        let connection = &self.table[key.index as usize];
        if connection.receive != Receive::Off || connection.sending {
            return;
        }
        let connection = self.table.remove(key.index as usize);
        self.held_bytes -= connection.held_bytes;
        if let Some(socket) = connection.socket {
            shared.engine.close(socket);
        }
        // Only once the kernel has the last answer: a worker killed in between has lost it.
        shared.end.finish(Some(connection.listener), shared.now_ns);
        self.spare_buffer(connection.input);
        self.spare_buffer(connection.output);
    }
}
