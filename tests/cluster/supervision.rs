//! Supervised workers: replaced, scaled, reloaded, inspected and ended.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::sync::mpsc::TryRecvError;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use clusterlb::{
    Cluster, ClusterSettings, Ending, ErrorKind, Event, Finished, OverloadFactor, Result,
    SlotState, Snapshot, Supervisor, SupervisorEvent, SupervisorHandle, SupervisorStage,
    WorkerHandle, WorkerId, WorkerState,
};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use crate::puppet::{Order, Reply, Service};
use crate::stage::{PATIENCE, eventually, greeter, kept};
use crate::trials;

trials!(
    a_worker_that_is_killed_is_replaced_and_keeps_its_slot,
    scaling_starts_and_ends_workers_while_the_run_goes_on,
    a_reload_replaces_every_worker_and_no_connection_fails,
    a_successor_that_ends_stops_the_reload_and_the_old_workers_stay,
    single_workers_are_replaced_drained_and_killed,
    a_worker_that_leaves_is_replaced_before_it_has_ended,
    a_program_that_is_away_is_waited_for,
    counts_are_read_while_connections_are_open,
    numbers_and_cpus_are_inherited,
    a_start_that_fails_says_what_kind_of_failure_it_was,
    nothing_can_be_asked_of_a_supervisor_that_has_ended,
);

/// The order for each new worker.
type Script = Arc<Mutex<Box<dyn FnMut(&WorkerHandle) -> Order + Send>>>;

/// A supervised cluster of puppets. Each gets an order when it runs: to serve the same address,
/// unless a test sets another.
struct Kept {
    cluster: Cluster,
    handle: SupervisorHandle,
    script: Script,
    /// The events, oldest first.
    told: Arc<Mutex<Vec<SupervisorEvent>>>,
    thread: JoinHandle<Result<Finished>>,
}

fn listen(service: Service) -> Order {
    let address = "127.0.0.1:0".to_owned();
    Order::Listen { address, options: Default::default(), service }
}

impl Kept {
    fn start(workers: u16) -> Self {
        Self::start_with(workers, Service::Greet, |_| {}, |supervisor| supervisor)
    }

    fn start_with(
        workers: u16,
        service: Service,
        change: impl FnOnce(&mut ClusterSettings),
        configure: impl FnOnce(Supervisor) -> Supervisor,
    ) -> Self {
        let cluster = Cluster::primary().expect("a primary");
        let setup = cluster.setup_primary(|settings| {
            settings.args.clear();
            settings.scheduling.hang_after_ns = None;
            settings.scheduling.limits.overload_factor = OverloadFactor::Off;
            // The address outlives the workers that serve it.
            settings.hold = true;
            change(settings);
        });
        setup.expect("valid settings");
        let script: Script = Arc::new(Mutex::new(Box::new(move |_| listen(service))));
        let told = Arc::new(Mutex::new(Vec::new()));
        let (read, heard) = (Arc::clone(&script), Arc::clone(&told));
        let supervisor = Supervisor::new(cluster.clone()).workers(workers).settle(Duration::ZERO);
        let mut supervisor = configure(supervisor).on_event(move |event| {
            if let SupervisorEvent::Cluster(Event::Online { worker }) = event {
                let order = read.lock().expect("no panic")(worker);
                // A worker that is being ended no longer reads.
                let _ = worker.send(&order);
            }
            heard.lock().expect("no panic").push(event.clone());
        });
        let handle = supervisor.handle().expect("a descriptor");
        let thread = std::thread::spawn(move || supervisor.run());
        Self { cluster, handle, script, told, thread }
    }

    /// Sets the order for workers started from now on.
    fn direct(&self, script: impl FnMut(&WorkerHandle) -> Order + Send + 'static) {
        *self.script.lock().expect("no panic") = Box::new(script);
    }

    /// The first event for which `look` returns something.
    fn until<T>(&self, what: &str, look: impl Fn(&SupervisorEvent) -> Option<T>) -> T {
        eventually(what, || self.told.lock().expect("no panic").iter().find_map(&look))
    }

    fn count(&self, is: impl Fn(&SupervisorEvent) -> bool) -> usize {
        self.told.lock().expect("no panic").iter().filter(|event| is(event)).count()
    }

    /// The address, once all workers serve.
    fn address(&self) -> String {
        self.until("the run to begin", |event| match event {
            SupervisorEvent::Listening { address, .. } => Some(address.clone()),
            _ => None,
        })
    }

    /// Waits until exactly this many workers serve.
    fn settled(&self, workers: usize) -> Snapshot {
        eventually("the workers to serve", || {
            let snapshot = self.handle.snapshot();
            let serve = snapshot.workers.iter().all(|one| one.state == WorkerState::Serving);
            (serve && snapshot.workers.len() == workers && !snapshot.reloading).then_some(snapshot)
        })
    }

    fn worker(&self, id: WorkerId) -> WorkerHandle {
        self.cluster.workers()[&id].clone()
    }

    /// Ends in order, and fails if anything is left.
    fn end(self) -> Finished {
        let stopped = self.handle.stop(None).expect("it runs");
        assert!(stopped.wait_timeout(PATIENCE), "{:?}", self.handle.snapshot());
        let finished = self.thread.join().expect("it does not panic").expect("an orderly end");
        assert_eq!(self.handle.snapshot().stage, SupervisorStage::Ended);
        assert!(self.cluster.workers().is_empty());
        finished
    }
}

fn ids(snapshot: &Snapshot) -> Vec<u32> {
    snapshot.workers.iter().map(|one| one.id.get()).collect()
}

fn a_worker_that_is_killed_is_replaced_and_keeps_its_slot() {
    let kept = Kept::start(2);
    let address = kept.address();
    let before = kept.settled(2);
    assert_eq!((before.stage, ids(&before)), (SupervisorStage::Serving, vec![1, 2]));
    assert_eq!(before.slots.iter().map(|slot| slot.restarts).sum::<u64>(), 0);
    crate::stage::signal(before.workers[1].pid, clusterlb::Signal::SIGKILL);
    kept.until("the respawn", |event| match event {
        SupervisorEvent::Respawn { slot: 1, worker, .. } if *worker == WorkerId::new(2) => Some(()),
        _ => None,
    });
    let after = kept.settled(2);
    assert_eq!((ids(&after), after.workers[1].slot), (vec![1, 3], 1));
    assert_eq!(after.slots[1].state, SlotState::Filled(WorkerId::new(3)));
    assert_eq!((after.slots[0].restarts, after.slots[1].restarts), (0, 1));
    assert_eq!(after.workers[0].since, before.workers[0].since, "nothing has changed there");
    let greeters: BTreeSet<u32> = (0..4).map(|_| greeter(&address)).collect();
    assert_eq!(greeters, [1, 3].into());
    let finished = kept.end();
    assert_eq!((finished.counts.accepted, finished.counts.dropped), (4, 0));
}

fn scaling_starts_and_ends_workers_while_the_run_goes_on() {
    let kept = Kept::start(1);
    let address = kept.address();
    for count in [3, 2, 4, 1] {
        let scaled = kept.handle.scale(count).expect("it can be");
        while !scaled.is_complete() {
            greeter(&address);
        }
        assert!(scaled.failure().is_none(), "{:?}", scaled.failure());
        let snapshot = kept.settled(count.into());
        assert_eq!(snapshot.slots.len(), usize::from(count));
        let slots: BTreeSet<u16> = snapshot.workers.iter().map(|one| one.slot).collect();
        assert_eq!(slots, (0..count).collect());
    }
    for count in [0, 1025] {
        let error = kept.handle.scale(count).expect_err("it cannot be");
        assert_eq!(error.kind(), ErrorKind::Usage);
    }
    let finished = kept.end();
    assert_eq!(finished.counts.dropped, 0);
}

fn a_reload_replaces_every_worker_and_no_connection_fails() {
    let settle = Duration::from_millis(100);
    let kept = Kept::start_with(2, Service::Greet, |_| {}, |supervisor| supervisor.settle(settle));
    let address = kept.address();
    kept.settled(2);
    let [one, other] = [(); 2].map(|()| kept.handle.reload().expect("it serves"));
    let mut most = 0;
    while !(one.is_complete() && other.is_complete()) {
        greeter(&address);
        most = most.max(kept.handle.snapshot().workers.len());
    }
    assert!(one.failure().is_none() && other.failure().is_none());
    let after = kept.settled(2);
    assert_eq!(ids(&after), [5, 6], "the second one followed the first");
    assert_eq!(most, 3, "one at a time");
    let reloaded = kept.count(|event| matches!(event, SupervisorEvent::Reloaded));
    let queued = kept.count(|event| matches!(event, SupervisorEvent::ReloadQueued));
    assert_eq!((reloaded, queued), (2, 1));
    assert_eq!(kept.end().counts.dropped, 0);
}

fn a_successor_that_ends_stops_the_reload_and_the_old_workers_stay() {
    let settle = Duration::from_secs(3600);
    let kept = Kept::start_with(3, Service::Greet, |_| {}, |supervisor| supervisor.settle(settle));
    let address = kept.address();
    kept.settled(3);
    let reload = kept.handle.reload().expect("it serves");
    let successor = eventually("the successor to serve", || {
        let serving = |one: &&clusterlb::WorkerSnapshot| one.state == WorkerState::Serving;
        let snapshot = kept.handle.snapshot();
        snapshot.workers.iter().filter(serving).find(|one| one.id == WorkerId::new(4)).cloned()
    });
    assert_eq!((successor.slot, kept.handle.snapshot().reloading), (0, true));
    assert!(!reload.is_complete(), "it has not settled");
    kept.worker(successor.id).send(&Order::Exit { code: 1 }).expect("the puppet reads");
    assert!(reload.wait_timeout(PATIENCE));
    let failure = reload.failure().expect("it has stopped");
    assert_eq!(failure.kind(), ErrorKind::ReloadStopped);
    assert!(failure.to_string().contains("worker 4 ended before it had settled"), "{failure}");
    assert_eq!(ids(&kept.settled(3)), [1, 2, 3]);
    let greeters: BTreeSet<u32> = (0..6).map(|_| greeter(&address)).collect();
    assert_eq!(greeters, [1, 2, 3].into());
    kept.end();
}

fn single_workers_are_replaced_drained_and_killed() {
    let kept = Kept::start(2);
    kept.settled(2);
    let asked = kept.handle.replace(WorkerId::new(1)).expect("it serves");
    assert!(asked.wait_timeout(PATIENCE) && asked.failure().is_none());
    let replaced = kept.settled(2);
    assert_eq!((ids(&replaced), replaced.workers[1].slot), (vec![2, 3], 0));
    for (drained, asked) in [
        (WorkerId::new(2), kept.handle.drain(WorkerId::new(2))),
        (WorkerId::new(3), kept.handle.kill(WorkerId::new(3))),
    ] {
        let asked = asked.expect("it is there");
        assert!(asked.wait_timeout(PATIENCE) && asked.failure().is_none());
        assert!(!kept.cluster.workers().contains_key(&drained));
    }
    assert_eq!(ids(&kept.settled(2)), [4, 5]);
    let killed = kept.until("the end of the killed one", |event| match event {
        SupervisorEvent::Cluster(Event::Exit { worker, ending, .. }) => {
            (worker.id() == WorkerId::new(3)).then_some(*ending)
        }
        _ => None,
    });
    assert_eq!(killed, Ending::Signal(9));
    for asked in [kept.handle.replace(WorkerId::new(1)), kept.handle.kill(WorkerId::new(99))] {
        assert_eq!(asked.expect_err("it is not there").kind(), ErrorKind::NoSuchWorker);
    }
    kept.end();
}

fn a_worker_that_leaves_is_replaced_before_it_has_ended() {
    let kept = Kept::start_with(1, Service::Keep, |_| {}, |supervisor| supervisor);
    let address = kept.address();
    let (mut open, first) = crate::stage::kept(&address);
    assert_eq!(first, 1);
    let leaver = kept.worker(WorkerId::new(1));
    leaver.send(&Order::Disconnect).expect("the puppet reads");
    // The old worker cannot end, because a connection is open.
    eventually("the one to leave and the other to serve", || {
        let states: Vec<_> = kept.handle.snapshot().workers.iter().map(|one| one.state).collect();
        (states == [WorkerState::Leaving, WorkerState::Serving]).then_some(())
    });
    let (other, second) = crate::stage::kept(&address);
    assert_eq!(second, 2);
    assert_eq!(kept.handle.snapshot().slots[0].state, SlotState::Filled(WorkerId::new(2)));
    leaver.send(&Order::Release).expect("the puppet reads");
    let mut rest = String::new();
    open.read_to_string(&mut rest).expect("an orderly end");
    assert_eq!(ids(&kept.settled(1)), [2], "its end starts no other one");
    kept.worker(WorkerId::new(2)).send(&Order::Release).expect("the puppet reads");
    drop(other);
    kept.end();
}

fn a_program_that_is_away_is_waited_for() {
    let kept = Kept::start(2);
    let address = kept.address();
    kept.settled(2);
    let here = kept.cluster.settings().exec.clone();
    let change = |settings: &mut ClusterSettings| settings.exec = "/nowhere/at/all".into();
    kept.cluster.setup_primary(change).expect("valid settings");
    crate::stage::signal(kept.worker(WorkerId::new(1)).pid(), clusterlb::Signal::SIGKILL);
    let failures = |event: &SupervisorEvent| {
        matches!(event, SupervisorEvent::SpawnFailed { error, retry: Some(_), .. }
            if error.kind() == ErrorKind::NotFound)
    };
    eventually("two failures", || (kept.count(failures) >= 2).then_some(()));
    assert_eq!(greeter(&address), 2, "the others serve on");
    let reload = kept.handle.reload().expect("it serves");
    assert!(reload.wait_timeout(PATIENCE) && reload.failure().is_some());
    kept.cluster.setup_primary(|settings| settings.exec = here).expect("valid settings");
    kept.settled(2);
    kept.end();
}

fn counts_are_read_while_connections_are_open() {
    let kept = Kept::start_with(2, Service::Keep, |_| {}, |supervisor| supervisor);
    let address = kept.address();
    let mut open: Vec<_> = (0..6).map(|_| self::kept(&address).0).collect();
    let sum = eventually("the counts", || {
        let sum = kept.cluster.worker_counts();
        (sum.claimed == 6 && kept.cluster.counts().accepted == 6).then_some(sum)
    });
    assert_eq!((sum.assigned, sum.in_flight(), sum.finished), (6, 6, 0));
    for worker in kept.handle.snapshot().workers {
        assert_eq!((worker.counts.claimed, worker.counts.in_flight()), (3, 3));
    }
    let first = kept.worker(WorkerId::new(1));
    first.send(&Order::Release).expect("the puppet reads");
    eventually("the connections to be finished", || {
        let counts = first.counts();
        (counts.finished == 3 && counts.in_flight() == 0).then_some(())
    });
    // Connections open at a worker's end are lost, and stay counted.
    let second = kept.worker(WorkerId::new(2));
    second.kill(clusterlb::Signal::SIGKILL).expect("it is ours");
    eventually("its end", || (second.counts().aborted == 3).then_some(()));
    assert_eq!(kept.cluster.worker_counts().aborted, 3);
    open.clear();
    let counts = kept.cluster.counts();
    assert_eq!((counts.accepted, counts.waiting, counts.dropped), (6, 0, 0));
    assert_eq!(kept.end().counts.accepted, 6);
}

fn numbers_and_cpus_are_inherited() {
    let allowed = sched_getaffinity(Pid::from_raw(0)).expect("it is this process");
    let is_allowed = |cpu: &usize| allowed.is_set(*cpu).unwrap_or(false);
    let cpu = (0..CpuSet::count()).find(is_allowed).expect("it runs somewhere");
    let cpus = vec![None, Some(cpu), None];
    let kept = Kept::start_with(
        3,
        Service::Greet,
        |settings| settings.cpus = cpus,
        |supervisor| supervisor,
    );
    kept.settled(3);
    let mut round = 0;
    let mut look = |kept: &Kept| {
        round += 1;
        let snapshot = kept.settled(3);
        let (heard, told) = (Arc::clone(&kept.told), Order::Tell);
        for one in &snapshot.workers {
            let pinned = (one.slot == 1).then_some(cpu);
            assert_eq!(one.cpu, pinned, "round {round}: {snapshot:?}");
            kept.worker(one.id).send(&told).expect("the puppet reads");
            let facts = eventually("what it is", || {
                let heard = heard.lock().expect("no panic");
                heard.iter().find_map(|event| match event {
                    SupervisorEvent::Cluster(Event::Message { worker, message }) => {
                        let reply = message.parse().ok().filter(|_| worker.id() == one.id)?;
                        match reply {
                            Reply::Facts(facts) => Some(facts),
                            _ => None,
                        }
                    }
                    _ => None,
                })
            });
            assert_eq!(facts.instance, Some(one.slot.to_string()));
        }
    };
    look(&kept);
    for _ in 0..3 {
        let reload = kept.handle.reload().expect("it serves");
        assert!(reload.wait_timeout(PATIENCE) && reload.failure().is_none());
        look(&kept);
    }
    let victim = kept.settled(3).workers.iter().find(|one| one.slot == 1).map(|one| one.id);
    let killed = kept.handle.kill(victim.expect("it is filled")).expect("it is there");
    assert!(killed.wait_timeout(PATIENCE));
    look(&kept);
    kept.end();
}

fn a_start_that_fails_says_what_kind_of_failure_it_was() {
    let kept = Kept::start_with(
        1,
        Service::Greet,
        |_| {},
        |supervisor| supervisor.start_limit(Duration::from_millis(1)),
    );
    let error = kept.thread.join().expect("no panic").expect_err("no worker is so fast");
    assert_eq!(error.kind(), ErrorKind::StartTimeout, "{error}");
    let kept = Kept::start_with(
        2,
        Service::Greet,
        |_| {},
        |supervisor| supervisor.variable(crate::puppet::BRIEF, "3"),
    );
    let error = kept.thread.join().expect("no panic").expect_err("they end at once");
    assert_eq!(error.kind(), ErrorKind::StartFailed, "{error}");
    assert!(error.to_string().contains("exit code 3"), "{error}");
    let gone = |settings: &mut ClusterSettings| settings.exec = "/nowhere/at/all".into();
    let kept = Kept::start_with(2, Service::Greet, gone, |supervisor| supervisor);
    let error = kept.thread.join().expect("no panic").expect_err("there is no such program");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::NotFound);
    assert!(kept.cluster.workers().is_empty());
}

fn nothing_can_be_asked_of_a_supervisor_that_has_ended() {
    let kept = Kept::start(1);
    kept.settled(1);
    let handle = kept.handle.clone();
    let mut events = handle.events().expect("a descriptor");
    kept.direct(|_| panic!("no other worker is started"));
    kept.end();
    assert!(matches!(events.by_ref().last(), Some(SupervisorEvent::Ended { .. })));
    assert_eq!(events.try_recv().err(), Some(TryRecvError::Disconnected));
    for asked in [handle.reload(), handle.scale(2), handle.stop(None)] {
        assert_eq!(asked.expect_err("it has ended").kind(), ErrorKind::Ended);
    }
    assert!(handle.snapshot().workers.is_empty());
}
