//! The worker's side of its page: it counts in its own memory, and publishes.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::{
    ByListener, CLAIMED, CLAIMED_AT, FINISHED, FINISHED_OF, HEADER, LISTENERS, MAGIC, MAGIC_WORD,
    OPEN, OWN, OWN_OF, PROBES, RECEIVES, REFUSED_CALL, REPORTS, STATISTICS, STATISTICS_COUNT,
    Statistic, TURN_BEGUN, VERSION, VERSION_WORD, WAKER, WORKER, Wake, does,
};
use crate::error::{Error, Result};
use crate::id::ListenerId;
use crate::sys::shared::SharedPage;

/// The worker's access to its page.
#[derive(Debug)]
pub struct WorkerPage {
    page: SharedPage,
    own: u64,
    claimed: u64,
    finished: u64,
    own_of: ByListener,
    finished_of: ByListener,
    /// Time for which connections have been open until `changed_ns`, summed over them.
    open_ns: u64,
    /// When their number last changed.
    changed_ns: u64,
    probes: u64,
    /// A probe has been answered since the last publication.
    probed: bool,
    statistics: [u64; STATISTICS_COUNT],
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
                format!("the scoreboard has version {version}, this worker knows {VERSION}"),
                "let the primary and its workers be of one version",
            ));
        }
        Ok(Self {
            page,
            own: 0,
            claimed: 0,
            finished: 0,
            own_of: ByListener::default(),
            finished_of: ByListener::default(),
            open_ns: 0,
            changed_ns: 0,
            probes: 0,
            probed: false,
            statistics: [0; STATISTICS_COUNT],
        })
    }

    /// Counts a connection that the worker accepted from its own socket. Published at once: if the
    /// worker is killed, nothing else reports it, and the kernel may choose by it.
    pub fn add_own(&mut self, listener: Option<ListenerId>, now_ns: u64) {
        self.pass_time(now_ns);
        self.own += 1;
        let found = listener.and_then(|listener| self.own_of.add(listener, 1));
        if let Some((place, word)) = found {
            self.page.word(LISTENERS, OWN_OF + place).store(word, Ordering::Relaxed);
        }
        self.page.word(WORKER, OWN).store(self.own, Ordering::Release);
    }

    /// Counts sockets received at `now_ns`.
    pub fn add_claimed(&mut self, count: u64, now_ns: u64) {
        self.pass_time(now_ns);
        self.claimed += count;
        self.page.word(WORKER, CLAIMED_AT).store(now_ns, Ordering::Relaxed);
    }

    /// Counts finished connections, of a listener or of none that the primary knows.
    pub fn add_finished(&mut self, listener: Option<ListenerId>, count: u64, now_ns: u64) {
        self.pass_time(now_ns);
        self.finished += count;
        let found = listener.and_then(|listener| self.finished_of.add(listener, count));
        if let Some((place, word)) = found {
            self.page.word(LISTENERS, FINISHED_OF + place).store(word, Ordering::Relaxed);
        }
    }

    /// Sums up how long connections have been open, before their number changes.
    fn pass_time(&mut self, now_ns: u64) {
        let open = self.own.wrapping_add(self.claimed).saturating_sub(self.finished);
        let passed_ns = now_ns.saturating_sub(self.changed_ns);
        self.open_ns = self.open_ns.wrapping_add(open.wrapping_mul(passed_ns));
        self.changed_ns = self.changed_ns.max(now_ns);
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

    /// Where a signal handler stores the number of the system call for which a filter ends this
    /// process, and one more. Mapped once more and for good: the handler may run at any time.
    ///
    /// # Errors
    /// Memory or descriptors are exhausted.
    pub fn refused_call(&self) -> Result<&'static AtomicU64> {
        let memory = self.page.as_fd().try_clone_to_owned();
        let memory = memory.map_err(|error| {
            Error::system("duplicate a page of counters", crate::error::errno_of(&error))
        })?;
        let page: &'static SharedPage = Box::leak(Box::new(SharedPage::open(memory)?));
        Ok(page.word(STATISTICS, REFUSED_CALL))
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
        self.page.word(WORKER, OPEN).store(self.open_ns / 1_000, Ordering::Relaxed);
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
