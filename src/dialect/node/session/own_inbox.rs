//! The part of a session that remains if the preload script takes connections from the inbox.
//!
//! Owns the marks that tell the script which server a connection is for, and the back-off of such a
//! worker. Rejected connections come back with their descriptors.

use super::super::codec::{SentBack, ToWorker};
use super::{Action, Session};

impl Session {
    /// Switches to marks: the worker takes connections from its inbox and needs to know their
    /// servers.
    pub fn mark_connections(&mut self) {
        self.marks = true;
    }

    /// Whether the worker has a server that receives connections.
    #[must_use]
    pub fn serves_connections(&self) -> bool {
        self.listens.has_any()
    }

    pub(super) fn take_back(&mut self, connection: SentBack, arrived: bool, now_ns: u64) {
        // Confirmed even if the descriptor was lost: the worker has closed its copy and cannot
        // resend it.
        self.send(&ToWorker::HandleArrived);
        if !arrived {
            return self.actions.push_back(Action::ShortOfDescriptors { lost: true });
        }
        if connection.full {
            self.on_rejection(connection.received, now_ns);
        }
        self.actions.push_back(Action::SentBack(connection));
    }

    /// Records that the worker, which has taken `received` connections so far, rejects more for
    /// now.
    pub(super) fn on_rejection(&mut self, received: u64, now_ns: u64) {
        // It has taken some since the last rejection, so it is not permanently full.
        if received > self.received {
            self.rest.taken();
        }
        self.received = received;
        self.rest.refused(now_ns);
    }
}
