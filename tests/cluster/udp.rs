//! Datagrams: one socket for all workers, or one each.

use std::collections::BTreeSet;
use std::net::UdpSocket;

use clusterlb::{AddressKind, ListenOptions, Transport, WorkerHandle};
use nix::errno::Errno;

use crate::puppet::{Order, Reply};
use crate::stage::{PATIENCE, Stage, eventually};
use crate::trials;

trials!(
    a_shared_socket_answers_whoever_reads_it,
    each_worker_with_a_socket_of_its_own_gets_something,
    port_zero_is_one_port_for_all_workers,
    addresses_in_use_are_told_to_the_worker,
    ipv4_and_ipv6_share_a_port_if_ipv6_is_alone,
);

fn bind(
    stage: &mut Stage,
    worker: &WorkerHandle,
    address: &str,
    options: ListenOptions,
) -> Result<String, i32> {
    match stage.ask(worker, &Order::Udp { address: address.into(), options }) {
        Reply::Serving { address } => Ok(address),
        Reply::Refused { errno, .. } => Err(errno),
        other => panic!("{other:?}"),
    }
}

fn options(transport: Transport) -> ListenOptions {
    ListenOptions::default().transport(transport)
}

/// Which worker answers a datagram from a new port.
fn answerer(address: &str) -> u32 {
    let client = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    client.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    client.send_to(b"ping", address).expect("a loopback has room");
    let mut buffer = [0; 64];
    let length = client.recv(&mut buffer).expect("an answer");
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let (number, rest) = text.split_once(' ').expect("a number and what was sent");
    assert_eq!(rest, "ping");
    number.parse().expect("a number")
}

fn a_shared_socket_answers_whoever_reads_it() {
    let mut stage = Stage::new();
    let workers = [stage.puppet(), stage.puppet(), stage.puppet()];
    let mut addresses = BTreeSet::new();
    for worker in &workers {
        let bound = bind(&mut stage, worker, "127.0.0.1:0", options(Transport::Datagram));
        addresses.insert(bound.expect("a free port"));
        assert_eq!(stage.listening(worker).kind, AddressKind::Udp4);
    }
    let address = addresses.pop_first().expect("an address");
    assert!(addresses.is_empty(), "they share it");
    assert!((0..30).all(|_| (1..=3).contains(&answerer(&address))));
    stage.end();
    eventually("the port to be free", || UdpSocket::bind(&address).ok());
}

fn each_worker_with_a_socket_of_its_own_gets_something() {
    let mut stage = Stage::new();
    let workers = [stage.puppet(), stage.puppet()];
    let mut address = String::new();
    for worker in &workers {
        let bound = bind(&mut stage, worker, "127.0.0.1:0", options(Transport::DatagramEach));
        address = bound.expect("a free port");
    }
    // The kernel spreads by the clients' ports: eighty for one of two is out of the question.
    let answered: BTreeSet<u32> = (0..80).map(|_| answerer(&address)).collect();
    assert_eq!(answered, [1, 2].into());
    // The socket of a worker that has gone gets nothing any more.
    workers[0].kill(nix::sys::signal::Signal::SIGKILL).expect("it is ours");
    stage.exit(&workers[0]);
    assert!((0..20).all(|_| answerer(&address) == 2));
    stage.end();
}

fn port_zero_is_one_port_for_all_workers() {
    let mut stage = Stage::new();
    let workers = [stage.puppet(), stage.puppet()];
    let mut bound = Vec::new();
    for worker in &workers {
        for _ in 0..2 {
            let one = bind(&mut stage, worker, "127.0.0.1:0", options(Transport::Datagram));
            bound.push(one.expect("a free port"));
        }
    }
    assert_eq!(bound[..2], bound[2..]);
    assert_ne!(bound[0], bound[1]);
    stage.end();
}

fn addresses_in_use_are_told_to_the_worker() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    let other = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let address = other.local_addr().expect("it is bound").to_string();
    let refused = bind(&mut stage, &worker, &address, options(Transport::Datagram));
    assert_eq!(refused, Err(Errno::EADDRINUSE as i32));
    drop(other);
    // Nothing is left of the failure.
    eventually("the port to be free", || {
        bind(&mut stage, &worker, &address, options(Transport::Datagram)).ok()
    });
    let unix = bind(&mut stage, &worker, "unix:@datagrams", options(Transport::Datagram));
    assert_eq!(unix, Err(Errno::EOPNOTSUPP as i32));
    stage.end();
}

fn ipv4_and_ipv6_share_a_port_if_ipv6_is_alone() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    let alone = options(Transport::Datagram).ipv6_only();
    if bind(&mut stage, &worker, "[::]:0", alone).is_err() {
        eprintln!("not tested: no IPv6 here");
        return;
    }
    assert_eq!(stage.listening(&worker).kind, AddressKind::Udp6);
    eventually("a port that is free for both", || {
        let probe = UdpSocket::bind("0.0.0.0:0").expect("a free port");
        let port = probe.local_addr().expect("it is bound").port();
        drop(probe);
        bind(&mut stage, &worker, &format!("[::]:{port}"), alone).ok()?;
        bind(&mut stage, &worker, &format!("0.0.0.0:{port}"), options(Transport::Datagram)).ok()
    });
    stage.end();
}
