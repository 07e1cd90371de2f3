//! A worker whose script takes connections out of its inbox by itself, and counts them.
//!
//! Owns who empties the inbox, and what becomes of connections that the worker does not want or
//! has lost.

use super::super::codec::SentBack;
use super::super::session::ConnectionId;
use super::node_worker::{Held, NodeWorker};
use crate::id::ListenerId;
use crate::protocol::handoff::Record;
use crate::protocol::scoreboard::Statistic;
use crate::sys::peer;

impl NodeWorker {
    /// The worker's script has said so before it ran the program, whose first request this is.
    pub(super) fn find_out_who_receives(&mut self) {
        if !self.receives && self.page.program_receives() {
            self.receives = true;
            self.session.mark_connections();
        }
    }

    /// Whether the inbox is this side's to empty. If the worker does so by itself, it is while the
    /// worker does not: before it serves something and afterwards, and while it rests.
    pub(super) fn reads_inbox(&self, now_ns: u64) -> bool {
        let serves = self.session.is_open() && self.session.serves_connections();
        !self.receives || !serves || self.session.backoff_until_ns(now_ns).is_some()
    }

    /// A connection that the worker had taken out of the inbox by itself.
    pub(super) fn take_back(&mut self, connection: SentBack) {
        let Some(socket) = self.unmatched_fds.pop_front() else { return };
        if !peer::is_connection(&socket) {
            // The others would choke on it.
            return self.fail("the worker gave back what is no connection".into());
        }
        let SentBack { listener, accepted_ns, .. } = connection;
        let record = Record { listener: ListenerId(listener), accepted_ns };
        self.returning.push(ConnectionId(self.held.insert(Held { socket, record })));
    }

    pub(super) fn note_shortage(&mut self, lost: bool, now_ns: u64) {
        if lost {
            self.note_lost(1, now_ns);
        } else {
            self.page.add(Statistic::DescriptorPauses, 1);
        }
    }

    /// Connections are gone for want of descriptors.
    pub(super) fn note_lost(&mut self, count: u64, now_ns: u64) {
        self.page.add(Statistic::Truncated, count);
        self.page.add_claimed(count, now_ns);
        self.page.add_finished(count);
        self.touched = true;
    }
}
