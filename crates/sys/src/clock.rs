//! Monotonic time as nanoseconds, the same number in every process of the machine.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of CLOCK_MONOTONIC (`clock_gettime(2)`); never goes back, stops in suspend.
#[must_use]
pub fn monotonic_ns() -> u64 {
    read_ns(ClockId::CLOCK_MONOTONIC)
}

/// Makes [`sleep`] of the calling thread end in time: by default the kernel may let it sleep 50 µs
/// longer, to serve several sleepers with one timer (PR_SET_TIMERSLACK, `prctl(2)`).
pub fn sleep_precisely() {
    // Refused only where /proc forbids it; then it sleeps a little longer.
    let _ = nix::sys::prctl::set_timerslack(1);
}

/// Sleeps for so long, whatever happens meanwhile.
pub fn sleep(duration_ns: u64) {
    std::thread::sleep(Duration::from_nanos(duration_ns));
}

/// Nanoseconds of CPU that the calling thread has used (CLOCK_THREAD_CPUTIME_ID).
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    read_ns(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

fn read_ns(clock: ClockId) -> u64 {
    let now = clock_gettime(clock).expect("these clocks exist on every Linux");
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec()).unwrap_or(0);
    seconds * 1_000_000_000 + nanoseconds
}
