//! The kernel dispatches to programs that inherit their listening sockets: which one gets a
//! connection, and what becomes of those that wait for a worker that is stopped, killed, replaced
//! or taken away.

use std::collections::{BTreeMap, BTreeSet};

use nix::sys::signal::Signal;

use super::listen_fds::EXAMPLE;
use super::steal::{answers, ask, asking, failures_during};
use crate::common::{Client, Cluster, Launch, eventually, get, has_program, machine};

/// In each form.
fn both(arguments: &str) -> Vec<Launch> {
    let arguments =
        format!("--dispatch kernel --dialect listen-fds --ready-after notify {arguments}");
    let launch = || Launch::new(&arguments).running(&["python3", EXAMPLE]);
    let bare = has_program("setpriv")
        .then(|| launch().under(&["setpriv", "--inh-caps=-all", "--bounding-set=-all"]));
    match has_program("python3") {
        true => [launch()].into_iter().chain(bare).collect(),
        false => Vec::new(),
    }
}

/// Whether the kernel picks by the primary's maps, and so can move connections.
fn is_exact(cluster: &Cluster) -> bool {
    let told = cluster.event("listening", 0);
    assert_eq!(told["dispatch"], "kernel", "{told}");
    told["dispatch_form"] == "exact"
}

/// Waits until the kernel picks every worker.
fn until_all_serve(cluster: &Cluster) {
    let workers: BTreeSet<u32> = cluster.worker_pids().into_iter().collect();
    let address = cluster.address();
    eventually("every worker to be picked", || {
        let seen: BTreeSet<u32> = (0..16).map(|_| ask(&address)).collect();
        (seen == workers).then_some(())
    });
}

fn end(cluster: Cluster) {
    let ended = cluster.stop(Signal::SIGTERM);
    assert_eq!((ended.code, ended.named("kill").count()), (Some(0), 0), "{ended:?}");
    let summary = ended.events.last().expect("a summary");
    assert_eq!((&summary["uncounted"], &summary["dropped"]), (&true.into(), &0.into()));
}

/// How many of these clients wait in a socket, once all others are answered.
fn waiting_of(cluster: &Cluster, clients: &[Client]) -> usize {
    eventually("everything else to be answered", || {
        let heard = clients.iter().filter(|client| client.has_heard()).count();
        let queued = machine::queued(cluster.port());
        (heard + queued == clients.len()).then_some(queued)
    })
}

#[test]
fn they_take_turns_and_a_client_that_sticks_stays() {
    let mut is_allowed = Vec::new();
    for launch in both("--workers 4 --hang-after off") {
        let cluster = launch.listen("127.0.0.1:0").listen("[::1]:0").servers(2).start();
        until_all_serve(&cluster);
        for address in cluster.addresses() {
            // At the beginning the kernel may not know all of them.
            eventually("their shares to be equal", || {
                let mut counts = BTreeMap::<u32, usize>::new();
                (0..40).for_each(|_| *counts.entry(ask(&address)).or_default() += 1);
                let is_even = counts.len() == 4 && counts.values().all(|count| *count == 10);
                (is_even || !is_exact(&cluster)).then_some(())
            });
        }
        is_allowed.push(is_exact(&cluster));
        end(cluster);
    }
    let launches = both("--workers 4 --policy sticky --hang-after off");
    for (launch, is_allowed) in launches.into_iter().zip(is_allowed) {
        let launch = launch.listen("127.0.0.1:0");
        if !is_allowed {
            launch.refused().assert_refusal(3, &["sticky", "CAP_BPF"]);
            continue;
        }
        let cluster = launch.start();
        eventually("a client to stay at its worker", || {
            let homes: BTreeSet<u32> = (0..20).map(|_| ask(&cluster.address())).collect();
            (homes.len() == 1).then_some(())
        });
        end(cluster);
    }
}

#[test]
fn a_unix_socket_is_accepted_from_by_all_of_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let unix = format!("unix:{}", folder.path().join("socket").display());
    for launch in both("--workers 2") {
        let cluster = launch.listen("127.0.0.1:0").listen(&*unix).servers(2).start();
        let workers = cluster.worker_pids();
        for address in cluster.addresses() {
            assert!((0..20).all(|_| workers.contains(&ask(&address))));
        }
        cluster.until("the note", |heard| {
            let mut notes = heard.named("note").filter_map(|event| event["text"].as_str());
            notes.any(|text| text.contains("one socket for all workers")).then_some(())
        });
        end(cluster);
    }
}

#[test]
fn a_stopped_worker_gets_nothing_more_and_what_waits_for_it_is_answered() {
    for launch in both("--workers 3 --hang-after 100ms") {
        let cluster = launch.listen("127.0.0.1:0").start();
        let (address, is_exact) = (cluster.address(), is_exact(&cluster));
        until_all_serve(&cluster);
        let stopped = cluster.worker_pids()[0];
        machine::suspend(stopped);
        let mut clients = asking(&address, 60);
        cluster
            .until("hung", |heard| heard.named("hung").find(|one| one["pid"] == stopped).cloned());
        // The first ones come before the choice has changed.
        eventually("it to be left out", || {
            let before = waiting_of(&cluster, &clients);
            clients.extend(asking(&address, 16));
            (waiting_of(&cluster, &clients) == before).then_some(())
        });
        if is_exact {
            assert!(!answers(clients).contains(&stopped));
            machine::signal(stopped, Signal::SIGCONT);
        } else {
            machine::signal(stopped, Signal::SIGCONT);
            assert!(answers(clients).len() > 60);
        }
        until_all_serve(&cluster);
        end(cluster);
    }
}

#[test]
fn what_comes_while_all_are_stopped_is_answered_by_those_that_are_back() {
    for launch in both("--workers 3 --hang-after 100ms") {
        let cluster = launch.listen("127.0.0.1:0").start();
        let (address, is_exact) = (cluster.address(), is_exact(&cluster));
        until_all_serve(&cluster);
        let workers = cluster.worker_pids();
        let before = cluster.count("hung");
        workers.iter().for_each(|worker| machine::suspend(*worker));
        let mut clients = Vec::new();
        eventually("all to be left out", || {
            clients.extend(asking(&address, 4));
            (cluster.count("hung") >= before + workers.len()).then_some(())
        });
        clients.extend(asking(&address, 40));
        let (back, rest) = workers.split_last().expect("three");
        machine::signal(*back, Signal::SIGCONT);
        if is_exact {
            // Everything moves to the only one that can take it.
            let answered: BTreeSet<u32> = answers(clients).into_iter().collect();
            assert_eq!(answered, BTreeSet::from([*back]));
            rest.iter().for_each(|worker| machine::signal(*worker, Signal::SIGCONT));
        } else {
            rest.iter().for_each(|worker| machine::signal(*worker, Signal::SIGCONT));
            answers(clients);
        }
        until_all_serve(&cluster);
        end(cluster);
    }
}

#[test]
fn what_waits_for_a_killed_worker_goes_to_others_or_to_its_successor() {
    for restart in ["on-failure", "never"] {
        for launch in both(&format!("--workers 3 --hang-after off --restart {restart}")) {
            let cluster = launch.listen("127.0.0.1:0").start();
            let (address, is_exact) = (cluster.address(), is_exact(&cluster));
            until_all_serve(&cluster);
            let victim = cluster.worker_pids()[0];
            machine::suspend(victim);
            let mut clients = asking(&address, 60);
            machine::signal(victim, Signal::SIGKILL);
            cluster.event("exit", 0);
            if restart == "on-failure" || is_exact {
                assert!(!answers(clients).contains(&victim), "{restart}");
            } else {
                // Nothing would ever accept them.
                let heard = clients.iter_mut().map(|client| client.try_receive(true));
                let lost = heard.filter(Result::is_err).count();
                let note = cluster.event("note", 0)["text"].to_string();
                assert!(note.contains(&format!("\"{lost} connections were reset")), "{note}");
            }
            if restart == "on-failure" {
                // A program that is told to leave while it starts may leave something behind.
                cluster.event("online", 3);
            }
            // No client is lost behind it.
            (0..40).for_each(|_| assert_ne!(ask(&address), victim));
            end(cluster);
        }
    }
}

#[test]
fn nothing_fails_while_they_are_replaced_added_and_taken_away() {
    for launch in both("--workers 3 --hang-after 100ms") {
        let cluster = launch.listen("127.0.0.1:0").start();
        let before = cluster.worker_pids();
        let failed = failures_during(&cluster, |go_on| {
            go_on(50);
            cluster.signal(Signal::SIGHUP);
            cluster.event("reloaded", 0);
            for signal in [Signal::SIGTTIN, Signal::SIGTTOU, Signal::SIGTTOU] {
                let scaled = cluster.count("scaled");
                cluster.signal(signal);
                cluster.event("scaled", scaled);
                // A program that is told to leave while it starts may leave something behind.
                cluster.event("online", 6);
                go_on(50);
            }
        });
        assert_eq!(failed, 0);
        let after = eventually("two workers to be left", || {
            Some(cluster.worker_pids()).filter(|pids| pids.len() == 2)
        });
        assert!(before.iter().all(|pid| !after.contains(pid)), "{before:?} {after:?}");
        get(&cluster.address()).expect("an answer");
        end(cluster);
    }
}
