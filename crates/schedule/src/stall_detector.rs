//! When to steal from a worker's own listening socket. Pure: time, the length of the queue and the
//! age of its oldest connection are arguments.
//!
//! The number of connections that a worker accepts from its own socket is unknown. Visible is the
//! length of the queue at chosen moments. A queue that was never empty or shorter than before for
//! `hang_after` is suspicious, but a queue that fills as fast as it empties looks the same. So the
//! detector takes out the oldest connection, whose age decides: if it is too old, the worker is
//! stalled and the rest follows; if not, the worker accepts, and has lost one connection to others.
//!
//! A stalled worker's queue is checked four times as often, until the worker is seen to accept. If
//! nothing arrives for a while, nothing can show that, and the stall is doubtful: it no longer
//! counts against the worker, but the worker gets connections of other queues only if there is no
//! other worker.

/// Checks of a queue during `hang_after`; from a stalled worker, one interval suffices to steal.
const LOOKS: u64 = 4;
/// A stall is doubtful when nothing has arrived for the worker for this many times `hang_after`.
const DOUBTED_AFTER: u64 = 10;
/// The kernel counts ages in ticks of at most this length.
const TICK_NS: u64 = 10_000_000;
/// Least interval of checks.
const INTERVAL_MIN_NS: u64 = 1_000_000;
/// Behind long work, the next check is due after this share of the time without an accept.
const LONG_WORK_SHARE: u64 = 8;

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Nothing to check before the next connection arrives; ask to be notified of it
    /// ([`StallDetector::came`]).
    Quiet,
    /// Connections wait, apparently not for too long.
    Patient,
    /// Apparently nothing was accepted for too long: take the oldest connection and
    /// [`judge`](StallDetector::judge). If no other worker can take it, leave it; the finding
    /// repeats.
    Overdue,
}

/// The detector of one queue.
#[derive(Clone, Debug)]
pub struct StallDetector {
    hang_after_ns: u64,
    /// Interval of checks, at the same moments for all queues; if `None`, a share of
    /// `hang_after_ns` after the connection arrived.
    interval_ns: Option<u64>,
    waiting: Option<Waiting>,
    stalled: bool,
    doubted_at_ns: u64,
    doubtful: bool,
}

/// A queue with connections.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// No accept was seen since then.
    since_ns: u64,
    /// Length at the last check.
    length: u32,
    look_ns: u64,
    /// The last check found as many as the one before, or more.
    still: bool,
}

impl StallDetector {
    /// A detector for a queue of unknown state.
    #[must_use]
    pub fn new(hang_after_ns: u64) -> Self {
        Self {
            hang_after_ns,
            interval_ns: None,
            waiting: None,
            stalled: false,
            doubted_at_ns: 0,
            doubtful: false,
        }
    }

    /// A detector for a worker that reports how many connections it has accepted. Its queue is
    /// checked without notifications while it accepts, so that arrivals cause no wake-up.
    #[must_use]
    pub fn looking_every(interval_ns: u64, hang_after_ns: u64) -> Self {
        let interval_ns = interval_ns.min(hang_after_ns / LOOKS).max(INTERVAL_MIN_NS);
        Self { interval_ns: Some(interval_ns), ..Self::new(hang_after_ns) }
    }

    /// The same detector with the state of the queue unknown again.
    #[must_use]
    pub fn anew(self) -> Self {
        Self { interval_ns: self.interval_ns, ..Self::new(self.hang_after_ns) }
    }

    /// The worker does not accept.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// It was stalled, and nothing has arrived since that could show whether it is.
    #[must_use]
    pub fn is_doubtful(&self) -> bool {
        self.stalled && self.doubtful
    }

    /// The worker may be stalled and should get no connections of other queues: it is, or the last
    /// check saw no accept.
    #[must_use]
    pub fn may_be_stalled(&self) -> bool {
        self.stalled || self.waiting.is_some_and(|waiting| waiting.still)
    }

    /// How long no accept has been seen while connections wait.
    #[must_use]
    pub fn still_ns(&self, now_ns: u64) -> u64 {
        self.waiting.map_or(0, |waiting| now_ns.saturating_sub(waiting.since_ns))
    }

    /// The next check, if nothing arrives before.
    #[must_use]
    pub fn next_look_ns(&self) -> Option<u64> {
        match self.waiting {
            Some(waiting) => Some(waiting.look_ns),
            None => (self.stalled && !self.doubtful).then_some(self.doubted_at_ns),
        }
    }

    /// A connection has arrived in the queue.
    pub fn came(&mut self, now_ns: u64) {
        self.begin(1, now_ns);
    }

    /// The worker has accepted or finished something, so more may come: the queue is checked.
    pub fn on_worker_activity(&mut self, now_ns: u64) {
        self.begin(0, now_ns);
    }

    /// Connections wait, and the kernel has seen no accept since then: the queue is checked now.
    pub fn told(&mut self, since_ns: u64, now_ns: u64) {
        self.begin(1, now_ns);
        if let Some(waiting) = &mut self.waiting {
            (waiting.since_ns, waiting.look_ns) = (since_ns, now_ns);
        }
    }

    /// The worker accepts, and the kernel watches its queue from now on.
    pub fn rest(&mut self) {
        self.waiting = None;
    }

    fn begin(&mut self, length: u32, now_ns: u64) {
        let look_ns = self.next_look_behind(now_ns);
        self.waiting.get_or_insert(Waiting { since_ns: now_ns, length, look_ns, still: false });
    }

    /// The worker does long work, and connections wait behind it: the queue is checked again after
    /// `pause_ns`, the rarer the longer this lasts, and at the latest when it is due anyway.
    pub fn is_behind_long_work(&mut self, pause_ns: u64, now_ns: u64) {
        let rarer_ns = self.still_ns(now_ns) / LONG_WORK_SHARE;
        let pause_ns = pause_ns.max(rarer_ns).max(INTERVAL_MIN_NS);
        if let Some(waiting) = &mut self.waiting {
            waiting.look_ns = waiting.look_ns.min(now_ns.saturating_add(pause_ns));
        }
    }

    /// The worker has shown progress in another way: the wait of its queue starts anew.
    pub fn has_moved(&mut self, now_ns: u64) {
        self.stalled = false;
        self.doubtful = false;
        if let Some(waiting) = &mut self.waiting {
            (waiting.since_ns, waiting.still) = (now_ns, false);
        }
    }

    /// Checks the queue with this many waiting. `has_accepted` is the worker's report whether it
    /// has accepted since the last check; `None` if it does not report.
    pub fn look(&mut self, length: u32, has_accepted: Option<bool>, now_ns: u64) -> Finding {
        let (look_ns, patience_ns) = (self.next_look_behind(now_ns), self.patience_ns());
        let Some(waiting) = &mut self.waiting else {
            self.doubtful = now_ns >= self.doubted_at_ns;
            return Finding::Quiet;
        };
        let has_moved = has_accepted.unwrap_or(length < waiting.length);
        // Connections since the last check may have arrived just now.
        let is_new = has_accepted.is_some() && waiting.length == 0 && !waiting.still;
        waiting.still = !has_moved && !is_new;
        if has_moved {
            self.stalled = false;
        }
        if !waiting.still {
            waiting.since_ns = now_ns;
        }
        if length == 0 && has_accepted != Some(true) {
            self.waiting = None;
            return Finding::Quiet;
        }
        waiting.length = length;
        waiting.look_ns = look_ns;
        if now_ns.saturating_sub(waiting.since_ns) < patience_ns {
            return Finding::Patient;
        }
        // Something has arrived, and was not accepted.
        self.doubtful = false;
        Finding::Overdue
    }

    /// The oldest connection was taken out of the queue after this wait. Returns whether the rest
    /// should be taken too. In either case, ask to be notified of connections.
    pub fn judge(&mut self, waited_ns: u64, now_ns: u64) -> bool {
        self.stalled = waited_ns.saturating_add(TICK_NS) >= self.patience_ns();
        // A worker that made progress may have stopped since: it has to show progress before it
        // gets connections of others, including the one just taken out of its queue.
        self.waiting = (!self.stalled).then(|| Waiting {
            since_ns: now_ns,
            length: 0,
            look_ns: self.next_look_behind(now_ns),
            still: true,
        });
        self.doubtful = false;
        let doubted_after_ns = self.hang_after_ns.saturating_mul(DOUBTED_AFTER);
        self.doubted_at_ns = now_ns.saturating_add(doubted_after_ns);
        self.stalled
    }

    /// The worker does not accept, and nothing can be taken out of its queue: it is stalled until
    /// the queue is seen to shrink.
    pub fn conclude(&mut self, now_ns: u64) {
        self.stalled = true;
        self.doubtful = false;
        let doubted_after_ns = self.hang_after_ns.saturating_mul(DOUBTED_AFTER);
        self.doubted_at_ns = now_ns.saturating_add(doubted_after_ns);
    }

    fn interval_ns(&self) -> u64 {
        self.interval_ns.unwrap_or_else(|| (self.hang_after_ns / LOOKS).max(INTERVAL_MIN_NS))
    }

    /// The next check: at a common moment at least half an interval away, or after an interval.
    fn next_look_behind(&self, now_ns: u64) -> u64 {
        let interval_ns = self.interval_ns();
        match self.interval_ns {
            None => now_ns.saturating_add(interval_ns),
            Some(_) => (now_ns.saturating_add(interval_ns / 2) / interval_ns + 1) * interval_ns,
        }
    }

    /// The longest acceptable wait of the oldest connection.
    fn patience_ns(&self) -> u64 {
        match self.stalled {
            true => self.interval_ns(),
            false => self.hang_after_ns,
        }
    }
}

#[cfg(test)]
mod tests;
