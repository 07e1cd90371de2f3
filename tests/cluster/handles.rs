//! Sockets attached to messages.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use clusterlb::{ForkOptions, Handle, Message, WorkerHandle};
use serde_json::Value;

use crate::puppet::{DESCRIPTORS, Order, Reply};
use crate::stage::{PATIENCE, Stage, uninterrupted};
use crate::trials;
use crate::tricks::Trick;

trials!(
    a_worker_serves_a_connection_that_the_primary_accepted,
    a_worker_accepts_from_a_listener_of_the_primary,
    a_worker_answers_datagrams_at_a_socket_of_the_primary,
    a_worker_sends_a_connection_to_its_primary,
    a_worker_sends_one_connection_twice,
    every_kind_of_socket_comes_back_as_what_it_was,
    a_socket_that_is_sent_is_closed_here_unless_it_is_shared,
    a_socket_that_finds_no_descriptor_free_is_told_as_lost,
    large_messages_with_sockets_pass_each_other_without_deadlock,
);

fn read_all(mut stream: impl Read) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an orderly end");
    text
}

fn a_worker_serves_a_connection_that_the_primary_accepted() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let client = TcpStream::connect(address).expect("a server listens");
    client.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    let (accepted, _) = listener.accept().expect("the client waits");
    worker.send_handle(&Order::Serve, accepted).expect("the puppet reads");
    assert_eq!(stage.reply(&worker), Reply::Done);
    assert_eq!(read_all(client), "worker 1\n");
    let (here, there) = UnixStream::pair().expect("a pair");
    here.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    worker.send_handle(&Order::Serve, there).expect("the puppet reads");
    assert_eq!(read_all(here), "worker 1\n");
    assert_eq!(stage.reply(&worker), Reply::Done);
    stage.end();
}

fn a_worker_accepts_from_a_listener_of_the_primary() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    worker.send_handle(&Order::Accept, listener).expect("the puppet reads");
    let client = TcpStream::connect(address).expect("a server listens");
    client.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    assert_eq!(read_all(client), "accepted\n");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).expect("the folder is empty");
    worker.send_handle(&Order::Accept, listener).expect("the puppet reads");
    let client = UnixStream::connect(&path).expect("a server listens");
    client.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    assert_eq!(read_all(client), "accepted\n");
    stage.end();
}

fn a_worker_answers_datagrams_at_a_socket_of_the_primary() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("it is bound");
    let client = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    client.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    client.send_to(b"a datagram", address).expect("a loopback has room");
    worker.send_handle(&Order::Serve, socket).expect("the puppet reads");
    assert_eq!(stage.reply(&worker), Reply::Done);
    let mut buffer = [0; 64];
    let (length, sender) = uninterrupted(|| client.recv_from(&mut buffer)).expect("an answer");
    assert_eq!((&buffer[..length], sender), (&b"a datagram"[..], address));
    stage.end();
}

fn a_worker_sends_a_connection_to_its_primary() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    worker.send(&Order::Connect { address }).expect("the puppet reads");
    let (mut far, _) = listener.accept().expect("the worker connects");
    let message = stage.message(&worker);
    assert!(!message.has_lost_handle());
    let Some(Handle::Tcp(mut stream)) = message.take_handle() else { panic!("a connection") };
    stream.write_all(b"from the primary").expect("the peer reads");
    drop(stream);
    far.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    let mut text = String::new();
    far.read_to_string(&mut text).expect("no other copy is open");
    assert_eq!(text, "from the primary");
    stage.end();
}

fn a_worker_sends_one_connection_twice() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    worker.send(&Order::Trick(Trick::SendTwice { address })).expect("the puppet reads");
    let (mut far, _) = listener.accept().expect("the worker connects");
    for word in ["once ", "and again"] {
        let Some(Handle::Tcp(mut stream)) = stage.message(&worker).take_handle() else {
            panic!("a connection")
        };
        stream.write_all(word.as_bytes()).expect("the peer reads");
    }
    far.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    let mut text = String::new();
    far.read_to_string(&mut text).expect("the worker has closed it as well");
    assert_eq!(text, "once and again");
    // A socket that it sent does not keep it from leaving.
    worker.disconnect();
    assert_eq!(stage.exit(&worker).0, clusterlb::Ending::Code(0));
    stage.end();
}

/// Sends a socket there and back.
fn echoed(
    stage: &mut Stage,
    worker: &WorkerHandle,
    handle: impl Into<std::os::fd::OwnedFd>,
) -> Handle {
    worker.send_handle(&Order::Echo(Value::Null), handle).expect("the puppet reads");
    let message: Message = stage.message(worker);
    message.take_handle().expect("it came back")
}

fn every_kind_of_socket_comes_back_as_what_it_was() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let client = TcpStream::connect(address).expect("a server listens");
    let folder = tempfile::tempdir().expect("a folder");
    let unix = UnixListener::bind(folder.path().join("socket")).expect("the folder is empty");
    let (pair, _far) = UnixStream::pair().expect("a pair");
    let datagram = UnixDatagram::unbound().expect("a socket");
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let (pipe, _end) = std::io::pipe().expect("a pipe");
    assert!(matches!(echoed(&mut stage, &worker, listener), Handle::TcpListener(_)));
    assert!(matches!(echoed(&mut stage, &worker, client), Handle::Tcp(_)));
    assert!(matches!(echoed(&mut stage, &worker, unix), Handle::UnixListener(_)));
    assert!(matches!(echoed(&mut stage, &worker, pair), Handle::Unix(_)));
    assert!(matches!(echoed(&mut stage, &worker, datagram), Handle::UnixDatagram(_)));
    assert!(matches!(echoed(&mut stage, &worker, udp), Handle::Udp(_)));
    assert!(matches!(echoed(&mut stage, &worker, pipe), Handle::Other(_)));
    stage.end();
}

fn a_socket_that_is_sent_is_closed_here_unless_it_is_shared() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    let (shared, there) = UnixStream::pair().expect("a pair");
    worker.send_shared(&Order::Echo(Value::Null), &there).expect("the puppet reads");
    let back = stage.message(&worker).take_handle().expect("it came back");
    drop(back);
    let mut there = there;
    there.write_all(b"still here").expect("it is still open");
    drop(there);
    assert_eq!(read_all(shared), "still here");
    let (given, there) = UnixStream::pair().expect("a pair");
    let back = echoed(&mut stage, &worker, there);
    drop(back);
    given.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    assert_eq!(read_all(given), "", "the other end is closed");
    stage.end();
}

fn a_socket_that_finds_no_descriptor_free_is_told_as_lost() {
    let mut stage = Stage::new();
    let worker = stage.puppet_with(ForkOptions::default().variable(DESCRIPTORS, "64"));
    assert_eq!(stage.ask(&worker, &Order::Exhaust), Reply::Done);
    let (given, there) = UnixStream::pair().expect("a pair");
    worker.send_handle(&Order::Echo(Value::Null), there).expect("the puppet reads");
    assert_eq!(stage.reply(&worker), Reply::Lost, "the message comes all the same");
    given.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    assert_eq!(read_all(given), "", "the other end is closed");
    assert_eq!(stage.ask(&worker, &Order::Relent), Reply::Done);
    let (pair, _far) = UnixStream::pair().expect("a pair");
    assert!(matches!(echoed(&mut stage, &worker, pair), Handle::Unix(_)));
    stage.end();
}

fn large_messages_with_sockets_pass_each_other_without_deadlock() {
    const COUNT: usize = 10;
    let mut stage = Stage::new();
    let workers = [stage.puppet(), stage.puppet()];
    let value = Value::from("x".repeat(1_000_000));
    let (mut near, far) = UnixStream::pair().expect("a pair");
    for _ in 0..COUNT {
        for worker in &workers {
            worker.send_shared(&Order::Echo(value.clone()), &far).expect("below the bound");
        }
    }
    drop(far);
    for worker in &workers {
        for _ in 0..COUNT {
            let message = stage.message(worker);
            assert!(message.parse::<Reply>().expect("a reply") == Reply::Echo(value.clone()));
            let Some(Handle::Unix(mut socket)) = message.take_handle() else { panic!("no socket") };
            socket.write_all(b".").expect("the peer reads");
        }
    }
    let mut text = String::new();
    near.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    near.read_to_string(&mut text).expect("every copy is closed");
    assert_eq!(text, ".".repeat(2 * COUNT));
    stage.end();
}
