//! The scoreboard: the layout of the page that a worker shares with its primary, and which side
//! writes which word.
//!
//! Every word has one writer, and the writers use different cache lines. No counter needs a
//! read-modify-write, and no line is written by two sides. Owns the meaning of the words and clamps
//! the values of the other side. Takes no decisions.

mod by_listener;
mod picks;
mod view;
mod worker_page;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use by_listener::ByListener;
pub use by_listener::{LISTENERS_MAX, ListenerEnd, ListenerShare, settle};
pub use view::PageView;
pub use worker_page::WorkerPage;

use crate::error::{Error, Result};
use crate::schedule::{CLAIM_BOUNDS_NS, ClaimTimes, Sample};
use crate::sys::shared::{LINE_WORDS, SharedPage};
use picks::Board;
pub use picks::KERNEL_LAYOUT;

/// First word of a page, which detects a page of another program ("CLBBOARD").
const MAGIC: u64 = u64::from_le_bytes(*b"CLBBOARD");
/// Version of the layout below.
const VERSION: u64 = 2;

const HEADER: usize = 0;
const PRIMARY: usize = 1;
const WAKER: usize = 2;
const WORKER: usize = 3;
const STATISTICS: usize = 4;
const PROGRAM: usize = 5;
/// Behind the other line of the program, so that it writes both at once.
const PROGRAM_OWN: usize = PROGRAM + 1;
const LISTENERS: usize = 7;
const CLAIM_TIMES: usize = 9;

const MAGIC_WORD: usize = 0;
const VERSION_WORD: usize = 1;

const ASSIGNED: usize = 0;
const RETURNED: usize = 1;
const EXCLUDED: usize = 2;

const CLAIMED: usize = 0;
const FINISHED: usize = 1;
const CLAIMED_AT: usize = 2;
const TURN_BEGUN: usize = 3;
const PROBES: usize = 4;
const OWN: usize = 5;
const OPEN: usize = 6;
/// More than any worker accepts, and few enough that sums over workers do not overflow.
const OWN_MAX: u64 = 1 << 48;

const DOES: usize = 0;
const ENDED: usize = 1;
const MOVED: usize = 2;
const RECEIVED: usize = 3;
const RECEIVED_AT: usize = 4;
const ANSWERED: usize = 5;
const BEATS: usize = 6;
const LATE: usize = 7;
/// Ended connections by listener, as in [`LISTENERS`].
const ENDED_OF: usize = 8;

/// What a program has accepted itself, and how long its connections have been open.
const ACCEPTED: usize = 0;
const HELD_OPEN: usize = 1;
/// What it has accepted by listener, as in [`LISTENERS`].
const ACCEPTED_OF: usize = 2;

/// Connections by listener: finished ones, and ones that the worker accepted.
const FINISHED_OF: usize = 0;
const OWN_OF: usize = LISTENERS_MAX;

const CLAIM_SUM: usize = CLAIM_BOUNDS_NS.len() + 1;

/// Flags for what a program does without help: it reports ends; it receives from its inbox, and has
/// many descriptors for that.
const REPORTS: u64 = 1;
const RECEIVES: u64 = 2;
const ROOMY: u64 = 4;

/// Layout for programs in other languages that write their counters themselves: byte offsets of
/// their words and of the primary's request, the order of the words, and their values. Generated
/// into the code that such a program loads.
pub const PROGRAM_LAYOUT: [(&str, u64); 22] = [
    ("REPORT_AT", SharedPage::offset_of(PROGRAM) as u64),
    ("DOES_WORD", DOES as u64),
    ("ENDED_WORD", ENDED as u64),
    ("MOVED_WORD", MOVED as u64),
    ("RECEIVED_WORD", RECEIVED as u64),
    ("RECEIVED_AT_WORD", RECEIVED_AT as u64),
    ("ANSWERED_WORD", ANSWERED as u64),
    ("BEATS_WORD", BEATS as u64),
    ("LATE_WORD", LATE as u64),
    ("ENDED_OF_WORD", ENDED_OF as u64),
    ("ACCEPTED_WORD", (LINE_WORDS + ACCEPTED) as u64),
    ("HELD_OPEN_WORD", (LINE_WORDS + HELD_OPEN) as u64),
    ("ACCEPTED_OF_WORD", (LINE_WORDS + ACCEPTED_OF) as u64),
    ("LISTENERS_MAX", LISTENERS_MAX as u64),
    ("REFUSED_AT", (SharedPage::offset_of(STATISTICS) + HEADERS_REFUSED * size_of::<u64>()) as u64),
    ("REPORTS", REPORTS),
    ("RECEIVES", RECEIVES),
    ("ROOMY", ROOMY),
    ("WAKE_AT", SharedPage::offset_of(WAKER) as u64),
    ("WAKE_ALWAYS", Wake::Always as u64),
    ("WAKE_PROBE", Wake::Probe as u64),
    ("WAKE_CHANGE", Wake::Change as u64),
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
    /// Connections closed because no header of the PROXY protocol was in front of them. The preload
    /// script writes it, too.
    HeadersRefused = 8,
}

const HEADERS_REFUSED: usize = Statistic::HeadersRefused as usize;
const STATISTICS_COUNT: usize = HEADERS_REFUSED + 1;
/// Word of the same line: the number of a system call that ended the worker, and one more.
const REFUSED_CALL: usize = STATISTICS_COUNT;

/// A snapshot of a worker's counters, as the primary sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sockets handed to the worker, plus those that it accepted itself.
    pub assigned: u64,
    /// The part that it accepted itself.
    pub own: u64,
    /// Sockets taken back before the worker claimed them.
    pub returned: u64,
    /// Sockets that the worker has received, plus those that it accepted itself.
    pub claimed: u64,
    /// Connections that the worker has finished.
    pub finished: u64,
}

impl Counters {
    /// What the page says, with the worker's values clamped to what is possible.
    fn new(page: &SharedPage, assigned: u64, returned: u64) -> Self {
        let given = assigned - returned;
        let own = own(page);
        let claimed = claimed(page).min(given).saturating_add(own);
        let finished = finished(page).min(given.saturating_add(own));
        Self { assigned: assigned.saturating_add(own), own, returned, claimed, finished }
    }

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
    board: Board,
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
    /// After connections have come or ended: the kernel reads a copy of their counts. Only a
    /// program that does not map its page is asked for this.
    Change = 3,
}

impl PrimaryPage {
    /// Creates a page for a new worker.
    ///
    /// # Errors
    /// Memory or descriptors are exhausted.
    pub fn create() -> Result<Self> {
        SharedPage::create().map(|page| Self::begin(page, Board::None))
    }

    /// As [`create`](Self::create), in memory that programs of the kernel read, too; none, if this
    /// process may not create that.
    #[must_use]
    pub fn create_for_kernel() -> Option<Self> {
        SharedPage::create_map().ok().map(|page| Self::begin(page, Board::Itself))
    }

    fn begin(page: SharedPage, board: Board) -> Self {
        page.word(HEADER, VERSION_WORD).store(VERSION, Ordering::Relaxed);
        page.word(HEADER, MAGIC_WORD).store(MAGIC, Ordering::Release);
        Self { page, board, assigned: 0, returned: 0, wake: Wake::Never }
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
        Ok(PageView::new(SharedPage::open(memory)?))
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

    /// Shows how long the worker takes to claim connections, as the primary sees it.
    pub fn show_claim_times(&self, times: &ClaimTimes) {
        for (word, count) in times.counts.iter().enumerate() {
            self.page.word(CLAIM_TIMES, word).store(*count, Ordering::Relaxed);
        }
        self.page.word(CLAIM_TIMES, CLAIM_SUM).store(times.sum_ns, Ordering::Relaxed);
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
            own: own(&self.page),
            open_us: read(self.page.word(WORKER, OPEN))
                .wrapping_add(read(self.page.word(PROGRAM_OWN, HELD_OPEN))),
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
        Counters::new(&self.page, self.assigned, self.returned)
    }

    /// Connections that the worker has closed for lack of a header of the PROXY protocol.
    #[must_use]
    pub fn headers_refused(&self) -> u64 {
        read(self.page.word(STATISTICS, HEADERS_REFUSED))
    }

    /// Whether the program behind this page reports finished connections itself.
    #[must_use]
    pub fn program_reports(&self) -> bool {
        does(&self.page, REPORTS)
    }

    /// Whether the program behind this page receives from its inbox itself, and therefore one
    /// connection per message.
    #[must_use]
    pub fn program_receives(&self) -> bool {
        does(&self.page, RECEIVES)
    }

    /// When the program last received a connection, if it had many free descriptors then.
    #[must_use]
    pub fn roomy_at_ns(&self) -> Option<u64> {
        does(&self.page, ROOMY).then(|| read(self.page.word(PROGRAM, RECEIVED_AT)))
    }
}

impl AsFd for PrimaryPage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.page.as_fd()
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

/// Connections that the worker has accepted itself, or its program, which no other side can check.
fn own(page: &SharedPage) -> u64 {
    let sum = read(page.word(WORKER, OWN)).saturating_add(read(page.word(PROGRAM_OWN, ACCEPTED)));
    sum.min(OWN_MAX)
}

fn does(page: &SharedPage, what: u64) -> bool {
    read(page.word(PROGRAM, DOES)) & what != 0
}

fn read(word: &AtomicU64) -> u64 {
    word.load(Ordering::Acquire)
}

#[cfg(test)]
mod tests;
