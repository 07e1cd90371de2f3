//! Messages of the program itself (`process.send`), which concern nobody but their receiver.
//!
//! Owns their bytes. Takes them apart only when asked, and only as far as values of JSON go.

use serde_json::Value;

use super::PARSED_BYTES_MAX;

/// A message from a worker's program.
#[derive(Clone, Debug, PartialEq)]
pub struct UserMessage {
    content: Content,
}

#[derive(Clone, Debug, PartialEq)]
enum Content {
    Json(Vec<u8>),
    Value(Value),
    Opaque(Vec<u8>),
}

impl UserMessage {
    /// A line that has been seen to be JSON.
    pub(super) fn from_json(line: &[u8]) -> Self {
        Self { content: Content::Json(line.to_vec()) }
    }

    pub(super) fn from_value(value: Value) -> Self {
        Self { content: Content::Value(value) }
    }

    /// A payload with values that JSON does not have, such as dates, maps or cycles.
    pub(super) fn opaque(payload: &[u8]) -> Self {
        Self { content: Content::Opaque(payload.to_vec()) }
    }

    /// The message as JSON; nothing, when it is longer than [`PARSED_BYTES_MAX`], nested deeper
    /// than [`super::DEPTH_MAX`], or has values that JSON does not have.
    #[must_use]
    pub fn value(&self) -> Option<Value> {
        match &self.content {
            Content::Json(line) if line.len() <= PARSED_BYTES_MAX => {
                serde_json::from_slice(line).ok()
            }
            Content::Value(value) => Some(value.clone()),
            Content::Json(_) | Content::Opaque(_) => None,
        }
    }
}
