//! Workers with kernel dispatch: they accept from their own sockets, and receive connections of
//! other workers from the primary through their inboxes.

use std::collections::BTreeSet;

use clusterlb::{Dispatch, ErrorKind, Policy};

use crate::puppet::Service;
use crate::stage::{Stage, eventually, greeter, kept, until_refused};
use crate::trials;

trials!(
    every_worker_accepts_and_what_it_accepts_is_counted,
    a_closed_listener_leaves_its_connections_to_others,
    what_a_worker_leaves_in_its_socket_goes_to_others,
    what_waits_for_a_killed_worker_goes_to_others,
    threads_and_edges_are_woken_by_both_sources,
    rules_that_the_kernel_cannot_follow_are_refused,
);

fn stage() -> Stage {
    Stage::with(|settings| settings.dispatch = Dispatch::Kernel)
}

fn stage_with_detection() -> Stage {
    Stage::with(|settings| {
        settings.dispatch = Dispatch::Kernel;
        settings.scheduling.hang_after_ns = Some(100_000_000);
    })
}

fn every_worker_accepts_and_what_it_accepts_is_counted() {
    let mut stage = stage();
    let (workers, address) = stage.shared(3);
    let (mut left, mut count): (BTreeSet<u32>, u64) = ((1..=3).collect(), 0);
    eventually("every worker to greet", || {
        left.remove(&greeter(&address));
        count += 1;
        left.is_empty().then_some(())
    });
    let mut sum = 0;
    for worker in &workers {
        worker.disconnect();
        let counts = stage.exit(worker).1;
        assert!(counts.own > 0, "{counts:?}");
        assert_eq!((counts.finished, counts.aborted), (counts.assigned, 0), "{counts:?}");
        sum += counts.assigned;
    }
    assert_eq!(sum, count);
    until_refused(&address);
    stage.end();
}

fn a_closed_listener_leaves_its_connections_to_others() {
    let mut stage = stage();
    let (workers, address) = stage.shared(2);
    for _ in 0..3 {
        stage.close(&workers[0], "127.0.0.1:0");
        eventually("the other one to get everything", || {
            (0..8).all(|_| greeter(&address) == 2).then_some(())
        });
        assert_eq!(stage.listen(&workers[0], "127.0.0.1:0"), address);
        eventually("both to get something", || (greeter(&address) == 1).then_some(()));
    }
    for worker in &workers {
        stage.close(worker, "127.0.0.1:0");
    }
    until_refused(&address);
    stage.end();
}

fn what_a_worker_leaves_in_its_socket_goes_to_others() {
    let mut stage = stage_with_detection();
    let (idle, other) = (stage.puppet(), stage.puppet());
    let address = stage.serve(&idle, "127.0.0.1:0", Service::Ignore);
    stage.listen(&other, "127.0.0.1:0");
    let greeted: Vec<u32> = (0..30).map(|_| greeter(&address)).collect();
    assert_eq!(greeted, [2; 30]);
    assert!(stage.cluster.counts().stolen > 0, "{:?}", stage.cluster.counts());
    stage.end_by_force();
}

fn what_waits_for_a_killed_worker_goes_to_others() {
    let mut stage = stage_with_detection();
    let (workers, address) = stage.shared(3);
    for (place, worker) in workers.iter().enumerate().take(2) {
        worker.kill(clusterlb::Signal::SIGKILL).expect("it is ours");
        // Even before the exit has been noticed.
        assert!(greeter(&address) > 1);
        stage.exit(worker);
        let expected: BTreeSet<u32> =
            (place + 2..=3).map(|id| u32::try_from(id).expect("small")).collect();
        let mut greeted = BTreeSet::new();
        eventually("all others to greet", || {
            greeted.insert(greeter(&address));
            (greeted == expected).then_some(())
        });
    }
    stage.end();
}

fn threads_and_edges_are_woken_by_both_sources() {
    let mut stage = stage_with_detection();
    let (threads, edges) = (stage.puppet(), stage.puppet());
    let address = stage.serve(&threads, "127.0.0.1:0", Service::GreetByThree);
    stage.serve(&edges, "127.0.0.1:0", Service::KeepByEdges);
    // The connections this one leaves unaccepted reach them through their inboxes.
    let lazy = stage.puppet();
    stage.serve(&lazy, "127.0.0.1:0", Service::Ignore);
    let mut greeters = BTreeSet::new();
    let _clients: Vec<_> = (0..60)
        .map(|_| {
            let (client, greeter) = kept(&address);
            greeters.insert(greeter);
            client
        })
        .collect();
    assert_eq!(greeters, BTreeSet::from([1, 2]));
    stage.end_by_force();
}

fn rules_that_the_kernel_cannot_follow_are_refused() {
    let cluster = clusterlb::Cluster::with_policy(Policy::Rr).expect("a primary");
    for policy in [Policy::Central, Policy::None] {
        let set = cluster.setup_primary(|settings| {
            (settings.policy, settings.dispatch) = (policy, Dispatch::Kernel);
        });
        assert_eq!(set.expect_err("not by the kernel").kind(), ErrorKind::Usage);
    }
    let set = cluster.setup_primary(|settings| settings.dispatch = Dispatch::Kernel);
    set.expect("rr is possible");
    let changed = cluster.reschedule(|policy, _| *policy = Policy::Central);
    assert_eq!(changed.expect_err("nor later").kind(), ErrorKind::Usage);
    cluster.reschedule(|policy, _| *policy = Policy::Least).expect("that is possible");
}
