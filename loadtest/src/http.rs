//! HTTP/1.1 as a client needs it to know where a response ends (RFC 9112, section 6). Pure.
//!
//! Owns an incremental reader of responses. Refuses what it cannot delimit: switched protocols,
//! transfer codings other than chunked, contradicting lengths. Requests are written in `request`.

mod framing;
mod request;

use std::mem::MaybeUninit;

use framing::{Body, framing, reason};
pub(crate) use request::request;

/// More header lines than this in one response are refused.
pub(crate) const HEADERS_MAX: usize = 512;

/// The result of offering bytes to a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Bytes that have been read; the rest is offered again, with more after it.
    pub(crate) consumed: usize,
    pub(crate) outcome: Outcome,
}

/// Where the response stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// More bytes are needed.
    More,
    /// It is complete. `status` is 0 where there is none.
    Complete { status: u16, close: bool },
    /// It cannot be understood, for this reason.
    Bad(&'static str),
}

/// Reads one response after another.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ResponseReader {
    part: Part,
    status: u16,
    close: bool,
    /// The requests are HEAD: a response describes a body and has none.
    to_head: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Head,
    Length(u64),
    ChunkSize,
    Chunk(u64),
    /// The line end after a chunk's bytes.
    ChunkEnd,
    Trailers,
    /// The body ends with the connection.
    UntilEnd,
}

impl ResponseReader {
    /// A reader of responses to this method.
    pub(crate) fn new(method: &str) -> Self {
        Self { to_head: method == "HEAD", ..Self::default() }
    }

    /// Offers bytes. Head and size lines are consumed only when complete, bodies as they come.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> Step {
        let mut consumed = 0;
        loop {
            let rest = &bytes[consumed..];
            let step = match self.part {
                Part::Head => self.head(rest),
                Part::Length(left) => self.body(rest, left, Part::Length),
                Part::Chunk(left) => self.body(rest, left, Part::Chunk),
                Part::ChunkSize => self.chunk_size(rest),
                Part::ChunkEnd => self.chunk_end(rest),
                Part::Trailers => self.trailers(rest),
                Part::UntilEnd => Progress::Wait(rest.len()),
            };
            let (used, outcome) = match step {
                Progress::On(used) => {
                    consumed += used;
                    continue;
                }
                Progress::Wait(used) => (used, Outcome::More),
                Progress::Done(used) => (used, self.complete()),
                Progress::Bad(why) => (0, Outcome::Bad(why)),
            };
            consumed += used;
            return Step { consumed, outcome };
        }
    }

    /// The peer has closed: a body that ends with the connection is now complete.
    pub(crate) fn end(&mut self) -> Option<Outcome> {
        (self.part == Part::UntilEnd).then(|| self.complete())
    }

    fn complete(&mut self) -> Outcome {
        let outcome = Outcome::Complete { status: self.status, close: self.close };
        *self = Self { to_head: self.to_head, ..Self::default() };
        outcome
    }

    fn head(&mut self, bytes: &[u8]) -> Progress {
        // Not initialised: writing 512 empty headers would cost more than reading a few.
        let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut []);
        // Old servers write them, and curl and browsers take them.
        let mut parser = httparse::ParserConfig::default();
        parser.allow_obsolete_multiline_headers_in_responses(true);
        parser.allow_spaces_after_header_name_in_responses(true);
        let parsed = parser.parse_response_with_uninit_headers(&mut response, bytes, &mut headers);
        let length = match parsed {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Progress::Wait(0),
            Err(error) => return Progress::Bad(reason(error)),
        };
        let status = response.code.unwrap_or(0);
        let framing = match framing(response.headers) {
            Ok(framing) => framing,
            Err(why) => return Progress::Bad(why),
        };
        match status {
            101 => return Progress::Bad("it switched protocols (101)"),
            // An interim response: the final one follows.
            100..=199 => return Progress::On(length),
            200..=999 => {}
            _ => return Progress::Bad("its status is below 100"),
        }
        self.status = status;
        let old = response.version == Some(0);
        self.close = framing.close || (old && !framing.keep_alive);
        self.part = match framing.body {
            _ if self.to_head || status == 204 || status == 304 => Part::Length(0),
            Body::Length(bytes) => Part::Length(bytes),
            Body::Chunked => Part::ChunkSize,
            Body::UntilEnd => {
                // Nothing else tells where it ends.
                self.close = true;
                Part::UntilEnd
            }
        };
        Progress::On(length)
    }

    fn body(&mut self, bytes: &[u8], left: u64, again: fn(u64) -> Part) -> Progress {
        let used = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let left = left - used as u64;
        self.part = again(left);
        match self.part {
            Part::Chunk(0) => {
                self.part = Part::ChunkEnd;
                Progress::On(used)
            }
            Part::Length(0) => Progress::Done(used),
            _ => Progress::Wait(used),
        }
    }

    fn chunk_size(&mut self, bytes: &[u8]) -> Progress {
        match httparse::parse_chunk_size(bytes) {
            Ok(httparse::Status::Complete((used, size))) => {
                self.part = if size == 0 { Part::Trailers } else { Part::Chunk(size) };
                Progress::On(used)
            }
            Ok(httparse::Status::Partial) => Progress::Wait(0),
            Err(_) => Progress::Bad("a chunk's size is no number"),
        }
    }

    fn chunk_end(&mut self, bytes: &[u8]) -> Progress {
        match bytes {
            [] | [b'\r'] => Progress::Wait(0),
            [b'\r', b'\n', ..] => {
                self.part = Part::ChunkSize;
                Progress::On(2)
            }
            _ => Progress::Bad("a chunk is longer than it said"),
        }
    }

    fn trailers(&mut self, bytes: &[u8]) -> Progress {
        let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
            return Progress::Wait(0);
        };
        match &bytes[..end] {
            [] | [b'\r'] => Progress::Done(end + 1),
            _ => Progress::On(end + 1),
        }
    }
}

/// What a part of a response made of the bytes.
enum Progress {
    /// The next part begins after this many bytes.
    On(usize),
    /// This many are used up, and more are needed.
    Wait(usize),
    /// The response ends after this many.
    Done(usize),
    Bad(&'static str),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds `bytes` in pieces of the given sizes, as a socket might.
    fn feed(bytes: &[u8], pieces: &[usize]) -> Vec<Outcome> {
        let mut reader = ResponseReader::default();
        let mut outcomes = Vec::new();
        let (mut taken, mut offered) = (0, 0);
        let mut sizes = pieces.iter().copied().cycle();
        while offered < bytes.len() {
            offered = (offered + sizes.next().unwrap_or(1).max(1)).min(bytes.len());
            loop {
                let step = reader.advance(&bytes[taken..offered]);
                taken += step.consumed;
                match step.outcome {
                    Outcome::More => break,
                    Outcome::Bad(_) => {
                        outcomes.push(step.outcome);
                        return outcomes;
                    }
                    Outcome::Complete { .. } => outcomes.push(step.outcome),
                }
                if taken == offered {
                    break;
                }
            }
        }
        outcomes.extend(reader.end());
        outcomes
    }

    fn complete(status: u16, close: bool) -> Outcome {
        Outcome::Complete { status, close }
    }

    #[derive(Clone, Debug)]
    enum Sent {
        Length(Vec<u8>),
        Chunks(Vec<Vec<u8>>, bool),
        Empty,
    }

    fn response() -> impl Strategy<Value = (u16, bool, Sent)> {
        let body = proptest::collection::vec(any::<u8>(), 0..40);
        let chunk = proptest::collection::vec(any::<u8>(), 1..20);
        let sent = prop_oneof![
            body.prop_map(Sent::Length),
            (proptest::collection::vec(chunk, 0..4), any::<bool>())
                .prop_map(|(chunks, trailer)| Sent::Chunks(chunks, trailer)),
            Just(Sent::Empty),
        ];
        (prop_oneof![200_u16..204, 400_u16..600], any::<bool>(), sent)
    }

    fn write(bytes: &mut Vec<u8>, (status, close, sent): &(u16, bool, Sent)) -> Outcome {
        let status = if matches!(sent, Sent::Empty) { 204 } else { *status };
        bytes.extend_from_slice(format!("HTTP/1.1 {status} X\r\n").as_bytes());
        if *close {
            bytes.extend_from_slice(b"connection: foo, Close\r\n");
        }
        match sent {
            Sent::Length(body) => {
                bytes.extend_from_slice(
                    format!("content-LENGTH: {}\r\n\r\n", body.len()).as_bytes(),
                );
                bytes.extend_from_slice(body);
            }
            Sent::Chunks(chunks, trailer) => {
                bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                for chunk in chunks {
                    bytes.extend_from_slice(format!("{:x};a=b\r\n", chunk.len()).as_bytes());
                    bytes.extend_from_slice(chunk);
                    bytes.extend_from_slice(b"\r\n");
                }
                bytes.extend_from_slice(b"0\r\n");
                bytes.extend_from_slice(if *trailer { b"a: b\r\n" } else { b"" });
                bytes.extend_from_slice(b"\r\n");
            }
            Sent::Empty => bytes.extend_from_slice(b"\r\n"),
        }
        complete(status, *close)
    }

    proptest! {
        #[test]
        fn the_same_responses_are_read_however_they_are_cut(
            responses in proptest::collection::vec(response(), 1..5),
            pieces in proptest::collection::vec(1_usize..50, 1..10),
        ) {
            let mut bytes = Vec::new();
            let expected: Vec<Outcome> =
                responses.iter().map(|response| write(&mut bytes, response)).collect();
            prop_assert_eq!(feed(&bytes, &pieces), expected);
        }

        #[test]
        fn garbage_never_panics_nor_consumes_too_much(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            pieces in proptest::collection::vec(1_usize..50, 1..10),
        ) {
            feed(&bytes, &pieces);
            let mut prefixed = b"HTTP/1.1 200 OK\r\n".to_vec();
            prefixed.extend_from_slice(&bytes);
            feed(&prefixed, &pieces);
            let mut chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            chunked.extend_from_slice(&bytes);
            feed(&chunked, &pieces);
        }
    }

    #[test]
    fn an_undelimited_body_ends_with_the_connection() {
        let outcomes = feed(b"HTTP/1.0 200 OK\r\n\r\nhello", &[7]);
        assert_eq!(outcomes, [complete(200, true)]);
    }

    #[test]
    fn an_interim_response_is_passed_over() {
        let bytes = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(feed(bytes, &[1000]), [complete(200, false)]);
        assert_eq!(feed(bytes, &[1]), [complete(200, false)]);
    }

    #[test]
    fn several_interim_responses_may_come_first() {
        let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n".repeat(3);
        let bytes = format!("{hints}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        assert_eq!(feed(bytes.as_bytes(), &[1]), [complete(200, false)]);
    }

    #[test]
    fn a_response_to_head_has_no_body_whatever_it_says() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n\
            HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
        let mut reader = ResponseReader::new("HEAD");
        let mut taken = 0;
        for _ in 0..3 {
            let step = reader.advance(&bytes[taken..]);
            assert_eq!(step.outcome, complete(200, false));
            taken += step.consumed;
        }
        assert_eq!(taken, bytes.len());
    }

    #[test]
    fn a_status_without_a_body_has_none_whatever_it_says() {
        let bytes = b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n\
            HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(feed(bytes, &[9]), [complete(304, false), complete(204, false)]);
    }

    #[test]
    fn what_old_servers_and_proxies_write_is_read() {
        for lines in [
            "X: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
            "X : a\r\nContent-Length : 2\r\n\r\nok",
            "Content-Length: 2, 2\r\n\r\nok",
            "Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        ] {
            let bytes = format!("HTTP/1.1 200 OK\r\n{lines}");
            assert_eq!(feed(bytes.as_bytes(), &[7]), [complete(200, false)], "{lines}");
        }
    }

    #[test]
    fn bare_line_feeds_are_line_ends() {
        let bytes = b"HTTP/1.1 200\nContent-Length: 2\n\nok";
        assert_eq!(feed(bytes, &[1]), [complete(200, false)]);
    }

    #[test]
    fn hundreds_of_header_lines_are_read_and_thousands_refused() {
        let head = |lines: usize| {
            let lines = "Link: </static/1.png>; rel=preload\r\n".repeat(lines);
            format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 2\r\n\r\nok")
        };
        assert_eq!(feed(head(HEADERS_MAX - 1).as_bytes(), &[1000]), [complete(200, false)]);
        let outcomes = feed(head(HEADERS_MAX).as_bytes(), &[100_000]);
        assert!(matches!(outcomes[..], [Outcome::Bad(why)] if why.contains("512")));
    }

    #[test]
    fn the_old_version_closes_unless_it_says_otherwise() {
        let head = "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n";
        assert_eq!(feed(format!("{head}\r\n").as_bytes(), &[99]), [complete(200, true)]);
        let kept = format!("{head}Connection: Keep-Alive\r\n\r\n");
        assert_eq!(feed(kept.as_bytes(), &[99]), [complete(200, false)]);
    }

    #[test]
    fn what_cannot_be_delimited_is_refused() {
        for head in [
            "SSH-2.0-OpenSSH_9.9\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
        ] {
            let outcomes = feed(head.as_bytes(), &[200]);
            assert!(matches!(outcomes[..], [Outcome::Bad(_)]), "{head:?}: {outcomes:?}");
        }
    }
}
