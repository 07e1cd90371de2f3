//! Addresses by name, and socket files for others.

use std::fs;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};
use nix::unistd::geteuid;

use super::is_root;
use crate::common::{Launch, free_ports, get, has_program, lacking};

fn has_ipv6() -> bool {
    let has = std::net::TcpListener::bind("[::1]:0").is_ok();
    if !has {
        lacking("IPv6");
    }
    has
}

#[test]
fn a_name_is_served_at_all_its_addresses_that_this_machine_has() {
    let port = free_ports(&["127.0.0.1"], 1)[0];
    let cluster = Launch::new("--workers 2").listen(format!("localhost:{port}")).start();
    let addresses = cluster.addresses();
    assert!(addresses.contains(&format!("127.0.0.1:{port}")), "{addresses:?}");
    for address in addresses {
        get(&address).expect("an answer").assert_hello();
    }
    cluster.end();
}

#[test]
fn an_asterisk_stands_for_every_address() {
    let cluster = Launch::new("--workers 1").listen("*:0").start();
    get(&format!("127.0.0.1:{}", cluster.port())).expect("an answer").assert_hello();
    if has_ipv6() {
        get(&format!("[::1]:{}", cluster.port())).expect("an answer").assert_hello();
    }
    cluster.end();
}

#[test]
fn both_wildcards_of_a_port_are_served_as_in_nginx() {
    let port = free_ports(&["0.0.0.0"], 1)[0];
    let arguments = format!("--workers 1 --listen 0.0.0.0:{port}");
    let cluster = Launch::new(&arguments).listen(format!("[::]:{port}")).start();
    get(&format!("127.0.0.1:{port}")).expect("an answer").assert_hello();
    if has_ipv6() {
        get(&format!("[::1]:{port}")).expect("an answer").assert_hello();
    }
    cluster.end();
}

#[test]
fn an_address_may_name_its_interface() {
    if has_ipv6() {
        let cluster = Launch::new("--workers 1").listen("[::1%lo]:0").start();
        get(&format!("[::1]:{}", cluster.port())).expect("an answer").assert_hello();
        cluster.end();
    }
    let nowhere = Launch::new("--workers 1").listen("[fe80::1%nowhere]:0");
    nowhere.refused().assert_refusal(2, &["no such network interface", "ip link"]);
}

#[test]
fn a_name_server_that_does_not_answer_is_not_waited_for() {
    if !is_root() || !has_program("unshare") || !has_program("mount") {
        return;
    }
    let Ok(_silent) = UdpSocket::bind("127.0.0.9:53") else {
        return lacking("a free port 53 for a name server");
    };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("resolv.conf");
    fs::write(&file, "nameserver 127.0.0.9\n").expect("the folder is writable");
    let script = format!("mount --bind {} /etc/resolv.conf && exec \"$@\"", file.display());
    let launch = Launch::new("--workers 1").under(&["unshare", "-m", "sh", "-c", &script, "sh"]);
    let ended = launch.listen("silent.example:0").refused();
    ended.assert_refusal(1, &["look silent.example:0 up within 5 s", "/etc/resolv.conf"]);
}

#[test]
fn a_socket_whose_queue_is_full_is_in_use_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let name = UnixAddr::new(&path).expect("a short path");
    let unix = |flags| -> OwnedFd {
        socket(AddressFamily::Unix, SockType::Stream, flags, None).expect("a socket")
    };
    let hung = unix(SockFlag::empty());
    bind(hung.as_raw_fd(), &name).expect("the folder is writable");
    listen(&hung, Backlog::new(0).expect("none may wait")).expect("it is bound");
    let clients: Vec<OwnedFd> = (0..3).map(|_| unix(SockFlag::SOCK_NONBLOCK)).collect();
    let refused = clients.iter().filter(|one| connect(one.as_raw_fd(), &name).is_err());
    assert!(refused.count() > 0, "the queue is full");
    let ended = Launch::new("--workers 1").listen(format!("unix:{}", path.display())).refused();
    ended.assert_refusal(1, &["cannot bind unix:", "Address already in use"]);
}

#[test]
fn a_socket_file_is_for_whom_its_address_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("so,cket");
    let owner = if geteuid().is_root() { ",user=54321,group=54322" } else { "" };
    let address = format!("unix:{},mode=620{owner}", path.display());
    let cluster = Launch::new("--workers 2").listen(address).start();
    assert_eq!(cluster.address(), format!("unix:{}", path.display()));
    get(&cluster.address()).expect("an answer").assert_hello();
    let metadata = fs::metadata(&path).expect("it is there");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o620);
    if geteuid().is_root() {
        assert_eq!((metadata.uid(), metadata.gid()), (54_321, 54_322));
    }
    cluster.end();
}
