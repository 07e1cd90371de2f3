//! What the built-in worker does with a connection's bytes.
//!
//! Pure: bytes in, bytes out, a verdict. It has no socket and no clock, and allocates only in the
//! output it is given, so every engine (ring, async runtime, test) drives the same code.

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

/// The engine's input to a session at each step.
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

/// The result of a step, and what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Consumed bytes of the input. The rest is offered again, with more after it.
    pub consumed: usize,
    /// Requests answered in this step, without those refused with an error.
    pub answered: u32,
    /// What to do once the output is sent.
    pub next: Next,
}

/// What to do once the output is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Read more.
    Read,
    /// Offer the rest of the input again: the step stopped because the output was full. Until then
    /// [`Session::waiting`] does not cover the rest, and an end of the input must be held back.
    Resume,
    /// Close. The client sends nothing more that matters.
    Close,
    /// Close, but the client may still be sending: shut down writing first and discard its input
    /// for a while. Closing with unread bytes makes the kernel reset the connection and the client
    /// lose the answer (RFC 9112, 9.6).
    CloseLingering,
}

/// What a session waits for, which decides its time limit.
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
    /// Bytes of a stream without requests.
    Stream,
}

/// One connection's protocol state.
#[derive(Debug)]
pub(crate) enum Session {
    /// HTTP/1.1.
    Http(HttpSession),
    /// Echoes all bytes.
    Echo,
    /// Discards all bytes.
    Discard,
}

impl Session {
    /// A new connection.
    #[must_use]
    pub(crate) fn new(serve: Serve) -> Self {
        match serve {
            Serve::Hello => Self::Http(HttpSession::new()),
            Serve::Echo => Self::Echo,
            Serve::Discard => Self::Discard,
        }
    }

    /// Takes received bytes and appends the answer to `output`. Unconsumed bytes must be offered
    /// again at the front of the next input, unchanged. After a verdict to close, only bytes to
    /// discard may be offered.
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

    /// The client half-closed; `rest` is the unconsumed input.
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

    /// The time limit of [`Session::waiting`] has passed.
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
