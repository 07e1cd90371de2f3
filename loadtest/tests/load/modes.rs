//! What travels over the connections, as the server sees it: modes, reuse, sources, endings.

use std::sync::atomic::Ordering;

use crate::common::{
    self, Server, UnixServer, await_that, echo, good, hello, http, lacking, read_request, write,
};

#[test]
fn a_connection_per_request_is_the_default() {
    let server = Server::start(http(|stream, _| hello(stream)));
    let report = good(&format!("-n 50 -c 3 {}/some/path", server.address));
    assert_eq!((report.totals.completed, report.totals.connected), (50, 50));
    assert_eq!((server.seen.connections(), server.seen.requests()), (50, 50));
    assert_eq!(report.totals.status["2xx"], 50);
    assert!(report.totals.sent_bytes > 0 && report.totals.received_bytes > 0);
}

#[test]
fn connections_carry_as_many_requests_as_asked() {
    let server = Server::start(http(|stream, _| hello(stream)));
    for (load, per_connection, connections) in [
        ("-c 1", "10", 10..=10),
        ("-c 4", "unlimited", 4..=4),
        ("-c 1", "5-20", 5..=20),
        ("--rate 400 --connections-max 1", "10", 10..=10),
        ("--rate 400 --connections-max 1", "unlimited", 1..=1),
    ] {
        let before = server.seen.connections();
        let words = format!("{load} -n 100 --requests-per-connection {per_connection}");
        let report = good(&format!("{words} {}", server.address));
        assert_eq!(report.totals.completed, 100, "{words}");
        let made = server.seen.connections() - before;
        assert!(connections.contains(&made), "{words}: {made} connections");
        assert_eq!(report.totals.connected, made);
        assert_eq!(report.latency.connect.count, made);
        assert_eq!(report.latency.response.count, 100);
    }
}

#[test]
fn pipelined_requests_are_all_answered() {
    let server = Server::start(http(|stream, number| match number % 3 {
        0 => hello(stream),
        1 => write(stream, "HTTP/1.1 204 No Content\r\n\r\n"),
        _ => write(
            stream,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        ),
    }));
    for load in ["-c 2", "--rate 2000 --connections-max 2"] {
        let before = server.seen.requests();
        let words = format!("{load} -n 500 --pipeline 8 --requests-per-connection unlimited");
        let report = good(&format!("{words} {}", server.address));
        assert_eq!(report.totals.completed, 500);
        assert_eq!(report.totals.status["2xx"], 500);
        assert_eq!(server.seen.requests() - before, 500);
    }
}

#[test]
fn bodies_are_sent_and_large_answers_read() {
    let server = Server::start(http(|stream, _| {
        write(stream, "HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n");
        write(stream, &"z".repeat(300_000));
    }));
    let words = "-n 20 -c 2 --body-bytes 200000 --requests-per-connection 5";
    let report = good(&format!("{words} {}", server.address));
    assert_eq!(report.totals.completed, 20);
    assert!(report.totals.sent_bytes >= 20 * 200_000);
    assert!(report.totals.received_bytes >= 20 * 300_000);
    assert_eq!(server.seen.requests(), 20);
}

#[test]
fn an_answer_may_end_with_the_connection() {
    let server = Server::start(|mut stream, seen| {
        read_request(&mut std::io::BufReader::new(stream.twin()), seen);
        write(&mut *stream, "HTTP/1.0 200 OK\r\n\r\nuntil the end");
    });
    let report = good(&format!("-n 10 -c 2 {}", server.address));
    assert_eq!(report.totals.status["2xx"], 10);
}

#[test]
fn echoes_are_verified() {
    let server = Server::start(echo);
    let words = "--mode echo --body-bytes 50000 -n 40 -c 2 --requests-per-connection 4";
    let report = good(&format!("{words} --pipeline 2 {}", server.address));
    assert_eq!(report.totals.completed, 40);
    assert_eq!(report.totals.received_bytes, 40 * 50_000);
    assert!(report.totals.status.is_empty());

    let liar = Server::start(|mut stream, _| {
        let mut buffer = [0; 64];
        if stream.read_exact(&mut buffer).is_ok() {
            buffer[40] ^= 1;
            let _ = stream.write_all(&buffer);
        }
    });
    let (report, output) = common::report(&format!("-n 3 -c 1 tcp://{}", liar.address));
    assert_eq!(output.status.code(), Some(1));
    let examples: Vec<&String> = report.totals.error_examples.values().collect();
    assert_eq!(examples, ["other bytes came back than were sent"]);
}

#[test]
fn connect_mode_connects_and_closes() {
    let server = Server::start(|mut stream, seen| {
        let sent = u64::from(stream.read(&mut [0]).is_ok_and(|length| length > 0));
        seen.requests.fetch_add(sent, Ordering::SeqCst);
    });
    let report = good(&format!("--mode connect -n 60 -c 3 {}", server.address));
    assert_eq!((report.totals.completed, report.totals.connected), (60, 60));
    assert_eq!((report.latency.connect.count, report.latency.response.count), (60, 0));
    await_that(|| server.seen.connections() == 60 && server.seen.open.load(Ordering::SeqCst) == 0);
    assert_eq!(server.seen.requests(), 0);
}

#[test]
fn unix_sockets_carry_http_and_echoes() {
    let web = UnixServer::start(http(|stream, _| hello(stream)));
    let report = good(&format!("-n 30 -c 2 unix:{}:/path", web.path.display()));
    assert_eq!((report.totals.completed, web.seen.connections()), (30, 30));
    let back = UnixServer::start(echo);
    let words = "--mode echo -n 30 --rate 1000 --requests-per-connection 3";
    let report = good(&format!("{words} unix:{}", back.path.display()));
    assert_eq!(report.totals.completed, 30);
}

#[test]
fn source_addresses_are_spread() {
    let server = Server::start(http(|stream, _| hello(stream)));
    let report = good(&format!("-n 64 -c 1 --sources 8 {}", server.address));
    assert_eq!(report.environment.sources, 8);
    let peers = server.seen.peers.lock().expect("no panic holds it");
    assert_eq!(peers.len(), 8);
    assert!(peers.iter().all(std::net::IpAddr::is_loopback));
}

#[test]
fn connections_end_by_reset_if_asked() {
    let server = Server::start(http(|stream, _| hello(stream)));
    good(&format!("-n 20 -c 1 --close fin {}", server.address));
    good(&format!("-n 20 -c 1 --close rst {}", server.address));
    let ended = || server.seen.connections() == 40 && server.seen.open.load(Ordering::SeqCst) == 0;
    await_that(ended);
    assert_eq!(server.seen.resets.load(Ordering::SeqCst), 20);
}

#[test]
fn held_connections_stay_open_through_the_run() {
    let server = Server::start(http(|stream, _| hello(stream)));
    let report = good(&format!("--hold 100 -n 20 -c 1 {}", server.address));
    assert_eq!((report.totals.completed, report.totals.connected), (20, 20));
    assert_eq!(report.totals.held_lost, 0);
    assert_eq!(server.seen.connections(), 120);
    assert!(server.seen.most_open.load(Ordering::SeqCst) >= 101);
}

#[test]
fn threads_share_the_work_and_the_report() {
    if std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() < 2) {
        lacking("two CPUs");
        return;
    }
    let server = Server::start(http(|stream, _| hello(stream)));
    for load in ["-c 4", "--rate 500"] {
        let words = format!("{load} --threads 2 -n 101 --hold 5 --pin auto");
        let report = good(&format!("{words} {}", server.address));
        assert_eq!(report.totals.completed, 101);
        assert_eq!(report.latency.response.count, 101);
        assert_eq!(report.environment.pinned_cpus.len(), 2);
    }
}
