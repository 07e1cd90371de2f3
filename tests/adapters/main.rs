//! The adapters, each with real clients. This program is the primary of every test. Started by a
//! test, it is a worker that echoes through the adapter named by its environment.

mod client;
#[path = "../common/headers.rs"]
mod headers;
mod promises;
mod proxied;
mod server;
mod stage;
#[path = "../common/wait.rs"]
mod wait;

use std::process::ExitCode;
use std::time::Duration;

use clusterlb::{Policy, WorkerCounts};
use libtest_mimic::{Arguments, Trial};

use client::Client;
use server::Adapter;
use stage::{Stage, eventually, is_refused};

/// Concurrent clients of the largest test.
const CLIENTS: usize = 1000;
/// Concurrent clients of the other tests.
const SOME_CLIENTS: usize = 120;

/// A test for every adapter, with its name.
type Test = (&'static str, fn(Adapter));

/// The tests that every adapter must pass.
const TESTS: [Test; 10] = [
    ("a_thousand_connections_are_served_at_once", a_thousand_connections_are_served_at_once),
    ("open_requests_are_answered_when_the_worker_leaves", open_requests_are_answered_under_rr),
    ("the_same_when_workers_accept_by_themselves", open_requests_are_answered_under_none),
    ("connected_clients_are_answered", connected_clients_are_answered),
    ("connected_clients_may_be_silent_at_first", connected_clients_may_be_silent_at_first),
    ("every_way_to_end_is_counted", every_way_to_end_is_counted),
    ("unix_sockets_are_served", unix_sockets_are_served),
    ("clients_are_those_that_a_balancer_names", proxied::clients_are_those_that_are_named),
    ("a_connection_without_a_header_is_closed", proxied::one_without_a_header_is_closed),
    ("late_headers_hold_nothing_up_and_have_a_limit", proxied::late_headers),
];

/// The tests of single adapters.
const MORE_TESTS: [(&str, fn()); 4] = [
    ("axum::handlers_know_the_client", handlers_know_the_client),
    (
        "axum::silent_clients_do_not_keep_a_worker_from_leaving",
        silent_clients_do_not_keep_a_worker_from_leaving,
    ),
    ("uring::reads_that_were_given_up_keep_nothing_open", reads_that_were_given_up),
    ("every_type_has_its_promise", promises::every_type_has_its_promise),
];

fn main() -> ExitCode {
    if clusterlb::is_worker() {
        server::main();
        return ExitCode::SUCCESS;
    }
    let mut trials: Vec<Trial> = Vec::new();
    for adapter in Adapter::ALL {
        for (name, test) in TESTS {
            let run = move || {
                test(adapter);
                Ok(())
            };
            trials.push(Trial::test(format!("{adapter}::{name}"), run));
        }
    }
    for (name, test) in MORE_TESTS {
        let run = move || {
            test();
            Ok(())
        };
        trials.push(Trial::test(name, run));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Every connection was claimed and finished.
fn assert_books(counts: &[WorkerCounts], connections: usize) {
    assert_eq!(claimed_and_finished(counts), connections, "{counts:?}");
}

fn claimed_and_finished(counts: &[WorkerCounts]) -> usize {
    for one in counts {
        assert_eq!((one.finished, one.aborted), (one.claimed, 0), "{counts:?}");
    }
    counts.iter().map(|one| usize::try_from(one.claimed).expect("few")).sum()
}

fn a_thousand_connections_are_served_at_once(adapter: Adapter) {
    let mut stage = Stage::new(adapter, Policy::Rr, 2);
    let address = stage.serve("127.0.0.1:0");
    let mut clients: Vec<Client> =
        (0..CLIENTS).map(|_| Client::connect(adapter, &address)).collect();
    for round in 0..2 {
        clients.iter_mut().for_each(|client| client.send(&format!("round {round}")));
        for client in &mut clients {
            assert_eq!(client.receive(), format!("round {round}"));
        }
    }
    drop(clients);
    let counts = stage.end();
    assert_books(&counts, CLIENTS);
    assert!(counts.iter().all(|one| one.claimed > 0), "{counts:?}");
}

fn open_requests_are_answered_under_rr(adapter: Adapter) {
    open_requests_are_answered(adapter, Policy::Rr);
}

fn open_requests_are_answered_under_none(adapter: Adapter) {
    open_requests_are_answered(adapter, Policy::None);
}

fn open_requests_are_answered(adapter: Adapter, policy: Policy) {
    let mut stage = Stage::new(adapter, policy, 2);
    let address = stage.serve("127.0.0.1:0");
    let mut clients: Vec<Client> =
        (0..CLIENTS).map(|_| Client::connect(adapter, &address)).collect();
    clients.iter_mut().for_each(|client| client.begin("answered"));
    let looks = leave_and_look(&mut stage, &address);
    for client in &mut clients {
        assert_eq!(client.complete("answered"), "answered");
    }
    drop(clients);
    // The connection attempts of the test may be counted too, or may have come too late.
    let counted = claimed_and_finished(&stage.end());
    assert!((CLIENTS..CLIENTS + looks).contains(&counted), "{counted}, {looks} looks");
}

/// Asks all workers to leave, and connects to the address until it is closed. Returns the number of
/// attempts.
fn leave_and_look(stage: &mut Stage, address: &str) -> usize {
    stage.leave();
    let mut looks = 0;
    eventually("the address to be closed", || {
        looks += 1;
        is_refused(address).then_some(())
    });
    assert!(!stage.has_left(), "workers wait for their connections");
    looks
}

/// When the workers are told to leave, possibly none of the connections has been accepted, and none
/// read.
fn connected_clients_are_answered(adapter: Adapter) {
    let mut stage = Stage::new(adapter, Policy::Rr, 2);
    let address = stage.serve("127.0.0.1:0");
    let mut clients: Vec<Client> =
        (0..SOME_CLIENTS).map(|_| Client::connect(adapter, &address)).collect();
    clients.iter_mut().for_each(|client| client.send("early"));
    stage.leave();
    for mut client in clients {
        assert_eq!(client.receive(), "early");
    }
    assert_books(&stage.end(), SOME_CLIENTS);
}

/// The requests come after the worker has accepted its last connection.
fn connected_clients_may_be_silent_at_first(adapter: Adapter) {
    let mut stage = Stage::new(adapter, Policy::Rr, 2);
    let address = stage.serve("127.0.0.1:0");
    let clients: Vec<Client> =
        (0..SOME_CLIENTS).map(|_| Client::connect(adapter, &address)).collect();
    let looks = leave_and_look(&mut stage, &address);
    for mut client in clients {
        client.send("late");
        assert_eq!(client.receive(), "late");
    }
    let counted = claimed_and_finished(&stage.end());
    assert!((SOME_CLIENTS..SOME_CLIENTS + looks).contains(&counted), "{counted}, {looks} looks");
}

fn silent_clients_do_not_keep_a_worker_from_leaving() {
    let mut stage = Stage::new(Adapter::Axum, Policy::Rr, 1);
    stage.first_bytes = Duration::from_millis(1);
    let address = stage.serve("127.0.0.1:0");
    let mut client = Client::connect(Adapter::Axum, &address);
    stage.leave();
    client.expect_end();
    assert_books(&stage.end(), 1);
}

fn every_way_to_end_is_counted(adapter: Adapter) {
    let mut stage = Stage::new(adapter, Policy::Rr, 2);
    let address = stage.serve("127.0.0.1:0");
    for _ in 0..SOME_CLIENTS / 4 {
        // Disconnected without a request.
        drop(Client::connect(adapter, &address));
        // Disconnected without waiting for the answer.
        Client::connect(adapter, &address).send("unread");
        // Disconnected in the middle of a request.
        Client::connect(adapter, &address).begin("half of it");
        // The server fails.
        let mut client = Client::connect(adapter, &address);
        client.send(server::PANIC);
        client.expect_end();
    }
    let mut client = Client::connect(adapter, &address);
    client.send("still there");
    assert_eq!(client.receive(), "still there");
    drop(client);
    assert_books(&stage.end(), SOME_CLIENTS + 1);
}

fn unix_sockets_are_served(adapter: Adapter) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut stage = Stage::new(adapter, Policy::Rr, 1);
    let address = stage.serve(&format!("unix:{}", folder.path().join("socket").display()));
    let mut client = Client::connect(adapter, &address);
    client.send("by path");
    assert_eq!(client.receive(), "by path");
    drop(client);
    assert_books(&stage.end(), 1);
}

fn handlers_know_the_client() {
    let mut stage = Stage::new(Adapter::Axum, Policy::Rr, 1);
    let address = stage.serve("127.0.0.1:0");
    let mut client = Client::connect(Adapter::Axum, &address);
    let own = client.own_address();
    client.send(server::WHO);
    assert_eq!(client.receive(), own);
    drop(client);
    assert_books(&stage.end(), 1);
}

/// The kernel still has a buffer to fill when the server drops the connection.
fn reads_that_were_given_up() {
    let mut stage = Stage::new(Adapter::Uring, Policy::Rr, 1);
    let address = stage.serve("127.0.0.1:0");
    let mut client = Client::connect(Adapter::Uring, &address);
    client.send(server::GIVE_UP);
    client.expect_end();
    assert_books(&stage.end(), 1);
}
