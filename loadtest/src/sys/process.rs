//! What a process may use and has used: descriptors, CPUs, CPU time, precise timers.

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;

use crate::error::Error;

/// Raises the number of open files to its hard limit and says what it is now.
pub(crate) fn raise_descriptor_limit() -> Result<u64, Error> {
    let failed = |errno| Error::system("read the limit of open files", errno);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    // A refusal leaves the soft limit in force, which the checks before a run then use.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((soft, hard));
    Ok(soft)
}

/// The CPUs this process may run on.
pub(crate) fn allowed_cpus() -> Result<Vec<u32>, Error> {
    let set = sched_getaffinity(Pid::from_raw(0))
        .map_err(|errno| Error::system("read the allowed CPUs", errno))?;
    let all = 0..CpuSet::count();
    let allowed = all.filter(|cpu| set.is_set(*cpu).unwrap_or(false));
    Ok(allowed.filter_map(|cpu| u32::try_from(cpu).ok()).collect())
}

/// Keeps the calling thread on one CPU.
pub(crate) fn pin_thread(cpu: u32) -> Result<(), Errno> {
    let mut set = CpuSet::new();
    set.set(cpu as usize)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

/// Asks for timers that are not rounded up: the default slack of 50 µs would make every start of
/// an open loop late.
pub(crate) fn ask_for_precise_timers() {
    let _ = nix::sys::prctl::set_timerslack(1);
}

/// CPU time in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CpuTime {
    pub(crate) user_us: u64,
    pub(crate) system_us: u64,
    /// Ready to run while others had the CPU. 0 where the kernel does not count it.
    pub(crate) waiting_us: u64,
}

impl CpuTime {
    /// What the calling thread has used so far.
    pub(crate) fn of_thread() -> Self {
        let Ok(usage) = getrusage(UsageWho::RUSAGE_THREAD) else {
            return Self::default();
        };
        let microseconds = |time: i64| u64::try_from(time).unwrap_or(0);
        Self {
            user_us: microseconds(usage.user_time().num_microseconds()),
            system_us: microseconds(usage.system_time().num_microseconds()),
            waiting_us: waiting_us().unwrap_or(0),
        }
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            user_us: self.user_us.saturating_sub(earlier.user_us),
            system_us: self.system_us.saturating_sub(earlier.system_us),
            waiting_us: self.waiting_us.saturating_sub(earlier.waiting_us),
        }
    }

    pub(crate) fn total_us(self) -> u64 {
        self.user_us + self.system_us
    }

    /// What it would have used on a CPU without others.
    pub(crate) fn wanted_us(self) -> u64 {
        self.total_us() + self.waiting_us
    }
}

/// The second number of a thread's `schedstat` (proc_pid_schedstat in the kernel's documentation
/// of scheduler statistics): nanoseconds on a run queue.
fn waiting_us() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let waiting_ns: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(waiting_ns / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_computes_is_charged_for_it() {
        let before = CpuTime::of_thread();
        let mut sum = 0_u64;
        let mut used = CpuTime::default();
        while used.total_us() < 5_000 {
            sum = (0..10_000_u64).fold(sum, |sum, next| sum.wrapping_mul(31) ^ next);
            used = CpuTime::of_thread().since(before);
        }
        assert!(std::hint::black_box(sum) != 1);
        assert!(used.wanted_us() >= used.total_us());
    }

    #[test]
    fn two_threads_on_one_cpu_wait_for_each_other() {
        let cpu = allowed_cpus().expect("some")[0];
        let begin = std::sync::Arc::new(std::sync::Barrier::new(2));
        let compute = move || {
            pin_thread(cpu).expect("it is allowed");
            begin.wait();
            let before = CpuTime::of_thread();
            let mut sum = 0_u64;
            // However long it takes: each runs for a few milliseconds at a time.
            while CpuTime::of_thread().since(before).total_us() < 60_000 {
                sum = (0..10_000_u64).fold(sum, |sum, next| sum.wrapping_mul(31) ^ next);
            }
            assert!(std::hint::black_box(sum) != 1);
            CpuTime::of_thread().since(before).waiting_us
        };
        let other = std::thread::spawn(compute.clone());
        let own = std::thread::spawn(compute).join().expect("it computes");
        let waited_us = own + other.join().expect("it computes");
        assert!(waiting_us().is_none() || waited_us > 0);
    }
}
