//! The kernel dispatches, and every worker is left out: it then chooses by hash and counts nothing.
//! What comes in that time is answered as soon as one worker is back, whichever socket it waits in.

use nix::sys::signal::Signal;

use super::dispatch::{HELLO_SERVER, all, all_answered, books};
use super::steal::{Script, asking};
use crate::common::{Client, Cluster, eventually, machine};

/// Stops all workers, and lets clients ask until every worker is left out. The first one is because
/// it leaves a client in its socket, the second because it does not take what it was handed, with
/// nothing in its socket, and the third when it is the only one that still gets something.
fn leave_all_out(cluster: &Cluster) -> Vec<Client> {
    let hung = cluster.count("hung");
    cluster.worker_pids().into_iter().for_each(machine::suspend);
    let mut clients = asking(&cluster.address(), 1);
    cluster.event("hung", hung + 1);
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
