//! Serialisation of a program's messages (Node's `serialization`).
//!
//! Owns the two formats. Their contents belong to the program.

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The format of messages between a primary and a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Serialization {
    /// JSON (RFC 8259): readable, and available in every language.
    #[default]
    Json,
    /// CBOR (RFC 8949): compact, self-describing, with byte strings and all floating point numbers.
    Advanced,
}

impl Serialization {
    /// The name used by the environment variable and by Node.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Advanced => "advanced",
        }
    }

    /// The format with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Json, Self::Advanced].into_iter().find(|one| one.name() == name)
    }

    /// Serialises a value.
    ///
    /// # Errors
    /// [`Error::Usage`] for a value that the format cannot represent, such as a JSON map whose keys
    /// are not strings.
    pub fn encode<T: Serialize + ?Sized>(self, value: &T) -> Result<Vec<u8>> {
        match self {
            Self::Json => serde_json::to_vec(value).map_err(|error| self.unfit(&error)),
            Self::Advanced => {
                let mut bytes = Vec::new();
                ciborium::into_writer(value, &mut bytes).map_err(|error| self.unfit(&error))?;
                Ok(bytes)
            }
        }
    }

    /// Deserialises a value.
    ///
    /// # Errors
    /// [`Error::Usage`] if the bytes are not a `T`.
    pub fn decode<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T> {
        match self {
            Self::Json => serde_json::from_slice(bytes).map_err(|error| self.other(&error)),
            Self::Advanced => {
                let mut rest = bytes;
                let value = ciborium::from_reader(&mut rest).map_err(|error| self.other(&error))?;
                match rest.len() {
                    0 => Ok(value),
                    more => Err(self.other(&format!("{more} bytes follow the value"))),
                }
            }
        }
    }

    /// Whether the bytes are exactly one value of this format, of any type.
    #[must_use]
    pub fn is_value(self, bytes: &[u8]) -> bool {
        self.decode::<IgnoredAny>(bytes).is_ok()
    }

    fn unfit(self, error: &dyn std::fmt::Display) -> Error {
        Error::usage(
            format!("the message cannot be written as {}: {error}", self.name()),
            "messages are values that serde knows, in JSON with strings as the keys of maps",
        )
    }

    fn other(self, error: &dyn std::fmt::Display) -> Error {
        Error::usage(
            format!("the message, in {}, is not what was expected: {error}", self.name()),
            "let primary and worker agree on the type of their messages",
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOTH: [Serialization; 2] = [Serialization::Json, Serialization::Advanced];

    #[test]
    fn values_come_back_in_both_formats() {
        for one in BOTH {
            let value = serde_json::json!({"cmd": "notifyRequest", "list": [1, -2.5, null, true]});
            let bytes = one.encode(&value).expect("plain data");
            assert_eq!(one.decode::<serde_json::Value>(&bytes).expect("the same"), value);
            assert!(one.is_value(&bytes) && !one.is_value(&bytes[..bytes.len() - 1]));
            assert!(one.decode::<Vec<u8>>(&bytes).is_err());
            assert_eq!(Serialization::from_name(one.name()), Some(one));
        }
        assert_eq!(Serialization::from_name("v8"), None);
    }

    #[test]
    fn only_the_compact_format_has_numbers_that_are_none() {
        let bytes = Serialization::Advanced.encode(&f64::NAN).expect("CBOR has it");
        assert!(Serialization::Advanced.decode::<f64>(&bytes).expect("a number").is_nan());
        let bytes = Serialization::Json.encode(&f64::NAN).expect("JSON writes null instead");
        assert_eq!(bytes, b"null");
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for one in BOTH {
                let _ = one.is_value(&bytes);
                let _ = one.decode::<serde_json::Value>(&bytes);
            }
        }
    }
}
