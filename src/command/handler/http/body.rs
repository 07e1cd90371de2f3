//! Request bodies: finds their end. Skips their bytes and never keeps them.
//!
//! Owns the framing of RFC 9112, sections 6 and 7. Never buffers: an incomplete line stays in the
//! caller's input, within a bound.

use httparse::{EMPTY_HEADER, Status};

use super::head::{Framing, block_end, refusal_of};
use super::response::HttpRefusal;
use super::{HEADER_COUNT_MAX, HttpLimits};

/// Longest chunk size line with its extensions and newline, in bytes; a longer one is refused.
const CHUNK_LINE_BYTES_MAX: usize = 256;

/// Position of the next byte within a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// In a body of known length.
    Length { left: u64 },
    /// In a chunk's size line.
    ChunkSize,
    /// In a chunk.
    Chunk { left: u64 },
    /// In the line end behind a chunk.
    ChunkEnd,
    /// In the trailer section, whose first `scanned` bytes do not contain its end.
    Trailers { scanned: usize },
}

/// How far an input reaches through a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Advance {
    /// This many bytes are consumed; the body continues after the input.
    Starved(usize),
    /// This many bytes end the body.
    Ended(usize),
    /// The framing is broken.
    Refused(HttpRefusal),
}

/// One step of an [`Advance`].
enum BodyStep {
    Starved,
    Onward(usize, Body),
    Ended(usize),
    Refused(HttpRefusal),
}

impl Body {
    /// The body of a request with this framing, if it has one.
    pub(super) fn of(framing: Framing) -> Option<Self> {
        match framing {
            Framing::Length(0) => None,
            Framing::Length(left) => Some(Self::Length { left }),
            Framing::Chunked => Some(Self::ChunkSize),
        }
    }

    /// Skips the bytes of `input` that belong to the body and are complete enough.
    pub(super) fn advance(&mut self, input: &[u8], limits: &HttpLimits) -> Advance {
        let mut done = 0;
        loop {
            match self.step(&input[done..], limits) {
                BodyStep::Starved => return Advance::Starved(done),
                BodyStep::Onward(length, next) => {
                    done += length;
                    *self = next;
                }
                BodyStep::Ended(length) => return Advance::Ended(done + length),
                BodyStep::Refused(refusal) => return Advance::Refused(refusal),
            }
        }
    }

    fn step(&mut self, rest: &[u8], limits: &HttpLimits) -> BodyStep {
        if rest.is_empty() {
            return BodyStep::Starved;
        }
        match self {
            Self::Length { left } => match pass_over(rest, *left) {
                (length, 0) => BodyStep::Ended(length),
                (length, left) => BodyStep::Onward(length, Self::Length { left }),
            },
            Self::ChunkSize => chunk_size(rest),
            Self::Chunk { left } => match pass_over(rest, *left) {
                (length, 0) => BodyStep::Onward(length, Self::ChunkEnd),
                (length, left) => BodyStep::Onward(length, Self::Chunk { left }),
            },
            Self::ChunkEnd => match rest {
                [b'\r', b'\n', ..] => BodyStep::Onward(2, Self::ChunkSize),
                [b'\r'] => BodyStep::Starved,
                _ => BodyStep::Refused(HttpRefusal::BadRequest),
            },
            Self::Trailers { scanned } => trailers(rest, scanned, limits),
        }
    }
}

/// How many of `left` bytes are in `rest`, and how many are still missing.
fn pass_over(rest: &[u8], left: u64) -> (usize, u64) {
    let length = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
    (length, left - length as u64)
}

/// Stricter than httparse, which reads a missing size as 0 and allows a lone newline or a control
/// byte in an extension, where two readers could disagree about the line's end.
fn chunk_size(rest: &[u8]) -> BodyStep {
    let window = &rest[..rest.len().min(CHUNK_LINE_BYTES_MAX)];
    let newline = window.iter().position(|byte| *byte == b'\n');
    let line = &window[..newline.map_or(window.len(), |newline| newline + 1)];
    let text = match newline {
        Some(_) => line.strip_suffix(b"\r\n").unwrap_or(line),
        None => line.strip_suffix(b"\r").unwrap_or(line),
    };
    let sized = text.first().is_some_and(u8::is_ascii_hexdigit);
    let clean = text.iter().all(|byte| *byte == b'\t' || !byte.is_ascii_control());
    let waits = newline.is_none() && window.len() < CHUNK_LINE_BYTES_MAX;
    if !sized || !clean {
        return BodyStep::Refused(HttpRefusal::BadRequest);
    }
    match httparse::parse_chunk_size(line) {
        Ok(Status::Complete((length, 0))) => {
            BodyStep::Onward(length, Body::Trailers { scanned: 0 })
        }
        Ok(Status::Complete((length, left))) => BodyStep::Onward(length, Body::Chunk { left }),
        Ok(Status::Partial) if waits => BodyStep::Starved,
        Ok(Status::Partial) | Err(_) => BodyStep::Refused(HttpRefusal::BadRequest),
    }
}

/// Trailers have the bounds of a head, and are parsed only when they can be complete.
fn trailers(rest: &[u8], scanned: &mut usize, limits: &HttpLimits) -> BodyStep {
    let window = &rest[..rest.len().min(limits.head_bytes_max)];
    let full = window.len() == limits.head_bytes_max;
    let empty = matches!(window[0], b'\r' | b'\n');
    if *scanned > 0 && !full && !empty && block_end(window, *scanned).is_none() {
        *scanned = window.len();
        return BodyStep::Starved;
    }
    let mut headers = [EMPTY_HEADER; HEADER_COUNT_MAX];
    let header_count_max = limits.header_count_max.min(HEADER_COUNT_MAX);
    match httparse::parse_headers(window, &mut headers[..header_count_max]) {
        Ok(Status::Complete((length, _))) => BodyStep::Ended(length),
        Ok(Status::Partial) if full => BodyStep::Refused(HttpRefusal::HeadTooLarge),
        Ok(Status::Partial) => {
            *scanned = window.len();
            BodyStep::Starved
        }
        Err(error) => BodyStep::Refused(refusal_of(error)),
    }
}
