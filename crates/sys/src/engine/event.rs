//! Events: completions with their kinds and owners.

use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::message::OutgoingMessage;

/// Most bytes of a chunk: holds nearly every request head.
pub const CHUNK_BYTES: u16 = 4096;

/// The owner of an operation: an index into the caller's table, and the generation of that entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Key {
    /// Index into the table.
    pub index: u32,
    /// Generation of the entry; only the low 24 bits are kept.
    pub generation: u32,
}

impl Key {
    /// Packs a kind (8 bits), the generation (24) and the index (32) into the kernel's user data.
    pub(crate) fn pack(self, kind: u8) -> u64 {
        let generation = u64::from(self.generation & 0x00ff_ffff);
        u64::from(kind) << 56 | generation << 32 | u64::from(self.index)
    }

    /// Unpacks the kind and the key.
    pub(crate) fn unpack(packed: u64) -> (u8, Self) {
        let index = u32::try_from(packed & 0xffff_ffff).expect("32 bits were kept");
        let generation = u32::try_from(packed >> 32 & 0x00ff_ffff).expect("24 bits were kept");
        let kind = u8::try_from(packed >> 56).expect("8 bits are left");
        (kind, Self { index, generation })
    }
}

/// The outcome of an operation.
pub type Outcome<T> = Result<T, Errno>;

/// An event.
#[derive(Debug)]
pub enum EngineEvent {
    /// A connection was accepted, or accepting failed or ended.
    Accepted {
        /// Key of the accept.
        key: Key,
        /// The connection, non-blocking and close-on-exec.
        outcome: Outcome<OwnedFd>,
        /// Whether the accept is still armed.
        armed: bool,
    },
    /// Bytes arrived, the peer closed its side (`None`), or receiving failed or ended.
    Received {
        /// Key of the receive.
        key: Key,
        /// The bytes, in a buffer to return with `Engine::recycle`.
        outcome: Outcome<Option<Chunk>>,
        /// Whether the receive is still armed.
        armed: bool,
    },
    /// A send completed or failed.
    Sent {
        /// Key of the send.
        key: Key,
        /// The lent buffer.
        buffer: Vec<u8>,
        /// Number of bytes sent, from the first one to be sent.
        outcome: Outcome<usize>,
    },
    /// A message with descriptors was sent, or sending it failed.
    MessageSent {
        /// Key of the message.
        key: Key,
        /// The lent message; if it was not sent, it still holds its descriptors.
        message: Box<OutgoingMessage>,
        /// Whether it was sent.
        outcome: Outcome<()>,
    },
    /// A message with descriptors arrived, the peer closed its side (`None`), or receiving ended.
    MessageReceived {
        /// Key of the receive.
        key: Key,
        /// The message, to open with `Engine::open_message`.
        outcome: Outcome<Option<SealedMessage>>,
        /// Whether the receive is still armed.
        armed: bool,
    },
    /// A descriptor became ready.
    Ready {
        /// Key of the poll.
        key: Key,
        /// Whether the poll succeeded; a poll is one-shot.
        outcome: Outcome<()>,
    },
    /// A cancellation was carried out; the cancelled operation reports its end separately.
    Cancelled {
        /// Key of the cancelled operation.
        key: Key,
    },
}

/// Bytes in a buffer of the engine.
#[derive(Debug)]
pub struct Chunk {
    pub(crate) buffer: BufferId,
    pub(crate) length: u32,
}

/// A received message whose descriptors have no owner yet.
#[derive(Debug)]
pub struct SealedMessage {
    pub(crate) buffer: BufferId,
    pub(crate) length: u32,
}

/// The contents of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Descriptors were lost because this process had none free (MSG_CTRUNC).
    pub truncated: bool,
}

/// A filled buffer that has not been returned.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BufferId(pub(crate) u16);
