//! When an ended companion is restarted. Pure.

use std::time::Duration;

const DELAY: Duration = Duration::from_millis(50);
const DELAY_MAX: Duration = Duration::from_secs(5);
/// A companion that ran for this long did not fail at its start.
const LONG: Duration = Duration::from_secs(10);

/// How often it ended early, in a row.
#[derive(Debug, Default)]
pub(super) struct BackOff {
    short_lives: u32,
}

impl BackOff {
    /// The delay after one that ran for this long.
    pub(super) fn after(&mut self, ran: Duration) -> Duration {
        if ran >= LONG {
            self.short_lives = 0;
        }
        let delay = DELAY.saturating_mul(1 << self.short_lives.min(16)).min(DELAY_MAX);
        self.short_lives = self.short_lives.saturating_add(1);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_lives_in_a_row_cost_more_and_more_time_up_to_a_bound() {
        let mut back_off = BackOff::default();
        let delays: Vec<u128> =
            (0..9).map(|_| back_off.after(Duration::from_secs(1)).as_millis()).collect();
        assert_eq!(delays, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(back_off.after(LONG), DELAY);
        assert_eq!(back_off.after(Duration::ZERO), DELAY * 2);
    }
}
