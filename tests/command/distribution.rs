//! Which worker gets the connections: exactly even by the primary, and as the kernel does by each
//! mechanism.

use crate::common::books::assert_even;
use crate::common::{Client, Cluster, GET, GET_CLOSE, Launch, eventually, get, get_from, machine};

#[test]
fn round_robin_is_exact_for_one_client_after_another() {
    let cluster = Launch::new("--workers 8").start();
    for _ in 0..83 {
        get(&cluster.address()).expect("an answer").assert_hello();
    }
    let summary = cluster.end();
    summary.assert_clean(83);
    summary.assert_even();
    assert_eq!(summary.workers.len(), 8);
    let requests: u64 = summary.workers.iter().map(|one| one.requests).sum();
    assert_eq!(requests, 83);
}

#[test]
fn round_robin_is_exact_for_many_clients_at_once() {
    let cluster = Launch::new("--workers 8 --credits 256").start();
    get_from(&cluster.address(), 64, 13);
    let summary = cluster.end();
    summary.assert_clean(832);
    assert_eq!(summary.shares(), [104; 8]);
    assert!((summary.top_two_percent - 25.0).abs() < 1e-9, "{summary:?}");
    assert!((summary.max_over_mean - 1.0).abs() < 1e-9, "{summary:?}");
}

#[test]
fn skipping_busy_workers_excludes_none() {
    let cluster = Launch::new("--workers 8").with_defaults().start();
    get_from(&cluster.address(), 64, 13);
    // How even it is depends on the load of each worker's CPU; a late worker may lose its whole
    // share to the others. But it is not excluded: of clients that stay connected, every worker
    // gets some.
    let (mut clients, mut left) = (Vec::new(), cluster.worker_pids());
    eventually("every worker to hold a client", || {
        let before = clients.len();
        clients.extend((0..32).map(|_| Client::held(&cluster.address())));
        let found = holders(&cluster, &clients[before..], cluster.port());
        left.retain(|pid| !found.contains(pid));
        left.is_empty().then_some(())
    });
    let accepted = 832 + clients.len() as u64;
    drop(clients);
    let summary = cluster.end();
    let expected = (accepted, 0, 0);
    assert_eq!((summary.accepted, summary.dropped, summary.aborted), expected, "{summary:?}");
    assert!(summary.shares().iter().all(|share| *share > 0), "{summary:?}");
}

/// The workers that hold these clients' connections.
fn holders(cluster: &Cluster, clients: &[Client], port: u16) -> Vec<u32> {
    let ports: Vec<u16> = clients.iter().map(Client::port).collect();
    machine::holders(&cluster.worker_pids(), &ports, port)
}

#[test]
fn every_listener_has_its_own_rotation() {
    let cluster = Launch::new("--workers 4")
        .listen("127.0.0.1:0")
        .listen("127.0.0.2:0")
        .listen("127.0.0.1:0")
        .start();
    let addresses = cluster.addresses();
    let mut clients: Vec<Vec<Client>> = addresses.iter().map(|_| vec![]).collect();
    // An order in which one common rotation would be uneven for each listener.
    for round in 0..10 {
        for (place, address) in addresses.iter().enumerate() {
            for _ in 0..=(round + place) % 2 {
                clients[place].push(Client::held(address));
            }
        }
    }
    for (address, clients) in addresses.iter().zip(&clients) {
        let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
        let holders = holders(&cluster, clients, port.expect("a TCP address"));
        let count = |pid| holders.iter().filter(|holder| **holder == pid).count() as u64;
        let counts: Vec<u64> = cluster.worker_pids().into_iter().map(count).collect();
        assert_even(&counts);
        assert_eq!(counts.iter().sum::<u64>(), clients.len() as u64);
    }
    let count: usize = clients.iter().map(Vec::len).sum();
    drop(clients);
    cluster.end().assert_clean(count as u64);
}

#[test]
fn workers_at_the_limit_are_passed_over() {
    let cluster = Launch::new("--workers 2 --max-inflight 3").start();
    let clients: Vec<Client> = (0..6).map(|_| Client::held(&cluster.address())).collect();
    let first = cluster.worker_pids()[0];
    let holders = holders(&cluster, &clients, cluster.port());
    let (mut busy, mut idle) = (vec![], vec![]);
    for (client, holder) in clients.into_iter().zip(holders) {
        if holder == first { &mut busy } else { &mut idle }.push(client);
    }
    assert_eq!((busy.len(), idle.len()), (3, 3));
    drop(idle);
    for _ in 0..12 {
        get(&cluster.address()).expect("an answer").assert_hello();
    }
    drop(busy);
    let summary = cluster.end();
    summary.assert_clean(18);
    assert_eq!(summary.shares(), [3, 15]);
}

#[test]
fn clients_wait_in_the_backlog_while_all_workers_are_at_the_limit() {
    const ROUNDS: usize = 300;
    let cluster = Launch::new("--workers 2 --max-inflight 2").start();
    let address = cluster.address();
    let mut held: std::collections::VecDeque<Client> =
        (0..4).map(|_| Client::held(&address)).collect();
    let mut waiting = std::collections::VecDeque::new();
    for _ in 0..3 {
        let mut client = Client::to(&address);
        client.send(GET);
        waiting.push_back(client);
    }
    for round in 0..ROUNDS {
        // Each finished connection lets exactly one waiting client in, the first one: with a lost
        // wake-up it would wait forever.
        if round % 2 == 0 {
            held.pop_front();
        } else {
            held.pop_front().expect("a client is held").ask(GET_CLOSE).assert_hello();
        }
        let mut next = waiting.pop_front().expect("a client waits");
        next.receive().assert_hello();
        held.push_back(next);
        let mut client = Client::to(&address);
        client.send(GET);
        waiting.push_back(client);
    }
    drop(held);
    for mut client in waiting {
        client.receive().assert_hello();
    }
    let summary = cluster.end();
    summary.assert_clean(4 + 3 + ROUNDS as u64);
    assert!(summary.pauses > 0, "{summary:?}");
}

#[test]
fn a_limit_of_one_serves_a_crowd() {
    for launch in [
        Launch::new("--workers 3 --max-inflight 1"),
        Launch::new("--workers 3 --max-inflight 1").with_defaults(),
    ] {
        let cluster = launch.start();
        get_from(&cluster.address(), 24, 20);
        let summary = cluster.end();
        assert_eq!((summary.accepted, summary.aborted), (480, 0), "{summary:?}");
    }
}

fn kernel_chooses(mechanism: &str) -> Vec<u64> {
    let arguments = format!("--workers 4 --policy none --accept {mechanism}");
    let cluster = Launch::new(&arguments).start();
    let listening = cluster.event("listening", 0);
    assert_eq!((&listening["policy"], &listening["accept"]), (&"none".into(), &mechanism.into()));
    get_from(&cluster.address(), 16, 20);
    let summary = cluster.end();
    summary.assert_clean(320);
    summary.shares()
}

#[test]
fn epoll_answers_every_client() {
    kernel_chooses("epoll");
}

#[test]
fn exclusive_epoll_answers_every_client() {
    kernel_chooses("epoll-exclusive");
}

#[test]
fn single_ring_accepts_answer_every_client() {
    kernel_chooses("uring");
}

#[test]
fn multishot_ring_accepts_give_everything_to_one_worker() {
    let mut shares = kernel_chooses("uring-multishot");
    shares.sort_unstable();
    assert_eq!(shares, [0, 0, 0, 320]);
}

#[test]
fn reuseport_gives_something_to_every_worker() {
    let shares = kernel_chooses("reuseport");
    assert!(shares.iter().all(|share| *share > 0), "{shares:?}");
}

#[test]
fn several_listeners_are_accepted_from_by_every_mechanism() {
    for mechanism in ["epoll", "epoll-exclusive", "uring", "uring-multishot", "reuseport"] {
        let arguments = format!("--workers 3 --policy none --accept {mechanism}");
        let cluster = Launch::new(&arguments).listen("127.0.0.1:0").listen("127.0.0.1:0").start();
        for address in cluster.addresses() {
            get_from(&address, 2, 10);
        }
        cluster.end().assert_clean(40);
    }
}

#[test]
fn the_environment_sets_the_policy_and_the_flag_wins() {
    for (value, arguments, policy) in [
        ("none", "--workers 1", "none"),
        ("rr", "--workers 1", "rr"),
        ("none", "--workers 1 --policy rr", "rr"),
    ] {
        let launch = Launch::new(arguments).variable("CLUSTERLB_SCHED_POLICY", value);
        let cluster = launch.start();
        assert_eq!(cluster.event("listening", 0)["policy"], policy);
        get(&cluster.address()).expect("an answer").assert_hello();
        cluster.end().assert_clean(1);
    }
    Launch::new("--workers 1")
        .variable("CLUSTERLB_SCHED_POLICY", "nonsense")
        .refused()
        .assert_refusal(
            2,
            &["CLUSTERLB_SCHED_POLICY=nonsense", "rr, least, fastest, central, sticky, none"],
        );
}

#[test]
fn a_client_that_is_silent_at_first_is_served_whenever_connections_are_accepted() {
    for choice in ["auto", "on", "off"] {
        let cluster = Launch::new(&format!("--workers 2 --defer-accept {choice}")).start();
        let mut silent = Client::to(&cluster.address());
        get(&cluster.address()).expect("an answer").assert_hello();
        silent.ask(GET_CLOSE).assert_hello();
        // A client that sends nothing is accepted, too, but later.
        let mute = Client::to(&cluster.address());
        let counted = eventually("every connection to be accepted", || {
            let counted = machine::holders(&cluster.worker_pids(), &[mute.port()], cluster.port());
            (!counted.is_empty()).then_some(counted.len())
        });
        assert_eq!(counted, 1, "{choice}");
        drop(mute);
        cluster.end().assert_clean(3);
    }
}
