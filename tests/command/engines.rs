//! Which engine a run gets where io_uring is refused in various ways, and that it serves.

use std::process::{Command, Output, Stdio};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::cluster::ENGINE_VARIABLE;
use crate::common::seccomp::Filter;
use crate::common::{BINARY, Launch, get_from, has_program};

/// Errors that known sandboxes return, and one that none does.
const ANSWERS: [Errno; 5] =
    [Errno::EPERM, Errno::ENOSYS, Errno::EOPNOTSUPP, Errno::EINVAL, Errno::EXDEV];

fn refuse(errno: Errno) -> Filter {
    Filter::Refuse(u16::try_from(errno as i32).expect("error numbers are small"))
}

fn auto(arguments: &str) -> Launch {
    Launch::new(arguments).variable(ENGINE_VARIABLE, "auto")
}

/// Serves on this engine and ends in order; returns the reason for the engine.
fn assert_serves(launch: Launch, engine: &str) -> String {
    let cluster = launch.start();
    get_from(&cluster.address(), 1, 20);
    let ended = cluster.stop(Signal::SIGTERM);
    assert_eq!((ended.code, ended.errors.as_str()), (Some(0), ""), "{ended:?}");
    let listening = &ended.events[0];
    assert_eq!(listening["engine"], engine, "{listening}");
    listening["engine_reason"].as_str().expect("a reason").to_owned()
}

#[test]
fn epoll_serves_where_anything_refuses_io_uring() {
    let filters = ANSWERS.map(refuse).into_iter().chain([Filter::OnlySetup]);
    for filter in filters {
        let Some(launch) = filter.before(auto("--workers 2")) else { return };
        let reason = assert_serves(launch, "epoll");
        assert!(reason.starts_with("io_uring: "), "{filter:?}: {reason}");
    }
}

#[test]
fn every_policy_and_every_mechanism_that_needs_no_ring_is_served_by_epoll() {
    for policy in [
        "--policy rr",
        "--policy least",
        "--policy fastest",
        "--policy central",
        "--policy sticky",
        "--policy none --accept epoll",
        "--policy none --accept epoll-drain",
        "--policy none --accept epoll-exclusive",
        "--policy none --accept reuseport",
    ] {
        let launch = auto(&format!("--workers 2 {policy}"));
        let Some(launch) = refuse(Errno::EPERM).before(launch) else { return };
        assert_serves(launch, "epoll");
    }
}

#[test]
fn epoll_that_is_asked_for_never_calls_io_uring() {
    // The filter kills every process that creates a ring, including workers.
    for policy in ["--policy rr", "--policy none", "--policy none --accept reuseport"] {
        let launch = auto(&format!("--workers 2 --engine epoll {policy}"));
        let Some(launch) = Filter::Kill.before(launch) else { return };
        assert_eq!(assert_serves(launch, "epoll"), "asked for; io_uring was not tried");
    }
    let check = check(Filter::Kill, "epoll", &[]);
    assert_eq!(check.as_ref().map(|output| output.status.code()), Some(Some(0)), "{check:?}");
}

#[test]
fn what_is_asked_for_is_strict_and_what_needs_io_uring_says_so() {
    let needs_ring = [
        "--policy none --accept uring",
        "--policy none --accept uring-multishot",
        "--runtime tokio-uring",
    ];
    for arguments in needs_ring {
        let launch = Launch::new(&format!("--engine epoll {arguments}"));
        let what = arguments.rsplit("--").next().expect("an option");
        launch.refused().assert_refusal(2, &[what, "io_uring", "epoll"]);
        let launch = auto(arguments);
        let Some(launch) = refuse(Errno::EPERM).before(launch) else { return };
        launch.refused().assert_refusal(3, &[what, "io_uring", "seccomp"]);
    }
    for filter in ANSWERS.map(refuse).into_iter().chain([Filter::OnlySetup]) {
        let launch = auto("--workers 2 --engine io_uring");
        let Some(launch) = filter.before(launch) else { return };
        launch.refused().assert_refusal(3, &["io_uring", "--engine auto"]);
    }
    // An empty variable is none.
    Launch::new("--workers 1").variable(ENGINE_VARIABLE, "").start().end();
    let launch = Launch::new("--workers 2").variable(ENGINE_VARIABLE, "kqueue");
    launch.refused().assert_refusal(2, &[ENGINE_VARIABLE, "kqueue", "epoll"]);
}

#[test]
fn a_tiny_limit_of_locked_memory_is_named_and_epoll_serves_within_it() {
    if !has_program("prlimit") || !has_program("setpriv") {
        return;
    }
    // Without the capability that lifts the limit.
    let confined = ["prlimit", "--memlock=4096:4096", "setpriv", "--bounding-set", "-ipc_lock"];
    let launch = auto("--workers 2 --engine epoll");
    assert_serves(launch.under(&confined), "epoll");
    let mut check = Command::new(confined[0]);
    check.args(&confined[1..]).args([BINARY, "check"]).env(ENGINE_VARIABLE, "auto");
    let check = check.output().expect("it has been started before");
    // Kernels from 5.12 on did not charge rings to it, and recent ones do again. A lack of memory
    // is not a refusal of io_uring.
    let launch = auto("--workers 2").under(&confined);
    match check.status.code() {
        Some(0) => drop(assert_serves(launch, "io_uring")),
        _ => launch.refused().assert_refusal(3, &["memory", "ulimit -l", "CLUSTERLB_ENGINE=epoll"]),
    }
}

fn check(filter: Filter, engine: &str, arguments: &[&str]) -> Option<Output> {
    let words = filter.command();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).args([BINARY, "check"]).args(arguments);
    let command = command.env(ENGINE_VARIABLE, engine).stdin(Stdio::null());
    has_program("python3").then(|| command.output().expect("python3 starts"))
}

#[test]
fn check_tells_what_a_run_would_do_and_what_is_lost() {
    let Some(output) = check(refuse(Errno::EPERM), "auto", &["--json"]) else { return };
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!((&report["engine"], &report["can_run"]), (&"epoll".into(), &true.into()));
    let rows = report["rows"].as_array().expect("rows");
    let engine = rows.iter().find(|row| row["name"] == "engine").expect("a row for it");
    assert!(engine["remedy"].as_str().is_some_and(|lost| lost.contains("tokio-uring")), "{engine}");
    let strict = check(refuse(Errno::EPERM), "io_uring", &[]).expect("as before");
    assert_eq!(strict.status.code(), Some(3), "{strict:?}");
}
