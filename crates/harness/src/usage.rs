//! Reads the CPU time and memory used by a server and by the whole machine from `/proc`.
//!
//! A server is a tree of processes. CPU time comes from the scheduler's nanosecond counts
//! (`schedstat` of every thread); `stat` has a resolution of 10 ms and is the fallback where that
//! file is missing. On loopback the sender performs the receiver's protocol work, so a report shows
//! the machine's total beside every server's. Does not judge the values.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// Length of a tick in `/proc/stat` and `/proc/<pid>/stat`, the same for user space on every Linux
/// for decades.
const TICK_NS: u64 = 10_000_000;

/// CPU time used up to a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Per process of the server, by pid.
    pub processes_ns: BTreeMap<u32, u64>,
    /// Of the whole machine, without idle time.
    pub machine_ns: u64,
    /// Time that the hypervisor took for other guests.
    pub stolen_ns: u64,
}

/// Memory of a process tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Sum of the processes' peaks. A shared page counts once per process.
    pub peak_bytes: u64,
    /// Sum of the current values, with shared pages divided between their users.
    pub proportional_bytes: Option<u64>,
}

impl Usage {
    /// The usage of a process, its descendants, and the machine.
    #[must_use]
    pub fn of_tree(root: u32) -> Self {
        let processes = tree(root).into_iter();
        let processes_ns = processes.map(|pid| (pid, process_ns(pid))).collect();
        let (machine_ns, stolen_ns) = machine(&read("/proc/stat")).unwrap_or_default();
        Self { processes_ns, machine_ns, stolen_ns }
    }

    /// The difference to an earlier reading. The time of a process that has ended since is lost.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |pid: &u32| earlier.processes_ns.get(pid).copied().unwrap_or(0);
        let processes = self.processes_ns.iter();
        Self {
            processes_ns: processes
                .map(|(pid, ns)| (*pid, ns.saturating_sub(before(pid))))
                .collect(),
            machine_ns: self.machine_ns.saturating_sub(earlier.machine_ns),
            stolen_ns: self.stolen_ns.saturating_sub(earlier.stolen_ns),
        }
    }

    /// Sum over the processes of the server.
    #[must_use]
    pub fn server_ns(&self) -> u64 {
        self.processes_ns.values().sum()
    }
}

impl Memory {
    /// The memory of a process and its descendants.
    #[must_use]
    pub fn of_tree(root: u32) -> Self {
        let mut sum = Self { peak_bytes: 0, proportional_bytes: Some(0) };
        for pid in tree(root) {
            let peak = kilobytes(&read(&format!("/proc/{pid}/status")), "VmHWM:");
            sum.peak_bytes += peak.unwrap_or(0);
            let own = kilobytes(&read(&format!("/proc/{pid}/smaps_rollup")), "Pss:");
            sum.proportional_bytes = sum.proportional_bytes.zip(own).map(|(sum, own)| sum + own);
        }
        sum
    }
}

/// The pids of a process and its existing descendants.
#[must_use]
pub fn tree(root: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let parents: Vec<(u32, u32)> = numbers
        .filter_map(|pid| Some((pid, parent(&read(&format!("/proc/{pid}/stat")))?)))
        .collect();
    descendants(root, &parents)
}

/// Turns pairs of child and parent into the list of a root and its descendants, root first.
fn descendants(root: u32, parents: &[(u32, u32)]) -> Vec<u32> {
    let mut found = vec![root];
    let mut known = BTreeSet::from([root]);
    let mut place = 0;
    while let Some(parent) = found.get(place).copied() {
        let children = parents.iter().filter(|pair| pair.1 == parent).map(|pair| pair.0);
        found.extend(children.filter(|child| known.insert(*child)));
        place += 1;
    }
    found
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The fields of a `/proc/<pid>/stat` line after the name, which may contain any character.
fn after_name(stat: &str) -> impl Iterator<Item = &str> {
    stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split_ascii_whitespace()
}

fn parent(stat: &str) -> Option<u32> {
    after_name(stat).nth(1)?.parse().ok()
}

fn process_ns(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let counts = tasks.map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_ascii_whitespace().next()?.parse::<u64>().ok()
    });
    // If one thread cannot be read, the sum is too small, so it is discarded.
    let sum: Option<u64> = counts.sum();
    match sum {
        Some(ns) if ns > 0 => ns,
        _ => ticks_ns(&read(&format!("/proc/{pid}/stat"))),
    }
}

/// User and system time of a process, from `stat`.
fn ticks_ns(stat: &str) -> u64 {
    let ticks = after_name(stat).skip(11).take(2);
    ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() * TICK_NS
}

/// Busy and stolen time of the machine, from `/proc/stat`.
fn machine(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> =
        line.split_ascii_whitespace().map_while(|ticks| ticks.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; the later fields are included in user and
    // nice.
    let part = |place: usize| ticks.get(place).copied().unwrap_or(0);
    let busy = part(0) + part(1) + part(2) + part(5) + part(6);
    Some((busy * TICK_NS, part(7) * TICK_NS))
}

/// A value of `status` or `smaps_rollup`, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_are_understood() {
        let stat = "42 (a (b) c) S 7 42 42 0 -1 4194560 1 2 3 4 150 25 1 1 20 0 1 0 99";
        assert_eq!(parent(stat), Some(7));
        assert_eq!(ticks_ns(stat), 175 * TICK_NS);
        let total = "cpu  100 10 50 9000 700 5 15 20 33 0\ncpu0 1 1 1\n";
        assert_eq!(machine(total), Some((180 * TICK_NS, 20 * TICK_NS)));
        assert_eq!(machine("nonsense"), None);
        assert_eq!(kilobytes("VmPeak:\t 9 kB\nVmHWM:\t   12 kB\n", "VmHWM:"), Some(12_288));
        assert_eq!(kilobytes("", "VmHWM:"), None);
    }

    #[test]
    fn a_tree_is_found_whatever_the_order_of_its_processes() {
        let parents = [(9, 4), (3, 2), (4, 3), (5, 1), (2, 1), (2, 9)];
        assert_eq!(descendants(2, &parents), [2, 3, 4, 9]);
        assert_eq!(descendants(77, &parents), [77]);
    }

    #[test]
    fn own_usage_grows_with_work() {
        let own = std::process::id();
        let before = Usage::of_tree(own);
        let mut sum = 0_u64;
        let mut since = Usage::default();
        while since.server_ns() < 5_000_000 {
            sum = (0..100_000_u64).fold(sum, |sum, next| sum.wrapping_mul(31) ^ next);
            since = Usage::of_tree(own).since(&before);
        }
        assert!(std::hint::black_box(sum) != 1);
        assert!(since.processes_ns.contains_key(&own));
        assert!(Memory::of_tree(own).peak_bytes > 1 << 20);
    }
}
