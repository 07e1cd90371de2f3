//! Connections without a living worker: how long they wait, and their end.
//!
//! Owns the limit. Until then they wait for the next worker, in the kernel's backlog and here; then
//! they are closed and counted, so that a client learns that no worker comes.

use nix::errno::Errno;

use super::DataPath;
use crate::id::ListenerId;
use crate::sys::backlog;

/// How late after its limit a connection may be found, as a fraction of the limit.
const LOOKS_PER_LIMIT: u64 = 8;
/// Connections closed per check; the rest follow in the next.
const DROPS_MAX: usize = 4096;

impl DataPath {
    /// When the next connection may exceed its limit.
    pub(super) fn next_drop_ns(&self) -> Option<u64> {
        let limit_ns = self.unserved_limit_ns?;
        let since_ns = self.intake.longest_unserved_ns()?;
        Some(since_ns.saturating_add(limit_ns).max(self.looked_ns + limit_ns / LOOKS_PER_LIMIT))
    }

    /// Closes and counts connections past their limit where no living worker serves.
    pub(super) fn drop_overdue(&mut self) {
        let Some(limit_ns) = self.unserved_limit_ns else { return };
        if self.next_drop_ns().is_none_or(|at_ns| at_ns > self.now_ns) {
            return;
        }
        self.looked_ns = self.now_ns;
        let since_ns = self.now_ns.saturating_sub(limit_ns);
        let listeners: Vec<ListenerId> = self.intake.unserved_since(since_ns).collect();
        for listener in listeners {
            self.drop_waiting(listener);
            for place in 0..self.acceptors.len() {
                let acceptor = self.acceptors[place].as_ref();
                if acceptor.is_some_and(|one| one.id == listener && one.is_quiet()) {
                    self.drop_backlog(place, limit_ns);
                }
            }
        }
    }

    /// Closes and counts the waiting connections of a listener.
    pub(super) fn drop_waiting(&mut self, listener: ListenerId) {
        let dropped = self.intake.drain(listener);
        self.totals.dropped += dropped;
        if let Some(counts) = self.listener_counts.get(listener) {
            counts.dropped.add(dropped);
        }
    }

    /// Takes connections past the limit out of the kernel's queue, oldest first. The first one
    /// within the limit stays here, where it waits as it would have there.
    fn drop_backlog(&mut self, place: usize, limit_ns: u64) {
        for _ in 0..DROPS_MAX {
            let Some(acceptor) = self.acceptors[place].as_ref() else { return };
            let (id, Some(listener)) = (acceptor.id, acceptor.listener()) else { return };
            match listener.accept_now() {
                Ok(Some(socket)) => {
                    // Unknown for sockets other than TCP. No worker has served it for that time.
                    let waited = backlog::waited(&socket).map(|waited| waited.as_nanos());
                    if waited.is_ok_and(|waited_ns| waited_ns < u128::from(limit_ns)) {
                        return self.accept(place, socket);
                    }
                    self.totals.accepted += 1;
                    self.totals.dropped += 1;
                    if let Some(counts) = self.listener_counts.get(id) {
                        counts.accepted.add(1);
                        counts.dropped.add(1);
                    }
                }
                // The client closed while it was queued.
                Err(Errno::ECONNABORTED | Errno::EINTR | Errno::EPROTO) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }
}
