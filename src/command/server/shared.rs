//! Shared by all connections of a worker, and its counters.

use clusterlb::protocol::worker_end::WorkerEnd;
use clusterlb_sys::clock::monotonic_ns;
use clusterlb_sys::engine::Engine;

use super::SyntheticWork;

/// Shared by all connections of a worker.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) engine: Engine,
    pub(super) end: WorkerEnd,
    pub(super) now_ns: u64,
    pub(super) date: String,
    pub(super) draining: bool,
    /// Cost of a request in addition to its answer.
    pub(super) synthetic_work: Option<SyntheticWork>,
    /// Whether work was done since this was last cleared.
    pub(super) worked: bool,
}

impl Shared {
    /// Does the work of answered requests; the worker does nothing else in that time.
    pub(super) fn work(&mut self, requests: u32) {
        let Some(mut synthetic_work) = self.synthetic_work.take() else { return };
        self.end.publish();
        (0..requests).for_each(|_| synthetic_work.perform());
        self.synthetic_work = Some(synthetic_work);
        self.now_ns = monotonic_ns();
        // Each piece of work is progress: a busy worker is not stuck.
        self.end.begin_turn(self.now_ns);
        self.worked = true;
    }
}
