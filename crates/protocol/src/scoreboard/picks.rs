//! The words by which the kernel picks: which of the others it reads, and those that only it and
//! the primary use.
//!
//! Owns where they are. A built-in worker, or one of the library, stores into memory that the
//! kernel reads. Others cannot: they write to a file, or nothing at all. For these the primary
//! copies what it knows into a page of the kernel's.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;

use super::{ASSIGNED, EXCLUDED, FINISHED, OWN, PRIMARY, PrimaryPage, RETURNED, WORKER, read};
use crate::sys::picking::{BoardLayout, Told};
use crate::sys::shared::SharedPage;

/// The line that the kernel writes.
const KERNEL: usize = 8;
const PICKED: usize = 0;
const TOLD: usize = 1;
/// Words of the primary's line.
const CORRECTION: usize = 3;
const TIME: usize = 4;
const PATIENCE: usize = 5;
/// How often a queue is read at most. A reading counts if nothing is picked or accepted during it.
const READINGS_MAX: usize = 3;

/// Makes the difference of picked and accepted negative, whatever is picked.
const NO_PICKS: u64 = (i64::MIN / 2).cast_unsigned();

/// Where a program of the kernel finds what a worker has in flight, and whether it is left out; and
/// where it counts its picks.
pub const KERNEL_LAYOUT: BoardLayout = BoardLayout {
    excluded: SharedPage::offset_of_word(PRIMARY, EXCLUDED),
    come: [SharedPage::offset_of_word(PRIMARY, ASSIGNED), SharedPage::offset_of_word(WORKER, OWN)],
    gone: [
        SharedPage::offset_of_word(PRIMARY, RETURNED),
        SharedPage::offset_of_word(WORKER, FINISHED),
    ],
    picked: SharedPage::offset_of_word(KERNEL, PICKED),
    accepted: SharedPage::offset_of_word(WORKER, OWN),
    correction: SharedPage::offset_of_word(PRIMARY, CORRECTION),
    time: SharedPage::offset_of_word(PRIMARY, TIME),
    patience: SharedPage::offset_of_word(PRIMARY, PATIENCE),
    told: SharedPage::offset_of_word(KERNEL, TOLD),
};

/// What the kernel reads of a worker.
#[derive(Debug)]
pub(super) enum Board {
    /// Nothing.
    None,
    /// The worker's page.
    Itself,
    /// A copy.
    Copy(SharedPage),
}

impl PrimaryPage {
    /// As [`create`](Self::create), for a worker that does not map it, with a copy that programs of
    /// the kernel read; none, if this process may not create that.
    #[must_use]
    pub fn create_with_copy() -> Option<Self> {
        let copy = SharedPage::create_map().ok()?;
        SharedPage::create().ok().map(|page| Self::begin(page, Board::Copy(copy)))
    }

    /// What programs of the kernel can read of the worker.
    #[must_use]
    pub fn board(&self) -> Option<BorrowedFd<'_>> {
        match &self.board {
            Board::None => None,
            Board::Itself => Some(self.page.as_fd()),
            Board::Copy(copy) => Some(copy.as_fd()),
        }
    }

    fn kernel_page(&self) -> &SharedPage {
        match &self.board {
            Board::None | Board::Itself => &self.page,
            Board::Copy(copy) => copy,
        }
    }

    /// Whether that is a copy.
    #[must_use]
    pub fn is_copied(&self) -> bool {
        matches!(self.board, Board::Copy(_))
    }

    /// Brings the kernel's copy up to date, where there is one.
    pub fn copy_counters(&self) {
        if let Board::Copy(copy) = &self.board {
            let counters = self.counters();
            let store = |line, word, count| copy.word(line, word).store(count, Ordering::Release);
            store(PRIMARY, ASSIGNED, self.assigned);
            store(PRIMARY, RETURNED, self.returned);
            store(WORKER, FINISHED, counters.finished);
            store(WORKER, OWN, counters.own);
        }
    }

    /// Leaves the worker out when the kernel picks, or does so no more.
    pub fn set_excluded(&self, is_excluded: bool) {
        self.kernel_page().word(PRIMARY, EXCLUDED).store(is_excluded.into(), Ordering::Release);
    }

    /// How many connections wait for the worker now: what the kernel has picked it for and it has
    /// not accepted yet.
    pub fn correct_picks(&self, waiting: u32) {
        self.copy_counters();
        let page = self.kernel_page();
        let picked = read(page.word(KERNEL, PICKED));
        let accepted = read(page.word(WORKER, OWN));
        self.set_correction(u64::from(waiting).wrapping_add(accepted).wrapping_sub(picked));
    }

    /// As [`correct_picks`](Self::correct_picks), with a length that is read now; leaves the count
    /// as it is if connections come and go all the time. Returns whether it was higher: perhaps
    /// some are on their way.
    pub fn correct_picks_by(&self, length: impl Fn() -> Option<u32>) -> bool {
        let words = || (read(self.page.word(KERNEL, PICKED)), read(self.page.word(WORKER, OWN)));
        let mut before = words();
        for _ in 0..READINGS_MAX {
            let Some(waiting) = length() else { return false };
            let after = words();
            if before == after {
                let counted = self.waiting_picks();
                let (picked, accepted) = after;
                let correction = u64::from(waiting).wrapping_add(accepted).wrapping_sub(picked);
                self.set_correction(correction);
                return counted > u64::from(waiting);
            }
            before = after;
        }
        false
    }

    /// Makes the kernel watch what waits for the worker, and tell after this many ticks without an
    /// accept; with 0 it does not.
    pub fn set_patience(&self, ticks: u64) {
        self.kernel_page().word(PRIMARY, PATIENCE).store(ticks, Ordering::Release);
    }

    /// What the kernel has told about the worker since the last call.
    #[must_use]
    pub fn take_told(&self) -> Option<Told> {
        let word = self.kernel_page().word(KERNEL, TOLD);
        Told::from_word(read(word)).inspect(|_| word.store(0, Ordering::Release))
    }

    /// How many connections wait for the worker, by what the kernel has picked it for since the
    /// last correction.
    #[must_use]
    pub fn waiting_picks(&self) -> u64 {
        self.copy_counters();
        let page = self.kernel_page();
        let picked = read(page.word(KERNEL, PICKED));
        let picked = picked.wrapping_add(read(page.word(PRIMARY, CORRECTION)));
        let waiting = picked.wrapping_sub(read(page.word(WORKER, OWN)));
        u64::try_from(waiting.cast_signed()).unwrap_or(0)
    }

    /// What the kernel picks counts only when it has been accepted.
    pub fn ignore_picks(&self) {
        self.set_correction(NO_PICKS);
    }

    fn set_correction(&self, correction: u64) {
        self.kernel_page().word(PRIMARY, CORRECTION).store(correction, Ordering::Release);
    }

    /// What a connection takes at the worker, for the kernel's comparison.
    pub fn set_time(&self, time_us: u64) {
        self.kernel_page().word(PRIMARY, TIME).store(time_us, Ordering::Release);
    }
}
