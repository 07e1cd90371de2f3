//! A lack of descriptors, in the primary and in its workers. Connections without one wait in the
//! kernel and are served later; nothing spins and nothing leaks.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::room::Room;
use crate::common::cluster::is_epoll;
use crate::common::{
    Client, Cluster, GET, GET_CLOSE, Launch, eventually, get, get_from, has_program, machine,
};

/// Every way to accept.
const POLICIES: [&str; 7] = [
    "--policy rr",
    "--policy rr --runtime tokio-uring",
    "--policy none --accept epoll",
    "--policy none --accept epoll-exclusive",
    "--policy none --accept uring",
    "--policy none --accept uring-multishot",
    "--policy none --accept reuseport",
];
/// Connections that a worker may already have asked to receive when its limit of descriptors falls:
/// as many as it had descriptors for.
const OFFERED_MAX: usize = 160;
/// Twice the age at which a worker reads its limit again.
const LIMIT_AGE: Duration = Duration::from_millis(100);
/// Clients at once, far more than two workers with this limit can hold.
const CLIENTS: usize = 400;

/// The command with a hard limit of descriptors, which it cannot raise.
fn limited(descriptors: u32, arguments: &str) -> Option<Launch> {
    let limit = format!("--nofile={descriptors}:{descriptors}");
    has_program("prlimit").then(|| Launch::new(arguments).under(&["prlimit", &limit, "--"]))
}

/// More clients than descriptors, each with a request on a kept connection.
fn crowd(cluster: &Cluster) -> VecDeque<Client> {
    let connect = |_| {
        let mut client = Client::to(&cluster.address());
        client.send(GET);
        client
    };
    (0..CLIENTS).map(connect).collect()
}

/// The workers and the primary.
fn processes(cluster: &Cluster) -> Vec<u32> {
    let mut processes = cluster.worker_pids();
    processes.push(cluster.pid());
    processes
}

/// Fails if an idle cluster uses half a CPU. CPU time is not wall time: a busy machine only reduces
/// it.
fn assert_quiet(cluster: &Cluster) {
    let used_ms = || processes(cluster).into_iter().map(machine::cpu_time_ms).sum::<u64>();
    let before_ms = used_ms();
    sleep(Duration::from_secs(1));
    let spent_ms = used_ms() - before_ms;
    assert!(spent_ms < 500, "{spent_ms} ms of processor time in an idle second");
}

fn surplus_waits(policy: &str) {
    let Some(_room) = Room::for_clients(CLIENTS) else { return };
    let Some(launch) = limited(128, &format!("--workers 2 {policy}")) else { return };
    let cluster = launch.start();
    let mut clients = crowd(&cluster);
    clients[0].receive().assert_hello();
    assert_quiet(&cluster);
    clients[0].ask(GET).assert_hello();
    // Each client that leaves makes room for the next, in the order of arrival.
    clients.pop_front().expect("there is a first").ask(GET_CLOSE).assert_hello();
    for mut client in clients {
        client.receive().assert_hello();
    }
    get(&cluster.address()).expect("an answer").assert_hello();
    let ended = cluster.stop(Signal::SIGTERM);
    assert_eq!((ended.code, ended.errors.as_str()), (Some(0), ""), "{ended:?}");
    let summary = ended.summary();
    assert_eq!((summary.dropped, summary.aborted), (0, 0), "{ended:?}");
    assert_eq!(summary.accepted, CLIENTS as u64 + 1);
    let requests: u64 = summary.workers.iter().map(|one| one.requests).sum();
    assert_eq!(requests, CLIENTS as u64 + 3);
}

#[test]
fn more_clients_than_descriptors_wait_and_are_served_by_round_robin() {
    POLICIES[..2].iter().for_each(|policy| surplus_waits(policy));
}

#[test]
fn more_clients_than_descriptors_wait_for_workers_that_poll() {
    POLICIES[2..4].iter().for_each(|policy| surplus_waits(policy));
}

#[test]
fn more_clients_than_descriptors_wait_for_workers_that_accept_by_ring() {
    POLICIES[4..].iter().for_each(|policy| surplus_waits(policy));
}

#[test]
fn a_burst_beyond_the_primarys_own_descriptors_is_served() {
    let Some(_room) = Room::for_clients(CLIENTS) else { return };
    let Some(launch) = limited(128, "--workers 2") else { return };
    let cluster = launch.start();
    for _ in 0..5 {
        // All of them are in the backlog when the primary sees the first.
        machine::suspend(cluster.pid());
        let mut clients: Vec<Client> =
            (0..CLIENTS).map(|_| Client::to(&cluster.address())).collect();
        clients.iter_mut().for_each(|client| client.send(GET_CLOSE));
        machine::signal(cluster.pid(), Signal::SIGCONT);
        clients.iter_mut().for_each(|client| client.receive().assert_hello());
    }
    cluster.end().assert_clean(5 * CLIENTS as u64);
}

#[test]
fn a_worker_can_be_replaced_while_descriptors_are_short() {
    let Some(_room) = Room::for_clients(CLIENTS) else { return };
    let Some(launch) = limited(128, "--workers 2") else { return };
    let cluster = launch.start();
    let mut clients = crowd(&cluster);
    clients[0].receive().assert_hello();
    let pids = cluster.worker_pids();
    let victim = machine::holder(&pids, clients[0].port(), cluster.port());
    machine::signal(victim, Signal::SIGKILL);
    cluster.event("online", 2);
    // Connections that the killed worker held unanswered are lost and counted; all others are
    // served, though no longer in order.
    let lost = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for mut client in clients.drain(1..) {
            let lost = &lost;
            scope.spawn(move || match client.try_receive(true) {
                Ok(answer) => answer.assert_hello(),
                Err(_) => _ = lost.fetch_add(1, Ordering::Relaxed),
            });
        }
    });
    let summary = cluster.end();
    assert_eq!((summary.accepted, summary.dropped), (CLIENTS as u64, 0), "{summary:?}");
    assert!(lost.into_inner() < summary.aborted, "in addition to the first one: {summary:?}");
}

/// How many of these get no answer.
fn lost_of(clients: VecDeque<Client>) -> usize {
    let is_lost = |mut client: Client| match client.try_receive(true) {
        Ok(answer) => {
            answer.assert_hello();
            false
        }
        Err(_) => true,
    };
    clients.into_iter().map(is_lost).filter(|is_lost| *is_lost).count()
}

#[test]
fn a_limit_that_falls_at_run_time_loses_nothing_but_what_is_claimed() {
    let Some(_room) = Room::for_clients(CLIENTS) else { return };
    for mechanism in
        ["--policy rr", "--policy rr --runtime tokio-uring", "--policy none --accept epoll"]
    {
        let Some(launch) = limited(160, &format!("--workers 2 {mechanism}")) else { return };
        let cluster = launch.start();
        // Before it falls, both workers serve, and some of their descriptors are in use.
        let mut held: Vec<Client> = (0..8).map(|_| Client::held(&cluster.address())).collect();
        processes(&cluster).into_iter().for_each(|pid| machine::set_descriptor_limit(pid, 80));
        // A worker that has something to do after this time reads its limit again.
        sleep(LIMIT_AGE);
        held.iter_mut().for_each(|client| client.ask(GET).assert_hello());
        // A worker on a ring has already asked the kernel for more than the new limit allows; a
        // burst may exceed it. Those connections count as claimed.
        let lost = lost_of(crowd(&cluster));
        let is_ring = mechanism == "--policy rr" && !is_epoll();
        assert!(lost <= if is_ring { 2 * OFFERED_MAX } else { 0 }, "{mechanism}: {lost} lost");
        assert_eq!(lost_of(crowd(&cluster)), 0, "{mechanism}");
        held.iter_mut().for_each(|client| client.ask(GET).assert_hello());
        // And after the limit has risen again.
        processes(&cluster).into_iter().for_each(|pid| machine::set_descriptor_limit(pid, 160));
        assert_eq!(lost_of(crowd(&cluster)), 0, "{mechanism}");
        drop(held);
        let summary = cluster.end();
        assert_eq!((summary.accepted, summary.dropped), (3 * CLIENTS as u64 + 8, 0), "{summary:?}");
        assert!(summary.aborted <= lost as u64, "{mechanism}: {lost} lost, {summary:?}");
    }
}

#[test]
fn draining_while_descriptors_are_short_answers_every_client() {
    let Some(_room) = Room::for_clients(CLIENTS) else { return };
    for policy in ["--policy rr", "--policy none --accept epoll", "--policy none --accept uring"] {
        let Some(launch) = limited(128, &format!("--workers 2 {policy}")) else { return };
        let cluster = launch.start();
        let mut clients = crowd(&cluster);
        clients[0].receive().assert_hello();
        cluster.signal(Signal::SIGTERM);
        clients.drain(1..).for_each(|mut client| client.receive().assert_hello());
        drop(clients);
        let ended = cluster.wait();
        assert_eq!((ended.code, ended.errors.as_str()), (Some(0), ""), "{ended:?}");
        let summary = ended.summary();
        assert_eq!((summary.accepted, summary.dropped), (CLIENTS as u64, 0), "{summary:?}");
        assert_eq!(summary.aborted, 0, "{summary:?}");
    }
}

#[test]
fn a_limit_that_is_too_low_to_begin_with_is_refused() {
    let Some(launch) = limited(40, "--workers 2") else { return };
    launch.refused().assert_refusal(3, &["limit of 40 descriptors is too low", "ulimit -Hn"]);
}

#[test]
fn the_soft_limit_is_raised_to_the_hard_one() {
    let Some(_room) = Room::for_clients(CLIENTS) else { return };
    if !has_program("prlimit") {
        return;
    }
    let launch = Launch::new("--workers 2").under(&["prlimit", "--nofile=64:2048", "--"]);
    let cluster = launch.start();
    // All at once, which 64 descriptors per process would not allow.
    let mut clients = crowd(&cluster);
    clients.iter_mut().for_each(|client| client.receive().assert_hello());
    drop(clients);
    cluster.end().assert_clean(CLIENTS as u64);
}

#[test]
fn no_descriptor_leaks() {
    for policy in POLICIES {
        let cluster = Launch::new(&format!("--workers 2 {policy}")).start();
        let count = || -> Vec<usize> {
            processes(&cluster).into_iter().map(machine::descriptor_count).collect()
        };
        // After a few requests, all descriptors that stay open are open.
        get_from(&cluster.address(), 4, 5);
        let before = count();
        get_from(&cluster.address(), 8, 250);
        eventually("descriptors to be closed", || {
            count().iter().zip(&before).all(|(now, before)| now <= before).then_some(())
        });
        cluster.end().assert_clean(2020);
    }
}
