//! Starts a server under measurement on its CPUs, reads its counters and stops it.
//!
//! Hides the difference between this program's policies and other servers: each has an address,
//! processes and, at the end, counters if it keeps any. Does not put load on the server.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::sys::clock::with_precise_sleeps;
use crate::sys::signal::Signal;
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::Value;

use super::child::{Child, failure};
use super::interrupt::{Halt, Interrupt};
use super::peer::{self, PeerPlan};
use super::target::{NODE_MARK, Peer, Target};
use super::temp_dir::TempDir;
use super::usage;
use crate::error::{Error, Result, errno_of};
use crate::work::{Work, WorkKind};

/// How long a server may take to start serving, and to end.
const START_WITHIN: Duration = Duration::from_secs(60);
const END_WITHIN: Duration = Duration::from_secs(30);
/// Number of ports tried for a server that cannot choose one itself. Clients take their ports from
/// the same range, so a port that was free a moment ago may be in use.
const PORTS_TRIED_MAX: u32 = 5;
/// Grace period for open connections at the end of a run. Measured requests have finished by then.
const GRACE: &str = "1s";

/// Common settings of all targets.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Worker processes.
    pub workers: usize,
    /// CPUs of the server; none if it is not pinned.
    pub cpus: Vec<usize>,
    /// Cost of a request.
    pub work: Option<Work>,
    /// Seed of the request costs.
    pub seed: u64,
    /// Connections are accepted before their clients have sent anything, as by other servers.
    pub accept_at_once: bool,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// Address it listens on.
    pub address: SocketAddr,
    /// Pids of the processes that serve.
    pub workers: Vec<u32>,
    name: String,
    child: Child,
    /// Kept until the server has ended.
    temp_dir: Option<TempDir>,
}

/// The counters of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Books {
    /// Connections per worker; `None` if the server does not count them.
    pub connections: Option<Vec<u64>>,
    /// Number of workers that ended and were replaced.
    pub restarted: u64,
}

impl Server {
    /// Starts a target and waits until it serves.
    ///
    /// # Errors
    /// A signal, or a program that is missing or does not start.
    pub fn start(
        target: Target,
        setup: &Setup,
        interrupt: &mut Interrupt,
    ) -> std::result::Result<Self, Halt> {
        interrupt.check()?;
        match target {
            Target::Own { .. } => own(target, setup, interrupt),
            Target::Peer(peer @ Peer::Node { primary_accepts }) => {
                let temp_dir = TempDir::new()?;
                let mut command = Command::new(peer.program());
                command.args(node_arguments(&temp_dir, setup, primary_accepts)?);
                let child = start_on(setup, &target.to_string(), &mut command)?;
                let mut server = until_told(target, child, interrupt)?;
                server.temp_dir = Some(temp_dir);
                server.pin_workers(&setup.cpus);
                Ok(server)
            }
            Target::Peer(peer) => {
                let deadline = Instant::now() + START_WITHIN;
                let mut tried = 1;
                loop {
                    let again = tried < PORTS_TRIED_MAX && Instant::now() < deadline;
                    match silent(peer, setup, deadline, interrupt) {
                        Err(Halt::Failed(_)) if again => tried += 1,
                        result => return result,
                    }
                }
            }
        }
    }

    /// The first process, which started the others.
    #[must_use]
    pub fn root(&self) -> u32 {
        self.child.id()
    }

    /// Pins workers to CPUs in turn, for servers that do not pin them.
    fn pin_workers(&self, cpus: &[usize]) {
        for (worker, cpu) in self.workers.iter().zip(cpus.iter().cycle()) {
            let Ok(pid) = i32::try_from(*worker) else { continue };
            // A worker that has ended is detected later.
            let _ = sched_setaffinity(Pid::from_raw(pid), &cpu_set(&[*cpu]));
        }
    }

    /// Whether the server is still running.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.child.has_ended()
    }

    /// Ends the server and returns its counters.
    ///
    /// # Errors
    /// The server had already ended, or did not end cleanly.
    pub fn end(self) -> Result<Books> {
        let Self { child, name, workers, temp_dir, .. } = self;
        let early = child.has_ended();
        let ended = child.end(Signal::SIGTERM, END_WITHIN);
        if early || ended.forced {
            let what = if early { "ended too early" } else { "did not end when asked to" };
            return Err(failure(&name, what, &ended.complaints));
        }
        drop(temp_dir);
        Ok(books(&ended.lines, workers.len()))
    }
}

fn plan<'a>(setup: &'a Setup, temp_dir: &'a str) -> PeerPlan<'a> {
    let Setup { workers, cpus, work, .. } = setup;
    PeerPlan { workers: *workers, cpus, port: 0, work: work.as_ref(), temp_dir }
}

/// Arguments of `node`: the script, written to a directory, and its options.
fn node_arguments(
    temp_dir: &TempDir,
    setup: &Setup,
    primary_accepts: bool,
) -> Result<[OsString; 2]> {
    let options = peer::node_options(&plan(setup, ""), primary_accepts).to_string();
    let script = temp_dir.write("node-cluster.js", peer::NODE_SCRIPT)?;
    Ok([script.into(), options.into()])
}

/// Arguments of this program for one of its targets, up to the worker program if there is one.
fn own_arguments(target: Target, setup: &Setup) -> Vec<String> {
    let mut words = vec!["--json", "--grace", GRACE];
    let backlog = peer::BACKLOG.to_string();
    if !target.runs_node() {
        words.extend(["--listen", "127.0.0.1:0", "--backlog", &backlog]);
        words.extend(["--defer-accept", "off"].iter().filter(|_| setup.accept_at_once));
    }
    let (workers, name) = (setup.workers.to_string(), target.to_string());
    words.extend(["--workers", &workers]);
    let (name, options) = name.split_once(' ').unwrap_or((&name, ""));
    let name = name.trim_end_matches(NODE_MARK);
    let (policy, accept) = name.split_once(':').map_or((name, None), |(a, b)| (a, Some(b)));
    words.extend(["--policy", policy]);
    words.extend(accept.into_iter().flat_map(|accept| ["--accept", accept]));
    let seed = setup.seed.to_string();
    let work = setup.work.as_ref().filter(|_| !target.runs_node()).map(Work::to_string);
    words.extend(work.iter().flat_map(|work| ["--work", &**work, "--work-seed", &*seed]));
    words.extend(options.split_whitespace());
    words.into_iter().map(str::to_owned).collect()
}

fn own(
    target: Target,
    setup: &Setup,
    interrupt: &mut Interrupt,
) -> std::result::Result<Server, Halt> {
    let mut command = own_command()?;
    command.args(own_arguments(target, setup));
    let temp_dir = if let Some(peer) = target.requires() {
        let temp_dir = TempDir::new()?;
        let script = node_arguments(&temp_dir, setup, true)?;
        command.arg("--").arg(peer.program()).args(script);
        Some(temp_dir)
    } else {
        None
    };
    let child = start_on(setup, &format!("clusterlb {target}"), &mut command)?;
    let mut server = until_told(target, child, interrupt)?;
    server.temp_dir = temp_dir;
    let mut online = Vec::new();
    while online.len() < setup.workers {
        let line = server.child.next_line(START_WITHIN, interrupt)?;
        let Some(line) = line else {
            return Err(server.child.failure("ended before its workers ran").into());
        };
        if let Ok(EventLine { event, id, pid: Some(pid), .. }) = serde_json::from_str(&line)
            && event == "online"
        {
            online.push((id, pid));
        }
    }
    // Sorted like the counters; workers become ready in any order.
    online.sort_unstable();
    server.workers = online.into_iter().map(|(_, pid)| pid).collect();
    if target.runs_node() {
        server.pin_workers(&setup.cpus);
    }
    Ok(server)
}

/// This executable, even if its file has been replaced or removed.
///
/// # Errors
/// `/proc` is not mounted.
pub fn own_command() -> Result<Command> {
    let program = std::env::current_exe()
        .map_err(|error| Error::system("find this program's own file", errno_of(&error)))?;
    let program = if program.exists() { program } else { PathBuf::from("/proc/self/exe") };
    let mut command = Command::new(program);
    // Variables set for the measuring process must not affect the server.
    let own =
        std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CLUSTERLB_"));
    for (name, _) in own {
        command.env_remove(name);
    }
    Ok(command)
}

/// A line of output from a server.
#[derive(Deserialize)]
struct EventLine {
    event: String,
    address: Option<SocketAddr>,
    id: Option<u32>,
    pid: Option<u32>,
    workers: Option<Value>,
    restarted: Option<u64>,
    message: Option<Value>,
}

/// Waits until a server reports that it is listening.
fn until_told(
    target: Target,
    mut child: Child,
    interrupt: &mut Interrupt,
) -> std::result::Result<Server, Halt> {
    loop {
        let Some(line) = child.next_line(START_WITHIN, interrupt)? else {
            return Err(child.failure("ended before it served").into());
        };
        let Ok(EventLine { event, address: Some(address), workers, .. }) =
            serde_json::from_str(&line)
        else {
            continue;
        };
        if event == "listening" {
            let listed = workers.as_ref().and_then(Value::as_array).into_iter().flatten();
            let workers = listed.filter_map(|pid| u32::try_from(pid.as_u64()?).ok()).collect();
            let name = target.to_string();
            return Ok(Server { address, workers, name, child, temp_dir: None });
        }
    }
}

/// Starts a server that prints nothing, and waits until it accepts connections. Fails at once if
/// another process holds its port.
fn silent(
    peer: Peer,
    setup: &Setup,
    deadline: Instant,
    interrupt: &mut Interrupt,
) -> std::result::Result<Server, Halt> {
    let temp_dir = TempDir::new()?;
    let address = free_address()?;
    let path = temp_dir.path.to_string_lossy().into_owned();
    let plan = PeerPlan { port: address.port(), ..plan(setup, &path) };
    let mut command = Command::new(peer.program());
    match peer {
        Peer::Nginx { reuseport } => {
            let text = peer::nginx_configuration(&plan, reuseport);
            let file = temp_dir.write("nginx.conf", &text)?;
            command.arg("-p").arg(&temp_dir.path).args(["-e", "stderr", "-c"]).arg(file);
        }
        Peer::Haproxy | Peer::Node { .. } => {
            let file = temp_dir.write("haproxy.cfg", &peer::haproxy_configuration(&plan))?;
            command.args(["-db", "-f"]).arg(file);
        }
    }
    let target = Target::Peer(peer);
    let mut child = start_on(setup, &target.to_string(), &mut command)?;
    // HAProxy's workers are threads of a single process.
    let workers_wanted = if peer == Peer::Haproxy { 0 } else { setup.workers };
    let workers = loop {
        let workers = usage::tree(child.id()).split_off(1);
        let serves = TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok();
        // If the server has ended, another process is answering on the port.
        if child.has_ended() || Instant::now() > deadline {
            return Err(child.failure("does not serve").into());
        }
        if serves && workers.len() >= workers_wanted {
            break workers;
        }
        interrupt.sleep(Duration::from_millis(10))?;
    };
    let name = target.to_string();
    Ok(Server { address, workers, name, child, temp_dir: Some(temp_dir) })
}

/// A port that is free at the moment.
fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0");
    listener
        .and_then(|listener| listener.local_addr())
        .map_err(|error| Error::system("find a free port", errno_of(&error)))
}

/// Starts a process restricted to the server's CPUs, if there are any; its descendants inherit the
/// restriction. Work that blocks lasts as long in all servers as it does in the built-in worker.
fn start_on(setup: &Setup, name: &str, command: &mut Command) -> Result<Child> {
    let blocks = setup.work.as_ref().is_some_and(|work| work.kind == WorkKind::Block);
    let start = |command: &mut Command| {
        if !blocks {
            return Child::start(name, command);
        }
        with_precise_sleeps(|| Child::start(name, command))
    };
    let cpus = &setup.cpus;
    if cpus.is_empty() {
        return start(command);
    }
    let this = Pid::from_raw(0);
    let failed = |errno: Errno| Error::system("choose the CPUs of a process", errno);
    let before = sched_getaffinity(this).map_err(failed)?;
    sched_setaffinity(this, &cpu_set(cpus)).map_err(failed)?;
    let child = start(command);
    sched_setaffinity(this, &before).map_err(failed)?;
    child
}

fn cpu_set(cpus: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    for cpu in cpus {
        // CPU numbers come from the affinity mask, so they fit the set.
        let _ = set.set(*cpu);
    }
    set
}

/// Parses the final output of a server.
fn books(lines: &[String], workers: usize) -> Books {
    let told = lines.iter().filter_map(|line| serde_json::from_str::<EventLine>(line).ok());
    let mut books = Books::default();
    // Node's workers report their own counts, so that both primaries are measured in the same way.
    let mut reports = BTreeMap::new();
    for told in told {
        match &*told.event {
            "respawn" => books.restarted += 1,
            "message" => {
                let count = told.message.and_then(|message| message["connections"].as_u64());
                reports.extend(told.id.map(u64::from).zip(count));
            }
            "summary" => {
                books.restarted += told.restarted.unwrap_or(0);
                books.connections = told.workers.as_ref().and_then(Value::as_array).map(|list| {
                    let of =
                        |worker| reported(&reports, worker).unwrap_or_else(|| connections(worker));
                    let mut counts: Vec<u64> = list.iter().map(of).collect();
                    // A replaced worker has a separate row.
                    counts.resize(counts.len().max(workers), 0);
                    counts
                });
            }
            _ => {}
        }
    }
    books
}

/// The count that a Node worker of this program reported.
fn reported(reports: &BTreeMap<u64, u64>, worker: &Value) -> Option<u64> {
    reports.get(&worker["id"].as_u64()?).copied()
}

/// Connections of a worker. Node's script counts its own; this program's primary counts those of
/// its workers, and some of them may have been taken back.
fn connections(worker: &Value) -> u64 {
    let number = |name: &str| worker[name].as_u64();
    let assigned = number("assigned").unwrap_or(0);
    let own = assigned.saturating_sub(number("returned").unwrap_or(0));
    number("connections").unwrap_or(own)
}

/// Finds a program on the PATH.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut places = std::env::split_paths(&path).map(|temp_dir| temp_dir.join(name));
    places.find(|place| is_program(place))
}

fn is_program(path: &Path) -> bool {
    nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok() && path.is_file()
}
