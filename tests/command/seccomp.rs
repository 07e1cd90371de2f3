//! `--seccomp`: primary and built-in workers are confined, and a run is as it is without it. That
//! other system calls are refused and named is tested in `crates/sys/src/seccomp/tests.rs`.

use std::fs;

use nix::libc;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::common::seccomp::Filter;
use crate::common::{Cluster, Launch, get, get_from, machine};

/// Every way in which the built-in worker gets its connections.
const WAYS: [&str; 6] = [
    "--policy rr",
    "--policy least --dispatch kernel",
    "--policy none --accept epoll",
    "--policy none --accept epoll-exclusive",
    "--policy none --accept reuseport",
    "--policy none --accept uring-multishot",
];

/// Fails unless each thread of these processes has a filter, and none can get further rights.
fn assert_confined(pids: &[u32]) {
    for pid in pids {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
        for thread in threads {
            let Ok(status) = fs::read_to_string(thread.path().join("status")) else { continue };
            let has = |line: &str| status.lines().any(|one| one == line);
            assert!(has("Seccomp:\t2") && has("NoNewPrivs:\t1"), "{pid}: {status}");
        }
    }
}

/// Fails unless it ends in order, and no call was refused on the way.
fn assert_ends_unrefused(cluster: Cluster) {
    let ended = cluster.stop(Signal::SIGTERM);
    assert_eq!((ended.code, ended.errors.as_str()), (Some(0), ""), "{ended:?}");
    assert_eq!(ended.summary().dropped, 0);
}

#[test]
fn a_confined_run_serves_replaces_and_reloads() {
    let cluster = Launch::new("--workers 2 --seccomp").start();
    assert_confined(&[cluster.pid()]);
    assert_confined(&cluster.worker_pids());
    get_from(&cluster.address(), 4, 10);
    machine::signal(cluster.worker_pids()[0], Signal::SIGKILL);
    cluster.event("online", 2);
    cluster.signal(Signal::SIGHUP);
    cluster.event("reloaded", 0);
    assert_confined(&cluster.worker_pids());
    get_from(&cluster.address(), 4, 10);
    assert_ends_unrefused(cluster);
}

#[test]
fn confined_workers_accept_in_every_way() {
    for way in WAYS {
        let cluster = Launch::new(&format!("--workers 2 --seccomp {way}")).start();
        assert_confined(&cluster.worker_pids());
        get_from(&cluster.address(), 4, 10);
        cluster.signal(Signal::SIGTTIN);
        cluster.event("online", 2);
        get(&cluster.address()).expect("an answer").assert_hello();
        assert_ends_unrefused(cluster);
    }
}

#[test]
fn a_confined_primary_has_unix_sockets_an_admin_interface_and_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let launch = Launch::new("--workers 1 --seccomp --prefix")
        .option("--admin", &format!("unix:{}", folder.path().join("admin").display()))
        .listen(format!("unix:{},mode=660", path.display()))
        .listen("localhost:0");
    let cluster = launch.start();
    for address in cluster.addresses() {
        get(&address).expect("an answer").assert_hello();
    }
    let admin = format!("unix:{}", folder.path().join("admin").display());
    for words in [vec!["status"], vec!["scale", "2"], vec!["reload"]] {
        let done = std::process::Command::new(crate::common::BINARY)
            .args([&words[..1], &["--admin", &admin], &words[1..]].concat())
            .output()
            .expect("the command starts");
        assert!(done.status.success(), "{words:?}: {done:?}");
    }
    assert_ends_unrefused(cluster);
    assert!(!path.exists());
}

/// A call that the worker needs is refused by a filter from outside: the event names it. A request
/// is answered by `sendto`, which only workers on epoll call.
#[test]
fn the_end_of_a_worker_names_the_refused_call() {
    let launch = Launch::new("--workers 1 --seccomp --engine epoll");
    let Some(launch) = Filter::Trap(libc::SYS_sendto).before(launch) else { return };
    let cluster = launch.start();
    assert!(get(&cluster.address()).is_err(), "answered without the call");
    let ended = cluster.event("exit", 0);
    assert_eq!((&ended["signal"], &ended["refused_call"]), (&json!("SIGSYS"), &json!("sendto")));
    let line = format!("refuses the system call {} (sendto)\n", libc::SYS_sendto);
    cluster.until("the line", |heard| heard.errors.contains(&line).then_some(()));
    cluster.event("online", 1);
}

#[test]
fn programs_and_other_runtimes_are_not_confined() {
    let program = Launch::new("--seccomp --dialect native").running(&["true"]).refused();
    program.assert_refusal(2, &["--seccomp", "built-in worker", "SystemCallFilter="]);
    let other = Launch::new("--seccomp --runtime tokio-uring").listen("127.0.0.1:0").refused();
    other.assert_refusal(2, &["--seccomp", "--runtime ring"]);
}
