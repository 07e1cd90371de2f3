//! Completions with their kinds and owners restored.

use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::message::OutgoingMessage;

/// Whom a completion belongs to: a place in the caller's table and which tenant of that place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Key {
    /// The place.
    pub index: u32,
    /// The tenant; only the low 24 bits are kept.
    pub generation: u32,
}

impl Key {
    /// As the kernel carries it: a kind (8 bits), the generation (24) and the index (32).
    pub(crate) fn pack(self, kind: u8) -> u64 {
        let generation = u64::from(self.generation & 0x00ff_ffff);
        u64::from(kind) << 56 | generation << 32 | u64::from(self.index)
    }

    /// The kind and the key in what the kernel carried.
    pub(crate) fn unpack(packed: u64) -> (u8, Self) {
        let index = u32::try_from(packed & 0xffff_ffff).expect("32 bits were kept");
        let generation = u32::try_from(packed >> 32 & 0x00ff_ffff).expect("24 bits were kept");
        let kind = u8::try_from(packed >> 56).expect("8 bits are left");
        (kind, Self { index, generation })
    }
}

/// The outcome of an operation.
pub type Outcome<T> = Result<T, Errno>;

/// Something happened.
#[derive(Debug)]
pub enum Event {
    /// A connection was accepted, or accepting failed or ended.
    Accepted {
        /// Whose accept.
        key: Key,
        /// The connection, non-blocking and close-on-exec.
        outcome: Outcome<OwnedFd>,
        /// The accept is still armed.
        armed: bool,
    },
    /// Bytes arrived, the peer is done (`None`), or receiving failed or ended.
    Received {
        /// Whose receive.
        key: Key,
        /// The bytes, in a buffer to be given back with `Engine::recycle`.
        outcome: Outcome<Option<Chunk>>,
        /// The receive is still armed.
        armed: bool,
    },
    /// A buffer was sent, or not.
    Sent {
        /// Whose send.
        key: Key,
        /// The buffer that was lent.
        buffer: Vec<u8>,
        /// How many of its bytes have gone, counted from the first one that was to be sent.
        outcome: Outcome<usize>,
    },
    /// A message with descriptors was sent, or not.
    MessageSent {
        /// Whose message.
        key: Key,
        /// The message that was lent; its descriptors are still in it if it has not gone.
        message: Box<OutgoingMessage>,
        /// Whether it has gone.
        outcome: Outcome<()>,
    },
    /// A message with descriptors arrived, the peer is done (`None`), or receiving ended.
    MessageReceived {
        /// Whose receive.
        key: Key,
        /// The message, to be opened with `Engine::open_message`.
        outcome: Outcome<Option<SealedMessage>>,
        /// The receive is still armed.
        armed: bool,
    },
    /// A descriptor became ready.
    Ready {
        /// Whose descriptor.
        key: Key,
        /// Whether the poll ended well; poll is always armed once.
        outcome: Outcome<()>,
    },
    /// A cancellation has been carried out; the cancelled operation reports for itself.
    Cancelled {
        /// Whose operation was to be cancelled.
        key: Key,
    },
}

/// Bytes in a buffer of the engine.
#[derive(Debug)]
pub struct Chunk {
    pub(crate) buffer: BufferId,
    pub(crate) length: u32,
}

/// A received message whose descriptors nobody owns yet.
#[derive(Debug)]
pub struct SealedMessage {
    pub(crate) buffer: BufferId,
    pub(crate) length: u32,
}

/// What was in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Descriptors were lost because this process had no room for them (MSG_CTRUNC).
    pub truncated: bool,
}

/// A buffer that has been filled and not given back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BufferId(pub(crate) u16);
