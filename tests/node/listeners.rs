//! How long the addresses of Node programs stay open: while a worker serves them, or the next
//! worker in its slot may. With every installed Node.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpStream;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::nodes::{Node, with_each};
use super::script::Script;
use crate::common::{Client, Cluster, eventually, free_ports, get, machine};

fn with_each_node(text: &str, test: impl Fn(&Node, &Script) + Sync) {
    with_each(|node| test(node, &Script::named("server.js", text)));
}

fn ask(address: &str) -> String {
    get(address).expect("an answer").body
}

fn is_refused(address: &str) -> bool {
    TcpStream::connect(address).is_err()
}

/// The program's first messages.
fn sent(cluster: &Cluster, count: usize) -> Vec<Value> {
    (0..count).map(|before| cluster.event("message", before)["message"].clone()).collect()
}

/// Opens a server on request, answers on it once, closes it, and reports its port.
const TRANSFERS: &str = "
    const net = require('net');
    require('http').createServer(async (request, response) => {
        const ports = [];
        for (let count = Number(request.headers.count || 0); count > 0; count -= 1) {
            const server = net.createServer((socket) => socket.end('data'));
            await new Promise((done, failed) => {
                server.once('error', failed).listen(0, '127.0.0.1', done);
            });
            const { port } = server.address();
            ports.push(port);
            await new Promise((done) => net.connect(port, '127.0.0.1').resume().on('close', done));
            await new Promise((done) => server.close(done));
        }
        response.end(JSON.stringify(ports));
    }).listen(0, '127.0.0.1');";

#[test]
fn servers_that_live_for_one_transfer_leave_nothing_open() {
    with_each_node(TRANSFERS, |node, script| {
        let cluster = script.launch_with(&node.program, "--workers 1").start();
        let mut client = Client::to(&cluster.address());
        let request = |count: usize| {
            format!("GET / HTTP/1.1\r\nHost: test\r\nCount: {count}\r\n\r\n").into_bytes()
        };
        client.ask(&request(5));
        let before = machine::descriptor_count(cluster.pid());
        let answer = client.ask(&request(200)).body;
        let ports: Vec<u16> = serde_json::from_str(&answer).expect("a list of ports");
        assert_eq!(ports.len(), 200, "more than there can be at once in a small table");
        eventually("all of them to be refused", || {
            ports.iter().all(|port| is_refused(&format!("127.0.0.1:{port}"))).then_some(())
        });
        eventually("nothing to be left of them", || {
            (machine::descriptor_count(cluster.pid()) <= before).then_some(())
        });
        cluster.end();
    });
}

#[test]
fn a_port_that_was_free_a_moment_ago_can_be_had() {
    let text = "
        const net = require('net');
        const probe = net.createServer().listen(0, '127.0.0.1', () => {
            const { port } = probe.address();
            probe.close(() => {
                const server = require('http').createServer((request, response) => {
                    response.end(String(process.pid));
                });
                server.on('error', (error) => process.send(error.code));
                server.listen(port, '127.0.0.1', () => process.send('serves'));
            });
        });";
    with_each_node(text, |node, script| {
        let cluster = script.launch_with(&node.program, "--workers 3").start_unready();
        assert_eq!(sent(&cluster, 3), ["serves"; 3]);
        cluster.stop(Signal::SIGTERM);
    });
}

#[test]
fn a_worker_can_have_hundreds_of_sockets_at_once() {
    let text = "
        const [dgram, net] = [require('dgram'), require('net')];
        const open = (kind) => new Promise((done, failed) => {
            const socket = kind === 'udp' ? dgram.createSocket('udp4') : net.createServer();
            socket.once('error', failed);
            if (kind === 'udp') socket.bind(0, '127.0.0.1', () => done(socket));
            else socket.listen(0, '127.0.0.1', () => done(socket));
        });
        require('http').createServer(async (request, response) => {
            const sockets = [];
            for (const kind of ['tcp', 'udp']) {
                for (let count = 0; count < 150; count += 1) sockets.push(await open(kind));
            }
            const ports = new Set(sockets.map((socket) => socket.address().port));
            response.end(String(ports.size > 150 && sockets.length));
            sockets.forEach((socket) => socket.close());
        }).listen(0, '127.0.0.1');";
    with_each_node(text, |node, script| {
        let cluster = script.launch_with(&node.program, "--workers 1").start();
        let address = cluster.address();
        let before = machine::descriptor_count(cluster.pid());
        (0..3).for_each(|_| assert_eq!(ask(&address), "300"));
        eventually("nothing to be left of them", || {
            (machine::descriptor_count(cluster.pid()) <= before + 1).then_some(())
        });
        cluster.end();
    });
}

#[test]
fn what_no_successor_asks_for_is_closed_after_a_reload() {
    // A separate port per worker, above a shared one.
    let text = "
        const { id } = require('cluster').worker;
        const serve = () => require('http').createServer((request, response) => {
            response.end(String(id));
        });
        serve().listen(0, '127.0.0.1');
        const own = serve().on('error', () => process.send('taken'));
        own.listen(Number(process.env.TEST_PORT) + id, '127.0.0.1', () => process.send('serves'));";
    with_each_node(text, |node, script| {
        // Workers have the numbers from 1 to 4.
        let base = u32::from(free_ports(&["127.0.0.1"], 5)[0]);
        let launch = script.launch_with(&node.program, "--workers 2 --settle 0s");
        let cluster = launch.variable("TEST_PORT", &base.to_string()).servers(3).start();
        if sent(&cluster, 2).iter().any(|word| word == "taken") {
            // Another program has one of these ports.
            cluster.stop(Signal::SIGTERM);
            return;
        }
        let of = |worker: u32| format!("127.0.0.1:{}", base + worker);
        assert_eq!([1, 2].map(|worker| ask(&of(worker))), ["1", "2"]);
        cluster.signal(Signal::SIGHUP);
        cluster.event("reloaded", 0);
        assert_eq!([3, 4].map(|worker| ask(&of(worker))), ["3", "4"]);
        eventually("the old ones to be refused", || {
            [1, 2].iter().all(|worker| is_refused(&of(*worker))).then_some(())
        });
        cluster.end();
    });
}

#[test]
fn a_socket_file_that_programs_remove_at_their_start_is_there_again() {
    let text = "
        const fs = require('fs');
        try { fs.unlinkSync(process.env.TEST_SOCKET); } catch {}
        require('http').createServer((request, response) => response.end(String(process.pid)))
            .listen(process.env.TEST_SOCKET);";
    with_each_node(text, |node, script| {
        let launch = script.launch_with(&node.program, "--workers 2 --settle 0s --credits 64");
        let cluster = launch.start();
        let address = format!("unix:{}", script.path("socket"));
        let served = |what: &str, count: usize| {
            eventually(what, || {
                let pids = (0..8).filter_map(|_| get(&address).ok()).map(|answer| answer.body);
                let pids: BTreeSet<String> = pids.collect();
                (pids.len() == count).then_some(())
            });
        };
        served("both to serve", 2);
        for before in 0..2 {
            cluster.signal(Signal::SIGHUP);
            cluster.event("reloaded", before);
            served("both successors to serve", 2);
        }
        fs::remove_file(script.path("socket")).expect("it is there");
        let pid = cluster.worker_pids()[0];
        machine::signal(pid, Signal::SIGKILL);
        eventually("it to be there again", || get(&address).ok());
        cluster.stop(Signal::SIGTERM);
    });
}
