//! The kernel scheduler's times of a process.

use std::fs;

/// Times of a process's main thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTimes {
    /// How long it ran.
    pub ran_ns: u64,
    /// How long it was runnable and waited for a CPU.
    pub waited_ns: u64,
}

/// The times of a process that runs, or has ended and is not reaped. `None` where the kernel does
/// not count them, or `/proc` is not mounted.
#[must_use]
pub fn of_process(pid: u32) -> Option<CpuTimes> {
    parse(&fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?)
}

fn parse(text: &str) -> Option<CpuTimes> {
    let mut numbers = text.split_whitespace().map(str::parse);
    let (ran_ns, waited_ns) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some(CpuTimes { ran_ns, waited_ns })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernels_is_understood() {
        assert_eq!(parse("123 45 6\n"), Some(CpuTimes { ran_ns: 123, waited_ns: 45 }));
        for nonsense in ["", "1", "a b c"] {
            assert_eq!(parse(nonsense), None, "{nonsense:?}");
        }
    }

    #[test]
    fn this_process_has_run() {
        let times = of_process(std::process::id()).expect("the kernel counts");
        assert!(times.ran_ns > 0);
        assert_eq!(of_process(u32::MAX), None);
    }
}
