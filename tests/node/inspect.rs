//! Debuggers of Node workers: a port for each.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::common::{Client, Cluster, Launch, eventually, free_ports, get, has_program, machine};

/// A server that answers with its process id and its debugger's port.
const SERVER: &str = "
    require('http').createServer((request, response) => {
        response.end(`${process.pid} ${process.debugPort}`);
    }).listen(0, '127.0.0.1');";

/// A server in a temporary folder; `None` if this machine has no Node.
fn script() -> Option<TempDir> {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("server.js"), SERVER).expect("the folder is writable");
    has_program("node").then_some(folder)
}

fn launch(folder: &TempDir, workers: u16, options: &[&str]) -> Launch {
    let script = folder.path().join("server.js").display().to_string();
    let words = [&["node"], options, &[&*script]].concat();
    Launch::new(&format!("--workers {workers}")).running(&words)
}

/// Whether a debugger answers at this port.
fn has_debugger(port: u16) -> bool {
    let ask = b"GET /json/version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = Client::connect(&format!("127.0.0.1:{port}")).and_then(|mut client| {
        client.try_send(ask)?;
        client.try_receive(true)
    });
    answer.is_ok_and(|answer| answer.body.contains("node.js/v"))
}

/// The ports of the workers' debuggers; each of them answers.
fn ports(cluster: &Cluster) -> BTreeSet<u16> {
    let workers = cluster.worker_pids();
    let mut told: BTreeMap<u32, u16> = BTreeMap::new();
    eventually("every worker to tell its port", || {
        let body = get(&cluster.address()).expect("an answer").body;
        let (pid, port) = body.split_once(' ').expect("two numbers");
        told.insert(pid.parse().expect("a number"), port.parse().expect("a number"));
        workers.iter().all(|pid| told.contains_key(pid)).then_some(())
    });
    told.retain(|pid, _| workers.contains(pid));
    for port in told.values() {
        assert!(has_debugger(*port), "no debugger answers at {port}");
    }
    told.into_values().collect()
}

#[test]
fn every_worker_has_a_debugger_at_its_own_port() {
    let Some(folder) = script() else { return };
    let first = free_ports(&["127.0.0.1"], 5)[0];
    let cluster = launch(&folder, 3, &[&format!("--inspect={first}")]).start();
    assert_eq!(ports(&cluster), (first..first + 3).collect());
    // A later worker gets the next port, as from Node's own primary.
    machine::signal(cluster.worker_pids()[0], Signal::SIGKILL);
    cluster.event("exit", 0);
    cluster.event("online", 3);
    assert_eq!(ports(&cluster), (first + 1..first + 4).collect());
    cluster.stop(Signal::SIGTERM);
}

#[test]
fn the_port_may_be_said_in_any_of_nodes_ways() {
    let Some(folder) = script() else { return };
    let first = free_ports(&["127.0.0.1"], 2)[0];
    let port = format!("--inspect-port={first}");
    let cluster = launch(&folder, 2, &["--no-warnings", &port, "--inspect"]).start();
    assert_eq!(ports(&cluster), [first, first + 1].into());
    cluster.end();
    let first = free_ports(&["127.0.0.1"], 2)[0];
    let value = format!("--inspect=127.0.0.1:{first}");
    let cluster = launch(&folder, 2, &[]).variable("NODE_OPTIONS", &value).start();
    assert_eq!(ports(&cluster), [first, first + 1].into());
    cluster.end();
}

#[test]
fn with_port_zero_each_finds_a_free_one() {
    let Some(folder) = script() else { return };
    let cluster = launch(&folder, 2, &["--inspect=0"]).start();
    assert_eq!(ports(&cluster).len(), 2);
    cluster.end();
}
