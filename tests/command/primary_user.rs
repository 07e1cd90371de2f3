//! A primary that drops the rights of root: it serves below 1024, starts and replaces workers of
//! another user, reloads and ends, and keeps only the capabilities for that.

use std::fs;

use nix::sys::signal::Signal;
use nix::unistd::geteuid;

use crate::common::{Cluster, Launch, get, lacking, machine};

const NET_BIND_SERVICE: u64 = 1 << 10;
/// An address that no other test uses.
const LOW: &str = "127.0.7.1:977";
const KILL: u64 = 1 << 5;
const SETGID: u64 = 1 << 6;
const SETUID: u64 = 1 << 7;
const SETPCAP: u64 = 1 << 8;

fn as_root() -> bool {
    let is_root = geteuid().is_root();
    if !is_root {
        lacking("the rights of root");
    }
    is_root
}

/// The user and the capabilities of each thread of a process.
fn rights(pid: u32) -> Vec<(u32, u64)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let of_task = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let user = field("Uid:")?.split_whitespace().nth(1)?.parse().ok()?;
        let permitted = u64::from_str_radix(field("CapPrm:")?.trim(), 16).ok()?;
        Some((user, permitted))
    };
    tasks.flatten().filter_map(of_task).collect()
}

fn id_of(name: &str) -> u32 {
    let user = nix::unistd::User::from_name(name).expect("there are users");
    user.expect("this one is there").uid.as_raw()
}

fn serves_and_replaces(cluster: &Cluster) {
    for _ in 0..10 {
        get(&cluster.address()).expect("an answer").assert_hello();
    }
    let victim = cluster.worker_pids()[0];
    machine::signal(victim, Signal::SIGKILL);
    cluster.event("online", 2);
    cluster.signal(Signal::SIGHUP);
    cluster.event("reloaded", 0);
    get(&cluster.address()).expect("an answer").assert_hello();
}

#[test]
fn a_primary_of_another_user_keeps_only_what_it_needs() {
    if !as_root() {
        return;
    }
    for engine in ["--engine io_uring", "--engine epoll"] {
        let launch = Launch::new(&format!("--workers 2 --primary-user nobody {engine}"));
        let cluster = launch.listen(LOW).start();
        serves_and_replaces(&cluster);
        let nobody = id_of("nobody");
        for right in rights(cluster.pid()) {
            assert_eq!(right, (nobody, NET_BIND_SERVICE));
        }
        for pid in cluster.worker_pids() {
            assert!(rights(pid).iter().all(|right| *right == (nobody, 0)), "{:?}", rights(pid));
        }
        assert_eq!(cluster.stop(Signal::SIGTERM).code, Some(0));
    }
}

#[test]
fn its_workers_may_be_of_a_third_user() {
    if !as_root() {
        return;
    }
    let cluster = Launch::new("--workers 2 --primary-user daemon --user nobody").start();
    serves_and_replaces(&cluster);
    let wanted = NET_BIND_SERVICE | SETUID | SETGID | SETPCAP | KILL;
    for right in rights(cluster.pid()) {
        assert_eq!(right, (id_of("daemon"), wanted));
    }
    for pid in cluster.worker_pids() {
        assert!(rights(pid).iter().all(|right| *right == (id_of("nobody"), 0)), "{pid}");
    }
    assert_eq!(cluster.stop(Signal::SIGTERM).code, Some(0));
}

#[test]
fn who_is_not_there_is_no_primary() {
    let ended = Launch::new("--primary-user no-such-user").refused();
    ended.assert_refusal(2, &["--primary-user no-such-user", "getent"]);
}
