//! HTTP/1.x, just enough to answer every request with `hello world`. Pure.
//!
//! Owns one connection's progress through its requests, in a few words of state. Never buffers: an
//! incomplete head stays in the caller's input, a body is skipped as it arrives.
//!
//! Choices the standard leaves open: a line may end with a lone newline in a head, but not in chunk
//! framing. A request is answered after its body. CONNECT is answered like any other method, then
//! the connection is closed, since a tunnel would follow. A client that shuts down writing within a
//! request gets a 400, which it may still read.

mod body;
mod head;
mod response;

#[cfg(test)]
mod tests;

use super::{Context, Next, Progress, Waiting};
use body::{Advance, Body};
use head::Parsed;
use response::{Connection, HttpRefusal, Reply};

/// Most header fields a request may have; [`HttpLimits::header_count_max`] can only lower it.
pub(crate) const HEADER_COUNT_MAX: usize = 100;

/// Empty lines allowed before a request line, as some old clients send one after a body.
const EMPTY_LINE_COUNT_MAX: u8 = 8;

/// Bounds on a request.
#[derive(Clone, Debug)]
pub(crate) struct HttpLimits {
    /// Longest request head and longest trailer section, in bytes; a longer one is answered with
    /// 431. The input must have room for this many.
    pub head_bytes_max: usize,
    /// Most header fields, and most trailer fields; more are answered with 431.
    pub header_count_max: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self { head_bytes_max: 16 * 1024, header_count_max: HEADER_COUNT_MAX }
    }
}

/// One connection's requests.
#[derive(Debug)]
pub(crate) struct HttpSession {
    phase: Phase,
    /// Empty lines since the last request.
    empty_line_count: u8,
    /// A request has been answered on this connection.
    served: bool,
}

#[derive(Debug)]
enum Phase {
    /// Before or in a head, whose first `scanned` bytes do not contain its end.
    Head { scanned: usize },
    /// In a body; the reply follows it.
    Body { body: Body, reply: Reply },
    /// After the last answer.
    Over,
}

/// The result of a step.
enum Step {
    /// This many bytes are consumed; the next step needs more input.
    Starved(usize),
    /// This many bytes are consumed.
    Onward(usize),
    /// This many bytes complete a request.
    Complete(usize, Reply),
    /// The request is refused.
    Refused { refusal: HttpRefusal, without_body: bool },
}

impl HttpSession {
    pub(super) fn new() -> Self {
        Self { phase: Phase::Head { scanned: 0 }, empty_line_count: 0, served: false }
    }

    pub(super) fn on_bytes(
        &mut self,
        input: &[u8],
        output: &mut Vec<u8>,
        context: &Context<'_>,
    ) -> Progress {
        let mut consumed = 0;
        let mut answered = 0;
        let next = loop {
            let rest = &input[consumed..];
            if rest.is_empty() {
                break Next::Read;
            }
            // An output bound of 0 would block forever.
            if output.len() >= context.output_max.max(1) {
                break Next::Resume;
            }
            match self.step(rest, output, context) {
                Step::Starved(length) => {
                    consumed += length;
                    break Next::Read;
                }
                Step::Onward(length) => consumed += length,
                Step::Complete(length, reply) => {
                    consumed += length;
                    answered += 1;
                    if let Some(closing) = self.answer(reply, output, context) {
                        consumed = input.len();
                        break closing;
                    }
                }
                Step::Refused { refusal, without_body } => {
                    response::write_refusal(output, refusal, without_body, context);
                    self.phase = Phase::Over;
                    consumed = input.len();
                    break Next::CloseLingering;
                }
            }
        };
        Progress { consumed, answered, next }
    }

    /// Closes silently between requests. An incomplete request gets an answer, although RFC 9112,
    /// section 8 allows silence: a client that only shut down writing learns what it forgot.
    pub(super) fn on_end(
        &mut self,
        rest: &[u8],
        output: &mut Vec<u8>,
        context: &Context<'_>,
    ) -> Next {
        let begun = matches!(self.waiting(), Waiting::Head | Waiting::Body);
        if begun {
            let without_body = self.is_without_body(rest);
            response::write_refusal(output, HttpRefusal::BadRequest, without_body, context);
        }
        self.phase = Phase::Over;
        Next::Close
    }

    /// Closes silently between requests, with a 408 within one.
    pub(super) fn on_timeout(&mut self, output: &mut Vec<u8>, context: &Context<'_>) -> Next {
        let begun = matches!(self.waiting(), Waiting::Head | Waiting::Body);
        let next = if begun {
            let without_body = self.is_without_body(&[]);
            response::write_refusal(output, HttpRefusal::Timeout, without_body, context);
            Next::CloseLingering
        } else {
            Next::Close
        };
        self.phase = Phase::Over;
        next
    }

    pub(super) fn waiting(&self) -> Waiting {
        match self.phase {
            Phase::Body { .. } => Waiting::Body,
            Phase::Head { scanned } if scanned > 0 => Waiting::Head,
            Phase::Head { .. } if !self.served => Waiting::FirstRequest,
            Phase::Head { .. } | Phase::Over => Waiting::NextRequest,
        }
    }

    #[inline]
    fn step(&mut self, rest: &[u8], output: &mut Vec<u8>, context: &Context<'_>) -> Step {
        match &mut self.phase {
            Phase::Head { .. } if matches!(rest[0], b'\r' | b'\n') => self.empty_line(rest),
            Phase::Head { scanned } => match head::parse(rest, *scanned, context.limits) {
                Parsed::Partial => {
                    *scanned = rest.len();
                    Step::Starved(0)
                }
                Parsed::Whole(length, head) => {
                    let Some(body) = Body::of(head.framing) else {
                        return Step::Complete(length, head.reply);
                    };
                    if head.expects_continue && rest.len() == length {
                        output.extend_from_slice(response::CONTINUE);
                    }
                    let reply = head.reply;
                    self.phase = Phase::Body { body, reply };
                    Step::Onward(length)
                }
                Parsed::Refused(refusal) => {
                    Step::Refused { refusal, without_body: self.is_without_body(rest) }
                }
            },
            Phase::Body { body, reply } => match body.advance(rest, context.limits) {
                Advance::Starved(length) => Step::Starved(length),
                Advance::Ended(length) => Step::Complete(length, *reply),
                Advance::Refused(refusal) => {
                    Step::Refused { refusal, without_body: reply.without_body }
                }
            },
            // The client was told that no more answers follow; what it sends while the connection
            // lingers is discarded.
            Phase::Over => Step::Starved(rest.len()),
        }
    }

    #[cold]
    fn empty_line(&mut self, rest: &[u8]) -> Step {
        let length = match rest {
            [b'\n', ..] => 1,
            [b'\r', b'\n', ..] => 2,
            [b'\r'] => return Step::Starved(0),
            _ => 0,
        };
        self.empty_line_count += 1;
        if length == 0 || self.empty_line_count > EMPTY_LINE_COUNT_MAX {
            return Step::Refused { refusal: HttpRefusal::BadRequest, without_body: false };
        }
        Step::Onward(length)
    }

    /// Writes the answer to a complete request; says how to close if it was the last.
    #[inline]
    fn answer(
        &mut self,
        mut reply: Reply,
        output: &mut Vec<u8>,
        context: &Context<'_>,
    ) -> Option<Next> {
        if context.draining && reply.connection != Connection::Close {
            reply.connection = Connection::CloseUnasked;
        }
        response::write_hello(output, reply, context);
        self.served = true;
        self.empty_line_count = 0;
        self.phase = Phase::Head { scanned: 0 };
        let closing = match reply.connection {
            Connection::Keep | Connection::KeepAloud => return None,
            Connection::Close => Next::Close,
            Connection::CloseUnasked => Next::CloseLingering,
        };
        self.phase = Phase::Over;
        Some(closing)
    }

    /// Whether an error answer has no body: a client expects none after HEAD.
    fn is_without_body(&self, rest: &[u8]) -> bool {
        match self.phase {
            Phase::Body { reply, .. } => reply.without_body,
            Phase::Head { .. } | Phase::Over => rest.starts_with(b"HEAD "),
        }
    }
}
