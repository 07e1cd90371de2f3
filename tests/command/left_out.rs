//! The kernel dispatches, and every worker is left out: it then chooses by hash and counts nothing.
//! What comes in that time is answered as soon as one worker is back, whichever socket it waits in.

use nix::sys::signal::Signal;

use super::dispatch::{HELLO_SERVER, all, all_answered, books, held_by_each};
use super::steal::{Script, asking};
use crate::common::{Client, Cluster, eventually, machine};

/// Stops all workers, and lets clients ask until every worker is left out. The first one is because
/// it leaves a client in its socket. The others follow when they do not take what they are handed
/// or what comes for them.
fn leave_all_out(cluster: &Cluster) -> Vec<Client> {
    // Each has accepted something, so the primary has left its queue to the kernel.
    drop(held_by_each(cluster));
    let hung = cluster.count("hung");
    cluster.worker_pids().into_iter().for_each(machine::suspend);
    let mut clients = asking(&cluster.address(), 1);
    cluster.event("hung", hung);
    eventually("the kernel to give connections to all of them", || {
        clients.extend(asking(&cluster.address(), 4));
        machine::queues(cluster.port()).iter().all(|length| *length > 0).then_some(())
    });
    clients
}

#[test]
fn what_comes_while_all_are_left_out_is_answered_by_the_first_that_is_back() {
    let script = Script::new(HELLO_SERVER);
    let launches = all("--workers 3 --hang-after 100ms", script.as_ref());
    for (launch, place) in launches.zip([0, 2, 2, 0]) {
        let cluster = launch.start();
        let workers = cluster.worker_pids();
        let mut clients = leave_all_out(&cluster);
        clients.extend(asking(&cluster.address(), 20));
        let asked = clients.len();
        machine::signal(workers[place], Signal::SIGCONT);
        assert_eq!(all_answered(clients), asked);
        workers.iter().for_each(|worker| machine::signal(*worker, Signal::SIGCONT));
        assert_eq!(all_answered(asking(&cluster.address(), 20)), 20);
        books(cluster);
    }
}

#[test]
fn a_worker_that_hangs_is_replaced_if_no_other_can_take_what_waits_for_it() {
    let script = Script::new(HELLO_SERVER);
    for launch in all("--workers 1 --hang-after 200ms --hang-kill 1s", script.as_ref()) {
        let cluster = launch.start();
        assert_eq!(all_answered(asking(&cluster.address(), 3)), 3);
        machine::suspend(cluster.worker_pids()[0]);
        // The one that replaces it answers.
        assert_eq!(all_answered(asking(&cluster.address(), 3)), 3);
        assert!(cluster.count("hung") > 0 && cluster.count("kill") > 0);
        let summary = cluster.stop(Signal::SIGTERM).summary();
        assert_eq!((summary.accepted, summary.dropped), (6, 0), "{summary:?}");
    }
}
