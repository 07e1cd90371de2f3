//! Unmodified Node programs behind the data path: every kind of listen, refusals, deaths, and
//! misbehaving workers. With every installed Node.
//!
//! `edges.rs` covers what can go wrong with descriptors on Node's channel.

use std::collections::BTreeSet;
use std::net::UdpSocket;

use clusterlb::internals::dialect::node::Serialization;
use clusterlb::internals::dialect::node::bridge::BridgeRequest;
use clusterlb::internals::dialect::node::session::WindowRule;
use nix::sys::signal::Signal;
use serde_json::json;

use super::front::{Front, Setup};
use super::nodes::with_each;
use crate::common::{Client, GET, GET_CLOSE, PATIENCE, machine};

/// A program without any cluster code: it answers with its process id.
pub(crate) const SERVER: &str = "
    require('http').createServer((request, response) => response.end(String(process.pid)))
        .listen(0, '127.0.0.1');";

pub(crate) fn ask(address: &str) -> String {
    Client::to(address).ask(GET_CLOSE).body
}

#[test]
fn requests_are_answered_in_turns_and_workers_leave_in_order() {
    with_each(|node| {
        for serialization in [Serialization::Json, Serialization::Advanced] {
            for window in [WindowRule::Fixed(1), WindowRule::default()] {
                let mut front = Front::start();
                let setup = Setup { serialization, window, ..Setup::new(node, SERVER) };
                let workers = [front.fork(&setup, 1), front.fork(&setup, 1)];
                let address = front.address(0).to_owned();
                let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
                assert_eq!(front.workers[0].listening[0].port, port, "the real port is told");
                let pids: Vec<String> = (0..20).map(|_| ask(&address)).collect();
                let distinct: BTreeSet<&String> = pids.iter().collect();
                assert_eq!(distinct.len(), 2, "{pids:?}");
                for worker in workers {
                    assert!(front.workers[worker].online);
                    front.disconnect(worker);
                    front.ended(worker, 0);
                    assert_eq!(front.workers[worker].gone, Some(None));
                }
                assert_eq!(front.finish().accepted, 20);
            }
        }
    });
}

#[test]
fn every_kind_of_listen_gets_its_own_connections() {
    let script = "
        const net = require('net');
        const serve = (letter, ...where) =>
            net.createServer((socket) => socket.end(letter)).listen(...where);
        serve('a', 0); serve('b', 0); serve('c', 0, '127.0.0.1');
        serve('d', { fd: 3 }); serve('e', process.env.TEST_SOCKET);";
    with_each(|node| {
        let mut front = Front::start();
        for _ in 0..2 {
            front.fork(&Setup::new(node, script), 5);
        }
        for (listener, letter) in ["a", "b", "c", "d", "e"].iter().enumerate() {
            for _ in 0..4 {
                let mut client = Client::to(front.address(listener));
                assert_eq!(client.rest().expect("an answer"), letter.as_bytes());
            }
        }
        front.finish();
    });
}

#[test]
fn workers_accept_by_themselves_from_sockets_that_they_are_given() {
    let script = "
        const answer = (request, response) => response.end(String(process.pid));
        require('http').createServer(answer).listen(0);
        require('http').createServer(answer).listen(process.env.TEST_SOCKET);
        const socket = require('dgram').createSocket('udp4');
        socket.on('message', (message, from) => socket.send('pong', from.port, from.address));
        socket.bind(0);";
    with_each(|node| {
        for serialization in [Serialization::Json, Serialization::Advanced] {
            let mut front = Front::start();
            front.shares = true;
            let setup = Setup { serialization, ..Setup::new(node, script) };
            let worker = front.fork(&setup, 3);
            let pid = front.workers[worker].pid().to_string();
            assert!((0..5).all(|_| ask(front.address(0)) == pid));
            assert!((0..5).all(|_| ask(front.unix_address()) == pid));
            let client = UdpSocket::bind("127.0.0.1:0").expect("a free port");
            client.set_read_timeout(Some(PATIENCE)).expect("a wait can be bounded");
            let server = front.udp.local_addr().expect("it is bound");
            client.send_to(b"ping", server).expect("the loopback takes it");
            let mut answer = [0; 16];
            let count = client.recv(&mut answer).expect("an answer");
            assert_eq!(&answer[..count], b"pong");
            let worker_id = front.workers[worker].id;
            front.order(BridgeRequest::Cut { worker: worker_id });
            front.ended(worker, 0);
            assert_eq!(front.finish().accepted, 0, "the primary has accepted nothing");
        }
    });
}

#[test]
fn servers_of_all_workers_share_their_ticket_keys() {
    let script = "
        const server = require('tls').createServer();
        server.listen(0, () => process.send(server.getTicketKeys().toString('hex')));";
    with_each(|node| {
        let mut front = Front::start();
        let workers = [0, 1].map(|_| front.fork(&Setup::new(node, script), 1));
        front.until("keys", |front| {
            workers.iter().all(|worker| !front.workers[*worker].messages.is_empty())
        });
        let keys = workers.map(|worker| front.workers[worker].messages[0].clone());
        assert_eq!(keys[0], keys[1]);
        assert_eq!(keys[0].as_str().map(str::len), Some(96));
        front.finish();
    });
}

#[test]
fn a_server_that_is_closed_and_opened_again_goes_on() {
    let script = "
        const http = require('http');
        const open = () => {
            const server = http.createServer((request, response) => {
                if (request.url === '/again') {
                    response.setHeader('connection', 'close');
                    response.end('again', () => server.close(open));
                } else response.end(String(process.pid));
            }).listen(0);
        };
        open();";
    with_each(|node| {
        let mut front = Front::start();
        let worker = front.fork(&Setup::new(node, script), 1);
        let other = front.fork(&Setup::new(node, SERVER), 1);
        // The second worker serves another address, so its connections are separate.
        let address = front.address(0).to_owned();
        let again = b"GET /again HTTP/1.1\r\nHost: test\r\n\r\n";
        assert_eq!(Client::to(&address).ask(again).body, "again");
        front.until("the server to listen again", |front| {
            front.workers[worker].left.len() == 1 && front.workers[worker].listening.len() == 2
        });
        let pid = front.workers[worker].pid().to_string();
        assert!((0..4).all(|_| ask(&address) == pid));
        let pid = front.workers[other].pid().to_string();
        assert!((0..4).all(|_| ask(front.address(1)) == pid));
        front.finish();
    });
}

#[test]
fn a_worker_at_its_limit_is_not_asked_again_and_again() {
    let script = "
        const server = require('http').createServer((request, response) =>
            response.end(String(process.pid)));
        server.keepAliveTimeout = 0; server.maxConnections = 1; server.listen(0);";
    with_each(|node| {
        let mut front = Front::start();
        for _ in 0..2 {
            front.fork(&Setup::new(node, script), 1);
        }
        let begun = std::time::Instant::now();
        let address = front.address(0).to_owned();
        let mut first = Client::to(&address);
        let mut second = Client::to(&address);
        let pids = [first.ask(GET).body, second.ask(GET).body];
        assert_ne!(pids[0], pids[1], "the second was refused by the first's worker");
        let mut third = Client::to(&address);
        third.send(GET);
        // Both refuse it, until one of them has room.
        std::thread::sleep(std::time::Duration::from_millis(500));
        drop(first);
        assert_eq!(third.receive().body, pids[0]);
        drop((second, third));
        let passed_ms = begun.elapsed().as_millis();
        let redispatched = u128::from(front.finish().redispatched);
        // Pauses of 5, 10, 20, … and at last 250 ms, for each of two workers.
        assert!(redispatched >= 2, "{redispatched}");
        assert!(redispatched <= 2 * (8 + passed_ms / 250), "{redispatched} in {passed_ms} ms");
    });
}

#[test]
fn one_at_a_time_means_that_a_stopped_worker_holds_one() {
    with_each(|node| {
        let mut front = Front::start();
        let setup = Setup { window: WindowRule::Fixed(1), ..Setup::new(node, SERVER) };
        let stopped = front.fork(&setup, 1);
        let other = front.fork(&setup, 1);
        let address = front.address(0).to_owned();
        let [pid, other] = [stopped, other].map(|place| front.workers[place].pid());
        machine::suspend(pid);
        let mut clients: Vec<Client> = (0..20).map(|_| Client::to(&address)).collect();
        clients.iter_mut().for_each(|client| client.send(GET_CLOSE));
        front.until("everybody but one to be answered", |_| {
            clients.iter().filter(|client| client.has_heard()).count() >= 19
        });
        machine::signal(pid, Signal::SIGCONT);
        let answers = clients.iter_mut().map(|client| client.receive().body);
        let by_other = answers.filter(|answer| *answer == other.to_string()).count();
        assert!(by_other >= 19, "{by_other}");
        front.finish();
    });
}

#[test]
fn what_a_killed_worker_had_not_taken_is_served_by_another() {
    with_each(|node| {
        let mut front = Front::start();
        let setup = Setup { window: WindowRule::Fixed(16), ..Setup::new(node, SERVER) };
        let victim = front.fork(&setup, 1);
        let survivor = front.fork(&setup, 1);
        let address = front.address(0).to_owned();
        let pid = front.workers[victim].pid();
        machine::suspend(pid);
        let mut clients: Vec<Client> = (0..30).map(|_| Client::to(&address)).collect();
        clients.iter_mut().for_each(|client| client.send(GET_CLOSE));
        // Some of them are in the victim's channel by now, from where they cannot be taken back.
        front.until("the victim to be found out", |front| front.hangs > 0);
        machine::signal(pid, Signal::SIGKILL);
        front.until("the victim's channel to close", |front| front.workers[victim].gone.is_some());
        let survivor = front.workers[survivor].pid().to_string();
        for client in &mut clients {
            assert_eq!(client.receive().body, survivor);
        }
        let totals = front.finish();
        assert!(totals.redispatched > 0);
    });
}

#[test]
fn garbage_ends_only_the_worker_that_sends_it() {
    let garbage = format!(
        "{SERVER} require('cluster').worker.on('error', () => {{}});
        setTimeout(() =>
            require('fs').writeSync(+process.env.TEST_CHANNEL, 'not json\\n'), 1);"
    );
    with_each(|node| {
        let mut front = Front::start();
        let fine = front.fork(&Setup::new(node, SERVER), 1);
        let bad = front.fork(&Setup::new(node, &garbage), 0);
        // A worker leaves when its channel closes, whatever it was doing.
        front.until("the worker to leave", |front| {
            front.workers[bad].gone.is_some() && front.workers[bad].ending.is_some()
        });
        let failure = front.workers[bad].gone.clone().flatten().expect("a reason");
        assert!(failure.contains("garbage"), "{failure}");
        let pid = front.workers[fine].pid().to_string();
        assert!((0..5).all(|_| ask(front.address(0)) == pid));
        front.finish();
    });
}

#[test]
fn a_worker_without_descriptors_is_passed_over_and_loses_nothing() {
    with_each(|node| {
        let mut front = Front::start();
        // Enough for Node itself and a few connections.
        let poor = Setup { descriptors: Some(40), ..Setup::new(node, SERVER) };
        front.fork(&poor, 1);
        let rich = front.fork(&Setup::new(node, SERVER), 1);
        let address = front.address(0).to_owned();
        let rich = front.workers[rich].pid().to_string();
        // One after the other, so that both get their turns until one has no room.
        let mut clients: Vec<Client> = Vec::new();
        let answers: Vec<String> = (0..100)
            .map(|_| {
                clients.push(Client::to(&address));
                clients.last_mut().expect("it was just pushed").ask(GET).body
            })
            .collect();
        let by_rich = answers.iter().filter(|pid| **pid == rich).count();
        assert!(by_rich > 50, "{by_rich} of {}", answers.len());
        drop(clients);
        assert!(front.finish().redispatched > 0);
    });
}

#[test]
fn programs_talk_to_their_primary_and_leave_when_they_want() {
    let script = "
        const cluster = require('cluster'), net = require('net');
        process.on('message', (message) => {
            if (message === 'leave') cluster.worker.disconnect();
            else process.send({ echo: message });
        });
        net.createServer((socket) => process.send('here', socket)).listen(0);";
    with_each(|node| {
        for serialization in [Serialization::Json, Serialization::Advanced] {
            let mut front = Front::start();
            let setup = Setup { serialization, ..Setup::new(node, script) };
            let place = front.fork(&setup, 1);
            let message = json!({ "text": "wörld ☃", "list": [1, 2.5, null, -7] });
            assert!(front.send(place, &message));
            front.until("an echo", |front| !front.workers[place].messages.is_empty());
            assert_eq!(front.workers[place].messages[0], json!({ "echo": message }));
            let mut client = Client::to(front.address(0));
            front.until("a socket", |front| front.workers[place].descriptors == 1);
            assert_eq!(front.workers[place].messages[1], "here");
            // The test has closed it.
            client.assert_closed();
            assert!(front.send(place, &json!("leave")));
            front.ended(place, 0);
            assert!(front.workers[place].leaving);
            front.finish();
        }
    });
}

#[test]
fn long_messages_and_connections_do_not_get_mixed_up() {
    let script = "
        const net = require('net');
        process.on('message', () => {});
        const serve = (letter) => net.createServer((socket) => socket.end(letter)).listen(0);
        serve('a'); serve('b');";
    with_each(|node| {
        let mut front = Front::start();
        let setup = Setup { window: WindowRule::Fixed(16), ..Setup::new(node, script) };
        let place = front.fork(&setup, 2);
        let pid = front.workers[place].pid();
        let addresses = [front.address(0).to_owned(), front.address(1).to_owned()];
        for round in 0..10_usize {
            let mut rng = fastrand::Rng::with_seed(round as u64);
            machine::suspend(pid);
            let mut clients = Vec::new();
            for turn in 0..8_usize {
                // A length around Node's read size, or any length.
                let length = match round % 2 {
                    0 if turn % 3 == 0 => 65_300 + 40 * (8 * round + turn) % 400,
                    0 => 100,
                    _ => rng.usize(0..=70_000),
                };
                assert!(front.send(place, &json!("x".repeat(length))));
                let side = (turn + round) % 2;
                clients.push((side, Client::to(&addresses[side])));
            }
            machine::signal(pid, Signal::SIGCONT);
            for (side, client) in &mut clients {
                let letter = ["a", "b"][*side];
                assert_eq!(client.rest().expect("an answer"), letter.as_bytes());
            }
        }
        assert_eq!(front.workers[place].gone, None);
        front.finish();
    });
}

#[test]
fn a_request_that_cannot_be_met_is_an_error_of_the_program() {
    let script = "
        const server = require('net').createServer();
        server.on('error', (error) => process.send(error.code));
        server.listen('/nowhere/at/all');";
    with_each(|node| {
        let mut front = Front::start();
        let place = front.fork(&Setup::new(node, script), 0);
        front.until("an error", |front| !front.workers[place].messages.is_empty());
        assert_eq!(front.workers[place].messages, ["EADDRNOTAVAIL"]);
        front.finish();
    });
}
