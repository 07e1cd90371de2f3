//! Invariants of the built-in worker's HTTP for arbitrary input: the answers do not depend on how
//! the bytes are split, nothing is kept beyond a head's bound, and every request has one answer.

#[path = "../src/command/handler/mod.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "the command uses the rest of it")]
mod handler;

use handler::{Context, HttpLimits, Next, Serve, Session};

/// What a client has seen.
#[derive(Debug, PartialEq, Eq)]
struct Heard {
    output: String,
    answered: u32,
}

/// Checks one input.
pub(crate) fn http(bytes: &[u8]) {
    let at_once = converse(bytes, bytes.len().max(1), usize::MAX);
    for (piece_bytes, output_max) in [(1, usize::MAX), (7, 1), (bytes.len().max(1), 100)] {
        assert_eq!(at_once, converse(bytes, piece_bytes, output_max));
    }
    let heads = at_once.output.matches("HTTP/1.1 200 ").count();
    let answered = usize::try_from(at_once.answered).expect("a few");
    assert_eq!(heads, answered, "{at_once:?}");
}

fn converse(bytes: &[u8], piece_bytes: usize, output_max: usize) -> Heard {
    let (mut output, mut answered) = (Vec::new(), 0);
    serve(bytes, piece_bytes, output_max, &mut output, &mut answered);
    Heard { output: comparable(&output), answered }
}

fn serve(
    bytes: &[u8],
    piece_bytes: usize,
    output_max: usize,
    sent: &mut Vec<u8>,
    answered: &mut u32,
) {
    let limits = HttpLimits::default();
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let context = Context { date, draining: false, limits: &limits, output_max };
    let mut session = Session::new(Serve::Hello);
    let (mut input, mut output) = (Vec::new(), Vec::new());
    for piece in bytes.chunks(piece_bytes) {
        input.extend_from_slice(piece);
        loop {
            let progress = session.on_bytes(&input, &mut output, &context);
            sent.append(&mut output);
            *answered += progress.answered;
            input.drain(..progress.consumed);
            match progress.next {
                Next::Read => break,
                Next::Resume => {}
                Next::Close | Next::CloseLingering => return,
            }
        }
        assert!(input.len() <= limits.head_bytes_max + piece.len(), "{} bytes", input.len());
    }
    session.on_end(&input, &mut output, &context);
    sent.append(&mut output);
}

/// The answers without what depends on how much has come: leave to go on, which is given to clients
/// that wait for it, and which of several faults a request is refused for.
fn comparable(output: &[u8]) -> String {
    let output = String::from_utf8_lossy(output).replace("HTTP/1.1 100 Continue\r\n\r\n", "");
    let refusal = ["HTTP/1.1 4", "HTTP/1.1 5"].iter().filter_map(|start| output.find(start)).min();
    match refusal {
        Some(place) => format!("{}refused", &output[..place]),
        None => output,
    }
}
