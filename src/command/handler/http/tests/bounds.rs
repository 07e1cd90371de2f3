//! Behaviour at every bound, and the end of a session.

use super::super::super::{Next, Serve, Session, Waiting};
use super::super::{HEADER_COUNT_MAX, HttpLimits, HttpSession};
use super::{HELLO, codes, context, feed, run, run_bytewise};

#[test]
fn endless_heads_end_at_the_bound() {
    let limits = HttpLimits { head_bytes_max: 128, header_count_max: 4 };
    let endless: [&[u8]; 5] = [
        b"GET /",
        b"METHOD",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: ",
        b"GET / HTTP/1.1\r\nHost: x\r\nName",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: ",
    ];
    for start in endless {
        let input: Vec<u8> = [start, &[b'a'; 256]].concat();
        for size in [1, input.len()] {
            let pieces = input.chunks(size);
            let mut session = HttpSession::new();
            let (sent, next, rest) = feed(&mut session, pieces, &context(&limits));
            let sent = String::from_utf8(sent).expect("answers are ASCII");
            assert_eq!(codes(&sent), [431], "{sent}");
            assert_eq!((next, rest.len()), (Next::CloseLingering, 0));
        }
    }
}

#[test]
fn heads_and_trailers_up_to_the_bounds_are_served() {
    let limits = HttpLimits::default();
    let with_fields = |count: usize| {
        let fields = "A: b\r\n".repeat(count);
        format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n")
    };
    assert_eq!(codes(&run(with_fields(HEADER_COUNT_MAX - 1).as_bytes()).0), [200]);
    assert_eq!(codes(&run(with_fields(HEADER_COUNT_MAX).as_bytes()).0), [431]);
    let with_length = |length: usize| {
        let head = "GET / HTTP/1.1\r\nHost: x\r\nA: \r\n\r\n";
        head.replace("A: ", &format!("A: {}", "a".repeat(length - head.len())))
    };
    for run in [run, run_bytewise] {
        let max = limits.head_bytes_max;
        assert_eq!(codes(&run(with_length(max).as_bytes()).0), [200]);
        assert_eq!(codes(&run(with_length(max + 1).as_bytes()).0), [431]);
    }
    let chunked = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let trailers = |count: usize| format!("{chunked}0\r\n{}\r\n", "A: b\r\n".repeat(count));
    assert_eq!(codes(&run(trailers(HEADER_COUNT_MAX).as_bytes()).0), [200]);
    assert_eq!(codes(&run(trailers(HEADER_COUNT_MAX + 1).as_bytes()).0), [431]);
    let line = |length: usize| format!("{chunked}0;{}\r\n\r\n", "a".repeat(length - 4));
    for run in [run, run_bytewise] {
        assert_eq!(codes(&run(line(256).as_bytes()).0), [200]);
        assert_eq!(codes(&run(line(257).as_bytes()).0), [400]);
    }
}

#[test]
fn a_full_output_pauses_the_pipeline() {
    let limits = HttpLimits::default();
    let mut context = context(&limits);
    context.output_max = 1;
    let input = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(3);
    let mut session = HttpSession::new();
    let mut output = Vec::new();
    let progress = session.on_bytes(&input, &mut output, &context);
    assert_eq!(
        (progress.consumed, progress.answered, progress.next),
        (input.len() / 3, 1, Next::Resume)
    );
    let pieces = std::iter::once(&input[progress.consumed..]);
    let (sent, next, rest) = feed(&mut session, pieces, &context);
    assert_eq!((sent.len(), next, rest.len()), (2 * output.len(), Next::Read, 0));
}

#[test]
fn a_leaving_worker_answers_and_then_closes() {
    let limits = HttpLimits::default();
    let mut context = context(&limits);
    context.draining = true;
    for (request, verdict) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", Next::CloseLingering),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", Next::CloseLingering),
        ("GET / HTTP/1.0\r\n\r\n", Next::Close),
    ] {
        let pieces = std::iter::once(request.as_bytes());
        let (sent, next, _) = feed(&mut HttpSession::new(), pieces, &context);
        let sent = String::from_utf8(sent).expect("answers are ASCII");
        assert_eq!(sent, format!("{HELLO}Connection: close\r\n\r\nhello world\n"));
        assert_eq!(next, verdict);
    }
}

#[test]
fn what_a_session_waits_for_decides_how_it_ends() {
    use Waiting::{Body, FirstRequest, Head, NextRequest};
    let get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    let post = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n123";
    let chunked = "HEAD / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA";
    let again = format!("{get}G");
    let cases = [
        ("", FirstRequest),
        ("\r\n", FirstRequest),
        ("\r", FirstRequest),
        ("G", Head),
        (post, Body),
        (chunked, Body),
        (get, NextRequest),
        (&again, Head),
    ];
    let limits = HttpLimits::default();
    let context = context(&limits);
    for (input, waiting) in cases {
        let begin = || {
            let mut session = HttpSession::new();
            let (_, next, rest) = feed(&mut session, std::iter::once(input.as_bytes()), &context);
            assert_eq!((next, session.waiting()), (Next::Read, waiting), "{input:?}");
            (session, rest)
        };
        let begun = matches!(waiting, Head | Body);
        let (mut session, rest) = begin();
        let mut output = Vec::new();
        assert_eq!(session.on_end(&rest, &mut output, &context), Next::Close);
        let sent = String::from_utf8(output).expect("answers are ASCII");
        assert_eq!(codes(&sent), [400][..usize::from(begun)], "{input:?}");
        let (mut session, _) = begin();
        let mut output = Vec::new();
        let next = session.on_timeout(&mut output, &context);
        let sent = String::from_utf8(output).expect("answers are ASCII");
        assert_eq!(codes(&sent), [408][..usize::from(begun)], "{input:?}");
        assert_eq!(next == Next::CloseLingering, begun, "{input:?}");
        assert_eq!(sent.ends_with("Request Timeout\n"), begun && input != chunked);
    }
}

#[test]
fn a_session_is_small() {
    assert!(size_of::<HttpSession>() <= 32);
    assert!(size_of::<Session>() <= 32);
    assert_eq!(Session::new(Serve::Hello).waiting(), Waiting::FirstRequest);
}
