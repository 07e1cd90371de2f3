//! The end of a run: open requests are answered, no connection is accepted, no process or file is
//! left.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::{Client, Cluster, Ended, GET, Launch, eventually, get, machine};

const POLICIES: [&str; 7] = [
    "--policy rr",
    "--policy rr --runtime tokio-uring",
    "--policy none --accept epoll",
    "--policy none --accept epoll-exclusive",
    "--policy none --accept uring",
    "--policy none --accept uring-multishot",
    "--policy none --accept reuseport",
];

fn start(policy: &str) -> Cluster {
    Launch::new(&format!("--workers 2 {policy}")).start()
}

/// A request without its body yet, on a connection that a worker holds.
fn open_request(address: &str) -> Client {
    let mut client = Client::held(address);
    client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    // The interim answer shows that the head has been read.
    assert_eq!(client.receive_head().status, 100);
    client
}

fn until_refused(address: &str) {
    eventually("new connections to be refused", || {
        // A client that connects at the moment of closing is reset instead.
        let error = Client::connect(address).err()?;
        (error.kind() == ErrorKind::ConnectionRefused).then_some(())
    });
}

/// Fails unless another socket can bind the port at once.
fn assert_port_free(address: &str) {
    let bound = TcpListener::bind(address);
    assert!(bound.is_ok(), "{address} is still busy: {bound:?}");
}

fn assert_in_order(ended: &Ended) {
    assert_eq!((ended.code, ended.errors.as_str()), (Some(0), ""), "{ended:?}");
    ended.summary().assert_clean(ended.summary().accepted);
}

fn drain_with_open_requests(policy: &str, signal: Signal) {
    let cluster = start(policy);
    let address = cluster.address();
    let mut idle: Vec<Client> = (0..3).map(|_| Client::held(&address)).collect();
    let mut in_head = Client::to(&address);
    // In one piece with a whole request, whose answer shows that the incomplete one has been read.
    in_head.ask(&[GET, b"GET / HTTP/1.1\r\nHo"].concat()).assert_hello();
    let in_body = open_request(&address);
    cluster.signal(signal);
    assert_eq!(cluster.event("draining", 0)["reason"], signal.as_str());
    idle.iter_mut().for_each(Client::assert_closed);
    until_refused(&address);
    for (mut client, rest) in [(in_body, "12345"), (in_head, "st: x\r\n\r\n")] {
        let answer = client.ask(rest.as_bytes());
        answer.assert_hello();
        assert!(answer.closes(), "{answer:?}");
        client.assert_closed();
    }
    let ended = cluster.wait();
    assert_in_order(&ended);
    assert_port_free(&address);
}

#[test]
fn sigterm_lets_open_requests_finish_and_closes_idle_connections() {
    POLICIES.iter().for_each(|policy| drain_with_open_requests(policy, Signal::SIGTERM));
}

#[test]
fn sigint_drains_too() {
    drain_with_open_requests("--policy rr", Signal::SIGINT);
    drain_with_open_requests("--policy none", Signal::SIGINT);
}

#[test]
fn a_signal_to_the_whole_group_is_one_signal() {
    // A terminal's Ctrl-C reaches every process; only the primary acts on it.
    let cluster = start("--policy rr");
    let mut open = open_request(&cluster.address());
    for pid in cluster.worker_pids() {
        machine::signal(pid, Signal::SIGINT);
    }
    cluster.signal(Signal::SIGINT);
    cluster.event("draining", 0);
    open.ask(b"12345").assert_hello();
    drop(open);
    assert_in_order(&cluster.wait());
}

#[test]
fn requests_that_outlast_the_grace_period_are_cut_and_counted() {
    for policy in POLICIES {
        let cluster = Launch::new(&format!("--workers 2 --grace 300ms {policy}")).start();
        let address = cluster.address();
        let mut open: Vec<Client> = (0..3).map(|_| open_request(&address)).collect();
        cluster.signal(Signal::SIGTERM);
        for client in &mut open {
            // The error depends on how the kernel closes the socket of an ended process.
            assert!(client.try_receive(true).is_err());
        }
        let ended = cluster.wait();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let summary = ended.summary();
        assert_eq!((summary.accepted, summary.aborted), (3, 3), "{summary:?}");
        assert_port_free(&address);
    }
}

#[test]
fn no_grace_at_all_ends_at_once() {
    let cluster = Launch::new("--workers 2 --grace 0s").start();
    let _open = open_request(&cluster.address());
    let ended = cluster.stop(Signal::SIGTERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.summary().aborted, 1);
}

#[test]
fn a_second_signal_ends_at_once_with_the_code_of_that_signal() {
    for (policy, signal, code) in
        [("--policy rr", Signal::SIGINT, 130), ("--policy none", Signal::SIGTERM, 143)]
    {
        let cluster = Launch::new(&format!("--workers 2 --grace 10m {policy}")).start();
        let address = cluster.address();
        let _open = open_request(&address);
        cluster.signal(signal);
        cluster.event("draining", 0);
        // An early second signal counts as the echo of the first, so it is repeated.
        while cluster.count("kill") == 0 {
            std::thread::sleep(Duration::from_millis(60));
            cluster.signal(signal);
        }
        let ended = cluster.wait();
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert_eq!(ended.summary().aborted, 1);
        assert_port_free(&address);
    }
}

#[test]
fn connections_in_the_backlog_at_the_signal_are_still_answered() {
    for policy in POLICIES {
        let cluster = start(policy);
        let address = cluster.address();
        let mut everybody = cluster.worker_pids();
        everybody.push(cluster.pid());
        everybody.iter().copied().for_each(machine::suspend);
        let mut clients: Vec<Client> = (0..40).map(|_| Client::to(&address)).collect();
        clients.iter_mut().for_each(|client| client.send(GET));
        cluster.signal(Signal::SIGTERM);
        everybody.iter().for_each(|pid| machine::signal(*pid, Signal::SIGCONT));
        for mut client in clients {
            client.receive().assert_hello();
            client.assert_closed();
        }
        let ended = cluster.wait();
        assert_in_order(&ended);
        assert_eq!(ended.summary().accepted, 40, "{policy}");
    }
}

#[test]
fn connections_behind_a_limit_are_still_answered() {
    let cluster = Launch::new("--workers 2 --max-inflight 1").start();
    let address = cluster.address();
    // One worker at its limit only keeps a connection, the other one still owes an answer.
    let mut idle = Client::held(&address);
    let mut open = open_request(&address);
    let mut waiting: Vec<Client> = (0..10).map(|_| Client::to(&address)).collect();
    waiting.iter_mut().for_each(|client| client.send(GET));
    cluster.signal(Signal::SIGTERM);
    cluster.event("draining", 0);
    idle.assert_closed();
    drop(idle);
    open.ask(b"12345").assert_hello();
    drop(open);
    // Each closes after its answer, which lets the next one in.
    for mut client in waiting {
        client.receive().assert_hello();
    }
    let ended = cluster.wait();
    assert_in_order(&ended);
    assert_eq!(ended.summary().accepted, 12);
}

#[test]
fn a_worker_that_hangs_is_killed_after_the_grace_period() {
    for policy in ["--policy rr", "--policy none"] {
        let cluster = Launch::new(&format!("--workers 2 --grace 300ms {policy}")).start();
        let address = cluster.address();
        get(&address).expect("an answer").assert_hello();
        machine::suspend(cluster.worker_pids()[0]);
        let ended = cluster.stop(Signal::SIGTERM);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let kills = ended.events.iter().filter(|event| event["event"] == "kill");
        assert_eq!(kills.count(), 1, "{ended:?}");
        assert_port_free(&address);
    }
}

#[test]
fn a_signal_during_the_start_ends_it() {
    let cluster = Launch::new("--workers 4").start_unready();
    // Once the first worker runs, a signal no longer just kills the primary.
    eventually("a worker to be started", || (!cluster.family().is_empty()).then_some(()));
    let ended = cluster.stop(Signal::SIGTERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.errors, "", "{ended:?}");
    ended.summary().assert_clean(0);
}

#[test]
fn a_unix_path_is_gone_after_the_end() {
    let folder = tempfile::tempdir().expect("a folder");
    for policy in ["--policy rr", "--policy none", "--policy none --accept uring-multishot"] {
        let path = folder.path().join("socket");
        let address = format!("unix:{}", path.display());
        let cluster = Launch::new(&format!("--workers 2 {policy}")).listen(&address).start();
        let mut open = open_request(&address);
        cluster.signal(Signal::SIGTERM);
        eventually("the path to be gone", || (!path.exists()).then_some(()));
        open.ask(b"12345").assert_hello();
        drop(open);
        assert_in_order(&cluster.wait());
        assert!(!path.exists());
    }
}

#[test]
fn serving_goes_on_for_the_drain_delay_and_a_second_signal_ends_that() {
    let cluster = Launch::new("--workers 2 --drain-delay 10m").start();
    cluster.signal(Signal::SIGTERM);
    cluster.event("stopping", 0);
    (0..10).for_each(|_| get(&cluster.address()).expect("it still accepts").assert_hello());
    // Longer than the time in which a second signal counts as an echo of the first.
    std::thread::sleep(Duration::from_millis(100));
    let ended = cluster.stop(Signal::SIGTERM);
    assert_in_order(&ended);
    assert_eq!(ended.summary().accepted, 10);
}
