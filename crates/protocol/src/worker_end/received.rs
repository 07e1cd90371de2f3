//! What a worker's page counts of a message: for the worker that reads its inbox, and for a process
//! that reads it in its place.

use crate::handoff_layout::{self, Record};
use crate::scoreboard::{Statistic, WorkerPage};

impl WorkerPage {
    /// Notes a message that came with this many sockets, and returns a record for each socket that
    /// can be served, in their order. A message without sockets is a probe, and is answered.
    /// Sockets that were lost on the way, and those without a record, are counted as lost.
    pub fn received<'a>(
        &mut self,
        payload: &'a [u8],
        sockets: usize,
        now_ns: u64,
    ) -> impl Iterator<Item = Record> + use<'a> {
        let records = handoff_layout::records(payload);
        let promised = records.as_ref().map_or(0, ExactSizeIterator::len);
        let kept = promised.min(sockets);
        match promised.max(sockets) {
            0 => self.answer_probe(),
            all => self.lose(all - kept, now_ns),
        }
        records.into_iter().flatten().take(kept)
    }

    /// Counts sockets that were received and that are not served.
    pub fn lose(&mut self, sockets: usize, now_ns: u64) {
        if sockets > 0 {
            self.add(Statistic::Truncated, sockets as u64);
            self.add_claimed(sockets as u64, now_ns);
            self.add_finished(None, sockets as u64, now_ns);
        }
    }
}
