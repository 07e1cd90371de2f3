//! The connections of one listener in a worker, and where they come from.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::inbox::HandedOver;
use super::wait_set::{WaitSet, Waiting};
use crate::error::Result;
use crate::protocol::worker_end::ClaimPace;
use crate::sys::backlog;
use crate::sys::listener::Listener as Socket;

/// Connections accepted from the own socket before the inbox has a turn.
const OWN_IN_A_ROW_MAX: u32 = 16;

/// A queue fed from this worker's own socket, from the inbox, or from both.
#[derive(Debug)]
pub(super) struct AcceptQueue {
    /// What the primary handed over and the program has not accepted.
    pub(super) waiting: VecDeque<HandedOver>,
    pub(super) pace: ClaimPace,
    wait_set: WaitSet,
    /// The socket from which this worker accepts directly.
    own: Option<Socket>,
    /// How often it was asked without a look into the inbox.
    own_in_a_row: u32,
    /// The primary may still hand connections over.
    has_inbox: bool,
}

/// Where to look for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Own,
    Inbox,
    /// Nothing is left to try.
    Neither,
}

impl AcceptQueue {
    pub(super) fn new(own: Option<Socket>, inbox: Option<BorrowedFd<'_>>) -> Result<Self> {
        let wait_set = WaitSet::at(own.as_ref().map(AsFd::as_fd).into_iter().chain(inbox))?;
        Ok(Self {
            waiting: VecDeque::new(),
            pace: ClaimPace::default(),
            wait_set,
            own,
            own_in_a_row: 0,
            has_inbox: inbox.is_some(),
        })
    }

    pub(super) fn wait_set(&self) -> Waiting {
        self.wait_set.waiting()
    }

    /// Whether callers wait for this queue.
    pub(super) fn is(&self, waiting: &Waiting) -> bool {
        self.wait_set.is(waiting)
    }

    /// No further connections will come.
    pub(super) fn has_ended(&self) -> bool {
        self.own.is_none() && !self.has_inbox
    }

    /// Where to look next. The own socket comes first, unless it has just been found empty; but
    /// what the primary hands over waits for a few connections only.
    pub(super) fn next_source(&mut self, own_is_empty: bool) -> Source {
        let has_turn = !self.has_inbox || self.own_in_a_row < OWN_IN_A_ROW_MAX;
        if self.own.is_some() && !own_is_empty && has_turn {
            self.own_in_a_row += 1;
            return Source::Own;
        }
        self.own_in_a_row = 0;
        match self.has_inbox {
            true => Source::Inbox,
            false => Source::Neither,
        }
    }

    /// Whether this worker accepts from its own socket.
    pub(super) fn has_own(&self) -> bool {
        self.own.is_some()
    }

    /// Accepts from this worker's own socket.
    pub(super) fn accept_own(&self) -> nix::Result<Option<OwnedFd>> {
        self.own.as_ref().map_or(Ok(None), Socket::accept_now)
    }

    /// The program has claimed a connection of the own socket. What else waits there can go to
    /// other workers where these have inboxes.
    pub(super) fn note_own_claim(&mut self, now_ns: u64) {
        if self.has_inbox {
            let own = self.own.as_ref();
            let more_wait = || own.and_then(|own| backlog::length(own).ok()).is_some_and(|n| n > 0);
            self.pace.on_claim_own(now_ns, more_wait);
        }
    }

    /// Nothing more comes from the own socket, which is closed.
    pub(super) fn end_own(&mut self) {
        self.own = None;
        self.wait_set.open();
    }

    /// Nothing more comes from the inbox.
    pub(super) fn end_inbox(&mut self) {
        self.has_inbox = false;
        self.wait_set.open();
    }

    /// Wakes all callers.
    pub(super) fn wake(&mut self) {
        self.wait_set.open();
    }

    /// Wakes all callers once more, also those that wait for edges.
    pub(super) fn wake_again(&mut self) {
        self.wait_set.renew();
    }

    /// Nothing is there: callers wait for the sources, or without room until they are woken.
    pub(super) fn pend(&mut self, inbox: Option<BorrowedFd<'_>>, has_room: bool) {
        if self.wait_set.set_muted(!has_room) {
            let sources = self.own.as_ref().map(AsFd::as_fd).into_iter().chain(inbox);
            sources.for_each(|source| self.wait_set.mute(source, !has_room));
        }
        self.wait_set.close();
    }
}
