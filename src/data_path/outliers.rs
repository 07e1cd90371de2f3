//! Inspection of connections of a worker that may be an outlier.
//!
//! The primary keeps a copy of one connection until the worker is done with it, and asks the kernel
//! whether anything was written to it. The copy delays the end that the client sees, so there is
//! one at a time, only for a suspicious worker, and only for a few milliseconds. `schedule` decides
//! what follows.

use std::os::fd::OwnedFd;

use super::handoff::{Accepted, Link};
use super::{DataPath, DataPathReport};
use crate::id::Slot;
use crate::schedule::{Judgement, Look};
use crate::sys::engine::Key;
use crate::sys::peer;

/// Longest time to keep a copy; a connection that takes longer stays unknown. The worker wakes this
/// thread when it is done, unless it was done before it was asked to.
const KEPT_NS: u64 = 5_000_000;

/// A connection under inspection.
#[derive(Debug)]
pub(super) struct Looked {
    /// Its worker.
    key: Key,
    pub(super) slot: Slot,
    copy: OwnedFd,
    /// Connections that the worker had closed for lack of a header when it got this one.
    headers_refused: u64,
    pub(super) until_ns: u64,
}

impl Looked {
    /// Whether the worker has closed a connection for lack of a header since, probably this one.
    fn is_refused(&self, link: &Link) -> bool {
        link.headers_refused() != self.headers_refused
    }
}

impl DataPath {
    /// Keeps a copy of a connection to this worker, if it should be inspected.
    pub(super) fn look_at(&mut self, slot: Slot, accepted: &Accepted) {
        let Some(Some(link)) = self.links.get(slot.index()) else { return };
        if !link.reports_ends() || !self.roster.begin_look(slot, self.now_ns) {
            return;
        }
        let (key, until_ns) = (link.key(), self.now_ns.saturating_add(KEPT_NS));
        let headers_refused = link.headers_refused();
        match accepted.socket.try_clone() {
            Ok(copy) => {
                self.looked_at.push(Looked { key, slot, copy, headers_refused, until_ns });
            }
            // Without a free descriptor this connection stays unknown.
            Err(_) => drop(self.roster.end_look(slot, None, self.now_ns)),
        }
    }

    /// Ends inspections of finished connections, and compares the workers.
    pub(super) fn judge_outliers(&mut self) {
        if !self.looked_at.is_empty() {
            self.observe();
        }
        for looked in std::mem::take(&mut self.looked_at) {
            let link = self.links.get(looked.slot.index()).and_then(Option::as_ref);
            // The successor in the slot is not responsible for it.
            let Some(link) = link.filter(|link| link.key() == looked.key) else { continue };
            let answered = match self.roster.look(looked.slot) {
                Look::Pending if self.now_ns < looked.until_ns => {
                    self.looked_at.push(looked);
                    continue;
                }
                // A client without a header is at fault, not the worker.
                Look::Finished => peer::is_answered(&looked.copy)
                    .filter(|answered| *answered || !looked.is_refused(link)),
                Look::Pending | Look::Void => None,
            };
            let judgement = self.roster.end_look(looked.slot, answered, self.now_ns);
            self.report_judgement(looked.slot, judgement);
        }
        if let Some((slot, judgement)) = self.roster.compare(self.now_ns) {
            self.report_judgement(slot, Some(judgement));
        }
    }

    fn report_judgement(&self, slot: Slot, judgement: Option<Judgement>) {
        match judgement {
            Some(Judgement::Outlier { ejected_ns }) => {
                self.report(DataPathReport::Outlier { slot, ejected_ns });
            }
            Some(Judgement::Normal) => self.report(DataPathReport::OutlierEnded { slot }),
            None => {}
        }
    }
}
