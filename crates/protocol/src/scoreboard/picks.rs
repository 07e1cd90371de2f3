//! The words of a page by which the kernel picks: which of the others it reads, and those that only
//! it and the primary use.

use std::sync::atomic::Ordering;

use super::{ASSIGNED, EXCLUDED, FINISHED, OWN, PRIMARY, PrimaryPage, RETURNED, WORKER, read};
use crate::sys::picking::BoardLayout;
use crate::sys::shared::SharedPage;

/// The line that the kernel writes.
const KERNEL: usize = 8;
const PICKED: usize = 0;
/// Words of the primary's line.
const CORRECTION: usize = 3;
const TIME: usize = 4;

/// Makes the difference of picked and accepted negative, whatever is picked.
const NO_PICKS: u64 = (i64::MIN / 2).cast_unsigned();

/// Where a program of the kernel finds what a worker of the library or the built-in one has in
/// flight, and whether it is left out; and where it counts its picks.
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
};

impl PrimaryPage {
    /// How many connections wait for the worker now: what the kernel has picked it for and it has
    /// not accepted yet.
    pub fn correct_picks(&self, waiting: u32) {
        let picked = read(self.page.word(KERNEL, PICKED));
        let accepted = read(self.page.word(WORKER, OWN));
        self.set_correction(u64::from(waiting).wrapping_add(accepted).wrapping_sub(picked));
    }

    /// How many connections wait for the worker, by what the kernel has picked it for since the
    /// last correction.
    #[must_use]
    pub fn waiting_picks(&self) -> u64 {
        let picked = read(self.page.word(KERNEL, PICKED));
        let picked = picked.wrapping_add(read(self.page.word(PRIMARY, CORRECTION)));
        let waiting = picked.wrapping_sub(read(self.page.word(WORKER, OWN)));
        u64::try_from(waiting.cast_signed()).unwrap_or(0)
    }

    /// What the kernel picks counts only when it has been accepted.
    pub fn ignore_picks(&self) {
        self.set_correction(NO_PICKS);
    }

    fn set_correction(&self, correction: u64) {
        self.page.word(PRIMARY, CORRECTION).store(correction, Ordering::Release);
    }

    /// What a connection takes at the worker, for the kernel's comparison.
    pub fn set_time(&self, time_us: u64) {
        self.page.word(PRIMARY, TIME).store(time_us, Ordering::Release);
    }
}
