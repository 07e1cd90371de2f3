//! What a server receives: paths, queries, headers, methods, bodies, users, and several URLs.

use std::collections::BTreeSet;
use std::io::BufReader;
use std::net::{Ipv6Addr, TcpListener};
use std::process::Command;
use std::thread;

use crate::common::{
    Directory, Seen, Server, UnixServer, good, hello, http, lacking, read_request, report, status,
    write,
};
use loadtest::Report;

fn server() -> Server {
    Server::start(http(|stream, _| hello(stream)))
}

#[test]
fn any_url_that_people_paste_is_asked_for() {
    let server = server();
    for (url, asked) in [
        ("http://ADDRESS/a?b=c#frag", "/a?b=c"),
        ("http://ADDRESS?key=val", "/?key=val"),
        ("HTTP://ADDRESS/x", "/x"),
        ("http://ADDRESS#frag", "/"),
        ("ADDRESS/a?b=c#frag", "/a?b=c"),
        ("ADDRESS?key=val", "/?key=val"),
        ("http://user:secret@ADDRESS/u", "/u"),
    ] {
        let url = url.replace("ADDRESS", &server.address.to_string());
        let report = good(&format!("-n 3 -c 1 {url}"));
        assert_eq!(report.totals.completed, 3, "{url}");
        let (head, _) = server.seen.last();
        assert!(head.starts_with(&format!("GET {asked} HTTP/1.1\r\n")), "{url}: {head}");
    }
    let (head, _) = server.seen.last();
    assert!(head.contains("\r\nAuthorization: Basic dXNlcjpzZWNyZXQ=\r\n"), "{head}");
}

#[test]
fn a_user_is_not_repeated_in_the_report() {
    let server = server();
    let words = format!("-n 3 -c 1 http://user:secret@{}/", server.address);
    let (report, output) = report(&words);
    assert_eq!(report.settings.target.to_string(), format!("http://{}/", server.address));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains("secret") && !text.contains("dXNlcj"), "{text}");
}

/// A server on ::1 that answers this many requests, each on its own connection.
fn on_v6(requests: usize) -> Option<(u16, thread::JoinHandle<Seen>)> {
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).ok()?;
    let port = listener.local_addr().expect("it is bound").port();
    let server = thread::spawn(move || {
        let seen = Seen::default();
        for _ in 0..requests {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
            if read_request(&mut reader, &seen).is_some() {
                hello(&mut stream);
            }
        }
        seen
    });
    Some((port, server))
}

/// The command where `localhost` is both ::1 and 127.0.0.1, if this machine allows that.
fn where_localhost_is_both(words: &str, directory: &Directory) -> Option<Report> {
    let hosts = directory.file("hosts");
    std::fs::write(&hosts, "::1 localhost\n127.0.0.1 localhost\n").expect("a new file");
    let inside = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", script, "sh", &hosts]);
        command
    };
    let mount = "mount --bind \"$1\" /etc/hosts";
    let allowed = inside(mount).output().is_ok_and(|output| output.status.success());
    if !allowed {
        lacking("mount namespaces, in which `localhost` has two addresses");
        return None;
    }
    let program = env!("CARGO_BIN_EXE_clusterlb-load");
    let script = format!("{mount} && exec {program} --pin none --json {words}");
    let output = inside(&script).output().expect("it was there a moment ago");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}: {errors}");
    Some(serde_json::from_slice(&output.stdout).expect("a report"))
}

#[test]
fn every_address_of_a_name_is_tried() {
    let v4 = server();
    let directory = Directory::new();
    let on_v4 = format!("http://localhost:{}/", v4.address.port());
    assert_eq!(good(&format!("-n 20 -c 2 {on_v4}")).totals.completed, 20);
    for words in ["-n 20 -c 2", "--hold 5 --rate 500 -n 20", "-n 20 -c 2 --close rst"] {
        let before = v4.seen.requests();
        let Some(report) = where_localhost_is_both(&format!("{words} {on_v4}"), &directory) else {
            return;
        };
        assert_eq!((report.totals.completed, report.totals.failed), (20, 0), "{words}");
        assert_eq!(v4.seen.requests() - before, 20, "{words}");
    }
    let Some((port, server)) = on_v6(20) else {
        lacking("the address ::1");
        return;
    };
    let words = format!("-n 20 -c 2 http://localhost:{port}/");
    let report = where_localhost_is_both(&words, &directory).expect("it was allowed before");
    assert_eq!((report.totals.completed, report.totals.failed), (20, 0));
    assert_eq!(server.join().expect("it served all of them").requests(), 20);
}

#[test]
fn headers_methods_and_bodies_are_sent_as_given() {
    let server = server();
    let directory = Directory::new();
    let file = directory.file("body.json");
    std::fs::write(&file, b"{\"from\":\"a file\"}\n\0").expect("a new file");
    let words = "-n 2 -c 1 -H 'X-One: 1 and more' --header 'Host: other.example' -X put";
    good(&format!("{words} --body-file {file} http://{}/item", server.address));
    let (head, body) = server.seen.last();
    assert_eq!(body, b"{\"from\":\"a file\"}\n\0");
    assert!(head.starts_with("PUT /item HTTP/1.1\r\n"), "{head}");
    for line in ["X-One: 1 and more", "Host: other.example", "Content-Length: 19"] {
        assert!(head.lines().any(|there| there == line), "{line} is missing in {head}");
    }
    assert_eq!(head.to_ascii_lowercase().matches("host:").count(), 1, "{head}");

    good(&format!("-n 2 -c 1 --body 'a b c' {}", server.address));
    let (head, body) = server.seen.last();
    assert!(head.starts_with("POST / HTTP/1.1\r\n"), "{head}");
    assert_eq!(body, b"a b c");

    good(&format!("-n 2 -c 1 -X DELETE {}", server.address));
    let (head, body) = server.seen.last();
    assert!(head.starts_with("DELETE / HTTP/1.1\r\n") && body.is_empty(), "{head}");
}

#[test]
fn a_response_to_head_has_no_body() {
    let server = Server::start(http(|stream, _| {
        write(stream, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n");
    }));
    let words = "-n 20 -c 2 -X HEAD --requests-per-connection unlimited";
    let report = good(&format!("{words} {}", server.address));
    assert_eq!(report.totals.completed, 20);
    assert_eq!(server.seen.connections(), 2);
}

#[test]
fn urls_of_one_server_take_turns_on_its_connections() {
    let server = server();
    let urls: Vec<String> =
        ["a", "b", "c"].iter().map(|path| format!("http://{}/{path}", server.address)).collect();
    let urls = urls.join(" ");
    for words in [
        "-n 60 -c 2 --requests-per-connection unlimited",
        "-n 60 -c 1 --requests-per-connection 6 --pipeline 4",
        "-n 60 -c 2",
        "-n 60 --rate 2000 --requests-per-connection unlimited",
    ] {
        server.seen.received.lock().expect("no panic holds it").clear();
        let report = good(&format!("{words} {urls}"));
        assert_eq!(report.totals.completed, 60, "{words}");
        assert_eq!(report.settings.targets().count(), 3);
        let lines = server.seen.request_lines();
        assert_eq!(lines.len(), 3, "{words}: {lines:?}");
        assert_eq!(lines.values().sum::<usize>(), 60, "{words}: {lines:?}");
        assert!(lines.values().all(|count| *count >= 10), "{words}: {lines:?}");
    }
}

#[test]
fn urls_of_several_servers_take_turns_with_connections() {
    let (first, second) = (server(), server());
    let third = UnixServer::start(http(|stream, _| hello(stream)));
    let urls =
        format!("http://{} {}/x unix:{}", first.address, second.address, third.path.display());
    for words in ["-n 60 -c 3", "-n 60 -c 3 --requests-per-connection 5", "-n 60 --rate 1000"] {
        let before = [&first.seen, &second.seen, &third.seen].map(|seen| seen.requests());
        let report = good(&format!("{words} {urls}"));
        assert_eq!(report.totals.completed, 60, "{words}");
        let after = [&first.seen, &second.seen, &third.seen].map(|seen| seen.requests());
        for (before, after) in before.into_iter().zip(after) {
            assert!(after - before >= 10, "{words}: {before} to {after}");
        }
    }
    let words = "-n 90 --rate 2000 --requests-per-connection unlimited --connections-max 3";
    good(&format!("{words} {urls}"));
    assert!(first.seen.requests() > 60 && third.seen.requests() > 60);
}

#[test]
fn many_header_lines_and_long_heads_are_read() {
    for (lines, bytes) in [(40, 20), (120, 20), (500, 20), (1, 12_000), (1, 60_000), (2, 100_000)] {
        let server = Server::start(http(move |stream, _| {
            let line = format!("Link: {}\r\n", "x".repeat(bytes)).repeat(lines);
            write(stream, &format!("HTTP/1.1 200 OK\r\n{line}Content-Length: 2\r\n\r\nok"));
        }));
        for words in ["-c 2", "-c 1 --requests-per-connection unlimited --pipeline 4"] {
            let report = good(&format!("-n 20 {words} {}", server.address));
            assert_eq!(report.totals.completed, 20, "{lines} lines of {bytes} bytes");
        }
    }
}

#[test]
fn every_kind_of_body_ends_where_it_should() {
    let hints = Server::start(http(|stream, _| {
        write(stream, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 X\r\na: b\r\n\r\n");
        hello(stream);
    }));
    let words = "-c 1 --requests-per-connection unlimited";
    assert_eq!(good(&format!("-n 5 {words} {}", hints.address)).totals.completed, 5);
    let bodies = Server::start(http(|stream, number| match number % 6 {
        0 => write(stream, "HTTP/1.1 204 No Content\r\n\r\n"),
        1 => write(stream, "HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n"),
        2 => write(
            stream,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n5;a=b\r\nhello\r\n\
             0\r\nX: y\r\n\r\n",
        ),
        3 => {
            write(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nf4240\r\n");
            write(stream, &"z".repeat(1_000_000));
            write(stream, "\r\n0\r\n\r\n");
        }
        4 => status(stream, 200),
        _ => write(stream, "HTTP/1.1 200 OK\nContent-Length: 2\n\nok"),
    }));
    let report = good(&format!("-n 60 {words} {}", bodies.address));
    assert_eq!((report.totals.completed, bodies.seen.connections()), (60, 1));
    assert_eq!((report.totals.status["2xx"], report.totals.status["3xx"]), (50, 10));
}

#[test]
fn the_server_of_a_scoped_address_sees_no_scope() {
    // Loopback's interface has the number 1.
    let Some((port, server)) = on_v6(2) else {
        lacking("the address ::1");
        return;
    };
    good(&format!("-n 1 -c 1 http://[::1%1]:{port}/"));
    good(&format!("-n 1 -c 1 http://[::1%251]:{port}/"));
    let seen = server.join().expect("it served both");
    let heads = seen.received.lock().expect("no panic holds it");
    let hosts: BTreeSet<&str> = heads.iter().filter_map(|(head, _)| head.lines().nth(1)).collect();
    assert_eq!(hosts.into_iter().collect::<Vec<_>>(), [format!("Host: [::1]:{port}")]);
}
