//! Back-off for a worker that refuses connections. Pure: time is an argument.
//!
//! A server at `maxConnections` refuses until one of its connections ends, and does not signal
//! when. The primary therefore tries again after a pause that doubles each time, so that the
//! retries stay slower than the refusals.

/// The first pause.
const FIRST_NS: u64 = 5_000_000;
/// The longest pause.
const LONGEST_NS: u64 = 250_000_000;

/// The back-off of a worker.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    until_ns: u64,
    next_ns: u64,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { until_ns: 0, next_ns: FIRST_NS }
    }

    /// End of the current pause; `None` if there is none.
    pub(super) fn until_ns(&self, now_ns: u64) -> Option<u64> {
        (now_ns < self.until_ns).then_some(self.until_ns)
    }

    /// Records a refused connection. Connections that were in flight when the pause began count
    /// once.
    pub(super) fn refused(&mut self, now_ns: u64) {
        if self.until_ns(now_ns).is_none() {
            self.until_ns = now_ns.saturating_add(self.next_ns);
            self.next_ns = (self.next_ns * 2).min(LONGEST_NS);
        }
    }

    /// Records an accepted connection: the worker has room, so the next pause is short again.
    pub(super) fn taken(&mut self) {
        self.next_ns = FIRST_NS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_grow_until_something_is_taken() {
        let mut rest = Backoff::new();
        let mut now_ns = 0;
        let mut lengths = Vec::new();
        for _ in 0..8 {
            rest.refused(now_ns);
            rest.refused(now_ns + 1);
            let until_ns = rest.until_ns(now_ns).expect("it rests");
            lengths.push((until_ns - now_ns) / 1_000_000);
            now_ns = until_ns;
            assert_eq!(rest.until_ns(now_ns), None);
        }
        assert_eq!(lengths, [5, 10, 20, 40, 80, 160, 250, 250]);
        rest.taken();
        rest.refused(now_ns);
        assert_eq!(rest.until_ns(now_ns), Some(now_ns + FIRST_NS));
    }
}
