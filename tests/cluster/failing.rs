//! Threads of the library that fail: every waiter is released, with the reason.
//!
//! The failures come from code of the program that runs on these threads: a waker, a scheduler.

use std::net::TcpListener;
use std::task::Context;
use std::thread;
use std::time::Duration;

use clusterlb::{Cluster, Completion, Ending, Event, Events};
use clusterlb_schedule::{Client, Loads, Scheduler, SchedulerFactory};

use crate::puppet::{Order, Reply, Service};
use crate::stage::{ON_PURPOSE, PATIENCE, Stage, eventually, is_alive, kept, until_refused};
use crate::trials;
use crate::tricks::{Trick, bomb};

trials!(
    a_panic_in_the_control_plane_is_reported_and_releases_every_waiter,
    a_fork_that_is_under_way_hears_of_the_panic,
    a_data_path_that_panics_is_told_of,
    a_change_of_the_settings_may_panic,
    a_worker_that_can_no_longer_read_its_channel_ends,
    a_handler_that_panics_does_not_keep_a_worker,
);

/// Makes the thread that emits events panic at the next one. Nothing may be emitted before that.
fn arm(cluster: &Cluster) -> Events {
    let mut events = cluster.events().expect("descriptors");
    let waker = bomb();
    let polled = events.poll_recv(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    events
}

/// An error that names the failed part.
fn names_the_plane(error: &clusterlb::Error) -> bool {
    let text = error.to_string();
    text.contains("control plane has failed") && text.contains("a waker panics")
}

fn a_panic_in_the_control_plane_is_reported_and_releases_every_waiter() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    let address = stage.serve(&worker, "127.0.0.1:0", Service::Keep);
    let (_open, _) = kept(&address);
    let events = stage.cluster.events().expect("descriptors");
    let before = stage.cluster.disconnect();
    assert!(!before.wait_timeout(Duration::ZERO), "it has a connection to finish");
    let waiting = thread::spawn({
        let before: Completion = before.clone();
        move || before.wait()
    });
    let _armed = arm(&stage.cluster);
    worker.send(&Order::Echo(1.into())).expect("the puppet reads");
    // A subscriber gets the events, and then the end of the stream.
    let told: Vec<Event> = events.collect();
    let Some(Event::Error { worker: None, error }) = told.last() else { panic!("{told:?}") };
    assert!(names_the_plane(error), "{error}");
    // A waiter gets the error.
    waiting.join().expect("it does not panic");
    assert!(before.failure().is_some_and(|error| names_the_plane(&error)));
    // It did not end in order, but nothing is left behind.
    assert!(worker.is_dead() && !worker.is_connected() && !is_alive(worker.pid()));
    assert_eq!(worker.ending(), Some(Ending::Signal(9)));
    assert!(stage.cluster.workers().is_empty());
    until_refused(&address);
    // A request gets the error.
    let cluster = &stage.cluster;
    let any = "127.0.0.1:0".parse().expect("an address");
    let refused = [
        cluster.fork().map(drop).expect_err("the control plane has failed"),
        cluster.hold(&any).map(drop).expect_err("the control plane has failed"),
        cluster.open().expect_err("the control plane has failed"),
        cluster.events().map(drop).expect_err("the control plane has failed"),
        cluster.on(drop).expect_err("the control plane has failed"),
        worker.events().map(drop).expect_err("the control plane has failed"),
        cluster.disconnect().failure().expect("it was not in order"),
    ];
    assert!(refused.iter().all(names_the_plane), "{refused:?}");
    assert!(worker.send("too late").is_err());
    worker.disconnect();
    // A new cluster works.
    stage = Stage::new();
    let worker = stage.puppet();
    assert_eq!(stage.ask(&worker, &Order::Echo(2.into())), Reply::Echo(2.into()));
    stage.end();
}

fn a_fork_that_is_under_way_hears_of_the_panic() {
    let stage = Stage::new();
    let _armed = arm(&stage.cluster);
    // The panic happens at the fork event.
    let error = stage.cluster.fork().expect_err("the panic is in between");
    assert!(names_the_plane(&error), "{error}");
    assert!(stage.cluster.workers().is_empty());
}

/// Panics on request.
struct Panicking;

impl Scheduler for Panicking {
    fn pick(&mut self, _: &Loads, _: Client) -> Option<clusterlb_schedule::id::Slot> {
        panic!("a scheduler panics {ON_PURPOSE}");
    }
}

fn a_data_path_that_panics_is_told_of() {
    let mut stage = Stage::with(|settings| {
        let factory = SchedulerFactory::new(|_| Box::new(Panicking));
        settings.scheduling.scheduler = Some(factory);
    });
    let worker = stage.puppet();
    let address = stage.listen(&worker, "127.0.0.1:0");
    let _client = std::net::TcpStream::connect(&address).expect("a server listens");
    let error = stage.until("an error of the cluster's own", |event| match event {
        Event::Error { worker: None, error } => Some(error.to_string()),
        _ => None,
    });
    assert!(error.contains("data path ended unexpectedly"), "{error}");
    until_refused(&address);
    // Accepting has stopped. Everything else works and ends in order.
    assert_eq!(stage.ask(&worker, &Order::Echo(1.into())), Reply::Echo(1.into()));
    let refused = stage.try_listen(&worker, "127.0.0.1:0", Default::default(), Service::Greet);
    assert!(refused.expect_err("the data path has failed").1.contains("data path has failed"));
    stage.end();
}

fn a_change_of_the_settings_may_panic() {
    let stage = Stage::new();
    let cluster = stage.cluster.clone();
    let changed = thread::spawn(move || {
        cluster.setup_primary(|settings| {
            settings.args = vec!["half".into()];
            panic!("a change panics {ON_PURPOSE}");
        })
    });
    changed.join().expect_err("it has panicked");
    assert!(stage.cluster.settings().args.is_empty(), "nothing was changed");
    stage.cluster.setup_primary(|settings| settings.args = vec!["whole".into()]).expect("valid");
    assert_eq!(stage.cluster.settings().args, ["whole"]);
    stage.end();
}

fn a_worker_that_can_no_longer_read_its_channel_ends() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    let address = stage.listen(&worker, "127.0.0.1:0");
    assert_eq!(stage.ask(&worker, &Order::Trick(Trick::LoseHearing)), Reply::Done);
    worker.send(&Order::Echo(1.into())).expect("the channel is open");
    // Its program sees the end of everything and returns.
    stage.disconnected(&worker);
    assert_eq!(stage.exit(&worker).0, Ending::Code(0));
    assert_eq!(worker.exited_after_disconnect(), Some(false), "so it would be replaced");
    until_refused(&address);
    stage.end();
}

fn a_handler_that_panics_does_not_keep_a_worker() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    let tell = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = tell.local_addr().expect("it is bound").to_string();
    let trick = Trick::PanicWhenLost { address };
    assert_eq!(stage.ask(&worker, &Order::Trick(trick)), Reply::Done);
    let (mut told, _) = tell.accept().expect("the worker connects");
    worker.send(&Order::Trick(Trick::Garble)).expect("the puppet reads");
    stage.disconnected(&worker);
    let mut said = String::new();
    told.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    std::io::Read::read_to_string(&mut told, &mut said).expect("its last words");
    assert_eq!(said, "alone", "it has left in order");
    assert_eq!(stage.exit(&worker).0, Ending::Code(0));
    eventually("its process to have gone", || (!is_alive(worker.pid())).then_some(()));
    stage.end();
}
