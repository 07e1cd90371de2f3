//! What travels on a Node worker's channel: frames of JSON lines or of V8's serializer.
//!
//! Owns framing, parsing and bounds. A worker is another program and may send anything: whatever
//! arrives, this neither panics nor allocates beyond the bounds below, and says what was wrong.

mod decoder;
mod from_worker;
mod to_worker;
mod user;
mod v8;

pub use decoder::Decoder;
pub use from_worker::{FromWorker, Listening, Place, Query, SentBack};
pub use to_worker::{SocketKind, SocketName, ToWorker};
pub use user::UserMessage;

/// The `cmd` of what is said to and by our own script in a worker.
const OWN_COMMAND: &str = "NODE_CLUSTERLB";
/// Longest frame from a worker, in bytes. Node knows no bound; a worker that goes beyond this one
/// loses its channel. While a frame arrives, up to twice as much memory holds it.
pub const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Longest frame that is taken apart into values, which take many times the room of their bytes.
/// A longer message of the program's own is passed on as it is; one of Node's own is refused.
pub const PARSED_BYTES_MAX: usize = 1024 * 1024;
/// Deepest nesting of values; `serde_json` has the same bound for JSON.
pub const DEPTH_MAX: usize = 127;

/// How a worker's messages are written (`NODE_CHANNEL_SERIALIZATION_MODE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Serialization {
    /// One line of JSON a message; Node's default.
    #[default]
    Json,
    /// Four bytes of length, big endian, and V8's serializer (`serialization: 'advanced'`).
    Advanced,
}

impl Serialization {
    /// The name by which Node knows it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Advanced => "advanced",
        }
    }
}

/// What a worker sent is not of its protocol; its channel is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the worker's channel carries garbage: {what}")]
pub struct Garbage {
    what: String,
}

impl Garbage {
    /// Says what was wrong.
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into() }
    }
}

#[cfg(test)]
mod tests;
