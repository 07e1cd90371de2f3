//! The bytes of every answer.
//!
//! Owns how an answer is written. Refuses to decide which one is due.

use super::super::Context;

/// What every request is answered with.
const BODY: &[u8] = b"hello world\n";

/// Everything up to the date, which is the only part that changes.
const OK_PREFIX: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 12\r\nDate: ";

/// Asks a client that waits for leave to go on and send its body.
pub(super) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// How a complete request shall be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) connection: Connection,
    /// The request was HEAD: the headers alone.
    pub(super) without_body: bool,
}

/// What becomes of the connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connection {
    /// Stays, which HTTP/1.1 need not say.
    Keep,
    /// Stays, which HTTP/1.0 wants to hear.
    KeepAloud,
    /// Closes, as the client asked: it sends nothing more.
    Close,
    /// Closes although the client may be sending more.
    CloseUnasked,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    BadRequest,
    Timeout,
    ExpectationFailed,
    HeadTooLarge,
    NotImplemented,
    VersionNotSupported,
}

impl Refusal {
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

/// Appends `200 OK` and its greeting.
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

/// Appends an error answer whose body names its reason.
#[cold]
pub(super) fn write_refusal(
    output: &mut Vec<u8>,
    refusal: Refusal,
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
