//! Workers with their own listening sockets (`--policy none --accept reuseport`, or `--dispatch
//! kernel`), and the connections in them when a worker is blocked, stopped, killed or replaced.
//!
//! The answer tells which worker accepted, so nothing here measures time: another worker answers a
//! connection from a blocked worker's socket while the block still lasts.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use clusterlb::AcceptMechanism;
use clusterlb::{Event, Events, Policy, WorkerHandle};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::dispatch::{all_answered, books, both};
use crate::common::{
    BINARY, Client, Cluster, GET_CLOSE, Launch, PATIENCE, Summary, eventually, get, has_program,
    machine,
};

/// A server that answers with its process id. `/block` blocks its event loop until the test opens
/// the gate; `/close` closes its socket and listens again; it logs everything to files.
pub(super) const SERVER: &str = "
    const fs = require('fs');
    const path = (name) => `${__dirname}/${name}`;
    const server = require('http').createServer((request, response) => {
        fs.appendFileSync(path('log'), `${request.url}\\n`);
        if (request.url === '/block') {
            fs.writeFileSync(path('blocked'), 'yes');
            const cell = new Int32Array(new SharedArrayBuffer(4));
            while (!fs.existsSync(path('gate'))) Atomics.wait(cell, 0, 0, 5);
        }
        if (request.url === '/close') server.close(() => server.listen(0, '127.0.0.1'));
        response.end(String(process.pid));
    });
    server.listen(0, '127.0.0.1');";

/// A script in a temporary folder.
pub(super) struct Script {
    folder: TempDir,
}

impl Script {
    /// None, if this machine has no Node.
    pub(super) fn new(text: &str) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("server.js"), text).expect("the folder is writable");
        has_program("node").then_some(Self { folder })
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    pub(super) fn launch(&self, arguments: &str) -> Launch {
        self.launch_with(&format!("--policy none --accept reuseport {arguments}"))
    }

    pub(super) fn launch_with(&self, arguments: &str) -> Launch {
        Launch::new(arguments).running(&["node", &self.path("server.js")])
    }

    /// Blocks a worker; the client is answered when the gate opens.
    pub(super) fn block_one(&self, cluster: &Cluster) -> Client {
        let mut client = Client::to(&cluster.address());
        client.send(b"GET /block HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        eventually("a worker to be blocked", || fs::metadata(self.path("blocked")).ok());
        client
    }

    pub(super) fn open_gate(&self) {
        fs::write(self.path("gate"), "").expect("the folder is writable");
    }
}

pub(super) fn asking(address: &str, count: usize) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..count).map(|_| Client::to(address)).collect();
    clients.iter_mut().for_each(|client| client.send(GET_CLOSE));
    clients
}

pub(super) fn answers(clients: Vec<Client>) -> Vec<u32> {
    let answer = |mut client: Client| client.receive().body.parse().expect("a process id");
    clients.into_iter().map(answer).collect()
}

pub(super) fn ask(address: &str) -> u32 {
    get(address).expect("an answer").body.parse().expect("a process id")
}

fn assert_nothing_lost(summary: &Summary) {
    assert_eq!((summary.dropped, summary.aborted), (0, 0), "{summary:?}");
    assert_eq!(summary.accepted, summary.stolen, "{summary:?}");
}

#[test]
fn no_client_waits_for_a_blocked_worker() {
    let Some(script) = Script::new(SERVER) else { return };
    let cluster = script.launch("--workers 4 --hang-after 100ms").start();
    let address = cluster.address();
    let mut waiting = script.block_one(&cluster);
    // All of them are answered while the block lasts, whichever worker the kernel chose.
    let served: BTreeSet<u32> = answers(asking(&address, 200)).into_iter().collect();
    assert!(!waiting.has_heard());
    // So are later ones.
    let later: BTreeSet<u32> = (0..40).map(|_| ask(&address)).collect();
    script.open_gate();
    let blocked: u32 = waiting.receive().body.parse().expect("a process id");
    assert!(!served.contains(&blocked) && !later.contains(&blocked), "{served:?} {later:?}");
    // Once unblocked, the worker again gets what the kernel gives it.
    eventually("the worker to serve again", || (ask(&address) == blocked).then_some(()));
    // On a busy machine other workers may also have been slow, and this one before the block.
    let told = |name: &str, is_meant: fn(&Value) -> bool| {
        cluster.until(name, |heard| {
            let mut events = heard.named(name).filter(|event| event["pid"] == blocked);
            events.any(is_meant).then_some(())
        });
    };
    told("hung", |event| event["taken_back"].as_u64() > Some(0));
    told("recovered", |_| true);
    let summary = cluster.end();
    assert_nothing_lost(&summary);
    assert!(summary.stolen > 0, "{summary:?}");
}

/// A server that takes a while for each request, and accepts nothing in that time.
const SLOW_SERVER: &str = "
    const cell = new Int32Array(new SharedArrayBuffer(4));
    const server = require('http').createServer((request, response) => {
        Atomics.wait(cell, 0, 0, 5);
        response.end('hello world\\n');
    });
    server.keepAliveTimeout = 0;
    server.listen(0, '127.0.0.1');";

#[test]
fn what_is_taken_from_a_stopped_worker_is_handed_over_as_fast_as_the_other_takes_it() {
    let Some(script) = Script::new(SLOW_SERVER) else { return };
    let server = script.path("server.js");
    for launch in both("--workers 2 --hang-after 3s") {
        let cluster = launch.running(&["node", &server]).start();
        let stopped = cluster.worker_pids()[0];
        machine::suspend(stopped);
        let clients = asking(&cluster.address(), 400);
        // If only the hang limit woke the primary, that would take minutes.
        eventually("all to be answered", || clients.iter().all(Client::has_heard).then_some(()));
        machine::signal(stopped, Signal::SIGCONT);
        assert_eq!(all_answered(clients), 400);
        books(cluster);
    }
}

#[test]
fn with_hang_detection_off_they_wait_and_nothing_is_stolen() {
    let Some(script) = Script::new(SERVER) else { return };
    let cluster = script.launch("--workers 4 --hang-after off").start();
    let mut waiting = script.block_one(&cluster);
    let clients = asking(&cluster.address(), 100);
    script.open_gate();
    let blocked: u32 = waiting.receive().body.parse().expect("a process id");
    assert!(answers(clients).contains(&blocked));
    let summary = cluster.end();
    assert_eq!((summary.accepted, summary.stolen), (0, 0), "{summary:?}");
}

#[test]
fn others_serve_the_connections_in_a_killed_workers_socket() {
    let Some(script) = Script::new(SERVER) else { return };
    // The dead worker has no successor, so the primary has to accept later connections.
    let cluster = script.launch("--workers 4 --hang-after off --restart never").start();
    let address = cluster.address();
    let victim = cluster.worker_pids()[0];
    machine::suspend(victim);
    let clients = asking(&address, 200);
    machine::signal(victim, Signal::SIGKILL);
    assert!(!answers(clients).contains(&victim));
    cluster.event("exit", 0);
    let later: BTreeSet<u32> = answers(asking(&address, 100)).into_iter().collect();
    assert_eq!(later, cluster.worker_pids().into_iter().collect());
    let summary = cluster.end();
    assert_nothing_lost(&summary);
    assert!(summary.stolen > 0, "{summary:?}");
}

#[test]
fn a_successor_takes_over_the_socket_of_a_dead_worker() {
    let Some(script) = Script::new(SERVER) else { return };
    let cluster = script.launch("--workers 1").start();
    let address = cluster.address();
    machine::signal(cluster.worker_pids()[0], Signal::SIGKILL);
    cluster.event("exit", 0);
    // No worker can take them; they wait.
    let clients = asking(&address, 20);
    let served = answers(clients);
    assert_eq!(served, vec![cluster.worker_pids()[0]; 20]);
    assert_nothing_lost(&cluster.end());
}

#[test]
fn a_resumed_worker_serves_no_connection_a_second_time() {
    let Some(script) = Script::new(SERVER) else { return };
    let cluster = script.launch("--workers 2 --hang-after 100ms").start();
    let address = cluster.address();
    let [stopped, other] = cluster.worker_pids()[..] else { panic!("two workers") };
    machine::suspend(stopped);
    let mut clients: Vec<Client> = (0..100).map(|_| Client::to(&address)).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        let head = format!("GET /{number} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        client.send(head.as_bytes());
    }
    cluster.event("hung", 0);
    machine::signal(stopped, Signal::SIGCONT);
    for client in &mut clients {
        let served: u32 = client.receive().body.parse().expect("a process id");
        assert!([stopped, other].contains(&served));
        assert_eq!(client.rest().expect("it ends in order"), b"");
    }
    eventually("the worker to serve again", || (ask(&address) == stopped).then_some(()));
    assert_nothing_lost(&cluster.end());
    let log = fs::read_to_string(script.path("log")).expect("the server's log");
    let mut numbers: Vec<u32> =
        log.lines().filter_map(|line| line.trim_start_matches('/').parse().ok()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..100).collect::<Vec<u32>>());
}

/// Sends requests on new connections during `harm`, and returns how many failed.
pub(super) fn failures_during(cluster: &Cluster, harm: impl FnOnce(&dyn Fn(u64))) -> u64 {
    let (answered, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    let over = AtomicBool::new(false);
    let address = cluster.address();
    let go_on = |count: u64| {
        let before = answered.load(Ordering::Relaxed);
        eventually("requests to be answered", || {
            (answered.load(Ordering::Relaxed) >= before + count).then_some(())
        });
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let good = get(&address).is_ok_and(|response| response.status == 200);
                    let counter = if good { &answered } else { &failed };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        harm(&go_on);
        over.store(true, Ordering::Relaxed);
    });
    failed.into_inner()
}

#[test]
fn all_workers_are_replaced_without_a_failed_request() {
    let Some(script) = Script::new(SERVER) else { return };
    let cluster = script.launch("--workers 3").start();
    let before = cluster.worker_pids();
    let failed = failures_during(&cluster, |go_on| {
        for round in 0..2 {
            go_on(100);
            cluster.signal(Signal::SIGHUP);
            cluster.event("reloaded", round);
        }
        go_on(100);
    });
    assert_eq!(failed, 0);
    let after: BTreeSet<u32> = cluster.worker_pids().into_iter().collect();
    assert!(after.len() == 3 && before.iter().all(|pid| !after.contains(pid)));
    // Each has a socket, so each gets some.
    eventually("all of them to answer", || {
        let answered: BTreeSet<u32> = (0..64).map(|_| ask(&cluster.address())).collect();
        (answered == after).then_some(())
    });
    assert_nothing_lost(&cluster.end());
}

#[test]
fn built_in_workers_are_replaced_in_the_same_way() {
    let cluster = Launch::new("--workers 3 --policy none --accept reuseport").start();
    let failed = failures_during(&cluster, |go_on| {
        go_on(50);
        cluster.signal(Signal::SIGHUP);
        cluster.event("reloaded", 0);
        go_on(50);
    });
    assert_eq!(failed, 0);
    // Every remaining socket has a worker that accepts from it.
    (0..64).for_each(|_| get(&cluster.address()).expect("an answer").assert_hello());
    let summary = cluster.end();
    let own: u64 = summary.workers.iter().map(|one| one.own).sum();
    assert_eq!((summary.accepted, summary.stolen, summary.dropped), (own, 0, 0));
}

#[test]
fn a_worker_that_closes_its_server_leaves_no_client_behind() {
    let Some(script) = Script::new(SERVER) else { return };
    let cluster = script.launch("--workers 2").start();
    let address = cluster.address();
    let close = b"GET /close HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
    let failed = failures_during(&cluster, |go_on| {
        for _ in 0..10 {
            assert_eq!(Client::to(&address).ask(close).status, 200);
            go_on(20);
        }
    });
    assert_eq!(failed, 0);
    assert_nothing_lost(&cluster.end());
}

#[test]
fn clients_connected_before_the_end_are_served() {
    let Some(script) = Script::new(SERVER) else { return };
    let cluster = script.launch("--workers 3").start();
    let address = cluster.address();
    let cut = AtomicU64::new(0);
    let served = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                // Until no client gets in.
                while let Ok(mut client) = Client::connect(&address) {
                    let sent = client.try_send(GET_CLOSE);
                    let answered = sent.and_then(|()| client.try_receive(true));
                    let counter = if answered.is_ok() { &served } else { &cut };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        eventually("some to be served", || (served.load(Ordering::Relaxed) > 50).then_some(()));
        cluster.signal(Signal::SIGTERM);
    });
    assert_eq!(cut.into_inner(), 0);
    let ended = cluster.wait();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_nothing_lost(&ended.summary());
}

/// A library cluster without a data path, with the command's workers.
fn library_cluster() -> (clusterlb::Cluster, Events) {
    let cluster = clusterlb::Cluster::primary().expect("a primary");
    let arguments = "--policy none --accept reuseport --listen 127.0.0.1:0";
    let set = cluster.setup_primary(|settings| {
        settings.policy = Policy::None;
        settings.exec = BINARY.into();
        settings.args = arguments.split(' ').map(Into::into).collect();
        settings.accept = AcceptMechanism::Reuseport;
    });
    set.expect("valid settings");
    let events = cluster.events().expect("descriptors");
    (cluster, events)
}

fn heard<T>(events: &mut Events, mut look: impl FnMut(Event) -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let event = events.recv_timeout(left).expect("the event comes");
        if let Some(found) = look(event) {
            return found;
        }
    }
}

#[test]
fn a_program_is_told_of_connections_that_are_lost_with_a_dead_worker() {
    for workers in [1, 3] {
        let (cluster, mut events) = library_cluster();
        let mut address = String::new();
        let started: Vec<WorkerHandle> = (0..workers)
            .map(|_| {
                let worker = cluster.fork().expect("a worker");
                address = heard(&mut events, |event| match event {
                    Event::Listening { address, .. } => Some(address.to_string()),
                    _ => None,
                });
                worker
            })
            .collect();
        machine::suspend(started[0].pid());
        let clients = asking(&address, 60);
        machine::signal(started[0].pid(), Signal::SIGKILL);
        let answered = clients.into_iter().map(|mut client| client.try_receive(true));
        let lost = answered.filter(Result::is_err).count();
        let mut told = 0;
        heard(&mut events, |event| match event {
            Event::Error { error, .. } => {
                let text = error.to_string();
                assert!(text.contains(&address), "{text}");
                let number = text.split(' ').find_map(|word| word.parse::<usize>().ok());
                told += number.expect("it says how many");
                None
            }
            Event::Exit { .. } => Some(()),
            _ => None,
        });
        assert_eq!(told, lost);
        assert!(workers > 1 || lost == 60, "{lost}");
    }
}

#[test]
fn a_unix_socket_is_shared_by_all() {
    let text = SERVER.to_owned()
        + "server.on('listening', () => {
        if (!process.env.SECOND) { process.env.SECOND = 'yes';
            require('http').createServer((request, response) => response.end(String(process.pid)))
                .listen(path('socket')); } });";
    let Some(script) = Script::new(&text) else { return };
    let cluster = script.launch("--workers 2").servers(2).start();
    let pids: BTreeSet<u32> = cluster.worker_pids().into_iter().collect();
    let unix = format!("unix:{}", script.path("socket"));
    assert!(cluster.addresses().contains(&unix), "{:?}", cluster.addresses());
    for address in cluster.addresses() {
        (0..10).for_each(|_| assert!(pids.contains(&ask(&address))));
    }
    assert_nothing_lost(&cluster.end());
}
