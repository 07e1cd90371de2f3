//! Reloads of Node servers: how a successor is judged, what stops them, and what they restore.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::{Cluster, PATIENCE, eventually, get, machine};
use crate::nodes::with_each;
use crate::script::{SERVER, Script};

fn ask(address: &str) -> String {
    get(address).expect("an answer").body
}

/// Replaces the workers and waits until the reload is complete.
fn reload(cluster: &Cluster) {
    let before = cluster.count("reloaded");
    cluster.signal(Signal::SIGHUP);
    cluster.event("reloaded", before);
}

/// Messages of workers, with their process ids.
fn told(cluster: &Cluster, count: usize) -> Vec<String> {
    cluster.until("what the workers say", |heard| {
        let messages = heard.named("message").map(|event| event["message"].to_string());
        let messages: Vec<String> = messages.collect();
        (messages.len() >= count).then_some(messages)
    })
}

#[test]
fn a_server_that_was_open_for_a_moment_is_not_asked_of_a_successor() {
    let text = format!(
        "{SERVER}
        const passing = require('net').createServer();
        passing.listen(0, '127.0.0.2', () => passing.close(() => process.send('closed')));"
    );
    let Some(script) = Script::new(&text) else { return };
    let cluster = script.launch("--workers 2").start_unready();
    cluster.event("listening", 0);
    told(&cluster, 2);
    // The successors run without it.
    fs::write(script.path("server.js"), SERVER).expect("a file");
    reload(&cluster);
    assert_eq!(cluster.worker_pids().len(), 2);
    cluster.end();
}

#[test]
fn a_worker_that_listens_on_nothing_is_a_worker_too_and_can_be_replaced() {
    let text = format!(
        "if (process.env.NODE_APP_INSTANCE === '1') setInterval(() => {{}}, 1000);
        else {{ {SERVER} }}"
    );
    let Some(script) = Script::new(&text) else { return };
    let cluster = script.launch("--workers 2 --settle 50ms --start-limit 60s").start();
    let before = cluster.worker_pids();
    reload(&cluster);
    let after = cluster.worker_pids();
    assert!(after.len() == 2 && before.iter().all(|pid| !after.contains(pid)));
    let serving = ask(&cluster.address());
    assert!(after.iter().any(|pid| pid.to_string() == serving), "{serving} {after:?}");
    cluster.end();
}

#[test]
fn a_version_that_crashes_soon_after_listening_replaces_no_worker() {
    let Some(script) = Script::new(SERVER) else { return };
    let cluster = script.launch("--workers 2 --settle 1h").start();
    let before = cluster.worker_pids();
    let crashing = format!("{SERVER} setTimeout(() => {{ throw new Error('no') }}, 200);");
    fs::write(script.path("server.js"), crashing).expect("a file");
    cluster.signal(Signal::SIGHUP);
    let note = cluster.event("note", 0);
    assert!(note["text"].as_str().is_some_and(|text| text.contains("before it had settled")));
    assert_eq!(cluster.worker_pids(), before);
    cluster.end();
}

#[test]
fn numbers_are_inherited_through_reloads_and_crashes() {
    let text = format!(
        "{SERVER}
        process.send(`${{process.env.NODE_APP_INSTANCE}}${{process.env.CLUSTERLB_INSTANCE}}`);"
    );
    let Some(script) = Script::new(&text) else { return };
    let cluster = script.launch("--workers 2").start();
    reload(&cluster);
    let mut numbers = told(&cluster, 4);
    numbers.sort_unstable();
    assert_eq!(numbers, [r#""00""#, r#""00""#, r#""11""#, r#""11""#]);
    let victim = cluster.workers()[1].pid;
    machine::signal(victim, Signal::SIGKILL);
    assert_eq!(told(&cluster, 5)[4], r#""11""#);
    cluster.end();
}

#[test]
fn a_reload_during_the_start_is_carried_out_once_when_the_workers_serve() {
    let text = format!("setTimeout(() => {{ {SERVER} }}, 400);");
    let Some(script) = Script::new(&text) else { return };
    let cluster = script.launch("--workers 2 --settle 1h").start_unready();
    // Once the first worker runs, the primary handles signals.
    eventually("a worker to be started", || (!cluster.family().is_empty()).then_some(()));
    (0..3).for_each(|_| cluster.signal(Signal::SIGHUP));
    cluster.event("reloaded", 0);
    assert_eq!((cluster.count("fork"), cluster.count("reloading")), (4, 1));
    cluster.end();
}

#[test]
fn a_reload_fills_a_slot_that_was_given_up() {
    let text = SERVER.replace(
        "request.resume()",
        "if (request.url === '/crash') process.exit(1);
        request.resume()",
    );
    let Some(script) = Script::new(&text) else { return };
    let cluster = script.launch("--workers 2").start();
    // Always the same one, so that its slot is given up.
    eventually("a slot to be given up", || {
        let victim = cluster.workers().last().copied().filter(|one| one.id > 1);
        victim.into_iter().for_each(|one| machine::signal(one.pid, Signal::SIGKILL));
        std::thread::sleep(Duration::from_millis(20));
        (cluster.count("give-up") == 1).then_some(())
    });
    assert_eq!(cluster.event("give-up", 0)["slot"], 1);
    reload(&cluster);
    let deadline = std::time::Instant::now() + PATIENCE;
    while cluster.worker_pids().len() < 2 {
        assert!(std::time::Instant::now() < deadline, "the slot stays empty");
        std::thread::sleep(Duration::from_millis(20));
    }
    cluster.end();
}

/// A server that is ready after as many milliseconds as a file in its folder says, or never.
const WARMING_UP: &str = "
    const after = Number(require('fs').readFileSync(`${__dirname}/ready-after`));
    if (after >= 0) setTimeout(() => process.send('ready'), after);";

#[test]
fn a_worker_is_ready_when_its_program_says_so() {
    with_each(|node| {
        let script = Script::named("server.js", &format!("{SERVER} {WARMING_UP}"));
        let say = |text: &str| fs::write(script.path("ready-after"), text).expect("a file");
        say("300");
        let arguments = "--workers 2 --ready-after message --settle 1h --start-limit 60s";
        let cluster = script.launch_with(&node.program, arguments).start_unready();
        cluster.event("listening", 0);
        let sent = cluster.count("message");
        assert!(sent >= 2, "the run begins after both messages, not after {sent}");
        reload(&cluster);
        assert_eq!(cluster.worker_pids().len(), 2);
        cluster.end();
    });
}

#[test]
fn a_successor_without_its_message_replaces_no_worker() {
    let Some(script) = Script::new(&format!("{SERVER} {WARMING_UP}")) else { return };
    let say = |text: &str| fs::write(script.path("ready-after"), text).expect("a file");
    say("0");
    let arguments = "--workers 2 --ready-after message --start-limit 8s";
    let cluster = script.launch(arguments).start();
    let before = cluster.worker_pids();
    say("-1");
    cluster.signal(Signal::SIGHUP);
    let note = cluster.event("note", 0);
    let text = note["text"].as_str().unwrap_or_default();
    assert!(text.contains("the message \"ready\""), "{text}");
    assert_eq!(cluster.worker_pids(), before);
    assert!(before.iter().any(|pid| pid.to_string() == ask(&cluster.address())));
    cluster.end();
    let refused = script.launch("--workers 2 --ready-after message --start-limit 6s").refused();
    refused.assert_refusal(1, &["process.send('ready')", "--ready-after message"]);
}
