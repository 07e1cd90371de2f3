//! The part of a report that describes the machine, the build and the programs measured.
//!
//! Reads `/proc` and `/sys`; a value that cannot be read becomes "unknown". Does not change any
//! setting.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::utsname::uname;
use serde::Serialize;

use super::placement::Placement;
use super::target::{Peer, Target};
use crate::sys::cpu::CpuFacts;
use crate::sys::{limits, probe};

/// Kernel settings that affect a network load.
const SYSCTLS: [&str; 7] = [
    "net/core/somaxconn",
    "net/ipv4/tcp_max_syn_backlog",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/tcp_tw_reuse",
    "net/ipv4/tcp_fin_timeout",
    "kernel/io_uring_disabled",
    "kernel/sched_autogroup_enabled",
];

/// The environment section of every report.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Environment {
    /// The command line of the measurement.
    pub command: String,
    /// This program's version.
    pub version: String,
    /// The commit it was built from, or "unknown".
    pub commit: String,
    /// `release` or `debug`.
    pub build_profile: String,
    /// Kernel release.
    pub kernel: String,
    /// CPU model.
    pub cpu_model: String,
    /// CPUs in this process's affinity mask.
    pub allowed_cpus: Vec<usize>,
    /// CPU quota of the control group, in thousandths of a CPU; `None` without a limit.
    pub quota_milli_cpus: Option<u64>,
    /// Frequency governor of the CPUs.
    pub governor: String,
    /// CPUs of the server and of the generator.
    pub placement: Placement,
    /// Availability of io_uring.
    pub io_uring: String,
    /// Limit on file descriptors per process.
    pub descriptors_max: u64,
    /// Kernel settings by name.
    pub sysctls: BTreeMap<String, String>,
    /// Versions of the other servers measured.
    pub peers: BTreeMap<String, String>,
    /// Load average when the measurement began.
    pub load_average: String,
    /// Caveats to read before any figure, one sentence each.
    pub warnings: Vec<String>,
}

impl Environment {
    /// Reads the environment of a program built from this commit. Call it before starting any
    /// process.
    #[must_use]
    pub fn look(facts: &CpuFacts, placement: &Placement, targets: &[Target], commit: &str) -> Self {
        let support = probe::probe();
        let mut peers = BTreeMap::new();
        for target in targets {
            if let Some(peer) = target.requires() {
                peers.entry(peer.program().to_owned()).or_insert_with(|| version_of(peer));
            }
        }
        let mut warnings = Vec::new();
        if cfg!(debug_assertions) {
            warnings.push(
                "This is a debug build. Who gets the load can be read from it, how fast and how \
                 dear cannot: build with --release."
                    .to_owned(),
            );
        }
        warnings.extend(placement.notes.iter().cloned());
        if let Some(quota) = facts.quota_milli_cpus {
            let whole = quota / 1000;
            warnings.push(format!(
                "The control group grants {whole}.{:03} CPUs and stops everybody beyond it.",
                quota % 1000
            ));
        }
        Self {
            command: command(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: known(commit),
            build_profile: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
            kernel: uname().map_or_else(
                |_| "unknown".to_owned(),
                |names| names.release().to_string_lossy().into_owned(),
            ),
            cpu_model: cpu_model(&text("/proc/cpuinfo")),
            allowed_cpus: facts.ids(),
            quota_milli_cpus: facts.quota_milli_cpus,
            governor: known(&text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
            placement: placement.clone(),
            io_uring: support.level().to_string(),
            descriptors_max: limits::descriptor_limits().map_or(0, |(_, hard)| hard),
            sysctls: SYSCTLS.iter().map(|name| (name.replace('/', "."), sysctl(name))).collect(),
            peers,
            load_average: load_average(&text("/proc/loadavg")),
            warnings,
        }
    }
}

/// The command line, with the program reduced to its file name.
fn command() -> String {
    let words: Vec<String> = std::env::args().skip(1).collect();
    ["clusterlb".to_owned()].into_iter().chain(words).collect::<Vec<_>>().join(" ")
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The value on one line, or "unknown" if it is empty.
fn known(value: &str) -> String {
    let words: Vec<&str> = value.split_whitespace().collect();
    if words.is_empty() { "unknown".to_owned() } else { words.join(" ") }
}

fn sysctl(name: &str) -> String {
    known(&text(Path::new("/proc/sys").join(name)))
}

fn cpu_model(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    known(line.unwrap_or("").trim_start_matches([' ', '\t', ':']))
}

fn load_average(loadavg: &str) -> String {
    known(&loadavg.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
}

/// The version that a program reports.
fn version_of(peer: Peer) -> String {
    let argument = if matches!(peer, Peer::Node { .. }) { "--version" } else { "-v" };
    let Ok(told) = Command::new(peer.program()).arg(argument).output() else {
        return "unknown".to_owned();
    };
    // nginx prints its version on standard error.
    let all = [told.stdout, told.stderr].concat();
    known(String::from_utf8_lossy(&all).lines().next().unwrap_or(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_unknown() {
        assert_eq!(known(" a  b\n"), "a b");
        assert_eq!(known(" \n"), "unknown");
        assert_eq!(cpu_model("processor : 0\nmodel name\t: Fast 9000\n"), "Fast 9000");
        assert_eq!(cpu_model(""), "unknown");
        assert_eq!(load_average("0.10 0.20 0.30 1/99 4242\n"), "0.10 0.20 0.30");
    }

    #[test]
    fn warnings_begin_with_the_build() {
        let facts = CpuFacts { cpus: Vec::new(), quota_milli_cpus: Some(1500) };
        let placement = Placement { notes: vec!["Two.".into()], ..Placement::default() };
        let found = Environment::look(&facts, &placement, &[], "0123abcd");
        let debug = usize::from(cfg!(debug_assertions));
        assert_eq!(found.warnings.len(), 2 + debug);
        assert!(found.warnings[debug + 1].contains("1.500 CPUs"));
        assert_eq!(found.sysctls.len(), SYSCTLS.len());
        assert!(found.peers.is_empty());
    }
}
