//! Targets that fail and arguments that are refused: one clear line each, and the right exit code.

use std::io::{BufRead, BufReader};
use std::net::ToSocketAddrs;

use crate::common::{
    Directory, Port, Seen, Server, Stream, await_that, command, complaints, hello, http,
    read_request, report, run, sleep_ms, write,
};
use loadtest::tally::ErrorKind;

#[test]
fn a_refusing_target_ends_in_one_line() {
    let port = Port::new();
    for load in ["--rate 500", "--connections 4"] {
        let output = run(&format!("{load} --duration 30s {}", port.address));
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty(), "no table without values");
        let lines = complaints(&output);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("refused") && lines[0].contains("start the server"));
    }
}

#[test]
fn a_refusal_is_reported_in_json_too() {
    let port = Port::new();
    let (report, output) = report(&format!("--rate 500 --duration 30s {}", port.address));
    assert_eq!(output.status.code(), Some(1));
    assert!(report.totals.errors[&ErrorKind::ConnectRefused] > 0);
    assert!(report.failure.expect("a failure").cause.contains("refused"));
}

#[test]
fn a_missing_unix_socket_is_a_refusal() {
    let directory = Directory::new();
    let output = run(&format!("--duration 30s unix:{}", directory.file("missing")));
    assert_eq!(output.status.code(), Some(1));
    assert!(complaints(&output)[0].contains("connect refused"));
}

#[test]
fn a_target_that_goes_away_ends_the_run_with_its_results() {
    let mut server = Server::start(http(|stream, _| hello(stream)));
    let child = command(&format!("--rate 50 --duration 60s --json {}", server.address))
        .spawn()
        .expect("the command starts");
    await_that(|| server.seen.ended() >= 10);
    server.stop();
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    let report: loadtest::Report = serde_json::from_slice(&output.stdout).expect("its results");
    assert!(report.totals.completed >= 9);
    assert!(report.failure.expect("a failure").cause.contains("went away"));
    assert_eq!(complaints(&output).len(), 1);
}

#[test]
fn garbage_is_a_bad_response() {
    let server = Server::start(|mut stream, seen| {
        let mut reader = BufReader::new(stream.twin());
        if read_request(&mut reader, seen).is_some() {
            write(&mut *stream, "SSH-2.0-OpenSSH_9.9\r\n");
        }
    });
    let (report, output) = report(&format!("-c 2 --duration 30s {}", server.address));
    assert_eq!(output.status.code(), Some(1));
    assert!(report.totals.errors[&ErrorKind::BadResponse] > 0);
    let line = &complaints(&output)[0];
    assert!(line.contains("does not begin as an HTTP/1 response"), "{line}");
    assert!(line.contains("--mode"), "{line}");
}

#[test]
fn an_endless_header_is_a_bad_response() {
    let server = Server::start(http(|stream, _| {
        write(stream, "HTTP/1.1 200 OK\r\n");
        for _ in 0..400 {
            write(stream, &format!("a: {}\r\n", "x".repeat(1000)));
        }
    }));
    let (report, _) = report(&format!("-n 3 -c 1 {}", server.address));
    assert_eq!(report.totals.errors[&ErrorKind::BadResponse], 3);
    assert!(report.totals.error_examples[&ErrorKind::BadResponse].contains("256 KiB"));
}

#[test]
fn a_server_that_speaks_first_is_a_bad_response() {
    let server = Server::start(|mut stream, seen| {
        write(&mut *stream, "220 mail\r\n");
        read_request(&mut BufReader::new(stream), seen);
    });
    let (report, _) = report(&format!("-n 2 -c 1 {}", server.address));
    assert_eq!(report.totals.errors[&ErrorKind::BadResponse], 2);
}

#[test]
fn a_close_without_an_answer_is_counted_as_such() {
    let server = Server::start(|stream, seen| {
        read_request(&mut BufReader::new(stream), seen);
    });
    let (report, output) = report(&format!("-n 5 -c 1 {}", server.address));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(report.totals.errors[&ErrorKind::ClosedEarly], 5);
}

#[test]
fn a_close_within_an_answer_is_counted_as_such() {
    let server = Server::start(|mut stream, seen| {
        read_request(&mut BufReader::new(stream.twin()), seen);
        write(&mut *stream, "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhal");
    });
    let (report, _) = report(&format!("-n 5 -c 1 {}", server.address));
    assert_eq!(report.totals.errors[&ErrorKind::ClosedEarly], 5);
    assert!(report.totals.error_examples[&ErrorKind::ClosedEarly].contains("within"));
}

#[test]
fn resets_are_counted_as_such() {
    // Closing with unread bytes is a reset; waiting for the first byte makes sure there are any.
    let server = Server::start(|mut stream, _| {
        let _ = stream.read(&mut [0]);
    });
    let (report, _) = report(&format!("-n 5 -c 1 {}", server.address));
    assert_eq!(report.totals.errors[&ErrorKind::Reset], 5);
}

#[test]
fn a_silent_server_times_out() {
    let server = Server::start(|stream, seen| {
        let mut reader = BufReader::new(stream);
        while read_request(&mut reader, seen).is_some() {}
    });
    let (report, output) = report(&format!(
        "-n 8 -c 4 --pipeline 2 --requests-per-connection 2 --timeout 200ms {}",
        server.address
    ));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(report.totals.errors[&ErrorKind::Timeout], 8);
}

#[test]
fn a_server_that_does_not_even_read_times_out() {
    // Connected by the kernel and never accepted: the request is on its way when the time is over.
    let port = Port::new();
    let _listener = port.listen(16);
    let words = "-n 6 -c 2 --body-bytes 20000000 --timeout 200ms";
    let (report, output) = report(&format!("{words} {}", port.address));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(report.totals.errors[&ErrorKind::Timeout], 6);
    assert_eq!(report.totals.started, 6);
}

#[test]
fn a_full_queue_is_a_connect_timeout() {
    // Two connections fit a queue of length 1 that is never emptied, further ones do not.
    let port = Port::new();
    let _listener = port.listen(1);
    let words = "--mode connect -n 6 -c 6 --timeout 400ms";
    let (report, output) = report(&format!("{words} {}", port.address));
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(report.totals.completed, 2);
    assert_eq!(report.totals.errors[&ErrorKind::ConnectTimeout], 4);
    assert!(report.validity.reasons.iter().any(|reason| reason.code == "requests_failed"));
}

/// Answers well, badly, early, late, partly or not at all, turn by turn.
fn misbehave(mut stream: Box<dyn Stream>, seen: &Seen) {
    let mut reader = BufReader::new(stream.twin());
    let turn = seen.connections();
    for request in 0..turn % 4 {
        if turn.is_multiple_of(5) {
            // An answer before the request's body has been read, or even sent.
            let _ = reader.fill_buf();
            hello(&mut *stream);
        }
        if read_request(&mut reader, seen).is_none() {
            return;
        }
        match (turn + request) % 7 {
            0 => write(&mut *stream, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"),
            1 => write(&mut *stream, "nonsense\r\n\r\n"),
            2 => write(&mut *stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"),
            3 => sleep_ms(30),
            _ => hello(&mut *stream),
        }
    }
}

#[test]
fn whatever_a_server_does_every_request_is_accounted_for() {
    for load in ["-c 5", "--rate 400 --connections-max 5", "-c 5 --close rst"] {
        let server = Server::start(misbehave);
        let words = "--duration 500ms --pipeline 3 --requests-per-connection 2-6 --timeout 100ms";
        for body_bytes in [0, 100_000] {
            let words = format!("{load} {words} --body-bytes {body_bytes} --hold 3");
            let (report, _) = report(&format!("{words} {}", server.address));
            let totals = &report.totals;
            assert!(totals.started > 0 && totals.failed > 0, "{words}");
            let ended = totals.completed + totals.failed + totals.unfinished;
            assert_eq!(totals.started, ended, "{words}");
            assert_eq!(report.latency.response.count, totals.completed, "{words}");
        }
    }
}

#[test]
fn statuses_are_counted_by_class_and_some_failures_are_no_failed_run() {
    let server = Server::start(http(|stream, number| match number {
        0 => hello(stream),
        1 => write(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
        _ => write(stream, "HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"),
    }));
    let words = "-n 6 -c 1 --requests-per-connection unlimited";
    let (report, output) = report(&format!("{words} {}", server.address));
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(report.totals.completed, 6);
    for (class, count) in [("2xx", 2), ("4xx", 2), ("5xx", 2)] {
        assert_eq!(report.totals.status[class], count, "{class}");
    }
    assert_eq!(server.seen.connections(), 2, "a server's wish to close is granted");
}

#[test]
fn what_cannot_be_asked_for_is_usage() {
    for words in [
        "--rate 0 h:1",
        "--duration 0s h:1",
        "--requests 0 h:1",
        "--connections 0 h:1",
        "--rat 5 h:1",
        "--rate 5",
        "ftp://h:1",
        "--expect p99 h:1",
        "-X CONNECT h:1",
        "--mode echo http://h:1",
        "--pipeline 4 h:1",
        "--threads 5000 -c 5000 127.0.0.1:1",
        "--pin 4095 127.0.0.1:1",
        "--sources 4 8.8.8.8:1",
    ] {
        let output = run(words);
        assert_eq!(output.status.code(), Some(2), "{words}");
        assert!(output.stdout.is_empty(), "{words}");
        assert!(!output.stderr.is_empty(), "{words}");
    }
}

#[test]
fn too_few_descriptors_or_ports_are_the_environments_fault() {
    for words in ["-c 3999999 127.0.0.1:1", "-c 1 --hold 3000000 127.0.0.1:1"] {
        let output = run(words);
        assert_eq!(output.status.code(), Some(3), "{words}");
        assert_eq!(complaints(&output).len(), 1);
    }
}

#[test]
fn held_connections_that_are_refused_end_the_run_before_it_begins() {
    let port = Port::new();
    let output = run(&format!("--hold 10 --duration 30s {}", port.address));
    assert_eq!(output.status.code(), Some(1));
    let lines = complaints(&output);
    assert!(lines.len() == 1 && lines[0].contains("open 10 idle connections"), "{lines:?}");
}

#[test]
fn an_unknown_name_is_reported_with_what_to_check() {
    for url in ["http://no-such-name.invalid/", "no-such-name.invalid:80", "https://a.invalid"] {
        let output = run(&format!("--duration 30s {url}"));
        assert_eq!(output.status.code(), Some(1), "{url}");
        let lines = complaints(&output);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("resolve") && lines[0].contains(".invalid"), "{lines:?}");
        assert!(lines[0].contains("check"), "{lines:?}");
    }
}

#[test]
fn a_refusal_names_every_address_that_was_tried() {
    let port = Port::new().address.port();
    let output = run(&format!("--duration 30s -c 1 http://localhost:{port}/"));
    assert_eq!(output.status.code(), Some(1));
    let addresses = ("localhost", port).to_socket_addrs().expect("every machine has a localhost");
    let line = &complaints(&output)[0];
    for address in addresses {
        assert!(line.contains(&address.to_string()), "{address} is missing in {line}");
    }
}

#[test]
fn files_that_cannot_be_written_are_noticed_before_the_run() {
    let output = run("--duration 30s --csv /nowhere/at/all.csv 127.0.0.1:1");
    assert_eq!(output.status.code(), Some(1));
    assert!(complaints(&output)[0].contains("/nowhere/at/all.csv"));
}
