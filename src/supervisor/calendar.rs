//! The dates of moments on the monotonic clock. Pure.

use std::time::{Duration, SystemTime};

/// A larger difference means that the clock of dates was set.
const SET_BY: Duration = Duration::from_millis(100);

/// What both clocks show at the same time. Ages are measured on the monotonic clock, so that they
/// do not change when the other one is set; dates stay the same until then.
#[derive(Debug)]
pub(super) struct Calendar {
    /// The date at which the monotonic clock was at zero.
    zero: SystemTime,
}

impl Default for Calendar {
    fn default() -> Self {
        Self { zero: SystemTime::UNIX_EPOCH }
    }
}

impl Calendar {
    /// Learns what the clocks show now.
    pub(super) fn update(&mut self, now: SystemTime, now_ns: u64) {
        let zero = now - Duration::from_nanos(now_ns);
        let difference = zero.duration_since(self.zero).unwrap_or_else(|error| error.duration());
        if difference > SET_BY {
            self.zero = zero;
        }
    }

    /// The date of a moment, at most 0.1 s off.
    pub(super) fn date(&self, at_ns: u64) -> SystemTime {
        self.zero + Duration::from_nanos(at_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_stays_the_same_until_the_clock_is_set() {
        let seconds = Duration::from_secs;
        let (now, now_ns) = (SystemTime::UNIX_EPOCH + seconds(1_000_000), 8_000_000_000);
        let mut calendar = Calendar::default();
        calendar.update(now, now_ns);
        assert_eq!(calendar.date(5_000_000_000), now - seconds(3));
        assert_eq!(calendar.date(9_000_000_000), now + seconds(1));
        // The clocks are not read at the same instant.
        calendar.update(now + Duration::from_micros(20), now_ns + 3_000);
        assert_eq!(calendar.date(5_000_000_000), now - seconds(3));
    }

    #[test]
    fn an_age_does_not_follow_a_clock_that_is_set() {
        let (mut calendar, now_ns) = (Calendar::default(), 8_000_000_000);
        for since_1970_s in [10, 2_000_000, 3, 5] {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(since_1970_s);
            calendar.update(now, now_ns);
            assert_eq!(calendar.date(now_ns - 3_000_000_000), now - Duration::from_secs(3));
        }
    }
}
