//! The wire format of a Node worker's channel: frames of JSON lines or of V8's serialiser.
//!
//! Owns framing, parsing and bounds. A worker is a separate program and its bytes are untrusted:
//! for any input, this code does not panic, does not allocate beyond the bounds below, and reports
//! what is wrong.

mod decoder;
mod from_worker;
mod to_worker;
mod user;
mod v8;

pub use decoder::Decoder;
pub use from_worker::{FromWorker, ListenTarget, Listening, Query, SentBack};
pub use to_worker::{Own, SocketKind, SocketName, ToWorker};
pub use user::UserMessage;

/// The `cmd` of messages to and from the preload script.
const OWN_COMMAND: &str = "NODE_CLUSTERLB";
/// Maximum length of a frame from a worker, in bytes. Node has no bound; a worker that exceeds this
/// one loses its channel. A frame in progress uses up to twice this memory.
pub const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Maximum length of a frame that is parsed into values, which need many times the memory of their
/// bytes. A longer message of the program is forwarded unparsed; a longer internal message is
/// rejected.
pub const PARSED_BYTES_MAX: usize = 1024 * 1024;
/// Maximum nesting depth; the same as `serde_json` has.
pub const DEPTH_MAX: usize = 127;

/// Serialisation of a worker's messages (`NODE_CHANNEL_SERIALIZATION_MODE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Serialization {
    /// One line of JSON per message; Node's default.
    #[default]
    Json,
    /// A length of four bytes, big endian, then V8's format (`serialization: 'advanced'`).
    Advanced,
}

impl Serialization {
    /// Node's name for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Advanced => "advanced",
        }
    }
}

/// A worker violated the protocol; its channel is unusable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the worker's channel carries garbage: {what}")]
pub struct Garbage {
    what: String,
}

impl Garbage {
    /// Creates the error from a description.
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into() }
    }
}

#[cfg(test)]
mod tests;
