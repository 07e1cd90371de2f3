//! Properties for every input: cuts of the stream do not matter, memory is bounded, no byte of a
//! body comes back.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::super::{Context, Next, Waiting};
use super::super::{HttpLimits, HttpSession};
use super::feed;

/// Longest answer.
const ANSWER_BYTES_MAX: usize = 256;

/// A byte that fills bodies and occurs in no answer.
const MARK: u8 = b'~';

fn context(limits: &HttpLimits, output_max: usize) -> Context<'_> {
    Context { date: "Sun, 06 Nov 1994 08:49:37 GMT", draining: false, limits, output_max }
}

fn body() -> impl Strategy<Value = (String, Vec<u8>)> {
    let chunk = (1_usize..40, any::<bool>());
    prop_oneof![
        Just((String::new(), Vec::new())),
        (0_usize..80)
            .prop_map(|length| { (format!("Content-Length: {length}\r\n"), vec![MARK; length]) }),
        (vec(chunk, 0..4), 0_usize..3).prop_map(|(chunks, trailer_count)| {
            let mut bytes = Vec::new();
            for (length, extended) in chunks {
                let extension = if extended { ";n=\"v\"" } else { "" };
                bytes.extend_from_slice(format!("{length:x}{extension}\r\n").as_bytes());
                bytes.extend_from_slice(&vec![MARK; length]);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\n");
            bytes.extend_from_slice("Trailer: ~\r\n".repeat(trailer_count).as_bytes());
            bytes.extend_from_slice(b"\r\n");
            ("Transfer-Encoding: chunked\r\n".into(), bytes)
        }),
    ]
}

/// One request that leaves the connection open, with its body.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let method = prop_oneof![Just("GET"), Just("HEAD"), Just("POST"), Just("X")];
    let version = prop_oneof![Just("HTTP/1.1"), Just("HTTP/1.4")];
    let blank = prop_oneof![Just(""), Just("\r\n"), Just("\n")];
    let field =
        prop_oneof![Just("Accept: ~/~, ~\r\n"), Just("X:\r\n"), Just("Connection: keep-alive\r\n")];
    (blank, method, version, vec(field, 0..4), body()).prop_map(
        |(blank, method, version, fields, (framing, body))| {
            let fields = fields.concat();
            let head = format!("{blank}{method} /~ {version}\r\nHost: x\r\n{fields}{framing}\r\n");
            [head.into_bytes(), body].concat()
        },
    )
}

fn stream() -> impl Strategy<Value = Vec<u8>> {
    let last = prop_oneof![
        Just(&b""[..]),
        Just(&b"GET / HTTP/1.0\r\n\r\n"[..]),
        Just(&b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"[..]),
        Just(&b"GET / HTTP/1.1\r\n\r\n"[..]),
        Just(&b"GET / HTTP/1.1\r\nHo"[..]),
    ];
    (vec(request(), 0..6), last).prop_map(|(requests, last)| {
        let mut bytes = requests.concat();
        bytes.extend_from_slice(last);
        bytes
    })
}

/// Valid streams with a few bytes changed, and plain noise.
fn damaged_stream() -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<prop::sample::Index>(), any::<u8>());
    let damaged = (stream(), vec(change, 1..4)).prop_map(|(mut bytes, changes)| {
        if !bytes.is_empty() {
            for (place, byte) in changes {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
        }
        bytes
    });
    let noise = vec(prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n'), Just(b' ')], 0..300);
    prop_oneof![4 => damaged, 1 => noise]
}

/// The stream in pieces of the given sizes, over and over.
fn cut<'a>(stream: &'a [u8], sizes: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut sizes = sizes.iter().cycle();
    let mut rest = stream;
    std::iter::from_fn(move || {
        let size = *sizes.next().expect("a cycle has no end");
        let (piece, behind) = rest.split_at(size.min(rest.len()));
        rest = behind;
        (!piece.is_empty()).then_some(piece)
    })
}

proptest! {
    #[test]
    fn the_cut_of_a_stream_does_not_matter(
        stream in stream(),
        sizes in vec(1_usize..60, 1..12),
        output_max in prop_oneof![Just(1_usize), 1_usize..1000, Just(usize::MAX)],
    ) {
        let limits = HttpLimits::default();
        let mut whole = HttpSession::new();
        let unbounded = context(&limits, usize::MAX);
        let (expected, verdict, rest) = feed(&mut whole, std::iter::once(&stream[..]), &unbounded);
        let mut session = HttpSession::new();
        let bounded = context(&limits, output_max);
        let (sent, next, left) = feed(&mut session, cut(&stream, &sizes), &bounded);
        prop_assert_eq!(&sent, &expected);
        prop_assert_eq!(next, verdict);
        prop_assert_eq!(left, rest);
        prop_assert_eq!(session.waiting(), whole.waiting());
        prop_assert!(!sent.contains(&MARK), "a request's byte came back");
    }

    #[test]
    fn nothing_grows_whatever_comes(
        stream in damaged_stream(),
        sizes in vec(1_usize..60, 1..12),
        output_max in 0_usize..1000,
        draining in any::<bool>(),
    ) {
        let limits = HttpLimits { head_bytes_max: 100, header_count_max: 5 };
        let mut context = context(&limits, output_max);
        context.draining = draining;
        let mut session = HttpSession::new();
        let (mut input, mut output) = (Vec::new(), Vec::new());
        'stream: for piece in cut(&stream, &sizes) {
            input.extend_from_slice(piece);
            loop {
                let progress = session.on_bytes(&input, &mut output, &context);
                prop_assert!(progress.consumed <= input.len());
                prop_assert!(output.len() <= output_max + ANSWER_BYTES_MAX);
                prop_assert!(!output.contains(&MARK));
                input.drain(..progress.consumed);
                match progress.next {
                    Next::Read => break,
                    Next::Resume => output.clear(),
                    Next::Close | Next::CloseLingering => {
                        prop_assert!(input.is_empty());
                        break 'stream;
                    }
                }
            }
            // The rest kept for the next piece is shorter than the longest head or chunk line.
            prop_assert!(input.len() < 256, "{} bytes kept", input.len());
            prop_assert!(session_is_in_body(&session) || input.len() < limits.head_bytes_max);
        }
        let before = output.len();
        session.on_end(&input, &mut output, &context);
        prop_assert!(output.len() <= before + ANSWER_BYTES_MAX);
    }
}

fn session_is_in_body(session: &HttpSession) -> bool {
    session.waiting() == Waiting::Body
}
