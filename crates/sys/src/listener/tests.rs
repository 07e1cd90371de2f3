//! Listening sockets of every kind, opened for real.

use std::fs;
use std::time::Duration;

use crate::address::FileAccess;

use super::*;

const OPTIONS: OpenOptions = OpenOptions {
    backlog: 16,
    share_port: false,
    ipv6_only: false,
    mode: None,
    blocking: false,
    defer_accept: false,
};

#[test]
fn port_zero_is_replaced_by_the_chosen_one() {
    let address = "127.0.0.1:0".parse().expect("an address");
    let listener = Listener::open(&address, OPTIONS).expect("a free port");
    assert!(matches!(listener.family(), Family::Tcp(port) if port != 0));
    let again = listener.address().parse().expect("an address");
    let error = Listener::open(&again, OPTIONS).expect_err("the port is taken");
    assert!(matches!(error, Error::Listen { source, .. } if source == Errno::EADDRINUSE));
}

#[test]
fn sockets_block_only_where_that_is_wished() {
    let address = "127.0.0.1:0".parse().expect("an address");
    for blocking in [false, true] {
        let options = OpenOptions { share_port: true, blocking, ..OPTIONS };
        let first = Listener::open(&address, options).expect("a free port");
        let second = open_shared(first.address(), options).expect("a second socket");
        for one in [first, second] {
            let flags = fcntl(&one, FcntlArg::F_GETFL).expect("it is open");
            let flags = OFlag::from_bits_truncate(flags);
            assert_eq!(!flags.contains(OFlag::O_NONBLOCK), blocking);
        }
    }
}

#[test]
fn a_shared_port_still_notices_a_stranger() {
    let address = "127.0.0.1:0".parse().expect("an address");
    let shared = OpenOptions { share_port: true, ..OPTIONS };
    let first = Listener::open(&address, shared).expect("a free port");
    let second = open_shared(first.address(), shared).expect("a second socket");
    assert_eq!(first.address(), second.address());
    let again = first.address().parse().expect("an address");
    assert!(Listener::open(&again, shared).is_err());
}

#[test]
fn refused_clients_stay_out_and_connected_clients_are_accepted() {
    let shared = OpenOptions { share_port: true, ..OPTIONS };
    let patience = Duration::from_millis(20);
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let address = address.parse().expect("an address");
        let Ok(listener) = Listener::open(&address, shared) else {
            crate::missing::lacking("IPv6");
            continue;
        };
        let bound = listener.address().parse().expect("an address");
        let before = std::net::TcpStream::connect(bound).expect("it listens");
        listener.turn_away();
        std::net::TcpStream::connect_timeout(&bound, patience).expect_err("unanswered");
        assert!(listener.accept_now().expect("it listens").is_some(), "{before:?}");
        assert!(listener.accept_now().expect("it listens").is_none());
    }
}

#[test]
fn ipv6_alone_leaves_the_port_of_ipv4_free() {
    let alone = OpenOptions { ipv6_only: true, ..OPTIONS };
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return crate::missing::lacking("IPv6");
    }
    let open = |text: String, options| {
        let address = text.parse().expect("an address");
        Listener::open(&address, options).ok()
    };
    // Another process may take the port first.
    let mut tries = (0..50).filter_map(|_| {
        let probe = std::net::TcpListener::bind("0.0.0.0:0").expect("a free port");
        let port = probe.local_addr().expect("it is bound").port();
        drop(probe);
        let first = open(format!("[::]:{port}"), alone)?;
        Some((first, open(format!("0.0.0.0:{port}"), OPTIONS)?, port))
    });
    let (first, second, port) = tries.next().expect("some port is free for both");
    let other = format!("0.0.0.0:{port}").parse().expect("an address");
    drop((first, second));
    let both = format!("[::]:{port}").parse().expect("an address");
    // A process that another test is just starting may have a copy of the sockets for a moment.
    let mut tries = (0..1000).map(|_| {
        std::thread::sleep(Duration::from_millis(10));
        Listener::open(&both, OPTIONS)
    });
    let _both = tries.find_map(Result::ok).expect("the port is free again");
    assert!(Listener::open(&other, OPTIONS).is_err(), "[::] takes IPv4 as well");
}

#[test]
fn a_listener_of_this_process_is_shared_and_stays_its_own() {
    let own = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let number = own.as_raw_fd();
    let copy = Listener::open(&ListenAddress::Inherited(number), OPTIONS).expect("it listens");
    assert_eq!(copy.address(), own.local_addr().expect("it is bound").to_string());
    drop(copy);
    assert!(own.local_addr().is_ok(), "the descriptor is still open");
}

#[test]
fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() {
    let folder = std::env::temp_dir().join(format!("clusterlb-unix-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("socket");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket file"));
    let address = ListenAddress::Unix(path.clone(), FileAccess::default());
    let listener = Listener::open(&address, OPTIONS).expect("the stale file is replaced");
    assert!(Listener::open(&address, OPTIONS).is_err());
    drop(listener);
    assert!(!path.exists());
    fs::remove_dir(&folder).expect("the folder is empty");
}
