//! A claim means that work begins: what a busy worker has not claimed goes to others.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use clusterlb::{CreditRule, Dispatch};

use crate::puppet::Service;
use crate::stage::{Stage, eventually, kept, number_in};
use crate::trials;

trials!(
    a_worker_that_blocks_leaves_to_others_what_it_has_not_claimed,
    a_worker_with_a_loop_claims_one_at_a_time_behind_a_slow_turn,
    a_worker_with_a_loop_leaves_in_its_socket_what_it_does_not_begin,
);

/// A client that may have been greeted.
struct Waiting {
    stream: TcpStream,
    greeting: String,
}

impl Waiting {
    fn at(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("the backlog has room");
        stream.set_nonblocking(true).expect("it is a socket");
        Self { stream, greeting: String::new() }
    }

    /// The worker that has greeted it.
    fn greeter(&mut self) -> Option<u32> {
        let mut part = [0; 32];
        if let Ok(length) = self.stream.read(&mut part) {
            assert!(length > 0, "nothing but a greeting ends it: {:?}", self.greeting);
            self.greeting += std::str::from_utf8(&part[..length]).expect("a greeting");
        }
        self.greeting.ends_with('\n').then(|| number_in(&self.greeting))
    }
}

/// Two workers each work on a connection; two more wait for each of them. The first worker then
/// gets one of its two, and works on it. The other worker gets all the rest.
fn what_is_not_claimed_goes_to_others(service: Service) {
    let mut stage = Stage::with(|settings| {
        settings.scheduling.credits = CreditRule::Fixed(8);
        // On a machine so busy that the search for an idle worker ends early, this limit takes
        // over.
        settings.scheduling.hang_after_ns = Some(5_000_000_000);
    });
    let workers = [stage.puppet(), stage.puppet()];
    let mut address = String::new();
    for worker in &workers {
        address = stage.serve(worker, "127.0.0.1:0", service);
    }
    let assigned = |number: usize| workers[number].counts().assigned;
    let (first, second) = (kept(&address), kept(&address));
    assert_ne!(first.1, second.1, "each has one to work on");
    let (held, held_elsewhere) = (first.0, second.0);
    let busy = first.1;
    let mut waiting = Vec::new();
    for count in 3..=6 {
        // One after the other, so that each is a separate message.
        waiting.push(Waiting::at(&address));
        eventually("it to be assigned", || (assigned(0) + assigned(1) == count).then_some(()));
    }
    assert_eq!((assigned(0), assigned(1)), (3, 3), "two wait for each worker");
    // Longer than a turn may take before the worker counts as busy.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(20) {
        assert!(waiting.iter_mut().all(|one| one.greeter().is_none()), "both work");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(held);
    let place = eventually("one of the two to be claimed", || {
        waiting.iter_mut().position(|one| one.greeter() == Some(busy))
    });
    let claimed = waiting.remove(place);
    drop(held_elsewhere);
    for _ in 0..3 {
        let place = eventually("the other worker to take it", || {
            waiting.iter_mut().position(|one| one.greeter().is_some())
        });
        let mut served = waiting.remove(place);
        assert_ne!(served.greeter(), Some(busy), "it works on the one it has claimed");
    }
    drop(claimed);
    stage.end();
}

fn a_worker_that_blocks_leaves_to_others_what_it_has_not_claimed() {
    what_is_not_claimed_goes_to_others(Service::Work);
}

fn a_worker_with_a_loop_claims_one_at_a_time_behind_a_slow_turn() {
    what_is_not_claimed_goes_to_others(Service::WorkInTurns);
}

/// Two workers with their own sockets each work on a connection, and six more wait. One of the
/// workers gets another one, and works on it. The other gets all the rest, wherever it waits.
fn a_worker_with_a_loop_leaves_in_its_socket_what_it_does_not_begin() {
    let mut stage = Stage::with(|settings| {
        settings.dispatch = Dispatch::Kernel;
        settings.scheduling.hang_after_ns = Some(5_000_000_000);
    });
    let workers = [stage.puppet(), stage.puppet()];
    let mut address = String::new();
    for worker in &workers {
        address = stage.serve(worker, "127.0.0.1:0", Service::WorkInTurns);
    }
    let ((held, busy), (held_elsewhere, other)) = (kept(&address), kept(&address));
    assert_ne!(busy, other, "each has one to work on");
    let mut waiting: Vec<Waiting> = (0..6).map(|_| Waiting::at(&address)).collect();
    // Longer than a turn may take before the worker counts as busy.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(20) {
        assert!(waiting.iter_mut().all(|one| one.greeter().is_none()), "both work");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(held);
    let place = eventually("one of them to be claimed", || {
        waiting.iter_mut().position(|one| one.greeter() == Some(busy))
    });
    let claimed = waiting.remove(place);
    drop(held_elsewhere);
    while !waiting.is_empty() {
        let place = eventually("the other worker to take it", || {
            waiting.iter_mut().position(|one| one.greeter().is_some())
        });
        assert_eq!(waiting.remove(place).greeter(), Some(other), "it works on what it has claimed");
    }
    drop(claimed);
    stage.end();
}
