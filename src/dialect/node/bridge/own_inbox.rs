//! Workers whose preload script empties the inbox and counts connections.
//!
//! Owns the decision which side reads the inbox, and the handling of connections that the worker
//! rejects or has lost.

use super::super::codec::SentBack;
use super::super::session::ConnectionId;
use super::node_worker::{Held, NodeWorker};
use crate::id::ListenerId;
use crate::protocol::handoff_layout::Record;
use crate::protocol::scoreboard::Statistic;
use crate::sys::peer;

impl NodeWorker {
    /// Reads the script's flag, which it set before it ran the program whose first request this is.
    pub(super) fn find_out_who_receives(&mut self) {
        if !self.receives && self.page.program_receives() {
            self.receives = true;
            self.session.mark_connections();
        }
    }

    /// Whether the bridge reads the inbox. For a worker with the script, it does while the worker
    /// does not: before the first and after the last server, and during back-off.
    pub(super) fn reads_inbox(&self, now_ns: u64) -> bool {
        let serves = self.session.is_open() && self.session.serves_connections();
        !self.receives || !serves || self.session.backoff_until_ns(now_ns).is_some()
    }

    /// Processes a connection that the worker had taken from its inbox and rejects.
    pub(super) fn take_back(&mut self, connection: SentBack) {
        let Some(socket) = self.unmatched_fds.pop_front() else { return };
        if !peer::is_connection(&socket) {
            // Other workers could not handle it.
            return self.fail("the worker gave back what is no connection".into());
        }
        let SentBack { listener, accepted_ns, .. } = connection;
        let record = Record { listener: ListenerId::new(listener), accepted_ns };
        self.returning.push(ConnectionId(self.held.insert(Held { socket, record })));
    }

    pub(super) fn on_shortage(&mut self, lost: bool, now_ns: u64) {
        match lost {
            true => self.page.lose(1, now_ns),
            false => self.page.add(Statistic::DescriptorPauses, 1),
        }
        self.touched = true;
    }
}
