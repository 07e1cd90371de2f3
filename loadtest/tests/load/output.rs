//! Results: JSON, table, CSV, histogram log; and that an interruption loses none of them.

use std::fs::File;
use std::io::Read;
use std::process::Stdio;

use crate::common::{Directory, Server, await_that, command, complaints, good, hello, http, run};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn server() -> Server {
    Server::start(http(|stream, _| hello(stream)))
}

#[test]
fn json_is_one_object_of_the_promised_shape() {
    let server = server();
    let output = run(&format!("--rate 200 --duration 2s --json {}", server.address));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert_eq!(value["schema"], "clusterlb-load/1");
    for path in [
        "/version",
        "/started_unix_ms",
        "/interrupted",
        "/validity/valid",
        "/validity/reasons",
        "/environment/kernel",
        "/environment/allowed_cpus",
        "/environment/pinned_cpus",
        "/environment/ring_flags",
        "/environment/nofile",
        "/environment/port_range/1",
        "/environment/tcp_tw_reuse",
        "/environment/sources",
        "/environment/listen_overflows",
        "/settings/target",
        "/settings/load/kind",
        "/settings/load/rate_per_s",
        "/settings/duration_ms",
        "/settings/requests_per_connection",
        "/measured_ms",
        "/totals/started",
        "/totals/completed",
        "/totals/errors/connect_refused",
        "/totals/errors/bad_response",
        "/totals/status/2xx",
        "/totals/sent_bytes",
        "/rates/asked_per_s",
        "/rates/completed_per_s",
        "/rates/achieved_ratio",
        "/starts/late",
        "/starts/dropped",
        "/starts/start_lateness_p99_us",
        "/cpu/user_ms",
        "/cpu/cpu_percent",
        "/latency/connect/p99_us",
        "/latency/first_byte/p999_us",
        "/latency/response/p9999_us",
        "/latency/response/corrected",
        "/latency/response/curve/0/percentile",
        "/series/1/completed",
        "/series/1/response_p99_us",
    ] {
        assert!(!value.pointer(path).unwrap_or_else(|| panic!("no {path}")).is_null(), "{path}");
    }
    assert_eq!(value["failure"], serde_json::Value::Null);
    let read: loadtest::Report = serde_json::from_value(value.clone()).expect("the struct");
    assert_eq!(serde_json::to_value(&read).expect("back again"), value);
}

#[test]
fn seconds_add_up_to_the_totals_everywhere() {
    let server = server();
    let directory = Directory::new();
    let (csv, log) = (directory.file("rows.csv"), directory.file("latency.hlog"));
    let words = format!("--rate 300 --duration 2500ms --csv {csv} --hdr-log {log}");
    let report = good(&format!("{words} {}", server.address));
    assert_eq!(report.totals.completed, 750);
    let sum =
        |value: fn(&loadtest::collect::Row) -> u64| report.series.iter().map(value).sum::<u64>();
    assert_eq!(sum(|row| row.completed), 750);
    assert_eq!(sum(|row| row.started), 750);
    assert_eq!(sum(|row| row.received_bytes), report.totals.received_bytes);

    let rows = std::fs::read_to_string(&csv).expect("the rows");
    let mut lines = rows.lines();
    let columns: Vec<&str> = lines.next().expect("a head").split(',').collect();
    let place = columns.iter().position(|name| *name == "completed").expect("a column");
    let completed: u64 = lines
        .map(|line| {
            let cells: Vec<&str> = line.split(',').collect();
            assert_eq!(cells.len(), columns.len());
            cells[place].parse::<u64>().expect("a count")
        })
        .sum();
    assert_eq!(completed, 750);

    let text = std::fs::read(&log).expect("the log");
    let mut total = Histogram::<u64>::new(3).expect("a histogram");
    for entry in IntervalLogIterator::new(&text) {
        let Ok(LogEntry::Interval(interval)) = entry else {
            continue;
        };
        if interval.tag().map(|tag| tag.as_str()) == Some("response") {
            let bytes = base64_decoded(interval.encoded_histogram());
            let part: Histogram<u64> =
                Deserializer::new().deserialize(&mut bytes.as_slice()).expect("a histogram");
            total.add(&part).expect("it grows");
        }
    }
    assert_eq!(total.len(), 750);
    let max_us = report.latency.response.max_us.expect("750 responses");
    assert!((total.max() as f64 / 1e3 - max_us).abs() <= max_us * 0.002);
}

/// The standard alphabet, as the log format uses it.
fn base64_decoded(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::new();
    let (mut bits, mut held) = (0_u32, 0);
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        let value = ALPHABET.iter().position(|letter| *letter == byte).expect("a letter");
        bits = bits << 6 | u32::try_from(value).expect("below 64");
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from(bits >> held & 0xFF).expect("masked"));
        }
    }
    bytes
}

#[test]
fn the_table_names_what_people_look_for() {
    let server = server();
    let output = run(&format!("-n 50 -c 2 {}", server.address));
    let text = String::from_utf8_lossy(&output.stdout);
    for word in ["closed loop", "uncorrected", "connect", "first byte", "response", "p99.99"] {
        assert!(text.contains(word), "{word} is missing in {text}");
    }
    assert!(complaints(&output).is_empty());
    assert!(!text.contains('\x1b'), "no colors where there is no terminal");
    let output = run(&format!("--rate 100 -n 50 --quiet {}", server.address));
    let text = String::from_utf8(output.stdout).expect("text");
    for word in ["open loop", "planned start", "late", "dropped", "asked"] {
        assert!(text.contains(word), "{word} is missing in {text}");
    }
    assert!(output.stderr.is_empty());
}

#[test]
fn an_interruption_loses_no_results() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let server = server();
        let child = command(&format!("--rate 100 --duration 60s --json {}", server.address))
            .spawn()
            .expect("the command starts");
        await_that(|| server.seen.ended() >= 20);
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
        kill(pid, signal).expect("it is running");
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(0));
        let report: loadtest::Report = serde_json::from_slice(&output.stdout).expect("results");
        assert!(report.interrupted);
        assert!(report.totals.completed >= 15);
        assert!(report.measured_ms < 59_000.0);
        assert!(report.validity.reasons.iter().any(|reason| reason.code == "interrupted"));
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let server = server();
    let mut child = command(&format!("-n 5 -c 1 {}", server.address))
        .stdout(Stdio::piped())
        .spawn()
        .expect("the command starts");
    drop(child.stdout.take());
    let mut errors = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut errors).expect("text");
    assert!(child.wait().expect("it ends").success(), "{errors}");
}

#[test]
fn help_ends_in_examples_and_the_version_is_printed() {
    let output = run("--help");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success() && text.contains("Examples:") && text.contains("Exit codes"));
    assert!(run("--version").status.success());
}

#[test]
fn results_that_cannot_be_written_are_a_failure() {
    let server = server();
    let full = || File::options().write(true).open("/dev/full").expect("every Linux has it");
    let runs = [format!("-n 5 -c 1 --json {}", server.address), "--help".into(), "-V".into()];
    for words in runs {
        let output = command(&words).stdout(full()).output().expect("the command starts");
        assert_eq!(output.status.code(), Some(1), "{words}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("No space left"), "{words}: {text}");
    }
}
