//! How often the primary wakes up while the kernel dispatches: only for what is stuck.

use std::fs;

use nix::sys::signal::Signal;

use super::steal::asking;
use crate::common::{Cluster, Launch, eventually, get, lacking, machine};

/// Connections of a round, one after another, and how often the primary may wake up in a quiet one:
/// other threads of its have some work at times.
const ROUND: usize = 250;
const WAKE_UPS_MAX: u64 = 25;

/// How often any thread of a process has slept.
fn wake_ups(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
    let texts = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    let count = |text: String| {
        let mut lines = text.lines();
        let line = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    texts.map(count).sum()
}

fn wake_ups_of_a_round(cluster: &Cluster) -> u64 {
    let before = wake_ups(cluster.pid());
    for _ in 0..ROUND {
        get(&cluster.address()).expect("an answer").assert_hello();
    }
    wake_ups(cluster.pid()).saturating_sub(before)
}

#[test]
fn the_primary_sleeps_while_no_queue_is_stuck_and_wakes_for_one_that_is() {
    let options = "--dispatch kernel --workers 3 --hang-after 1h --take-back-after 2ms";
    let cluster = Launch::new(options).start();
    if cluster.event("listening", 0)["dispatch_form"] != "exact" {
        return lacking("CAP_BPF, with which the kernel watches queues");
    }
    // On a busy machine a worker may not run for a while, which wakes the primary rightly.
    let mut quiet = 0;
    eventually("1,000 connections in quiet rounds", || {
        quiet += usize::from(wake_ups_of_a_round(&cluster) <= WAKE_UPS_MAX);
        (quiet >= 4).then_some(())
    });
    let stopped = cluster.worker_pids()[0];
    machine::suspend(stopped);
    // All connect before the first one asks, so each worker is picked for some.
    for mut client in asking(&cluster.address(), 60) {
        client.receive().assert_hello();
    }
    machine::signal(stopped, Signal::SIGCONT);
    assert!(cluster.end().stolen > 0);
}
