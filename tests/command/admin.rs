//! The admin interface and the commands that use it, with real clients.

#[path = "admin/acting.rs"]
mod acting;
#[path = "admin/counting.rs"]
mod counting;
#[path = "admin/pinning.rs"]
mod pinning;
#[path = "admin/policy.rs"]
mod policy;
#[path = "admin/refusing.rs"]
mod refusing;

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::{
    BINARY, Client, Cluster, GET_CLOSE, Launch, Response, eventually, get, get_from, has_program,
    lacking, machine,
};

/// A run with an admin socket in a temporary folder.
struct Steered {
    cluster: Cluster,
    admin: String,
    folder: tempfile::TempDir,
}

impl Steered {
    fn start(arguments: &str) -> Self {
        Self::launch(Launch::new(arguments))
    }

    fn launch(launch: Launch) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let admin = format!("unix:{}", folder.path().join("admin.sock").display());
        Self { cluster: launch.option("--admin", &admin).start(), admin, folder }
    }

    fn get(&self, path: &str) -> Response {
        ask(&self.admin, "GET", path, "")
    }

    fn json(&self, path: &str) -> Value {
        let response = self.get(path);
        assert_eq!(response.status, 200, "{response:?}");
        serde_json::from_str(&response.body).expect("JSON")
    }

    fn post(&self, path: &str) -> Response {
        ask(&self.admin, "POST", path, "")
    }

    /// Runs a command as its client.
    fn command(&self, words: &str) -> Output {
        command(words, &self.admin)
    }

    /// One number of the metrics.
    fn metric(&self, sample: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        let line = line.unwrap_or_else(|| panic!("no {sample} in {text}"));
        line.parse().expect("a number")
    }

    /// Does something while clients come one after another, each of which is answered. Returns how
    /// many.
    fn under_traffic(&self, act: impl FnOnce()) -> u64 {
        let address = self.cluster.address();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                let mut served = 0;
                while !done.load(Ordering::Relaxed) {
                    get(&address).expect("it is served").assert_hello();
                    served += 1;
                }
                served
            });
            // Also if it fails: the client must end.
            let acted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
            done.store(true, Ordering::Relaxed);
            acted.unwrap_or_else(|failure| std::panic::resume_unwind(failure));
            client.join().expect("every request was answered")
        })
    }

    fn states(&self) -> Vec<String> {
        let workers = self.json("/workers")["workers"].clone();
        let states = workers.as_array().expect("a list").iter();
        states.map(|one| one["state"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

fn command(words: &str, admin: &str) -> Output {
    let mut command = Command::new(BINARY);
    command.args(words.split_whitespace()).args(["--admin", admin]);
    command.stdin(Stdio::null()).output().expect("the command starts")
}

fn ask(address: &str, method: &str, path: &str, fields: &str) -> Response {
    let mut client = Client::to(address);
    client.ask(format!("{method} {path} HTTP/1.1\r\nHost: test\r\n{fields}\r\n").as_bytes())
}

fn text(output: &Output) -> String {
    let text = [&*output.stdout, &*output.stderr].concat();
    String::from_utf8(text).expect("output is text")
}

fn assert_done(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(output));
    text(output)
}

fn assert_refused(response: &Response, status: u16, words: &[&str]) {
    assert_eq!(response.status, status, "{response:?}");
    let body: Value = serde_json::from_str(&response.body).expect("a refusal is JSON");
    for key in ["error", "remedy"] {
        assert!(body[key].as_str().is_some_and(|text| !text.is_empty()), "{response:?}");
    }
    words.iter().for_each(|word| assert!(response.body.contains(word), "{word}: {response:?}"));
}

#[test]
fn a_run_is_looked_at_while_it_goes_on() {
    let run = Steered::start("--workers 2");
    let address = run.cluster.address();
    get_from(&address, 1, 10);
    assert_eq!(run.get("/livez").body, "ok\n");
    assert_eq!((run.get("/readyz").status, run.get("/readyz").body), (200, "ok\n".into()));
    let workers = eventually("all to be finished", || {
        let view = run.json("/workers");
        let done = view["workers"].as_array()?.iter().filter_map(|one| one["finished"].as_u64());
        (done.sum::<u64>() == 10).then_some(view)
    });
    assert_eq!((&workers["stage"], &workers["ready"]), (&"serving".into(), &true.into()));
    assert_eq!(workers["totals"]["accepted"], 10);
    assert_eq!(workers["pid"], run.cluster.pid());
    let pids: Vec<u64> = workers["workers"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["pid"].as_u64())
        .collect();
    let told: Vec<u64> = run.cluster.worker_pids().into_iter().map(u64::from).collect();
    assert_eq!(pids, told);
    assert!(workers["workers"][0]["resident_bytes"].as_u64() > Some(0), "{workers}");
    let listeners = run.json("/listeners");
    assert_eq!(listeners["listeners"][0]["address"], address);
    assert_eq!(listeners["listeners"][0]["backlog"], 0);
    let config = run.json("/config");
    assert_eq!((&config["policy"], &config["workers"]), (&"rr".into(), &2.into()));
    assert_eq!(run.metric("clusterlb_connections_accepted_total"), 10.0);
    assert_eq!(run.metric("clusterlb_ready"), 1.0);
    run.cluster.end().assert_clean(10);
}

#[test]
fn settings_are_shown_without_secrets() {
    let run = Steered::start("--workers 1 --env PASSWORD=mellon");
    let config = run.get("/config").body;
    assert!(config.contains("PASSWORD") && !config.contains("mellon"), "{config}");
    run.cluster.end();
}

#[test]
fn metrics_outlive_workers_and_are_labelled_by_slot() {
    let run = Steered::start("--workers 2");
    let address = run.cluster.address();
    get_from(&address, 1, 8);
    assert_done(&run.command("reload"));
    get_from(&address, 1, 8);
    for slot in 0..2 {
        let named = |name: &str| format!("{name}{{slot=\"{slot}\"}}");
        eventually("all to be finished", || {
            let name = named("clusterlb_worker_connections_finished_total");
            (run.metric(&name) == 8.0).then_some(())
        });
        assert_eq!(run.metric(&named("clusterlb_worker_restarts_total")), 1.0);
        let exits = format!("clusterlb_worker_exits_total{{slot=\"{slot}\",reason=\"success\"}}");
        assert_eq!(run.metric(&exits), 1.0);
        assert!(run.metric(&named("clusterlb_worker_cpu_seconds_total")) >= 0.0);
    }
    assert_eq!(run.metric("clusterlb_reloads_total{outcome=\"complete\"}"), 1.0);
    assert_eq!(run.metric("clusterlb_connections_accepted_total"), 16.0);
    run.cluster.end().assert_clean(16);
}

#[test]
fn no_counter_falls_or_goes_when_workers_do() {
    let run = Steered::start("--workers 2 --settle 0s");
    let counters = || -> Vec<(String, f64)> {
        let body = run.get("/metrics").body;
        let samples = body.lines().filter(|line| !line.starts_with('#'));
        let samples = samples.filter_map(|line| line.rsplit_once(' '));
        let is_counter = |name: &str| {
            let name = name.split('{').next().unwrap_or(name);
            ["_total", "_bucket", "_count", "_sum"].iter().any(|end| name.ends_with(end))
        };
        let counters = samples.filter(|(name, _)| is_counter(name));
        counters.map(|(name, value)| (name.into(), value.parse().expect("a number"))).collect()
    };
    let mut before = counters();
    for (path, ends) in [
        ("/reload", 2),
        ("/workers/3/kill", 3),
        ("/scale?workers=1", 4),
        ("/scale?workers=2", 4),
        ("/scale?workers=1", 5),
    ] {
        get_from(&run.cluster.address(), 1, 3);
        assert_eq!(run.post(path).status, 200, "{path}");
        eventually("a worker to serve", || (run.get("/readyz").status == 200).then_some(()));
        run.cluster.event("exit", ends - 1);
        let now = counters();
        for (name, value) in before {
            let found = now.iter().find(|(other, _)| *other == name);
            let (_, later) = found.unwrap_or_else(|| panic!("{name} has gone after {path}"));
            assert!(*later >= value, "{name} has fallen from {value} to {later} after {path}");
        }
        before = now;
    }
    assert!(before.iter().any(|(name, value)| name.contains("restarts") && *value > 0.0));
    run.cluster.end();
}

#[test]
fn real_parsers_accept_the_metrics() {
    let run = Steered::start("--workers 2");
    get_from(&run.cluster.address(), 1, 1);
    let open = run.get("/metrics");
    assert!(open.head.contains("application/openmetrics-text; version=1.0.0"), "{}", open.head);
    assert!(open.body.ends_with("# EOF\n"));
    let old = ask(&run.admin, "GET", "/metrics", "Accept: text/plain\r\n");
    assert!(old.head.contains("text/plain; version=0.0.4"), "{}", old.head);
    if has_program("promtool") {
        let words = ["check", "metrics"];
        let output = piped(Command::new("promtool").args(words), &old.body);
        assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output));
    }
    let script = "import sys; from prometheus_client.openmetrics.parser import *; \
        print(len(list(text_string_to_metric_families(sys.stdin.read()))))";
    let python = concat!(env!("CARGO_MANIFEST_DIR"), "/target/python/bin/python3");
    let knows = Command::new(python).args(["-c", "import prometheus_client"]).output();
    if knows.is_ok_and(|output| output.status.success()) {
        let output = piped(Command::new(python).args(["-c", script]), &open.body);
        assert!(output.status.success(), "{}", text(&output));
        let families: usize = text(&output).trim().parse().expect("a number");
        assert_eq!(families, open.body.matches("# TYPE").count());
    } else {
        lacking("prometheus-client (scripts/install-python.sh)");
    }
    run.cluster.end();
}

fn piped(command: &mut Command, input: &str) -> Output {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it is installed");
    let mut pipe = child.stdin.take().expect("it is a pipe");
    pipe.write_all(input.as_bytes()).expect("it reads");
    drop(pipe);
    child.wait_with_output().expect("it can be waited for")
}

/// Names in the first column of the table of metrics.
fn documented() -> Vec<String> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/OPERATIONS.md");
    let page = std::fs::read_to_string(page).expect("the page is there");
    let names =
        page.lines().filter_map(|line| line.strip_prefix("| `clusterlb_")?.split('`').next());
    names.map(|name| format!("clusterlb_{}", name.split('{').next().unwrap_or(name))).collect()
}

#[test]
fn every_metric_is_documented_and_every_documented_one_is_there() {
    // Deferred accepts change the kernel's count of backlog overflows.
    let run = Steered::start("--workers 1 --defer-accept off");
    let body = run.get("/metrics").body;
    let samples = body.lines().filter(|line| !line.starts_with('#'));
    // A histogram has three kinds of samples, and a summary two.
    let parts = ["_bucket", "_sum", "_count"];
    let family = |name: &'_ str| {
        let suffix = parts.iter().find_map(|part| name.strip_suffix(part));
        suffix.unwrap_or(name).to_owned()
    };
    let names = samples.filter_map(|line| line.split(['{', ' ']).next());
    let mut there: Vec<String> = names.map(family).collect();
    there.dedup();
    assert_eq!(there, documented(), "the table in docs/OPERATIONS.md has another order or others");
    run.cluster.end();
}

#[test]
fn the_alerts_are_rules_about_metrics_that_there_are() {
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/deploy/alerts.yaml");
    let text_of_rules = std::fs::read_to_string(rules).expect("the file is there");
    let is_in_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = text_of_rules.split(|letter: char| !is_in_name(letter));
    let names: Vec<&str> = words.filter(|word| word.starts_with("clusterlb_")).collect();
    let known = documented();
    for name in &names {
        let family = name.strip_suffix("_bucket").unwrap_or(name);
        assert!(known.iter().any(|one| one == family), "there is no metric {name}");
    }
    assert!(names.len() > text_of_rules.matches("- alert:").count());
    if has_program("promtool") {
        let output = Command::new("promtool").args(["check", "rules", rules]).output();
        let output = output.expect("it is installed");
        assert!(output.status.success(), "{}", text(&output));
    }
}

#[test]
fn readiness_follows_the_run_however_busy_the_workers_are() {
    let run = Steered::launch(Launch::new("--workers 1 --hang-after 50ms").with_defaults());
    let worker = run.cluster.worker_pids()[0];
    machine::signal(worker, Signal::SIGSTOP);
    let mut stuck = Client::to(&run.cluster.address());
    stuck.send(GET_CLOSE);
    eventually("the worker to count as hung", || (run.states() == ["hung"]).then_some(()));
    let ready = run.get("/readyz");
    assert_eq!((ready.status, &*ready.body), (503, "no worker serves\n"));
    let unready = run.command("status --ready");
    assert_eq!(
        (unready.status.code(), &*text(&unready)),
        (Some(1), "not ready: no worker serves\n")
    );
    assert_eq!(run.get("/livez").status, 200);
    machine::signal(worker, Signal::SIGCONT);
    stuck.receive().assert_hello();
    eventually("readiness", || (run.get("/readyz").status == 200).then_some(()));
    // While it drains it is alive and not ready.
    let mut held = Client::held(&run.cluster.address());
    held.send(b"GET / HTTP/1.1\r\n");
    assert_eq!(run.post("/drain").status, 202);
    run.cluster.event("draining", 0);
    // On a busy machine the worker may count as hung before that.
    let ready = eventually("the drain to be seen", || {
        let ready = run.get("/readyz");
        (ready.body == "draining\n").then_some(ready)
    });
    assert_eq!((ready.status, run.get("/livez").status), (503, 200));
    drop(held);
    let ended = run.cluster.wait();
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn status_and_top_show_every_worker() {
    let run = Steered::start("--workers 2");
    get_from(&run.cluster.address(), 1, 4);
    let status = assert_done(&run.command("status"));
    assert!(
        status.contains("serving, ready") && status.contains(&run.cluster.address()),
        "{status}"
    );
    let rows = |text: &str| text.lines().filter(|line| line.contains(" serving ")).count();
    assert_eq!(rows(&status), 2, "{status}");
    let json = assert_done(&run.command("status --json"));
    let json: Value = serde_json::from_str(&json).expect("one object");
    assert_eq!(json["workers"].as_array().map(Vec::len), Some(2));
    assert_eq!(json["listeners"][0]["address"], *run.cluster.address());
    assert_eq!(assert_done(&run.command("status --ready")), "ready\n");
    let top = assert_done(&run.command("top --count 2 --interval 50ms"));
    assert_eq!(rows(&top), 4, "{top}");
    assert!(top.contains("backlog: ") && top.contains("▇"), "{top}");
    run.cluster.end();
}
