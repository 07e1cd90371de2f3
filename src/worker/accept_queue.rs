//! The queue of one listener in a worker, and the descriptor on which callers wait for it.
//!
//! Owns the connections that were handed over for a listener and not yet accepted by the program.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::shared::leaving;
use crate::error::{Error, Result};
use crate::sys::listener::Listener as Socket;
use crate::sys::waker::Waker;

/// Connections accepted from the own socket before the inbox has a turn.
const OWN_IN_A_ROW_MAX: u32 = 16;

/// A socket that the primary handed over.
#[derive(Debug)]
pub(crate) struct HandedOver {
    pub(crate) socket: OwnedFd,
    pub(crate) accepted_ns: u64,
}

/// A queue that can be closed.
#[derive(Debug)]
pub(crate) struct AcceptQueue {
    state: Mutex<State>,
    /// Readable while another look is worthwhile.
    ready: Waker,
    /// Readable while there may be a connection, in the queue or at its source.
    waiting: Epoll,
    closed: AtomicBool,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<HandedOver>,
    /// The socket from which this worker accepts directly.
    own: Option<Socket>,
    /// How often it was asked without a look into the inbox.
    own_in_a_row: u32,
    /// The primary may still hand connections over.
    has_inbox: bool,
    /// The sources are not polled, because no descriptor is free.
    muted: bool,
}

impl State {
    /// No further connections will come.
    fn is_ended(&self) -> bool {
        self.own.is_none() && !self.has_inbox
    }
}

/// The result of looking into a queue.
#[derive(Debug)]
pub(crate) enum Next {
    /// A connection that was handed over.
    HandedOver(HandedOver),
    /// Empty, and no further connections will come.
    End,
    /// Empty; try the worker's own socket.
    AskOwn,
    /// Empty; try the inbox.
    AskInbox,
    /// Empty, and nothing is left to try.
    Nothing,
}

impl AcceptQueue {
    /// A queue fed from this worker's own socket, from the inbox, or from both.
    ///
    /// # Errors
    /// It would be fed from nowhere, or descriptors are exhausted.
    pub(crate) fn new(own: Option<Socket>, inbox: Option<BorrowedFd<'_>>) -> Result<Self> {
        if own.is_none() && inbox.is_none() {
            return Err(leaving());
        }
        let failed = |errno| Error::system("prepare waiting for connections (epoll)", errno);
        let ready = Waker::new()?;
        let waiting = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        waiting.add(&ready, EpollEvent::new(EpollFlags::EPOLLIN, 0)).map_err(failed)?;
        let source = EpollEvent::new(EpollFlags::EPOLLIN, 1);
        if let Some(socket) = &own {
            waiting.add(socket, source).map_err(failed)?;
        }
        if let Some(inbox) = inbox {
            waiting.add(inbox, source).map_err(failed)?;
        }
        let state = State {
            queue: VecDeque::new(),
            own,
            own_in_a_row: 0,
            has_inbox: inbox.is_some(),
            muted: false,
        };
        Ok(Self { state: Mutex::new(state), ready, waiting, closed: AtomicBool::new(false) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds a gate")
    }

    /// Takes a connection or says where to look next. The own socket comes first, unless it has
    /// just been found empty; but what the primary hands over waits for a few connections only.
    pub(crate) fn look(&self, own_is_empty: bool) -> Next {
        let mut state = self.state();
        if let Some(handed) = state.queue.pop_front() {
            return Next::HandedOver(handed);
        }
        if state.is_ended() {
            return Next::End;
        }
        self.ready.clear();
        let has_turn = !state.has_inbox || state.own_in_a_row < OWN_IN_A_ROW_MAX;
        if state.own.is_some() && !own_is_empty && has_turn {
            state.own_in_a_row += 1;
            return Next::AskOwn;
        }
        state.own_in_a_row = 0;
        match state.has_inbox {
            true => Next::AskInbox,
            false => Next::Nothing,
        }
    }

    /// Whether this worker accepts from a socket of its own.
    pub(crate) fn has_own(&self) -> bool {
        self.state().own.is_some()
    }

    /// Appends a connection. Returns it if the queue is closed.
    pub(crate) fn push(&self, handed: HandedOver) -> Option<HandedOver> {
        let mut state = self.state();
        if self.is_closed() {
            return Some(handed);
        }
        state.queue.push_back(handed);
        self.ready.wake();
        None
    }

    /// Accepts from this worker's own socket.
    pub(crate) fn accept_own(&self) -> nix::Result<Option<OwnedFd>> {
        match &self.state().own {
            Some(socket) => socket.accept_now(),
            None => Ok(None),
        }
    }

    /// Wakes all waiters.
    pub(crate) fn kick(&self) {
        self.ready.wake();
    }

    /// Nothing more comes from the own socket, which is closed. Wakes all waiters.
    pub(crate) fn end_own(&self) {
        self.state().own = None;
        self.ready.wake();
    }

    /// Nothing more comes from the inbox. Wakes all waiters.
    pub(crate) fn end_inbox(&self) {
        self.state().has_inbox = false;
        self.ready.wake();
    }

    /// Marks the end: wakes all waiters and closes the own socket.
    pub(crate) fn end(&self) {
        let mut state = self.state();
        state.has_inbox = false;
        state.own = None;
        self.ready.wake();
    }

    /// Closes the queue and returns the connections that were not accepted.
    pub(crate) fn close(&self) -> VecDeque<HandedOver> {
        let mut state = self.state();
        self.closed.store(true, Ordering::Release);
        state.has_inbox = false;
        state.own = None;
        std::mem::take(&mut state.queue)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether the queue is empty and no further connections will come.
    pub(crate) fn is_done(&self) -> bool {
        let state = self.state();
        state.is_ended() && state.queue.is_empty()
    }

    /// Stops or resumes polling the sources.
    pub(crate) fn mute(&self, inbox: Option<BorrowedFd<'_>>, muted: bool) {
        let mut state = self.state();
        if state.muted == muted {
            return;
        }
        state.muted = muted;
        let flags = if muted { EpollFlags::empty() } else { EpollFlags::EPOLLIN };
        let mut event = EpollEvent::new(flags, 1);
        // The sources were added with the queue and stay until the queue closes or drops them.
        if let Some(socket) = &state.own {
            let _ = self.waiting.modify(socket, &mut event);
        }
        if let Some(inbox) = inbox {
            let _ = self.waiting.modify(inbox, &mut event);
        }
    }

    pub(crate) fn is_muted(&self) -> bool {
        self.state().muted
    }
}

impl AsFd for AcceptQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waiting.0.as_fd()
    }
}
