//! Monotonic time in nanoseconds, comparable between all processes of the machine.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of CLOCK_MONOTONIC (`clock_gettime(2)`); never goes back, stops during suspend.
#[must_use]
pub fn monotonic_ns() -> u64 {
    read_ns(ClockId::CLOCK_MONOTONIC)
}

/// Makes [`sleep`] precise in the calling thread. By default the kernel may extend a sleep by 50
/// µs, to serve several timers with one interrupt (PR_SET_TIMERSLACK, `prctl(2)`).
pub fn sleep_precisely() {
    // Fails only where /proc forbids it; sleeps are then slightly longer.
    let _ = nix::sys::prctl::set_timerslack(1);
}

/// Runs this while sleeps of the calling thread are precise, see [`sleep_precisely`]. Threads and
/// processes that it starts inherit that, also through `execve(2)`.
pub fn with_precise_sleeps<T>(act: impl FnOnce() -> T) -> T {
    let before = nix::sys::prctl::get_timerslack().ok();
    sleep_precisely();
    let result = act();
    if let Some(slack_ns) = before.and_then(|slack_ns| u64::try_from(slack_ns).ok()) {
        // As in `sleep_precisely`.
        let _ = nix::sys::prctl::set_timerslack(slack_ns);
    }
    result
}

/// Sleeps for the whole time, also if signals interrupt it.
pub fn sleep(duration_ns: u64) {
    std::thread::sleep(Duration::from_nanos(duration_ns));
}

/// CPU time of the calling thread in nanoseconds (CLOCK_THREAD_CPUTIME_ID).
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
