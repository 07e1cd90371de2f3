//! Processes that die or hang: other workers serve their unclaimed connections, the rest is
//! counted, and the run continues.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::{Client, Cluster, GET, GET_CLOSE, Launch, Summary, eventually, get, machine};

/// Clients that send requests without a pause, each on a new connection.
struct Load {
    answered: AtomicU64,
    failed: AtomicU64,
    over: AtomicBool,
}

impl Load {
    fn ask_on(&self, address: &str) {
        while !self.over.load(Ordering::Relaxed) {
            let counter = match get(address) {
                Ok(response) => {
                    response.assert_hello();
                    &self.answered
                }
                Err(_) => &self.failed,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Runs `harm` while the cluster is under load, and returns the load's counts.
    fn during(cluster: &Cluster, harm: impl FnOnce(&Self)) -> (u64, u64) {
        let load =
            Self { answered: AtomicU64::new(0), failed: AtomicU64::new(0), over: false.into() };
        let address = cluster.address();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| load.ask_on(&address));
            }
            let _end = AtEnd(&load.over);
            harm(&load);
        });
        (load.answered.into_inner(), load.failed.into_inner())
    }

    /// Waits until `count` more requests have been answered.
    fn go_on(&self, count: u64) {
        let before = self.answered.load(Ordering::Relaxed);
        eventually("requests to be answered", || {
            (self.answered.load(Ordering::Relaxed) >= before + count).then_some(())
        });
    }
}

/// Ends the load when dropped, also by a panic, so that no thread waits for clients that would
/// continue.
struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Clients one after the other, whether earlier ones were answered or not, until the load ends.
/// Returns how many there were; each was answered or cut.
///
/// The kernel wakes one of the waiting acceptors, which for a moment may be the ring of a killed
/// worker that is still being torn down. A client of that moment waits until the next one connects
/// to the same socket, which a load that waits for answers never does.
fn trickle(cluster: &Cluster, over: &AtomicBool) -> u64 {
    let (mut came, mut clients) = (0, Vec::new());
    let hear = |client: &mut Client| {
        let kind = client.try_receive(true).err().map(|error| error.kind());
        assert!(kind != Some(ErrorKind::WouldBlock), "a client was left without any answer");
    };
    while !over.load(Ordering::Relaxed) {
        let mut client = Client::to(&cluster.address());
        // It may be reset at once.
        let _ = client.try_send(GET_CLOSE);
        clients.push(client);
        came += 1;
        clients
            .extract_if(.., |client| client.has_heard())
            .for_each(|mut client| hear(&mut client));
        std::thread::sleep(Duration::from_millis(20));
    }
    clients.iter_mut().for_each(hear);
    came
}

/// A small deterministic generator (Marsaglia's xorshift).
struct Choices(u64);

impl Choices {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits") % bound
    }
}

/// Kills a worker and waits until its successor runs.
fn kill_one(cluster: &Cluster, choices: &mut Choices) {
    let (exits, online) = (cluster.count("exit"), cluster.count("online"));
    let workers = cluster.workers();
    let victim = workers[choices.below(workers.len())];
    machine::signal(victim.pid, Signal::SIGKILL);
    let exit = cluster.event("exit", exits);
    assert_eq!((exit["id"].as_u64(), exit["signal"].as_str()), (Some(victim.id), Some("SIGKILL")));
    assert_eq!(cluster.event("respawn", exits)["id"], victim.id);
    let successor = cluster.event("online", online);
    assert_ne!(successor["pid"], victim.pid);
}

fn killed_under_load(policy: &str, seed: u64) -> (Summary, u64) {
    let cluster = Launch::new(&format!("--workers 4 {policy}")).with_defaults().start();
    let mut choices = Choices(seed);
    let mut trickled = 0;
    let (answered, failed) = Load::during(&cluster, |load| {
        std::thread::scope(|scope| {
            let trickle = scope.spawn(|| trickle(&cluster, &load.over));
            let end = AtEnd(&load.over);
            for _ in 0..6 {
                load.go_on(50);
                kill_one(&cluster, &mut choices);
            }
            load.go_on(50);
            drop(end);
            trickled = trickle.join().expect("no client was left without an answer");
        });
    });
    let summary = cluster.end();
    assert_eq!(summary.workers.len(), 10);
    assert_eq!(summary.dropped, 0, "{summary:#?}");
    let ids: HashSet<u64> = summary.workers.iter().map(|one| one.id).collect();
    assert_eq!(ids, (1..=10).collect());
    assert!(failed <= 6 * 8, "at most what eight clients had open at six kills: {failed}");
    assert!(answered + failed + trickled >= summary.accepted, "{summary:#?}");
    (summary, failed)
}

#[test]
fn killing_workers_under_load_costs_only_what_they_had_claimed() {
    for (seed, runtime) in [(11, "ring"), (12, "ring"), (13, "tokio-uring")] {
        let (summary, failed) = killed_under_load(&format!("--runtime {runtime}"), seed);
        // A connection that the killed worker had answered and not yet counted is aborted too.
        assert!(failed <= summary.aborted, "{failed} failed, {summary:#?}");
    }
}

#[test]
fn killing_workers_that_accept_by_themselves_costs_only_what_they_had_accepted() {
    // Connections that the kernel had accepted for the killed worker are unknown to the primary
    // until the worker reads them, so here the counts may miss a failure.
    for mechanism in ["epoll", "epoll-exclusive", "uring", "uring-multishot", "reuseport"] {
        killed_under_load(&format!("--policy none --accept {mechanism}"), 14);
    }
}

#[test]
fn connections_of_other_workers_are_undisturbed() {
    let cluster = Launch::new("--workers 4").start();
    let mut clients: Vec<Client> = (0..12).map(|_| Client::held(&cluster.address())).collect();
    let pids = cluster.worker_pids();
    let victim = pids[1];
    let ports: Vec<u16> = clients.iter().map(Client::port).collect();
    let holders = machine::holders(&pids, &ports, cluster.port());
    machine::signal(victim, Signal::SIGKILL);
    assert_eq!(cluster.event("exit", 0)["aborted"], 3);
    for (client, holder) in clients.iter_mut().zip(holders) {
        match holder == victim {
            true => assert!(client.try_receive(true).is_err()),
            false => client.ask(GET).assert_hello(),
        }
    }
    cluster.event("online", 4);
    drop(clients);
    let summary = cluster.end();
    assert_eq!((summary.accepted, summary.aborted), (12, 3));
}

#[test]
fn workers_are_never_replaced_if_so_wished() {
    let cluster = Launch::new("--workers 2 --restart never").start();
    let address = cluster.address();
    for (place, pid) in cluster.worker_pids().into_iter().enumerate() {
        // Kept, because a closed connection may be counted only after the kill.
        let kept = Client::held(&address);
        machine::signal(pid, Signal::SIGKILL);
        assert_eq!(cluster.event("exit", place)["aborted"], 1);
        drop(kept);
    }
    let ended = cluster.wait();
    ended.assert_refusal(1, &["no worker is left", "--restart"]);
    assert!(!ended.events.iter().any(|event| event["event"] == "respawn"), "{ended:?}");
    let summary = ended.summary();
    assert_eq!((summary.accepted, summary.redispatched, summary.aborted), (2, 0, 2));
}

#[test]
fn workers_are_replaced_on_failure_only_if_so_wished() {
    let cluster = Launch::new("--workers 3 --restart on-failure").start();
    let pids = cluster.worker_pids();
    machine::signal(pids[0], Signal::SIGTERM);
    assert_eq!(cluster.event("exit", 0)["code"], 0);
    machine::signal(pids[1], Signal::SIGKILL);
    assert_eq!(cluster.event("exit", 1)["signal"], "SIGKILL");
    assert_eq!(cluster.event("respawn", 0)["id"], 2);
    cluster.event("online", 3);
    let left = cluster.workers();
    assert_eq!(left.iter().map(|worker| worker.id).collect::<Vec<_>>(), [3, 4]);
    // If the last worker left in order, the run ends in order.
    left.iter().for_each(|worker| machine::signal(worker.pid, Signal::SIGTERM));
    let ended = cluster.wait();
    assert_eq!((ended.code, ended.errors.as_str()), (Some(0), ""), "{ended:?}");
    ended.summary().assert_clean(0);
}

#[test]
fn a_worker_that_always_dies_is_given_up() {
    // Each but the first one ends as soon as it runs, however busy the machine is.
    let folder = tempfile::tempdir().expect("a folder");
    let flag = folder.path().join("dies");
    let script = format!("test -e {} && kill -9 $$; exec sleep 1000", flag.display());
    let cluster = Launch::new("--dialect listen-fds --workers 1 --ready-after 0s")
        .listen("127.0.0.1:0")
        .running(&["/bin/sh", "-c", &script])
        .start();
    std::fs::write(&flag, "").expect("it can be written");
    machine::signal(cluster.worker_pids()[0], Signal::SIGKILL);
    let ended = cluster.wait();
    let delays: Vec<_> = ended.named("respawn").map(|one| one["delay_ms"].as_u64()).collect();
    // The first one may have served for long enough not to count.
    assert!((10..=11).contains(&delays.len()), "{delays:?}");
    assert!(delays.is_sorted() && delays[0] == Some(0) && delays[9] > Some(0), "{delays:?}");
    assert!(ended.named("exit").all(|one| one["signal"] == "SIGKILL"), "{ended:?}");
    ended.assert_refusal(1, &["no worker is left", "budget"]);
    let given_up = ended.events.iter().filter(|event| event["event"] == "give-up");
    assert_eq!(given_up.count(), 1, "{ended:?}");
    ended.summary().assert_clean(0);
}

#[test]
fn what_a_stopped_worker_has_not_claimed_is_served_by_others_when_it_dies() {
    // With automatic credits the stopped worker would get less than its turn.
    let cluster = Launch::new("--workers 2 --credits 256").start();
    let victim = cluster.worker_pids()[0];
    machine::suspend(victim);
    let mut clients: Vec<Client> = (0..40).map(|_| Client::to(&cluster.address())).collect();
    clients.iter_mut().for_each(|client| client.send(GET));
    // The rotation begins with the stopped worker: when the other one has its twenty, so has this
    // one.
    eventually("half of the clients to be answered", || {
        (clients.iter().filter(|client| client.has_heard()).count() == 20).then_some(())
    });
    machine::signal(victim, Signal::SIGKILL);
    clients.iter_mut().for_each(|client| client.receive().assert_hello());
    drop(clients);
    cluster.event("online", 2);
    let summary = cluster.end();
    assert_eq!((summary.accepted, summary.redispatched, summary.aborted), (40, 20, 0));
}

#[test]
fn what_a_stopped_worker_has_not_claimed_is_served_by_others_while_it_hangs() {
    let cluster = Launch::new("--workers 2").with_defaults().start();
    let workers = cluster.workers();
    machine::suspend(workers[0].pid);
    for _ in 0..40 {
        get(&cluster.address()).expect("an answer").assert_hello();
    }
    // On a busy machine the other worker may be late for a moment, too.
    let told = |name: &str| {
        cluster.until(&format!("event {name} of the stopped worker"), |heard| {
            heard.named(name).any(|event| event["id"] == workers[0].id).then_some(())
        });
    };
    told("hung");
    machine::signal(workers[0].pid, Signal::SIGCONT);
    told("recovered");
    // It gets connections again.
    let pids = cluster.worker_pids();
    eventually("the worker to get a connection", || {
        let clients: Vec<Client> = (0..8).map(|_| Client::held(&cluster.address())).collect();
        let ports: Vec<u16> = clients.iter().map(Client::port).collect();
        let holders = machine::holders(&pids, &ports, cluster.port());
        holders.contains(&workers[0].pid).then_some(())
    });
    let summary = cluster.end();
    assert_eq!((summary.dropped, summary.aborted), (0, 0), "{summary:?}");
    assert!(summary.redispatched > 0, "{summary:?}");
    let requests: u64 = summary.workers.iter().map(|one| one.requests).sum();
    assert_eq!(requests, summary.accepted, "each was answered once: {summary:?}");
}

#[test]
fn a_worker_that_is_stopped_and_continued_loses_nothing_and_answers_once() {
    for policy in ["--policy rr", "--runtime tokio-uring", "--policy none --accept epoll"] {
        let cluster = Launch::new(&format!("--workers 2 {policy}")).start();
        let pids = cluster.worker_pids();
        for round in 0..10 {
            let pid = pids[round % 2];
            machine::suspend(pid);
            let mut clients: Vec<Client> = (0..8).map(|_| Client::to(&cluster.address())).collect();
            clients.iter_mut().for_each(|client| client.send(GET_CLOSE));
            machine::signal(pid, Signal::SIGCONT);
            for client in &mut clients {
                client.receive().assert_hello();
                client.assert_closed();
            }
        }
        let summary = cluster.end();
        summary.assert_clean(80);
        assert_eq!(summary.workers.iter().map(|one| one.requests).sum::<u64>(), 80);
    }
}

#[test]
fn a_worker_that_is_asked_to_leave_drains_and_is_replaced_without_a_failure() {
    for policy in ["--policy rr", "--runtime tokio-uring", "--policy none --accept epoll"] {
        let cluster = Launch::new(&format!("--workers 3 {policy}")).with_defaults().start();
        let (_, failed) = Load::during(&cluster, |load| {
            for round in 0..5 {
                load.go_on(30);
                machine::signal(cluster.worker_pids()[0], Signal::SIGTERM);
                assert_eq!(cluster.event("exit", round)["code"], 0);
                cluster.event("online", 3 + round);
            }
            load.go_on(30);
        });
        assert_eq!(failed, 0);
        let summary = cluster.end();
        assert_eq!((summary.dropped, summary.aborted), (0, 0), "{summary:?}");
        assert_eq!(summary.workers.len(), 8);
    }
}

#[test]
fn workers_end_by_themselves_when_the_primary_is_killed() {
    for policy in ["", "--runtime tokio-uring", "--policy none --accept uring-multishot"] {
        let cluster = Launch::new(&format!("--workers 3 {policy}")).start();
        let address = cluster.address();
        let kept = Client::held(&address);
        let ended = cluster.stop(Signal::SIGKILL);
        assert_eq!(ended.signal, Some(9));
        drop(kept);
        // The kernel tears a ring with an armed accept down asynchronously.
        eventually("the port to be free", || TcpListener::bind(&address).ok());
    }
}

#[test]
fn a_killed_run_does_not_hinder_the_next_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let unix = format!("unix:{}", path.display());
    let mut tcp = "127.0.0.1:0".to_owned();
    for _ in 0..4 {
        let cluster = Launch::new("--workers 2").listen(&tcp).listen(&unix).start();
        tcp = cluster.address();
        for address in [&tcp, &unix] {
            get(address).expect("an answer").assert_hello();
        }
        assert_eq!(cluster.stop(Signal::SIGKILL).signal, Some(9));
        assert!(path.exists(), "a killed primary cannot unlink");
        // On a busy machine the kernel may take longer to tear its ring down than a run waits for a
        // port.
        eventually("the port to be free", || TcpListener::bind(&tcp).ok());
    }
    let cluster = Launch::new("--workers 2").listen(&tcp).listen(&unix).start();
    get(&unix).expect("an answer").assert_hello();
    cluster.end().assert_clean(1);
    assert!(!path.exists());
}
