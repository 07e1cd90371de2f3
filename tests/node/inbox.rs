//! Node workers that take connections from their inbox, without a message on Node's channel for
//! each. With every installed Node.

use std::thread;

use nix::sys::signal::Signal;

use super::nodes::{Node, nodes, with_each};
use super::script::Script;
use crate::common::{Client, Cluster, GET, GET_CLOSE, Launch, eventually, get, machine};

/// Connections in a worker's inbox while it is blocked.
const WAITING: usize = 6;

/// Two servers. Each answer names the process and its number of messages with a connection. A
/// request can block the second one until a file exists, or make it close the first one.
const TWO: &str = "
    const fs = require('fs');
    let messages = 0;
    process.on('internalMessage', (message) => { messages += message.act === 'newconn'; });
    const answer = (request, response) => response.end(`${process.pid} ${messages}`);
    const first = require('http').createServer(answer).listen(0, '127.0.0.1', () =>
        require('http').createServer((request, response) => {
            if (request.url !== '/') {
                fs.writeFileSync(`${__dirname}/blocked`, '');
                while (!fs.existsSync(`${__dirname}/go on`));
            }
            if (request.url === '/close') first.close();
            answer(request, response);
        }).listen(0, '127.0.0.1'));";

fn launch(node: &Node, script: &Script, arguments: &str) -> Cluster {
    let arguments = format!("--dialect node --workers 2 {arguments}");
    script.launch_with(&node.program, &arguments).servers(2).start()
}

/// The process that answered, and its number of messages.
fn ask(address: &str) -> (u32, u32) {
    let body = get(address).expect("an answer").body;
    let (pid, messages) = body.split_once(' ').expect("two words");
    (pid.parse().expect("a process"), messages.parse().expect("a number"))
}

/// Two workers; the first one does not read its inbox until it is released.
struct Blocked {
    cluster: Cluster,
    script: Script,
    /// The first server's address.
    address: String,
    pid: u32,
    client: Client,
}

impl Blocked {
    fn by(node: &Node, target: &str) -> Self {
        let script = Script::named("server.js", TWO);
        let cluster = launch(node, &script, "--hang-after off --overload-factor off --credits 64");
        let [address, second] = &cluster.addresses()[..] else { panic!("two servers") };
        let mut client = Client::to(second);
        let body = client.ask(GET).body;
        let pid = body.split_once(' ').and_then(|(pid, _)| pid.parse().ok()).expect("a process");
        client.send(format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes());
        eventually("it to stand still", || {
            std::fs::exists(script.path("blocked")).ok()?.then_some(())
        });
        Self { address: address.clone(), cluster, script, pid, client }
    }

    fn go_on(&self) {
        std::fs::write(self.script.path("go on"), "").expect("the folder is writable");
    }

    /// Clients of the first server, whose turns take them to both workers.
    fn clients(&self) -> Vec<Client> {
        let mut clients: Vec<Client> =
            (0..WAITING * 2).map(|_| Client::to(&self.address)).collect();
        clients.iter_mut().for_each(|client| client.send(GET_CLOSE));
        eventually("all to be given away", || {
            let heard = clients.iter().filter(|client| client.has_heard()).count();
            (heard == WAITING).then_some(())
        });
        clients
    }
}

fn pids(clients: &mut [Client]) -> Vec<u32> {
    let bodies = clients.iter_mut().map(|client| client.receive().body);
    bodies.map(|body| body.split_once(' ').expect("two words").0.parse().expect("one")).collect()
}

#[test]
fn connections_come_without_a_message_each_if_the_script_is_loaded() {
    let script = Script::named("server.js", TWO);
    for node in nodes() {
        for (preload, messages) in [("auto", [0, 0, 0]), ("off", [1, 2, 3])] {
            let arguments = format!("--preload {preload} --overload-factor off --credits 64");
            let cluster = launch(&node, &script, &arguments);
            let address = &cluster.addresses()[0];
            let answers: Vec<(u32, u32)> = (0..6).map(|_| ask(address)).collect();
            for pid in cluster.worker_pids() {
                let own = answers.iter().filter(|(other, _)| *other == pid);
                let own: Vec<u32> = own.map(|(_, messages)| *messages).collect();
                assert_eq!(own, messages, "{} {preload}", node.version);
            }
            cluster.end().assert_clean(6);
        }
    }
}

#[test]
fn what_waits_for_a_server_that_is_closed_goes_to_others() {
    for node in nodes() {
        let mut blocked = Blocked::by(&node, "/close");
        let mut clients = blocked.clients();
        blocked.go_on();
        let pids = pids(&mut clients);
        assert!(pids.iter().all(|pid| *pid != blocked.pid), "{}: {pids:?}", node.version);
        assert!(blocked.client.receive().body.starts_with(&blocked.pid.to_string()));
        let Blocked { cluster, client, .. } = blocked;
        drop((clients, client));
        let summary = cluster.end();
        assert_eq!((summary.dropped, summary.aborted), (0, 0), "{}", node.version);
        assert_eq!(summary.redispatched, WAITING as u64, "{}", node.version);
    }
}

#[test]
fn what_a_killed_worker_has_not_taken_goes_to_others() {
    for node in nodes() {
        let blocked = Blocked::by(&node, "/block");
        let mut clients = blocked.clients();
        machine::signal(blocked.pid, Signal::SIGKILL);
        let pids = pids(&mut clients);
        assert!(pids.iter().all(|pid| *pid != blocked.pid), "{}: {pids:?}", node.version);
        drop((clients, blocked.client));
        blocked.cluster.event("online", 2);
        let summary = blocked.cluster.end();
        assert_eq!((summary.dropped, summary.aborted), (0, 1), "{}", node.version);
        assert_eq!(summary.redispatched, WAITING as u64, "{}", node.version);
    }
}

#[test]
fn a_worker_that_is_told_to_leave_serves_what_waits_for_it_first() {
    for node in nodes() {
        let blocked = Blocked::by(&node, "/block");
        let mut clients = blocked.clients();
        blocked.cluster.signal(Signal::SIGTERM);
        blocked.cluster.event("draining", 0);
        blocked.go_on();
        let pids = pids(&mut clients);
        let own = pids.iter().filter(|pid| **pid == blocked.pid).count();
        assert_eq!(own, WAITING, "{}: {pids:?}", node.version);
        drop((clients, blocked.client));
        let ended = blocked.cluster.wait();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!((ended.summary().dropped, ended.summary().aborted), (0, 0), "{ended:?}");
    }
}

#[test]
fn connections_wait_while_a_worker_has_no_descriptors_for_them() {
    const LIMIT: &str = "48";
    const CLIENTS: usize = 80;
    // Far fewer are open at a time, and each is held for a while.
    let text = "
        require('http').createServer((request, response) =>
            setTimeout(() => response.end(String(process.pid)), 50)).listen(0, '127.0.0.1');";
    for node in nodes() {
        let script = Script::named("server.js", text);
        let program = node.program.display().to_string();
        let words = format!("ulimit -n {LIMIT}; exec '{program}' '{}'", script.path("server.js"));
        let launch = Launch::new("--dialect node --workers 2");
        let cluster = launch.running(&["sh", "-c", &words]).start();
        let address = cluster.address();
        let ask = || get(&address).map(|response| response.body);
        let failures: Vec<String> = thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask)).collect();
            let answers = clients.into_iter().map(|client| client.join().expect("no panic"));
            answers.filter_map(|answer| Some(answer.err()?.to_string())).collect()
        });
        assert_eq!(failures, [""; 0], "{}", node.version);
        let summary = cluster.end();
        assert_eq!((summary.accepted, summary.dropped), (CLIENTS as u64, 0), "{}", node.version);
    }
}

/// On one request it uses up all but three of more than a hundred descriptors; it answers all
/// others.
const GREEDY: &str = "
    const { closeSync, openSync } = require('fs');
    require('http').createServer((request, response) => {
        if (request.url !== '/') {
            const held = [];
            try { for (;;) held.push(openSync('/dev/null')); } catch {}
            held.splice(0, 3).forEach((one) => closeSync(one));
        }
        response.end(String(process.pid));
    }).listen(0, '127.0.0.1');";

#[test]
fn descriptors_that_the_program_has_used_up_are_missed_in_time() {
    let script = Script::named("server.js", GREEDY);
    for node in nodes() {
        let program = node.program.display().to_string();
        let words = format!("ulimit -n 128; exec '{program}' '{}'", script.path("server.js"));
        let launch = Launch::new("--dialect node --workers 1");
        let cluster = launch.running(&["sh", "-c", &words]).start();
        let address = cluster.address();
        let mut first = Client::to(&address);
        first.ask(b"GET /all HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        first.assert_closed();
        // All of them in one turn of the primary.
        machine::suspend(cluster.pid());
        let mut clients: Vec<Client> = (0..10).map(|_| Client::to(&address)).collect();
        clients.iter_mut().for_each(|client| client.send(GET_CLOSE));
        machine::signal(cluster.pid(), Signal::SIGCONT);
        for client in &mut clients {
            assert!(client.try_receive(true).is_ok(), "{}: it was lost", node.version);
        }
        drop(clients);
        let summary = cluster.end();
        assert_eq!((summary.accepted, summary.aborted), (11, 0), "{}", node.version);
    }
}

#[test]
fn nothing_is_said_about_what_the_script_is_made_of() {
    let script = Script::named("server.js", TWO);
    for node in nodes() {
        let arguments = "--dialect node --workers 2";
        let launch = script.launch_with(&node.program, arguments).servers(2);
        let cluster = launch.variable("NODE_OPTIONS", "--pending-deprecation").start();
        assert_eq!(ask(&cluster.addresses()[0]).1, 0, "{}", node.version);
        let ended = cluster.stop(Signal::SIGTERM);
        assert_eq!((ended.code, &*ended.errors), (Some(0), ""), "{}", node.version);
    }
}

/// Each request blocks its worker. The program counts the connections it holds whose requests have
/// not begun, and reports the maximum since the first request.
const BLOCKING: &str = "
    let [waiting, most] = [0, 0];
    const server = require('http').createServer((request, response) => {
        waiting -= 1;
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 100);
        response.end(String(most));
        if (request.url === '/begin') most = 0;
    });
    server.on('connection', () => {
        waiting += 1;
        most = Math.max(most, waiting);
    });
    server.listen(0, '127.0.0.1');";

#[test]
fn a_worker_with_long_work_takes_one_connection_at_a_time() {
    with_each(|node| {
        let script = Script::named("server.js", BLOCKING);
        let arguments = "--workers 1 --credits 64 --take-back-after off --hang-after off";
        let cluster = script.launch_with(&node.program, arguments).start();
        let address = cluster.address();
        let request =
            |path: &str| format!("GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
        let most = |body: String| body.parse::<u32>().unwrap_or_else(|_| panic!("{body}"));
        // Two, because the first one includes the start.
        for _ in 0..2 {
            assert_eq!(most(Client::to(&address).ask(request("/begin").as_bytes()).body), 1);
        }
        // Each connection comes with its request: one without it does not block the worker, which
        // then takes the next one.
        machine::suspend(cluster.pid());
        let mut clients: Vec<Client> = (0..12).map(|_| Client::to(&address)).collect();
        clients.iter_mut().for_each(|client| client.send(request("/").as_bytes()));
        machine::signal(cluster.pid(), Signal::SIGCONT);
        let answers = clients.iter_mut().map(|client| client.receive().body);
        let most = answers.map(most).max();
        assert!(most.is_some_and(|most| most <= 3), "{most:?} of 12 waited in the worker");
        cluster.end();
    });
}
