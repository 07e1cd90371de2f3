//! The worker's end of the protocol, without a loop: what every worker does, on whatever runtime.
//!
//! * [`WorkerEnd`]: counts what arrives, begins and ends, and answers probes.
//! * [`DescriptorBudget`]: how many messages are sure to fit.
//! * [`TurnPace`], [`ClaimPace`]: how much a worker claims at once.
//! * [`Conversation`]: what it says to its primary and what the replies mean.

mod budget;
mod conversation;
mod pace;
mod received;

use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;

pub use budget::{Count, DescriptorBudget};
pub use conversation::{Conversation, FromPrimary, Grant};
pub use pace::{ClaimPace, SLOW_TURN_NS, TurnPace, is_slow_turn};

use crate::control::LatencySummary;
use crate::error::Result;
use crate::handoff_layout::Record;
use crate::id::ListenerId;
use crate::latency::HandoffLatency;
use crate::scoreboard::{Statistic, WorkerPage};
use crate::sys::waker::Waker;

/// A worker's counters, and what wakes the primary when it waits for them.
///
/// A socket is *received* when its message has been read, *claimed* when the worker begins to work
/// on it, and *finished* when it is closed.
#[derive(Debug)]
pub struct WorkerEnd {
    page: WorkerPage,
    waker: Waker,
    latency: HandoffLatency,
}

impl WorkerEnd {
    /// Maps the page that the primary passed; `waker` wakes the primary.
    ///
    /// # Errors
    /// The page is not one of this version.
    pub fn open(page: OwnedFd, waker: Waker) -> Result<Self> {
        Ok(Self { page: WorkerPage::open(page)?, waker, latency: HandoffLatency::new() })
    }

    /// Notes a message that came with this many sockets, and returns a record for each socket that
    /// can be served, in their order. A message without sockets is a probe, and is answered.
    /// Sockets that were lost on the way, and those without a record, are counted as lost.
    pub fn received<'a>(
        &mut self,
        payload: &'a [u8],
        sockets: usize,
        now_ns: u64,
    ) -> impl Iterator<Item = Record> + use<'a> {
        self.page.received(payload, sockets, now_ns)
    }

    /// Counts a socket that the primary accepted at `accepted_ns` and on which work begins.
    pub fn claim(&mut self, accepted_ns: u64, now_ns: u64) {
        self.record_latency(accepted_ns, now_ns);
        self.page.add_claimed(1, now_ns);
    }

    /// Counts a connection that this worker accepted from its own socket.
    pub fn claim_own(&mut self, listener: Option<ListenerId>, now_ns: u64) {
        self.page.add_own(listener, now_ns);
    }

    /// Adds to the times from accept to claim. [`claim`](Self::claim) does so itself.
    pub fn record_latency(&mut self, accepted_ns: u64, now_ns: u64) {
        self.latency.record(accepted_ns, now_ns);
    }

    /// Counts a closed connection of this listener; of none, if the primary does not know it.
    pub fn finish(&mut self, listener: Option<ListenerId>, now_ns: u64) {
        self.page.add_finished(listener, 1, now_ns);
    }

    /// Counts sockets that were received and that are not served.
    pub fn lose(&mut self, sockets: usize, now_ns: u64) {
        self.page.lose(sockets, now_ns);
    }

    /// Adds to one of the other counters.
    pub fn add(&mut self, statistic: Statistic, count: u64) {
        self.page.add(statistic, count);
    }

    /// Where a signal handler stores the system call for which a filter ends this process.
    ///
    /// # Errors
    /// Memory or descriptors are exhausted.
    pub fn refused_call(&self) -> Result<&'static AtomicU64> {
        self.page.refused_call()
    }

    /// Closed connections so far.
    #[must_use]
    pub fn finished(&self) -> u64 {
        self.page.finished()
    }

    /// Marks the start of a turn of the worker's loop, or progress within one.
    pub fn begin_turn(&mut self, now_ns: u64) {
        self.page.begin_turn(now_ns);
    }

    /// Marks the end of a turn: the worker is about to wait.
    pub fn end_turn(&mut self) {
        self.page.end_turn();
    }

    /// Makes the counters visible to the primary, and wakes it if it has asked for that.
    pub fn publish(&mut self) {
        if self.page.publish() {
            // A primary that has been woken already stays so.
            self.waker.wake();
        }
    }

    /// The time from accept to claim; `None` without any.
    #[must_use]
    pub fn latency(&self) -> Option<LatencySummary> {
        self.latency.summary()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use proptest::prelude::*;

    use super::*;
    use crate::handoff_layout;
    use crate::scoreboard::{PrimaryPage, Wake};

    fn pair() -> (PrimaryPage, Waker, WorkerEnd) {
        let page = PrimaryPage::create().expect("a page");
        let waker = Waker::new().expect("a descriptor");
        let copy = waker.as_fd().try_clone_to_owned().expect("a duplicate");
        let memory = page.as_fd().try_clone_to_owned().expect("a duplicate");
        let end = WorkerEnd::open(memory, Waker::inherited(copy)).expect("the same version");
        (page, waker, end)
    }

    fn message(records: usize) -> Vec<u8> {
        let mut payload = Vec::new();
        handoff_layout::begin(&mut payload);
        for accepted_ns in 0..records as u64 {
            handoff_layout::append(
                &mut payload,
                Record { listener: ListenerId::new(1), accepted_ns },
            );
        }
        payload
    }

    #[test]
    fn a_probe_is_answered_and_wakes_the_primary_that_asked_for_it() {
        let (mut page, waker, mut end) = pair();
        page.set_wake(Wake::Probe);
        assert_eq!(end.received(&message(0), 0, 7).count(), 0);
        assert!(!waker.clear(), "not before the counters are visible");
        end.publish();
        assert!(waker.clear() && page.sample().answered_probes == 1);
        end.publish();
        assert!(!waker.clear());
    }

    #[test]
    fn only_what_the_primary_accepted_has_a_latency() {
        let (mut page, _waker, mut end) = pair();
        end.claim_own(None, 2_000_000);
        assert!(end.latency().is_none());
        end.claim(1_000_000, 3_000_000);
        end.finish(None, 3_500_000);
        end.publish();
        page.add_assigned(1);
        assert_eq!(end.latency().map(|latency| (latency.count, latency.max_us)), Some((1, 2_000)));
        assert_eq!((page.counters().claimed, page.counters().finished), (2, 1));
        // One alone for a millisecond, then two for half of one.
        assert_eq!(page.sample().open_us, 2_000);
    }

    proptest! {
        #[test]
        fn every_promised_or_received_socket_is_served_or_counted_as_lost(
            promised in 0_usize..=32,
            arrived in 0_usize..=32,
            is_garbled in any::<bool>(),
        ) {
            let (mut page, _waker, mut end) = pair();
            let mut payload = message(promised);
            if is_garbled {
                payload[0] ^= 1;
            }
            let served: Vec<Record> = end.received(&payload, arrived, 9).collect();
            let promised = if is_garbled { 0 } else { promised };
            prop_assert_eq!(served.len(), promised.min(arrived));
            served.iter().for_each(|record| end.claim(record.accepted_ns, 9));
            served.iter().for_each(|_| end.finish(None, 9));
            end.publish();
            let all = promised.max(arrived);
            page.add_assigned(all as u64);
            let counters = page.counters();
            prop_assert_eq!((counters.claimed, counters.finished), (all as u64, all as u64));
            let lost = (all - served.len()) as u64;
            prop_assert_eq!(page.view().expect("a view").statistic(Statistic::Truncated), lost);
            prop_assert_eq!(page.sample().answered_probes, u64::from(all == 0));
        }
    }
}
