//! The system calls of an event loop, behind one interface, by io_uring or by epoll.
//!
//! An engine belongs to one thread. Its kind is chosen once per run ([`EngineChoice::decide`]), and
//! the loops above do not depend on it. Both engines keep this contract, which `tests.rs` checks:
//!
//! **Requests.** Methods request operations and never block. An operation is identified by its kind
//! and a [`Key`] of the caller; a key has at most one of each kind. It may be carried out at once,
//! and is carried out at the latest in the next [`Engine::submit`], [`Engine::turn`] or
//! [`Engine::wait`]. Its outcome is an [`EngineEvent`] of one of the latter two: handlers run
//! between calls, never inside a method.
//!
//! **Order.** Events of one key and kind come in the order in which they happened. There is no
//! order between keys or kinds.
//!
//! **Ends.** An operation with `armed` in its events continues until an event with `armed: false`,
//! its last one. A cancelled operation ends with ECANCELED unless it was already ending; events
//! from before the cancellation come first. An accept also ends on a failure other than a client's
//! (EMFILE), a receive on an end of file, a reset or ENOBUFS: the caller arms it again. A poll is
//! one-shot. Shutting a socket down ends its operations.
//!
//! **Waiting.** `wait` returns when there is an event, at its deadline, on a signal, or spuriously.
//! A message that was sent (`MessageSent` with `Ok`) does not end a wait; one that was refused
//! does. `turn` never blocks. Both return a bounded number of events, and the rest in the next
//! call.
//!
//! **Ownership.** Lent objects come back: a buffer with [`EngineEvent::Sent`], a message with
//! [`EngineEvent::MessageSent`]. Once a message is sent, this process holds no copy of its
//! descriptors after the call of `submit`, `turn` or `wait` that sent it; a refused message brings
//! them back. A [`Chunk`] and a [`SealedMessage`] occupy a buffer of the engine until they are
//! recycled or opened; without a free buffer nothing is received, and nothing is lost. A descriptor
//! lent for an operation must stay open until the operation has ended. Close a socket that is
//! received from or sent on with [`Engine::close`] or [`Engine::send_last`]. Polled descriptors may
//! be closed at any time.
//!
//! **Limits.** An accept takes no descriptor at or above the soft RLIMIT_NOFILE at the time the
//! engine was first entered after it was armed; at the bound it ends with EMFILE and the client
//! stays in the backlog. A message is received only while [`Engine::offer_messages`] has made room
//! for it.
//!
//! The engines differ in their system calls: io_uring submits all operations with a single one and
//! reports completions; epoll makes one per operation and reports readiness.

pub mod choice;
pub mod epoll;
pub(crate) mod event;
pub(crate) mod message;
pub mod ring;
#[cfg(test)]
mod tests;

use std::os::fd::{BorrowedFd, OwnedFd};

pub use choice::{EngineChoice, EngineDecision, EngineKind};
pub use event::{CHUNK_BYTES, Chunk, EngineEvent, Key, Opened, Outcome, SealedMessage};
pub use message::{OutgoingMessage, PAYLOAD_BYTES_MAX};

use crate::error::Result;
use epoll::EpollEngine;
use ring::Ring;
pub use ring::RingShape;

/// An engine and everything lent to it.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a process has one of them, which stays in place")]
pub enum Engine {
    /// By io_uring.
    IoUring(Ring),
    /// By epoll.
    Epoll(EpollEngine),
}

/// Calls the same method on either engine. The branch always goes the same way in a run.
macro_rules! either {
    ($engine:expr, $inner:ident => $call:expr) => {
        match $engine {
            Self::IoUring($inner) => $call,
            Self::Epoll($inner) => $call,
        }
    };
}

impl Engine {
    /// Creates an engine for the calling thread. `shape` applies to io_uring only.
    ///
    /// # Errors
    /// io_uring is refused or too old, or descriptors are exhausted.
    pub fn new(kind: EngineKind, shape: RingShape) -> Result<Self> {
        Ok(match kind {
            EngineKind::IoUring => Self::IoUring(Ring::new(shape)?),
            EngineKind::Epoll => Self::Epoll(EpollEngine::new()?),
        })
    }

    /// Enables receiving bytes into the engine's buffers.
    ///
    /// # Errors
    /// Memory is exhausted.
    pub fn with_data_buffers(self) -> Result<Self> {
        Ok(match self {
            Self::IoUring(ring) => Self::IoUring(ring.with_data_buffers()?),
            // This engine allocates its buffers on demand.
            Self::Epoll(epoll) => Self::Epoll(epoll),
        })
    }

    /// Enables receiving messages with descriptors. None is received before
    /// [`Engine::offer_messages`] allows it.
    ///
    /// # Errors
    /// Memory is exhausted.
    pub fn with_message_buffers(self) -> Result<Self> {
        Ok(match self {
            Self::IoUring(ring) => Self::IoUring(ring.with_message_buffers()?),
            Self::Epoll(epoll) => Self::Epoll(epoll),
        })
    }

    /// The ring, if the engine is one, for operations that only a ring has.
    pub fn ring(&mut self) -> Option<&mut Ring> {
        match self {
            Self::IoUring(ring) => Some(ring),
            Self::Epoll(_) => None,
        }
    }

    /// A descriptor that becomes readable when there are events, for watching the engine in an
    /// epoll set. It is edge-triggered and never read: before each wait on the set, call `turn`
    /// until it returns no events.
    ///
    /// # Errors
    /// Descriptors are exhausted.
    pub fn notifier(&self) -> Result<OwnedFd> {
        match self {
            Self::IoUring(ring) => ring.notifier().map(OwnedFd::from),
            Self::Epoll(epoll) => epoll.notifier(),
        }
    }

    /// Number of times that a ring's completion queue overflowed.
    #[must_use]
    pub fn overflows(&self) -> u64 {
        match self {
            Self::IoUring(ring) => ring.overflows(),
            Self::Epoll(_) => 0,
        }
    }

    /// Waits until there is an event or CLOCK_MONOTONIC reaches `deadline_ns`, and appends the
    /// events to `events`. It may return early without one.
    ///
    /// # Errors
    /// The engine is unusable, which only a kernel defect causes.
    pub fn wait(&mut self, events: &mut Vec<EngineEvent>, deadline_ns: Option<u64>) -> Result<()> {
        either!(self, engine => engine.wait(events, deadline_ns))
    }

    /// Appends the events so far to `events`, without blocking.
    ///
    /// # Errors
    /// As [`Engine::wait`].
    pub fn turn(&mut self, events: &mut Vec<EngineEvent>) -> Result<()> {
        either!(self, engine => engine.turn(events))
    }

    /// Carries out requested operations, as far as they do not block.
    pub fn submit(&mut self) {
        either!(self, engine => engine.submit());
    }

    /// Accepts from `listener` until cancelled or failed.
    pub fn accept_many(&mut self, key: Key, listener: BorrowedFd<'_>) {
        either!(self, engine => engine.accept_many(key, listener));
    }

    /// Cancels the accept armed under `key`.
    pub fn cancel_accept(&mut self, key: Key) {
        either!(self, engine => engine.cancel_accept(key));
    }

    /// Receives once.
    pub fn receive_once(&mut self, key: Key, socket: BorrowedFd<'_>) {
        either!(self, engine => engine.receive_once(key, socket));
    }

    /// Receives until cancelled, ended or failed.
    pub fn receive_many(&mut self, key: Key, socket: BorrowedFd<'_>) {
        either!(self, engine => engine.receive_many(key, socket));
    }

    /// Cancels the receive armed under `key`.
    pub fn cancel_receive(&mut self, key: Key) {
        either!(self, engine => engine.cancel_receive(key));
    }

    /// The bytes of a chunk.
    #[must_use]
    pub fn bytes(&self, chunk: &Chunk) -> &[u8] {
        either!(self, engine => engine.bytes(chunk))
    }

    /// Returns the buffer of a chunk.
    pub fn recycle(&mut self, chunk: Chunk) {
        either!(self, engine => engine.recycle(chunk));
    }

    /// Sends `buffer[from..]`; the buffer comes back with the event.
    ///
    /// # Panics
    /// If `from` is beyond the end of the buffer.
    pub fn send(&mut self, key: Key, socket: BorrowedFd<'_>, buffer: Vec<u8>, from: usize) {
        either!(self, engine => engine.send(key, socket, buffer, from));
    }

    /// Sends `buffer` and then closes `socket`. The last bytes share a segment with the FIN, which
    /// saves a packet on both sides. If the send has to wait for room, the socket stays open until
    /// it is done.
    pub fn send_last(&mut self, key: Key, socket: OwnedFd, buffer: Vec<u8>) {
        either!(self, engine => engine.send_last(key, socket, buffer));
    }

    /// Cancels the send of `key`; its buffer comes back with the number of bytes sent.
    pub fn cancel_send(&mut self, key: Key) {
        either!(self, engine => engine.cancel_send(key));
    }

    /// Closes a socket that has been received from or sent on.
    pub fn close(&mut self, socket: OwnedFd) {
        match self {
            Self::IoUring(ring) => ring.close(socket),
            // Closing also removes it from the epoll set.
            Self::Epoll(_) => drop(socket),
        }
    }

    /// Sends `message` without blocking, and closes its descriptors on success.
    pub fn send_message(
        &mut self,
        key: Key,
        socket: BorrowedFd<'_>,
        message: Box<OutgoingMessage>,
    ) {
        either!(self, engine => engine.send_message(key, socket, message));
    }

    /// Sends `remark` without blocking. Its outcome is not reported.
    pub fn remark(&mut self, socket: BorrowedFd<'_>, remark: &'static [u8]) {
        either!(self, engine => engine.remark(socket, remark));
    }

    /// Receives messages with descriptors until cancelled, ended or failed. There is at most one
    /// such receive at a time.
    ///
    /// # Panics
    /// If the engine was not made `with_message_buffers`.
    pub fn receive_messages(&mut self, key: Key, socket: BorrowedFd<'_>) {
        either!(self, engine => engine.receive_messages(key, socket));
    }

    /// Cancels the receive of messages of `key`.
    pub fn cancel_receive_messages(&mut self, key: Key) {
        either!(self, engine => engine.cancel_receive_messages(key));
    }

    /// Allows messages to be received until `target` of them are unopened. A smaller target than
    /// before takes effect at once with epoll; io_uring keeps the buffers that it has been given.
    pub fn offer_messages(&mut self, target: u16) {
        either!(self, engine => engine.offer_messages(target));
    }

    /// Number of messages that may be received now.
    #[must_use]
    pub fn messages_offered(&self) -> u16 {
        either!(self, engine => engine.messages_offered())
    }

    /// Takes the payload and descriptors of a message. Its buffer stays unused until the next
    /// [`Engine::offer_messages`].
    pub fn open_message(
        &mut self,
        sealed: SealedMessage,
        payload: &mut Vec<u8>,
        descriptors: &mut Vec<OwnedFd>,
    ) -> Opened {
        either!(self, engine => engine.open_message(sealed, payload, descriptors))
    }

    /// Reports once when `descriptor` is readable.
    pub fn poll_readable(&mut self, key: Key, descriptor: BorrowedFd<'_>) {
        either!(self, engine => engine.poll_readable(key, descriptor));
    }

    /// Reports once when `descriptor` is writable.
    pub fn poll_writable(&mut self, key: Key, descriptor: BorrowedFd<'_>) {
        either!(self, engine => engine.poll_writable(key, descriptor));
    }

    /// Ends the wait for `descriptor` under `key`, if there is one. The engine then holds nothing
    /// of it, once that has been submitted.
    pub fn cancel_poll(&mut self, key: Key, descriptor: BorrowedFd<'_>) {
        match self {
            Self::IoUring(ring) => ring.cancel_poll(key),
            Self::Epoll(engine) => engine.cancel_poll(descriptor),
        }
    }
}
