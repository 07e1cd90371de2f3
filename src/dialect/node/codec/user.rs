//! Messages of the program itself (`process.send`), which concern nobody but their receiver.
//!
//! Owns their bytes. Takes them apart only when asked, and only as far as values of JSON go.

use serde_json::Value;

use super::{PARSED_BYTES_MAX, v8};

/// A message from a worker's program.
#[derive(Clone, Debug, PartialEq)]
pub struct UserMessage {
    format: Format,
    /// As it came. The values in it may take many times as much room.
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Json,
    V8,
}

impl UserMessage {
    /// A line that has been seen to be JSON.
    pub(super) fn from_json(line: &[u8]) -> Self {
        Self { format: Format::Json, bytes: line.to_vec() }
    }

    /// What came within another message.
    pub(super) fn from_value(value: &Value) -> Self {
        Self { format: Format::Json, bytes: value.to_string().into_bytes() }
    }

    /// A payload of V8's serializer, which may have values that JSON does not have, such as dates,
    /// maps or cycles.
    pub(super) fn from_v8(payload: &[u8]) -> Self {
        Self { format: Format::V8, bytes: payload.to_vec() }
    }

    /// As it was written.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The message as JSON; nothing, when it is longer than [`PARSED_BYTES_MAX`], nested deeper
    /// than [`super::DEPTH_MAX`], or has values that JSON does not have.
    #[must_use]
    pub fn value(&self) -> Option<Value> {
        match self.format {
            _ if self.bytes.len() > PARSED_BYTES_MAX => None,
            Format::Json => serde_json::from_slice(&self.bytes).ok(),
            Format::V8 => v8::read(&self.bytes),
        }
    }
}
