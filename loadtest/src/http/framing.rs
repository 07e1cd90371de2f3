//! Where a response's body ends, by its header (RFC 9112, section 6.3). Pure.
//!
//! Refuses contradictions: two lengths, a length and a transfer coding, a last coding other than
//! chunked. A guess could take bytes of one response for the next.

/// What a response's header says about its end.
pub(super) struct Framing {
    pub(super) body: Body,
    /// The server will close.
    pub(super) close: bool,
    /// The server says that it will not close, which only HTTP/1.0 needs.
    pub(super) keep_alive: bool,
}

/// How a body is delimited.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    Length(u64),
    Chunked,
    UntilEnd,
}

/// Reads the framing out of a response's header lines.
pub(super) fn framing(headers: &[httparse::Header<'_>]) -> Result<Framing, &'static str> {
    let mut framing = Framing { body: Body::UntilEnd, close: false, keep_alive: false };
    for header in headers {
        if header.name.eq_ignore_ascii_case("content-length") {
            // A proxy may join equal lines.
            for value in header.value.split(|&byte| byte == b',') {
                let length = Body::Length(length(value)?);
                if framing.body != Body::UntilEnd && framing.body != length {
                    return Err("its length is given twice and differently");
                }
                framing.body = length;
            }
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            // What the chunks hold, such as gzip, does not matter.
            let last = header.value.rsplit(|&byte| byte == b',').next().unwrap_or_default();
            if !last.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                return Err("its last transfer coding is not chunked");
            }
            if framing.body != Body::UntilEnd {
                return Err("its length is given twice and differently");
            }
            framing.body = Body::Chunked;
        } else if header.name.eq_ignore_ascii_case("connection") {
            for word in header.value.split(|&byte| byte == b',') {
                let word = word.trim_ascii();
                framing.close |= word.eq_ignore_ascii_case(b"close");
                framing.keep_alive |= word.eq_ignore_ascii_case(b"keep-alive");
            }
        }
    }
    Ok(framing)
}

fn length(value: &[u8]) -> Result<u64, &'static str> {
    let digits = value.trim_ascii();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err("its content-length is no number");
    }
    let text = std::str::from_utf8(digits).expect("digits are ASCII");
    text.parse().map_err(|_| "its content-length is too large")
}

/// Why a header could not be read.
pub(super) fn reason(error: httparse::Error) -> &'static str {
    match error {
        httparse::Error::TooManyHeaders => "it has more than 512 header lines",
        httparse::Error::Version => "it does not begin as an HTTP/1 response",
        httparse::Error::Status => "its status line is malformed",
        _ => "its header is malformed",
    }
}
