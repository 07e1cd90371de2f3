//! What a loop asks of the kernel, in one vocabulary, by io_uring or by epoll.
//!
//! One engine belongs to one thread, and which one it is is decided once in a run
//! ([`EngineChoice::decide`]). The loops above cannot tell which one they have. The contract that
//! both keep, and `tests.rs` holds them to:
//!
//! **Asking.** Methods ask for operations and never wait. An operation is named by its kind and a
//! [`Key`] of the caller's; one of a kind at a time for a key. It may be carried out at once, and
//! is at the latest in the next [`Engine::submit`], [`Engine::turn`] or [`Engine::wait`]. Its
//! outcome comes as an [`Event`] of one of the latter two: handlers run between them and never
//! inside a method.
//!
//! **Order.** Events of one key and kind come in the order in which things happened. There is no
//! order between keys, nor between kinds.
//!
//! **Ends.** An operation with `armed` in its events goes on until an event says `armed: false`,
//! which is its last one. A cancelled one ends with ECANCELED, unless it was ending already, and
//! what had happened before comes before. An accept also ends by itself on a failure other than a
//! client's (EMFILE), a receive on an end, a reset or ENOBUFS: the caller arms it again. A poll
//! tells once. Shutting a socket down ends what is armed on it.
//!
//! **Waiting.** `wait` returns when there is an event, at its deadline, on a signal, or early for
//! no reason. A message that has gone (`MessageSent` with `Ok`) does not end a wait; one that was
//! refused does. `turn` never waits. Both hand over a bounded number of events, and the rest in
//! the next call.
//!
//! **Ownership.** What is lent comes back: a buffer with [`Event::Sent`], a message with
//! [`Event::MessageSent`]. When a message has gone, no copy of its descriptors is left in this
//! process after the call of `submit`, `turn` or `wait` that it went in; a refused one brings them
//! back. A [`Chunk`] and a [`SealedMessage`] occupy a buffer of the engine until they are recycled
//! or opened; with no buffer left nothing is received, and nothing is lost. A descriptor that is
//! lent for an operation stays open until the operation has ended; a socket that is received from
//! or sent on is closed by [`Engine::close`] or [`Engine::send_last`]. Polled descriptors may be
//! closed at any time.
//!
//! **Limits.** An accept takes no descriptor at or above the soft RLIMIT_NOFILE of the moment in
//! which the engine was first entered after it was armed; at the bound it ends with EMFILE and the
//! client stays in the backlog. A message is received only while [`Engine::offer_messages`] has
//! made room for it.
//!
//! What differs is how: io_uring puts operations into one system call for all and is told of
//! completions; epoll makes a call for each and is told of readiness.

pub mod choice;
pub mod epoll;
pub(crate) mod event;
pub(crate) mod message;
#[cfg(test)]
mod tests;

use std::os::fd::{BorrowedFd, OwnedFd};

pub use choice::{EngineChoice, EngineDecision, EngineKind};
pub use event::{Chunk, Event, Key, Opened, Outcome, SealedMessage};
pub use message::{OutgoingMessage, PAYLOAD_BYTES_MAX};

use crate::error::Result;
use crate::ring::Ring;
pub use crate::ring::RingShape;
use epoll::EpollEngine;

/// Most bytes of a chunk: holds nearly every request head.
pub const CHUNK_BYTES: u16 = 4096;

/// An engine and everything lent to it.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a process has one of them, which stays in place")]
pub enum Engine {
    /// By io_uring.
    IoUring(Ring),
    /// By epoll.
    Epoll(EpollEngine),
}

/// Calls the same method of whichever engine it is: one branch, which always goes the same way.
macro_rules! either {
    ($engine:expr, $inner:ident => $call:expr) => {
        match $engine {
            Self::IoUring($inner) => $call,
            Self::Epoll($inner) => $call,
        }
    };
}

impl Engine {
    /// Creates an engine for the calling thread. The shape is a ring's alone.
    ///
    /// # Errors
    /// io_uring is refused or too old; too few descriptors.
    pub fn new(kind: EngineKind, shape: RingShape) -> Result<Self> {
        Ok(match kind {
            EngineKind::IoUring => Self::IoUring(Ring::new(shape)?),
            EngineKind::Epoll => Self::Epoll(EpollEngine::new()?),
        })
    }

    /// Makes it able to receive bytes into its own buffers.
    ///
    /// # Errors
    /// Too little memory.
    pub fn with_data_buffers(self) -> Result<Self> {
        Ok(match self {
            Self::IoUring(ring) => Self::IoUring(ring.with_data_buffers()?),
            // Its buffers come into being as they are needed.
            Self::Epoll(epoll) => Self::Epoll(epoll),
        })
    }

    /// Makes it able to receive messages with descriptors. No message is received before
    /// [`Engine::offer_messages`] allows it.
    ///
    /// # Errors
    /// Too little memory.
    pub fn with_message_buffers(self) -> Result<Self> {
        Ok(match self {
            Self::IoUring(ring) => Self::IoUring(ring.with_message_buffers()?),
            Self::Epoll(epoll) => Self::Epoll(epoll),
        })
    }

    /// The ring, where it is one: for what only a ring can do.
    pub fn ring(&mut self) -> Option<&mut Ring> {
        match self {
            Self::IoUring(ring) => Some(ring),
            Self::Epoll(_) => None,
        }
    }

    /// A descriptor that becomes readable when something has happened, for an epoll set that is to
    /// watch the engine among others. Edge-triggered: nobody has to read it, and before each wait
    /// at the set the engine is turned until there are no events.
    ///
    /// # Errors
    /// Too few descriptors.
    pub fn notifier(&self) -> Result<OwnedFd> {
        match self {
            Self::IoUring(ring) => ring.notifier().map(OwnedFd::from),
            Self::Epoll(epoll) => epoll.notifier(),
        }
    }

    /// How often a ring's completion queue was too small.
    #[must_use]
    pub fn overflows(&self) -> u64 {
        match self {
            Self::IoUring(ring) => ring.overflows(),
            Self::Epoll(_) => 0,
        }
    }

    /// Waits until something has happened or the clock (CLOCK_MONOTONIC) shows `deadline_ns`, and
    /// appends what has happened to `events`. It may also end without an event before its time.
    ///
    /// # Errors
    /// The engine is unusable, which nothing short of a kernel defect causes.
    pub fn wait(&mut self, events: &mut Vec<Event>, deadline_ns: Option<u64>) -> Result<()> {
        either!(self, engine => engine.wait(events, deadline_ns))
    }

    /// Appends what has happened to `events`, without waiting.
    ///
    /// # Errors
    /// As [`Engine::wait`].
    pub fn turn(&mut self, events: &mut Vec<Event>) -> Result<()> {
        either!(self, engine => engine.turn(events))
    }

    /// Carries out what has been asked for, as far as that needs no waiting.
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

    /// Gives a chunk's buffer back.
    pub fn recycle(&mut self, chunk: Chunk) {
        either!(self, engine => engine.recycle(chunk));
    }

    /// Sends the bytes of `buffer` from `from` on; the buffer comes back with the event.
    ///
    /// # Panics
    /// When `from` lies past the end of the buffer.
    pub fn send(&mut self, key: Key, socket: BorrowedFd<'_>, buffer: Vec<u8>, from: usize) {
        either!(self, engine => engine.send(key, socket, buffer, from));
    }

    /// Sends the bytes of `buffer` and closes `socket` behind them. The last bytes leave in one
    /// segment with the FIN: one packet less to send, and one less for the client to handle. A
    /// send that has to wait for room keeps the socket alive until it is done.
    pub fn send_last(&mut self, key: Key, socket: OwnedFd, buffer: Vec<u8>) {
        either!(self, engine => engine.send_last(key, socket, buffer));
    }

    /// Cancels the send under way under `key`; its buffer comes back with what had gone.
    pub fn cancel_send(&mut self, key: Key) {
        either!(self, engine => engine.cancel_send(key));
    }

    /// Closes a socket that has been received from or sent on.
    pub fn close(&mut self, socket: OwnedFd) {
        match self {
            Self::IoUring(ring) => ring.close(socket),
            // Closing takes it out of the epoll set as well.
            Self::Epoll(_) => drop(socket),
        }
    }

    /// Sends `message` without waiting for room, and closes its descriptors if it has gone.
    pub fn send_message(
        &mut self,
        key: Key,
        socket: BorrowedFd<'_>,
        message: Box<OutgoingMessage>,
    ) {
        either!(self, engine => engine.send_message(key, socket, message));
    }

    /// Sends a remark without waiting for room. Nobody is told what becomes of it.
    pub fn remark(&mut self, socket: BorrowedFd<'_>, remark: &'static [u8]) {
        either!(self, engine => engine.remark(socket, remark));
    }

    /// Receives messages with descriptors until cancelled, ended or failed. There is one such
    /// receive at a time.
    ///
    /// # Panics
    /// When the engine was not made `with_message_buffers`.
    pub fn receive_messages(&mut self, key: Key, socket: BorrowedFd<'_>) {
        either!(self, engine => engine.receive_messages(key, socket));
    }

    /// Cancels the receiving of messages armed under `key`.
    pub fn cancel_receive_messages(&mut self, key: Key) {
        either!(self, engine => engine.cancel_receive_messages(key));
    }

    /// Lets messages be received until `target` of them are unopened.
    pub fn offer_messages(&mut self, target: u16) {
        either!(self, engine => engine.offer_messages(target));
    }

    /// How many messages may be received now.
    #[must_use]
    pub fn messages_offered(&self) -> u16 {
        either!(self, engine => engine.messages_offered())
    }

    /// Takes a message's payload and descriptors out and keeps its buffer back until the next
    /// [`Engine::offer_messages`].
    pub fn open_message(
        &mut self,
        sealed: SealedMessage,
        payload: &mut Vec<u8>,
        descriptors: &mut Vec<OwnedFd>,
    ) -> Opened {
        either!(self, engine => engine.open_message(sealed, payload, descriptors))
    }

    /// Tells once when `descriptor` has something to read.
    pub fn poll_readable(&mut self, key: Key, descriptor: BorrowedFd<'_>) {
        either!(self, engine => engine.poll_readable(key, descriptor));
    }

    /// Tells once when `descriptor` has room to write.
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
