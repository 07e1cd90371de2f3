//! HTTP/1.x as the running server speaks it, over both runtimes of the built-in worker.

use std::io::Write as _;
use std::process::Command;

use crate::common::{Client, Cluster, GET, GET_CLOSE, HELLO, Launch, get, has_program, machine};

/// Both runtimes answer the same way.
const RUNTIMES: [&str; 2] = ["--runtime ring", "--runtime tokio-uring"];

fn on_each(arguments: &str, check: impl Fn(&Cluster)) {
    for runtime in RUNTIMES {
        let cluster = Launch::new(&format!("--workers 2 {runtime} {arguments}")).start();
        check(&cluster);
        let summary = cluster.end();
        summary.assert_clean(summary.accepted);
    }
}

fn request(line: &str, fields: &str) -> Vec<u8> {
    format!("{line}\r\nHost: test\r\n{fields}\r\n").into_bytes()
}

#[test]
fn connections_are_kept_or_closed_as_the_client_wishes() {
    on_each("", |cluster| {
        let mut kept = Client::to(&cluster.address());
        for _ in 0..50 {
            let answer = kept.ask(GET);
            answer.assert_hello();
            assert!(!answer.closes());
        }
        let answer = kept.ask(GET_CLOSE);
        answer.assert_hello();
        assert!(answer.closes(), "{answer:?}");
        kept.assert_closed();

        let mut old = Client::to(&cluster.address());
        let answer = old.ask(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        answer.assert_hello();
        assert!(answer.head.contains("Connection: keep-alive"), "{answer:?}");
        old.ask(b"GET / HTTP/1.0\r\n\r\n").assert_hello();
        old.assert_closed();
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    on_each("", |cluster| {
        let mut client = Client::to(&cluster.address());
        let head = request("HEAD / HTTP/1.1", "");
        let post = [&request("POST / HTTP/1.1", "Content-Length: 3\r\n")[..], b"abc"].concat();
        client.send(&[GET, &head, &post].concat().repeat(40));
        for _ in 0..40 {
            client.receive().assert_hello();
            let answer = client.receive_head();
            assert!(answer.head.contains("Content-Length: 12\r\n"), "{answer:?}");
            client.receive().assert_hello();
        }
        client.ask(GET_CLOSE).assert_hello();
        client.assert_closed();
    });
}

#[test]
fn a_request_may_come_byte_by_byte() {
    on_each("", |cluster| {
        let mut client = Client::to(&cluster.address());
        GET_CLOSE.iter().for_each(|byte| client.send(&[*byte]));
        client.receive().assert_hello();
        client.assert_closed();
    });
}

#[test]
fn large_bodies_are_read_and_ignored() {
    const BODY_BYTES: usize = 5_000_000;
    on_each("", |cluster| {
        let mut client = Client::to(&cluster.address());
        client.send(&request("POST / HTTP/1.1", &format!("Content-Length: {BODY_BYTES}\r\n")));
        client.send(&vec![b'x'; BODY_BYTES]);
        client.receive().assert_hello();
        client.send(&request("PUT / HTTP/1.1", "Transfer-Encoding: chunked\r\n"));
        for length in [1, 10, 100_000, 65_536, 1_000_000, 3_000_001] {
            client.send(format!("{length:x}\r\n").as_bytes());
            client.send(&vec![b'y'; length]);
            client.send(b"\r\n");
        }
        client.send(b"0\r\n\r\n");
        client.receive().assert_hello();
        client.ask(GET_CLOSE).assert_hello();
        client.assert_closed();
    });
}

#[test]
fn a_client_that_expects_leave_to_send_gets_it() {
    on_each("", |cluster| {
        let mut client = Client::to(&cluster.address());
        client.send(&request("POST / HTTP/1.1", "Content-Length: 5\r\nExpect: 100-continue\r\n"));
        assert_eq!(client.receive_head().status, 100);
        client.ask(b"12345").assert_hello();
        client.send(&request("POST / HTTP/1.1", "Content-Length: 5\r\nExpect: miracles\r\n"));
        assert_eq!(client.receive().status, 417);
        client.assert_closed();
    });
}

#[test]
fn requests_that_cannot_be_met_are_refused_with_their_reason() {
    let cases: [(&[u8], u16); 8] = [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS greeting", 400),
        (b"GET /\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nmany\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ];
    on_each("", |cluster| {
        for (bytes, status) in cases {
            let mut client = Client::to(&cluster.address());
            let answer = client.ask(bytes);
            assert_eq!((answer.status, answer.closes()), (status, true), "{answer:?}");
            client.assert_closed();
        }
    });
}

#[test]
fn heads_that_are_too_large_are_refused_even_if_they_never_end() {
    on_each("", |cluster| {
        let field = format!("X-Padding: {}\r\n", "p".repeat(990));
        let mut whole = Client::to(&cluster.address());
        whole.send(&request("GET / HTTP/1.1", &field.repeat(20)));
        assert_eq!(whole.receive().status, 431);
        drop(whole);

        let mut many = Client::to(&cluster.address());
        many.send(&request("GET / HTTP/1.1", &"A: b\r\n".repeat(101)));
        assert_eq!(many.receive().status, 431);
        drop(many);

        let mut endless = Client::to(&cluster.address());
        endless.send(b"GET / HTTP/1.1\r\n");
        // The server keeps reading for a while so that the client sees the answer, but not forever.
        let mut sent = 0;
        while sent < 64_000_000 && endless.try_send(field.as_bytes()).is_ok() {
            sent += field.len();
        }
        assert!(sent < 64_000_000, "{sent} bytes of a head were taken");
    });
}

#[test]
fn a_head_that_takes_too_long_is_answered_with_408() {
    on_each("--header-timeout 300ms", |cluster| {
        let mut slow = Client::to(&cluster.address());
        slow.send(b"GET / HTTP/1.1\r\nHo");
        let mut silent = Client::to(&cluster.address());
        let mut second = Client::held(&cluster.address());
        second.send(b"GET");
        for client in [&mut slow, &mut second] {
            let answer = client.receive();
            assert_eq!((answer.status, answer.closes()), (408, true), "{answer:?}");
            client.assert_closed();
        }
        silent.assert_closed();
        // A drip of bytes does not extend the deadline.
        let mut drip = Client::to(&cluster.address());
        drip.send(b"GET / HTTP/1.1\r\nHost: x\r\nX: ");
        while drip.try_send(b"x").is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    });
}

#[test]
fn idle_connections_are_closed_in_silence() {
    on_each("--idle-timeout 300ms", |cluster| {
        let mut client = Client::held(&cluster.address());
        client.assert_closed();
        let mut used = Client::to(&cluster.address());
        // At once: on a busy machine this test may be late with the next one.
        used.send(&GET.repeat(5));
        (0..5).for_each(|_| used.receive().assert_hello());
        used.assert_closed();
    });
}

#[test]
fn a_client_that_half_closes_still_gets_its_answers() {
    on_each("", |cluster| {
        let mut client = Client::to(&cluster.address());
        client.send(&GET.repeat(3));
        client.half_close();
        (0..3).for_each(|_| client.receive().assert_hello());
        client.assert_closed();

        let mut early = Client::to(&cluster.address());
        early.send(b"GET / HTT");
        early.half_close();
        assert_eq!(early.receive().status, 400);
        early.assert_closed();

        let mut silent = Client::to(&cluster.address());
        silent.half_close();
        silent.assert_closed();
    });
}

#[test]
fn a_client_that_does_not_read_waits_without_filling_the_memory() {
    const REQUESTS: usize = 60_000;
    on_each("", |cluster| {
        let pids = cluster.worker_pids();
        let resident = || pids.iter().map(|pid| machine::resident_kib(*pid)).sum::<u64>();
        let before_kib = resident();
        let mut client = Client::to(&cluster.address());
        let mut writer = client.writer();
        let writing = std::thread::spawn(move || writer.write_all(&GET.repeat(REQUESTS)));
        // The answers are far longer than the requests, so the server has to stop reading. The test
        // cannot see when it does; other clients are served all the time.
        for _ in 0..50 {
            get(&cluster.address()).expect("an answer").assert_hello();
        }
        let after_kib = resident();
        assert!(after_kib < before_kib + 20_000, "{before_kib} KiB grew to {after_kib} KiB");
        (0..REQUESTS).for_each(|_| client.receive().assert_hello());
        writing.join().expect("no panic").expect("everything was taken");
    });
}

#[test]
fn curl_is_served() {
    if !has_program("curl") {
        return;
    }
    on_each("", |cluster| {
        let url = format!("http://{}/", cluster.address());
        let curl = |arguments: &[&str]| {
            let output = Command::new("curl")
                .args(["--silent", "--show-error", "--noproxy", "*"])
                .args(arguments)
                .args([&url, &url])
                .output()
                .expect("curl starts");
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).expect("text")
        };
        assert_eq!(curl(&[]), HELLO.repeat(2));
        assert_eq!(curl(&["--http1.0"]), HELLO.repeat(2));
        assert_eq!(curl(&["--data", "a=b"]), HELLO.repeat(2));
        assert_eq!(curl(&["--head"]).matches("200 OK").count(), 2);
    });
}
