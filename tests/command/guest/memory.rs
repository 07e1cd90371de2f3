//! Memory that runs out: the kernel kills a worker, which is replaced, and the primary serves on.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{PYTHON, is_root};
use crate::common::{Client, Launch, eventually, get, has_program, lacking};

/// A worker whose first line of a request decides whether it takes all memory.
const GREEDY: &str = "
import socket
listener = socket.socket(fileno=3)
while True:
    client, _ = listener.accept()
    if b' /all-memory ' in client.recv(4096):
        held = []
        while True: held.append(bytearray(b'x' * 1000000))
    head = b'HTTP/1.1 200 OK\\r\\nContent-Length: 12\\r\\nConnection: close\\r\\n\\r\\n'
    client.sendall(head + b'hello world\\n')
    client.close()
";

/// A cgroup with a limit of memory, removed when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    /// One in the hierarchy that controls memory here.
    fn with_memory(bytes: u64) -> Option<Self> {
        let name = format!("clusterlb-test-{}-{bytes}", std::process::id());
        for (top, limit) in
            [("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")]
        {
            let cgroup = Self(PathBuf::from(top).join(&name));
            // In a file system that is no cgroup the folder has no such file.
            if fs::create_dir(&cgroup.0).is_ok()
                && cgroup.0.join(limit).exists()
                && fs::write(cgroup.0.join(limit), bytes.to_string()).is_ok()
            {
                return Some(cgroup);
            }
        }
        lacking("a cgroup with the memory controller that can be divided, to limit memory");
        None
    }

    /// How many processes the kernel has killed in it.
    fn killed(&self) -> u64 {
        let read = |name| fs::read_to_string(self.0.join(name)).unwrap_or_default();
        let text = read("memory.events") + &read("memory.oom_control");
        let counts = text.lines().filter_map(|line| line.strip_prefix("oom_kill "));
        counts.filter_map(|count| count.parse::<u64>().ok()).sum()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its last process may still be on its way out.
        eventually("the cgroup to be left", || {
            (fs::remove_dir(&self.0).is_ok() || !self.0.exists()).then_some(())
        });
    }
}

fn score(pid: u32) -> i32 {
    let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("it runs");
    text.trim().parse().expect("a number")
}

#[test]
fn a_worker_killed_for_memory_is_replaced_and_the_primary_serves_on() {
    if !is_root() || !has_program(PYTHON) {
        return;
    }
    let Some(cgroup) = Cgroup::with_memory(64 << 20) else { return };
    let join = format!("echo $$ >{}/cgroup.procs && exec \"$@\"", cgroup.0.display());
    let cluster = Launch::new("--workers 2 --dialect listen-fds")
        .listen("127.0.0.1:0")
        .under(&["sh", "-c", &join, "sh"])
        .running(&[PYTHON, "-c", GREEDY])
        .start();
    get(&cluster.address()).expect("an answer").assert_hello();
    // Beside workers as small as itself the primary would be the largest process.
    for pid in cluster.worker_pids() {
        assert_eq!(score(pid), (score(cluster.pid()) + 500).min(1000));
    }
    let mut client = Client::to(&cluster.address());
    client.send(b"GET /all-memory HTTP/1.1\r\nHost: here\r\n\r\n");
    let ended = cluster.event("exit", 0);
    assert_eq!(ended["signal"], Value::from("SIGKILL"), "{ended}");
    cluster.event("respawn", 0);
    assert!(cgroup.killed() > 0);
    eventually("an answer", || get(&cluster.address()).ok()).assert_hello();
    let ended = cluster.stop(Signal::SIGTERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
}
