//! A page as other threads of the primary read it.

use super::by_listener;
use super::{
    ACCEPTED_OF, ASSIGNED, BEATS, CLAIM_SUM, CLAIM_TIMES, ClaimTimes, Counters, ENDED_OF,
    FINISHED_OF, LATE, LISTENERS, LISTENERS_MAX, ListenerShare, OWN_OF, PRIMARY, PROGRAM,
    PROGRAM_OWN, REFUSED_CALL, REPORTS, RETURNED, STATISTICS, SharedPage, Statistic, does, read,
};

/// Read-only access to a page.
#[derive(Debug)]
pub struct PageView {
    page: SharedPage,
}

impl PageView {
    pub(super) fn new(page: SharedPage) -> Self {
        Self { page }
    }

    /// The current counters. What a worker accepts itself counts as assigned and claimed.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let assigned = read(self.page.word(PRIMARY, ASSIGNED));
        let returned = read(self.page.word(PRIMARY, RETURNED)).min(assigned);
        Counters::new(&self.page, assigned, returned)
    }

    /// The connections by listener that the worker reports. Their sums never exceed `counters`.
    #[must_use]
    pub fn by_listener(&self, counters: &Counters) -> Vec<ListenerShare> {
        let words = |line, from: usize| {
            (from..from + LISTENERS_MAX).map(move |word| read(self.page.word(line, word)))
        };
        let finished = words(LISTENERS, FINISHED_OF).chain(words(PROGRAM, ENDED_OF));
        let own = words(LISTENERS, OWN_OF).chain(words(PROGRAM_OWN, ACCEPTED_OF));
        by_listener::shares(own, finished, counters)
    }

    /// Whether the program behind this page reports finished connections itself.
    #[must_use]
    pub fn program_reports(&self) -> bool {
        does(&self.page, REPORTS)
    }

    /// How long the worker takes to claim connections.
    #[must_use]
    pub fn claim_times(&self) -> ClaimTimes {
        let mut times = ClaimTimes::default();
        for (word, count) in times.counts.iter_mut().enumerate() {
            *count = read(self.page.word(CLAIM_TIMES, word));
        }
        times.sum_ns = read(self.page.word(CLAIM_TIMES, CLAIM_SUM));
        times
    }

    /// How often the program has looked how late its loop is, and the sum of what it found, in
    /// nanoseconds.
    #[must_use]
    pub fn loop_delay(&self) -> (u64, u64) {
        (read(self.page.word(PROGRAM, BEATS)), read(self.page.word(PROGRAM, LATE)))
    }

    /// The number of the system call for which a filter ended the worker, as it says.
    #[must_use]
    pub fn refused_call(&self) -> Option<u32> {
        let stored = read(self.page.word(STATISTICS, REFUSED_CALL));
        u32::try_from(stored).ok()?.checked_sub(1)
    }

    /// One of the other counters.
    #[must_use]
    pub fn statistic(&self, statistic: Statistic) -> u64 {
        read(self.page.word(STATISTICS, statistic as usize))
    }
}
