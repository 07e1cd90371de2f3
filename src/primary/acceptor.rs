//! One listener's multishot accept: armed, ended, starved, stopped.
//!
//! Owns the state of the accept and of a listener that goes. Refuses to look at sockets.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use crate::id::ListenerId;
use crate::sys::limits;
use crate::sys::listener::Listener;
use crate::sys::ring::{Key, Outcome, Ring};

use super::link::Mark;

/// How long accepting rests after it failed for want of descriptors or memory.
const STARVED_NS: u64 = 10_000_000;
/// Connections taken from the backlog when accepting stops for good; the kernel's own bound on a
/// backlog is far below.
const LAST_ACCEPTS_MAX: usize = 65_536;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Off,
    Armed,
    /// Told to stop; connections may still arrive until the last completion.
    Stopping,
    /// Out of descriptors or memory until this moment.
    Starved {
        until_ns: u64,
    },
    /// The listener is closed.
    Closed,
}

/// A listener that the primary accepts from.
#[derive(Debug)]
pub(super) struct Acceptor {
    pub(super) id: ListenerId,
    listener: Option<Arc<Listener>>,
    state: State,
    /// Descriptors that accepted connections can never take.
    held_back: u64,
    /// Its position in the table, by which completions find it.
    place: u32,
    /// The listener shall go.
    pub(super) leaving: bool,
    /// What must have arrived before everything of this closed listener has been handed over.
    pub(super) marks: Option<Vec<Mark>>,
}

impl Acceptor {
    pub(super) fn new(
        id: ListenerId,
        listener: Arc<Listener>,
        place: usize,
        held_back: u64,
    ) -> Self {
        let place = u32::try_from(place).expect("listeners are bounded");
        let (listener, state) = (Some(listener), State::Off);
        Self { id, listener, state, held_back, place, leaving: false, marks: None }
    }

    fn key(&self) -> Key {
        Key { index: self.place, generation: u32::from(self.id.0) }
    }

    /// Begins accepting, unless it goes on already or must rest.
    pub(super) fn arm(&mut self, ring: &mut Ring, now_ns: u64) {
        match self.state {
            State::Off => {}
            State::Starved { until_ns } if until_ns <= now_ns => {}
            _ => return,
        }
        let Some(listener) = &self.listener else {
            return;
        };
        ring.accept_many(self.key(), listener.as_fd());
        // The kernel keeps the descriptor limit that is in force when it sees the accept.
        limits::with_descriptors_held_back(self.held_back, || ring.submit());
        self.state = State::Armed;
    }

    /// Stops accepting for now: the kernel's backlog is the queue.
    pub(super) fn pause(&mut self, ring: &mut Ring) {
        match self.state {
            State::Armed => {
                self.state = State::Stopping;
                ring.cancel_accept(self.key());
            }
            // Nothing is to be tried again by itself while accepting is stopped.
            State::Starved { .. } => self.state = State::Off,
            State::Off | State::Stopping | State::Closed => {}
        }
    }

    /// Notes what an accept's completion says about the accept itself, and passes the socket on.
    pub(super) fn accepted(
        &mut self,
        outcome: Outcome<OwnedFd>,
        armed: bool,
        now_ns: u64,
    ) -> Option<OwnedFd> {
        if !armed && self.state != State::Closed {
            self.state = State::Off;
        }
        match outcome {
            Ok(socket) => return Some(socket),
            // Cancelled on purpose, or the client gave up while it was queued (`accept(2)`).
            Err(Errno::ECANCELED | Errno::ECONNABORTED | Errno::EINTR | Errno::EPROTO) => {}
            // Out of descriptors or memory: the client waits in the backlog, and arming again at
            // once would fail at once.
            Err(_) if !armed => self.state = State::Starved { until_ns: now_ns + STARVED_NS },
            Err(_) => {}
        }
        None
    }

    /// Nothing is armed any more, so that the listener can be closed.
    pub(super) fn is_quiet(&self) -> bool {
        !matches!(self.state, State::Armed | State::Stopping)
    }

    /// The listener is closed.
    pub(super) fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Takes what waits in the backlog and closes the listener. While descriptors are short it
    /// takes what it can, and is to be called again.
    pub(super) fn close(&mut self, now_ns: u64, mut take: impl FnMut(OwnedFd)) {
        let Some(listener) = &self.listener else {
            return;
        };
        for _ in 0..LAST_ACCEPTS_MAX {
            match listener.accept_now() {
                Ok(Some(socket)) => take(socket),
                // The client gave up while it was queued.
                Err(Errno::ECONNABORTED | Errno::EINTR | Errno::EPROTO) => {}
                Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => {
                    self.state = State::Starved { until_ns: now_ns + STARVED_NS };
                    return;
                }
                Ok(None) | Err(_) => break,
            }
        }
        self.listener = None;
        self.state = State::Closed;
    }

    /// When a starved accept may be tried again.
    pub(super) fn next_deadline_ns(&self) -> Option<u64> {
        match self.state {
            State::Starved { until_ns } => Some(until_ns),
            _ => None,
        }
    }
}
