//! Request heads: finds their end and reads framing and connection fields.
//!
//! Owns the rules of RFC 9112, sections 2 to 6. Keeps no bytes: it reads a head from the caller's
//! input.

use std::mem::MaybeUninit;

use httparse::{EMPTY_HEADER, Error, Header, Status};

use super::response::{Connection, HttpRefusal, Reply};
use super::{HEADER_COUNT_MAX, HttpLimits};

/// Result of parsing the start of an input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// An incomplete head.
    Partial,
    /// A head of this many bytes.
    Whole(usize, Head),
    /// Input that cannot become an acceptable head.
    Refused(HttpRefusal),
}

/// The parts of a head that matter to a server with one answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) framing: Framing,
    pub(super) reply: Reply,
    /// The client waits for `100 Continue` before it sends the body.
    pub(super) expects_continue: bool,
}

/// How to find the end of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// After this many bytes; 0 without a body.
    Length(u64),
    /// After the chunk of size 0 and the trailers.
    Chunked,
}

/// Parses a head at the start of `rest`, whose first `scanned` bytes do not contain its end. A head
/// that arrives byte by byte is parsed at most twice.
pub(super) fn parse(rest: &[u8], scanned: usize, limits: &HttpLimits) -> Parsed {
    let window = &rest[..rest.len().min(limits.head_bytes_max)];
    // The input may have room only for the longest head: a full window is the bound.
    let full = window.len() == limits.head_bytes_max;
    let ended = scanned > 0 && block_end(window, scanned).is_some();
    if scanned > 0 && !ended && !full {
        return Parsed::Partial;
    }
    match parse_window(window, limits.header_count_max.min(HEADER_COUNT_MAX)) {
        Parsed::Partial if ended => Parsed::Refused(HttpRefusal::BadRequest),
        Parsed::Partial if full => Parsed::Refused(HttpRefusal::HeadTooLarge),
        parsed => parsed,
    }
}

/// End of a block of lines, marked by an empty one, if it lies after the first `scanned` bytes.
pub(super) fn block_end(block: &[u8], scanned: usize) -> Option<usize> {
    // The two newlines may lie on both sides of the border, with a carriage return between.
    let mut at = scanned.saturating_sub(2);
    while let Some(distance) = block.get(at..)?.iter().position(|byte| *byte == b'\n') {
        at += distance + 1;
        match block[at..] {
            [b'\n', ..] => return Some(at + 1),
            [b'\r', b'\n', ..] => return Some(at + 2),
            _ => {}
        }
    }
    None
}

#[inline]
fn parse_window(window: &[u8], header_count_max: usize) -> Parsed {
    let mut headers = [MaybeUninit::<Header<'_>>::uninit(); HEADER_COUNT_MAX];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(window, &mut headers[..header_count_max]) {
        Ok(Status::Complete(length)) => {
            let method = request.method.unwrap_or_default();
            examine(length, method, request.version == Some(1), request.headers)
        }
        Ok(Status::Partial) => Parsed::Partial,
        Err(Error::Version) => parse_other_version(window, header_count_max),
        Err(error) => Parsed::Refused(refusal_of(error)),
    }
}

/// A head whose version is neither 1.0 nor 1.1: 1.2 and up speak 1.1 with us (RFC 9110, 2.5).
#[cold]
fn parse_other_version(window: &[u8], header_count_max: usize) -> Parsed {
    let Some(newline) = window.iter().position(|byte| *byte == b'\n') else {
        return Parsed::Partial;
    };
    let line = &window[..newline];
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    // Method and target are valid: they are parsed before the version.
    let mut words = line.split(|byte| *byte == b' ');
    let (method, _target, version) = (words.next(), words.next(), words.next());
    let major = match (version, words.next()) {
        (Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor]), None)
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            *major
        }
        _ => return Parsed::Refused(HttpRefusal::BadRequest),
    };
    if major != b'1' {
        return Parsed::Refused(HttpRefusal::VersionNotSupported);
    }
    let method = std::str::from_utf8(method.unwrap_or_default()).unwrap_or_default();
    let mut headers = [EMPTY_HEADER; HEADER_COUNT_MAX];
    let start = newline + 1;
    match httparse::parse_headers(&window[start..], &mut headers[..header_count_max]) {
        Ok(Status::Complete((length, fields))) => examine(start + length, method, true, fields),
        Ok(Status::Partial) => Parsed::Partial,
        Err(error) => Parsed::Refused(refusal_of(error)),
    }
}

/// The refusal for a syntax error in a head or a trailer section.
pub(super) fn refusal_of(error: Error) -> HttpRefusal {
    match error {
        Error::TooManyHeaders => HttpRefusal::HeadTooLarge,
        _ => HttpRefusal::BadRequest,
    }
}

#[inline]
fn examine(length: usize, method: &str, speaks_1_1: bool, headers: &[Header<'_>]) -> Parsed {
    let mut fields = Fields::default();
    for field in headers {
        fields.on_field(field.name, field.value);
    }
    let framing = match fields.framing(speaks_1_1) {
        Ok(framing) => framing,
        Err(refusal) => return Parsed::Refused(refusal),
    };
    // Expectations of HTTP/1.0 clients are ignored (RFC 9110, 10.1.1).
    if speaks_1_1 && fields.other_expectation {
        return Parsed::Refused(HttpRefusal::ExpectationFailed);
    }
    let connection = if fields.close {
        Connection::Close
    } else if method == "CONNECT" {
        // The client treats what follows this answer as a tunnel, so it must not be parsed as
        // requests.
        Connection::CloseUnasked
    } else {
        match (speaks_1_1, fields.keep_alive) {
            (true, _) => Connection::Keep,
            (false, true) => Connection::KeepAloud,
            (false, false) => Connection::Close,
        }
    };
    let reply = Reply { connection, without_body: method == "HEAD" };
    let expects_continue = speaks_1_1 && fields.expects_continue && framing != Framing::Length(0);
    Parsed::Whole(length, Head { framing, reply, expects_continue })
}

/// The fields of one head, collected in one pass.
#[derive(Default)]
struct Fields {
    host_count: usize,
    length: Option<u64>,
    encoding_count: usize,
    chunked: bool,
    malformed: bool,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
    other_expectation: bool,
}

impl Fields {
    #[inline]
    fn on_field(&mut self, name: &str, value: &[u8]) {
        // The length alone tells most fields apart.
        match name.len() {
            4 if name.eq_ignore_ascii_case("host") => {
                self.host_count += 1;
                self.malformed |= !is_host(value);
            }
            6 if name.eq_ignore_ascii_case("expect") => self.on_expect(value),
            10 if name.eq_ignore_ascii_case("connection") => self.on_connection(value),
            14 if name.eq_ignore_ascii_case("content-length") => self.on_content_length(value),
            17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                self.encoding_count += 1;
                self.chunked = value.eq_ignore_ascii_case(b"chunked");
            }
            _ => {}
        }
    }

    fn on_expect(&mut self, value: &[u8]) {
        for expectation in elements(value) {
            if expectation.eq_ignore_ascii_case(b"100-continue") {
                self.expects_continue = true;
            } else {
                self.other_expectation = true;
            }
        }
    }

    fn on_connection(&mut self, value: &[u8]) {
        for option in elements(value) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    /// The same length may be repeated, in one field or in several (RFC 9110, 8.6).
    fn on_content_length(&mut self, value: &[u8]) {
        for digits in value.split(|byte| *byte == b',') {
            let length = decimal(digits.trim_ascii());
            self.malformed |= length.is_none() || self.length.is_some_and(|l| Some(l) != length);
            self.length = length;
        }
    }

    fn framing(&self, speaks_1_1: bool) -> Result<Framing, HttpRefusal> {
        let host_missing = speaks_1_1 && self.host_count == 0;
        if self.malformed || host_missing || self.host_count > 1 {
            return Err(HttpRefusal::BadRequest);
        }
        match (self.encoding_count, self.length) {
            (0, length) => Ok(Framing::Length(length.unwrap_or(0))),
            // Two contradicting ends of the body, or an encoding unknown to HTTP/1.0: one reader's
            // body is another one's request (RFC 9112, 6.1).
            (_, Some(_)) => Err(HttpRefusal::BadRequest),
            _ if !speaks_1_1 => Err(HttpRefusal::BadRequest),
            (1, None) if self.chunked => Ok(Framing::Chunked),
            (_, None) => Err(HttpRefusal::NotImplemented),
        }
    }
}

/// The elements of a comma-separated list, without the empty ones.
fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

/// Whether every byte may stand in a host and port; an empty host is allowed.
fn is_host(value: &[u8]) -> bool {
    value.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:[]%".contains(byte))
}
