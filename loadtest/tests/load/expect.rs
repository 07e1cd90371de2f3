//! Exit codes for scripts: conditions on the results, and answers that are all errors.

use crate::common::{Server, complaints, good, hello, http, report, run, status};

#[test]
fn conditions_that_are_met_leave_the_exit_code_alone() {
    let server = Server::start(http(|stream, _| hello(stream)));
    let words = "-n 30 -c 2 --expect 'p99<60s, errors=0' --expect 2xx=100%,requests>=30";
    let report = good(&format!("{words} {}", server.address));
    assert_eq!(report.expectations.len(), 4);
    assert!(report.expectations.iter().all(|checked| checked.met));
}

#[test]
fn conditions_that_are_not_met_are_named_with_what_was_measured() {
    let server = Server::start(http(|stream, number| match number % 2 {
        0 => hello(stream),
        _ => status(stream, 503),
    }));
    let words = "-n 30 -c 1 --requests-per-connection unlimited --quiet";
    let words = format!("{words} --expect 'p50>1ns,max<1ns,5xx<10%,errors=0' {}", server.address);
    let output = run(&words);
    assert_eq!(output.status.code(), Some(4));
    let lines = complaints(&output);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("expected max<1ns"), "{lines:?}");
    assert!(lines[1].contains("expected 5xx<10%: 15 of 30"), "{lines:?}");
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("expected   p50>1ns: yes"), "{table}");
    assert!(table.contains("max<1ns: no"), "{table}");
    let (report, output) = report(&words);
    assert_eq!(output.status.code(), Some(4));
    let met: Vec<bool> = report.expectations.iter().map(|checked| checked.met).collect();
    assert_eq!(met, [true, false, false, true]);
}

#[test]
fn a_run_without_a_single_good_answer_has_failed_unless_that_is_meant() {
    for code in [404, 500] {
        let server = Server::start(http(move |stream, _| status(stream, code)));
        let (report, output) = report(&format!("-n 50 -c 2 {}", server.address));
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(report.totals.completed, 50);
        let line = &complaints(&output)[0];
        let class = format!("{}xx 50", code / 100);
        assert!(line.contains("50 answers") && line.contains(&class), "{line}");
        assert!(line.contains("--any-status"), "{line}");
        good(&format!("-n 50 -c 2 --any-status {}", server.address));
    }
}

#[test]
fn a_redirection_is_a_good_answer_and_one_good_answer_is_enough() {
    let server = Server::start(http(|stream, number| match number {
        0 => status(stream, 301),
        _ => status(stream, 500),
    }));
    let words = "-n 20 -c 1 --requests-per-connection unlimited";
    good(&format!("{words} {}", server.address));
}
