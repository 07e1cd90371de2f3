//! The time at which a wait ends.

use std::time::Duration;

use io_uring::types::Timespec;
use io_uring::{opcode, squeue};

use super::Ring;
use super::operation::{Operation, Token};
use crate::clock::monotonic_ns;
use crate::engine::Key;

impl Ring {
    /// Makes waits end at `deadline_ns` or earlier. An earlier alarm stays: the caller checks the
    /// clock and waits again. The timeout is relative: the kernel would
    /// take an absolute time of a time namespace for one outside of it.
    pub(super) fn set_alarm(&mut self, deadline_ns: u64) {
        if self.alarm_ns.is_some_and(|armed_ns| armed_ns <= deadline_ns) {
            return;
        }
        let left_ns = deadline_ns.saturating_sub(monotonic_ns());
        *self.alarm_time = Timespec::from(Duration::from_nanos(left_ns));
        let time: *const Timespec = &raw const *self.alarm_time;
        if self.alarm_ns.replace(deadline_ns).is_none() {
            let set = opcode::Timeout::new(time).build();
            return self.push(Operation::Alarm, Key::default(), set);
        }
        // An alarm that has just expired cannot be moved; its completion ends the next wait, and
        // the one after sets a new alarm.
        let update =
            opcode::TimeoutUpdate::new(Token::new(Operation::Alarm, Key::default()).0, time);
        let update = update.build().flags(squeue::Flags::SKIP_SUCCESS);
        self.push(Operation::MoveAlarm, Key::default(), update);
    }
}
