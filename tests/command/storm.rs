//! The running system in a storm: two listeners, whose workers are killed, stopped and continued,
//! descriptors are short, limits fall, clients are slow or reset while they wait. Every client is
//! answered but those whose connection a killed worker held, one by one, or that a worker had no
//! descriptor for when its limit fell; the counts balance and nothing leaks.
//!
//! A seed decides every choice, though not when it takes effect. `CLUSTERLB_SEED` sets another one,
//! `CLUSTERLB_STORM_SECONDS` a longer storm and `CLUSTERLB_SHORTAGE_SECONDS` a longer one in which
//! descriptors are short all the time.

mod losses;
mod unequal;

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
use losses::{Connected, Losses};

/// Clients that send requests without a pause, each on a new connection.
const CLIENTS: u64 = 12;
const WORKERS: usize = 4;
/// Requests before the storm.
const FIRST: usize = 2 * WORKERS;
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
    losses: Losses,
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

    /// Counts an answer or a loss.
    fn note(&self, connected: &Connected, answer: std::io::Result<Response>) {
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
                self.losses.note(connected, &error);
            }
        }
    }

    /// One client of the storm.
    fn ask_on(&self, addresses: &[String], mut random: Rng) {
        while !self.is_over() {
            let address = random.choice(addresses).expect("there are addresses");
            let mut connected = Connected::to(address);
            match random.u8(0..10) {
                0 => {
                    // A worker that is killed at this moment is the first to reset.
                    if random.bool() {
                        let _ = connected.client.try_send(GET);
                    }
                    connected.client.reset();
                    add(&self.reset);
                }
                1 => {
                    let answer = slow(&mut connected.client, &mut random);
                    self.note(&connected, answer);
                }
                _ => {
                    let answer = at_once(&mut connected.client);
                    self.note(&connected, answer);
                }
            }
            sleep(Duration::from_millis(random.u64(0..8)));
        }
    }
}

/// A request in two parts with a pause between them.
fn slow(client: &mut Client, random: &mut Rng) -> std::io::Result<Response> {
    let (first, rest) = GET_CLOSE.split_at(random.usize(1..GET_CLOSE.len()));
    client.try_send(first)?;
    sleep(Duration::from_millis(random.u64(1..80)));
    client.try_send(rest)?;
    client.try_receive(true)
}

/// A request, and nothing behind its answer.
fn at_once(client: &mut Client) -> std::io::Result<Response> {
    client.try_send(GET_CLOSE)?;
    let response = client.try_receive(true)?;
    let rest = client.rest()?;
    assert!(rest.is_empty(), "{} bytes behind the answer", rest.len());
    Ok(response)
}

/// Harms the workers until the storm ends, then makes sure that none stays stopped.
fn harm(cluster: &Cluster, losses: &Losses, mut random: Rng, until: Instant) {
    let (addresses, begun) = (cluster.addresses(), Instant::now());
    while Instant::now() < until {
        sleep(Duration::from_millis(random.u64(50..500)));
        let workers = cluster.workers();
        let Some(victim) = random.choice(&workers) else { continue };
        // A slot has ten restarts per minute; more would give it up.
        let kills_max = 8 * (1 + begun.elapsed().as_secs() / 60);
        if random.u8(0..4) == 0 && losses.kills() < kills_max {
            losses.kill(*victim, &addresses);
            // Until its end is reported it still counts as running.
            eventually("a successor", || {
                let now = cluster.workers();
                (now.len() == WORKERS && !now.contains(victim)).then_some(())
            });
        } else if random.u8(0..4) == 0 {
            // The limit of the primary or a worker falls for a while.
            let is_primary = random.bool();
            if !is_primary {
                losses.limit(*victim);
            }
            let pid = if is_primary { cluster.pid() } else { victim.pid };
            machine::set_descriptor_limit(pid, random.usize(80..DESCRIPTORS));
            sleep(Duration::from_millis(random.u64(50..400)));
            machine::set_descriptor_limit(pid, DESCRIPTORS);
        } else {
            machine::signal(victim.pid, Signal::SIGSTOP);
            sleep(Duration::from_millis(random.u64(50..400)));
            machine::signal(victim.pid, Signal::SIGCONT);
        }
    }
}

/// Holds more connections than there are descriptors for until `until`; each served client is
/// replaced by another. Then closes them.
fn crowd(addresses: &[String], outcome: &Outcome, until: Instant) {
    let mut turns = addresses.iter().cycle();
    let mut connect = || {
        let mut connected = Connected::to(turns.next().expect("there are addresses"));
        let sent = connected.client.try_send(GET);
        (connected, sent)
    };
    let mut clients: VecDeque<_> = (0..CROWD).map(|_| connect()).collect();
    let deadline = until + PATIENCE;
    // A served client makes room only by closing, in any order.
    while let Some((mut connected, sent)) = clients.pop_front() {
        let mut waiting = [PollFd::new(connected.client.as_fd(), PollFlags::POLLIN)];
        let heard = poll(&mut waiting, PollTimeout::from(2_u8)).expect("a descriptor to wait for");
        if heard == 0 && Instant::now() < deadline {
            clients.push_back((connected, sent));
            continue;
        }
        let answer = sent.and_then(|()| connected.client.try_receive(true));
        outcome.note(&connected, answer);
        drop(connected);
        if Instant::now() < until {
            clients.push_back(connect());
        }
    }
}

/// Crowds for a storm of this length.
fn crowds(addresses: &[String], outcome: &Outcome, shortage: Shortage, lasts: Duration) {
    let until = Instant::now() + lasts;
    if shortage == Shortage::Always {
        return crowd(addresses, outcome, until);
    }
    let pause = lasts / 4;
    while Instant::now() + pause < until {
        sleep(pause);
        crowd(addresses, outcome, Instant::now() + Duration::from_millis(300));
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

fn storm(launch: Launch, seed: u64, seconds: u64, shortage: Shortage) {
    println!("this storm: CLUSTERLB_SEED={seed}, {seconds} s, descriptors short: {shortage:?}");
    let script = format!("ulimit -n {DESCRIPTORS} && exec \"$0\" \"$@\"");
    let cluster = launch.with_defaults().under(&["sh", "-c", &script]).start();
    let addresses = cluster.addresses();
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    for number in 0..FIRST {
        get(&addresses[number % 2]).expect("an answer").assert_hello();
    }
    let before = settled(&cluster);
    let mut random = Rng::with_seed(seed);
    let outcome = Outcome::default();
    let lasts = Duration::from_secs(seconds);
    let until = Instant::now() + lasts;
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let random = random.fork();
            let (addresses, outcome) = (&addresses, &outcome);
            scope.spawn(move || outcome.ask_on(addresses, random));
        }
        let crowds = scope.spawn(|| crowds(&addresses, &outcome, shortage, lasts));
        let end = AtEnd(&outcome);
        harm(&cluster, &outcome.losses, random.fork(), until);
        drop(end);
        crowds.join().expect("no client was left without an answer");
    });
    eventually("the workers", || (cluster.workers().len() == WORKERS).then_some(()));
    eventually("everybody to have as few descriptors as before", || {
        let now = settled(&cluster);
        (now.0 == before.0 && now.1 <= before.1).then_some(())
    });
    assert_answered(&cluster.end(), &outcome);
}

/// The built-in workers: each serves both addresses.
fn equal() -> Launch {
    let launch = Launch::new(&format!("--workers {WORKERS}"));
    launch.listen("127.0.0.1:0").listen("127.0.0.2:0")
}

/// Workers of a program: one of them serves the second address alone.
fn unequal() -> Launch {
    unequal::launch(&format!("--workers {WORKERS}"))
}

/// Room for the clients, where limits of running processes can be set.
fn room() -> Option<Room> {
    if has_program("prlimit") { Room::for_clients(CROWD) } else { None }
}

/// Fails unless every client was answered but those whose connection a killed worker held.
/// `Cluster::end` fails unless the counts balance and no process is left.
fn assert_answered(summary: &Summary, outcome: &Outcome) {
    let losses = &outcome.losses;
    println!("{} killed; {outcome:?}; {summary:?}", losses.kills());
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    assert!(count(&outcome.answered) > 0 && summary.redispatched > 0, "hardly a storm");
    assert_eq!(summary.dropped, 0, "{summary:#?}");
    losses.assert_matched(summary);
    // Some aborted ones may have been resets, answered a moment before.
    assert!(losses.lost() <= summary.aborted, "{outcome:?}, {summary:#?}");
    let asked = count(&outcome.answered) + losses.lost() + count(&outcome.reset) + FIRST as u64;
    // A client that resets may be gone before it is accepted.
    assert!(summary.accepted <= asked, "{asked} asked, {summary:#?}");
    assert!(summary.accepted + count(&outcome.reset) >= asked, "{asked} asked, {summary:#?}");
}

#[test]
fn a_storm_costs_only_what_killed_workers_had_claimed() {
    let Some(_room) = room() else { return };
    let seconds = number("CLUSTERLB_STORM_SECONDS", 12);
    storm(equal(), number("CLUSTERLB_SEED", 4), seconds, Shortage::Sometimes);
}

#[test]
fn a_storm_over_unequal_workers_costs_no_more() {
    let Some(_room) = room() else { return };
    let seconds = number("CLUSTERLB_STORM_SECONDS", 12);
    storm(unequal(), number("CLUSTERLB_SEED", 7), seconds, Shortage::Sometimes);
}

#[test]
fn a_storm_with_too_few_descriptors_all_the_time_costs_no_more() {
    let Some(_room) = room() else { return };
    let seconds = number("CLUSTERLB_SHORTAGE_SECONDS", 5);
    let seed = number("CLUSTERLB_SEED", 5);
    for launch in [equal(), unequal()] {
        storm(launch, seed, seconds, Shortage::Always);
    }
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
