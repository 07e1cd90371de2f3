//! What is sent for a request and how its answer is recognised, for every mode. Pure.
//!
//! Owns the message and the reader of answers. Knows no socket: bytes in, outcomes out.

use crate::http::{self, Outcome, ResponseReader, Step};
use crate::settings::{CloseBy, Mode, Settings};
use crate::target::Target;

/// The bytes of one request. Empty in connect mode.
pub(crate) fn message(settings: &Settings, target: &Target) -> Vec<u8> {
    message_with(settings, target, false)
}

/// The bytes of the request that a connection ends with: in HTTP it says so, as RFC 9112 (9.6)
/// asks of clients, unless connections end with a reset.
pub(crate) fn last_message(settings: &Settings, target: &Target) -> Vec<u8> {
    message_with(settings, target, settings.close == CloseBy::Fin)
}

fn message_with(settings: &Settings, target: &Target, says_last: bool) -> Vec<u8> {
    match settings.mode {
        Mode::Http => http::request(settings, target, says_last),
        Mode::Echo => (0..settings.body_bytes).map(pattern).collect(),
        Mode::Connect => Vec::new(),
    }
}

/// A byte that depends on its place, so that shifted or repeated bytes are noticed: 251 is prime
/// and divides no buffer size.
fn pattern(place: u32) -> u8 {
    u8::try_from(place % 251).expect("a remainder of 251 fits a byte")
}

/// Reads the answers of one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reader {
    Http(ResponseReader),
    Echo { received: u32, expected: u32 },
    Nothing,
}

impl Reader {
    pub(crate) fn new(settings: &Settings) -> Self {
        match settings.mode {
            Mode::Http => Self::Http(ResponseReader::new(settings.method())),
            Mode::Echo => Self::Echo { received: 0, expected: settings.body_bytes },
            Mode::Connect => Self::Nothing,
        }
    }

    /// Offers received bytes; at most one answer is completed in a step.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> Step {
        match self {
            Self::Http(reader) => reader.advance(bytes),
            Self::Echo { received, expected } => echo(received, *expected, bytes),
            Self::Nothing => Step {
                consumed: bytes.len(),
                outcome: Outcome::Bad("bytes came where none were asked for"),
            },
        }
    }

    /// The peer has closed: an answer that only this could end is now complete.
    pub(crate) fn end(&mut self) -> Option<Outcome> {
        match self {
            Self::Http(reader) => reader.end(),
            Self::Echo { .. } | Self::Nothing => None,
        }
    }
}

fn echo(received: &mut u32, expected: u32, bytes: &[u8]) -> Step {
    let mut consumed = 0;
    for &byte in bytes.iter().take((expected - *received) as usize) {
        if byte != pattern(*received) {
            return Step {
                consumed,
                outcome: Outcome::Bad("other bytes came back than were sent"),
            };
        }
        *received += 1;
        consumed += 1;
    }
    if *received < expected {
        return Step { consumed, outcome: Outcome::More };
    }
    *received = 0;
    Step { consumed, outcome: Outcome::Complete { status: 0, close: false } }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::settings::Load;

    fn message(settings: &Settings) -> Vec<u8> {
        super::message(settings, &settings.target)
    }

    fn last_message(settings: &Settings) -> Vec<u8> {
        super::last_message(settings, &settings.target)
    }

    fn settings(mode: Mode, body_bytes: u32) -> Settings {
        let target = "127.0.0.1:1/p".parse().expect("a target");
        Settings { mode, body_bytes, ..Settings::new(target, Load::Closed { connections: 1 }) }
    }

    #[test]
    fn a_request_is_what_rfc_9112_asks_for() {
        let mut plain = settings(Mode::Http, 0);
        let expected = b"GET /p HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n";
        assert_eq!(message(&plain), expected);
        plain.body_bytes = 3;
        plain.headers = vec!["host: other".into()];
        let expected = b"POST /p HTTP/1.1\r\nhost: other\r\nContent-Length: 3\r\n\r\nxxx";
        assert_eq!(message(&plain), expected);
    }

    #[test]
    fn the_last_request_says_so_unless_it_must_not() {
        let mut plain = settings(Mode::Http, 0);
        let expected = b"GET /p HTTP/1.1\r\nHost: 127.0.0.1:1\r\nConnection: close\r\n\r\n";
        assert_eq!(last_message(&plain), expected);
        plain.headers = vec!["connection: keep-alive".into()];
        assert_eq!(last_message(&plain), message(&plain), "a header of the user's replaces it");
        plain = Settings { close: CloseBy::Rst, ..settings(Mode::Http, 0) };
        assert_eq!(last_message(&plain), message(&plain), "a reset comes unannounced");
    }

    proptest! {
        #[test]
        fn echoes_are_recognised_however_cut(
            size in 1_u32..600, count in 1_usize..5, piece in 1_usize..700,
        ) {
            let settings = settings(Mode::Echo, size);
            let bytes = message(&settings).repeat(count);
            let mut reader = Reader::new(&settings);
            let mut complete = 0;
            for part in bytes.chunks(piece) {
                let mut rest = part;
                while !rest.is_empty() {
                    let step = reader.advance(rest);
                    rest = &rest[step.consumed..];
                    prop_assert!(!matches!(step.outcome, Outcome::Bad(_)));
                    complete += usize::from(step.outcome != Outcome::More);
                }
            }
            prop_assert_eq!(complete, count);
        }

        #[test]
        fn a_changed_byte_is_noticed(size in 1_u32..600, place in 0_usize..600, change in 1_u8..) {
            let settings = settings(Mode::Echo, size);
            let mut bytes = message(&settings);
            let place = place % bytes.len();
            bytes[place] = bytes[place].wrapping_add(change);
            let step = Reader::new(&settings).advance(&bytes);
            prop_assert!(matches!(step.outcome, Outcome::Bad(_)));
            prop_assert_eq!(step.consumed, place);
        }
    }
}
