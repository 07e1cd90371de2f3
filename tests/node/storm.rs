//! Node workers that are killed and replaced under load: no connection is lost that a worker had
//! not acknowledged, and none at all in an orderly reload.

use std::collections::BTreeSet;
use std::fs;

use nix::sys::signal::Signal;

use super::load;
use super::nodes::nodes;
use super::script::{SERVER, Script};
use crate::common::{eventually, machine};

/// Number of workers to kill, one after the other.
const KILLS: usize = 6;

/// Logs each client's port: with an `r` before the connection is acknowledged, if it came with a
/// message, and with an `a` after that. Written synchronously, so that the log outlives the worker.
const DIARY: &str = "
    const { openSync, writeSync } = require('fs');
    const diary = openSync(`${__dirname}/${process.pid}.diary`, 'a');
    process.prependListener('internalMessage', (message, handle) => {
        if (message.act !== 'newconn') return;
        const peer = {};
        handle.getpeername(peer);
        writeSync(diary, `r ${peer.port}\\n`);
    });
    require('http').createServer((request, response) => response.end(String(process.pid)))
        .on('connection', (socket) => writeSync(diary, `a ${socket.remotePort}\\n`))
        .listen(0, '127.0.0.1');";

/// The ports that the killed workers have logged.
struct Diaries {
    received: BTreeSet<u16>,
    acknowledged: BTreeSet<u16>,
}

impl Diaries {
    fn of(script: &Script, pids: &[u32]) -> Self {
        let mut diaries = Self { received: BTreeSet::new(), acknowledged: BTreeSet::new() };
        for pid in pids {
            let text = fs::read_to_string(script.path(&format!("{pid}.diary")));
            for line in text.expect("a worker that served has written").lines() {
                let (kind, port) = line.split_once(' ').expect("two words");
                let ports =
                    if kind == "r" { &mut diaries.received } else { &mut diaries.acknowledged };
                ports.insert(port.parse().expect("a port"));
            }
        }
        diaries
    }
}

#[test]
fn what_killed_workers_had_not_acknowledged_is_served_by_others() {
    // On Node's own channel it is the same for every Node, so one is enough.
    let runs = nodes().into_iter().map(|node| (node, "auto"));
    let own = nodes().into_iter().take(1).map(|node| (node, "off"));
    for (node, preload) in runs.chain(own) {
        let script = Script::named("server.js", DIARY);
        let arguments = format!("--workers 3 --preload {preload}");
        let cluster = script.launch_with(&node.program, &arguments).start();
        let mut killed = Vec::new();
        let load = load::during(&cluster.address(), |go_on| {
            for kill in 0..KILLS {
                go_on(100);
                let victim = *cluster.worker_pids().first().expect("a worker runs");
                machine::signal(victim, Signal::SIGKILL);
                killed.push(victim);
                cluster.event("exit", kill);
                // Three and its successors before it.
                cluster.event("online", 3 + kill);
            }
            go_on(100);
        });
        let diaries = Diaries::of(&script, &killed);
        // Only answers that a killed worker was about to give are lost.
        let lost: Vec<u16> = load.failed;
        if preload == "off" {
            let unknown: Vec<&u16> =
                lost.iter().filter(|port| !diaries.received.contains(port)).collect();
            assert!(unknown.is_empty(), "{}: lost, no worker had it: {unknown:?}", node.version);
        }
        // A worker takes one connection at a time, so at most one of each was acknowledged without
        // a log entry for it.
        let unacknowledged =
            lost.iter().filter(|port| !diaries.acknowledged.contains(port)).count();
        assert!(unacknowledged <= KILLS, "{}: {unacknowledged} of {lost:?}", node.version);
        let ended = cluster.stop(Signal::SIGTERM);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let summary = ended.summary();
        assert_eq!(summary.dropped, 0, "{summary:?}");
        // Connections that the killed workers had acknowledged and not closed are counted as
        // aborted, if closing is reported at all.
        let acknowledged = if preload == "auto" { lost.len() - unacknowledged } else { 0 };
        assert!(summary.aborted >= acknowledged as u64, "{lost:?}: {summary:?}");
        let asked = load.answered + u64::try_from(lost.len()).expect("a few");
        assert_eq!(summary.accepted, asked, "every client is in the books: {summary:?}");
    }
}

#[test]
fn workers_are_replaced_again_and_again_and_no_request_fails() {
    for node in nodes() {
        for policy in ["rr", "none"] {
            let script = Script::named("server.js", SERVER);
            let arguments = format!("--workers 2 --policy {policy}");
            let cluster = script.launch_with(&node.program, &arguments).start();
            let before = cluster.worker_pids();
            let load = load::during(&cluster.address(), |go_on| {
                for round in 0..2 {
                    go_on(30);
                    cluster.signal(Signal::SIGHUP);
                    cluster.event("reloaded", round);
                }
                go_on(30);
            });
            assert_eq!(load.failed, [0_u16; 0], "{} {policy}", node.version);
            let after = cluster.worker_pids();
            assert!(before.iter().all(|pid| !after.contains(pid)), "{before:?} {after:?}");
            eventually("only the workers to be left", || {
                (cluster.family().len() == 2).then_some(())
            });
            let ended = cluster.stop(Signal::SIGTERM);
            assert_eq!(ended.code, Some(0), "{ended:?}");
            assert!(ended.events.iter().all(|event| event["event"] != "kill"), "{ended:?}");
        }
    }
}
