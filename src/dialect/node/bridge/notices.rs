//! Queue of notices to the control plane, in order, with a bounded share per worker.
//!
//! Owns the bound. A full share still accepts notices, because they must not be lost, but reports
//! that it is full, so that the bridge stops reading that worker. Other workers are not affected.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::sys::waker::Waker;

use super::messages::Notice;
use crate::id::WorkerId;

/// A worker's share is full from this many notices on, until it is half empty.
pub const NOTICES_MAX: usize = 256;
/// It is also full from this many bytes of messages on.
pub const NOTICE_BYTES_MAX: usize = 1024 * 1024;
/// It is also full from this many descriptors on.
const NOTICE_DESCRIPTORS_MAX: usize = 32;

/// The queue, filled by the bridge and emptied by the control plane.
#[derive(Debug)]
pub struct Notices {
    state: Mutex<State>,
    /// Wakes the control plane when a notice arrives.
    arrived: Arc<Waker>,
    /// Wakes the bridge when a full share has room again.
    room: Arc<Waker>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<(Notice, usize)>,
    shares: BTreeMap<WorkerId, WorkerShare>,
}

/// The share of one worker.
#[derive(Debug, Default)]
struct WorkerShare {
    notices: usize,
    bytes: usize,
    descriptors: usize,
    full: bool,
}

impl Notices {
    /// An empty queue. `arrived` wakes the control plane, `room` the bridge.
    #[must_use]
    pub fn new(arrived: Arc<Waker>, room: Arc<Waker>) -> Self {
        Self { state: Mutex::default(), arrived, room }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the notices")
    }

    /// Appends a notice.
    pub(super) fn push(&self, notice: Notice) {
        let bytes = notice.bytes();
        let mut state = self.state();
        let share = state.shares.entry(notice.worker()).or_default();
        share.notices += 1;
        share.bytes += bytes;
        share.descriptors += notice.descriptors();
        share.full |= share.notices >= NOTICES_MAX
            || share.bytes >= NOTICE_BYTES_MAX
            || share.descriptors >= NOTICE_DESCRIPTORS_MAX;
        state.queue.push_back((notice, bytes));
        self.arrived.wake();
    }

    /// Whether the bridge should stop reading a worker.
    pub(super) fn is_full(&self, worker: WorkerId) -> bool {
        self.state().shares.get(&worker).is_some_and(|share| share.full)
    }

    /// Takes the oldest notice of certain workers, ahead of those of others.
    #[must_use]
    pub fn take_of(&self, of: impl Fn(WorkerId) -> bool) -> Option<Notice> {
        let state = self.state();
        let place = state.queue.iter().position(|(notice, _)| of(notice.worker()))?;
        self.take_at(state, place)
    }

    fn take_at(&self, mut state: MutexGuard<'_, State>, place: usize) -> Option<Notice> {
        let (notice, bytes) = state.queue.remove(place)?;
        let worker = notice.worker();
        let share = state.shares.get_mut(&worker).expect("a worker with a notice has a share");
        share.notices -= 1;
        share.bytes -= bytes;
        share.descriptors -= notice.descriptors();
        let half_empty = share.notices <= NOTICES_MAX / 2
            && share.bytes <= NOTICE_BYTES_MAX / 2
            && share.descriptors <= NOTICE_DESCRIPTORS_MAX / 2;
        if share.full && half_empty {
            share.full = false;
            self.room.wake();
        }
        if share.notices == 0 {
            state.shares.remove(&worker);
        }
        Some(notice)
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    const ONE: WorkerId = WorkerId::new(1);
    const OTHER: WorkerId = WorkerId::new(2);

    fn waker() -> Arc<Waker> {
        Arc::new(Waker::new().expect("a descriptor"))
    }

    fn woken(waker: &Waker) -> bool {
        waker.clear()
    }

    #[test]
    fn a_worker_that_fills_its_share_leaves_the_others_theirs() {
        let (arrived, room) = (waker(), waker());
        let notices = Notices::new(Arc::clone(&arrived), Arc::clone(&room));
        assert!(notices.take_of(|_| true).is_none() && !woken(&arrived));
        for _ in 0..NOTICES_MAX {
            assert!(!notices.is_full(ONE));
            notices.push(Notice::Leaving { worker: ONE });
        }
        notices.push(Notice::Online { worker: OTHER });
        assert!(notices.is_full(ONE) && !notices.is_full(OTHER) && woken(&arrived));
        for _ in 0..NOTICES_MAX / 2 - 1 {
            assert!(matches!(notices.take_of(|_| true), Some(Notice::Leaving { worker: ONE })));
        }
        assert!(notices.is_full(ONE) && !woken(&room), "it is not half empty yet");
        assert!(notices.take_of(|_| true).is_some());
        assert!(!notices.is_full(ONE) && woken(&room));
    }

    #[test]
    fn one_worker_s_notices_can_be_taken_before_those_of_others() {
        let notices = Notices::new(waker(), waker());
        notices.push(Notice::Online { worker: OTHER });
        notices.push(Notice::Online { worker: ONE });
        notices.push(Notice::Gone { worker: ONE, failure: None });
        assert!(matches!(
            notices.take_of(|worker| worker == ONE),
            Some(Notice::Online { worker: ONE })
        ));
        assert!(matches!(notices.take_of(|worker| worker == ONE), Some(Notice::Gone { .. })));
        assert!(notices.take_of(|worker| worker == ONE).is_none());
        assert!(matches!(notices.take_of(|_| true), Some(Notice::Online { worker: OTHER })));
    }
}
