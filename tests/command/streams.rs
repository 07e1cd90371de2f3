//! The two protocols without requests, invalid bytes, and clients that reset.

use std::io::Write as _;

use crate::common::{Client, Cluster, GET, Launch, get, get_from, machine};

const BYTES: usize = 4_000_000;

/// Bytes in which a shift or a loss shows.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|place| (place * 31 + place / 251).to_le_bytes()[0]).collect()
}

fn runtimes(arguments: &str) -> [Cluster; 2] {
    ["ring", "tokio-uring"]
        .map(|name| Launch::new(&format!("--workers 2 --runtime {name} {arguments}")).start())
}

#[test]
fn echo_gives_every_byte_back_and_understands_a_half_close() {
    for cluster in runtimes("--serve echo") {
        let mut clients: Vec<Client> = (0..4).map(|_| Client::to(&cluster.address())).collect();
        let bytes = pattern(BYTES);
        std::thread::scope(|scope| {
            for client in &mut clients {
                scope.spawn(|| {
                    let mut writer = client.writer();
                    let writing = scope.spawn(|| writer.write_all(&bytes).map(|()| drop(writer)));
                    let back = client.try_receive_bytes(BYTES).expect("everything comes back");
                    writing.join().expect("no panic").expect("everything is taken");
                    assert!(back == bytes, "the bytes differ");
                    client.send(b"the end");
                    client.half_close();
                    assert_eq!(client.rest().expect("an orderly end"), b"the end");
                });
            }
        });
        drop(clients);
        cluster.end().assert_clean(4);
    }
}

#[test]
fn echo_waits_for_a_reader_that_does_not_read() {
    for cluster in runtimes("--serve echo") {
        let pids = cluster.worker_pids();
        let resident = || pids.iter().map(|pid| machine::resident_kib(*pid)).sum::<u64>();
        let before_kib = resident();
        let mut client = Client::to(&cluster.address());
        let (mut writer, bytes) = (client.writer(), pattern(40_000_000));
        let expected = bytes.clone();
        let writing = std::thread::spawn(move || writer.write_all(&bytes));
        let mut other = Client::to(&cluster.address());
        for _ in 0..100 {
            other.send(b"ping");
            assert_eq!(other.try_receive_bytes(4).expect("an echo"), b"ping");
        }
        let after_kib = resident();
        assert!(after_kib < before_kib + 20_000, "{before_kib} KiB grew to {after_kib} KiB");
        let back = client.try_receive_bytes(expected.len()).expect("everything comes back");
        assert!(back == expected, "the bytes differ");
        writing.join().expect("no panic").expect("everything was taken");
        drop((client, other));
        cluster.end().assert_clean(2);
    }
}

#[test]
fn discard_takes_everything_and_says_nothing() {
    for cluster in runtimes("--serve discard") {
        let mut client = Client::to(&cluster.address());
        client.send(&pattern(BYTES));
        client.half_close();
        client.assert_closed();
        drop(client);
        cluster.end().assert_clean(1);
    }
}

#[test]
fn open_streams_are_cut_when_the_grace_period_is_over() {
    for cluster in runtimes("--serve echo --grace 300ms") {
        let mut client = Client::to(&cluster.address());
        client.send(b"ping");
        assert_eq!(client.try_receive_bytes(4).expect("an echo"), b"ping");
        assert_eq!(cluster.end().aborted, 1);
        // An end or a reset, but no bytes.
        assert!(client.rest().unwrap_or_default().is_empty());
    }
}

#[test]
fn garbage_is_answered_or_closed_without_harm() {
    for cluster in runtimes("") {
        for round in 0..60_usize {
            let mut client = Client::to(&cluster.address());
            let garbage: Vec<u8> = pattern(3000)
                .iter()
                .map(|byte| byte.wrapping_mul(round.to_le_bytes()[0]))
                .collect();
            // The server may have answered and closed before it has read everything.
            let _ = client.try_send(&garbage);
            client.try_half_close();
            let _ = client.rest();
            get(&cluster.address()).expect("an answer").assert_hello();
        }
        cluster.end().assert_clean(120);
    }
}

#[test]
fn resets_amid_a_request_are_survived() {
    // Clients that send nothing are accepted as well.
    for cluster in runtimes("--defer-accept off") {
        for bytes in [&b""[..], b"GET / HT", GET, &GET.repeat(1000)] {
            for _ in 0..20 {
                let mut client = Client::to(&cluster.address());
                client.send(bytes);
                client.reset();
            }
            get(&cluster.address()).expect("an answer").assert_hello();
        }
        cluster.end().assert_clean(84);
    }
}

#[test]
fn hundreds_of_clients_that_reset_while_they_wait_are_counted() {
    for policy in ["--policy rr", "--policy none --accept epoll", "--policy none --accept uring"] {
        let cluster = Launch::new(&format!("--workers 3 {policy}")).start();
        let mut processes = cluster.worker_pids();
        processes.push(cluster.pid());
        for _ in 0..3 {
            // No worker accepts, so all of them are reset in the backlog.
            processes.iter().copied().for_each(machine::suspend);
            let mut good: Vec<Client> = vec![];
            for place in 0..300 {
                let mut client = Client::to(&cluster.address());
                if place % 10 == 0 {
                    client.send(GET);
                    good.push(client);
                } else {
                    client.reset();
                }
            }
            processes
                .iter()
                .for_each(|pid| machine::signal(*pid, nix::sys::signal::Signal::SIGCONT));
            good.iter_mut().for_each(|client| client.receive().assert_hello());
        }
        let summary = cluster.end();
        summary.assert_clean(summary.accepted);
        assert!((90..=900).contains(&summary.accepted), "{summary:?}");
    }
}

#[test]
fn a_storm_of_resets_from_many_threads_is_survived() {
    let cluster = Launch::new("--workers 3").start();
    let address = cluster.address();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for place in 0..60 {
                    let mut client = Client::to(&address);
                    if place % 2 == 0 {
                        client.send(GET);
                    }
                    client.reset();
                }
            });
        }
    });
    get_from(&address, 4, 10);
    let summary = cluster.end();
    summary.assert_clean(summary.accepted);
}
