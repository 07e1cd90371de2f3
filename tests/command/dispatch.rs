//! Connections dispatched by the kernel (`--dispatch kernel`) to built-in and Node workers: which
//! worker gets them, and their outcome when a worker is stopped, killed, replaced or gone.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use clusterlb_harness::work::Sampler;
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use serde_json::Value;

use super::steal::{SERVER, Script, answers, ask, asking, failures_during};
use crate::common::{
    Client, Cluster, GET_CLOSE, Launch, eventually, get, has_program, lacking, machine,
};

pub(super) fn launch(arguments: &str) -> Launch {
    Launch::new(&format!("--dispatch kernel {arguments}"))
}

/// A launch without any capability, where this machine can drop them.
fn unprivileged(arguments: &str) -> Option<Launch> {
    has_program("setpriv")
        .then(|| launch(arguments).under(&["setpriv", "--inh-caps=-all", "--bounding-set=-all"]))
}

/// In each form.
pub(super) fn both(arguments: &str) -> impl Iterator<Item = Launch> {
    [Some(launch(arguments)), unprivileged(arguments)].into_iter().flatten()
}

/// In each form, with built-in workers and with these of Node.
pub(super) fn all(arguments: &str, script: Option<&Script>) -> impl Iterator<Item = Launch> {
    let node = |script: &Script| {
        let path = script.path("server.js");
        both(arguments).map(move |launch| launch.running(&["node", &path]))
    };
    both(arguments).chain(script.map(node).into_iter().flatten())
}

/// Answers as the built-in workers do, and leaves idle connections open.
pub(super) const HELLO_SERVER: &str = "
    const answer = (request, response) => response.end('hello world\\n');
    const server = require('http').createServer(answer);
    server.keepAliveTimeout = 0;
    server.listen(0, '127.0.0.1');";

/// Sends a request to each in sequence, and returns how many were answered.
pub(super) fn all_answered(clients: Vec<Client>) -> usize {
    let answers = clients.into_iter().map(|mut client| client.receive().assert_hello());
    answers.count()
}

fn changes(summary: &Value, reason: &str) -> u64 {
    summary["steered"][reason].as_u64().unwrap_or(0)
}

/// The last event of a finished run: the summary, with all its fields.
pub(super) fn books(cluster: Cluster) -> Value {
    let ended = cluster.stop(Signal::SIGTERM);
    ended.assert_in_order();
    let summary = ended.summary();
    assert_eq!((summary.dropped, summary.aborted), (0, 0), "{summary:?}");
    ended.events.last().expect("a summary").clone()
}

/// Clients that stay, until this holds for how many each worker has. A worker is online a moment
/// before the kernel chooses it.
fn held_until(cluster: &Cluster, is_enough: fn(&[usize]) -> bool) -> Vec<Client> {
    let workers = cluster.worker_pids();
    let mut clients = Vec::new();
    eventually("every worker to be picked", || {
        clients.push(Client::held(&cluster.address()));
        let ports: Vec<u16> = clients.iter().map(Client::port).collect();
        let holders = machine::holders(&workers, &ports, cluster.port());
        let each = |worker| holders.iter().filter(|holder| *holder == worker).count();
        is_enough(&workers.iter().map(each).collect::<Vec<_>>()).then_some(())
    });
    clients
}

/// Clients that stay, at least one at each worker.
pub(super) fn held_by_each(cluster: &Cluster) -> Vec<Client> {
    held_until(cluster, |counts| counts.iter().all(|count| *count > 0))
}

/// Clients that stay, as many at each worker: every one of them is known to the kernel then.
fn held_by_all(cluster: &Cluster) -> Vec<Client> {
    held_until(cluster, |counts| counts[0] > 0 && counts.iter().all(|count| *count == counts[0]))
}

#[test]
fn workers_accept_from_sockets_of_their_own_and_unix_sockets_are_the_primary_s() {
    let folder = tempfile::tempdir().expect("a folder");
    let unix = format!("unix:{}", folder.path().join("socket").display());
    let listeners = ["127.0.0.1:0", "[::1]:0", &unix];
    let cluster = listeners.into_iter().fold(launch("--workers 4"), Launch::listen).start();
    let all = held_by_each(&cluster).len() as u64;
    for address in cluster.addresses() {
        (0..40).for_each(|_| get(&address).expect("an answer").assert_hello());
    }
    let dispatchers: Vec<(Value, Value)> = cluster.until("every listener", |heard| {
        let told = heard.named("listening");
        let told = told.map(|event| (event["dispatch"].clone(), event["dispatch_form"].clone()));
        Some(told.collect()).filter(|told: &Vec<_>| told.len() == 3)
    });
    let forms = ["exact", "unprivileged"].map(Value::from);
    assert!(dispatchers[..2].iter().all(|(who, form)| who == "kernel" && forms.contains(form)));
    assert_eq!(dispatchers[2], ("primary".into(), Value::Null));
    cluster.until("the note", |heard| {
        let mut notes = heard.named("note").filter_map(|event| event["text"].as_str());
        notes.any(|text| text.contains("the primary dispatches it")).then_some(())
    });
    let summary = books(cluster);
    let workers = summary["workers"].as_array().expect("a list");
    let own: u64 = workers.iter().filter_map(|worker| worker["own"].as_u64()).sum();
    let stolen = summary["stolen"].as_u64().expect("a number");
    assert_eq!(
        (summary["accepted"].as_u64(), own + stolen),
        (Some(all + 120), all + 80),
        "{summary}"
    );
    assert!(workers.iter().all(|worker| worker["own"].as_u64() > Some(0)), "{summary}");
    assert!(changes(&summary, "workers") > 0, "{summary}");
}

#[test]
fn a_stopped_worker_loses_what_waits_for_it_and_gets_nothing_more() {
    let script = Script::new(HELLO_SERVER);
    for launch in all("--workers 4 --hang-after 100ms", script.as_ref()) {
        stop_a_worker_of(launch.start());
    }
}

pub(super) fn stop_a_worker_of(cluster: Cluster) {
    let address = cluster.address();
    let stopped = cluster.worker_pids()[0];
    machine::suspend(stopped);
    assert_eq!(all_answered(asking(&address, 60)), 60);
    let is_meant = |event: &&Value| event["pid"] == stopped;
    eventually("it to be noticed", || {
        get(&address).expect("an answer").assert_hello();
        cluster.count("hung").checked_sub(1)
    });
    let hung = cluster.until("hung", |heard| heard.named("hung").find(is_meant).cloned());
    let before: u64 = hung["taken_back"].as_u64().expect("a number");
    (0..200).for_each(|_| get(&address).expect("an answer").assert_hello());
    machine::signal(stopped, Signal::SIGCONT);
    cluster.until("recovered", |heard| heard.named("recovered").find(is_meant).cloned());
    let summary = books(cluster);
    let later = summary["stolen"].as_u64().expect("a number") - before;
    // A quarter of all would have been stolen if it had stayed selectable.
    assert!(before > 0 && later < 40, "{summary}");
    assert!(changes(&summary, "stalls") > 0, "{summary}");
}

#[test]
fn what_waits_for_a_killed_worker_is_served_by_others() {
    let cluster = launch("--workers 4 --hang-after off --restart never").start();
    let victim = cluster.worker_pids()[0];
    machine::suspend(victim);
    let clients = asking(&cluster.address(), 200);
    machine::signal(victim, Signal::SIGKILL);
    cluster.event("exit", 0);
    assert_eq!(all_answered(clients), 200);
    assert_eq!(all_answered(asking(&cluster.address(), 100)), 100);
    let ended = cluster.stop(Signal::SIGTERM);
    let summary = ended.summary();
    assert_eq!((summary.accepted, summary.dropped, summary.aborted), (300, 0, 0), "{summary:?}");
    assert!(summary.stolen > 0, "{summary:?}");
}

fn port_of(address: &str) -> u16 {
    address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a TCP address")
}

/// What ends the last worker, which is stopped, and the event that tells it.
fn ends(cluster: &Cluster, how: &str) {
    let victim = *cluster.worker_pids().last().expect("workers");
    match how {
        "killed" => {
            machine::signal(victim, Signal::SIGKILL);
            cluster.event("exit", 0);
        }
        "replaced" => {
            cluster.signal(Signal::SIGHUP);
            cluster.event("reloaded", 0);
        }
        _ => {
            cluster.signal(Signal::SIGTTOU);
            cluster.event("scaled", 0);
        }
    }
}

#[test]
fn no_queued_connection_is_reset_whatever_ends_its_worker() {
    let options = "--workers 3 --hang-after off --grace 300ms";
    let user = geteuid().is_root().then_some("--primary-user nobody");
    for how in ["killed", "replaced", "taken away"] {
        let launches = both(options).chain(user.map(|user| launch(&format!("{options} {user}"))));
        for launch in launches {
            let listeners = ["127.0.0.1:0", "[::1]:0"];
            let cluster = listeners.into_iter().fold(launch, Launch::listen).start();
            machine::suspend(*cluster.worker_pids().last().expect("workers"));
            let addresses = cluster.addresses();
            let asking = addresses.iter().flat_map(|address| asking(address, 60));
            let clients: Vec<Client> = asking.collect();
            // The others have nothing to do in their grace period.
            eventually("everything else to be answered", || {
                let answered = clients.iter().filter(|client| client.has_heard()).count();
                let queued = addresses.iter().map(|address| machine::queued(port_of(address)));
                (answered + queued.sum::<usize>() == clients.len()).then_some(())
            });
            ends(&cluster, how);
            assert_eq!(all_answered(clients), 120, "{how}");
            let ended = cluster.stop(Signal::SIGTERM);
            let summary = ended.summary();
            let lost = (summary.dropped, summary.aborted);
            assert_eq!((summary.accepted, lost), (120, (0, 0)), "{how}: {summary:?}");
        }
    }
}

#[test]
fn nothing_fails_while_workers_are_replaced_added_and_taken_away() {
    let script = Script::new(HELLO_SERVER);
    for launch in all("--workers 3 --hang-after 100ms", script.as_ref()) {
        replace_workers_of(launch.start());
    }
}

fn replace_workers_of(cluster: Cluster) {
    let before = cluster.worker_pids();
    let failed = failures_during(&cluster, |go_on| {
        for round in 0..2 {
            go_on(100);
            cluster.signal(Signal::SIGHUP);
            cluster.event("reloaded", round);
        }
        for signal in [Signal::SIGTTIN, Signal::SIGTTOU, Signal::SIGTTOU] {
            let scaled = cluster.count("scaled");
            cluster.signal(signal);
            cluster.event("scaled", scaled);
            go_on(100);
        }
    });
    assert_eq!(failed, 0);
    let after: BTreeSet<u32> = cluster.worker_pids().into_iter().collect();
    assert!(before.iter().all(|pid| !after.contains(pid)));
    books(cluster);
}

#[test]
fn idle_workers_take_what_another_does_not_accept_long_before_it_hangs() {
    let cluster = launch("--workers 3 --hang-after 1h --take-back-after 2ms").start();
    drop(held_by_each(&cluster));
    let stopped = cluster.worker_pids()[0];
    machine::suspend(stopped);
    assert_eq!(all_answered(asking(&cluster.address(), 60)), 60);
    machine::signal(stopped, Signal::SIGCONT);
    let summary = books(cluster);
    assert!(summary["stolen"].as_u64() > Some(0), "{summary}");
}

#[test]
fn a_blocked_node_worker_delays_no_client() {
    let Some(script) = Script::new(SERVER) else { return };
    let cluster = script.launch_with("--dispatch kernel --workers 3 --hang-after 100ms").start();
    let address = cluster.address();
    let mut waiting = script.block_one(&cluster);
    let served: BTreeSet<u32> = answers(asking(&address, 100)).into_iter().collect();
    assert!(!waiting.has_heard());
    script.open_gate();
    let blocked: u32 = waiting.receive().body.parse().expect("a process id");
    assert!(!served.contains(&blocked), "{served:?}");
    eventually("it to serve again", || (ask(&address) == blocked).then_some(()));
    let failed = failures_during(&cluster, |go_on| {
        go_on(50);
        cluster.signal(Signal::SIGHUP);
        cluster.event("reloaded", 0);
        go_on(50);
    });
    assert_eq!(failed, 0);
    books(cluster);
}

#[test]
fn clients_that_connect_before_the_end_are_served() {
    let cluster = launch("--workers 3").start();
    let mut clients: Vec<Client> = (0..30).map(|_| Client::to(&cluster.address())).collect();
    clients.iter_mut().for_each(|client| client.send(GET_CLOSE));
    cluster.signal(Signal::SIGTERM);
    assert_eq!(all_answered(clients), 30);
    let ended = cluster.wait();
    ended.assert_in_order();
    assert_eq!(ended.summary().accepted, 30);
}

#[test]
fn what_the_kernel_cannot_do_is_refused() {
    for (arguments, word) in [
        ("--policy central", "central"),
        ("--policy none", "none"),
        ("--max-inflight 4", "limit"),
        ("--runtime tokio-uring", "tokio-uring"),
    ] {
        launch(arguments).refused().assert_refusal(2, &[word]);
    }
    for policy in ["sticky", "fastest"] {
        if let Some(launch) = unprivileged(&format!("--policy {policy}")) {
            launch.refused().assert_refusal(3, &[policy, "CAP_BPF", "exact"]);
        }
    }
    let cluster = Launch::new("--workers 2").variable("CLUSTERLB_DISPATCH", "kernel").start();
    let told = cluster.event("listening", 0);
    assert_eq!((&told["dispatch"], &told["policy"]), (&"kernel".into(), &"rr".into()));
    books(cluster);
    let wrong = Launch::new("--workers 2").variable("CLUSTERLB_DISPATCH", "anyone").refused();
    wrong.assert_refusal(2, &["CLUSTERLB_DISPATCH", "primary, kernel"]);
}

#[test]
fn the_form_is_told_at_the_start() {
    let cluster = launch("--workers 2").in_words().start_unready();
    cluster.until("the form", |heard| {
        heard.errors.contains("policy rr, dispatch kernel: ").then_some(())
    });
    let ended = cluster.stop(Signal::SIGTERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn clients_that_stay_are_spread_exactly_where_the_kernel_may_count() {
    // On a busy machine a worker that has not been scheduled would be left out for a while.
    let cluster = launch("--workers 8 --hang-after off").start();
    let is_exact = cluster.event("listening", 0)["dispatch_form"] == "exact";
    // Each has been answered, and so counted, before the next one connects.
    let clients: Vec<Client> = (0..80).map(|_| Client::held(&cluster.address())).collect();
    drop(clients);
    let summary = cluster.end();
    assert_eq!(summary.shares().iter().sum::<u64>(), 80, "{summary:?}");
    if !is_exact {
        return lacking("CAP_BPF, with which the kernel picks by counters");
    }
    assert_eq!(summary.shares(), [10; 8], "{summary:?}");
}

#[test]
fn clients_that_come_at_once_are_spread_exactly_where_the_kernel_may_count() {
    let cluster = launch("--workers 8 --hang-after 1h").start();
    if cluster.event("listening", 0)["dispatch_form"] != "exact" {
        return lacking("CAP_BPF, with which the kernel picks by counters");
    }
    let held = held_by_all(&cluster);
    // No worker accepts any of them before the last one has come, and the primary leaves no worker
    // out because of that.
    let workers = cluster.worker_pids();
    machine::suspend(cluster.pid());
    workers.iter().for_each(|worker| machine::suspend(*worker));
    let clients = asking(&cluster.address(), 80);
    workers.iter().for_each(|worker| machine::signal(*worker, Signal::SIGCONT));
    machine::signal(cluster.pid(), Signal::SIGCONT);
    assert_eq!(all_answered(clients), 80);
    let each = held.len() as u64 / 8 + 10;
    drop(held);
    let summary = cluster.end();
    assert_eq!(summary.shares(), [each; 8], "{summary:?}");
}

#[test]
fn the_kernel_follows_sticky_and_fastest_where_it_may_count() {
    let cluster = launch("--workers 4 --policy rr").start();
    if cluster.event("listening", 0)["dispatch_form"] != "exact" {
        return lacking("CAP_BPF, with which the kernel picks by counters");
    }
    drop(cluster);
    // Nothing leaves a worker out that a busy machine does not let run.
    let cluster = launch("--workers 4 --policy sticky --hang-after off").start();
    let mut homes = Vec::new();
    // At the beginning the kernel may not know all of them.
    eventually("a client to stay at its worker", || {
        let client = Client::held(&cluster.address());
        homes.push(machine::holder(&cluster.worker_pids(), client.port(), cluster.port()));
        let last = homes.len().checked_sub(20)?;
        homes[last..].iter().all(|home| *home == homes[last]).then_some(())
    });
    drop(cluster);
    // Beyond the bound they go to others.
    let launch_bounded = launch("--workers 4 --policy sticky --hang-after off");
    let cluster = launch_bounded.with_defaults().start();
    drop(held_by_each(&cluster));
    let clients: Vec<Client> = (0..40).map(|_| Client::held(&cluster.address())).collect();
    let ports: Vec<u16> = clients.iter().map(Client::port).collect();
    let holders = machine::holders(&cluster.worker_pids(), &ports, cluster.port());
    let count = |worker: &u32| holders.iter().filter(|holder| *holder == worker).count();
    assert!(holders.iter().all(|worker| count(worker) <= 20), "{holders:?}");
    drop(clients);
    cluster.end();
    // The fastest ones get more.
    let cluster = launch("--workers 4 --policy fastest").start();
    drop(held_by_each(&cluster));
    cluster.end();
}

/// What a request costs in the test below: most of them little, but enough for a worker to know
/// that it makes others wait.
const LONG: Duration = Duration::from_secs(45);

/// A seed with which the second request of the first of three workers is long, and no other.
fn seed_of_one_long_request(time: &str) -> u64 {
    let draws = |seed: u64, worker: u64| {
        let seed = seed.wrapping_add(worker.wrapping_mul(0x9e37_79b9));
        let time = time.parse().expect("a time");
        let mut sampler = Sampler::new(time, seed);
        (0..64).map(move |_| u128::from(sampler.draw_ns()) == LONG.as_nanos())
    };
    let is_right = |seed: &u64| {
        let mut first = draws(*seed, 1).take(2);
        let is_second = first.next() == Some(false) && first.next() == Some(true);
        is_second && [2, 3].into_iter().all(|worker| !draws(*seed, worker).any(|long| long))
    };
    (0..).find(is_right).expect("there are many")
}

#[test]
fn a_worker_begins_what_it_accepts_and_idle_ones_get_what_waits_behind_long_work() {
    let time = format!("mix:60x2ms+1x{}s", LONG.as_secs());
    let seed = seed_of_one_long_request(&time);
    let options = format!("--workers 3 --work block:{time} --work-seed {seed} --hang-after 1h");
    for launch in both(&options) {
        let cluster = launch.with_defaults().start();
        let address = cluster.address();
        let busy = cluster.workers().iter().find(|one| one.id == 1).expect("the first").pid;
        let is_busy_s =
            |client: &Client| machine::clients_of(busy, cluster.port()).contains(&client.port());
        // Its last turn was not a short one, and nothing ends that.
        let held = eventually("the first worker to be picked", || {
            Some(Client::held(&address)).filter(|client| is_busy_s(client))
        });
        let workers = cluster.worker_pids();
        let all = [vec![cluster.pid()], workers.clone()].concat();
        all.iter().for_each(|pid| machine::suspend(*pid));
        let mut clients = asking(&address, 12);
        let waiting = |clients: &mut Vec<Client>| {
            clients.retain_mut(|client| !client.has_heard());
            clients.len()
        };
        let begun = Instant::now();
        workers.iter().for_each(|pid| machine::signal(*pid, Signal::SIGCONT));
        // Where the kernel draws lots, it may have got none.
        eventually("it to begin with one", || {
            (waiting(&mut clients) == 0 || clients.iter().any(is_busy_s)).then_some(())
        });
        cluster.signal(Signal::SIGCONT);
        eventually("others to answer the rest", || (waiting(&mut clients) <= 1).then_some(()));
        assert!(begun.elapsed() < LONG, "they have waited for the long request");
        machine::signal(busy, Signal::SIGKILL);
        drop((held, clients));
        let ended = cluster.stop(Signal::SIGTERM);
        assert_eq!(ended.summary().dropped, 0);
    }
}
