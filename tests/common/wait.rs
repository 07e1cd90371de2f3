//! Waiting: always by polling, with one generous bound for every test, never a fixed sleep.

use std::time::{Duration, Instant};

/// How long anything may take. Far beyond what it takes, so that only a defect exceeds it, even on
/// a machine that has ten times more to do than it can.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Polls until `look` finds something; `what` is said if it never does.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "in vain: waited for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
