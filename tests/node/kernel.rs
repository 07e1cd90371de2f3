//! Node workers that the kernel dispatches to by their counters (`--dispatch kernel` in the form
//! `exact`). With every installed Node.
//!
//! While the primary is suspended nothing corrects what the kernel counts, so each pick is exactly
//! the one that the counters demand.

use super::nodes::{Node, with_each};
use super::script::Script;
use crate::common::{Client, Cluster, GET, Launch, eventually, lacking, machine};
use nix::sys::signal::Signal;

const WORKERS: usize = 3;
/// Keeps idle connections open.
const HELLO: &str = "
    const answer = (request, response) => response.end('hello world\\n');
    const server = require('http').createServer(answer);
    server.keepAliveTimeout = 0;
    server.listen(0, '127.0.0.1');";

fn launch(script: &Script, node: &Node, arguments: &str) -> Launch {
    let options = "--dispatch kernel --hang-after 1h --take-back-after off";
    script.launch_with(&node.program, &format!("{options} --workers {WORKERS} {arguments}"))
}

/// A run, where the kernel may count.
fn exact(script: &Script, node: &Node, arguments: &str) -> Option<Cluster> {
    let cluster = launch(script, node, arguments).start();
    let is_exact = cluster.event("listening", 0)["dispatch_form"] == "exact";
    if !is_exact {
        lacking("CAP_BPF, with which the kernel picks by counters");
    }
    is_exact.then_some(cluster)
}

fn holders(cluster: &Cluster, clients: &[Client]) -> Vec<u32> {
    let ports: Vec<u16> = clients.iter().map(Client::port).collect();
    machine::holders(&cluster.worker_pids(), &ports, cluster.port())
}

/// Clients that stay, until each worker has as many: every one of them is known to the kernel then.
fn held_by_all(cluster: &Cluster) -> Vec<Client> {
    let mut clients = Vec::new();
    eventually("every worker to be picked", || {
        clients.push(Client::held(&cluster.address()));
        let holders = holders(cluster, &clients);
        let count = |worker| holders.iter().filter(|holder| *holder == worker).count();
        let workers = cluster.worker_pids();
        let even = workers.iter().all(|worker| count(worker) * WORKERS == clients.len());
        even.then_some(())
    });
    clients
}

#[test]
fn clients_that_come_at_once_are_spread_in_turn() {
    let script = Script::named("server.js", HELLO);
    with_each(|node| {
        let Some(cluster) = exact(&script, node, "") else { return };
        let held = held_by_all(&cluster);
        let workers = cluster.worker_pids();
        // A worker that a busy machine did not let run is left out at first.
        let clients = eventually("each round to reach every worker", || {
            machine::suspend(cluster.pid());
            workers.iter().for_each(|worker| machine::suspend(*worker));
            let mut clients: Vec<Client> =
                (0..10 * WORKERS).map(|_| Client::to(&cluster.address())).collect();
            clients.iter_mut().for_each(|client| client.send(GET));
            workers.iter().for_each(|worker| machine::signal(*worker, Signal::SIGCONT));
            clients.iter_mut().for_each(|client| client.receive().assert_hello());
            let holders = holders(&cluster, &clients);
            machine::signal(cluster.pid(), Signal::SIGCONT);
            let mut rounds = holders.chunks(WORKERS);
            let is_even = |round: &[u32]| workers.iter().all(|worker| round.contains(worker));
            rounds.all(is_even).then_some(clients)
        });
        drop((held, clients));
        let summary = cluster.end();
        assert_eq!((summary.dropped, summary.aborted), (0, 0), "{}: {summary:?}", node.version);
    });
}

#[test]
fn a_worker_whose_connections_have_ended_gets_the_next_ones() {
    let script = Script::named("server.js", HELLO);
    with_each(|node| {
        let Some(cluster) = exact(&script, node, "") else { return };
        let (address, emptied) = (cluster.address(), cluster.worker_pids()[0]);
        let mut held = held_by_all(&cluster);
        while held.len() < 20 * WORKERS {
            held.push(Client::held(&address));
        }
        let before = holders(&cluster, &held);
        let mut holder = before.iter();
        held.retain(|_| holder.next() != Some(&emptied));
        // Until the kernel knows of all these ends, it picks others as well.
        let next = eventually("the kernel to prefer it", || {
            machine::suspend(cluster.pid());
            let next: Vec<Client> = (0..6).map(|_| Client::held(&address)).collect();
            let are_there = holders(&cluster, &next) == [emptied; 6];
            machine::signal(cluster.pid(), Signal::SIGCONT);
            are_there.then_some(next)
        });
        drop((held, next));
        let summary = cluster.end();
        assert_eq!((summary.dropped, summary.aborted), (0, 0), "{}: {summary:?}", node.version);
    });
}

#[test]
fn the_kernel_follows_fastest_only_if_the_script_counts() {
    let script = Script::named("server.js", HELLO);
    with_each(|node| {
        let Some(cluster) = exact(&script, node, "--policy fastest") else { return };
        let clients: Vec<Client> = (0..12).map(|_| Client::held(&cluster.address())).collect();
        drop(clients);
        cluster.end().assert_clean(12);
        let refused = launch(&script, node, "--policy fastest --preload off").refused();
        refused.assert_refusal(3, &["fastest", "exact"]);
    });
}
