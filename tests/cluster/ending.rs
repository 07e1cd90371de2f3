//! How workers and clusters end: on request, killed, lost, or all at once.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use clusterlb::Signal;
use clusterlb::{Ending, Event, ForkOptions, Policy};

use crate::puppet::{BRIEF, Order, SLEEPY, Service};
use crate::stage::{
    PATIENCE, Stage, another_primary, eventually, greeter, is_alive, kept, until_free,
    until_refused,
};
use crate::trials;

trials!(
    the_code_of_an_exit_is_told,
    the_signal_of_a_kill_is_told,
    exited_after_disconnect_tells_which_worker_was_asked,
    a_worker_that_disconnects_finishes_its_connections_first,
    a_worker_that_leaves_unasked_finishes_its_connections_first,
    what_waits_goes_to_the_last_worker_that_leaves,
    an_idle_worker_can_be_disconnected_right_after_its_fork,
    disconnecting_twice_and_killing_afterwards_is_harmless,
    racing_ends_leave_no_process_behind,
    the_cluster_is_disconnected_when_the_last_worker_has_gone,
    a_cluster_without_workers_is_disconnected_at_once,
    a_cluster_can_go_on_after_a_disconnect,
    a_dropped_cluster_leaves_no_process_behind,
    workers_end_when_their_primary_is_lost_unless_they_know_better,
    a_channel_inherited_by_another_process_does_not_delay_the_end,
);

fn the_code_of_an_exit_is_told() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    worker.send(&Order::Exit { code: 42 }).expect("the puppet reads");
    stage.disconnected(&worker);
    assert_eq!(stage.exit(&worker).0, Ending::Code(42));
    assert_eq!(worker.exited_after_disconnect(), Some(false));
    assert_eq!(worker.ending(), Some(Ending::Code(42)));
    let brief = stage.cluster.fork_with(ForkOptions::default().variable(BRIEF, "3"));
    let brief = brief.expect("a worker");
    assert_eq!(stage.exit(&brief).0, Ending::Code(3));
    stage.disconnected(&brief);
    let was_online = |event: &Event| matches!(event, Event::Online { worker } if *worker == brief);
    assert!(!stage.has_heard(was_online), "it never said hello");
    stage.end();
}

fn the_signal_of_a_kill_is_told() {
    let mut stage = Stage::new();
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGUSR1] {
        let worker = stage.puppet();
        worker.kill(signal).expect("it is ours");
        assert_eq!(stage.exit(&worker).0, Ending::Signal(signal as i32));
        assert_eq!(worker.exited_after_disconnect(), Some(false));
        worker.kill(signal).expect("signalling an ended process is fine");
    }
    stage.end();
}

fn exited_after_disconnect_tells_which_worker_was_asked() {
    let mut stage = Stage::new();
    let orders = [
        (None, true),
        (Some(Order::Disconnect), true),
        (Some(Order::Kill), true),
        (Some(Order::Exit { code: 0 }), false),
    ];
    for (order, voluntary) in orders {
        let worker = stage.puppet();
        assert_eq!(worker.exited_after_disconnect(), None);
        match &order {
            Some(order) => worker.send(order).expect("the puppet reads"),
            None => {
                worker.disconnect();
                assert_eq!(worker.exited_after_disconnect(), Some(true), "it is set at once");
            }
        }
        assert_eq!(stage.exit(&worker).0, Ending::Code(0), "{order:?}");
        assert_eq!(worker.exited_after_disconnect(), Some(voluntary), "{order:?}");
    }
    stage.end();
}

/// A worker with two connections leaves by way of `leave`, while another worker keeps serving.
fn finishes_first(policy: Policy, leave: impl FnOnce(&clusterlb::WorkerHandle)) {
    let mut stage = Stage::with(|settings| settings.policy = policy);
    let worker = stage.puppet();
    let address = stage.serve(&worker, "127.0.0.1:0", Service::Keep);
    let mut open = [kept(&address).0, kept(&address).0];
    let other = stage.puppet();
    stage.listen(&other, "127.0.0.1:0");
    leave(&worker);
    // From now on every connection goes to the other worker.
    eventually("the worker to leave", || {
        worker.exited_after_disconnect().filter(|voluntary| *voluntary)
    });
    eventually("the other one to get everything", || {
        let answers: Vec<String> = (0..4).map(|_| ask_briefly(&address)).collect();
        answers.iter().all(|answer| answer == "worker 2\n").then_some(())
    });
    assert!(worker.is_connected() && !worker.is_dead(), "it has connections to finish");
    worker.send(&Order::Release).expect("it still reads");
    let mut rest = String::new();
    for stream in &mut open {
        stream.read_to_string(&mut rest).expect("an orderly end");
    }
    let (ending, counts) = stage.exit(&worker);
    assert_eq!((ending, rest.as_str(), counts.aborted), (Ending::Code(0), "", 0));
    assert!(counts.handoff.is_some(), "it said goodbye");
    stage.end();
}

/// A greeting from any worker; it may keep the connection.
fn ask_briefly(address: &str) -> String {
    let (_, number) = kept(address);
    format!("worker {number}\n")
}

fn a_worker_that_disconnects_finishes_its_connections_first() {
    for policy in [Policy::Rr, Policy::None] {
        finishes_first(policy, |worker| worker.disconnect());
    }
}

fn a_worker_that_leaves_unasked_finishes_its_connections_first() {
    for policy in [Policy::Rr, Policy::None] {
        let leave = |worker: &clusterlb::WorkerHandle| worker.send(&Order::Disconnect);
        finishes_first(policy, |worker| leave(worker).expect("the puppet reads"));
    }
}

fn what_waits_goes_to_the_last_worker_that_leaves() {
    let mut stage = Stage::with(|settings| settings.scheduling.limits.inflight_max = Some(1));
    let worker = stage.puppet();
    let address = stage.serve(&worker, "127.0.0.1:0", Service::Keep);
    let (_open, _) = kept(&address);
    let connect = || std::net::TcpStream::connect(&address).expect("the backlog has room");
    let waiting: Vec<std::net::TcpStream> = (0..10).map(|_| connect()).collect();
    worker.disconnect();
    // The worker is at its limit, so it gets the next connection when it finishes one.
    for mut stream in waiting {
        let mut greeting = [0; 9];
        stream.set_read_timeout(Some(Duration::from_millis(20))).expect("it is a socket");
        eventually("a greeting", || {
            worker.send(&Order::Release).expect("it still reads");
            stream.read_exact(&mut greeting).ok()
        });
        assert_eq!(&greeting, b"worker 1\n");
    }
    let _ = worker.send(&Order::Release);
    let (ending, counts) = stage.exit(&worker);
    assert_eq!((ending, counts.claimed, counts.aborted), (Ending::Code(0), 11, 0));
    until_refused(&address);
    stage.end();
}

fn an_idle_worker_can_be_disconnected_right_after_its_fork() {
    for policy in [Policy::Rr, Policy::None] {
        let mut stage = Stage::with(|settings| settings.policy = policy);
        let worker = stage.cluster.fork().expect("a worker");
        worker.disconnect();
        stage.disconnected(&worker);
        assert_eq!(stage.exit(&worker).0, Ending::Code(0));
        assert!(stage.cluster.workers().is_empty());
    }
}

fn disconnecting_twice_and_killing_afterwards_is_harmless() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    stage.listen(&worker, "127.0.0.1:0");
    worker.disconnect();
    worker.disconnect();
    stage.disconnected(&worker);
    worker.disconnect();
    stage.exit(&worker);
    worker.disconnect();
    worker.kill(Signal::SIGTERM).expect("signalling an ended process succeeds");
    assert!(worker.send("too late").is_err());
    let again = |event: &Event| {
        matches!(event, Event::Disconnect { .. } | Event::Exit { .. } | Event::Error { .. })
    };
    assert!(!stage.has_heard(again), "each is told once");
    stage.end();
}

fn racing_ends_leave_no_process_behind() {
    let mut stage = Stage::new();
    for round in 0..3 {
        let workers: Vec<_> = (0..6).map(|_| stage.puppet()).collect();
        for worker in &workers {
            stage.serve(worker, "127.0.0.1:0", Service::Greet);
        }
        std::thread::scope(|scope| {
            for (place, worker) in workers.iter().enumerate() {
                scope.spawn(move || match (place + round) % 3 {
                    0 => worker.disconnect(),
                    1 => drop(worker.send(&Order::Disconnect)),
                    _ => drop(worker.kill(Signal::SIGTERM)),
                });
                scope.spawn(|| worker.disconnect());
            }
        });
        for worker in &workers {
            stage.exit(worker);
        }
    }
    assert!(stage.cluster.workers().is_empty());
    stage.end();
}

fn the_cluster_is_disconnected_when_the_last_worker_has_gone() {
    let mut stage = Stage::new();
    let (first, second) = (stage.puppet(), stage.puppet());
    let address = stage.serve(&first, "127.0.0.1:0", Service::Keep);
    let further = stage.serve(&second, "127.0.0.1:0", Service::Keep);
    assert_eq!(address, further);
    let open = [kept(&address), kept(&address)];
    let of = |number: u32| open.iter().position(|(_, one)| *one == number).expect("one each");
    assert_ne!(of(1), of(2));
    let completion = stage.cluster.disconnect();
    first.send(&Order::Release).expect("it still reads");
    stage.exit(&first);
    assert!(!completion.is_complete(), "the second one is still there");
    until_refused(&address);
    second.send(&Order::Release).expect("it still reads");
    assert!(completion.wait_timeout(PATIENCE));
    assert!(second.is_dead());
    until_free(&address);
    stage.end();
}

fn a_cluster_without_workers_is_disconnected_at_once() {
    let stage = Stage::new();
    assert!(stage.cluster.disconnect().wait_timeout(PATIENCE));
    let held = stage.cluster.hold(&"127.0.0.1:0".parse().expect("an address"));
    let (_, address) = held.expect("a free port");
    assert!(stage.cluster.disconnect().wait_timeout(PATIENCE));
    // The held socket is closed too.
    until_refused(&address);
    stage.end();
}

fn a_cluster_can_go_on_after_a_disconnect() {
    const WORKERS: u32 = 4;
    for policy in [Policy::Rr, Policy::None] {
        let mut stage = Stage::with(|settings| settings.policy = policy);
        let mut before: Option<[String; 2]> = None;
        for round in 0..2 {
            let workers: Vec<_> = (0..WORKERS).map(|_| stage.puppet()).collect();
            let mut served = Vec::new();
            for worker in &workers {
                let any = "127.0.0.1:0";
                served.push([stage.listen(worker, any), stage.listen(worker, any)]);
            }
            let last = served.pop().expect("there are some");
            assert!(served.iter().all(|one| *one == last), "{served:?}");
            assert!(before.is_none_or(|before| before == last), "the ports stay");
            let numbers = round * WORKERS + 1..=(round + 1) * WORKERS;
            assert!(last.iter().all(|address| numbers.contains(&greeter(address))));
            assert!(stage.cluster.disconnect().wait_timeout(PATIENCE));
            assert!(workers.iter().all(|worker| worker.is_dead()));
            last.iter().for_each(|address| until_free(address));
            before = Some(last);
        }
        stage.end();
    }
}

fn a_dropped_cluster_leaves_no_process_behind() {
    let mut stage = Stage::new();
    let workers = [stage.puppet(), stage.puppet()];
    let address = stage.listen(&workers[0], "127.0.0.1:0");
    workers[1].send(&Order::Deafen).expect("the puppet reads");
    drop(stage);
    assert!(workers.iter().all(|worker| !is_alive(worker.pid())));
    // Handles that are still held see it.
    assert!(workers.iter().all(|worker| worker.is_dead() && !worker.is_connected()));
    assert!(workers.iter().all(|worker| worker.ending() == Some(Ending::Signal(9))));
    until_free(&address);
}

fn workers_end_when_their_primary_is_lost_unless_they_know_better() {
    let tell = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let told_at = tell.local_addr().expect("it is bound").to_string();
    let mut primary = another_primary("lost", Path::new("/proc/self/exe"))
        .arg(&told_at)
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program runs");
    let mut words = String::new();
    let output = primary.stdout.take().expect("a pipe");
    BufReader::new(output).read_line(&mut words).expect("it tells its workers");
    let words: Vec<&str> = words.split_whitespace().collect();
    let [worker, other, address] = words[..] else { panic!("{words:?}") };
    let (worker, other) = (worker.parse().expect("a pid"), other.parse().expect("a pid"));
    let (mut open, _) = kept(address);
    let (mut told, _) = tell.accept().expect("the other worker connects");
    primary.kill().expect("it is ours");
    primary.wait().expect("it is ours");
    // One exits at once, which cuts its connection; the other says so and then leaves.
    let mut rest = Vec::new();
    let _ = open.read_to_end(&mut rest);
    eventually("the worker to end", || (!is_alive(worker)).then_some(()));
    let mut said = String::new();
    told.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    told.read_to_string(&mut said).expect("its last words");
    assert_eq!(said, "alone");
    eventually("the other worker to end", || (!is_alive(other)).then_some(()));
    until_free(address);
}

fn a_channel_inherited_by_another_process_does_not_delay_the_end() {
    let mut stage = Stage::with(|settings| {
        settings.exec = "/bin/sh".into();
        // The worker's child keeps all of its descriptors for a while.
        settings.args = vec!["-c".into(), "sleep 5 & exit 9".into()];
    });
    let worker = stage.cluster.fork().expect("there is a shell");
    stage.disconnected(&worker);
    assert_eq!(stage.exit(&worker).0, Ending::Code(9));
    let sleepy = ForkOptions::default().variable(SLEEPY, "0");
    assert!(stage.cluster.fork_with(sleepy).is_ok());
    stage.end();
}
