//! Messages of the program (`process.send`), which pass through unparsed.
//!
//! Owns their bytes. Parses them on request only, and only into JSON values.

use serde_json::Value;

use super::{PARSED_BYTES_MAX, v8};

/// A message from a worker's program.
#[derive(Clone, Debug, PartialEq)]
pub struct UserMessage {
    format: Format,
    /// The bytes as received. The parsed value may need many times this memory.
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Json,
    V8,
}

impl UserMessage {
    /// From a line that is known to be valid JSON.
    pub(super) fn from_json(line: &[u8]) -> Self {
        Self { format: Format::Json, bytes: line.to_vec() }
    }

    /// From a value inside another message.
    pub(super) fn from_value(value: &Value) -> Self {
        Self { format: Format::Json, bytes: value.to_string().into_bytes() }
    }

    /// From a payload in V8's format, which may have values without counterpart in JSON, such as
    /// dates, maps or cycles.
    pub(super) fn from_v8(payload: &[u8]) -> Self {
        Self { format: Format::V8, bytes: payload.to_vec() }
    }

    /// The bytes as received.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The message as JSON text; `null` if it has values without counterpart in JSON, or is a long
    /// one in V8's format.
    #[must_use]
    pub fn json(&self) -> Vec<u8> {
        match self.format {
            Format::Json => self.bytes.clone(),
            Format::V8 => self.value().unwrap_or_default().to_string().into_bytes(),
        }
    }

    /// The payload, if it is in V8's format.
    #[must_use]
    pub fn v8(&self) -> Option<&[u8]> {
        (self.format == Format::V8).then_some(&self.bytes)
    }

    /// The message as JSON; `None` if it is longer than [`PARSED_BYTES_MAX`], nested deeper than
    /// [`super::DEPTH_MAX`], or has values without counterpart in JSON.
    #[must_use]
    pub fn value(&self) -> Option<Value> {
        match self.format {
            _ if self.bytes.len() > PARSED_BYTES_MAX => None,
            Format::Json => serde_json::from_slice(&self.bytes).ok(),
            Format::V8 => v8::read(&self.bytes),
        }
    }
}
