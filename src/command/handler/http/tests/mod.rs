//! Shared by the tests of the session: a driver that behaves like an engine.

mod bounds;
mod cases;
mod properties;

use super::super::{Context, Next};
use super::{HttpLimits, HttpSession};

const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 12\r\n\
                     Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";

fn context(limits: &HttpLimits) -> Context<'_> {
    Context { date: DATE, draining: false, limits, output_max: usize::MAX }
}

/// Feeds the pieces as an engine would; returns the output, the last verdict and the rest.
fn feed<'a>(
    session: &mut HttpSession,
    pieces: impl Iterator<Item = &'a [u8]>,
    context: &Context<'_>,
) -> (Vec<u8>, Next, Vec<u8>) {
    let (mut sent, mut input) = (Vec::new(), Vec::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            let mut output = Vec::new();
            let progress = session.on_bytes(&input, &mut output, context);
            assert!(progress.consumed <= input.len());
            input.drain(..progress.consumed);
            sent.extend_from_slice(&output);
            match progress.next {
                Next::Read => break,
                Next::Resume => {}
                closing => return (sent, closing, input),
            }
        }
    }
    (sent, Next::Read, input)
}

fn run(input: &[u8]) -> (String, Next) {
    let limits = HttpLimits::default();
    let pieces = std::iter::once(input);
    let (sent, next, _) = feed(&mut HttpSession::new(), pieces, &context(&limits));
    (String::from_utf8(sent).expect("answers are ASCII"), next)
}

fn run_bytewise(input: &[u8]) -> (String, Next) {
    let limits = HttpLimits::default();
    let pieces = input.chunks(1);
    let (sent, next, _) = feed(&mut HttpSession::new(), pieces, &context(&limits));
    (String::from_utf8(sent).expect("answers are ASCII"), next)
}

/// The status codes of all answers in the output.
fn codes(sent: &str) -> Vec<u16> {
    let answers = sent.split("HTTP/1.1 ").skip(1);
    answers.map(|answer| answer[..3].parse().expect("a status code")).collect()
}
