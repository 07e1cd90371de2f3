//! The measuring commands, run at a small scale: their report of the load per worker, the format of
//! their data, and that they leave nothing behind. Speeds are not tested: they depend on the
//! machine.

use std::fs;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{BINARY, eventually, has_program, machine};

/// Names the run of a process, in the environment that all its children inherit.
const RUN_VARIABLE: &str = "HARNESS_TEST_RUN";

fn mark(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

fn start(name: &str, words: &str) -> Child {
    start_with(name, words.split_whitespace())
}

fn start_with<'a>(name: &str, words: impl Iterator<Item = &'a str>) -> Child {
    Command::new(BINARY)
        .args(words)
        // Other tests run at the same time.
        .arg("--anyway")
        .env(RUN_VARIABLE, mark(name))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts")
}

/// Runs a command to its end and checks that it leaves no process behind.
fn run(name: &str, words: &str) -> Output {
    let output = start(name, words).wait_with_output().expect("it can be waited for");
    nothing_is_left(name);
    output
}

/// On a busy machine a killed process may take a moment to end; a forgotten one stays.
fn nothing_is_left(name: &str) {
    let own = format!("{RUN_VARIABLE}={}", mark(name));
    eventually(&format!("the end of everything that {name} has started"), || {
        machine::processes_with(&own).is_empty().then_some(())
    });
}

fn report(output: &Output) -> Value {
    let errors = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {errors}"))
}

/// A temporary folder of this test.
fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder can be made")
}

fn cell<'a>(report: &'a Value, target: &str, load: &str) -> &'a Value {
    let cells = report["cells"].as_array().expect("a list");
    let cell = cells.iter().find(|cell| cell["target"] == target && cell["load"] == load);
    cell.unwrap_or_else(|| panic!("no cell of {target} under {load}"))
}

#[test]
fn the_matrix_shows_which_worker_gets_the_load() {
    let folder = folder();
    let (csv, page) = (folder.path().join("table.csv"), folder.path().join("page.html"));
    let words = format!(
        "imbalance --quick --workers 4 --connections 200 --peer none --quiet --json --csv {} \
         --report {}",
        csv.display(),
        page.display()
    );
    let output = run("matrix", &words);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let report = report(&output);
    assert_eq!(report["schema"], "clusterlb-imbalance/1");
    assert_eq!(report["workers"], 4);
    assert_eq!(report["interrupted"], false);
    assert_eq!(report["cells"].as_array().map(Vec::len), Some(8 * 4));
    for load in ["one client", "64 clients", "64 clients, blocking 1 ms", "held open"] {
        let multishot = cell(&report, "none:uring-multishot", load);
        assert_eq!(multishot["summary"]["top_two_share"], 1.0, "{load}");
        assert_eq!(multishot["summary"]["idle_workers"], 3.0, "{load}");
        for cell in report["cells"].as_array().expect("a list") {
            let counts = cell["runs"][0]["connections"].as_array().expect("counts");
            let total: u64 = counts.iter().filter_map(Value::as_u64).sum();
            assert_eq!((counts.len(), total), (4, 200), "{cell}");
        }
    }
    let words = report["words"].as_array().expect("a list");
    let said = |text: &str| words.iter().any(|words| words.as_str().unwrap_or("").contains(text));
    assert!(said("none:uring-multishot (each of its 4, 100.0 % or more)"), "{words:#?}");
    assert!(said("published without conditions"));
    environment_is_reported(&report);
    let table = fs::read_to_string(csv).expect("the table was written");
    assert_eq!(table.lines().count(), 1 + 8 * 4 * 4);
    page_is_complete(&fs::read_to_string(page).expect("the page was written"));
}

#[test]
fn turns_are_even_if_no_worker_is_skipped() {
    // Skipping of workers that the machine keeps from running is off.
    let steady = "rr --hang-after off --overload-factor off";
    let words = "imbalance --quick --workers 4 --connections 40 --quiet --json --target";
    let output = start_with("even", words.split_whitespace().chain([steady]));
    let output = output.wait_with_output().expect("it can be waited for");
    nothing_is_left("even");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let report = report(&output);
    for load in ["one client", "held open"] {
        let summary = &cell(&report, steady, load)["summary"];
        assert_eq!(summary["top_two_share"], 0.5, "{load}: {summary}");
    }
}

fn environment_is_reported(report: &Value) {
    let environment = &report["environment"];
    for key in ["kernel", "cpu_model", "commit", "build_profile", "io_uring", "command"] {
        assert!(environment[key].as_str().is_some_and(|text| !text.is_empty()), "{key}");
    }
    let warned = environment["warnings"].as_array().expect("a list").iter();
    let debug = warned.filter(|text| text.as_str().is_some_and(|text| text.contains("debug")));
    assert_eq!(debug.count(), usize::from(cfg!(debug_assertions)));
    assert!(!environment["placement"]["server_cpus"].as_array().expect("a list").is_empty());
}

fn page_is_complete(page: &str) {
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    assert!(page.contains("<svg") && !page.contains("NaN"));
    for foreign in ["<script", "<link", "@import", "url(", "src="] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    let linked = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!linked.contains("http://") && !linked.contains("https://"));
}

#[test]
fn real_node_is_counted_under_either_primary() {
    if !has_program("node") {
        return;
    }
    let words = "imbalance --quick --workers 2 --connections 60 --quiet --json \
                 --target node:none --target node:rr --target rr+node --target none+node \
                 --target none:reuseport+node";
    let output = run("node", words);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let report = report(&output);
    assert_eq!(report["cells"].as_array().map(Vec::len), Some(5 * 4));
    for cell in report["cells"].as_array().expect("a list") {
        let counts = cell["runs"][0]["connections"].as_array().expect("counts");
        assert_eq!(counts.iter().filter_map(Value::as_u64).sum::<u64>(), 60, "{cell}");
    }
}

#[test]
fn a_comparison_is_paired_and_complete() {
    let folder = folder();
    let (csv, page) = (folder.path().join("table.csv"), folder.path().join("page.html"));
    let words = format!(
        "bench --workers 2 --duration 150ms --warmup 50ms --repeats 6 --rate 200 --connections 4 \
         --scenario heavy-50 --target none:reuseport --quiet --json --csv {} --report {}",
        csv.display(),
        page.display()
    );
    let turned = "rr --overload-factor off";
    let output = start_with("bench", words.split_whitespace().chain(["--target", turned]));
    let output = output.wait_with_output().expect("it can be waited for");
    nothing_is_left("bench");
    // On a busy machine trials do not count, which the exit code reports.
    assert!(matches!(output.status.code(), Some(0 | 4)), "{output:?}");
    let report = report(&output);
    assert_eq!(report["schema"], "clusterlb-bench/1");
    let trials = report["trials"].as_array().expect("a list");
    let order: Vec<&str> = trials.iter().filter_map(|trial| trial["target"].as_str()).collect();
    assert_eq!(order[..4], ["none:reuseport", turned, turned, "none:reuseport"]);
    assert_eq!(order.len(), 12);
    for trial in trials {
        let record = &trial["record"];
        assert!(record["completed"].as_u64().is_some_and(|count| count > 0), "{trial}");
        for key in ["server_cpu_us_per_request", "memory_peak_mib"] {
            assert!(record[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {trial}");
        }
        assert_eq!(record["workers"].as_array().map(Vec::len), Some(2));
        let looks = record["in_flight"]["at_ms"].as_array().expect("a list").len();
        for row in record["in_flight"]["connections"].as_array().expect("a list") {
            assert_eq!(row.as_array().map(Vec::len), Some(looks));
        }
    }
    what_counts_is_said(&report, output.status.code());
    let scenario = &report["scenarios"][0];
    assert_eq!(scenario["scenario"], "heavy-50");
    assert_eq!(scenario["summaries"][0]["trials"], 6);
    assert!(scenario["ideal"]["central_queue"]["p99_ns"].as_f64().is_some_and(|ns| ns > 1e6));
    let cautions = scenario["cautions"].as_array().expect("a list");
    assert!(cautions[0].as_str().is_some_and(|text| text.starts_with("p99 means little")));
    environment_is_reported(&report);
    let table = fs::read_to_string(csv).expect("the table was written");
    assert_eq!(table.lines().count(), 1 + 12 * 2);
    page_is_complete(&fs::read_to_string(page).expect("the page was written"));
}

/// Objections, the trials that count in spite of them, their number, and the exit code agree.
fn what_counts_is_said(report: &Value, code: Option<i32>) {
    let trials = report["trials"].as_array().expect("a list");
    let counting = |target: &Value, aspect: &str| {
        let own = trials.iter().filter(|trial| trial["target"] == *target);
        own.filter(|trial| holds(&trial["counts_for"], aspect)).count()
    };
    for trial in trials {
        let objections = trial["record"]["objections"].as_array().expect("a list");
        for aspect in ["speed", "cost"] {
            let spoilt = objections.iter().any(|one| holds(&one["against"], aspect));
            assert_eq!(holds(&trial["counts_for"], aspect), !spoilt, "{trial}");
        }
    }
    let unsound = trials.iter().filter(|trial| {
        !(holds(&trial["counts_for"], "speed") && holds(&trial["counts_for"], "cost"))
    });
    assert_eq!(report["invalid_trials"], unsound.count());
    let mut lacking = false;
    for scenario in report["scenarios"].as_array().expect("a list") {
        lacking |= !scenario["too_few"].as_array().expect("a list").is_empty();
        for summary in scenario["summaries"].as_array().expect("a list") {
            let target = &summary["target"];
            assert_eq!(summary["speed_trials"], counting(target, "speed"), "{target}");
            assert_eq!(summary["cost_trials"], counting(target, "cost"), "{target}");
        }
    }
    assert_eq!(code, Some(if lacking { 4 } else { 0 }));
}

fn holds(list: &Value, text: &str) -> bool {
    list.as_array().expect("a list").iter().any(|one| one == text)
}

#[test]
fn unequal_workers_are_compared_where_nothing_is_pinned() {
    let words = "bench --workers 2 --duration 150ms --warmup 0s --repeats 6 --scenario uneven \
                 --placement shared --target rr --target fastest --quiet --json";
    let report = report(&run("uneven", words));
    let placement = &report["environment"]["placement"];
    assert_eq!((&placement["server_cpus"], &placement["load_cpus"]), (&json!([]), &json!([])));
    for trial in report["trials"].as_array().expect("a list") {
        assert_eq!(trial["failure"], Value::Null, "{trial}");
        let response = &trial["record"]["response"];
        for key in ["mean_us", "p95_us", "p98_us"] {
            assert!(response[key].as_f64().is_some_and(|us| us > 500.0), "{key}: {trial}");
        }
        assert_eq!(trial["record"]["late_share"], Value::Null, "none of them is long");
    }
    let scenario = &report["scenarios"][0];
    assert!(scenario["ideal"]["central_queue"]["p98_ns"].as_f64().is_some_and(|ns| ns > 1e6));
    assert_eq!(scenario["cautions"], json!([]), "service times are all the same");
}

#[test]
fn a_busy_generator_leaves_a_closed_loop_what_it_is_about() {
    let words = "bench --workers 2 --duration 150ms --warmup 0s --repeats 6 --connections 16 \
                 --scenario capacity --target rr --quiet --json";
    let output = run("capacity", words);
    let report = report(&output);
    what_counts_is_said(&report, output.status.code());
    let scenario = &report["scenarios"][0];
    for value in scenario["summaries"][0]["values"].as_array().expect("a list") {
        let counts = value["trials"].as_u64().expect("a count") > 0;
        assert_eq!(value["standing"] == "counts", counts, "{value}");
        if !counts && value["measure"] == "rate_per_s" {
            assert_eq!(value["standing"], "at-least");
        }
    }
    // A busy generator alone, whatever the machine does, is not a cost of the server.
    for trial in report["trials"].as_array().expect("a list") {
        for objection in trial["record"]["objections"].as_array().expect("a list") {
            if objection["code"] == "generator_busy" {
                assert_eq!(objection["against"], serde_json::json!(["speed"]));
            }
        }
    }
}

#[test]
fn a_stopped_worker_is_a_result_and_no_flaw() {
    let words = "bench --workers 2 --duration 800ms --warmup 0s --repeats 6 --rate 50 \
                 --scenario stopped --target none:reuseport --quiet --json";
    let output = run("stopped", words);
    let report = report(&output);
    let trials = report["trials"].as_array().expect("a list");
    let failed = |trial: &&Value| trial["record"]["failed_share"].as_f64() > Some(0.0);
    assert!(trials.iter().any(|trial| failed(&trial)), "{trials:#?}");
    for trial in trials {
        let objections = trial["record"]["objections"].as_array().expect("a list");
        assert!(objections.iter().all(|one| one["code"] != "requests_failed"), "{objections:?}");
    }
}

#[test]
fn peers_are_started_loaded_and_ended() {
    let peers = ["nginx", "haproxy", "node"].into_iter().filter(|name| has_program(name));
    let peers: Vec<&str> = peers.collect();
    if peers.is_empty() {
        return;
    }
    let own = if peers.contains(&"node") { "--target rr --target rr+node" } else { "--target rr" };
    let words = format!(
        "bench --workers 2 --duration 150ms --warmup 0s --repeats 6 --rate 100 --scenario short \
         --quiet --json {own} --against {}",
        peers.join(",")
    );
    let report = report(&run("peers", &words));
    let trials = report["trials"].as_array().expect("a list");
    assert_eq!(trials.len(), 6 * (own.matches("--target").count() + peers.len()));
    for trial in trials {
        assert_eq!(trial["failure"], Value::Null, "{trial}");
        let record = &trial["record"];
        assert!(record["completed"].as_u64().is_some_and(|count| count > 0), "{trial}");
        let number = |key: &str| record[key].as_f64();
        let parts = number("primary_cpu_us_per_request").zip(number("workers_cpu_us_per_request"));
        // HAProxy's workers are threads of a single process.
        assert_eq!(parts.is_none(), trial["target"] == "haproxy", "{trial}");
        if let Some((primary, workers)) = parts {
            let whole = number("server_cpu_us_per_request").expect("the whole");
            assert!((primary + workers - whole).abs() < 1e-6 * whole, "{trial}");
        }
    }
    let versions = report["environment"]["peers"].as_object().expect("an object");
    assert_eq!(versions.len(), peers.len());
}

#[test]
fn an_interrupted_measurement_shows_what_it_has() {
    let child = start("interrupted", "imbalance --workers 2 --connections 5000 --json --quiet");
    let pid = child.id();
    let own = format!("{RUN_VARIABLE}={}", mark("interrupted"));
    // The measuring process, a server of three processes, and a generator.
    eventually("a cell to be under way", || {
        (machine::processes_with(&own).len() >= 5).then_some(())
    });
    machine::signal(pid, Signal::SIGINT);
    let output = child.wait_with_output().expect("it can be waited for");
    nothing_is_left("interrupted");
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    let report = report(&output);
    assert_eq!(report["interrupted"], true);
    assert_eq!(report["schema"], "clusterlb-imbalance/1");
}

#[test]
fn nonsense_is_refused_in_one_line() {
    for (words, code, says) in [
        ("imbalance --workers 0", 2, "--workers"),
        ("imbalance --target apache", 2, "no target"),
        ("imbalance --target nginx", 2, "does not report"),
        ("imbalance --server-cpus 1023", 2, "1023"),
        ("bench --repeats 5", 2, "5 repeats"),
        ("bench --duration 0s", 2, "must not be 0"),
        ("bench --duration 1ms", 2, "measurement of 1ms"),
        ("bench --rate 0", 2, "--rate"),
        ("bench --scenario lunch", 2, "no scenario"),
        ("bench --scenario heavy-50 --target haproxy", 2, "none of the targets"),
        ("bench --report /nowhere/at/all.html", 2, "cannot write"),
    ] {
        // A server that is not installed is refused with that reason.
        if words.contains("haproxy") && !has_program("haproxy") {
            continue;
        }
        let output = run("nonsense", words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words}: {errors}");
        assert!(errors.contains(says), "{words}: {errors}");
        assert!(output.stdout.is_empty(), "{words}");
    }
}

#[test]
fn a_server_that_is_not_installed_is_named_with_its_remedy() {
    let empty = folder();
    let output = Command::new(BINARY)
        .args(["bench", "--against", "nginx,node"])
        .env("PATH", empty.path())
        .output()
        .expect("the command starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{errors}");
    assert!(errors.contains("`nginx`") && errors.contains("apt install nginx"), "{errors}");
    assert!(errors.contains("`node`"), "{errors}");
}
