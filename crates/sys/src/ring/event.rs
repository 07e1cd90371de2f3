//! Completions with their kinds and owners restored.

use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::buffers::BufferId;
use super::message::OutgoingMessage;

/// Whom a completion belongs to: a place in the caller's table and which tenant of that place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Key {
    /// The place.
    pub index: u32,
    /// The tenant; only the low 24 bits are kept.
    pub generation: u32,
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
        /// The bytes, in a buffer to be given back with `Ring::recycle`.
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
        /// The message, to be opened with `Ring::open_message`.
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

/// Bytes in a buffer of the ring.
#[derive(Debug)]
pub struct Chunk {
    pub(super) buffer: BufferId,
    pub(super) length: u32,
}

/// A received message whose descriptors nobody owns yet.
#[derive(Debug)]
pub struct SealedMessage {
    pub(super) buffer: BufferId,
    pub(super) length: u32,
}

/// What was in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Descriptors were lost because this process had no room for them (MSG_CTRUNC).
    pub truncated: bool,
}
