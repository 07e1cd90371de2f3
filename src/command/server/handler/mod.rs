//! What the built-in worker does with a connection's bytes.
//!
//! Pure: bytes in, bytes out, a verdict. No socket, no clock, no allocation of its own beyond
//! the output it is given, so that every engine (ring, async runtime, test) drives the same code.

mod echo;
mod http;

pub(crate) use http::{HttpLimits, HttpSession};

use serde::{Deserialize, Serialize};

/// What the built-in worker serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Serve {
    /// HTTP/1.1: every request is answered with `hello world`.
    #[default]
    Hello,
    /// Every byte is sent back.
    Echo,
    /// Every byte is read and thrown away.
    Discard,
}

/// What the surroundings tell a session at each step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    /// The present time as an HTTP date (RFC 9110, 5.6.7).
    pub date: &'a str,
    /// The worker is about to leave: answer, then ask the client to close.
    pub draining: bool,
    /// Bounds on a request.
    pub limits: &'a HttpLimits,
    /// Once `output` holds this many bytes, stop and ask to be called again when they are sent.
    pub output_max: usize,
}

/// What a step did and what shall happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Bytes of the input that are done with. The rest is offered again, with more behind it.
    pub consumed: usize,
    /// Requests answered in this step, those refused with an error not counted.
    pub answered: u32,
    /// What shall happen once the output is sent.
    pub next: Next,
}

/// What shall happen once the output is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Read more.
    Read,
    /// Offer the rest of the input again: the step stopped because the output was full. Until
    /// that is done, [`Session::waiting`] says nothing yet about the rest, and an end of the
    /// input must be held back.
    Resume,
    /// Close. The client has nothing more to say that would matter.
    Close,
    /// Close, but the client may still be sending: shut down writing and read the rest away for
    /// a while first, since closing with unread bytes makes the kernel reset the connection and
    /// the client lose the answer (RFC 9112, 9.6).
    CloseLingering,
}

/// What a session waits for, which decides how long it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// The first byte of a first request.
    FirstRequest,
    /// The first byte of a further request.
    NextRequest,
    /// The rest of a request's head.
    Head,
    /// The rest of a request's body.
    Body,
    /// Bytes of a stream with no requests in it.
    Stream,
}

/// One connection's protocol state.
#[derive(Debug)]
pub(crate) enum Session {
    /// HTTP/1.1.
    Http(HttpSession),
    /// Bytes back.
    Echo,
    /// Bytes away.
    Discard,
}

impl Session {
    /// A fresh connection.
    #[must_use]
    pub(crate) fn new(serve: Serve) -> Self {
        match serve {
            Serve::Hello => Self::Http(HttpSession::new()),
            Serve::Echo => Self::Echo,
            Serve::Discard => Self::Discard,
        }
    }

    /// Offers received bytes, appends what shall be sent to `output`. What is not consumed must
    /// be offered again at the front of the next input, unchanged. After a verdict to close, only
    /// bytes to be thrown away may still be offered.
    pub(crate) fn on_bytes(
        &mut self,
        input: &[u8],
        output: &mut Vec<u8>,
        context: &Context<'_>,
    ) -> Progress {
        match self {
            Self::Http(session) => session.on_bytes(input, output, context),
            Self::Echo => echo::on_bytes(input, output, context),
            Self::Discard => echo::discard(input),
        }
    }

    /// The client has half-closed; `rest` is the input that was offered but never consumed.
    pub(crate) fn on_end(
        &mut self,
        rest: &[u8],
        output: &mut Vec<u8>,
        context: &Context<'_>,
    ) -> Next {
        match self {
            Self::Http(session) => session.on_end(rest, output, context),
            Self::Echo | Self::Discard => Next::Close,
        }
    }

    /// The time that [`Session::waiting`] allows has passed.
    pub(crate) fn on_timeout(&mut self, output: &mut Vec<u8>, context: &Context<'_>) -> Next {
        match self {
            Self::Http(session) => session.on_timeout(output, context),
            Self::Echo | Self::Discard => Next::Close,
        }
    }

    /// What the session waits for.
    #[must_use]
    pub(crate) fn waiting(&self) -> Waiting {
        match self {
            Self::Http(session) => session.waiting(),
            Self::Echo | Self::Discard => Waiting::Stream,
        }
    }
}
