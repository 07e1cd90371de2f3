//! CPU and memory use of a process, where the system reports it.

use std::fs::File;
use std::io::Read as _;

/// Room for a line of `/proc/PID/stat` up to field 24, however large its numbers are.
const LINE_BYTES: usize = 1024;

/// Use of a process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::command) struct Usage {
    /// CPU time.
    pub(in crate::command) cpu_seconds: f64,
    /// Resident memory.
    pub(in crate::command) resident_bytes: u64,
}

/// The use of a process, where the system reports it.
pub(in crate::command) fn usage_of(pid: u32) -> Option<Usage> {
    // One call reads the line as it is at one moment.
    let mut line = [0; LINE_BYTES];
    let length = File::open(format!("/proc/{pid}/stat")).ok()?.read(&mut line).ok()?;
    parse_stat(line.get(..length)?, ticks_per_second(), page_bytes())
}

/// From `proc_pid_stat(5)`: fields 14, 15 and 24, counted from after the name, which may contain
/// any byte.
fn parse_stat(stat: &[u8], ticks_per_second: f64, page_bytes: u64) -> Option<Usage> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let behind = str::from_utf8(&stat[name_end + 1..]).ok()?;
    let field =
        |number: usize| -> Option<u64> { behind.split_whitespace().nth(number - 3)?.parse().ok() };
    let ticks = u32::try_from(field(14)? + field(15)?).ok()?;
    Some(Usage {
        cpu_seconds: f64::from(ticks) / ticks_per_second,
        resident_bytes: field(24)?.saturating_mul(page_bytes),
    })
}

fn ticks_per_second() -> f64 {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
    ticks.and_then(|ticks| i32::try_from(ticks).ok()).map_or(100.0, f64::from)
}

fn page_bytes() -> u64 {
    let bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_s_name_does_not_hide_its_numbers() {
        let stat = b"7 (a) b\xff 3 (c)) S 1 7 7 0 -1 0 0 0 0 0 250 50 0 0 20 0 1 0 9 99 12 0 0";
        let usage = parse_stat(stat, 100.0, 4096).expect("all fields");
        assert_eq!(usage, Usage { cpu_seconds: 3.0, resident_bytes: 12 * 4096 });
        assert!(parse_stat(b"7 (a) S 1", 100.0, 4096).is_none());
        assert!(usage_of(std::process::id()).is_some_and(|usage| usage.resident_bytes > 0));
    }
}
