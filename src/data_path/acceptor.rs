//! One listening socket: the state of its multishot accept, accepting by hand, and the workers that
//! accept from it.
//!
//! Owns the state of the accept and of a closing listener. Does not look at connections.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use crate::id::{ListenerId, Slot};
use crate::schedule::{Finding, StallDetector};
use crate::sys::engine::{Engine, Key, Outcome};
use crate::sys::listener::Listener;
use crate::sys::{backlog, limits};

use super::handoff::Mark;

/// Connections stolen from one queue at once. The next check takes more.
const STOLEN_A_LOOK_MAX: usize = 512;

/// Pause after accepting fails for lack of descriptors or memory.
const STARVED_NS: u64 = 10_000_000;
/// Connections taken from the backlog when accepting ends; the kernel's own bound on a backlog is
/// far below.
const LAST_ACCEPTS_MAX: usize = 65_536;

/// Connections accepted by hand per turn: a message.
const BY_HAND_MAX: u32 = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AcceptorState {
    Off,
    Armed,
    /// Accepted from by hand, once the watch reports an arrival.
    Watched,
    /// Cancelled; connections may still arrive until the last completion.
    Stopping,
    /// Out of descriptors or memory until this time.
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
    state: AcceptorState,
    /// Descriptors reserved for other uses than accepted connections.
    held_back: u64,
    /// Its position in the table, which completions name.
    place: u32,
    /// Index among the sockets of its listener, if workers have their own sockets.
    pub(super) number: Option<u16>,
    /// Workers that accept from it. While there are any, the primary does not.
    pub(super) owners: Vec<Slot>,
    /// Connections they had accepted at the last check, if they report it.
    pub(super) own_before: Option<u64>,
    /// Connections that waited for them at the last check.
    pub(super) waiting: u32,
    /// When that was.
    pub(super) looked_ns: u64,
    /// Ticks without an accept after which the kernel tells, where it watches the queue.
    pub(super) patience: u64,
    /// The kernel has told that the queue is stuck.
    pub(super) is_told_stuck: bool,
    /// Watches the connections that wait for them.
    pub(super) stall_detector: Option<StallDetector>,
    /// Another socket gets what waits in it, as soon as there is one.
    pub(super) needs_relief: bool,
    /// No process has it.
    pub(super) is_deserted: bool,
    /// The listener is closing.
    pub(super) leaving: bool,
    /// Deliveries to await before everything of this closed listener has been handed over.
    pub(super) marks: Option<Vec<Mark>>,
}

impl Acceptor {
    pub(super) fn new(
        id: ListenerId,
        listener: Arc<Listener>,
        number: Option<u16>,
        place: usize,
        held_back: u64,
    ) -> Self {
        Self {
            id,
            listener: Some(listener),
            state: AcceptorState::Off,
            held_back,
            place: u32::try_from(place).expect("listeners are bounded"),
            number,
            owners: Vec::new(),
            own_before: None,
            waiting: 0,
            looked_ns: 0,
            patience: 1,
            is_told_stuck: false,
            stall_detector: None,
            needs_relief: false,
            is_deserted: false,
            leaving: false,
            marks: None,
        }
    }

    /// The socket, until it is closed.
    pub(super) fn listener(&self) -> Option<&Listener> {
        self.listener.as_deref()
    }

    /// Whether workers accept from it.
    pub(super) fn is_owned(&self) -> bool {
        !self.owners.is_empty()
    }

    /// Whether those workers are stalled.
    pub(super) fn is_stalled(&self) -> bool {
        self.is_owned() && self.stall_detector.as_ref().is_some_and(StallDetector::is_stalled)
    }

    /// Whether those workers should get no connections of other sockets.
    pub(super) fn may_be_stalled(&self) -> bool {
        self.is_owned() && self.stall_detector.as_ref().is_some_and(StallDetector::may_be_stalled)
    }

    /// Whether those workers were stalled, and nothing has arrived since that shows whether they
    /// are.
    pub(super) fn is_doubtful(&self) -> bool {
        self.is_owned() && self.stall_detector.as_ref().is_some_and(StallDetector::is_doubtful)
    }

    /// The next check of the workers' queue.
    pub(super) fn next_look_ns(&self) -> Option<u64> {
        self.stall_detector
            .as_ref()
            .filter(|_| self.is_owned())
            .and_then(StallDetector::next_look_ns)
    }

    /// Whether nothing is checked before the next connection comes.
    pub(super) fn awaits_arrival(&self) -> bool {
        let detector = self.stall_detector.as_ref();
        detector.is_some_and(|one| one.next_look_ns().is_none())
    }

    /// Checks the workers' queue; they have accepted `own` so far, if they report it, and perhaps
    /// everything that the kernel picked them for.
    pub(super) fn look(&mut self, own: Option<u64>, all: bool, now_ns: u64) -> Option<Finding> {
        let before = std::mem::replace(&mut self.own_before, own);
        let has_accepted = own.map(|own| before.is_none_or(|before| before != own));
        let listener = self.listener.as_deref()?;
        // The counters alone never show that a worker has stopped.
        let is_empty = all && has_accepted == Some(true);
        self.looked_ns = now_ns;
        self.waiting = if is_empty { 0 } else { backlog::length(listener).unwrap_or(0) };
        let stall_detector = self.stall_detector.as_mut()?;
        Some(stall_detector.look(self.waiting, has_accepted, now_ns))
    }

    /// Takes at most this many of the workers' waiting connections, oldest first.
    pub(super) fn take_waiting(&mut self, most: usize) -> Vec<OwnedFd> {
        let Some(listener) = &self.listener else { return Vec::new() };
        std::iter::from_fn(|| listener.accept_now().ok().flatten()).take(most).collect()
    }

    /// How long no accept has been seen while connections wait.
    pub(super) fn still_ns(&self, now_ns: u64) -> u64 {
        self.stall_detector.as_ref().map_or(0, |one| one.still_ns(now_ns))
    }

    /// This many of the workers' waiting connections went to others.
    pub(super) fn has_lost(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.waiting = self.waiting.saturating_sub(count);
    }

    /// Steals the workers' waiting connections, oldest first; only one, if its age shows that they
    /// do accept.
    pub(super) fn steal(&mut self, now_ns: u64) -> Vec<OwnedFd> {
        let mut taken = Vec::new();
        let (Some(listener), Some(stall_detector)) = (&self.listener, &mut self.stall_detector)
        else {
            return taken;
        };
        while taken.len() < STOLEN_A_LOOK_MAX {
            match listener.accept_now() {
                Ok(Some(socket)) => {
                    let is_oldest = taken.is_empty();
                    let waited = backlog::waited(&socket).unwrap_or_default();
                    taken.push(socket);
                    let waited_ns = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
                    if is_oldest && !stall_detector.judge(waited_ns, now_ns) {
                        break;
                    }
                }
                // The client closed while it was queued.
                Err(Errno::ECONNABORTED | Errno::EINTR | Errno::EPROTO) => {}
                Ok(None) | Err(_) => break,
            }
        }
        taken
    }

    fn key(&self) -> Key {
        Key { index: self.place, generation: u32::from(self.id.get()) }
    }

    /// Begins accepting, unless it is armed already or must pause.
    pub(super) fn arm(&mut self, ring: &mut Engine, now_ns: u64) {
        match self.state {
            AcceptorState::Off | AcceptorState::Watched => {}
            AcceptorState::Starved { until_ns } if until_ns <= now_ns => {}
            _ => return,
        }
        let Some(listener) = &self.listener else {
            return;
        };
        ring.accept_many(self.key(), listener.as_fd());
        // The kernel uses the descriptor limit in force when it sees the accept.
        limits::with_descriptors_held_back(self.held_back, || ring.submit());
        self.state = AcceptorState::Armed;
    }

    /// Pauses accepting: connections wait in the kernel's backlog.
    pub(super) fn pause(&mut self, ring: &mut Engine) {
        match self.state {
            AcceptorState::Armed => {
                self.state = AcceptorState::Stopping;
                ring.cancel_accept(self.key());
            }
            // No retry while accepting is paused.
            AcceptorState::Starved { .. } => self.state = AcceptorState::Off,
            AcceptorState::Off
            | AcceptorState::Watched
            | AcceptorState::Stopping
            | AcceptorState::Closed => {}
        }
    }

    /// Whether connections may be taken by hand now. Ends a multishot accept first.
    pub(super) fn begin_by_hand(&mut self, ring: &mut Engine, now_ns: u64) -> bool {
        match self.state {
            AcceptorState::Armed => self.pause(ring),
            AcceptorState::Starved { until_ns } if until_ns <= now_ns => {
                self.state = AcceptorState::Off
            }
            _ => {}
        }
        self.is_ready()
    }

    /// Whether accepting by hand may find a connection.
    pub(super) fn is_ready(&self) -> bool {
        self.state == AcceptorState::Off && self.listener.is_some()
    }

    /// Accepts at most this many from the backlog.
    pub(super) fn accept_by_hand(&mut self, most: u32, now_ns: u64) -> Vec<OwnedFd> {
        let mut taken = Vec::new();
        let Some(listener) = &self.listener else { return taken };
        let most = most.min(BY_HAND_MAX) as usize;
        let accept = || {
            while taken.len() < most {
                match listener.accept_now() {
                    Ok(Some(socket)) => taken.push(socket),
                    // The client closed while it was queued.
                    Err(Errno::ECONNABORTED | Errno::EINTR | Errno::EPROTO) => {}
                    Ok(None) => break,
                    Err(_) => return AcceptorState::Starved { until_ns: now_ns + STARVED_NS },
                }
            }
            AcceptorState::Off
        };
        // Reserves as many descriptors as the ring does.
        self.state = limits::with_descriptors_held_back(self.held_back, accept);
        taken
    }

    /// The queue is empty. Returns whether to ask the watch for a notification.
    pub(super) fn await_next(&mut self) -> bool {
        let waits = self.is_ready();
        if waits {
            self.state = AcceptorState::Watched;
        }
        waits
    }

    /// Whether the watch reports when there is something to accept by hand.
    pub(super) fn awaits_by_hand(&self) -> bool {
        self.state == AcceptorState::Watched
    }

    /// The watch reports an arrival.
    pub(super) fn has_come(&mut self) {
        if self.state == AcceptorState::Watched {
            self.state = AcceptorState::Off;
        }
    }

    /// Updates the state from an accept's completion, and returns the socket.
    pub(super) fn accepted(
        &mut self,
        outcome: Outcome<OwnedFd>,
        armed: bool,
        now_ns: u64,
    ) -> Option<OwnedFd> {
        if !armed && self.state != AcceptorState::Closed {
            self.state = AcceptorState::Off;
        }
        match outcome {
            Ok(socket) => return Some(socket),
            // Cancelled on purpose, or the client closed while it was queued (`accept(2)`).
            Err(Errno::ECANCELED | Errno::ECONNABORTED | Errno::EINTR | Errno::EPROTO) => {}
            // Out of descriptors or memory: the client waits in the backlog, and arming again at
            // once would fail at once.
            Err(_) if !armed => {
                self.state = AcceptorState::Starved { until_ns: now_ns + STARVED_NS }
            }
            Err(_) => {}
        }
        None
    }

    /// Whether nothing is armed, so that the listener can be closed.
    pub(super) fn is_quiet(&self) -> bool {
        !matches!(self.state, AcceptorState::Armed | AcceptorState::Stopping)
    }

    /// Whether the listener is closed.
    pub(super) fn is_closed(&self) -> bool {
        self.state == AcceptorState::Closed
    }

    /// Closes the listener here, and leaves what waits in it to the workers that have it.
    pub(super) fn leave_behind(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.turn_away();
        }
        self.state = AcceptorState::Closed;
    }

    /// Accepts what waits in the backlog and closes the listener. If descriptors run out, it stays
    /// open and must be closed again.
    pub(super) fn close(&mut self, now_ns: u64, mut take: impl FnMut(OwnedFd)) {
        let Some(listener) = &self.listener else {
            return;
        };
        if self.number.is_some() {
            // Workers keep it open until they are told to close it; connections that arrive in
            // between would be reset then.
            listener.turn_away();
        }
        for _ in 0..LAST_ACCEPTS_MAX {
            match listener.accept_now() {
                Ok(Some(socket)) => take(socket),
                // The client closed while it was queued.
                Err(Errno::ECONNABORTED | Errno::EINTR | Errno::EPROTO) => {}
                Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => {
                    self.state = AcceptorState::Starved { until_ns: now_ns + STARVED_NS };
                    return;
                }
                Ok(None) | Err(_) => break,
            }
        }
        self.listener = None;
        self.state = AcceptorState::Closed;
    }

    /// When a starved accept may be retried.
    pub(super) fn next_deadline_ns(&self) -> Option<u64> {
        match self.state {
            AcceptorState::Starved { until_ns } => Some(until_ns),
            _ => None,
        }
    }
}
