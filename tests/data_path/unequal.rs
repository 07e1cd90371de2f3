//! Several listeners that not all workers serve, and the effect of one worker on the others.

use std::io::Read as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use clusterlb::EngineKind;
use clusterlb::internals::data_path::{Command, DataPathReport};
use clusterlb_schedule::SchedulerConfig;
use clusterlb_schedule::id::{ListenerId, Slot};
use clusterlb_sys::listener::Listener;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::wait::PATIENCE;
use super::{BACKLOG, Bench, CREDITS, FIRST, FirstOfAll, OPTIONS, scheduling};

const SECOND: ListenerId = ListenerId::new(1);

/// Two listeners and two workers: both serve the first listener, the second worker alone serves the
/// second.
fn unequal(engine: EngineKind, scheduling: SchedulerConfig) -> (Bench, String) {
    let open = || {
        let address = "127.0.0.1:0".parse().expect("an address");
        Arc::new(Listener::open(&address, OPTIONS).expect("a free port"))
    };
    let (first, second) = (open(), open());
    let addresses = [&first, &second].map(|one| one.address().to_owned());
    let added = [(FIRST, first), (SECOND, second)];
    let added = added.map(|(id, listener)| Command::AddListener { id, listener });
    let [address, other] = addresses;
    let mut bench = Bench::open(engine, scheduling, 0, address, added.into());
    bench.attach_to(Slot::new(0), &[FIRST]);
    bench.attach_to(Slot::new(1), &[FIRST, SECOND]);
    (bench, other)
}

fn connect_to(address: &str, count: usize) -> Vec<TcpStream> {
    (0..count).map(|_| TcpStream::connect(address).expect("a backlog")).collect()
}

fn a_listener_whose_only_worker_takes_nothing_holds_up_no_other(engine: EngineKind) {
    let (mut bench, other) = unequal(engine, scheduling(|| FirstOfAll));
    // More than the second worker may get; it claims nothing.
    let stuck = connect_to(&other, 3 * CREDITS);
    bench.expect(&[0, CREDITS]);
    for _ in 0..10 {
        let clients = bench.connect(CREDITS);
        bench.expect(&[CREDITS, CREDITS]);
        bench.claim(0);
        drop(clients);
    }
    bench.claim(1);
    bench.expect(&[0, CREDITS]);
    bench.claim(1);
    bench.expect(&[0, CREDITS]);
    bench.claim(1);
    let totals = bench.end();
    assert_eq!((totals.accepted, totals.dropped), ((stuck.len() + 10 * CREDITS) as u64, 0));
}

fn of_a_listener_that_only_some_serve_no_more_is_accepted_than_they_take(engine: EngineKind) {
    let (mut bench, other) = unequal(engine, scheduling(|| FirstOfAll));
    let stuck = connect_to(&other, BACKLOG as usize - 1);
    bench.expect(&[0, CREDITS]);
    // Connections that are not accepted stay in the kernel and are not lost.
    let totals = bench.end();
    assert_eq!((totals.accepted, totals.dropped), (CREDITS as u64, 0), "{stuck:?}");
}

fn what_no_living_worker_serves_is_dropped_after_the_limit_and_counted(engine: EngineKind) {
    let limit = Duration::from_millis(50);
    let scheduling =
        SchedulerConfig { unserved_limit_ns: Some(50_000_000), ..scheduling(|| FirstOfAll) };
    let (mut bench, other) = unequal(engine, scheduling);
    bench.command(Command::Reap { slot: Slot::new(1) });
    assert!(matches!(bench.report(), DataPathReport::Reaped { .. }));
    bench.inboxes.remove(1);
    let mut lost = connect_to(&other, 5);
    for client in &mut lost {
        client.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let read = client.read(&mut [0]);
        assert!(matches!(read, Ok(0) | Err(_)), "unanswered");
    }
    // Other connections are served in the meantime, and so is this one once a worker joins.
    let clients = bench.connect(1);
    bench.expect(&[1]);
    std::thread::sleep(2 * limit);
    bench.attach_to(Slot::new(2), &[FIRST, SECOND]);
    let later = connect_to(&other, 1);
    bench.expect(&[1, 1]);
    let totals = bench.end();
    let served = clients.len() + later.len();
    assert_eq!((totals.accepted, totals.dropped), ((lost.len() + served) as u64, 5));
}

fn abuse_of_a_waker_affects_only_its_worker(engine: EngineKind) {
    let mut bench = Bench::start(engine, scheduling(|| FirstOfAll), 2);
    let mut clients = bench.connect(2 * CREDITS);
    bench.expect(&[CREDITS, CREDITS]);
    // The waker now blocks, is full, and the worker itself reads it.
    let waker = &bench.inboxes[0].waker;
    fcntl(waker, FcntlArg::F_SETFL(OFlag::empty())).expect("it is open");
    clients.extend(bench.connect(2));
    for _ in 0..100 {
        waker.wake();
        waker.clear();
    }
    bench.claim(1);
    bench.expect(&[CREDITS, 2]);
    bench.claim(1);
    bench.claim(0);
    let totals = bench.end();
    assert_eq!((totals.accepted, totals.dropped), (clients.len() as u64, 0));
}

on_each_engine! {
    a_listener_whose_only_worker_takes_nothing_holds_up_no_other
    of_a_listener_that_only_some_serve_no_more_is_accepted_than_they_take
    what_no_living_worker_serves_is_dropped_after_the_limit_and_counted
    abuse_of_a_waker_affects_only_its_worker
}
