//! Waits by polling, with one generous bound for every test and no fixed sleeps.

use std::time::{Duration, Instant};

/// Maximum duration of any wait. Only a defect exceeds it, even on a machine that is overloaded
/// tenfold.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Polls until `look` finds something; the failure message contains `what`.
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
