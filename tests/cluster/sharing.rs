//! Sharing listeners over time: closed and reopened, left, held, crowded.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::TcpStream;

use clusterlb::Signal;
use clusterlb::{Event, ForkOptions, ListenOptions, Policy};

use crate::puppet::{DESCRIPTORS, Order, Reply, Service};
use crate::stage::{PATIENCE, Stage, ask, eventually, greeter, kept, signal, until_refused};
use crate::trials;

trials!(
    a_listener_is_closed_and_opened_again,
    what_a_closing_listener_has_not_accepted_goes_to_others,
    what_a_worker_does_not_accept_goes_to_others,
    as_long_as_one_worker_lives_connections_are_accepted,
    without_workers_connections_are_refused,
    held_listeners_keep_connections_for_the_next_worker,
    an_address_can_be_opened_before_there_are_workers,
    many_connections_are_served_and_counted,
    threads_and_edges_are_woken_for_every_connection,
    more_connections_than_descriptors_wait_and_are_served,
    an_address_being_closed_is_given_to_a_worker_that_requests_it,
);

fn a_listener_is_closed_and_opened_again() {
    for policy in [Policy::Rr, Policy::None] {
        let mut stage = Stage::with(|settings| settings.policy = policy);
        let (workers, address) = stage.shared(2);
        for _ in 0..3 {
            stage.close(&workers[0], "127.0.0.1:0");
            eventually("the other one to get everything", || {
                (0..4).all(|_| greeter(&address) == 2).then_some(())
            });
            assert_eq!(stage.listen(&workers[0], "127.0.0.1:0"), address);
            eventually("both to get something", || {
                let greeted: Vec<u32> = (0..20).map(|_| greeter(&address)).collect();
                greeted.contains(&1).then_some(())
            });
        }
        for _ in 0..20 {
            // At once, before the primary has confirmed that everything of the first listener has
            // arrived.
            stage.close(&workers[0], "127.0.0.1:0");
            assert_eq!(stage.listen(&workers[0], "127.0.0.1:0"), address);
        }
        eventually("both to get something", || {
            let greeted: Vec<u32> = (0..20).map(|_| greeter(&address)).collect();
            (greeted.contains(&1) && greeted.contains(&2)).then_some(())
        });
        for worker in &workers {
            stage.close(worker, "127.0.0.1:0");
        }
        until_refused(&address);
        assert_eq!(stage.listen(&workers[1], "127.0.0.1:0"), address, "the port is remembered");
        assert_eq!(greeter(&address), 2);
        stage.end();
    }
}

fn what_a_closing_listener_has_not_accepted_goes_to_others() {
    let mut stage = Stage::new();
    let (idle, other) = (stage.puppet(), stage.puppet());
    let address = stage.serve(&idle, "127.0.0.1:0", Service::Ignore);
    stage.listen(&other, "127.0.0.1:0");
    // Every second connection goes to a worker that does not accept.
    let mut clients: Vec<TcpStream> =
        (0..10).map(|_| TcpStream::connect(&address).expect("a server listens")).collect();
    for client in clients.iter_mut().skip(1).step_by(2) {
        client.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
        client.peek(&mut [0]).expect("an answer");
    }
    stage.close(&idle, "127.0.0.1:0");
    for mut client in clients {
        client.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
        let mut text = String::new();
        client.read_to_string(&mut text).expect("an answer");
        assert_eq!(text, "worker 2\n");
    }
    idle.disconnect();
    let counts = stage.exit(&idle).1;
    assert_eq!((counts.claimed, counts.aborted, counts.returned), (0, 0, counts.assigned));
    assert_eq!(counts.assigned, 5);
    stage.end();
}

fn what_a_worker_does_not_accept_goes_to_others() {
    let mut stage = Stage::with(|settings| {
        settings.scheduling.hang_after_ns = Some(100_000_000);
    });
    let (idle, other) = (stage.puppet(), stage.puppet());
    let address = stage.serve(&idle, "127.0.0.1:0", Service::Ignore);
    stage.listen(&other, "127.0.0.1:0");
    let greeted: Vec<u32> = (0..10).map(|_| greeter(&address)).collect();
    assert_eq!(greeted, [2; 10]);
    stage.until("the idle worker to be noticed", |event| match event {
        Event::Hung { worker, taken_back } => (*worker == idle && *taken_back > 0).then_some(()),
        _ => None,
    });
    stage.end_by_force();
}

fn as_long_as_one_worker_lives_connections_are_accepted() {
    let mut stage = Stage::new();
    let (workers, address) = stage.shared(3);
    for (place, worker) in workers.iter().enumerate().take(2) {
        worker.kill(Signal::SIGKILL).expect("it is ours");
        // Even before the exit has been noticed.
        assert!(greeter(&address) > 1);
        stage.exit(worker);
        let left = 3 - u32::try_from(place + 1).expect("small");
        let greeted: BTreeSet<u32> = (0..6).map(|_| greeter(&address)).collect();
        assert_eq!(greeted.len(), left as usize, "{greeted:?}");
    }
    stage.end();
}

fn without_workers_connections_are_refused() {
    for policy in [Policy::Rr, Policy::None] {
        let mut stage = Stage::with(|settings| settings.policy = policy);
        let worker = stage.puppet();
        let address = stage.serve(&worker, "127.0.0.1:0", Service::Keep);
        let (mut open, _) = kept(&address);
        worker.kill(Signal::SIGKILL).expect("it is ours");
        let counts = stage.exit(&worker).1;
        assert_eq!(counts.aborted, 1);
        let mut rest = Vec::new();
        let _ = open.read_to_end(&mut rest);
        until_refused(&address);
        stage.end();
    }
}

fn held_listeners_keep_connections_for_the_next_worker() {
    for policy in [Policy::Rr, Policy::None] {
        let mut stage = Stage::with(|settings| {
            settings.policy = policy;
            settings.hold = true;
        });
        let first = stage.puppet();
        let address = stage.listen(&first, "127.0.0.1:0");
        assert_eq!(greeter(&address), 1);
        first.disconnect();
        stage.exit(&first);
        let mut waiting: Vec<TcpStream> =
            (0..5).map(|_| TcpStream::connect(&address).expect("the backlog has room")).collect();
        let second = stage.puppet();
        assert_eq!(stage.listen(&second, "127.0.0.1:0"), address);
        for client in &mut waiting {
            client.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
            let mut text = String::new();
            client.read_to_string(&mut text).expect("an answer");
            assert_eq!(text, "worker 2\n");
        }
        stage.end();
        until_refused(&address);
    }
}

fn an_address_can_be_opened_before_there_are_workers() {
    let mut stage = Stage::with(|settings| settings.start_closed = true);
    let any = "127.0.0.1:0".parse().expect("an address");
    let (_, address) = stage.cluster.hold(&any).expect("a free port");
    let (_, further) = stage.cluster.hold(&any).expect("another free port");
    let taken = stage.cluster.hold(&address.parse().expect("an address"));
    assert!(taken.is_err(), "this cluster holds the address");
    let client = TcpStream::connect(&address).expect("the backlog has room");
    let worker = stage.puppet();
    assert_eq!(stage.listen(&worker, "127.0.0.1:0"), address);
    assert_eq!(stage.listen(&worker, "127.0.0.1:0"), further);
    client.set_nonblocking(true).expect("it is a socket");
    let early = client.peek(&mut [0]).expect_err("nothing is accepted yet");
    assert_eq!(early.kind(), std::io::ErrorKind::WouldBlock);
    client.set_nonblocking(false).expect("it is a socket");
    stage.cluster.open().expect("the cluster lives");
    let mut text = String::new();
    let mut client = client;
    client.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    client.read_to_string(&mut text).expect("an answer");
    assert_eq!(text, "worker 1\n");
    stage.end();
}

fn many_connections_are_served_and_counted() {
    const CLIENTS: usize = 400;
    for policy in [Policy::Rr, Policy::None] {
        let mut stage = Stage::with(|settings| settings.policy = policy);
        let (workers, address) = stage.shared(3);
        let mut clients: Vec<TcpStream> =
            (0..CLIENTS).map(|_| TcpStream::connect(&address).expect("a server listens")).collect();
        let mut greeted: BTreeMap<String, usize> = BTreeMap::new();
        for client in &mut clients {
            client.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
            let mut text = String::new();
            client.read_to_string(&mut text).expect("an answer");
            *greeted.entry(text).or_default() += 1;
        }
        stage.cluster.disconnect().wait();
        let mut finished = 0;
        for worker in &workers {
            let counts = stage.exit(worker).1;
            let told = greeted.get(&format!("worker {}\n", worker.id())).copied().unwrap_or(0);
            assert_eq!((counts.finished, counts.aborted), (told as u64, 0), "{policy:?}");
            finished += counts.finished;
        }
        assert_eq!(finished, CLIENTS as u64);
    }
}

fn threads_and_edges_are_woken_for_every_connection() {
    for policy in [Policy::Rr, Policy::None] {
        let mut stage = Stage::with(|settings| settings.policy = policy);
        let worker = stage.puppet();
        let by_edges = stage.serve(&worker, "127.0.0.1:0", Service::KeepByEdges);
        let by_three = stage.serve(&worker, "127.0.0.1:0", Service::GreetByThree);
        for _ in 0..30 {
            kept(&by_edges);
            assert_eq!(greeter(&by_three), 1);
        }
        let crowd: Vec<TcpStream> =
            (0..100).map(|_| TcpStream::connect(&by_edges).expect("a server listens")).collect();
        for client in crowd {
            client.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
            assert_eq!(client.peek(&mut [0]).expect("a greeting"), 1);
        }
        worker.send(&Order::Release).expect("the puppet reads");
        stage.end();
    }
}

fn more_connections_than_descriptors_wait_and_are_served() {
    const CLIENTS: usize = 150;
    for policy in [Policy::Rr, Policy::None] {
        for service in [Service::Keep, Service::KeepByEdges] {
            let mut stage = Stage::with(|settings| settings.policy = policy);
            let scarce = ForkOptions::default().variable(DESCRIPTORS, "100");
            let worker = stage.puppet_with(scarce);
            let address = stage.serve(&worker, "127.0.0.1:0", service);
            let mut clients: Vec<TcpStream> = (0..CLIENTS)
                .map(|_| TcpStream::connect(&address).expect("the backlog has room"))
                .collect();
            let mut rounds = 0;
            eventually("everybody to be greeted", || {
                // Greeted clients disconnect, which makes room for others.
                let before = clients.len();
                clients.retain(|client| {
                    client.set_nonblocking(true).expect("it is a socket");
                    client.peek(&mut [0]).is_err()
                });
                if clients.len() < before {
                    worker.send(&Order::Release).expect("the puppet reads");
                    rounds += 1;
                }
                clients.is_empty().then_some(())
            });
            assert!(rounds > 1, "they had no room all at once");
            worker.send(&Order::Release).expect("the puppet reads");
            worker.disconnect();
            let counts = stage.exit(&worker).1;
            assert_eq!((counts.finished, counts.aborted), (CLIENTS as u64, 0), "{policy:?}");
            stage.end();
        }
    }
}

fn an_address_being_closed_is_given_to_a_worker_that_requests_it() {
    let mut stage = Stage::with(|settings| settings.scheduling.limits.inflight_max = Some(1));
    let first = stage.puppet();
    let address = stage.serve(&first, "127.0.0.1:0", Service::Keep);
    let (_open, _) = kept(&address);
    // A connection waits for the only worker, so its listener cannot be removed yet.
    let mut waiting = TcpStream::connect(&address).expect("the backlog has room");
    first.disconnect();
    let second = stage.puppet();
    let order = Order::Listen {
        address: "127.0.0.1:0".into(),
        options: ListenOptions::default(),
        service: Service::Greet,
    };
    second.send(&order).expect("the puppet reads");
    first.send(&Order::Release).expect("it still reads");
    waiting.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    let mut greeting = [0; 9];
    waiting.read_exact(&mut greeting).expect("an answer");
    assert_eq!(&greeting, b"worker 1\n");
    assert_eq!(stage.reply(&second), Reply::Serving { address: address.clone() });
    assert_eq!(ask(&address).expect("it serves"), "worker 2\n");
    signal(first.pid(), Signal::SIGTERM);
    stage.exit(&first);
    stage.end();
}
