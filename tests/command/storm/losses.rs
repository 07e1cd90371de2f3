//! What a storm loses, one by one: each client without an answer against the connections that a
//! killed worker held when it was killed.
//!
//! Owns both lists. A worker is stopped before it is killed, so what it holds does not change in
//! between, and the kernel tells exactly which connections those are. Where a worker's descriptor
//! limit falls while it receives a message, the kernel drops sockets of that message, and nothing
//! tells which: those are matched by that worker's count of aborted connections.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::common::cluster::Worker;
use crate::common::{Client, Summary, machine};

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ports {
    server: u16,
    client: u16,
}

/// A client that got no answer.
#[derive(Debug)]
struct Lost {
    ports: Ports,
    connected: Instant,
    why: String,
}

/// A worker that was killed.
#[derive(Debug)]
struct Killed {
    id: u64,
    at: Instant,
    held: Vec<Ports>,
}

/// The losses of a storm.
#[derive(Debug, Default)]
pub(super) struct Losses {
    lost: Mutex<Vec<Lost>>,
    killed: Mutex<Vec<Killed>>,
    /// Workers whose limit of descriptors fell.
    limited: Mutex<BTreeSet<u64>>,
}

/// A connection that may be lost.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) client: Client,
    ports: Ports,
    connected: Instant,
}

fn port_of(address: &str) -> u16 {
    let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
    port.expect("a TCP address")
}

impl Connected {
    /// Connects: no listener is ever closed, whatever happens to its workers.
    pub(super) fn to(address: &str) -> Self {
        let connected = Instant::now();
        let client = Client::to(address);
        let ports = Ports { server: port_of(address), client: client.port() };
        Self { client, ports, connected }
    }
}

impl Losses {
    /// Records a client that got no answer.
    pub(super) fn note(&self, connected: &Connected, why: &std::io::Error) {
        let Connected { ports, connected, .. } = *connected;
        let why = why.to_string();
        self.lost.lock().expect("no client panicked").push(Lost { ports, connected, why });
    }

    /// Kills a worker, and records what it held.
    pub(super) fn kill(&self, worker: Worker, addresses: &[String]) {
        machine::suspend(worker.pid);
        let held = addresses.iter().flat_map(|address| {
            let server = port_of(address);
            let clients = machine::clients_of(worker.pid, server);
            clients.into_iter().map(move |client| Ports { server, client })
        });
        let held = held.collect();
        machine::signal(worker.pid, Signal::SIGKILL);
        let killed = Killed { id: worker.id, at: Instant::now(), held };
        self.killed.lock().expect("no client panicked").push(killed);
    }

    /// Records that a worker's limit of descriptors is about to fall.
    pub(super) fn limit(&self, worker: Worker) {
        self.limited.lock().expect("no client panicked").insert(worker.id);
    }

    /// Number of workers that were killed.
    pub(super) fn kills(&self) -> u64 {
        self.killed.lock().expect("no client panicked").len() as u64
    }

    /// Number of clients without an answer.
    pub(super) fn lost(&self) -> u64 {
        self.lost.lock().expect("no client panicked").len() as u64
    }

    /// Fails unless each lost client is one that a killed worker held, and no worker held more of
    /// them than its count of aborted connections says; or one that a worker could not receive.
    pub(super) fn assert_matched(&self, summary: &Summary) {
        let (matched, unmatched) = self.matched();
        println!("lost with each killed worker: {matched:?}; with others: {unmatched:?}");
        let killed = self.killed.lock().expect("no client panicked");
        let limited = self.limited.lock().expect("no client panicked");
        let mut unreceived = 0;
        for one in &summary.workers {
            let matched = matched.get(&one.id).copied().unwrap_or(0);
            assert!(matched <= one.aborted, "{matched} lost with one, but {one:?}");
            let was_killed = killed.iter().any(|killed| killed.id == one.id);
            let was_limited = limited.contains(&one.id);
            assert!(was_killed || was_limited || one.aborted == 0, "aborted unharmed: {one:?}");
            unreceived += if was_limited { one.aborted - matched } else { 0 };
        }
        let known = |id: &u64| summary.workers.iter().any(|one| one.id == *id);
        assert!(matched.keys().all(known), "not in the summary: {matched:?}");
        let count = unmatched.len() as u64;
        assert!(count <= unreceived, "lost, and no worker had it: {unmatched:#?}, {summary:#?}");
    }

    /// The number of lost clients that each killed worker held, and the others.
    fn matched(&self) -> (BTreeMap<u64, u64>, Vec<String>) {
        let killed = self.killed.lock().expect("no client panicked");
        let mut left: Vec<BTreeSet<Ports>> =
            killed.iter().map(|one| one.held.iter().copied().collect()).collect();
        let (mut matched, mut unmatched) = (BTreeMap::new(), Vec::new());
        for lost in self.lost.lock().expect("no client panicked").iter() {
            let mut held = killed.iter().zip(&mut left);
            let holder =
                held.find(|(one, left)| lost.connected <= one.at && left.contains(&lost.ports));
            match holder {
                Some((one, left)) => {
                    left.remove(&lost.ports);
                    *matched.entry(one.id).or_default() += 1;
                }
                None => unmatched.push(format!("{:?}: {}", lost.ports, lost.why)),
            }
        }
        (matched, unmatched)
    }
}
