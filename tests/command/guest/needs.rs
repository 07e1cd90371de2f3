//! Needs of a run: what is missing is named in one line, and `check` says the same beforehand.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::{PYTHON, is_root};
use crate::common::{BINARY, Launch, get, has_program};

const REFUSE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/command/guest/refuse.py");

/// The words in front of a command that deny it a system call.
fn without(call: i64) -> [String; 4] {
    [PYTHON.into(), REFUSE.into(), call.to_string(), (Errno::EPERM as i32).to_string()]
}

fn check(before: &[String], program: &str) -> Output {
    let words = [before, &[program.to_owned(), "check".to_owned()]].concat();
    Command::new(&words[0]).args(&words[1..]).output().expect("it can be started")
}

/// A folder with the command, where another user can start it.
fn for_others() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("clusterlb");
    fs::copy(BINARY, &program).expect("the folder is writable");
    let all = fs::Permissions::from_mode(0o755);
    fs::set_permissions(folder.path(), all.clone()).expect("it is ours");
    fs::set_permissions(&program, all).expect("it is ours");
    folder
}

#[test]
fn what_a_sandbox_refuses_is_named_and_the_check_says_so_too() {
    if !has_program(PYTHON) {
        return;
    }
    for (call, name) in [
        (libc::SYS_pidfd_open, "pidfd_open"),
        (libc::SYS_memfd_create, "shared counters"),
        (libc::SYS_signalfd4, "signals"),
        (libc::SYS_eventfd2, "eventfd"),
        (libc::SYS_epoll_create1, "epoll"),
        (libc::SYS_pidfd_send_signal, "pidfd"),
        (libc::SYS_timerfd_create, "timerfd"),
    ] {
        let before = without(call);
        let checked = check(&before, BINARY);
        assert_eq!(checked.status.code(), Some(3), "{name}: {checked:?}");
        let text = String::from_utf8_lossy(&checked.stdout);
        assert!(text.contains(name) && text.contains("cannot run here"), "{name}: {text}");
        let words: Vec<&str> = before.iter().map(String::as_str).collect();
        let ended = Launch::new("--workers 1").under(&words).listen("127.0.0.1:0").refused();
        ended.assert_refusal(3, &[name, "seccomp"]);
    }
}

#[test]
fn calls_that_older_kernels_lack_are_done_without() {
    if !has_program(PYTHON) {
        return;
    }
    let inherited = ["sh", "-c", "exec \"$@\" 9</dev/null", "sh"].map(str::to_owned);
    let before = [without(libc::SYS_close_range).to_vec(), inherited.to_vec()].concat();
    let checked = check(&before, BINARY);
    let text = String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success() && text.contains("no close_range"), "{checked:?}");
    let words: Vec<&str> = before.iter().map(String::as_str).collect();
    let cluster = Launch::new("--workers 2").under(&words).start();
    get(&cluster.address()).expect("an answer").assert_hello();
    let is_open = |pid| fs::exists(format!("/proc/{pid}/fd/9")).expect("it runs");
    assert!(is_open(cluster.pid()));
    assert!(cluster.worker_pids().iter().all(|pid| !is_open(*pid)));
    cluster.end();
    if !has_program("node") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("server.js");
    let text = "require('http').createServer((_, to) => to.end('hello world\\n')).listen(0);";
    fs::write(&file, text).expect("the folder is writable");
    let before = without(libc::SYS_epoll_pwait2);
    let words: Vec<&str> = before.iter().map(String::as_str).collect();
    let program = ["node", file.to_str().expect("a path")];
    let cluster = Launch::new("--workers 2").under(&words).running(&program).start();
    get(&cluster.address()).expect("an answer").assert_hello();
    cluster.end();
}

#[test]
fn too_few_processes_are_named_by_both() {
    if !is_root() || !has_program("prlimit") || !has_program("setpriv") {
        return;
    }
    let program = for_others();
    let path = program.path().join("clusterlb");
    let path = path.to_str().expect("a path");
    let user = ["setpriv", "--reuid=54334", "--regid=54334", "--clear-groups"];
    let before = [&user[..], &["prlimit", "--nproc=3:3", "--"]].concat();
    let words: Vec<String> = before.iter().map(|word| (*word).to_owned()).collect();
    let checked = check(&words, path);
    let text = String::from_utf8_lossy(&checked.stdout);
    assert_eq!(checked.status.code(), Some(3), "{text}");
    assert!(text.contains("ulimit -u"), "{text}");
    let launch = Launch::new("--workers 2").program(path).under(&before).listen("127.0.0.1:0");
    launch.refused().assert_refusal(1, &["ulimit -u"]);
}

#[test]
fn a_sandbox_without_dev_null_is_named() {
    if !is_root() || !has_program("unshare") || !has_program("mount") {
        return;
    }
    let script = "mount -t tmpfs none /dev && exec \"$@\"";
    let launch = Launch::new("--workers 1").under(&["unshare", "-m", "sh", "-c", script, "sh"]);
    launch.listen("127.0.0.1:0").refused().assert_refusal(3, &["/dev/null", "mount a /dev"]);
}

#[test]
fn without_the_right_to_choose_cpus_a_run_leaves_them_to_the_kernel() {
    if !has_program(PYTHON) {
        return;
    }
    let before = without(libc::SYS_sched_setaffinity);
    let checked = check(&before, BINARY);
    assert!(checked.status.success(), "{checked:?}");
    let words: Vec<&str> = before.iter().map(String::as_str).collect();
    let cluster = Launch::new("--workers 1").under(&words).start();
    get(&cluster.address()).expect("an answer").assert_hello();
    cluster.end();
    let ended = Launch::new("--workers 1 --pin 0").under(&words).listen("127.0.0.1:0").refused();
    ended.assert_refusal(3, &["sched_setaffinity", "--pin none"]);
}

#[test]
fn locked_memory_suffices_with_smaller_rings_or_is_named() {
    if !is_root() || !has_program("prlimit") || !has_program("setpriv") {
        return;
    }
    let folder = for_others();
    let program = folder.path().join("clusterlb");
    let program = program.to_str().expect("a path");
    for (account, bytes, workers) in [(54_331, 65_536, 2), (54_332, 8 << 20, 64), (54_333, 4096, 2)]
    {
        let (user, group) = (format!("--reuid={account}"), format!("--regid={account}"));
        let limit = format!("--memlock={bytes}:{bytes}");
        let before = ["setpriv", &user, &group, "--clear-groups", "prlimit", &limit, "--"];
        let checked = check(&before.map(str::to_owned), program);
        let can = checked.status.success();
        let launch = Launch::new(&format!("--workers {workers} --pin none"));
        let launch = launch.program(program).under(&before);
        if can {
            let cluster = launch.start();
            get(&cluster.address()).expect("an answer").assert_hello();
            cluster.end();
        } else {
            assert_eq!(bytes, 4096, "{checked:?}");
            let text = String::from_utf8_lossy(&checked.stdout);
            assert!(text.contains("ulimit -l"), "{text}");
            launch.listen("127.0.0.1:0").refused().assert_refusal(3, &["ulimit -l"]);
        }
    }
}

#[test]
fn too_few_descriptors_are_named_by_both() {
    if !has_program("prlimit") {
        return;
    }
    let before = ["prlimit", "--nofile=50:50", "--"];
    let checked = check(&before.map(str::to_owned), BINARY);
    assert_eq!(checked.status.code(), Some(3), "{checked:?}");
    let ended = Launch::new("--workers 2").under(&before).listen("127.0.0.1:0").refused();
    ended.assert_refusal(3, &["ulimit -Hn"]);
}

#[test]
fn without_proc_a_run_serves() {
    if !is_root() || !has_program("unshare") || !has_program("umount") {
        return;
    }
    let script = "umount -l /proc && exec \"$@\"";
    let launch = Launch::new("--workers 2").under(&["unshare", "-m", "sh", "-c", script, "sh"]);
    let cluster = launch.start();
    get(&cluster.address()).expect("an answer").assert_hello();
    cluster.end();
}

#[test]
fn another_user_prints_by_name_into_what_the_primary_reads() {
    if !is_root() {
        return;
    }
    let arguments = "--workers 1 --dialect listen-fds --ready-after 0s --user 54321 --group 54321 \
                     --prefix";
    let program = ["sh", "-c", "echo hello > /dev/stdout; exec sleep 600"];
    let cluster = Launch::new(arguments).listen("127.0.0.1:0").running(&program).start();
    cluster.until("the worker's word", |heard| {
        heard.output.contains("worker 1 | hello").then_some(())
    });
    assert_eq!(cluster.stop(Signal::SIGTERM).code, Some(0));
}

#[test]
fn a_user_namespace_without_groups_is_named() {
    if !has_program("unshare") {
        return;
    }
    let namespace = ["unshare", "-Ur"];
    let possible = Command::new("unshare").args(["-Ur", "true"]).status();
    if !possible.is_ok_and(|status| status.success()) {
        return crate::common::lacking("user namespaces");
    }
    let launch = Launch::new("--workers 1 --group 0").under(&namespace).listen("127.0.0.1:0");
    launch.refused().assert_refusal(3, &["start a worker", "setgroups"]);
}
