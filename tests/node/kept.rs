//! Kept connections of Node workers, other than plain HTTP/1: https, and HTTP/2 with and without
//! TLS. Their worker leaves, and no request fails. With every installed Node.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::nodes::{Node, nodes, with_each};
use super::script::Script;
use crate::common::{Cluster, PATIENCE};

const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node/kept-client.js");

/// One server of each kind. They answer with their process id.
const SERVERS: &str = "
    const read = (name) => require('fs').readFileSync(process.env[name]);
    const identity = { key: read('TEST_KEY'), cert: read('TEST_CERTIFICATE') };
    const http2 = require('http2');
    const answer = (request, response) => response.end(String(process.pid));
    require('https').createServer(identity, answer).listen(0, '127.0.0.1');
    http2.createSecureServer(identity, answer).listen(0, '127.0.0.2');
    http2.createServer(answer).listen(0, '127.0.0.3');";

/// Runs a test with a client that trusts the script's servers, unless no certificate can be made.
fn with_each_node(text: &str, test: impl Fn(&Node, &Script) + Sync) {
    let script = Script::named("server.js", text);
    if script.certify() {
        with_each(|node| test(node, &script));
    }
}

/// The address with this host: the three are reported in any order.
fn address(cluster: &Cluster, host: &str) -> String {
    let addresses = cluster.addresses();
    addresses.into_iter().find(|one| one.starts_with(host)).expect("it is served")
}

type Heard = Arc<(Mutex<Vec<Value>>, Condvar)>;

/// A client that runs until the test stops it.
struct Kept {
    child: Child,
    input: Option<ChildStdin>,
    heard: Heard,
}

impl Kept {
    fn start(cluster: &Cluster) -> Self {
        let hosts = ["127.0.0.1:", "127.0.0.2:", "127.0.0.3:"];
        let mut child = Command::new(&nodes()[0].program)
            .arg(CLIENT)
            .args(hosts.map(|host| address(cluster, host)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Node starts");
        let heard = Heard::default();
        let lines = BufReader::new(child.stdout.take().expect("it is a pipe")).lines();
        let theirs = Arc::clone(&heard);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let word = line.parse().expect("it tells JSON");
                theirs.0.lock().expect("no thread panics").push(word);
                theirs.1.notify_all();
            }
        });
        let input = child.stdin.take();
        Self { child, input, heard }
    }

    fn until(&self, what: &str, look: impl Fn(&Value) -> bool) -> Value {
        let words = self.heard.0.lock().expect("no thread panics");
        let missing = |words: &mut Vec<Value>| !words.last().is_some_and(&look);
        let (words, wait) =
            self.heard.1.wait_timeout_while(words, PATIENCE, missing).expect("no thread panics");
        assert!(!wait.timed_out(), "in vain: waited for {what}: {:?}", words.last());
        words.last().cloned().expect("something was found")
    }

    /// Waits until `more` further requests of each kind have been answered.
    fn go_on(&self, more: u64) {
        let last = self.until("a word", |_| true);
        let kinds = ["https", "h2", "h2c", "crowd"];
        let wanted = kinds.map(|kind| (kind, last[kind].as_u64().unwrap_or(0) + more));
        self.until("answers of each kind", |word| {
            wanted.iter().all(|(kind, count)| word[kind].as_u64() >= Some(*count))
        });
    }

    fn stop(mut self) -> Value {
        drop(self.input.take());
        self.until("its last word", |word| word["failed"].is_array())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.input.take());
        if std::thread::panicking() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

#[test]
fn no_request_fails_over_tls_or_by_http_2_while_workers_are_replaced() {
    with_each_node(SERVERS, |node, script| {
        for policy in ["rr", "none"] {
            // The grace period is a minute: no worker waits for it, or is killed after it.
            let arguments = format!("--workers 2 --policy {policy}");
            let cluster = script.launch_with(&node.program, &arguments).servers(3).start();
            let kept = Kept::start(&cluster);
            kept.go_on(20);
            cluster.signal(Signal::SIGHUP);
            cluster.event("reloaded", 0);
            kept.go_on(20);
            let told = kept.stop();
            assert_eq!(told["failed"], json!([]), "{policy}");
            // A client with concurrent requests may see some refused, and repeats them. Node 18
            // cannot announce the last answer before it.
            if !node.version.starts_with("v18.") {
                assert_eq!(
                    (&told["refused"]["h2"], &told["refused"]["h2c"]),
                    (&json!(0), &json!(0))
                );
            }
            for (kind, workers) in told["met"].as_object().expect("every kind") {
                assert!(workers.as_u64() >= Some(2), "{kind} has met old and new ones: {told}");
            }
            cluster.stop(Signal::SIGTERM).assert_in_order();
        }
    });
}

#[test]
fn a_kept_connection_on_which_nothing_is_asked_does_not_hold_its_worker() {
    let client = "
        const [secure, h2, h2c] = process.argv.slice(1);
        const rejectUnauthorized = false;
        const http2 = require('http2');
        const say = (word) => console.log(JSON.stringify(word));
        const [host, port] = secure.split(':');
        const agent = new (require('https').Agent)({ keepAlive: true });
        require('https').get({ host, port, agent, rejectUnauthorized }, (response) =>
            response.resume().on('end', () => say('https')));
        for (const url of [`https://${h2}`, `http://${h2c}`]) {
            const session = http2.connect(url, { rejectUnauthorized });
            session.on('goaway', (code) => say([url.split(':')[0], code]));
            session.request({ ':path': '/' }).resume().on('end', () => say(url.split(':')[0]));
        }";
    with_each_node(SERVERS, |node, script| {
        let arguments = "--workers 1 --grace 10m";
        let cluster = script.launch_with(&node.program, arguments).servers(3).start();
        let hosts = ["127.0.0.1:", "127.0.0.2:", "127.0.0.3:"];
        let mut child = Command::new(&node.program)
            .args(["-e", client])
            .args(hosts.map(|host| address(&cluster, host)))
            .stdout(Stdio::piped())
            .spawn()
            .expect("Node starts");
        let lines = BufReader::new(child.stdout.take().expect("it is a pipe")).lines();
        let mut words = lines.map(|line| -> Value { line.expect("text").parse().expect("JSON") });
        let answered: BTreeSet<String> =
            words.by_ref().take(3).map(|one| one.to_string()).collect();
        assert_eq!(answered, ["\"http\"", "\"https\""].map(str::to_owned).into());
        cluster.signal(Signal::SIGTERM);
        // It ends when all its connections are closed, the sessions with a goodbye frame.
        let told: BTreeSet<String> = words.map(|word| word.to_string()).collect();
        assert!(child.wait().expect("it ends").success());
        assert_eq!(told, ["[\"http\",0]", "[\"https\",0]"].map(str::to_owned).into());
        cluster.wait().assert_in_order();
    });
}
