//! How many connections a worker may be given before it claims one. Pure: time is an argument.
//!
//! A worker that claims at once gets many: full messages and few wake-ups. A slow one gets few, so
//! that what it cannot take yet stays available to other workers. With many credits the system
//! works as a pipeline, with few as one central queue.

use std::collections::VecDeque;

use super::ClaimTimes;

/// Most credits of a worker: eight full messages.
pub const CREDITS_MAX: u32 = 256;
/// Fewest credits; with none a worker could never show that it is fast again.
const CREDITS_MIN: u32 = 1;
/// Credits of a new worker: a full message.
const CREDITS_FIRST: u32 = 32;
/// A claim within this time is fast.
const FAST_NS: u64 = 1_000_000;
/// A claim that takes longer than this is slow.
const SLOW_NS: u64 = 5_000_000;

/// The rule for the number of credits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CreditRule {
    /// Grows with fast claims, drops on a slow one.
    #[default]
    Adaptive,
    /// Always the same.
    Fixed(u32),
}

/// One worker's credits, and its unclaimed deliveries.
#[derive(Clone, Debug)]
pub(super) struct Credits {
    rule: CreditRule,
    allowed: u32,
    most: u32,
    /// Connections put into its channel so far, minus those taken out again.
    delivered: u64,
    /// Smoothed wait for a claim; the last eight count for two thirds of it.
    usual_ns: u64,
    /// Deliveries not claimed entirely, oldest first. Bounded by the messages in a channel.
    unclaimed: VecDeque<Delivery>,
    claim_times: ClaimTimes,
    /// The times have changed since the last call of `take_claim_times`.
    has_new_times: bool,
}

#[derive(Clone, Copy, Debug)]
struct Delivery {
    /// `delivered` after it.
    until: u64,
    count: u32,
    at_ns: u64,
}

impl Credits {
    pub(super) fn new(rule: CreditRule, most: u32) -> Self {
        let allowed = match rule {
            CreditRule::Adaptive => CREDITS_FIRST.min(most),
            CreditRule::Fixed(count) => count.min(most).max(CREDITS_MIN),
        };
        Self {
            rule,
            allowed,
            most,
            delivered: 0,
            usual_ns: 0,
            unclaimed: VecDeque::new(),
            claim_times: ClaimTimes::default(),
            has_new_times: false,
        }
    }

    /// Changes the rule.
    pub(super) fn reconfigure(&mut self, rule: CreditRule) {
        self.rule = rule;
        if let CreditRule::Fixed(count) = rule {
            self.allowed = count.min(self.most).max(CREDITS_MIN);
        }
    }

    /// The times from handoff to claim, if they have changed since the last call.
    pub(super) fn take_claim_times(&mut self) -> Option<&ClaimTimes> {
        std::mem::take(&mut self.has_new_times).then_some(&self.claim_times)
    }

    /// Credits left for a worker with this many unclaimed connections.
    pub(super) fn left(&self, unclaimed: u32) -> u32 {
        self.allowed.saturating_sub(unclaimed)
    }

    /// A message was put into the channel.
    pub(super) fn deliver(&mut self, count: u32, now_ns: u64) {
        self.delivered += u64::from(count);
        if count > 0 {
            self.unclaimed.push_back(Delivery { until: self.delivered, count, at_ns: now_ns });
        }
    }

    /// A recent message with this many connections was refused.
    pub(super) fn undo(&mut self, count: u32) {
        self.delivered = self.delivered.saturating_sub(u64::from(count));
        let found = self.unclaimed.iter().rposition(|delivery| delivery.count == count);
        let Some(place) = found.filter(|_| count > 0) else { return };
        self.unclaimed.remove(place);
        for later in self.unclaimed.iter_mut().skip(place) {
            later.until -= u64::from(count);
        }
    }

    /// The channel was emptied of this many connections. Earlier deliveries without a claim are in
    /// the worker's hands, not in the channel.
    pub(super) fn withdraw(&mut self, count: u32) {
        self.delivered = self.delivered.saturating_sub(u64::from(count));
        self.unclaimed.clear();
    }

    /// The worker returned this many connections that it had received and not claimed.
    pub(super) fn send_back(&mut self, count: u32) {
        let count = u64::from(count);
        self.delivered = self.delivered.saturating_sub(count);
        for delivery in &mut self.unclaimed {
            delivery.until = delivery.until.saturating_sub(count);
        }
    }

    /// Lowers the maximum.
    pub(super) fn bound(&mut self, most: u32) {
        self.most = self.most.min(most).max(CREDITS_MIN);
        self.allowed = self.allowed.min(self.most);
    }

    /// Learns from the worker's claims so far and the time of the last one.
    pub(super) fn observe(&mut self, claimed: u64, claimed_at_ns: u64, now_ns: u64) {
        while self.unclaimed.front().is_some_and(|delivery| delivery.until <= claimed) {
            let Some(delivery) = self.unclaimed.pop_front() else { break };
            self.learn(claimed_at_ns.saturating_sub(delivery.at_ns), delivery.count);
        }
        if let Some(oldest) = self.oldest_ns()
            && now_ns.saturating_sub(oldest) > SLOW_NS
        {
            self.collapse();
        }
    }

    fn learn(&mut self, took_ns: u64, count: u32) {
        self.claim_times.record(took_ns, count);
        self.has_new_times = true;
        self.usual_ns = (self.usual_ns.saturating_mul(7) / 8).saturating_add(took_ns / 8);
        if self.rule != CreditRule::Adaptive {
            return;
        }
        if took_ns <= FAST_NS {
            self.allowed = self.allowed.saturating_add(count).min(self.most);
        } else if took_ns > SLOW_NS {
            self.collapse();
        }
    }

    /// A claim is slow, or the channel was emptied before one could be.
    pub(super) fn collapse(&mut self) {
        if self.rule == CreditRule::Adaptive {
            self.allowed = CREDITS_MIN;
        }
    }

    /// The usual wait for a claim.
    pub(super) fn usual_ns(&self) -> u64 {
        self.usual_ns
    }

    /// The time of the oldest delivery not claimed entirely.
    pub(super) fn oldest_ns(&self) -> Option<u64> {
        self.unclaimed.front().map(|delivery| delivery.at_ns)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fast_claims_grow_and_a_slow_one_collapses() {
        let mut credits = Credits::new(CreditRule::Adaptive, CREDITS_MAX);
        assert_eq!(credits.left(0), CREDITS_FIRST);
        credits.deliver(20, 0);
        credits.observe(20, 100_000, 200_000);
        assert_eq!(credits.left(0), CREDITS_FIRST + 20);
        credits.deliver(5, 1_000_000);
        credits.observe(20, 100_000, 1_000_000 + SLOW_NS + 1);
        assert_eq!(credits.left(0), CREDITS_MIN);
        credits.observe(25, 1_000_000 + SLOW_NS + 2, 1_000_000 + SLOW_NS + 2);
        assert_eq!(credits.left(0), CREDITS_MIN);
        credits.deliver(1, 20_000_000);
        credits.observe(26, 20_100_000, 30_000_000);
        assert_eq!(credits.left(0), CREDITS_MIN + 1);
    }

    #[test]
    fn what_did_not_go_leaves_no_trace() {
        let mut credits = Credits::new(CreditRule::Adaptive, CREDITS_MAX);
        for (count, at_ns) in [(3, 10), (2, 20), (4, 30)] {
            credits.deliver(count, at_ns);
        }
        credits.undo(2);
        let left: Vec<_> = credits.unclaimed.iter().map(|one| (one.until, one.at_ns)).collect();
        assert_eq!((credits.delivered, left), (7, vec![(3, 10), (7, 30)]));
        credits.undo(0);
        credits.undo(3);
        credits.undo(4);
        assert_eq!((credits.delivered, credits.oldest_ns()), (0, None));
        assert_eq!(credits.left(0), CREDITS_FIRST);
    }

    #[test]
    fn what_is_withdrawn_was_never_slow() {
        let mut credits = Credits::new(CreditRule::Adaptive, CREDITS_MAX);
        credits.deliver(3, 10);
        credits.deliver(3, 20);
        credits.observe(2, 15, 30);
        credits.withdraw(4);
        assert_eq!((credits.delivered, credits.oldest_ns()), (2, None));
        assert_eq!(credits.left(0), CREDITS_FIRST);
    }

    #[test]
    fn what_is_sent_back_is_not_waited_for() {
        let mut credits = Credits::new(CreditRule::Adaptive, CREDITS_MAX);
        credits.deliver(3, 10);
        credits.observe(2, 15, 30);
        assert_eq!(credits.oldest_ns(), Some(10));
        credits.send_back(1);
        credits.observe(2, 15, 40);
        assert_eq!((credits.delivered, credits.oldest_ns()), (2, None));
    }

    #[test]
    fn another_rule_holds_from_then_on_within_the_bound() {
        let mut credits = Credits::new(CreditRule::Adaptive, 8);
        credits.reconfigure(CreditRule::Fixed(100));
        assert_eq!(credits.left(0), 8);
        credits.reconfigure(CreditRule::Fixed(2));
        assert_eq!(credits.left(0), 2);
        credits.reconfigure(CreditRule::Adaptive);
        credits.deliver(2, 0);
        credits.observe(2, 100_000, 200_000);
        assert_eq!(credits.left(0), 4);
        assert_eq!(credits.take_claim_times().map(ClaimTimes::count), Some(2));
        assert!(credits.take_claim_times().is_none(), "nothing was claimed since");
    }

    #[test]
    fn a_bound_holds_from_then_on() {
        let mut credits = Credits::new(CreditRule::Adaptive, CREDITS_MAX);
        credits.bound(4);
        assert_eq!(credits.left(0), 4);
        credits.deliver(4, 0);
        credits.observe(4, 1, 2);
        assert_eq!(credits.left(0), 4);
    }

    proptest! {
        #[test]
        fn credits_stay_within_their_bounds_whatever_is_claimed(
            steps in prop::collection::vec(
                (0u32..40, 0u64..400, 0u32..40, 0u64..9_000_000),
                1..200,
            ),
        ) {
            let mut credits = Credits::new(CreditRule::Adaptive, CREDITS_MAX);
            let mut now_ns = 0;
            for (delivered, claimed, withdrawn, passed_ns) in steps {
                now_ns += passed_ns;
                credits.deliver(delivered, now_ns);
                credits.observe(claimed, now_ns, now_ns);
                credits.withdraw(withdrawn);
                prop_assert!((CREDITS_MIN..=CREDITS_MAX).contains(&credits.left(0)));
                prop_assert!(credits.oldest_ns().is_none_or(|oldest| oldest <= now_ns));
                let sorted = credits.unclaimed.iter().is_sorted_by_key(|one| one.until);
                prop_assert!(sorted);
            }
        }
    }
}
