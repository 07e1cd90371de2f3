//! Frames of a control channel: a header of eight bytes, then the body.
//!
//! The header holds the length of the body in bytes (four bytes, little endian), the number of
//! descriptors sent with the frame, the kind of the body, and two zero bytes. Pure: bytes in, bytes
//! out.

use crate::error::{Error, Result};

use super::Serialization;

/// Maximum length of a control message's body, in bytes.
pub const CONTROL_BYTES_MAX: usize = 64 * 1024;
/// Maximum length of a program's message, in serialised bytes.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Maximum number of descriptors per frame.
pub const FRAME_DESCRIPTORS_MAX: usize = 8;
/// Length of the header.
pub(super) const HEADER_BYTES: usize = 8;

/// The kind of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A control message between primary and worker, in JSON.
    Control,
    /// A message of the program.
    Message(Serialization),
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::Control => 0,
            Self::Message(Serialization::Json) => 1,
            Self::Message(Serialization::Advanced) => 2,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Control),
            1 => Some(Self::Message(Serialization::Json)),
            2 => Some(Self::Message(Serialization::Advanced)),
            _ => None,
        }
    }

    /// Maximum length of a body of this kind.
    pub(super) fn bytes_max(self) -> usize {
        match self {
            Self::Control => CONTROL_BYTES_MAX,
            Self::Message(_) => MESSAGE_BYTES_MAX,
        }
    }
}

/// A decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Length of the body in bytes.
    pub(super) length: usize,
    /// Number of descriptors sent with the frame.
    pub(super) descriptors: usize,
    /// Kind of the body.
    pub(super) kind: Kind,
}

impl Header {
    /// Encodes the header.
    ///
    /// # Panics
    /// If the length or the number of descriptors exceeds its bound; the sender checks both before.
    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let length = u32::try_from(self.length).expect("the sender has checked the bound");
        let descriptors = u8::try_from(self.descriptors).expect("the sender has checked the bound");
        let [a, b, c, d] = length.to_le_bytes();
        [a, b, c, d, descriptors, self.kind.number(), 0, 0]
    }

    /// Decodes the header at the start of `bytes`; `None` if it is incomplete.
    ///
    /// # Errors
    /// The bytes are not a valid header.
    pub(super) fn at_start(bytes: &[u8]) -> Result<Option<Self>> {
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let [a, b, c, d, descriptors, kind, 0, 0] = *header else {
            return Err(garbage("the header of a frame is impossible"));
        };
        let kind = Kind::from_number(kind)
            .ok_or_else(|| garbage(&format!("there are no frames of kind {kind}")))?;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > kind.bytes_max() {
            return Err(garbage(&format!("a frame of {length} bytes is too long")));
        }
        let descriptors = usize::from(descriptors);
        if descriptors > FRAME_DESCRIPTORS_MAX {
            return Err(garbage(&format!("{descriptors} descriptors in a frame are too many")));
        }
        Ok(Some(Self { length, descriptors, kind }))
    }
}

/// The error for a peer that violates the format.
pub(super) fn garbage(why: &str) -> Error {
    Error::Workers {
        what: format!("the control channel carries garbage: {why}"),
        hint: "the channel is closed; run the same version in primary and workers, and write to \
               the channel only through the library"
            .into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_header_survives_the_way() {
        for kind in [
            Kind::Control,
            Kind::Message(Serialization::Json),
            Kind::Message(Serialization::Advanced),
        ] {
            let header = Header { length: kind.bytes_max(), descriptors: 8, kind };
            let bytes = header.to_bytes();
            assert_eq!(Header::at_start(&bytes).expect("possible"), Some(header));
            assert_eq!(Header::at_start(&bytes[..7]).expect("possible so far"), None);
            let longer = Header { length: kind.bytes_max() + 1, ..header };
            assert!(Header::at_start(&longer.to_bytes()).is_err());
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_would_be_written(bytes in any::<[u8; HEADER_BYTES]>()) {
            if let Ok(Some(header)) = Header::at_start(&bytes) {
                prop_assert_eq!(header.to_bytes(), bytes);
            }
        }
    }
}
