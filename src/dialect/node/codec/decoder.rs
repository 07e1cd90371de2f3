//! Reassembles messages from a channel's bytes, however they were split in transit.
//!
//! Owns the bytes of an incomplete frame.

use super::{FRAME_BYTES_MAX, FromWorker, Garbage, Serialization};

/// Length prefix of an advanced frame.
const LENGTH_BYTES: usize = 4;
/// Buffer capacity kept between frames; a larger buffer is freed as soon as it is empty.
const KEPT_BYTES_MAX: usize = 64 * 1024;

/// Splits a channel's bytes into messages.
#[derive(Debug)]
pub struct Decoder {
    serialization: Serialization,
    bytes: Vec<u8>,
    /// Start of the first frame that has not been taken.
    begin: usize,
    /// Offset from `begin` up to which there is no line feed.
    searched: usize,
}

impl Decoder {
    /// A decoder for a new channel.
    #[must_use]
    pub fn new(serialization: Serialization) -> Self {
        Self { serialization, bytes: Vec::new(), begin: 0, searched: 0 }
    }

    /// Appends received bytes. Feed small pieces, and call [`Decoder::next_message`] after each
    /// until it returns `None`.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.begin > 0 {
            self.bytes.drain(..self.begin);
            self.begin = 0;
        }
        if self.bytes.is_empty() {
            self.bytes.shrink_to(KEPT_BYTES_MAX);
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next complete message.
    ///
    /// # Errors
    /// The worker violates the protocol, or a frame exceeds [`FRAME_BYTES_MAX`].
    pub fn next_message(&mut self) -> Result<Option<FromWorker>, Garbage> {
        match self.serialization {
            Serialization::Json => self.next_line(),
            Serialization::Advanced => self.next_block(),
        }
    }

    fn next_line(&mut self) -> Result<Option<FromWorker>, Garbage> {
        let rest = &self.bytes[self.begin..];
        let end = rest[self.searched..].iter().position(|byte| *byte == b'\n');
        let Some(end) = end.map(|end| end + self.searched) else {
            self.searched = rest.len();
            return within_bound(rest.len()).map(|()| None);
        };
        within_bound(end)?;
        let message = FromWorker::from_json(&rest[..end])?;
        self.begin += end + 1;
        self.searched = 0;
        Ok(Some(message))
    }

    fn next_block(&mut self) -> Result<Option<FromWorker>, Garbage> {
        let rest = &self.bytes[self.begin..];
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        within_bound(length)?;
        let Some(payload) = rest.get(..length) else {
            return Ok(None);
        };
        let message = FromWorker::from_v8(payload)?;
        self.begin += LENGTH_BYTES + length;
        Ok(Some(message))
    }
}

fn within_bound(length: usize) -> Result<(), Garbage> {
    if length <= FRAME_BYTES_MAX {
        return Ok(());
    }
    Err(Garbage::new(format!("a message is longer than {FRAME_BYTES_MAX} bytes")))
}
