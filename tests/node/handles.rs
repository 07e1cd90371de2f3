//! Sockets from the primary's program to a worker's.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream, UdpSocket};

use clusterlb::Dialect;
use clusterlb::internals::dialect::node::Serialization;
use clusterlb::internals::dialect::node::codec::SocketKind;
use clusterlb::{Cluster, Event};
use serde_json::json;

use super::front::{Front, Setup};
use super::nodes::with_each;
use crate::common::{Client, PATIENCE};

/// Greets through whatever it is sent.
const TAKER: &str = "
    process.on('message', (message, handle) => {
        const kind = handle && handle.constructor.name;
        if (kind === 'Socket' && handle.bind) {
            handle.on('message', (data, from) =>
                handle.send(`${message} ${data}`, from.port, from.address));
        } else if (kind === 'Socket') handle.end(message);
        else if (kind === 'Server') handle.on('connection', (socket) => socket.end(message));
        else process.send(message);
    });
    require('http').createServer().listen(0);";

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("room");
    let (far, _) = listener.accept().expect("a connection");
    near.set_read_timeout(Some(PATIENCE)).expect("a wait can be bounded");
    (near, far)
}

fn greeting(mut socket: TcpStream) -> String {
    let mut text = String::new();
    socket.read_to_string(&mut text).expect("an orderly end");
    text
}

#[test]
fn every_kind_of_socket_reaches_the_program_with_its_message() {
    with_each(|node| {
        for serialization in [Serialization::Json, Serialization::Advanced] {
            let mut front = Front::start();
            let setup = Setup { serialization, ..Setup::new(node, TAKER) };
            let place = front.fork(&setup, 1);
            let (near, far) = pair();
            assert!(front.send_socket(place, &json!("to a socket"), SocketKind::Stream, far));
            assert_eq!(greeting(near), "to a socket");
            // In a worker, Node 18 asks the primary where to listen even for what it has.
            if !node.version.starts_with("v18.") {
                let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
                let address = listener.local_addr().expect("bound").to_string();
                let message = json!("to a server");
                assert!(front.send_socket(place, &message, SocketKind::Server, listener));
                let told = Client::to(&address).rest().expect("an orderly end");
                assert_eq!(told, b"to a server");
            }
            let udp = UdpSocket::bind("127.0.0.1:0").expect("a free port");
            let address = udp.local_addr().expect("bound");
            let kind = SocketKind::Datagram { v6: false };
            assert!(front.send_socket(place, &json!("to a datagram"), kind, udp));
            let client = UdpSocket::bind("127.0.0.1:0").expect("a free port");
            client.set_read_timeout(Some(PATIENCE)).expect("a wait can be bounded");
            client.send_to(b"socket", address).expect("the loopback takes it");
            let mut answer = [0; 64];
            let count = client.recv(&mut answer).expect("an answer");
            assert_eq!(&answer[..count], b"to a datagram socket");
            // Long ones, and many at once, with plain messages in between.
            let text = |number: usize| format!("{number}{}", "x".repeat(number % 3 * 40_000));
            let pairs: Vec<TcpStream> = (0..30)
                .map(|number| {
                    let (near, far) = pair();
                    let message = json!(text(number));
                    assert!(front.send_socket(place, &message, SocketKind::Stream, far));
                    assert!(front.send(place, &json!(number)));
                    near
                })
                .collect();
            for (number, near) in pairs.into_iter().enumerate() {
                assert_eq!(greeting(near), text(number));
            }
            front.until("the plain ones", |front| front.workers[place].messages.len() == 30);
            let plain = front.workers[place].messages.iter().map(|one| one.as_u64());
            assert!(plain.eq((0..30).map(Some)));
            front.finish();
        }
    });
}

#[test]
fn the_library_sends_sockets_to_node_workers() {
    with_each(|node| {
        let folder = tempfile::tempdir().expect("a folder");
        let script = folder.path().join("taker.js");
        std::fs::write(&script, TAKER).expect("the folder is writable");
        let cluster = Cluster::primary().expect("a primary");
        let change = cluster.setup_primary(|settings| {
            settings.dialect = Dialect::Node;
            settings.exec.clone_from(&node.program);
            settings.args = vec![script.into()];
        });
        change.expect("valid settings");
        let mut events = cluster.events().expect("descriptors");
        let worker = cluster.fork().expect("a worker");
        // A message that arrives before the program listens for it is lost, as in Node.
        while !matches!(events.recv_timeout(PATIENCE), Ok(Event::Listening { .. })) {}
        let (mut near, far) = pair();
        worker.send_shared("kept open", &far).expect("there is room");
        let mut text = [0; 9];
        near.read_exact(&mut text).expect("a greeting");
        assert_eq!(&text, b"kept open");
        let (near, far) = pair();
        worker.send_handle("given away", far).expect("there is room");
        assert_eq!(greeting(near), "given away");
        let (mut pipe, end) = std::io::pipe().expect("a pipe");
        let refused = worker.send_handle("no socket", end).expect_err("Node has no such thing");
        assert!(refused.to_string().contains("not supported"), "{refused}");
        let mut rest = Vec::new();
        pipe.read_to_end(&mut rest).expect("the other end is closed");
    });
}
