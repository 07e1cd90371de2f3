//! Effects of signals, and a terminal that closes.

use std::process::Command;

use nix::sys::signal::Signal;

use super::PYTHON;
use crate::common::{BINARY, Launch, get, has_program};

fn on_a_terminal(how: &str) {
    if !has_program(PYTHON) {
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/command/guest/terminal.py");
    let output = Command::new(PYTHON)
        .args([script, how, BINARY, "--workers", "1", "--listen", "127.0.0.1:0"])
        .output()
        .expect("Python can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_closed_terminal_ends_the_run_in_order() {
    on_a_terminal("close");
}

#[test]
fn a_run_with_nohup_outlives_its_terminal() {
    on_a_terminal("nohup");
}

#[test]
fn signals_without_a_task_change_nothing_and_say_so() {
    let cluster = Launch::new("--workers 1").start();
    // With one worker there is none to remove.
    let unused = [Signal::SIGUSR1, Signal::SIGTTOU];
    for (number, signal) in unused.into_iter().enumerate() {
        cluster.signal(signal);
        let note = cluster.event("note", number);
        let text = note["text"].as_str().expect("a text");
        assert!(text.starts_with(signal.as_str()) && text.contains("SIGHUP"), "{text}");
    }
    get(&cluster.address()).expect("an answer").assert_hello();
    cluster.end();
}

#[test]
fn signals_of_timers_and_readiness_end_nothing() {
    let cluster = Launch::new("--workers 1").start();
    let worker = cluster.worker_pids()[0];
    for signal in [
        Signal::SIGALRM,
        Signal::SIGVTALRM,
        Signal::SIGPROF,
        Signal::SIGIO,
        Signal::SIGSTKFLT,
        Signal::SIGWINCH,
    ] {
        cluster.signal(signal);
        get(&cluster.address()).expect("an answer").assert_hello();
    }
    assert_eq!(cluster.worker_pids(), [worker]);
    cluster.end();
}

#[test]
fn workers_are_added_and_taken_away_one_by_one() {
    let cluster = Launch::new("--workers 1").start();
    for (number, workers) in [2, 3].into_iter().enumerate() {
        cluster.signal(Signal::SIGTTIN);
        assert_eq!(cluster.event("scaled", number)["to"], workers);
    }
    cluster.event("online", 2);
    cluster.signal(Signal::SIGTTOU);
    assert_eq!(cluster.event("scaled", 2)["to"], 2);
    cluster.event("exit", 0);
    get(&cluster.address()).expect("an answer").assert_hello();
    cluster.end();
}

#[test]
fn quit_the_second_user_signal_and_a_power_failure_end_the_run_in_order() {
    for signal in [Signal::SIGQUIT, Signal::SIGUSR2, Signal::SIGPWR] {
        let cluster = Launch::new("--workers 2").start();
        get(&cluster.address()).expect("an answer").assert_hello();
        let ended = cluster.stop(signal);
        ended.assert_in_order();
        let draining = ended.events.iter().find(|event| event["event"] == "draining");
        assert_eq!(draining.expect("it says why")["reason"], signal.as_str());
    }
}

#[test]
fn a_hangup_by_a_person_replaces_the_workers() {
    let cluster = Launch::new("--workers 1 --settle 0s").start();
    cluster.signal(Signal::SIGHUP);
    cluster.event("reloaded", 0);
    get(&cluster.address()).expect("an answer").assert_hello();
    cluster.end();
}
