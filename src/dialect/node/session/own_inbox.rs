//! A worker that takes connections out of its inbox by itself, with our own script in it: what is
//! left to be said on its channel.
//!
//! Owns the marks, by which the script knows whose server a connection is for, and the rests of
//! such a worker. Connections that it does not want come back with their descriptors.

use super::super::codec::{SentBack, ToWorker};
use super::{Action, Session};

impl Session {
    /// The worker takes connections from its inbox by itself: tell it which ones are of which
    /// server.
    pub fn mark_connections(&mut self) {
        self.marks = true;
    }

    /// Whether the worker has a server that connections come to.
    #[must_use]
    pub fn serves_connections(&self) -> bool {
        self.listens.has_any()
    }

    pub(super) fn take_back(&mut self, connection: SentBack, arrived: bool, now_ns: u64) {
        // Also if it did not: the worker has let go of it and has nothing to send again.
        self.send(&ToWorker::HandleArrived);
        if !arrived {
            return self.actions.push_back(Action::ShortOfDescriptors { lost: true });
        }
        if connection.full {
            self.note_rest(connection.received, now_ns);
        }
        self.actions.push_back(Action::SentBack(connection));
    }

    /// The worker, which has taken so many by itself, does not want others now.
    pub(super) fn note_rest(&mut self, received: u64, now_ns: u64) {
        // It has taken some since the last time, so it is not always so.
        if received > self.received {
            self.rest.taken();
        }
        self.received = received;
        self.rest.refused(now_ns);
    }
}
