//! The command with every installed Node, in both serializations, under every policy, with every
//! kind of script: a worker answers each request, and the end is in order.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::Mutex;

use nix::sys::signal::Signal;
use serde_json::json;

use super::nodes::{Node, nodes};
use super::script::{SERVER, Script};
use crate::common::{Client, Cluster, GET_CLOSE, has_program, lacking};

/// Cells that run at once: a few more processes than two CPUs, most of which wait.
const AT_ONCE: usize = 3;
/// Requests to each server of a cell.
const REQUESTS: usize = 4;

const POLICIES: [&str; 6] = ["rr", "least", "fastest", "sticky", "none", "none --accept reuseport"];

/// The usual file with two branches, and every kind of server, behind one worker.
const BRANCHES: &str = "
    const cluster = require('cluster');
    if (cluster.isPrimary) {
        cluster.fork();
    } else {
        const answer = (request, response) => response.end(String(process.pid));
        const greet = (socket) => {
            socket.on('error', () => undefined);
            socket.end(`net ${process.pid}`);
        };
        const read = (name) => require('fs').readFileSync(process.env[name]);
        const identity = { key: read('TEST_KEY'), cert: read('TEST_CERTIFICATE') };
        require('http').createServer(answer).listen(0, '127.0.0.1');
        require('net').createServer(greet).listen(0, '127.0.0.2');
        require('https').createServer(identity, answer).listen(0, '127.0.0.3');
        require('http').createServer(answer).listen(process.env.TEST_SOCKET);
        process.send({ kinds: ['http', 'net', 'https', 'unix'], of: process.pid });
    }";

/// The same server as an ECMAScript module, twice, on ports that the kernel chooses.
const MODULE: &str = "
    import { createServer } from 'node:http';
    const answer = (request, response) => response.end(String(process.pid));
    createServer(answer).listen(0);
    createServer(answer).listen(0);";

#[derive(Clone, Copy, Debug)]
enum Kind {
    Plain,
    Branches,
    Module,
}

impl Kind {
    fn script(self) -> Script {
        match self {
            Self::Plain => Script::named("server.js", SERVER),
            Self::Branches => Script::named("server.js", BRANCHES),
            Self::Module => Script::named("server.mjs", MODULE),
        }
    }

    fn servers(self) -> usize {
        match self {
            Self::Plain => 1,
            Self::Branches => 4,
            Self::Module => 2,
        }
    }
}

struct Cell<'a> {
    node: &'a Node,
    serialization: &'static str,
    policy: &'static str,
    kind: Kind,
}

impl fmt::Display for Cell<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, serialization, policy, kind } = self;
        write!(f, "{} {serialization} {policy} {kind:?}", node.version)
    }
}

impl Cell<'_> {
    fn run(&self) {
        let script = self.kind.script();
        if matches!(self.kind, Kind::Branches) && !script.certify() {
            return;
        }
        let Self { node, serialization, policy, .. } = self;
        // As many credits as possible, unless the cell sets them.
        let credits = if policy.contains("--credits") { "" } else { "--credits 64" };
        let arguments =
            format!("--workers 2 {credits} --serialization {serialization} --policy {policy}");
        let launch = script.launch_with(&node.program, &arguments);
        let cluster = launch.servers(self.kind.servers()).start();
        let told: BTreeSet<String> = cluster.worker_pids().iter().map(u32::to_string).collect();
        assert_eq!(cluster.family().len(), 2, "only the workers were started");
        for address in cluster.addresses() {
            let answers: Vec<String> = answers(&address);
            assert_eq!(answers.len(), REQUESTS);
            let distinct: BTreeSet<String> = answers.into_iter().collect();
            assert!(distinct.is_subset(&told), "{address}: {distinct:?} of {told:?}");
            if *policy == "rr" {
                assert_eq!(distinct, told, "{address}: in turns");
            }
        }
        if matches!(self.kind, Kind::Branches) {
            messages_have_arrived(&cluster);
        }
        self.ends_in_order(cluster);
    }

    fn ends_in_order(&self, cluster: Cluster) {
        let ended = cluster.stop(Signal::SIGTERM);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let exits: Vec<_> = ended.events.iter().filter(|one| one["event"] == "exit").collect();
        assert_eq!(exits.len(), 2, "{ended:?}");
        assert!(exits.iter().all(|exit| exit["code"] == 0), "{ended:?}");
        if !self.policy.starts_with("none") {
            let requests = u64::try_from(REQUESTS * self.kind.servers()).expect("a few");
            ended.summary().assert_clean(requests);
        }
    }
}

/// The process ids that answer.
fn answers(address: &str) -> Vec<String> {
    if address.starts_with("127.0.0.3:") {
        let urls = vec![format!("https://{address}/"); REQUESTS];
        let quiet = ["--silent", "--insecure", "--header", "Connection: close"];
        let output = Command::new("curl").args(quiet).args(["-w", "\n"]).args(urls).output();
        let output = output.expect("curl starts");
        assert!(output.status.success(), "{output:?}");
        return String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    }
    let ask = |_| {
        let mut client = Client::to(address);
        if !address.starts_with("127.0.0.2:") {
            return client.ask(GET_CLOSE).body;
        }
        let text = String::from_utf8(client.rest().expect("a greeting")).expect("text");
        text.strip_prefix("net ").expect("the greeting").to_owned()
    };
    (0..REQUESTS).map(ask).collect()
}

/// Messages of programs arrive in either serialization.
fn messages_have_arrived(cluster: &Cluster) {
    for number in 0..2 {
        let event = cluster.event("message", number);
        let kinds = ["http", "net", "https", "unix"];
        assert_eq!(event["message"], json!({ "kinds": kinds, "of": event["pid"] }));
    }
}

#[test]
fn every_request_is_answered_and_all_workers_leave_in_order() {
    let nodes = nodes();
    let versions: Vec<&str> = nodes.iter().map(|node| &*node.version).collect();
    // Bypasses the test harness, which would capture it: the log of a run has to name the versions.
    let _ = writeln!(std::io::stderr(), "the matrix ran with Node {}", versions.join(", "));
    if nodes.len() < 2 {
        lacking("another Node than its own (scripts/install-nodes.sh)");
    }
    if nodes.is_empty() || !has_program("curl") {
        return;
    }
    let mut cells = Vec::new();
    for node in &nodes {
        // One at a time, as Node does it itself.
        for (serialization, kind) in [("json", Kind::Branches), ("advanced", Kind::Plain)] {
            cells.push(Cell { node, serialization, policy: "rr --credits 1", kind });
        }
        for policy in POLICIES {
            for kind in [Kind::Plain, Kind::Branches, Kind::Module] {
                cells.push(Cell { node, serialization: "json", policy, kind });
            }
            // The script with every kind of server, and with messages.
            let kind = Kind::Branches;
            cells.push(Cell { node, serialization: "advanced", policy, kind });
        }
    }
    let (queue, failures) = (Mutex::new(cells.iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(cell) = next(&queue) {
                    if catch_unwind(AssertUnwindSafe(|| cell.run())).is_err() {
                        failures.lock().expect("not held in a panic").push(cell.to_string());
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("not held in a panic");
    assert!(failures.is_empty(), "{} of {} cells: {failures:#?}", failures.len(), cells.len());
}

/// The next remaining cell. The lock is not held while it runs.
fn next<'a, T>(queue: &Mutex<std::slice::Iter<'a, T>>) -> Option<&'a T> {
    queue.lock().expect("not held in a panic").next()
}
