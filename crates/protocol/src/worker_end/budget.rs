//! How many messages a worker can take so that every descriptor is sure to fit.
//!
//! The kernel drops descriptors for which a process has no room, and with them connections. To
//! count the open ones takes long, so they are counted only where they may be near the limit. Pure:
//! the caller counts.

use crate::sys::fdpass::DESCRIPTORS_PER_MESSAGE_MAX;

/// Descriptors that are never given to connections.
const RESERVED_MAX: usize = 16;
/// With a low limit the reserve is this part of it.
const RESERVED_PART: usize = 16;
/// How often the limit is read in a process with connections only: another one may have lowered it.
const LIMIT_NS: u64 = 50_000_000;
/// The same in a process that runs code of others, which may lower it itself.
const SHARED_LIMIT_NS: u64 = 10_000_000;

/// The descriptors of a worker's process, as far as they are known.
#[derive(Debug)]
pub struct DescriptorBudget {
    limit: usize,
    limit_read_ns: u64,
    /// Descriptors that are no connections, as of the last count.
    others: usize,
    /// How many others the process may open between two messages without a new count.
    margin: usize,
    /// The highest descriptor that a message brought since the last count. The kernel gives the
    /// lowest free number, so at that moment at least this many were open.
    highest: usize,
}

/// The soft limit of a process, and how many descriptors it has open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// The soft limit.
    pub limit: usize,
    /// Open descriptors.
    pub open: usize,
}

impl DescriptorBudget {
    /// The margin of a process that runs code of others.
    pub const MARGIN: usize = 256;

    /// The budget of a process without connections that opens no other descriptors.
    #[must_use]
    pub fn fixed(count: Count) -> Self {
        Self::new(count, 0)
    }

    /// The budget of a process without connections that may open files and sockets at any time, up
    /// to [`MARGIN`](Self::MARGIN) of them between two messages.
    #[must_use]
    pub fn shared(count: Count) -> Self {
        Self::new(count, Self::MARGIN)
    }

    fn new(Count { limit, open }: Count, margin: usize) -> Self {
        Self { limit, limit_read_ns: 0, others: open, margin, highest: 0 }
    }

    /// Whether it is time to read the limit again. What is received within that time after it has
    /// fallen may be lost, but is counted.
    #[must_use]
    pub fn wants_limit(&self, now_ns: u64) -> bool {
        let age_max_ns = if self.margin > 0 { SHARED_LIMIT_NS } else { LIMIT_NS };
        self.limit_read_ns == 0 || now_ns.saturating_sub(self.limit_read_ns) > age_max_ns
    }

    /// Notes the soft limit.
    pub fn set_limit(&mut self, limit: usize, now_ns: u64) {
        (self.limit, self.limit_read_ns) = (limit, now_ns);
    }

    /// Notes that the kernel dropped descriptors: the limit is lower than it was.
    pub fn on_truncation(&mut self) {
        self.limit_read_ns = 0;
    }

    /// Notes a descriptor that a message brought.
    pub fn saw(&mut self, descriptor: usize) {
        self.highest = self.highest.max(descriptor);
    }

    /// The number of messages that fit beside this many connections. `count_open` counts what is
    /// open, and is called only if that may change the result.
    pub fn messages(&mut self, connections: usize, count_open: impl FnOnce() -> usize) -> usize {
        let known = self.highest.max(self.others + connections);
        let messages = self.fitting(known + self.margin);
        if messages > 0 {
            return messages;
        }
        if self.margin == 0 {
            // A worker without a connection takes one, however low its limit is.
            return usize::from(connections == 0);
        }
        let open = count_open();
        (self.others, self.highest) = (open.saturating_sub(connections), 0);
        // What is counted now may be another number at the next message.
        self.fitting(open).min(1)
    }

    fn fitting(&self, open: usize) -> usize {
        let reserved = RESERVED_MAX.min(self.limit / RESERVED_PART);
        self.limit.saturating_sub(reserved + open) / DESCRIPTORS_PER_MESSAGE_MAX
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MESSAGE: usize = DESCRIPTORS_PER_MESSAGE_MAX;

    #[test]
    fn far_from_the_limit_nothing_is_counted() {
        let mut budget = DescriptorBudget::shared(Count { limit: 4_096, open: 12 });
        let messages = budget.messages(100, || unreachable!("it is far from the limit"));
        assert_eq!(messages, (4_096 - 16 - 12 - 100 - 256) / MESSAGE);
    }

    #[test]
    fn a_high_descriptor_shows_that_the_program_has_opened_others() {
        let mut budget = DescriptorBudget::shared(Count { limit: 1_024, open: 12 });
        budget.saw(1_000);
        assert_eq!(budget.messages(1, || 1_002), 0);
        assert_eq!(budget.messages(1, || 13), 1, "a new count finds them closed");
    }

    #[test]
    fn a_worker_that_opens_nothing_else_serves_with_the_lowest_limit() {
        let mut budget = DescriptorBudget::fixed(Count { limit: 20, open: 15 });
        assert_eq!(budget.messages(0, || unreachable!("it opens nothing else")), 1);
        assert_eq!(budget.messages(1, || unreachable!("it opens nothing else")), 0);
    }

    #[test]
    fn the_limit_is_read_again_after_a_while() {
        let mut budget = DescriptorBudget::fixed(Count { limit: 200, open: 10 });
        assert!(budget.wants_limit(LIMIT_NS + 1));
        budget.set_limit(60, LIMIT_NS + 1);
        assert!(!budget.wants_limit(2 * LIMIT_NS));
        assert_eq!((budget.messages(0, || 10), budget.messages(20, || 30)), (1, 0));
        budget.on_truncation();
        assert!(budget.wants_limit(2 * LIMIT_NS), "at once where descriptors were dropped");
    }

    #[test]
    fn a_process_with_code_of_others_reads_its_limit_again_soon() {
        let mut budget = DescriptorBudget::shared(Count { limit: 4_096, open: 12 });
        let begin_ns = 7 * LIMIT_NS;
        assert!(budget.wants_limit(begin_ns));
        budget.set_limit(4_096, begin_ns);
        assert!(!budget.wants_limit(begin_ns + SHARED_LIMIT_NS));
        assert!(budget.wants_limit(begin_ns + SHARED_LIMIT_NS + 1));
        budget.on_truncation();
        assert!(budget.wants_limit(begin_ns));
    }

    proptest! {
        #[test]
        fn what_is_taken_fits(
            limit in 64_usize..3_000,
            open in 3_usize..60,
            steps in prop::collection::vec((0_usize..40, 0_usize..=32, 0_usize..32), 1..60),
        ) {
            let mut fixed = DescriptorBudget::fixed(Count { limit, open });
            let mut shared = DescriptorBudget::shared(Count { limit, open });
            let (mut held, mut connections, mut files) = (0, 0, 0);
            for (opened, arrived, closed) in steps {
                // The process with the fixed budget has connections only.
                let messages = fixed.messages(held, || unreachable!("it opens nothing else"));
                // Without a connection it takes a message, however low its limit is.
                let fits = open + held + messages * MESSAGE <= limit;
                prop_assert!(messages == 0 || held == 0 || fits);
                held = (held + if messages > 0 { arrived } else { 0 }).saturating_sub(closed);
                // The other one opens files, too, each at the lowest free number.
                files += opened.min(limit.saturating_sub(open + connections + files));
                let now_open = open + connections + files;
                if shared.messages(connections, || now_open) > 0 {
                    prop_assert!(now_open + MESSAGE <= limit, "{now_open} of {limit}");
                    connections += arrived;
                    shared.saw(now_open + arrived - 1 + usize::from(arrived == 0));
                }
                connections = connections.saturating_sub(closed);
            }
        }
    }
}
