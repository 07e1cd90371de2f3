//! What the tests of the running system share: the cluster under test, its clients, its machine.
//!
//! Owns no assertion about behaviour except two that hold for every run: the books balance, and
//! nothing is left behind. Waiting is always polling with one generous bound, never a sleep.

#![allow(
    dead_code,
    unused_imports,
    reason = "every file of tests is a program of its own and uses a part of this"
)]

pub(crate) mod books;
pub(crate) mod client;
pub(crate) mod cluster;
pub(crate) mod machine;
pub(crate) mod seccomp;

use std::time::{Duration, Instant};

pub(crate) use books::{Ended, Summary};
pub(crate) use client::{Client, GET, GET_CLOSE, HELLO, Response, get, get_from};
pub(crate) use cluster::{BINARY, Cluster, Launch};

/// How long anything may take. Far beyond what it takes, so that only a defect exceeds it, even on
/// a machine that has ten times more to do than it can.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Polls until `look` finds something; `what` is said if it never does.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "in vain: waited for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Says that this machine lacks something a test needs. Where everything must be tested, that is
/// a failure.
pub(crate) fn lacking(what: &str) {
    let strict = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(!strict, "this machine lacks what a test needs: {what}");
    eprintln!("not tested, because this machine lacks it: {what}");
}

/// Whether a program can be started here; says so if not. In CI, where `.ci/run` installs what is
/// needed, that is a failure.
pub(crate) fn has_program(name: &str) -> bool {
    let found = std::process::Command::new(name)
        .arg("--version")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok();
    if !found {
        let in_ci = std::env::var("CI").is_ok_and(|value| matches!(&*value, "1" | "true"));
        assert!(!in_ci, "this machine lacks what a test needs: {name}");
        lacking(name);
    }
    found
}
