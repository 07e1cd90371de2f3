//! Settings that change while a cluster accepts, and whether its threads are alive.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clusterlb::{ErrorKind, Policy};
use clusterlb_schedule::{Client, Loads, Scheduler, SchedulerFactory};

use crate::puppet::Service;
use crate::stage::{PATIENCE, Stage, eventually};
use crate::trials;

trials!(
    a_data_path_that_is_stuck_does_not_answer,
    a_scheduler_of_the_program_s_own_keeps_its_policy,
    a_socket_that_was_given_is_the_one_for_its_address,
);

/// Waits for a message before each choice.
struct Stuck(Arc<Mutex<Receiver<()>>>);

impl Scheduler for Stuck {
    fn pick(&mut self, _: &Loads, _: Client) -> Option<clusterlb::Slot> {
        // The end of the channel counts as a message.
        let _ = self.0.lock().expect("no other one panics").recv();
        None
    }
}

fn with_scheduler(stuck: Receiver<()>) -> Stage {
    let stuck = Arc::new(Mutex::new(stuck));
    let scheduler = SchedulerFactory::new(move |_| Box::new(Stuck(Arc::clone(&stuck))));
    Stage::with(|settings| settings.scheduling.scheduler = Some(scheduler))
}

fn a_data_path_that_is_stuck_does_not_answer() {
    let (free, stuck) = sync_channel(1);
    let mut stage = with_scheduler(stuck);
    stage.cluster.ping(PATIENCE).expect("the control plane answers for itself");
    let worker = stage.puppet();
    let address = stage.serve(&worker, "127.0.0.1:0", Service::Keep);
    stage.cluster.ping(PATIENCE).expect("both answer");
    let _client = TcpStream::connect(address).expect("it listens");
    let error =
        eventually("it to be stuck", || stage.cluster.ping(Duration::from_millis(100)).err());
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    drop(free);
    eventually("it to answer", || stage.cluster.ping(Duration::from_secs(1)).ok());
}

fn a_scheduler_of_the_program_s_own_keeps_its_policy() {
    let (_free, stuck) = sync_channel(1);
    let stage = with_scheduler(stuck);
    let changed = stage.cluster.reschedule(|policy, _| *policy = Policy::Least);
    assert!(changed.expect_err("it chooses itself").to_string().contains("scheduler"));
    let changed = stage.cluster.reschedule(|_, rules| rules.limits.inflight_max = Some(3));
    changed.expect("limits hold for every scheduler");
    assert_eq!(stage.cluster.settings().scheduling.limits.inflight_max, Some(3));
}

fn a_socket_that_was_given_is_the_one_for_its_address() {
    let mut stage = Stage::new();
    let given = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = given.local_addr().expect("it is bound").to_string();
    let copy: OwnedFd = given.try_clone().expect("a descriptor").into();
    assert_eq!(stage.cluster.adopt(copy).expect("it listens"), address);
    let stranger: OwnedFd = TcpStream::connect(&address).expect("it listens").into();
    assert!(stage.cluster.adopt(stranger).is_err());
    let worker = stage.puppet();
    // Opening it again would fail: this process already has the port.
    assert_eq!(stage.serve(&worker, &address, Service::Keep), address);
    let sockets = stage.cluster.listener_sockets().expect("the cluster lives");
    assert_eq!(sockets.len(), 1);
    assert_eq!(sockets[0].1, address);
}
