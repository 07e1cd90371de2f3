//! The bytes of every answer.
//!
//! Owns the format of answers. Does not choose them.

use super::super::Context;

/// The body of every answer.
const BODY: &[u8] = b"hello world\n";

/// The part before the date, which alone changes.
const OK_PREFIX: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 12\r\nDate: ";

/// Asks a waiting client to send its body.
pub(super) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// How to answer a complete request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) connection: Connection,
    /// The request was HEAD: no body.
    pub(super) without_body: bool,
}

/// What happens to the connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connection {
    /// It stays open, the default of HTTP/1.1.
    Keep,
    /// It stays open, which HTTP/1.0 needs to be told.
    KeepAloud,
    /// It closes, as the client asked: the client sends nothing more.
    Close,
    /// It closes although the client may be sending more.
    CloseUnasked,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HttpRefusal {
    BadRequest,
    Timeout,
    ExpectationFailed,
    HeadTooLarge,
    NotImplemented,
    VersionNotSupported,
}

impl HttpRefusal {
    fn status(self) -> &'static str {
        match self {
            Self::BadRequest => "400 Bad Request",
            Self::Timeout => "408 Request Timeout",
            Self::ExpectationFailed => "417 Expectation Failed",
            Self::HeadTooLarge => "431 Request Header Fields Too Large",
            Self::NotImplemented => "501 Not Implemented",
            Self::VersionNotSupported => "505 HTTP Version Not Supported",
        }
    }
}

/// Appends `200 OK` and the body.
#[inline]
pub(super) fn write_hello(output: &mut Vec<u8>, reply: Reply, context: &Context<'_>) {
    let suffix: &[u8] = match reply.connection {
        Connection::Keep => b"\r\n\r\nhello world\n",
        Connection::KeepAloud => b"\r\nConnection: keep-alive\r\n\r\nhello world\n",
        Connection::Close | Connection::CloseUnasked => {
            b"\r\nConnection: close\r\n\r\nhello world\n"
        }
    };
    let unsent = if reply.without_body { BODY.len() } else { 0 };
    let suffix = &suffix[..suffix.len() - unsent];
    output.reserve(OK_PREFIX.len() + context.date.len() + suffix.len());
    output.extend_from_slice(OK_PREFIX);
    output.extend_from_slice(context.date.as_bytes());
    output.extend_from_slice(suffix);
}

/// Appends an error answer with its reason as the body.
#[cold]
pub(super) fn write_refusal(
    output: &mut Vec<u8>,
    refusal: HttpRefusal,
    without_body: bool,
    context: &Context<'_>,
) {
    let status = refusal.status();
    let length = (status.len() + 1).to_string();
    let parts = [
        "HTTP/1.1 ",
        status,
        "\r\nContent-Type: text/plain\r\nContent-Length: ",
        &length,
        "\r\nDate: ",
        context.date,
        "\r\nConnection: close\r\n\r\n",
    ];
    for part in parts {
        output.extend_from_slice(part.as_bytes());
    }
    if !without_body {
        output.extend_from_slice(status.as_bytes());
        output.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_precomputed_length_is_that_of_the_body() {
        let stated = format!("Content-Length: {}\r\n", BODY.len());
        let prefix = std::str::from_utf8(OK_PREFIX).expect("the prefix is ASCII");
        assert!(prefix.contains(&stated), "{prefix}");
    }
}
