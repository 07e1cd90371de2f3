//! Decides how long workers' channels may go unread. Pure: time is an argument.
//!
//! A Node worker writes twice per connection that it takes, and each write would wake the bridge.
//! While nothing depends on these writes, they can wait until more have accumulated. The channels
//! are therefore left unread for a moment after a connection was sent, and only then: other
//! messages are read at once.

use super::super::session::WindowRule;

/// Longest time without reading. It is part of what a fast acknowledgement and a claim may take, so
/// it is short in comparison.
pub(super) const PAUSE_NS_MAX: u64 = 500_000;
const _: () =
    assert!(PAUSE_NS_MAX <= WindowRule::FAST_NS / 2, "no fast answer may be seen as slow");

/// What depends on a worker's next message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    /// No reply is expected: any message is news.
    Nothing,
    /// Replies are expected, but nothing waits for them.
    Later,
    /// Something waits for a reply.
    Now,
}

impl Urgency {
    /// The urgency of a worker that owes replies for which nothing waits. One that has been silent
    /// for long is stalled or busy: polling it is useless, and its reply is news.
    pub(super) fn of_unanswered(oldest_age_ns: Option<u64>) -> Self {
        match oldest_age_ns {
            Some(age_ns) if age_ns <= WindowRule::SLOW_NS => Self::Later,
            _ => Self::Nothing,
        }
    }
}

/// The current pause in reading, if there is one.
#[derive(Debug, Default)]
pub(super) struct AckBatching {
    until_ns: Option<u64>,
}

impl AckBatching {
    /// The end of the pause; `None` if the channels must be read now. `need` is the maximum over
    /// all workers.
    pub(super) fn until_ns(&mut self, need: Urgency, now_ns: u64) -> Option<u64> {
        self.until_ns = match need {
            Urgency::Later => self.until_ns.or(Some(now_ns + PAUSE_NS_MAX)),
            Urgency::Nothing | Urgency::Now => None,
        };
        self.until_ns
    }

    /// Whether the pause is over.
    pub(super) fn is_over(&self, now_ns: u64) -> bool {
        self.until_ns.is_some_and(|until_ns| until_ns <= now_ns)
    }

    /// Ends the pause: all channels have been read.
    pub(super) fn end(&mut self) {
        self.until_ns = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_recent_connections_allow_a_pause() {
        let ages = [None, Some(0), Some(WindowRule::SLOW_NS), Some(WindowRule::SLOW_NS + 1)];
        let needs = [Urgency::Nothing, Urgency::Later, Urgency::Later, Urgency::Nothing];
        assert_eq!(ages.map(Urgency::of_unanswered), needs);
    }

    #[test]
    fn a_pause_ends_after_its_time_or_when_a_reply_is_needed() {
        let mut ack_batching = AckBatching::default();
        assert_eq!(ack_batching.until_ns(Urgency::Nothing, 5), None);
        assert_eq!(ack_batching.until_ns(Urgency::Later, 10), Some(10 + PAUSE_NS_MAX));
        assert_eq!(ack_batching.until_ns(Urgency::Later, 20), Some(10 + PAUSE_NS_MAX));
        assert!(!ack_batching.is_over(9 + PAUSE_NS_MAX) && ack_batching.is_over(10 + PAUSE_NS_MAX));
        assert_eq!(ack_batching.until_ns(Urgency::Now, 30), None);
        assert!(!ack_batching.is_over(u64::MAX), "the channels are read");
        assert_eq!(ack_batching.until_ns(Urgency::Later, 40), Some(40 + PAUSE_NS_MAX));
        ack_batching.end();
        assert_eq!(ack_batching.until_ns(Urgency::Later, 50), Some(50 + PAUSE_NS_MAX));
    }

    proptest! {
        #[test]
        fn channels_are_never_unread_for_longer(
            steps in prop::collection::vec((0u8..3, 0u64..200_000), 1..100),
        ) {
            let (mut ack_batching, mut now_ns, mut read_ns) = (AckBatching::default(), 0, 0);
            for (need, passed_ns) in steps {
                let need = [Urgency::Nothing, Urgency::Later, Urgency::Now][usize::from(need)];
                match ack_batching.until_ns(need, now_ns) {
                    None => read_ns = now_ns,
                    Some(until_ns) => {
                        prop_assert_eq!(need, Urgency::Later);
                        prop_assert!(until_ns <= read_ns + PAUSE_NS_MAX);
                        now_ns = (now_ns + passed_ns).min(until_ns);
                        if ack_batching.is_over(now_ns) {
                            ack_batching.end();
                            read_ns = now_ns;
                        }
                    }
                }
            }
        }
    }
}
