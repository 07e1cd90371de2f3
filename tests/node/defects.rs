//! Defects of Node's own primary that this one does not have, side by side with the same worker
//! script. Node's behaviour is observed and printed for each version, not asserted: it may be fixed
//! one day. Only ours is asserted.

use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use clusterlb::Dialect;
use clusterlb::{Cluster, Event};
use nix::sys::signal::Signal;

use super::nodes::{Node, nodes, with_each};
use super::script::{SERVER, Script};
use super::theirs::Theirs;
use crate::common::{Client, GET, GET_CLOSE, eventually, has_program, machine};

/// Requests that show whether a worker still gets any.
const MANY: usize = 40;

/// Checks a defect with every Node, and prints which ones have it.
fn with_each_node(defect: &str, has: impl Fn(&Node) -> bool + Sync) {
    let nodes = nodes();
    let found = std::thread::scope(|scope| {
        let looks: Vec<_> = nodes.iter().map(|node| scope.spawn(|| has(node))).collect();
        looks.into_iter().map(|look| look.join().expect("nothing went wrong")).collect::<Vec<_>>()
    });
    for (node, has) in nodes.iter().zip(found) {
        let told = if has { "does" } else { "does not (any more?)" };
        // Bypasses the test harness, which would capture it.
        let _ = writeln!(std::io::stderr(), "Node {} {told}: {defect}", node.version);
    }
}

/// Tests ours with every Node, with the preload and with Node's channel alone.
fn ours(look: impl Fn(&Node, &str) + Sync) {
    with_each(|node| {
        ["--preload auto", "--preload off"].iter().for_each(|preload| look(node, preload));
    });
}

fn pid_of(client: &mut Client, request: &[u8]) -> u32 {
    client.ask(request).body.parse().expect("a process id")
}

fn ask(address: &str) -> u32 {
    pid_of(&mut Client::to(address), GET_CLOSE)
}

fn port_of(address: &str) -> u16 {
    address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
}

/// Clients that send requests while one of two workers is stopped, until the other one has answered
/// all it can. The rest is on its way to the first.
fn asked_while_stopped(address: &str, victim: u32, survivor: u32) -> Vec<Client> {
    machine::suspend(victim);
    let mut clients: Vec<Client> = (0..4).map(|_| Client::to(address)).collect();
    clients.iter_mut().for_each(|client| client.send(GET_CLOSE));
    (0..MANY).for_each(|_| assert_eq!(ask(address), survivor));
    clients
}

#[test]
fn a_connection_on_its_way_to_a_worker_that_dies() {
    let script = Script::named("server.js", SERVER);
    with_each_node("hang a connection on its way to a worker that dies, and keep it", |node| {
        let mut theirs = Theirs::serving(node, &script);
        let (address, [victim, survivor]) = (theirs.address(), theirs.worker_pids());
        let clients = asked_while_stopped(&address, victim, survivor);
        machine::signal(victim, Signal::SIGKILL);
        theirs.event("exit", 0);
        (0..MANY).for_each(|_| assert_eq!(ask(&address), survivor));
        let waiting: Vec<&Client> = clients.iter().filter(|client| !client.has_heard()).collect();
        let ports: Vec<u16> = waiting.iter().map(|client| client.port()).collect();
        let hang = !ports.is_empty();
        if hang {
            // Only the primary has it: its client waits forever, and the descriptor leaks.
            let holders = machine::holders(&[theirs.pid()], &ports, port_of(&address));
            assert!(holders.iter().all(|holder| *holder == theirs.pid()));
        }
        hang
    });
    ours(|node, preload| {
        // A successor would serve it, too.
        let arguments = format!("--workers 2 --hang-after 100ms --restart never {preload}");
        let cluster = script.launch_with(&node.program, &arguments).start();
        let address = cluster.address();
        let [victim, survivor] = cluster.worker_pids()[..] else { panic!("two workers") };
        let before = machine::descriptor_count(cluster.pid());
        let mut clients = asked_while_stopped(&address, victim, survivor);
        machine::signal(victim, Signal::SIGKILL);
        cluster.event("exit", 0);
        for client in &mut clients {
            assert_eq!(client.receive().body, survivor.to_string());
        }
        drop(clients);
        eventually("every descriptor to be closed", || {
            (machine::descriptor_count(cluster.pid()) <= before).then_some(())
        });
        let ended = cluster.stop(Signal::SIGTERM);
        let summary = ended.summary();
        assert_eq!((summary.dropped, summary.aborted), (0, 0), "{summary:?}");
    });
}

/// Sets a process's limit of descriptors.
fn limit_descriptors(pid: u32, most: u32) {
    let limit = format!("--nofile={most}:1024");
    let done = Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]).status();
    assert!(done.expect("prlimit starts").success());
}

#[test]
fn a_worker_that_once_had_no_descriptor_left() {
    if !has_program("prlimit") {
        return;
    }
    let script = Script::named("server.js", SERVER);
    with_each_node("never again use a worker that once had no descriptor left", |node| {
        let mut theirs = Theirs::serving(node, &script);
        let (address, [victim, survivor]) = (theirs.address(), theirs.worker_pids());
        limit_descriptors(victim, 4);
        // One for each of them.
        let mut clients: Vec<Client> = (0..2).map(|_| Client::to(&address)).collect();
        clients.iter_mut().for_each(|client| client.send(GET_CLOSE));
        (0..MANY).for_each(|_| assert_eq!(ask(&address), survivor));
        limit_descriptors(victim, 1024);
        (0..MANY).all(|_| ask(&address) == survivor)
    });
    ours(|node, preload| {
        let arguments = format!("--workers 2 --credits 64 {preload}");
        let cluster = script.launch_with(&node.program, &arguments).start();
        let address = cluster.address();
        let [victim, survivor] = cluster.worker_pids()[..] else { panic!("two workers") };
        limit_descriptors(victim, 4);
        let mut clients: Vec<Client> = (0..2).map(|_| Client::to(&address)).collect();
        clients.iter_mut().for_each(|client| client.send(GET_CLOSE));
        for client in &mut clients {
            assert_eq!(client.receive().body, survivor.to_string(), "no worker hangs");
        }
        limit_descriptors(victim, 1024);
        eventually("the worker to be used again", || (ask(&address) == victim).then_some(()));
        let summary = cluster.end();
        assert_eq!((summary.dropped, summary.aborted), (0, 0), "{summary:?}");
        assert!(summary.redispatched > 0);
    });
}

#[test]
fn a_connection_that_no_worker_has_room_for() {
    let text = "
        const server = require('http').createServer((request, response) =>
            response.end(String(process.pid)));
        server.maxConnections = 1; server.keepAliveTimeout = 0; server.listen(0, '127.0.0.1');";
    let script = Script::named("server.js", text);
    let look = Duration::from_secs(1);
    let fill = |address: &str| {
        let mut clients: Vec<Client> = (0..2).map(|_| Client::to(address)).collect();
        let pids: Vec<u32> = clients.iter_mut().map(|client| pid_of(client, GET)).collect();
        assert_ne!(pids[0], pids[1], "the second was refused by the first's worker");
        // Both refuse it until one of the clients closes.
        clients.push(Client::to(address));
        clients[2].send(GET);
        clients
    };
    with_each_node(
        "throw a refused connection to and fro, a hundred times a second and more",
        |node| {
            let mut theirs = Theirs::serving(node, &script);
            let mut clients = fill(&theirs.address());
            let (begun, before) = (Instant::now(), theirs.refusals(0));
            std::thread::sleep(look);
            let refusals = theirs.refusals(1) - before;
            let milliseconds = u64::try_from(begun.elapsed().as_millis()).expect("a second or so");
            let each_s = 1000 * refusals / milliseconds;
            drop(clients.remove(0));
            assert_eq!(clients[1].receive().status, 200);
            let _ =
                writeln!(std::io::stderr(), "Node {}: {each_s} refusals a second", node.version);
            each_s > 100
        },
    );
    ours(|node, preload| {
        let arguments = format!("--workers 2 {preload}");
        let cluster = script.launch_with(&node.program, &arguments).start();
        let begun = Instant::now();
        let mut clients = fill(&cluster.address());
        std::thread::sleep(look);
        drop(clients.remove(0));
        assert_eq!(clients[1].receive().status, 200);
        let passed_ms = u64::try_from(begun.elapsed().as_millis()).expect("a second or so");
        drop(clients);
        let summary = cluster.end();
        assert_eq!((summary.accepted, summary.dropped, summary.aborted), (3, 0, 0));
        // Pauses of 5, 10, 20, … and at last 250 ms, for each of two workers.
        let most = 2 * (8 + passed_ms / 250);
        assert!((1..=most).contains(&summary.redispatched), "{most} at most: {summary:?}");
    });
}

/// Of two workers, one finishes its connection only when its client closes.
#[test]
fn the_moment_at_which_a_cluster_is_disconnected() {
    let text = "
        require('net').createServer((socket) => {
            socket.on('error', () => undefined);
            socket.write('x');
        }).listen(0, '127.0.0.1');";
    let script = Script::named("server.js", text);
    let held = |address: &str| {
        let mut client = Client::to(address);
        assert_eq!(client.try_receive_bytes(1).expect("a worker has it"), b"x");
        client
    };
    with_each_node("say that a cluster is disconnected when the first worker has left", |node| {
        let mut theirs = Theirs::serving(node, &script);
        let client = held(&theirs.address());
        theirs.say("disconnect");
        theirs.event("exit", 0);
        theirs.say("refusals");
        theirs.event("refusals", 0);
        // Messages sent before that answer have arrived.
        let early = theirs.has_told("disconnected");
        drop(client);
        theirs.event("exit", 1);
        theirs.event("disconnected", 0);
        early
    });
    for node in nodes() {
        let cluster = Cluster::primary().expect("a cluster");
        let events = cluster.events().expect("its events");
        let setup = cluster.setup_primary(|settings| {
            settings.exec.clone_from(&node.program);
            settings.args = vec![script.path("server.js").into()];
            settings.dialect = Dialect::Node;
        });
        setup.expect("settings");
        let workers = [0, 1].map(|_| cluster.fork().expect("Node starts"));
        let mut addresses = events.filter_map(|event| match event {
            Event::Listening { address, .. } => {
                Some(format!("{}:{}", address.address, address.port?))
            }
            _ => None,
        });
        let address = addresses.next().expect("the first listens");
        addresses.next().expect("the second listens");
        let client = held(&address);
        let completion = cluster.disconnect();
        eventually("the idle one to leave", || {
            workers.iter().any(clusterlb::WorkerHandle::is_dead).then_some(())
        });
        assert!(!completion.is_complete(), "one is left");
        drop(client);
        completion.wait();
        assert!(workers.iter().all(clusterlb::WorkerHandle::is_dead));
    }
}

#[test]
fn a_second_listen_on_the_same_port() {
    // A port of an address that no other test or client uses.
    let id = std::process::id();
    let address = format!("127.88.{}.{}", id >> 8 & 255, 1 + id % 254);
    let text = format!(
        "
        const net = require('net');
        process.on('uncaughtException', (error) => {{
            process.send(error.code || String(error));
            setTimeout(() => process.exit(7), 20);
        }});
        net.createServer((socket) => socket.end('first')).listen(PORT, '{address}', () => {{
            const second = net.createServer((socket) => socket.end('second'));
            second.on('error', (error) => process.send(error.code));
            second.listen(PORT, '{address}', () => process.send('listens'));
        }});"
    );
    let with_port = |port: u32| text.replace("PORT", &port.to_string());
    let port = |node: &Node, base: u32| {
        let digits =
            |text: &str| text.bytes().fold(0, |sum, byte| sum * 7 % 1000 + u32::from(byte));
        base + digits(&node.version)
    };
    with_each_node("lose a worker that listens twice on one port under SCHED_NONE", |node| {
        let script = Script::named("server.js", &with_port(port(node, 10_000)));
        let mut theirs = Theirs::start(node, "none", &script);
        let said = theirs.event("message", 0)["message"].as_str().unwrap_or_default().to_owned();
        let _ = writeln!(std::io::stderr(), "Node {} says {said}", node.version);
        said == "ERR_INTERNAL_ASSERTION"
    });
    for node in nodes() {
        for (place, policy) in (0_u32..).zip(["rr", "none", "none --accept reuseport"]) {
            let port = port(&node, 20_000 + 2_000 * place);
            let script = Script::named("server.js", &with_port(port));
            let launch =
                script.launch_with(&node.program, &format!("--workers 2 --policy {policy}"));
            let cluster = launch.start();
            let said = [0, 1].map(|number| cluster.event("message", number)["message"].clone());
            for said in said {
                assert!(said == "EADDRINUSE" || said == "listens", "{policy}: {said}");
            }
            let mut client = Client::to(&format!("{address}:{port}"));
            let answer = client.rest().expect("an answer");
            assert!([&b"first"[..], b"second"].contains(&&*answer), "{answer:?}");
            // The worker waits for the client's end.
            drop(client);
            let ended = cluster.stop(Signal::SIGTERM);
            assert_eq!(ended.code, Some(0), "{ended:?}");
        }
    }
}
