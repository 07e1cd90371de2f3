//! Cases by their raw bytes: the answer to each request, sent whole and byte by byte.

use super::super::super::Next;
use super::{HELLO, codes, run, run_bytewise};

fn check(cases: &[(&str, &[u16], Next)]) {
    for (input, expected, next) in cases {
        for (how, (sent, verdict)) in
            [("whole", run(input.as_bytes())), ("bytewise", run_bytewise(input.as_bytes()))]
        {
            assert_eq!(codes(&sent), *expected, "{how}: {input:?} gave {sent:?}");
            assert_eq!(verdict, *next, "{how}: {input:?} gave {sent:?}");
            let closes = sent.contains("\r\nConnection: close\r\n");
            assert_eq!(closes, *next != Next::Read, "{how}: {input:?}");
        }
    }
}

#[test]
fn an_answer_is_written_to_the_byte() {
    let hello = format!("{HELLO}\r\nhello world\n");
    let get = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_eq!(run(get), (hello, Next::Read));
    let head = b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_eq!(run(head), (format!("{HELLO}\r\n"), Next::Read));
    let old = b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n";
    let kept = format!("{HELLO}Connection: keep-alive\r\n\r\nhello world\n");
    assert_eq!(run(old), (kept, Next::Read));
    let refused = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 16\r\n\
        Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nConnection: close\r\n\r\n400 Bad Request\n";
    assert_eq!(run(b"GET / HTTP/1.1\r\n\r\n"), (refused.into(), Next::CloseLingering));
    let (sent, _) = run(b"HEAD / HTTP/1.1\r\n\r\n");
    assert!(sent.ends_with("\r\n\r\n"), "no body behind HEAD: {sent:?}");
}

#[test]
fn persistence() {
    use Next::{Close, CloseLingering, Read};
    check(&[
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", &[200], Read),
        ("GET / HTTP/1.1\nhost:x\n\n", &[200], Read),
        ("BREW /a?b HTTP/1.1\r\nHost:\r\n\r\n", &[200], Read),
        ("OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", &[200], Read),
        ("GET / HTTP/1.7\r\nHost: x\r\n\r\n", &[200], Read),
        ("GET / HTTP/1.0\r\n\r\n", &[200], Close),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", &[200], Read),
        ("GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", &[200], Close),
        ("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", &[200], Close),
        ("GET / HTTP/1.1\r\nHost: x\r\ncOnNeCtIoN: TE ,\tCLOSE\r\n\r\n", &[200], Close),
        ("GET / HTTP/1.1\r\nHost: x\r\nConnection: closed\r\n\r\n", &[200], Read),
        ("CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\nGET", &[200], CloseLingering),
        (
            "GET / HTTP/1.1\r\nHost: x\r\n\r\n\
             HEAD / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.0\r\n\r\nGET ",
            &[200, 200, 200],
            Close,
        ),
        (
            "\r\n\n\r\n\n\nGET / HTTP/1.1\r\nHost: x\r\n\r\n\n\n\n\n\r\nGET / HTTP/1.0\r\n\r\n",
            &[200, 200],
            Close,
        ),
        ("\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n", &[400], CloseLingering),
        ("\rGET / HTTP/1.1\r\nHost: x\r\n\r\n", &[400], CloseLingering),
    ]);
}

#[test]
fn bodies() {
    use Next::{Close, CloseLingering, Read};
    let chunked = |body: &str| {
        format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: CHUNKED\r\n\r\n{body}")
    };
    let sized =
        |fields: &str, body: &str| format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n{body}");
    let cases: Vec<(String, &[u16], Next)> = vec![
        (sized("Content-Length: 5", "12345GET / HTTP/1.0\r\n\r\n"), &[200, 200], Close),
        (sized("Content-Length: 5, 5\r\nContent-Length: 5", "12345"), &[200], Read),
        (sized("Content-Length: 0", ""), &[200], Read),
        (sized("Content-Length: 18446744073709551615", "123"), &[], Read),
        (sized("Content-Length: 18446744073709551616", ""), &[400], CloseLingering),
        (sized("Content-Length: 5\r\nContent-Length: 6", ""), &[400], CloseLingering),
        (sized("Content-Length: 5, 6", ""), &[400], CloseLingering),
        (sized("Content-Length: +5", ""), &[400], CloseLingering),
        (sized("Content-Length: 5 5", ""), &[400], CloseLingering),
        (sized("Content-Length: 0x5", ""), &[400], CloseLingering),
        (sized("Content-Length: -1", ""), &[400], CloseLingering),
        (sized("Content-Length:", ""), &[400], CloseLingering),
        (sized("Content-Length: 5\r\nTransfer-Encoding: chunked", ""), &[400], CloseLingering),
        (sized("Transfer-Encoding: gzip, chunked", ""), &[501], CloseLingering),
        (sized("Transfer-Encoding: chunked, chunked", ""), &[501], CloseLingering),
        (sized("Transfer-Encoding: chunked\r\nTransfer-Encoding: x", ""), &[501], CloseLingering),
        (sized("Transfer-Encoding: xchunked", ""), &[501], CloseLingering),
        (sized("Transfer-Encoding:", ""), &[501], CloseLingering),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(), &[400], CloseLingering),
        (chunked("0\r\n\r\n"), &[200], Read),
        (chunked("5\r\n12345\r\n000\r\n\r\nGET / HTTP/1.0\r\n\r\n"), &[200, 200], Close),
        (chunked("a;name=\"v\" ; b\r\n0123456789\r\n0\r\nA: b\r\nC:\r\n\r\n"), &[200], Read),
        (chunked("F \r\n012345678901234\r\n0\r\n\r\n"), &[200], Read),
        (chunked("ffffffffffffffff\r\n"), &[], Read),
        (chunked("10000000000000000\r\n"), &[400], CloseLingering),
        (chunked("\r\n"), &[400], CloseLingering),
        (chunked(";a\r\n"), &[400], CloseLingering),
        (chunked(" 5\r\n"), &[400], CloseLingering),
        (chunked("g\r\n"), &[400], CloseLingering),
        (chunked("-5\r\n"), &[400], CloseLingering),
        (chunked("0x5\r\n"), &[400], CloseLingering),
        (chunked("5\n12345\r\n"), &[400], CloseLingering),
        (chunked("5;a\nb\r\n"), &[400], CloseLingering),
        (chunked("5;a\rb\r\n"), &[400], CloseLingering),
        (chunked("5;a\0b\r\n12345\r\n"), &[400], CloseLingering),
        (chunked("5\r\n123456"), &[400], CloseLingering),
        (chunked("5\r\n12345\n"), &[400], CloseLingering),
        (chunked("5\r\n12345\rx"), &[400], CloseLingering),
        (chunked("0\r\nA : b\r\n\r\n"), &[400], CloseLingering),
        (chunked("0\r\n\rA"), &[400], CloseLingering),
    ];
    for (input, expected, next) in &cases {
        check_body(input, expected, *next);
    }
}

fn check_body(input: &str, expected: &[u16], next: Next) {
    check(&[(input, expected, next)]);
}

#[test]
fn malformed_heads() {
    let cases = [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
        ("GET / HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        ("GET / HTTP/1.5\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\rHost: x\r\n\r\n", 400),
        ("GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET / HTTP/1.1 \r\nHost: x\r\n\r\n", 400),
        ("GET / HTTP/2.0 \r\nHost: x\r\n\r\n", 400),
        ("GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (" GET / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("G@T / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET / http/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET / HTTP/1.10\r\nHost: x\r\n\r\n", 400),
        ("GET / HTTP/1\r\nHost: x\r\n\r\n", 400),
        ("GET / HTTP/\r\nHost: x\r\n\r\n", 400),
        ("GET /\r\n\r\n", 400),
        ("GET / FTP/1.1\r\n\r\n", 400),
        ("\x16\x03\x01\x02\0\x01\r\n\r\n", 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        ("GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        ("GET / HTTP/0.9\r\n\r\n", 505),
        ("GET / HTTP/3.1\r\nHost: x\r\n\r\n", 505),
        ("POST / HTTP/1.1\r\nHost: x\r\nExpect: cake\r\n\r\n", 417),
        ("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue, cake\r\n\r\n", 417),
    ];
    for (input, code) in cases {
        check(&[(input, &[code], Next::CloseLingering)]);
    }
}

#[test]
fn clients_that_wait_for_100_continue_get_it() {
    let head = "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n";
    let (sent, next) = run(head.as_bytes());
    assert_eq!(sent, "HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(next, Next::Read);
    let (sent, _) = run_bytewise(format!("{head}ab").as_bytes());
    assert_eq!(codes(&sent), [100, 200]);
    for input in [
        format!("{head}ab"),
        head.replace("h: 2", "h: 0"),
        format!("{}ab", head.replace("HTTP/1.1", "HTTP/1.0")),
        "POST / HTTP/1.0\r\nExpect: cake\r\n\r\n".into(),
    ] {
        assert_eq!(codes(&run(input.as_bytes()).0), [200], "{input:?}");
    }
    // An HTTP/1.0 client would mistake the interim answer for the final one.
    let old = head.replace("HTTP/1.1", "HTTP/1.0");
    assert_eq!(run(old.as_bytes()).0, "");
}
