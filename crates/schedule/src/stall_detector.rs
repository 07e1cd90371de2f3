//! When a worker's own listening socket is robbed. Pure: time, the length of the queue and the age
//! of its oldest connection are arguments.
//!
//! Nobody tells how many connections a worker accepts from a socket of its own. What can be seen
//! is how many wait, at moments of our choosing. A queue that was never empty and never shorter
//! than before for as long as `hang_after` is suspicious, but one that is filled as fast as it is
//! emptied looks the same. So the oldest connection is taken out and tells how long it has waited:
//! if that is too long, the worker is stalled and the rest follows; if not, the worker moves, and
//! has lost one connection to others.
//!
//! A stalled worker's queue is looked at four times as often, until something shows that the
//! worker has accepted. If nothing comes for a while, nothing can show it, and it is doubtful
//! whether the worker is stalled still: it is no longer held against it, but what others have not
//! accepted goes to it only if there is no other worker.

/// Looks at a queue during `hang_after`; a stalled worker is robbed after one of these.
const LOOKS: u64 = 4;
/// Whether a worker is stalled is doubtful when nothing has come for it for so many times
/// `hang_after`.
const DOUBTED_AFTER: u64 = 10;
/// The kernel tells ages in ticks of its clock, at most this long.
const TICK_NS: u64 = 10_000_000;
/// Looks are at least so far apart.
const INTERVAL_MIN_NS: u64 = 1_000_000;

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Nothing to look after before the next connection comes; ask to be told of it
    /// ([`StallDetector::came`]).
    Quiet,
    /// Something waits, and not for too long as far as can be seen.
    Patient,
    /// Nothing seems to have been accepted for too long: take the oldest connection and
    /// [`judge`](StallDetector::judge). If no other worker can take it, leave it; it comes again.
    Overdue,
}

/// The watch over one queue.
#[derive(Clone, Debug)]
pub struct StallDetector {
    hang_after_ns: u64,
    /// Looks are so far apart, and at the same moments for all queues; none, for a share of
    /// `hang_after_ns` since the connection came.
    interval_ns: Option<u64>,
    waiting: Option<Waiting>,
    stalled: bool,
    doubted_at_ns: u64,
    doubtful: bool,
}

/// Something waits.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// Nothing was seen to be accepted since then.
    since_ns: u64,
    /// Number waiting at the last look.
    length: u32,
    look_ns: u64,
    /// The last look has found as much as the one before, or more.
    still: bool,
}

impl StallDetector {
    /// The watch over a queue of which nothing is known.
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

    /// The watch over the queue of a worker that tells how many connections it has accepted. One
    /// that accepts is looked at again without being told of it, so that its queue wakes nobody.
    #[must_use]
    pub fn looking_every(interval_ns: u64, hang_after_ns: u64) -> Self {
        let interval_ns = interval_ns.min(hang_after_ns / LOOKS).max(INTERVAL_MIN_NS);
        Self { interval_ns: Some(interval_ns), ..Self::new(hang_after_ns) }
    }

    /// The same watch when nothing is known of the queue any more.
    #[must_use]
    pub fn anew(self) -> Self {
        Self { interval_ns: self.interval_ns, ..Self::new(self.hang_after_ns) }
    }

    /// The worker does not accept.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// It was stalled, and nothing has come since that would show whether it is.
    #[must_use]
    pub fn is_doubtful(&self) -> bool {
        self.stalled && self.doubtful
    }

    /// The worker may be stalled, so that it had better get nothing of others: it is, or the last
    /// look has seen nothing accepted.
    #[must_use]
    pub fn may_be_stalled(&self) -> bool {
        self.stalled || self.waiting.is_some_and(|waiting| waiting.still)
    }

    /// When to look next, if nothing comes before.
    #[must_use]
    pub fn next_look_ns(&self) -> Option<u64> {
        match self.waiting {
            Some(waiting) => Some(waiting.look_ns),
            None => (self.stalled && !self.doubtful).then_some(self.doubted_at_ns),
        }
    }

    /// A connection has come into the queue.
    pub fn came(&mut self, now_ns: u64) {
        let look_ns = self.look_after(now_ns);
        self.waiting.get_or_insert(Waiting { since_ns: now_ns, length: 1, look_ns, still: false });
    }

    /// The worker has shown in another way that it moves: what waits has waited since now.
    pub fn has_moved(&mut self, now_ns: u64) {
        self.stalled = false;
        self.doubtful = false;
        if let Some(waiting) = &mut self.waiting {
            (waiting.since_ns, waiting.still) = (now_ns, false);
        }
    }

    /// Looks at the queue, in which so many wait. `has_accepted` is what the worker tells: that it
    /// has accepted something since the last look, or not; none if it does not tell.
    pub fn look(&mut self, length: u32, has_accepted: Option<bool>, now_ns: u64) -> Finding {
        let (look_ns, patience_ns) = (self.look_after(now_ns), self.patience_ns());
        let Some(waiting) = &mut self.waiting else {
            self.doubtful = now_ns >= self.doubted_at_ns;
            return Finding::Quiet;
        };
        let has_moved = has_accepted.unwrap_or(length < waiting.length);
        // What has come since the last look may have come just now.
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
        match now_ns.saturating_sub(waiting.since_ns) < patience_ns {
            true => Finding::Patient,
            false => Finding::Overdue,
        }
    }

    /// The oldest connection has been taken out of the queue; so long it has waited. Tells whether
    /// the rest is to be taken too. Either way ask to be told when something has come or is there.
    pub fn judge(&mut self, waited_ns: u64, now_ns: u64) -> bool {
        self.stalled = waited_ns.saturating_add(TICK_NS) >= self.patience_ns();
        // One that has moved in the meantime may have stopped since: it must show that it goes on
        // before it gets anything of others, and what has just been taken out of its own queue.
        self.waiting = (!self.stalled).then(|| Waiting {
            since_ns: now_ns,
            length: 0,
            look_ns: self.look_after(now_ns),
            still: true,
        });
        self.doubtful = false;
        let doubted_after_ns = self.hang_after_ns.saturating_mul(DOUBTED_AFTER);
        self.doubted_at_ns = now_ns.saturating_add(doubted_after_ns);
        self.stalled
    }

    fn interval_ns(&self) -> u64 {
        self.interval_ns.unwrap_or_else(|| (self.hang_after_ns / LOOKS).max(INTERVAL_MIN_NS))
    }

    /// When to look next: at common moments at least half an interval away, or after an interval.
    fn look_after(&self, now_ns: u64) -> u64 {
        let interval_ns = self.interval_ns();
        match self.interval_ns {
            None => now_ns.saturating_add(interval_ns),
            Some(_) => (now_ns.saturating_add(interval_ns / 2) / interval_ns + 1) * interval_ns,
        }
    }

    /// How long the oldest connection may wait.
    fn patience_ns(&self) -> u64 {
        match self.stalled {
            true => self.interval_ns(),
            false => self.hang_after_ns,
        }
    }
}

#[cfg(test)]
mod tests;
