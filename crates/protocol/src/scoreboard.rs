//! The scoreboard: the layout of the page that a worker shares with its primary, and which side
//! writes which word.
//!
//! Every word has one writer, and the writers use different cache lines. No counter needs a
//! read-modify-write, and no line is written by two cores. Owns the meaning of the words and clamps
//! the values of the other side. Takes no decisions.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::error::{Error, Result};
use crate::schedule::Sample;
use crate::sys::shared::SharedPage;

/// First word of a page, which detects a page of another program ("CLBBOARD").
const MAGIC: u64 = u64::from_le_bytes(*b"CLBBOARD");
/// Version of the layout below.
const VERSION: u64 = 1;

const HEADER: usize = 0;
const PRIMARY: usize = 1;
const WAKER: usize = 2;
const WORKER: usize = 3;
const STATISTICS: usize = 4;
const PROGRAM: usize = 5;

const MAGIC_WORD: usize = 0;
const VERSION_WORD: usize = 1;

const ASSIGNED: usize = 0;
const RETURNED: usize = 1;

const CLAIMED: usize = 0;
const FINISHED: usize = 1;
const CLAIMED_AT: usize = 2;
const TURN_BEGUN: usize = 3;
const PROBES: usize = 4;

const DOES: usize = 0;
const ENDED: usize = 1;
const MOVED: usize = 2;
const RECEIVED: usize = 3;
const RECEIVED_AT: usize = 4;
const ANSWERED: usize = 5;

/// Flags for what a program does without help: it reports ends; it receives from its inbox.
const REPORTS: u64 = 1;
const RECEIVES: u64 = 2;

/// Layout for programs in other languages that write their counters themselves: byte offsets of
/// their words and of the primary's request, the order of the words, and their values. Generated
/// into the code that such a program loads.
pub const PROGRAM_LAYOUT: [(&str, u64); 12] = [
    ("REPORT_AT", SharedPage::offset_of(PROGRAM) as u64),
    ("DOES_WORD", DOES as u64),
    ("ENDED_WORD", ENDED as u64),
    ("MOVED_WORD", MOVED as u64),
    ("RECEIVED_WORD", RECEIVED as u64),
    ("RECEIVED_AT_WORD", RECEIVED_AT as u64),
    ("ANSWERED_WORD", ANSWERED as u64),
    ("REPORTS", REPORTS),
    ("RECEIVES", RECEIVES),
    ("WAKE_AT", SharedPage::offset_of(WAKER) as u64),
    ("WAKE_ALWAYS", Wake::Always as u64),
    ("WAKE_PROBE", Wake::Probe as u64),
];

/// Counters of a worker other than those of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Statistic {
    /// Requests answered.
    Requests = 0,
    /// Connections reset by the client.
    Resets = 1,
    /// Sockets lost on receipt because no descriptor was free (MSG_CTRUNC).
    Truncated = 2,
    /// Times that accepting paused because no descriptor was free.
    DescriptorPauses = 3,
    /// Completion queue overflows.
    Overflows = 4,
    /// Multishot operations that ended and were rearmed.
    Rearms = 5,
    /// Connections closed because the client was too slow.
    Timeouts = 6,
    /// Connections reset because all of them together held too much memory.
    Shed = 7,
}

/// A snapshot of a worker's counters, as the primary sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sockets handed to the worker, plus those that it accepted itself.
    pub assigned: u64,
    /// The part that it accepted itself.
    pub own: u64,
    /// Sockets taken back before the worker claimed them.
    pub returned: u64,
    /// Sockets that the worker has received.
    pub claimed: u64,
    /// Connections that the worker has finished.
    pub finished: u64,
}

impl Counters {
    /// Sockets assigned and neither finished nor taken back.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.assigned.saturating_sub(self.returned).saturating_sub(self.finished)
    }

    /// Sockets assigned and neither claimed nor taken back.
    #[must_use]
    pub fn unclaimed(&self) -> u64 {
        self.assigned.saturating_sub(self.returned).saturating_sub(self.claimed)
    }
}

/// The primary's access to a worker's page.
#[derive(Debug)]
pub struct PrimaryPage {
    page: SharedPage,
    assigned: u64,
    returned: u64,
    wake: Wake,
}

/// When a worker wakes the primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u64)]
pub enum Wake {
    /// Never: the primary reads the counters when it has a connection to assign.
    #[default]
    Never = 0,
    /// At each publication: the primary holds connections that no worker had room for.
    Always = 1,
    /// After answering a probe.
    Probe = 2,
}

/// The worker's access to its page.
#[derive(Debug)]
pub struct WorkerPage {
    page: SharedPage,
    claimed: u64,
    finished: u64,
    probes: u64,
    /// A probe has been answered since the last publication.
    probed: bool,
    statistics: [u64; 8],
}

/// Read-only access to a page.
#[derive(Debug)]
pub struct PageView {
    page: SharedPage,
}

impl PrimaryPage {
    /// Creates a page for a new worker.
    ///
    /// # Errors
    /// Memory or descriptors are exhausted.
    pub fn create() -> Result<Self> {
        let page = SharedPage::create()?;
        page.word(HEADER, VERSION_WORD).store(VERSION, Ordering::Relaxed);
        page.word(HEADER, MAGIC_WORD).store(MAGIC, Ordering::Release);
        Ok(Self { page, assigned: 0, returned: 0, wake: Wake::Never })
    }

    /// Maps the page again, for reading from another thread.
    ///
    /// # Errors
    /// Memory or descriptors are exhausted.
    pub fn view(&self) -> Result<PageView> {
        let memory = self.page.as_fd().try_clone_to_owned();
        let memory = memory.map_err(|error| {
            Error::system("duplicate a page of counters", crate::error::errno_of(&error))
        })?;
        Ok(PageView { page: SharedPage::open(memory)? })
    }

    /// Counts sockets assigned to the worker. Call it when the worker is chosen, before the message
    /// is sent, so that the next choice sees the new count.
    pub fn add_assigned(&mut self, count: u64) {
        self.assigned += count;
        self.page.word(PRIMARY, ASSIGNED).store(self.assigned, Ordering::Release);
    }

    /// Counts sockets taken back from the worker.
    pub fn add_returned(&mut self, count: u64) {
        self.returned += count;
        self.page.word(PRIMARY, RETURNED).store(self.returned, Ordering::Release);
    }

    /// Sets when the worker wakes the primary.
    pub fn set_wake(&mut self, wake: Wake) {
        if self.wake == wake {
            return;
        }
        self.wake = wake;
        self.page.word(WAKER, 0).store(wake as u64, Ordering::Relaxed);
        // Pairs with the fence in `WorkerPage::publish`: either the worker sees the request, or the
        // next counters that the primary reads include what the worker has just published.
        // `tests/wake_up.rs` mirrors both halves and explores every interleaving of them.
        fence(Ordering::SeqCst);
    }

    /// The worker's status as published, unchecked.
    #[must_use]
    pub fn sample(&self) -> Sample {
        Sample {
            claimed: claimed(&self.page),
            finished: finished(&self.page),
            claimed_at_ns: read(self.page.word(WORKER, CLAIMED_AT))
                .max(read(self.page.word(PROGRAM, RECEIVED_AT))),
            turn_begun_ns: read(self.page.word(WORKER, TURN_BEGUN))
                .max(read(self.page.word(PROGRAM, MOVED))),
            answered_probes: read(self.page.word(WORKER, PROBES))
                .wrapping_add(read(self.page.word(PROGRAM, ANSWERED))),
        }
    }

    /// The current counters, with the worker's values clamped to what is possible.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let given = self.assigned - self.returned;
        let claimed = claimed(&self.page).min(given);
        let finished = finished(&self.page).min(given);
        Counters { assigned: self.assigned, own: 0, returned: self.returned, claimed, finished }
    }

    /// Whether the program behind this page receives from its inbox itself, and therefore one
    /// connection per message.
    #[must_use]
    pub fn program_receives(&self) -> bool {
        does(&self.page, RECEIVES)
    }
}

impl AsFd for PrimaryPage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.page.as_fd()
    }
}

impl WorkerPage {
    /// Maps the page that the primary passed.
    ///
    /// # Errors
    /// The page is not one of this version.
    pub fn open(memory: OwnedFd) -> Result<Self> {
        let page = SharedPage::open(memory)?;
        let magic = page.word(HEADER, MAGIC_WORD).load(Ordering::Acquire);
        let version = page.word(HEADER, VERSION_WORD).load(Ordering::Relaxed);
        if magic != MAGIC || version != VERSION {
            return Err(Error::usage(
                format!("the load board has version {version}, this worker knows {VERSION}"),
                "let the primary and its workers be of one version",
            ));
        }
        Ok(Self { page, claimed: 0, finished: 0, probes: 0, probed: false, statistics: [0; 8] })
    }

    /// Counts sockets received at `now_ns`.
    pub fn add_claimed(&mut self, count: u64, now_ns: u64) {
        self.claimed += count;
        self.page.word(WORKER, CLAIMED_AT).store(now_ns, Ordering::Relaxed);
    }

    /// Counts finished connections.
    pub fn add_finished(&mut self, count: u64) {
        self.finished += count;
    }

    /// Answers a probe: a message without sockets by which the primary checks that the worker
    /// receives messages.
    pub fn answer_probe(&mut self) {
        self.probes += 1;
        self.probed = true;
    }

    /// Whether the program behind this page reports finished connections itself. It counts every
    /// connection sent to it, including those it refused.
    #[must_use]
    pub fn program_reports(&self) -> bool {
        does(&self.page, REPORTS)
    }

    /// Whether that program receives from its inbox itself, and counts what it receives.
    #[must_use]
    pub fn program_receives(&self) -> bool {
        does(&self.page, RECEIVES)
    }

    /// Subtracts connections that the program counts although it has refused them.
    pub fn take_off_refused(&mut self, count: u64) {
        self.finished = self.finished.wrapping_sub(count);
    }

    /// Finished connections so far, without those that a program reports.
    #[must_use]
    pub fn finished(&self) -> u64 {
        self.finished
    }

    /// Adds to one of the other counters.
    pub fn add(&mut self, statistic: Statistic, count: u64) {
        let word = statistic as usize;
        self.statistics[word] += count;
        self.page.word(STATISTICS, word).store(self.statistics[word], Ordering::Relaxed);
    }

    /// Marks the start of a turn of the worker's loop; a turn that takes too long marks the worker
    /// as stalled.
    pub fn begin_turn(&mut self, now_ns: u64) {
        self.page.word(WORKER, TURN_BEGUN).store(now_ns, Ordering::Relaxed);
    }

    /// Marks the end of a turn: the worker is about to wait.
    pub fn end_turn(&mut self) {
        self.page.word(WORKER, TURN_BEGUN).store(0, Ordering::Relaxed);
    }

    /// Whether the primary waits for the counters, because it holds connections that no worker had
    /// room for.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.page.word(WAKER, 0).load(Ordering::Relaxed) == Wake::Always as u64
    }

    /// Publishes the counters. Returns whether the primary has asked to be woken for this.
    #[must_use]
    pub fn publish(&mut self) -> bool {
        self.page.word(WORKER, CLAIMED).store(self.claimed, Ordering::Release);
        self.page.word(WORKER, FINISHED).store(self.finished, Ordering::Release);
        self.page.word(WORKER, PROBES).store(self.probes, Ordering::Release);
        // Pairs with the fence in `PrimaryPage::set_wake`.
        fence(Ordering::SeqCst);
        let asked = self.page.word(WAKER, 0).load(Ordering::Relaxed);
        let probed = std::mem::take(&mut self.probed);
        asked == Wake::Always as u64 || (asked == Wake::Probe as u64 && probed)
    }
}

impl PageView {
    /// The current counters. For a worker that accepts connections itself, claimed counts as
    /// assigned.
    #[must_use]
    pub fn counters(&self, accepts_itself: bool) -> Counters {
        let claimed = claimed(&self.page);
        let finished = finished(&self.page);
        if accepts_itself {
            return Counters { assigned: claimed, own: claimed, returned: 0, claimed, finished };
        }
        let assigned = read(self.page.word(PRIMARY, ASSIGNED));
        let returned = read(self.page.word(PRIMARY, RETURNED)).min(assigned);
        let given = assigned - returned;
        let (claimed, finished) = (claimed.min(given), finished.min(given));
        Counters { assigned, own: 0, returned, claimed, finished }
    }

    /// Whether the program behind this page reports finished connections itself.
    #[must_use]
    pub fn program_reports(&self) -> bool {
        does(&self.page, REPORTS)
    }

    /// One of the other counters.
    #[must_use]
    pub fn statistic(&self, statistic: Statistic) -> u64 {
        read(self.page.word(STATISTICS, statistic as usize))
    }
}

/// Finished connections: those counted by the worker (or the bridge for it) plus those its program
/// reports. Refused connections are subtracted as soon as they are known, which may precede the
/// report.
fn finished(page: &SharedPage) -> u64 {
    let sum = read(page.word(WORKER, FINISHED)).wrapping_add(read(page.word(PROGRAM, ENDED)));
    u64::try_from(sum.cast_signed()).unwrap_or(0)
}

/// Claimed connections: those counted by the worker (or the bridge for it) plus those of its
/// preload script.
fn claimed(page: &SharedPage) -> u64 {
    read(page.word(WORKER, CLAIMED)).wrapping_add(read(page.word(PROGRAM, RECEIVED)))
}

fn does(page: &SharedPage, what: u64) -> bool {
    read(page.word(PROGRAM, DOES)) & what != 0
}

fn read(word: &AtomicU64) -> u64 {
    word.load(Ordering::Acquire)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (PrimaryPage, WorkerPage) {
        let primary = PrimaryPage::create().expect("a page");
        let memory = primary.as_fd().try_clone_to_owned().expect("a duplicate");
        (primary, WorkerPage::open(memory).expect("the same version"))
    }

    #[test]
    fn in_flight_is_the_difference_of_two_writers() {
        let (mut primary, mut worker) = pair();
        primary.add_assigned(5);
        primary.add_returned(1);
        worker.add_claimed(3, 7);
        worker.add_finished(1);
        assert!(!worker.publish());
        let counters = primary.counters();
        assert_eq!((counters.in_flight(), counters.unclaimed()), (3, 1));
        assert_eq!(primary.view().expect("a view").counters(false), counters);
    }

    #[test]
    fn a_lying_worker_is_cut_to_what_is_possible() {
        let (mut primary, mut worker) = pair();
        primary.add_assigned(2);
        worker.add_claimed(1_000, 7);
        worker.add_finished(1_000);
        let _ = worker.publish();
        assert_eq!(primary.counters().in_flight(), 0);
    }

    #[test]
    fn the_bell_is_asked_for_and_heard() {
        let (mut primary, mut worker) = pair();
        primary.set_wake(Wake::Always);
        assert!(worker.publish() && worker.is_awaited());
        primary.set_wake(Wake::Probe);
        assert!(!worker.is_awaited());
        assert!(!worker.publish());
        worker.answer_probe();
        assert!(worker.publish());
        assert!(!worker.publish());
        primary.set_wake(Wake::Never);
        worker.answer_probe();
        assert!(!worker.publish());
        assert_eq!(primary.sample().answered_probes, 2);
    }

    #[test]
    fn what_a_program_reports_is_added_and_what_it_refused_is_not() {
        let (mut primary, mut worker) = pair();
        assert!(!worker.program_reports());
        let program = SharedPage::open(primary.as_fd().try_clone_to_owned().expect("a duplicate"));
        let program = program.expect("a page");
        program.word(PROGRAM, DOES).store(REPORTS, Ordering::Relaxed);
        assert!(worker.program_reports() && !worker.program_receives());
        primary.add_assigned(3);
        worker.add_claimed(2, 7);
        worker.take_off_refused(1);
        let _ = worker.publish();
        primary.add_returned(1);
        assert_eq!(
            primary.counters().finished,
            0,
            "the report of the refused one is still to come"
        );
        program.word(PROGRAM, ENDED).store(2, Ordering::Relaxed);
        program.word(PROGRAM, MOVED).store(9, Ordering::Relaxed);
        assert_eq!((primary.counters().finished, primary.counters().in_flight()), (1, 1));
        assert_eq!((primary.sample().finished, primary.sample().turn_begun_ns), (1, 9));
        assert_eq!(primary.view().expect("a view").counters(false), primary.counters());
    }

    #[test]
    fn what_a_program_receives_by_itself_is_claimed() {
        let (mut primary, mut worker) = pair();
        let program = SharedPage::open(primary.as_fd().try_clone_to_owned().expect("a duplicate"));
        let program = program.expect("a page");
        program.word(PROGRAM, DOES).store(REPORTS | RECEIVES, Ordering::Relaxed);
        assert!(primary.program_receives() && worker.program_receives());
        primary.add_assigned(4);
        worker.add_claimed(1, 7);
        worker.answer_probe();
        let _ = worker.publish();
        program.word(PROGRAM, RECEIVED).store(2, Ordering::Relaxed);
        program.word(PROGRAM, RECEIVED_AT).store(9, Ordering::Relaxed);
        program.word(PROGRAM, ANSWERED).store(1, Ordering::Relaxed);
        let sample = primary.sample();
        assert_eq!((sample.claimed, sample.claimed_at_ns, sample.answered_probes), (3, 9, 2));
        assert_eq!((primary.counters().claimed, primary.counters().unclaimed()), (3, 1));
        program.word(PROGRAM, RECEIVED).store(u64::MAX, Ordering::Relaxed);
        assert!(primary.counters().claimed <= 4, "what a program says is cut to what is possible");
    }

    #[test]
    fn a_stranger_s_page_is_refused() {
        let page = SharedPage::create().expect("a page");
        let memory = page.as_fd().try_clone_to_owned().expect("a duplicate");
        assert!(WorkerPage::open(memory).is_err());
    }
}
