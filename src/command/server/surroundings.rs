//! What every connection of a worker is served with, and the worker's word to its primary.

use clusterlb::protocol::scoreboard::WorkerPage;
use clusterlb_sys::clock::monotonic_ns;
use clusterlb_sys::engine::Engine;
use clusterlb_sys::waker::Waker;

use super::SyntheticWork;

/// What every connection is served with.
#[derive(Debug)]
pub(super) struct Surroundings {
    pub(super) engine: Engine,
    pub(super) page: WorkerPage,
    pub(super) now_ns: u64,
    pub(super) date: String,
    pub(super) draining: bool,
    /// What wakes the primary.
    pub(super) waker: Waker,
    /// What a request costs besides being answered.
    pub(super) synthetic_work: Option<SyntheticWork>,
    /// Work has been done since this was last cleared.
    pub(super) worked: bool,
}

impl Surroundings {
    /// Makes the counters visible, and rings if the primary has asked for it.
    pub(super) fn publish(&mut self) {
        if self.page.publish() {
            // A bell that is full is ringing already.
            self.waker.wake();
        }
    }

    /// Does the work of answered requests, during which this worker does nothing else.
    pub(super) fn work(&mut self, requests: u32) {
        let Some(mut synthetic_work) = self.synthetic_work.take() else { return };
        self.publish();
        (0..requests).for_each(|_| synthetic_work.perform());
        self.synthetic_work = Some(synthetic_work);
        self.now_ns = monotonic_ns();
        // Each piece of work is progress: a busy worker is not a stuck one.
        self.page.begin_turn(self.now_ns);
        self.worked = true;
    }
}
