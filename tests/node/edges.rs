//! Edge cases of Node's channel, with the command and real processes: defects that normal operation
//! would hide. With every installed Node, with and without the preload, because without it every
//! connection goes over the channel.
//!
//! A worker that reads the channel itself (`node/puppet.py`) checks what only a primary can do
//! wrong; it also sends what Node never sends.

use std::collections::BTreeSet;

use clusterlb::CreditRule;
use clusterlb::Dialect;
use clusterlb::{Event, Serialization};
use nix::sys::signal::Signal;
use serde_json::json;

use super::load;
use super::nodes::{Node, with_each};
use super::script::{SERVER, Script};
use crate::common::{
    Client, Cluster, Ended, GET, GET_CLOSE, Launch, PATIENCE, eventually, get, has_program, machine,
};

const PRELOADS: [&str; 2] = ["--preload auto", "--preload off"];
const PUPPET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node/puppet.py");

fn with_each_node(text: &str, test: impl Fn(&Node, &Script, &str) + Sync) {
    with_each(|node| {
        for preload in PRELOADS {
            test(node, &Script::named("server.js", text), preload);
        }
    });
}

fn ask(address: &str) -> String {
    get(address).expect("an answer").body
}

fn assert_in_order(ended: &Ended) {
    ended.assert_in_order();
    let summary = ended.summary();
    assert_eq!((summary.dropped, summary.aborted), (0, 0), "{summary:?}");
}

/// Each server answers with its letter, and messages to the program are echoed.
const LETTERS: &str = "
    const net = require('net');
    process.on('message', (text) => process.send(text.length));
    const serve = (letter) =>
        net.createServer((socket) => socket.end(letter)).listen(0, '127.0.0.1');
    serve('a'); serve('b');";

/// Node reads 64 KiB at once from a stopped worker's channel.
const LENGTHS: [usize; 8] = [0, 70_000, 200, 65_400, 5_000, 100, 65_300, 30_000];

fn letters_of_a_stopped_worker(
    node: &Node,
    script: &Script,
    preload: bool,
    serialization: Serialization,
) {
    let cluster = clusterlb::Cluster::primary().expect("a primary");
    let change = cluster.setup_primary(|settings| {
        settings.dialect = Dialect::Node;
        settings.exec.clone_from(&node.program);
        settings.args = vec![script.path("server.js").into()];
        settings.preload = preload;
        settings.serialization = serialization;
        settings.scheduling.credits = CreditRule::Fixed(16);
        settings.scheduling.hang_after_ns = None;
    });
    change.expect("valid settings");
    let mut events = cluster.events().expect("descriptors");
    let mut next = || events.recv_timeout(PATIENCE).expect("it goes on");
    let worker = cluster.fork().expect("Node starts");
    let mut addresses = Vec::new();
    while addresses.len() < 2 {
        if let Event::Listening { address, .. } = next() {
            addresses.push(format!("{}:{}", address.address, address.port.expect("it is TCP")));
        }
    }
    // The first server's answer identifies it.
    let first = Client::to(&addresses[0]).rest().expect("an answer");
    let letters = if first == b"a" { [b"a", b"b"] } else { [b"b", b"a"] };
    for round in 0..3 {
        machine::suspend(worker.pid());
        let mut clients = Vec::new();
        for turn in 0..12 {
            let length = LENGTHS[(turn + round) % LENGTHS.len()];
            worker.send(&"x".repeat(length)).expect("there is room");
            let side = (turn / 2 + round) % 2;
            clients.push((side, Client::to(&addresses[side])));
        }
        machine::signal(worker.pid(), Signal::SIGCONT);
        for (side, client) in &mut clients {
            assert_eq!(client.rest().expect("an answer"), letters[*side]);
        }
        for turn in 0..12 {
            let echo = loop {
                if let Event::Message { message, .. } = next() {
                    break message.value().expect("JSON");
                }
            };
            assert_eq!(echo, LENGTHS[(turn + round) % LENGTHS.len()], "in order");
        }
    }
    cluster.disconnect().wait();
    assert!(worker.is_dead());
}

#[test]
fn connections_reach_the_server_that_they_are_for_whatever_lies_between_them() {
    with_each(|node| {
        let script = Script::named("server.js", LETTERS);
        for preload in [true, false] {
            for serialization in [Serialization::Json, Serialization::Advanced] {
                letters_of_a_stopped_worker(node, &script, preload, serialization);
            }
        }
    });
}

#[test]
fn one_at_a_time_means_that_a_stopped_worker_holds_one() {
    with_each_node(SERVER, |node, script, preload| {
        let arguments = format!("--workers 2 --credits 1 {preload}");
        let cluster = script.launch_with(&node.program, &arguments).start();
        let address = cluster.address();
        let [stopped, other] = cluster.worker_pids()[..] else { panic!("two workers") };
        machine::suspend(stopped);
        let mut clients: Vec<Client> = (0..20).map(|_| Client::to(&address)).collect();
        clients.iter_mut().for_each(|client| client.send(GET_CLOSE));
        // One is in the channel and one may be in front of it.
        eventually("everybody but two to be answered", || {
            let answered = clients.iter().filter(|client| client.has_heard()).count();
            (answered >= 18).then_some(())
        });
        machine::signal(stopped, Signal::SIGCONT);
        let answers = clients.iter_mut().map(|client| client.receive().body);
        assert!(answers.filter(|answer| *answer == other.to_string()).count() >= 18);
        assert_in_order(&cluster.stop(Signal::SIGTERM));
    });
}

/// Runs the worker that reads the channel itself.
fn puppets(way: &str, arguments: &str, test: impl Fn(Cluster)) {
    if !has_program("python3") {
        return;
    }
    // It loads nothing, so with the preload it resembles a program that lost its environment.
    for preload in PRELOADS {
        let arguments = format!("--dialect node {arguments} {preload}");
        test(Launch::new(&arguments).running(&["python3", PUPPET, way]).start());
    }
}

fn assert_no_complaint(ended: &Ended) {
    let complaints = ended.events.iter().filter(|event| !event["message"]["complaint"].is_null());
    assert_eq!(complaints.collect::<Vec<_>>(), [&json!(null); 0]);
    assert_in_order(ended);
}

#[test]
fn a_worker_gets_each_connection_wrapped_and_alone_however_it_speaks() {
    for way in ["plain", "byte-by-byte", "strange"] {
        puppets(way, "--workers 2 --credits 64", |cluster| {
            let address = cluster.address();
            let pids = cluster.worker_pids();
            // Many messages are in a channel when its worker reads again.
            machine::suspend(pids[0]);
            let mut clients: Vec<Client> = (0..40).map(|_| Client::to(&address)).collect();
            clients.iter_mut().for_each(|client| client.send(GET_CLOSE));
            eventually("the other one to answer", || {
                clients.iter().any(Client::has_heard).then_some(())
            });
            machine::signal(pids[0], Signal::SIGCONT);
            let answers: BTreeSet<String> =
                clients.iter_mut().map(|client| client.receive().body).collect();
            assert_eq!(answers, pids.iter().map(u32::to_string).collect());
            if way == "strange" {
                // Messages that are not Node's own belong to the program.
                assert_eq!(cluster.event("message", 0)["message"], json!({ "cmd": "NODE_" }));
            }
            assert_no_complaint(&cluster.stop(Signal::SIGTERM));
        });
    }
}

#[test]
fn a_connection_whose_descriptor_did_not_arrive_is_given_again() {
    puppets("lost", "--workers 2", |cluster| {
        let address = cluster.address();
        let answers: BTreeSet<String> = (0..20).map(|_| ask(&address)).collect();
        assert_eq!(answers, cluster.worker_pids().iter().map(u32::to_string).collect());
        let ended = cluster.stop(Signal::SIGTERM);
        assert_no_complaint(&ended);
        assert_eq!(ended.summary().redispatched, 2, "each has lost one");
    });
}

#[test]
fn sockets_for_the_primary_are_received_in_whatever_pieces_they_come() {
    puppets("handles", "--workers 1", |cluster| {
        let heard = cluster.until("what the worker has been told", |heard| {
            let mut messages = heard.named("message").map(|event| event["message"].clone());
            messages.find(|message| message["heard"].is_array())
        });
        let arrived = ["NODE_HANDLE_ACK"; 5];
        let rest = ["NODE_HANDLE_NACK", "NODE_SOCKET_COUNT", "NODE_SOCKET_ALL_CLOSED"];
        assert_eq!(heard["heard"], json!([&arrived[..], &rest].concat()));
        let texts = ["whole", "with the first half", "with the second half"];
        for (number, text) in texts.iter().chain(&["first of two", "second of two"]).enumerate() {
            assert_eq!(cluster.event("message", number)["message"], *text);
        }
        assert!(!ask(&cluster.address()).is_empty());
        assert_no_complaint(&cluster.stop(Signal::SIGTERM));
    });
}

/// One worker misbehaves in a new way; the other one continues and the first is replaced.
fn harm(cluster: &Cluster) -> String {
    let address = cluster.address();
    let before = cluster.worker_pids();
    let harm = b"GET /harm HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
    let victim = Client::to(&address).ask(harm).body;
    let exit = cluster.event("exit", 0);
    assert_eq!(exit["pid"].to_string(), victim, "no other worker");
    cluster.event("online", 2);
    (0..10).for_each(|_| assert_ne!(ask(&address), victim));
    eventually("its successor to serve", || {
        let answer = ask(&address);
        (!before.iter().any(|pid| pid.to_string() == answer)).then_some(())
    });
    victim
}

#[test]
fn garbage_ends_only_its_sender_and_names_the_reason() {
    let ways = ["no-json", "no-key", "no-number", "no-port", "arrival-of-nothing", "strangers"];
    for way in ways {
        puppets(way, "--workers 2", |cluster| {
            harm(&cluster);
            let ended = cluster.stop(Signal::SIGTERM);
            assert_eq!(ended.code, Some(0), "{ended:?}");
            let kills = ended.events.iter().filter(|event| event["event"] == "kill");
            let reasons: Vec<&str> = kills.filter_map(|event| event["reason"].as_str()).collect();
            assert_eq!(reasons.len(), 1, "{ended:?}");
            assert!(reasons[0].starts_with("worker "), "{way}: {}", reasons[0]);
            assert_eq!(ended.summary().dropped, 0);
        });
    }
    // As a real one does then.
    let text = "
        require('http').createServer((request, response) => {
            response.end(String(process.pid), () => {
                if (request.url !== '/harm') return;
                const long = Buffer.from('not json\\n'.padStart(64));
                require('fs').writeSync(process.channel.fd, long);
            });
        }).listen(0, '127.0.0.1');";
    with_each_node(text, |node, script, preload| {
        for serialization in ["json", "advanced"] {
            let arguments = format!("--workers 2 --serialization {serialization} {preload}");
            let cluster = script.launch_with(&node.program, &arguments).start();
            harm(&cluster);
            let ended = cluster.stop(Signal::SIGTERM);
            assert_eq!(ended.code, Some(0), "{ended:?}");
            let kill = ended.events.iter().find(|event| event["event"] == "kill");
            let reason = kill.expect("it is told")["reason"].as_str().unwrap_or_default();
            assert!(reason.contains("garbage"), "{reason}");
        }
    });
}

#[test]
fn a_worker_that_cuts_its_channel_is_replaced_unnoticed() {
    let text = "
        require('http').createServer((request, response) => {
            response.end(String(process.pid), () => {
                if (request.url === '/harm') process.disconnect();
            });
        }).listen(0, '127.0.0.1');";
    with_each_node(text, |node, script, preload| {
        let arguments = format!("--workers 2 {preload}");
        let cluster = script.launch_with(&node.program, &arguments).start();
        harm(&cluster);
        let ended = cluster.stop(Signal::SIGTERM);
        assert!(ended.events.iter().all(|event| event["event"] != "kill"), "{ended:?}");
        let codes = ended.events.iter().filter(|event| event["event"] == "exit");
        assert!(codes.map(|event| &event["code"]).all(|code| *code == 0), "{ended:?}");
        let summary = ended.summary();
        // It ends at once, and may have answered without closing.
        assert!(summary.dropped == 0 && summary.aborted <= 1, "{summary:?}");
    });
}

#[test]
fn workers_end_with_a_primary_that_is_killed_whatever_they_are_doing() {
    with_each_node(SERVER, |node, script, preload| {
        let arguments = format!("--workers 2 {preload}");
        let launch = script.launch_with(&node.program, &arguments);
        // After the kill no process removes the script.
        let cluster = launch.variable("RUNTIME_DIRECTORY", &script.path("")).start();
        let address = cluster.address();
        let stopped = cluster.worker_pids()[0];
        let mut kept: Vec<Client> = (0..2).map(|_| Client::to(&address)).collect();
        kept.iter_mut().for_each(|client| drop(client.ask(GET)));
        machine::suspend(stopped);
        machine::signal(cluster.pid(), Signal::SIGKILL);
        machine::signal(stopped, Signal::SIGCONT);
        // Waits until no process is left.
        assert_eq!(cluster.wait().signal, Some(Signal::SIGKILL as i32));
        drop(kept);
        // The kernel tears the primary's ring down a moment later.
        eventually("the port to be free", || std::net::TcpListener::bind(&address).ok());
    });
}

#[test]
fn connections_of_a_unix_socket_are_served_and_counted_like_others() {
    let text = "
        require('http').createServer((request, response) => response.end(JSON.stringify(
            [process.pid, request.socket.remoteAddress || null])))
            .listen(process.env.TEST_SOCKET);";
    with_each_node(text, |node, script, preload| {
        let arguments = format!("--workers 2 --max-inflight 1 {preload}");
        let cluster = script.launch_with(&node.program, &arguments).start();
        let address = format!("unix:{}", script.path("socket"));
        let mut clients = [Client::to(&address), Client::to(&address)];
        let answers = clients.each_mut().map(|client| client.ask(GET).body);
        let pids: BTreeSet<String> =
            cluster.worker_pids().iter().map(|pid| format!("[{pid},null]")).collect();
        assert_eq!(answers.into_iter().collect::<BTreeSet<_>>(), pids);
        let mut third = Client::to(&address);
        third.send(GET_CLOSE);
        // Only now is there room for it with the preload.
        drop(clients);
        assert!(pids.contains(&third.receive().body));
        drop(third);
        assert_in_order(&cluster.stop(Signal::SIGTERM));
    });
}

#[test]
fn a_server_that_closes_and_listens_again_loses_nothing() {
    // One at a time: an address without a worker is closed after 25 ms.
    let text = "
        const server = require('http').createServer((request, response) => {
            response.end(String(process.pid));
        });
        let number = process.env.NODE_APP_INSTANCE === '0' ? 0 : 20;
        const open = () => server.listen(0, '127.0.0.1', () => setTimeout(close, 20));
        const close = () => (number += 1) < 20 ? server.close(open) : process.send('enough');
        open();";
    with_each_node(text, |node, script, preload| {
        let arguments = format!("--workers 2 --credits 8 {preload}");
        let cluster = script.launch_with(&node.program, &arguments).start();
        let load = load::during(&cluster.address(), |go_on| {
            cluster.event("message", 1);
            go_on(20);
        });
        assert_eq!(load.failed, [0_u16; 0]);
        assert_in_order(&cluster.stop(Signal::SIGTERM));
    });
}

#[test]
fn a_program_that_loses_its_options_on_the_way_is_served_all_the_same() {
    with_each(|node| {
        let script = Script::named("server.js", SERVER);
        let path = node.program.display().to_string();
        let words = ["env", "-u", "NODE_OPTIONS", &path, &script.path("server.js")];
        let cluster = Launch::new("--dialect node --workers 2").running(&words).start();
        let load = load::during(&cluster.address(), |go_on| {
            go_on(20);
            cluster.signal(Signal::SIGHUP);
            cluster.event("reloaded", 0);
            go_on(20);
        });
        assert_eq!(load.failed, [0_u16; 0]);
        assert_in_order(&cluster.stop(Signal::SIGTERM));
    });
}
