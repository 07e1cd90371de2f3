//! Applications from npm behind the command, in their usual form: clients get correct answers,
//! every worker gets its share, sessions stay with their worker, and the end is in order.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::nodes::{Node, nodes};
use super::preload::failures_during;
use super::script::Script;
use crate::common::{Client, Cluster, GET, Launch, Response, Summary, eventually, lacking};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node/applications");
const PACKAGES: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/target/node-applications/node_modules");

const HELLO_PATH: &[u8] = b"GET /hello/1 HTTP/1.1\r\nHost: test\r\n\r\n";

/// The first Node that fastify supports, if npm has installed the applications.
fn equipped() -> Option<Node> {
    if !Path::new(PACKAGES).is_dir() {
        lacking("express, NestJS and others (scripts/install-applications.sh)");
        return None;
    }
    let node = nodes().into_iter().find(|node| {
        let major = node.version[1..].split('.').next().and_then(|major| major.parse().ok());
        major.is_some_and(|major: u32| major >= 20)
    });
    if node.is_none() {
        lacking("Node 20 or newer");
    }
    node
}

fn launch(node: &Node, arguments: &str, application: &str) -> Launch {
    let program = node.program.to_str().expect("a path in UTF-8");
    let script = format!("{FOLDER}/{application}");
    Launch::new(arguments).running(&[program, &script]).variable("NODE_PATH", PACKAGES)
}

/// Runs a client of an application to its end, and returns its report.
fn client(node: &Node, name: &str, arguments: &[&str]) -> Vec<Value> {
    let output = Command::new(&node.program)
        .arg(format!("{FOLDER}/{name}"))
        .args(arguments)
        .env("NODE_PATH", PACKAGES)
        .output()
        .expect("Node starts");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| line.parse().unwrap_or_else(|_| panic!("{output:?}"))).collect()
}

fn pids(cluster: &Cluster) -> BTreeSet<String> {
    cluster.worker_pids().iter().map(u32::to_string).collect()
}

/// Ends it, in order.
fn end(cluster: Cluster) -> Summary {
    let ended = cluster.stop(Signal::SIGTERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!ended.events.iter().any(|event| event["event"] == "kill"), "{ended:?}");
    let summary = ended.summary();
    assert_eq!((summary.dropped, summary.aborted), (0, 0), "{summary:?}");
    summary
}

fn worker_of(response: &Response) -> String {
    let line = response.head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("x-worker").then(|| value.to_owned())
    });
    line.expect("every answer names its worker")
}

/// Routes, bodies and errors, from several clients on kept connections, and which workers answered.
fn routes_are_served(application: &str) {
    let Some(node) = equipped() else { return };
    let cluster = launch(&node, "--workers 2 --credits 64", application).start();
    let address = cluster.address();
    let ask = |number: usize| {
        let mut client = Client::to(&address);
        let hello = format!("GET /hello/{number} HTTP/1.1\r\nHost: test\r\n\r\n");
        let response = client.ask(hello.as_bytes());
        assert_eq!(response.body, format!("hello {number}"), "{response:?}");
        let body = format!("[1, 2, {number}]");
        let sum = format!(
            "POST /sum HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        assert_eq!(client.ask(sum.as_bytes()).body, format!("{{\"sum\":{}}}", 3 + number));
        let fail = b"GET /fail HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
        let failure = client.ask(fail);
        assert_eq!((failure.status, &*failure.body), (500, "on purpose"));
        assert_eq!(worker_of(&failure), worker_of(&response));
        worker_of(&response)
    };
    let workers: Vec<String> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..12).map(|number| scope.spawn(move || ask(number))).collect();
        clients.into_iter().map(|client| client.join().expect("right answers")).collect()
    });
    assert_eq!(workers.into_iter().collect::<BTreeSet<_>>(), pids(&cluster));
    // On a busy machine a worker may be skipped, so the shares need not be even.
    assert_eq!(end(cluster).accepted, 12);
}

#[test]
fn express_answers_on_every_route() {
    routes_are_served("express.js");
}

#[test]
fn fastify_answers_on_every_route() {
    routes_are_served("fastify.js");
}

#[test]
fn koa_answers_on_every_route() {
    routes_are_served("koa.js");
}

#[test]
fn hono_answers_on_every_route() {
    routes_are_served("hono.js");
}

#[test]
fn hapi_answers_on_every_route() {
    routes_are_served("hapi.js");
}

/// Replaces the workers while requests run, and ends while a connection is idle, long before the
/// grace period is over.
fn is_reloaded_under_load(node: &Node, application: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let cluster = launch(node, "--workers 2 --grace 10m --settle 100ms", application)
        .variable("TEST_FOLDER", &path(""))
        .variable("TEST_NOTES", &path("notes"))
        .start();
    let before = pids(&cluster);
    let failed = failures_during(&cluster, "/hello/1", |go_on| {
        go_on(20);
        cluster.signal(Signal::SIGHUP);
        cluster.event("reloaded", 0);
        go_on(20);
    });
    assert_eq!(failed, [""; 0], "{application}");
    assert!(pids(&cluster).is_disjoint(&before), "{application}");
    assert_eq!(Client::to(&cluster.address()).ask(HELLO_PATH).status, 200);
    let mut idle = Client::to(&cluster.address());
    idle.ask(HELLO_PATH);
    end(cluster);
}

#[test]
fn no_request_fails_while_the_workers_of_an_application_are_replaced() {
    let Some(node) = equipped() else { return };
    let routed = ["express.js", "fastify.js", "koa.js", "hono.js", "hapi.js", "nest.js"];
    for application in routed.into_iter().chain(["moleculer.js", "throng.js"]) {
        is_reloaded_under_load(&node, application);
    }
}

#[test]
fn an_application_of_egg_runs_without_its_own_cluster() {
    let Some(node) = equipped() else { return };
    is_reloaded_under_load(&node, "egg.js");
}

#[test]
fn no_call_of_grpc_fails_while_workers_are_replaced() {
    let Some(node) = equipped() else { return };
    let cluster = launch(&node, "--workers 2 --grace 10m", "grpc.js").start();
    let mut client = Command::new(&node.program)
        .args([&format!("{FOLDER}/grpc-client.js"), &*cluster.address(), "4"])
        .env("NODE_PATH", PACKAGES)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Node starts");
    let (mut input, output) = (client.stdin.take(), client.stdout.take());
    let mut lines = BufReader::new(output.expect("a pipe")).lines();
    let mut next = || -> Value {
        let line = lines.next().expect("a line").expect("text");
        line.parse().unwrap_or_else(|_| panic!("{line}"))
    };
    (0..4).for_each(|_| assert_eq!(next()["ready"], true));
    let before = pids(&cluster);
    cluster.signal(Signal::SIGHUP);
    cluster.event("reloaded", 0);
    let after = pids(&cluster);
    input.as_mut().expect("a pipe").write_all(b"\n").expect("it reads");
    let told = next();
    assert_eq!(told["failures"], serde_json::json!([]), "{told}");
    let answered =
        |of: &BTreeSet<String>| of.iter().any(|pid| told["pids"].to_string().contains(pid));
    assert!(answered(&before) && answered(&after), "{before:?} {after:?} {told}");
    // Its channels are open and idle.
    end(cluster);
    drop(input);
    assert!(client.wait().expect("it ends").success());
}

/// The application's notes when its worker leaves, and that it does not use up its grace period.
fn tidies_up(application: &str, expected: &[&str]) {
    let Some(node) = equipped() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let notes = folder.path().join("notes");
    let launch = launch(&node, "--workers 1 --grace 10m", application);
    let path = notes.to_str().expect("a path in UTF-8");
    let cluster = launch.variable("TEST_NOTES", path).start();
    let mut kept = Client::to(&cluster.address());
    kept.ask(GET);
    cluster.signal(Signal::SIGHUP);
    cluster.event("reloaded", 0);
    let noted = || fs::read_to_string(&notes).unwrap_or_default();
    assert_eq!(noted().lines().collect::<Vec<_>>(), expected, "when it is replaced");
    end(cluster);
    assert_eq!(noted().lines().collect::<Vec<_>>(), expected.repeat(2), "when all ends");
}

#[test]
fn a_service_on_nest_runs_its_hooks_and_ends_at_once() {
    tidies_up("nest.js", &["module destroyed", "shut down by SIGTERM"]);
}

#[test]
fn a_worker_of_throng_tidies_up_and_ends_at_once() {
    tidies_up("throng.js", &["shut down by SIGTERM"]);
}

#[test]
fn a_broker_of_moleculer_stops_its_services_and_ends_at_once() {
    tidies_up("moleculer.js", &["service stopped"]);
}

#[test]
fn web_sockets_echo_and_are_spread() {
    let Some(node) = equipped() else { return };
    let cluster = launch(&node, "--workers 2 --credits 64", "websocket.js").start();
    let told = client(&node, "websocket-client.js", &[&cluster.address(), "8"]);
    assert_eq!(told.len(), 8);
    assert!(told.iter().all(|one| one["right"] == true), "{told:?}");
    let served: BTreeSet<String> =
        told.iter().filter_map(|one| one["pid"].as_str().map(str::to_owned)).collect();
    assert_eq!(served, pids(&cluster));
    assert_eq!(end(cluster).accepted, 8);
}

#[test]
fn sessions_of_socket_io_stay_with_their_worker() {
    let Some(node) = equipped() else { return };
    let ask = |policy: &str| {
        let arguments = format!("--workers 2 --credits 64 --policy {policy}");
        let cluster = launch(&node, &arguments, "socket-io.js").start();
        let port = cluster.port().to_string();
        let told = client(&node, "socket-io-client.js", &[&port, "12", "5"]);
        assert_eq!(told.len(), 12);
        let of: BTreeSet<String> = pids(&cluster);
        end(cluster);
        (told, of)
    };
    let (told, workers) = ask("sticky");
    let mut served = BTreeSet::new();
    for one in &told {
        let pids = one["pids"].as_array().unwrap_or_else(|| panic!("{told:?}"));
        assert_eq!(pids.len(), 1, "one session, one worker: {told:?}");
        served.insert(pids[0].to_string());
    }
    // Twelve addresses on two workers.
    assert_eq!(served, workers);
    // In rotation, a session's connections reach workers that do not know it.
    let (told, _) = ask("rr");
    assert!(told.iter().any(|one| one["failure"].is_string()), "{told:?}");
}

#[test]
fn sessions_of_tls_are_resumed_by_other_workers() {
    let Some(node) = equipped() else { return };
    let script = Script::named("unused", "");
    if !script.certify() {
        return;
    }
    for protocol in ["TLSv1.2", "TLSv1.3"] {
        let launch = launch(&node, "--workers 2 --credits 64", "resumption.js")
            .variable("TEST_KEY", &script.path("key.pem"))
            .variable("TEST_CERTIFICATE", &script.path("certificate.pem"));
        let cluster = launch.start();
        let told = client(&node, "resumption-client.js", &[&cluster.address(), protocol, "6"]);
        assert_eq!(told.len(), 6, "{told:?}");
        // Workers take turns, so another worker than the first one resumes each session.
        for (place, one) in told.iter().enumerate() {
            assert_eq!(one["reused"], place > 0, "{protocol}: {told:?}");
        }
        let served: BTreeSet<String> =
            told.iter().filter_map(|one| one["pid"].as_str().map(str::to_owned)).collect();
        assert_eq!(served, pids(&cluster));
        end(cluster).assert_clean(6);
    }
}

/// Sends this many requests, each on another connection, and returns which workers answered.
fn ask_all(cluster: &Cluster, times: usize) -> BTreeSet<String> {
    let request = b"GET /asked HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
    (0..times).map(|_| Client::to(&cluster.address()).ask(request).body).collect()
}

/// A program with a primary branch, which runs as the companion.
fn with_companion(node: &Node, application: &str, notes: &Path) -> Cluster {
    let arguments = "--workers 2 --credits 64 --settle 100ms --companion self";
    let launch = launch(node, arguments, application);
    launch.variable("TEST_NOTES", notes.to_str().expect("a path in UTF-8")).start()
}

#[test]
fn log4js_writes_in_the_primary_what_workers_log() {
    let Some(node) = equipped() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let notes = folder.path().join("log");
    let cluster = with_companion(&node, "log4js.js", &notes);
    let workers = ask_all(&cluster, 6);
    assert_eq!(workers, pids(&cluster));
    let written = || fs::read_to_string(&notes).unwrap_or_default();
    eventually("the lines", || (written().matches(" /asked\n").count() == 6).then_some(()));
    end(cluster);
    let text = written();
    assert_eq!(text.matches(" primary\n").count(), 1, "{text}");
    for worker in workers {
        assert!(text.contains(&format!("{worker} /asked\n")), "{text}");
        assert!(text.contains(&format!("{worker} leaves\n")), "its last line, too: {text}");
    }
    assert_eq!(text.lines().count(), 9, "each line once: {text}");
}

#[test]
fn metrics_of_prom_client_are_summed_up() {
    let Some(node) = equipped() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let notes = folder.path().join("address");
    let cluster = with_companion(&node, "metrics.js", &notes);
    assert_eq!(ask_all(&cluster, 10), pids(&cluster));
    let address = eventually("the address of the metrics", || {
        fs::read_to_string(&notes).ok().filter(|address| !address.is_empty())
    });
    let metrics = Client::to(&address).ask(GET).body;
    assert!(metrics.contains("requests{path=\"/asked\"} 10\n"), "{metrics}");
    end(cluster);
}

#[test]
fn what_one_worker_emits_reaches_the_clients_of_socket_io_on_all() {
    let Some(node) = equipped() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = with_companion(&node, "broadcast.js", &folder.path().join("none"));
    let told = client(&node, "broadcast-client.js", &[&cluster.port().to_string(), "4"]);
    assert_eq!(told.len(), 4);
    assert!(told.iter().all(|one| one["text"] == "hello" && one["count"] == 4), "{told:?}");
    let served: BTreeSet<String> = told.iter().map(|one| one["served"].to_string()).collect();
    assert_eq!(served, pids(&cluster));
    end(cluster);
}

#[test]
fn the_primary_of_throng_runs_and_forks_no_further_workers() {
    let Some(node) = equipped() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let notes = folder.path().join("notes");
    let cluster = with_companion(&node, "throng.js", &notes);
    let noted = || fs::read_to_string(&notes).unwrap_or_default();
    eventually("its primary", || noted().contains("primary\n").then_some(()));
    cluster.signal(Signal::SIGHUP);
    cluster.event("reloaded", 0);
    assert_eq!((cluster.worker_pids().len(), cluster.count("scaled")), (2, 0));
    end(cluster);
    assert_eq!(noted().matches("shut down by SIGTERM\n").count(), 4, "{}", noted());
    assert_eq!(noted().matches("primary\n").count(), 1);
}
