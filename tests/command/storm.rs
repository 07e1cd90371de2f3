//! The running system in a storm: workers are killed, stopped and continued, descriptors are short,
//! limits fall, clients are slow or reset while they wait. Connections that no killed worker had
//! claimed are answered, the counts balance and nothing leaks.
//!
//! A seed decides every choice, though not when it takes effect. `CLUSTERLB_SEED` sets another one,
//! `CLUSTERLB_STORM_SECONDS` a longer storm and `CLUSTERLB_SHORTAGE_SECONDS` a longer one in which
//! descriptors are short all the time.

use std::collections::VecDeque;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::hostile;
use super::room::Room;
use crate::common::{
    Client, Cluster, GET, GET_CLOSE, Launch, PATIENCE, Response, Summary, eventually, get,
    has_program, machine,
};

/// Clients that send requests without a pause, each on a new connection.
const CLIENTS: u64 = 12;
const WORKERS: usize = 4;
/// Descriptors of each process.
const DESCRIPTORS: usize = 128;
/// Connections open at once: more than the primary and all workers could hold even with all their
/// descriptors, so that some wait in the kernel.
const CROWD: usize = (WORKERS + 1) * DESCRIPTORS + 60;

/// When there are more clients than descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shortage {
    Sometimes,
    Always,
}

/// The outcomes of the clients.
#[derive(Debug, Default)]
struct Outcome {
    answered: AtomicU64,
    /// Reset by the client, perhaps before a worker read it.
    reset: AtomicU64,
    failed: AtomicU64,
    over: AtomicBool,
}

/// Ends the storm when dropped, also by a panic.
struct AtEnd<'a>(&'a Outcome);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(otherwise, |value| value.parse().expect("a whole number"))
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Outcome {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Counts an answer or a failure.
    fn note(&self, answer: std::io::Result<Response>) {
        match answer {
            Ok(response) => {
                response.assert_hello();
                add(&self.answered);
            }
            Err(error) => {
                // The time limit is far longer than any fault here: no client is forgotten.
                let kind = error.kind();
                let timed_out = [std::io::ErrorKind::WouldBlock, std::io::ErrorKind::TimedOut];
                assert!(!timed_out.contains(&kind), "a client was left without any answer");
                add(&self.failed);
            }
        }
    }

    /// One client of the storm.
    fn ask_on(&self, address: &str, mut random: Rng) {
        while !self.is_over() {
            match random.u8(0..10) {
                0 => {
                    let mut client = Client::to(address);
                    if random.bool() {
                        client.send(GET);
                    }
                    client.reset();
                    add(&self.reset);
                }
                1 => self.note(slow(address, &mut random)),
                _ => self.note(get(address)),
            }
            sleep(Duration::from_millis(random.u64(0..8)));
        }
    }
}

/// A request in two parts with a pause between them.
fn slow(address: &str, random: &mut Rng) -> std::io::Result<Response> {
    let mut client = Client::connect(address)?;
    let (first, rest) = GET_CLOSE.split_at(random.usize(1..GET_CLOSE.len()));
    client.try_send(first)?;
    sleep(Duration::from_millis(random.u64(1..80)));
    client.try_send(rest)?;
    client.try_receive(true)
}

/// Harms the workers until the storm ends, then makes sure that none stays stopped.
fn harm(cluster: &Cluster, mut random: Rng, until: Instant) -> u64 {
    let (mut killed, begun) = (0, Instant::now());
    while Instant::now() < until {
        sleep(Duration::from_millis(random.u64(50..500)));
        let workers = cluster.workers();
        let Some(victim) = random.choice(&workers) else { continue };
        // A slot has ten restarts per minute; more would give it up.
        if random.u8(0..4) == 0 && killed < 8 * (1 + begun.elapsed().as_secs() / 60) {
            machine::signal(victim.pid, Signal::SIGKILL);
            killed += 1;
            eventually("a successor", || (cluster.workers().len() == WORKERS).then_some(()));
        } else if random.u8(0..4) == 0 {
            // The limit of the primary or a worker falls for a while.
            let pid = if random.bool() { cluster.pid() } else { victim.pid };
            machine::set_descriptor_limit(pid, random.usize(80..DESCRIPTORS));
            sleep(Duration::from_millis(random.u64(50..400)));
            machine::set_descriptor_limit(pid, DESCRIPTORS);
        } else {
            machine::signal(victim.pid, Signal::SIGSTOP);
            sleep(Duration::from_millis(random.u64(50..400)));
            machine::signal(victim.pid, Signal::SIGCONT);
        }
    }
    killed
}

/// Holds more connections than there are descriptors for until `until`; each served client is
/// replaced by another. Then closes them.
fn crowd(address: &str, outcome: &Outcome, until: Instant) {
    let connect = || {
        let mut client = Client::to(address);
        client.send(GET);
        client
    };
    let mut clients: VecDeque<Client> = (0..CROWD).map(|_| connect()).collect();
    let deadline = until + PATIENCE;
    // A served client makes room only by closing, in any order.
    while let Some(mut client) = clients.pop_front() {
        let mut waiting = [PollFd::new(client.as_fd(), PollFlags::POLLIN)];
        let heard = poll(&mut waiting, PollTimeout::from(2_u8)).expect("a descriptor to wait for");
        if heard == 0 && Instant::now() < deadline {
            clients.push_back(client);
            continue;
        }
        outcome.note(client.try_receive(true));
        if Instant::now() < until {
            clients.push_back(connect());
        }
    }
}

/// Crowds for a storm of this length.
fn crowds(address: &str, outcome: &Outcome, shortage: Shortage, lasts: Duration) {
    let until = Instant::now() + lasts;
    if shortage == Shortage::Always {
        return crowd(address, outcome, until);
    }
    let pause = lasts / 4;
    while Instant::now() + pause < until {
        sleep(pause);
        crowd(address, outcome, Instant::now() + Duration::from_millis(300));
    }
}

/// Descriptors of an idle primary, and the most of any worker.
fn settled(cluster: &Cluster) -> (usize, usize) {
    let mut counts = Vec::new();
    eventually("descriptors to settle", || {
        sleep(Duration::from_millis(20));
        let workers = cluster.worker_pids().into_iter().map(machine::descriptor_count);
        counts.push((machine::descriptor_count(cluster.pid()), workers.max().unwrap_or(0)));
        let last = counts.iter().rev().take(10);
        (counts.len() >= 10 && last.clone().min() == last.max()).then_some(())
    });
    counts.pop().expect("they were counted")
}

fn storm(seed: u64, seconds: u64, shortage: Shortage) -> (Summary, Outcome, u64) {
    println!("this storm: CLUSTERLB_SEED={seed}, {seconds} s, descriptors short: {shortage:?}");
    let script = format!("ulimit -n {DESCRIPTORS} && exec \"$0\" \"$@\"");
    let launch = Launch::new(&format!("--workers {WORKERS}")).with_defaults();
    let cluster = launch.under(&["sh", "-c", &script]).start();
    let address = cluster.address();
    for _ in 0..2 * WORKERS {
        get(&address).expect("an answer").assert_hello();
    }
    let before = settled(&cluster);
    let mut random = Rng::with_seed(seed);
    let outcome = Outcome::default();
    let lasts = Duration::from_secs(seconds);
    let until = Instant::now() + lasts;
    let killed = std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let random = random.fork();
            let (address, outcome) = (&address, &outcome);
            scope.spawn(move || outcome.ask_on(address, random));
        }
        let crowds = scope.spawn(|| crowds(&address, &outcome, shortage, lasts));
        let end = AtEnd(&outcome);
        let killed = harm(&cluster, random.fork(), until);
        drop(end);
        crowds.join().expect("no client was left without an answer");
        killed
    });
    eventually("the workers", || (cluster.workers().len() == WORKERS).then_some(()));
    eventually("everybody to have as few descriptors as before", || {
        let now = settled(&cluster);
        (now.0 == before.0 && now.1 <= before.1).then_some(())
    });
    (cluster.end(), outcome, killed)
}

/// Room for the clients, where limits of running processes can be set.
fn room() -> Option<Room> {
    if has_program("prlimit") { Room::for_clients(CROWD) } else { None }
}

/// Fails unless every connection that no killed worker held was answered. `Cluster::end` fails
/// unless the counts balance and no process is left.
fn assert_answered(summary: &Summary, outcome: &Outcome, killed: u64) {
    println!("{killed} killed; {outcome:?}; {summary:?}");
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    assert!(count(&outcome.answered) > 0 && summary.redispatched > 0, "hardly a storm");
    assert_eq!(summary.dropped, 0, "{summary:#?}");
    // Some aborted ones may have been resets, answered a moment before.
    assert!(count(&outcome.failed) <= summary.aborted, "{outcome:?}, {summary:#?}");
    assert!(killed > 0 || summary.aborted == 0, "{summary:#?}");
    let asked = count(&outcome.answered) + count(&outcome.failed) + count(&outcome.reset);
    let asked = asked + 2 * WORKERS as u64;
    // A client that resets may be gone before it is accepted.
    assert!(summary.accepted <= asked, "{asked} asked, {summary:#?}");
    assert!(summary.accepted + count(&outcome.reset) >= asked, "{asked} asked, {summary:#?}");
}

#[test]
fn a_storm_costs_only_what_killed_workers_had_claimed() {
    let Some(_room) = room() else { return };
    let seconds = number("CLUSTERLB_STORM_SECONDS", 12);
    let (summary, outcome, killed) =
        storm(number("CLUSTERLB_SEED", 4), seconds, Shortage::Sometimes);
    assert_answered(&summary, &outcome, killed);
}

#[test]
fn a_storm_with_too_few_descriptors_all_the_time_costs_no_more() {
    let Some(_room) = room() else { return };
    let seconds = number("CLUSTERLB_SHORTAGE_SECONDS", 5);
    let (summary, outcome, killed) = storm(number("CLUSTERLB_SEED", 5), seconds, Shortage::Always);
    assert_answered(&summary, &outcome, killed);
}

/// Workers serve unequal listeners, and those of one are stopped and killed: clients of the other
/// are unaffected.
#[test]
fn a_storm_over_the_only_worker_of_a_listener_is_not_felt_at_the_other() {
    let addresses = ["127.0.0.1:0", "localhost:0"];
    let Some(launch) = hostile::launch_at("", "unequal", &addresses) else { return };
    let cluster = launch.with_defaults().servers(2).start();
    let [main, other] = cluster.addresses().try_into().expect("two addresses");
    let mut random = Rng::with_seed(number("CLUSTERLB_SEED", 6));
    for round in 0..4 {
        // Once a worker in the first slot has been killed, the newest worker is in it.
        let workers = cluster.workers();
        let place = if round == 0 { workers.first() } else { workers.last() };
        let victim = *place.expect("there are workers");
        get(&other).expect("an answer").assert_hello();
        machine::signal(victim.pid, Signal::SIGSTOP);
        let connect = |_| {
            let mut client = Client::to(&other);
            client.send(GET_CLOSE);
            client
        };
        let waiting: Vec<Client> = (0..random.usize(1..100)).map(connect).collect();
        for _ in 0..30 {
            let begun = Instant::now();
            get(&main).expect("an answer").assert_hello();
            assert!(begun.elapsed() < PATIENCE / 4, "{:?}", begun.elapsed());
        }
        if round < 2 {
            machine::signal(victim.pid, Signal::SIGCONT);
            for mut client in waiting {
                client.receive().assert_hello();
            }
        }
        let online = cluster.count("online");
        machine::signal(victim.pid, Signal::SIGKILL);
        cluster.event("online", online);
        eventually("a worker to serve the other address", || get(&other).ok());
    }
    cluster.end();
}
