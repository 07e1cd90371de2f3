//! Addresses to listen on, and the errors for others.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use nix::unistd::Uid;

use crate::common::{
    BINARY, Client, Ended, Launch, free_ports, get, get_from, has_program, lacking,
};

/// Opens a socket as its first argument says, passes it on as descriptor 7, and executes the
/// command that follows.
const PASS_ON: &str = "\
import os, socket, sys
kind = sys.argv[1]
stream = socket.SOCK_DGRAM if kind == 'datagram' else socket.SOCK_STREAM
opened = socket.socket(socket.AF_INET, stream)
opened.bind(('127.0.0.1', 0))
if kind == 'listening':
    opened.listen(64)
os.dup2(opened.fileno(), 7)
os.execv(sys.argv[2], sys.argv[2:])
";

fn serves(listen: &[&str], arguments: &str) -> Vec<String> {
    let launch = Launch::new(&format!("--workers 2 {arguments}"));
    let launch = listen.iter().fold(launch, |launch, address| launch.listen(*address));
    let cluster = launch.start();
    let addresses = cluster.addresses();
    assert_eq!(addresses.len(), listen.len());
    addresses.iter().for_each(|address| get_from(address, 2, 5));
    cluster.end().assert_clean(10 * addresses.len() as u64);
    addresses
}

fn has_ipv6() -> bool {
    let found = TcpListener::bind("[::1]:0").is_ok();
    if !found {
        lacking("IPv6");
    }
    found
}

#[test]
fn a_port_that_becomes_free_in_a_moment_is_waited_for() {
    // On a busy machine the time limit may pass before the other socket is closed.
    let waited = (0..20).any(|_| {
        let other = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = other.local_addr().expect("it is bound").to_string();
        let cluster = clusterlb::Cluster::primary().expect("a primary");
        let wanted = address.parse().expect("an address");
        std::thread::scope(|scope| {
            let holding = scope.spawn(|| cluster.hold(&wanted));
            std::thread::sleep(Duration::from_millis(20));
            drop(other);
            holding.join().expect("no panic").is_ok_and(|(_, bound)| bound == address)
        })
    });
    assert!(waited);
}

#[test]
fn ipv6_is_served() {
    if has_ipv6() {
        for policy in ["", "--policy none", "--policy none --accept reuseport"] {
            let addresses = serves(&["[::1]:0"], policy);
            assert!(addresses[0].starts_with("[::1]:") && !addresses[0].ends_with(":0"));
        }
    }
}

#[test]
fn the_ipv6_wildcard_takes_ipv4_as_well() {
    if !has_ipv6() {
        return;
    }
    let cluster = Launch::new("--workers 2").listen("[::]:0").start();
    for host in ["127.0.0.1", "[::1]"] {
        get(&format!("{host}:{}", cluster.port())).expect("an answer").assert_hello();
    }
    cluster.end().assert_clean(2);
}

#[test]
fn unix_sockets_are_served_and_unlinked() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    for policy in ["", "--policy none", "--policy none --accept uring"] {
        let address = format!("unix:{}", path.display());
        assert_eq!(serves(&[&address], policy), [address]);
        assert!(!path.exists());
    }
}

#[test]
fn abstract_unix_sockets_are_served() {
    let address = format!("unix:@clusterlb-test-{}", std::process::id());
    for policy in ["", "--policy none"] {
        let bound = serves(&[&address], policy);
        assert!(bound == [address.as_str()], "{bound:?}");
    }
}

#[test]
fn port_zero_is_one_port_for_all_workers() {
    for policy in ["", "--policy none", "--policy none --accept reuseport"] {
        let addresses = serves(&["127.0.0.1:0"], policy);
        assert!(addresses[0].starts_with("127.0.0.1:") && !addresses[0].ends_with(":0"));
    }
}

#[test]
fn host_names_and_bare_ports_are_served() {
    let addresses = serves(&["localhost:0", "0"], "");
    assert!(addresses[0].starts_with("127.0.0.1:") || addresses[0].starts_with("[::1]:"));
    assert!(addresses[1].starts_with("127.0.0.1:"));
}

#[test]
fn listeners_of_all_kinds_are_served_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = format!("unix:{}", folder.path().join("socket").display());
    let name = format!("unix:@clusterlb-test-many-{}", std::process::id());
    for policy in ["", "--policy none", "--policy none --accept uring-multishot"] {
        serves(&["127.0.0.1:0", &path, &name, "127.0.0.2:0", "127.0.0.1:0"], policy);
    }
}

#[test]
fn a_short_backlog_still_serves_every_client() {
    let cluster = Launch::new("--workers 2 --backlog 1").start();
    get_from(&cluster.address(), 16, 10);
    cluster.end().assert_clean(160);
}

fn inheriting(kind: &str, number: u32, arguments: &str) -> Option<Launch> {
    let launch = Launch::new(arguments).listen(format!("fd:{number}"));
    has_program("python3").then(|| launch.under(&["python3", "-c", PASS_ON, kind]))
}

#[test]
fn an_inherited_socket_is_served() {
    for policy in ["", "--policy none", "--policy none --accept uring"] {
        let Some(launch) = inheriting("listening", 7, &format!("--workers 2 {policy}")) else {
            return;
        };
        let cluster = launch.start();
        assert!(cluster.address().starts_with("127.0.0.1:"));
        get_from(&cluster.address(), 2, 5);
        cluster.end().assert_clean(10);
    }
}

#[test]
fn an_inherited_descriptor_that_does_not_listen_is_refused() {
    for (kind, number, reason) in [
        ("bound", 7, "Invalid argument"),
        ("datagram", 7, "Invalid argument"),
        ("listening", 200, "Bad file number"),
        ("listening", 0, "Socket operation on non-socket"),
        ("listening", 1, "Socket operation on non-socket"),
    ] {
        let Some(launch) = inheriting(kind, number, "--workers 2") else { return };
        let address = format!("fd:{number}");
        launch.refused().assert_refusal(1, &[&address, reason, "inherited"]);
    }
}

fn refused_at(address: &str, words: &[&str]) {
    for policy in ["--policy rr", "--policy none", "--policy none --accept uring"] {
        let launch = Launch::new(&format!("--workers 2 {policy}"));
        let ended = launch.listen(address).refused();
        ended.assert_refusal(1, &[&[address], words].concat());
    }
}

#[test]
fn a_port_in_use_is_refused_and_left_alone() {
    let other = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = other.local_addr().expect("it is bound").to_string();
    refused_at(&address, &["Address already in use", "--listen"]);
    let reuseport = Launch::new("--workers 2 --policy none --accept reuseport").listen(&address);
    reuseport.refused().assert_refusal(1, &["Address already in use"]);
    // Two runs cannot share a port unnoticed either.
    for policy in ["--policy rr", "--policy none --accept reuseport"] {
        let first = Launch::new(&format!("--workers 2 {policy}")).start();
        let second = Launch::new(&format!("--workers 2 {policy}")).listen(first.address());
        second.refused().assert_refusal(1, &["Address already in use"]);
        get(&first.address()).expect("an answer").assert_hello();
        first.end().assert_clean(1);
    }
}

#[test]
fn one_bad_address_among_good_ones_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let launch = Launch::new("--workers 2").listen(format!("unix:{}", path.display()));
    let ended = launch.listen("127.0.0.1:0").listen("192.0.2.1:0").refused();
    ended.assert_refusal(1, &["192.0.2.1:0"]);
    assert!(!path.exists());
}

#[test]
fn an_address_that_is_not_here_is_refused() {
    refused_at("192.0.2.1:0", &["Cannot assign requested address", "ip address"]);
}

#[test]
fn names_that_mean_nothing_are_refused() {
    let launch = Launch::new("--workers 2").listen("no-such-host.invalid:80");
    launch.refused().assert_refusal(2, &["no-such-host.invalid", "cannot be resolved"]);
}

#[test]
fn unix_paths_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let inside = |name: &str| format!("unix:{}", folder.path().join(name).display());
    refused_at(&inside("missing/socket"), &["No such file or directory", "directory"]);
    fs::write(folder.path().join("file"), "precious").expect("a file");
    refused_at(&inside("file"), &["Address already in use"]);
    assert_eq!(fs::read(folder.path().join("file")).expect("it is there"), b"precious");
    refused_at(&inside("file/socket"), &["Not a directory"]);
    let live = Launch::new("--workers 1").listen(inside("live")).start();
    refused_at(&inside("live"), &["Address already in use"]);
    get(&inside("live")).expect("an answer").assert_hello();
    // Each of the others has connected to find out whether a server listens there.
    live.end().assert_clean(4);
    let ended = Launch::new("--workers 2").listen(inside(&"x".repeat(120))).refused();
    assert!(ended.code == Some(2) && ended.errors.contains("107 bytes"), "{ended:?}");
}

#[test]
fn a_replaced_socket_file_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let cluster = Launch::new("--workers 1").listen(format!("unix:{}", path.display())).start();
    fs::remove_file(&path).expect("the socket is there");
    fs::write(&path, "mine").expect("a file");
    cluster.end().assert_clean(0);
    assert_eq!(fs::read(&path).expect("it is there"), b"mine");
}

/// Runs the command as an account without privileges.
fn unprivileged(listen: &str, check: impl FnOnce(Ended)) {
    if !Uid::effective().is_root() {
        return check(Launch::new("--workers 2").listen(listen).refused());
    }
    if !has_program("setpriv") {
        return;
    }
    // A copy, since the folder of the original may be closed to others.
    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("clusterlb");
    fs::copy(BINARY, &copy).expect("room for a copy");
    for path in [folder.path(), &copy] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    }
    let account = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let launch = Launch::new("--workers 2").program(&copy.display().to_string()).under(&account);
    check(launch.listen(listen).refused());
}

#[test]
fn a_privileged_port_is_refused_to_others() {
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    if first.is_ok_and(|first| first.trim() == "0") {
        return lacking("privileged ports (net.ipv4.ip_unprivileged_port_start is 0)");
    }
    unprivileged("127.0.0.1:1", |ended| {
        ended.assert_refusal(1, &["127.0.0.1:1", "Permission denied", "CAP_NET_BIND_SERVICE"]);
    });
}

#[test]
fn a_folder_that_is_not_ours_is_refused() {
    unprivileged("unix:/proc/1/clusterlb-test", |ended| {
        assert_eq!(ended.code, Some(1), "{ended:?}");
    });
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).expect("it is ours");
    let address = format!("unix:{}", folder.path().join("socket").display());
    unprivileged(&address, |ended| ended.assert_refusal(1, &[&address, "Permission denied"]));
}

#[test]
fn udp_on_the_same_port_does_not_matter() {
    let address = format!("127.0.0.1:{}", free_ports(&["127.0.0.1"], 1)[0]);
    let _udp = UdpSocket::bind(&address).expect("a free port");
    let cluster = Launch::new("--workers 1").listen(&address).start();
    Client::held(&address);
    cluster.end().assert_clean(1);
}
