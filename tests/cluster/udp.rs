//! Datagrams: one socket shared by all workers, or one socket each.

use std::collections::BTreeSet;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use clusterlb::{AddressKind, ListenOptions, Transport, WorkerHandle};
use nix::errno::Errno;

use crate::missing::lacking;
use crate::ports::free_ports;
use crate::puppet::{Order, Reply};
use crate::stage::{Stage, eventually, uninterrupted};
use crate::trials;

trials!(
    any_worker_that_reads_a_shared_socket_answers,
    each_worker_with_its_own_socket_gets_datagrams,
    port_zero_is_one_port_for_all_workers,
    a_descriptor_is_the_primarys,
    an_address_is_used_again_if_all_allow_it,
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

/// Time after which a datagram is sent again.
const AGAIN: Duration = Duration::from_secs(2);

/// The number of the worker that answers a datagram from a new port.
fn answerer(address: &str) -> u32 {
    let client = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    client.set_read_timeout(Some(AGAIN)).expect("it is a socket");
    // Connected, so that only answers from this address are received.
    client.connect(address).expect("a loopback has routes");
    let mut buffer = [0; 64];
    // A worker that another test is just starting has a copy of every descriptor until its exec: a
    // socket that is closed in the meantime takes datagrams along.
    let length = eventually("an answer", || {
        client.send(b"ping").expect("a loopback has room");
        uninterrupted(|| client.recv(&mut buffer)).ok()
    });
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let (number, rest) = text.split_once(' ').expect("a number and what was sent");
    assert_eq!(rest, "ping");
    number.parse().expect("a number")
}

fn any_worker_that_reads_a_shared_socket_answers() {
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
    // The fastest worker closes it and the others continue, until each has had its turn.
    let mut answered = BTreeSet::new();
    while answered.len() < workers.len() {
        // A thread that is just closing the socket may answer once more.
        let fastest = eventually("an answer of another one", || {
            Some(answerer(&address)).filter(|number| !answered.contains(number))
        });
        answered.insert(fastest);
        let worker = workers.iter().find(|worker| worker.id().get() == fastest);
        stage.close(worker.expect("one of them"), "127.0.0.1:0");
    }
    stage.end();
    eventually("the port to be free", || UdpSocket::bind(&address).ok());
}

fn each_worker_with_its_own_socket_gets_datagrams() {
    let mut stage = Stage::new();
    let workers = [stage.puppet(), stage.puppet()];
    let mut address = String::new();
    for worker in &workers {
        let bound = bind(&mut stage, worker, "127.0.0.1:0", options(Transport::DatagramEach));
        address = bound.expect("a free port");
    }
    // The kernel selects by client port: it is practically impossible that eighty ports all map to
    // one of two sockets.
    let answered: BTreeSet<u32> = (0..80).map(|_| answerer(&address)).collect();
    assert_eq!(answered, [1, 2].into());
    // The socket of an ended worker gets no more datagrams.
    workers[0].kill(clusterlb::Signal::SIGKILL).expect("it is ours");
    stage.exit(&workers[0]);
    assert!((0..20).all(|_| answerer(&address) == 2));
    stage.end();
}

fn port_zero_is_one_port_for_all_workers() {
    let mut stage = Stage::new();
    let mut last = Vec::new();
    for generation in 0..2 {
        let workers = [stage.puppet(), stage.puppet()];
        // Connections of a worker do not affect datagrams.
        stage.listen(&workers[1], "127.0.0.1:0");
        let mut bound = Vec::new();
        for worker in &workers {
            for _ in 0..2 {
                let one = bind(&mut stage, worker, "127.0.0.1:0", options(Transport::Datagram));
                bound.push(one.expect("a free port"));
            }
        }
        assert_eq!(bound[..2], bound[2..]);
        assert_ne!(bound[0], bound[1]);
        assert!(generation == 0 || bound == last, "it stays after all were replaced");
        last = bound;
        for worker in &workers {
            worker.disconnect();
            stage.exit(worker);
        }
    }
    stage.end();
}

fn a_descriptor_is_the_primarys() {
    let own = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let address = own.local_addr().expect("it is bound").to_string();
    let mut stage = Stage::new();
    let workers = [stage.puppet(), stage.puppet()];
    let fd = format!("fd:{}", own.as_raw_fd());
    for worker in &workers {
        let bound = bind(&mut stage, worker, &fd, options(Transport::Datagram));
        assert_eq!(bound.as_ref(), Ok(&address));
        let told = stage.listening(worker);
        assert_eq!((told.kind, told.to_string()), (AddressKind::Udp4, address.clone()));
    }
    assert!((0..6).all(|_| [1, 2].contains(&answerer(&address))));
    let stream = TcpListener::bind("127.0.0.1:0").expect("a free port");
    for (address, transport, errno) in [
        ("fd:1000".to_owned(), Transport::Datagram, Errno::EBADF),
        (format!("fd:{}", stream.as_raw_fd()), Transport::Datagram, Errno::EINVAL),
        (fd, Transport::DatagramEach, Errno::EINVAL),
    ] {
        let refused = bind(&mut stage, &workers[0], &address, options(transport));
        assert_eq!(refused, Err(errno as i32), "{address}");
    }
    stage.end();
    assert!(own.local_addr().is_ok(), "the primary's own is still open");
}

fn an_address_is_used_again_if_all_allow_it() {
    let mut stage = Stage::new();
    let workers = [stage.puppet(), stage.puppet()];
    let again = options(Transport::Datagram).reuse_address();
    let address = format!("127.0.0.1:{}", free_ports(&["127.0.0.1"], 1)[0]);
    let mut told = Vec::new();
    for worker in &workers {
        for _ in 0..2 {
            let bound = bind(&mut stage, worker, &address, again);
            assert_eq!(bound.as_ref(), Ok(&address));
            told.push(stage.listening(worker).listener);
        }
    }
    // Each worker has it twice, and shares its first socket with the first of the other.
    assert_ne!(told[0], told[1]);
    assert_eq!(told[..2], told[2..]);
    assert!([1, 2].contains(&answerer(&address)));
    // Without the option the address is refused.
    let refused = bind(&mut stage, &workers[0], &address, options(Transport::Datagram));
    assert_eq!(refused, Err(Errno::EADDRINUSE as i32));
    stage.end();
    eventually("the port to be free", || UdpSocket::bind(&address).ok());
}

fn addresses_in_use_are_told_to_the_worker() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    let other = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let address = other.local_addr().expect("it is bound").to_string();
    let refused = bind(&mut stage, &worker, &address, options(Transport::Datagram));
    assert_eq!(refused, Err(Errno::EADDRINUSE as i32));
    drop(other);
    // The failure leaves nothing behind.
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
        return lacking("IPv6");
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
