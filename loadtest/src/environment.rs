//! Where a run took place: kernel, CPUs, limits, sysctls, counters of lost connections.
//!
//! Reads /proc and records "unknown" rather than failing: a report with a gap is better than none.

use std::fs;

use serde::{Deserialize, Serialize};

/// The environment, as it goes into the report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Kernel release.
    pub kernel: String,
    /// CPU model.
    pub cpu_model: String,
    /// CPUs that the process was allowed to use.
    pub allowed_cpus: Vec<u32>,
    /// The CPU of each thread; empty if they were not pinned.
    pub pinned_cpus: Vec<u32>,
    /// io_uring setup flags in force.
    pub ring_flags: String,
    /// Open files allowed, after raising the soft limit to the hard one.
    pub nofile: u64,
    /// `net.ipv4.ip_local_port_range`.
    pub port_range: [u16; 2],
    /// `net.ipv4.tcp_tw_reuse`; 2 means on loopback only.
    pub tcp_tw_reuse: u8,
    /// `net.core.somaxconn`, which bounds every listener's queue.
    pub somaxconn: u32,
    /// Source addresses in use; 1 is the kernel's choice.
    pub sources: u32,
    /// The first of them, if they were chosen here.
    pub first_source: Option<String>,
    /// Most connections for requests at once.
    pub connections_max: u32,
    /// Connections that some listener on this machine dropped during the run because its queue
    /// was full (`ListenOverflows`).
    pub listen_overflows: u64,
    /// The same for all reasons (`ListenDrops`).
    pub listen_drops: u64,
    /// A warning that ports may run out.
    pub port_warning: Option<String>,
    /// The generator was built without optimisation: its figures mean little.
    pub debug_build: bool,
}

/// Reads a file of /proc, without the line end.
pub(crate) fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned())
}

/// The range of local ports; the kernel's default if it cannot be read.
pub(crate) fn port_range() -> (u16, u16) {
    let text = read("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = text.split_ascii_whitespace().map_while(|word| word.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(first), Some(last)) if first <= last => (first, last),
        _ => (32_768, 60_999),
    }
}

/// A sysctl that is one number; 0 if it cannot be read.
pub(crate) fn sysctl<N: std::str::FromStr + Default>(path: &str) -> N {
    read(path).and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// The CPU's name.
pub(crate) fn cpu_model() -> String {
    let text = read("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name"));
    let name = model.map(|rest| rest.trim_start_matches([' ', '\t', ':']));
    name.unwrap_or("unknown").to_owned()
}

/// Connections that listeners have dropped since the machine was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ListenLosses {
    pub(crate) overflows: u64,
    pub(crate) drops: u64,
}

impl ListenLosses {
    pub(crate) fn now() -> Self {
        read("/proc/net/netstat").map_or_else(Self::default, |text| Self::of(&text))
    }

    /// Finds the counters by name: their places differ between kernels.
    fn of(netstat: &str) -> Self {
        let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
        let names = lines.next().unwrap_or_default().split_ascii_whitespace();
        let values = lines.next().unwrap_or_default().split_ascii_whitespace();
        let mut losses = Self::default();
        for (name, value) in names.zip(values) {
            match name {
                "ListenOverflows" => losses.overflows = value.parse().unwrap_or(0),
                "ListenDrops" => losses.drops = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        losses
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            overflows: self.overflows.saturating_sub(earlier.overflows),
            drops: self.drops.saturating_sub(earlier.drops),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_name() {
        let text = "TcpExt: A ListenOverflows B ListenDrops\nTcpExt: 1 22 3 44\nIpExt: X\nIpExt: 5";
        let losses = ListenLosses::of(text);
        assert_eq!((losses.overflows, losses.drops), (22, 44));
        assert_eq!(ListenLosses::of("nothing"), ListenLosses::default());
    }
}
