//! Addresses that are briefly taken: a request for one waits without delaying others.
//!
//! Owns the time limit. A process with an armed io_uring accept leaves its port busy for some
//! milliseconds after its death, while the kernel tears the ring down, and the next run must not
//! fail for that. A worker may also request a port that another worker is just closing.

use super::ControlPlane;
use super::listen_request::ListenRequest;
use crate::sys::clock::monotonic_ns;

/// How long a busy address is retried.
const PATIENCE_NS: u64 = 200_000_000;
/// Interval of the retries.
const AGAIN_NS: u64 = 5_000_000;
/// Most waiting requests; further ones fail at once.
const WAITING_MAX: usize = 256;
/// Most waiting requests of one worker.
const WAITING_PER_WORKER: usize = 32;

/// Waiting requests, oldest first, each with its deadline.
#[derive(Debug, Default)]
pub(crate) struct BindRetry {
    waiting: Vec<(ListenRequest, u64)>,
    again_ns: Option<u64>,
}

impl BindRetry {
    /// The deadline of a new request.
    pub(crate) fn until_ns() -> u64 {
        monotonic_ns().saturating_add(PATIENCE_NS)
    }

    /// The next retry.
    pub(crate) fn again_ns(&self) -> Option<u64> {
        self.again_ns
    }

    /// Whether one more may wait. A worker's share is bounded, which leaves room for others.
    pub(crate) fn has_room_for(&self, request: &ListenRequest) -> bool {
        let owner = request.requester.worker();
        let own = self.waiting.iter().filter(|(one, _)| one.requester.worker() == owner).count();
        self.waiting.len() < WAITING_MAX && (owner.is_none() || own < WAITING_PER_WORKER)
    }

    pub(crate) fn add(&mut self, request: ListenRequest, until_ns: u64, now_ns: u64) {
        self.waiting.push((request, until_ns));
        self.again_ns.get_or_insert_with(|| now_ns.saturating_add(AGAIN_NS));
    }

    /// An address has become free: retry in this turn.
    pub(crate) fn hurry(&mut self) {
        self.again_ns = self.again_ns.map(|_| 0);
    }
}

impl ControlPlane {
    /// Retries waiting requests.
    pub(crate) fn retry_binds(&mut self) {
        if self.bind_retry.again_ns.is_some_and(|again_ns| again_ns <= monotonic_ns()) {
            let BindRetry { waiting, .. } = std::mem::take(&mut self.bind_retry);
            for (request, until_ns) in waiting {
                self.bind_or_share(request, until_ns);
            }
        }
    }

    /// No more addresses are opened: waiting requests fail.
    pub(crate) fn fail_listen_requests(&mut self) {
        let BindRetry { waiting, .. } = std::mem::take(&mut self.bind_retry);
        waiting.into_iter().for_each(|(request, _)| self.bind_or_share(request, 0));
        self.abandon_lookups();
    }
}
