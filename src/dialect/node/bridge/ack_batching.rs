//! How long workers' channels may be left alone. Pure: time is an argument.
//!
//! A Node worker writes twice for every connection that it takes, and each time a waiting bridge
//! would wake. While nothing depends on what is written, it may lie until there is more of it. So
//! the channels are left alone for a moment after a connection was sent, and only then: what comes
//! by itself is heard at once.

use super::super::session::WindowRule;

/// Longest time for which the channels are left alone. Little beside what counts as fast for a
/// window and for credits, since it is part of the time that they see.
pub(super) const PATIENCE_NS: u64 = 500_000;
const _: () = assert!(PATIENCE_NS <= WindowRule::FAST_NS / 2, "no fast answer may be seen as slow");

/// What depends on what a worker writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    /// Nothing is expected: whatever comes is news.
    Nothing,
    /// Answers are expected, and nothing waits for them.
    Later,
    /// Something waits for them.
    Now,
}

impl Urgency {
    /// Of a worker for whose answers nothing waits. One that has not answered for long hangs or is
    /// busy: to look again and again would be in vain, and its answer is news.
    pub(super) fn of_unanswered(oldest_age_ns: Option<u64>) -> Self {
        match oldest_age_ns {
            Some(age_ns) if age_ns <= WindowRule::SLOW_NS => Self::Later,
            _ => Self::Nothing,
        }
    }
}

/// Whether the channels are left alone, and until when.
#[derive(Debug, Default)]
pub(super) struct AckBatching {
    until_ns: Option<u64>,
}

impl AckBatching {
    /// Until when to leave the channels alone; nothing, if they are to be listened to. `need` is
    /// the greatest of all workers.
    pub(super) fn until_ns(&mut self, need: Urgency, now_ns: u64) -> Option<u64> {
        self.until_ns = match need {
            Urgency::Later => self.until_ns.or(Some(now_ns + PATIENCE_NS)),
            Urgency::Nothing | Urgency::Now => None,
        };
        self.until_ns
    }

    /// The channels have been left alone long enough.
    pub(super) fn is_over(&self, now_ns: u64) -> bool {
        self.until_ns.is_some_and(|until_ns| until_ns <= now_ns)
    }

    /// Everything in the channels has been looked at.
    pub(super) fn begin_anew(&mut self) {
        self.until_ns = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_fresh_connections_make_patient() {
        let ages = [None, Some(0), Some(WindowRule::SLOW_NS), Some(WindowRule::SLOW_NS + 1)];
        let needs = [Urgency::Nothing, Urgency::Later, Urgency::Later, Urgency::Nothing];
        assert_eq!(ages.map(Urgency::of_unanswered), needs);
    }

    #[test]
    fn patience_ends_with_its_time_or_with_a_need() {
        let mut ack_batching = AckBatching::default();
        assert_eq!(ack_batching.until_ns(Urgency::Nothing, 5), None);
        assert_eq!(ack_batching.until_ns(Urgency::Later, 10), Some(10 + PATIENCE_NS));
        assert_eq!(ack_batching.until_ns(Urgency::Later, 20), Some(10 + PATIENCE_NS));
        assert!(!ack_batching.is_over(9 + PATIENCE_NS) && ack_batching.is_over(10 + PATIENCE_NS));
        assert_eq!(ack_batching.until_ns(Urgency::Now, 30), None);
        assert!(!ack_batching.is_over(u64::MAX), "they are listened to");
        assert_eq!(ack_batching.until_ns(Urgency::Later, 40), Some(40 + PATIENCE_NS));
        ack_batching.begin_anew();
        assert_eq!(ack_batching.until_ns(Urgency::Later, 50), Some(50 + PATIENCE_NS));
    }

    proptest! {
        #[test]
        fn channels_are_never_left_alone_for_longer(
            steps in prop::collection::vec((0u8..3, 0u64..200_000), 1..100),
        ) {
            let (mut ack_batching, mut now_ns, mut looked_ns) = (AckBatching::default(), 0, 0);
            for (need, passed_ns) in steps {
                let need = [Urgency::Nothing, Urgency::Later, Urgency::Now][usize::from(need)];
                match ack_batching.until_ns(need, now_ns) {
                    None => looked_ns = now_ns,
                    Some(until_ns) => {
                        prop_assert_eq!(need, Urgency::Later);
                        prop_assert!(until_ns <= looked_ns + PATIENCE_NS);
                        now_ns = (now_ns + passed_ns).min(until_ns);
                        if ack_batching.is_over(now_ns) {
                            ack_batching.begin_anew();
                            looked_ns = now_ns;
                        }
                    }
                }
            }
        }
    }
}
