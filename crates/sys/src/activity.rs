//! CPU time and state of another process, from `/proc`.
//!
//! Owns the parsing of `/proc/PID/stat`. Without `/proc`, no process is ever reported asleep.

use std::fs;

/// CPU time of a process, in kernel ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuTime(u64);

/// The CPU time of a process whose first thread is asleep; `None` otherwise.
#[must_use]
pub fn asleep_at(pid: u32) -> Option<CpuTime> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name in the second field may contain any character, including parentheses.
fn parse(line: &str) -> Option<CpuTime> {
    // Field positions after the name.
    const STATE: usize = 0;
    const USER: usize = 11;
    const SYSTEM: usize = 12;
    let (_, fields) = line.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let time = |place: usize| fields.get(place)?.parse::<u64>().ok();
    (fields.get(STATE) == Some(&"S")).then_some(())?;
    Some(CpuTime(time(USER)?.checked_add(time(SYSTEM)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_asleep_has_a_time() {
        let line = |state: &str| {
            format!("7 (a) R b) {state} 1 7 7 0 -1 4194304 1 0 0 0 12 3 0 0 20 0 7 0 1 2 3\n")
        };
        assert_eq!(parse(&line("S")), Some(CpuTime(15)));
        assert_eq!([parse(&line("R")), parse(&line("Z")), parse("7 (a) S"), parse("")], [None; 4]);
        let own = fs::read_to_string("/proc/self/stat").expect("there is a /proc");
        // The first thread waits for this one.
        assert!(parse(&own.replacen(") R ", ") S ", 1)).is_some());
    }
}
