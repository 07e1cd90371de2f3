//! Reads processes and sockets from `/proc`.

use std::collections::HashMap;
use std::fs;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::eventually;

/// Clock ticks per second in `/proc/<pid>/stat`, the same on every Linux that Rust supports.
const TICKS_PER_S: u64 = 100;

/// Sends a signal to a process that a test has started, directly or through the primary.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("process ids are small"));
    // A process that has just ended need not be signalled.
    let _ = kill(pid, signal);
}

/// Sets the soft descriptor limit of a running process, unless it has ended.
pub(crate) fn set_descriptor_limit(pid: u32, descriptors: usize) {
    let limit = format!("--nofile={descriptors}:");
    let output = Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]).output();
    let output = output.expect("prlimit starts");
    let has_ended = !std::path::Path::new(&format!("/proc/{pid}")).exists();
    assert!(output.status.success() || has_ended, "{output:?}");
}

/// Stops a process and waits until all of its threads are stopped.
pub(crate) fn suspend(pid: u32) {
    signal(pid, Signal::SIGSTOP);
    eventually("a process to stop", || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        let mut states =
            tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
        states.all(|stat| state_of(&stat) == Some('T')).then_some(())
    });
}

fn state_of(stat: &str) -> Option<char> {
    after_name(stat)?.chars().next()
}

/// The fields after the name, which may contain any character, in a line of `/proc/<pid>/stat`.
fn after_name(stat: &str) -> Option<&str> {
    stat.rsplit_once(") ").map(|(_, rest)| rest)
}

/// Processes whose environment contains this assignment.
pub(crate) fn processes_with(assignment: &str) -> Vec<u32> {
    let needle = format!("{assignment}\0").into_bytes();
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environment| {
                environment.windows(needle.len()).any(|window| window == needle)
            })
        })
        .collect()
}

/// CPU time of a process in milliseconds.
pub(crate) fn cpu_time_ms(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = after_name(&stat).unwrap_or_default().split_whitespace().collect();
    // utime and stime are fields 14 and 15 of the line; two fields precede this part.
    let ticks: u64 = fields
        .get(11..13)
        .unwrap_or_default()
        .iter()
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    ticks * 1000 / TICKS_PER_S
}

/// Number of open descriptors of a process.
pub(crate) fn descriptor_count(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Resident memory of a process in KiB.
pub(crate) fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

/// For each client port, the process that holds the server's end of the connection to
/// `server_port`; all of them are on this machine. Polls, because a socket may be in transit.
pub(crate) fn holders(pids: &[u32], client_ports: &[u16], server_port: u16) -> Vec<u32> {
    eventually("the processes that hold the connections", || {
        let links = links_by_client(server_port);
        let holders = sockets_of(pids);
        let holder = |port| holders.get(links.get(port)?).copied();
        client_ports.iter().map(holder).collect()
    })
}

/// The same for one connection.
pub(crate) fn holder(pids: &[u32], client_port: u16, server_port: u16) -> u32 {
    holders(pids, &[client_port], server_port)[0]
}

/// Client ports of the connections to `server_port` whose server's end a process holds.
pub(crate) fn clients_of(pid: u32, server_port: u16) -> Vec<u16> {
    let links = links_by_client(server_port);
    let held = sockets_of(&[pid]);
    links.into_iter().filter(|(_, link)| held.contains_key(link)).map(|(port, _)| port).collect()
}

/// Number of connections to a port that wait to be accepted.
pub(crate) fn queued(server_port: u16) -> usize {
    queues(server_port).into_iter().sum()
}

/// The same of each socket that listens there.
pub(crate) fn queues(server_port: u16) -> Vec<usize> {
    const LISTENS: &str = "0A";
    let port = format!(":{server_port:04X}");
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(fs::read_to_string);
    let lines = tables.iter().flatten().flat_map(|table| table.lines());
    let queues = lines.filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, state, queues, ..] = fields[..] else { return None };
        let (_, waiting) = queues.split_once(':').filter(|_| state == LISTENS)?;
        usize::from_str_radix(waiting, 16).ok().filter(|_| local.ends_with(&port))
    });
    queues.collect()
}

/// Processes by their open sockets.
fn sockets_of(pids: &[u32]) -> HashMap<String, u32> {
    let mut holders = HashMap::new();
    for pid in pids {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
        holders.extend(links.map(|link| (link.to_string_lossy().into_owned(), *pid)));
    }
    holders
}

/// The connections to a port, in the form of descriptor links, by client port. The table can be
/// long, because the kernel keeps past connections for a minute, so it is read once.
fn links_by_client(server_port: u16) -> HashMap<u16, String> {
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    let mut links = HashMap::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(table).unwrap_or_default().lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, local, remote, _, _, _, _, _, _, inode, ..] = fields[..] else { continue };
            if port(local) == Some(server_port) && inode != "0" {
                links.extend(port(remote).map(|remote| (remote, format!("socket:[{inode}]"))));
            }
        }
    }
    links
}
