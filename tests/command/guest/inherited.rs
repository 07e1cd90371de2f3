//! What the command inherits from its parent: ignored and blocked signals, closed descriptors,
//! limits, a umask, children.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use super::{PYTHON, is_root, prepared, status_of};
use crate::common::{BINARY, Cluster, Launch, eventually, get, has_program, machine};

/// A program that inherits sockets, prints a line, and waits.
fn saying(arguments: &str, words: &str) -> Launch {
    let script = format!("{words}; exec sleep 600");
    let arguments = format!("--workers 1 --dialect listen-fds --ready-after 0s {arguments}");
    Launch::new(&arguments).listen("127.0.0.1:0").running(&["sh", "-c", &script])
}

fn until_said(cluster: &Cluster, words: &str) {
    cluster.until(words, |heard| heard.output.lines().any(|line| line == words).then_some(()));
}

#[test]
fn a_worker_gets_the_soft_limit_that_the_command_was_started_with() {
    if !has_program("prlimit") {
        return;
    }
    for (option, soft) in
        [("", 1000), ("--worker-open-files hard", 4000), ("--worker-open-files 77", 77)]
    {
        let launch = saying(option, "echo limit $(ulimit -Sn)");
        let cluster = launch.under(&["prlimit", "--nofile=1000:4000", "--"]).start();
        until_said(&cluster, &format!("limit {soft}"));
        assert_eq!(cluster.stop(Signal::SIGTERM).code, Some(0));
    }
}

#[test]
fn a_killed_worker_is_replaced_although_sigchld_was_ignored() {
    let script = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)";
    let Some(launch) = prepared("--workers 2", script) else { return };
    let cluster = launch.start();
    machine::signal(cluster.worker_pids()[0], Signal::SIGKILL);
    cluster.event("online", 2);
    get(&cluster.address()).expect("an answer").assert_hello();
    cluster.end();
}

#[test]
fn signals_that_were_blocked_are_obeyed_and_not_blocked_in_workers() {
    let script = "signal.pthread_sigmask(signal.SIG_SETMASK, range(1, 32))";
    let arguments = "--workers 1 --dialect listen-fds --ready-after 0s";
    let Some(launch) = prepared(arguments, script) else { return };
    let cluster = launch.listen("127.0.0.1:0").running(&["sleep", "600"]).start();
    let worker = cluster.worker_pids()[0];
    eventually("the worker to begin with nothing blocked", || {
        (status_of(worker, "SigBlk") == "0000000000000000").then_some(())
    });
    assert_eq!(cluster.stop(Signal::SIGTERM).code, Some(0));
}

#[test]
fn closed_standard_descriptors_are_nothing_and_not_sockets() {
    let closing = ["sh", "-c", "exec \"$@\" <&- 2>&-", "sh"];
    let cluster = Launch::new("--workers 1").under(&closing).start();
    for number in [0, 2] {
        let link = fs::read_link(format!("/proc/{}/fd/{number}", cluster.pid()));
        assert_eq!(link.expect("it is open").to_str(), Some("/dev/null"));
    }
    get(&cluster.address()).expect("an answer").assert_hello();
    assert_eq!(cluster.stop(Signal::SIGTERM).code, Some(0));
}

#[test]
fn children_from_before_the_start_are_reaped() {
    let early = ["sh", "-c", "sleep 0.1 & sleep 0.1 & exec \"$@\"", "sh"];
    let cluster = Launch::new("--workers 1").under(&early).start();
    let primary = cluster.pid();
    eventually("all children but the worker to be gone", || {
        let children = fs::read_to_string(format!("/proc/{primary}/task/{primary}/children"));
        children.expect("it runs").trim().is_empty().then_some(())
    });
    cluster.end();
}

#[test]
fn pid_1_reaps_the_orphans_of_its_workers() {
    if !is_root() || !has_program("unshare") {
        return;
    }
    let orphans = "for i in 1 2 3 4; do ( sleep 0.1 & ) ; done; exec sleep 600";
    let mut child = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "--kill-child", BINARY, "--workers", "1"])
        .args(["--dialect", "listen-fds", "--listen", "127.0.0.1:0", "--ready-after", "0s", "-q"])
        .args(["--", "sh", "-c", orphans])
        .stdin(Stdio::null())
        .spawn()
        .expect("unshare can be started");
    // The guard is a child of the primary, too.
    let is_guard = |pid: &u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name == "clusterlb-guard\n")
    };
    let children_of = |pid: u32| -> Vec<u32> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        let words: Vec<String> = lists.collect();
        let numbers = words.iter().flat_map(|list| list.split_whitespace()).flat_map(str::parse);
        numbers.filter(|pid| !is_guard(pid)).collect()
    };
    let worker_alone = eventually("the orphans to come, and to go", || {
        let primary = *children_of(child.id()).first()?;
        // Orphans are there only beside the worker.
        let [worker] = children_of(primary)[..] else { return None };
        let is_waiting = fs::read_to_string(format!("/proc/{worker}/comm")).ok()? == "sleep\n";
        is_waiting.then_some(primary)
    });
    assert_eq!(children_of(worker_alone).len(), 1);
    child.kill().expect("it runs");
    child.wait().expect("it is our child");
}

#[test]
fn a_umask_that_takes_everything_is_given_back_to_workers_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let launch = saying("", "echo umask $(umask)").listen(format!("unix:{}", path.display()));
    let cluster = launch.under(&["sh", "-c", "umask 0777; exec \"$@\"", "sh"]).servers(2).start();
    until_said(&cluster, "umask 0777");
    let mode = fs::metadata(&path).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "its owner may use it");
    assert_eq!(cluster.stop(Signal::SIGTERM).code, Some(0));
}

#[test]
fn what_is_printed_in_the_background_stops_nothing() {
    if !has_program(PYTHON) {
        return;
    }
    for workers in [&[][..], &["--dialect", "listen-fds", "--ready-after", "100ms"]] {
        let program = ["--", "sh", "-c", "echo a worker prints; exec sleep 600"];
        let program = if workers.is_empty() { &[][..] } else { &program };
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/command/guest/terminal.py");
        let output = Command::new(PYTHON)
            .args([script, "background", BINARY, "--workers", "1", "--listen", "127.0.0.1:0"])
            .args(workers)
            .args(program)
            .output()
            .expect("Python can be started");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said} {}", String::from_utf8_lossy(&output.stderr));
        assert!(workers.is_empty() || said.contains("a worker prints"), "{said}");
    }
}
