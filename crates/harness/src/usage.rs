//! What a server and the whole machine have used: CPU time and memory, read from `/proc`.
//!
//! A server is a tree of processes. Their CPU time is the scheduler's own count in nanoseconds
//! (`schedstat` of every thread); `stat` counts in hundredths of a second and stands in only
//! where that file is missing. On loopback whoever sends does the receiver's protocol work, so
//! the machine's total belongs beside every server's. Refuses to judge.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// Length of a tick of `/proc/stat` and `/proc/<pid>/stat`, which has been the same for user
/// space on every Linux for decades.
const TICK_NS: u64 = 10_000_000;

/// CPU time that has been used up to some moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of each process of the server, by its id.
    pub processes_ns: BTreeMap<u32, u64>,
    /// Of the whole machine, all that was not idle.
    pub machine_ns: u64,
    /// What the hypervisor gave to others meanwhile.
    pub stolen_ns: u64,
}

/// Memory of a tree of processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The sum of each process's peak. Pages that several share count for each.
    pub peak_bytes: u64,
    /// The sum of what each holds now, shared pages divided by who shares them.
    pub proportional_bytes: Option<u64>,
}

impl Usage {
    /// The usage of a process, all that descend from it, and the machine.
    #[must_use]
    pub fn of_tree(root: u32) -> Self {
        let processes = tree(root).into_iter();
        let processes_ns = processes.map(|pid| (pid, process_ns(pid))).collect();
        let (machine_ns, stolen_ns) = machine(&read("/proc/stat")).unwrap_or_default();
        Self { processes_ns, machine_ns, stolen_ns }
    }

    /// What was used since an earlier moment. A process that is gone has taken its time along.
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

    /// All of the server's processes together.
    #[must_use]
    pub fn server_ns(&self) -> u64 {
        self.processes_ns.values().sum()
    }
}

impl Memory {
    /// The memory of a process and all that descend from it.
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

/// A process and all that descend from it, as far as they exist.
#[must_use]
pub fn tree(root: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let parents: Vec<(u32, u32)> = numbers
        .filter_map(|pid| Some((pid, parent(&read(&format!("/proc/{pid}/stat")))?)))
        .collect();
    descendants(root, &parents)
}

/// Pairs of child and parent into everything below a root, itself first.
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

/// What follows the name, which may hold anything, in a line of `/proc/<pid>/stat`.
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
    // One thread that cannot be read would make the sum too small.
    let sum: Option<u64> = counts.sum();
    match sum {
        Some(ns) if ns > 0 => ns,
        _ => ticks_ns(&read(&format!("/proc/{pid}/stat"))),
    }
}

/// User and system time of a process from its `stat`.
fn ticks_ns(stat: &str) -> u64 {
    let ticks = after_name(stat).skip(11).take(2);
    ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() * TICK_NS
}

/// The machine's busy and its stolen time from `/proc/stat`.
fn machine(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> =
        line.split_ascii_whitespace().map_while(|ticks| ticks.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; what follows is part of user and nice.
    let part = |place: usize| ticks.get(place).copied().unwrap_or(0);
    let busy = part(0) + part(1) + part(2) + part(5) + part(6);
    Some((busy * TICK_NS, part(7) * TICK_NS))
}

/// A line of `status` or `smaps_rollup`, in bytes.
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
