//! One listener's queue in a worker, and the descriptor by which others wait at it.
//!
//! Owns what has been handed over for a listener and not been accepted by the program.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::error::{Error, Result};
use crate::sys::listener::Listener as Socket;
use crate::sys::waker::Waker;

/// A socket that the primary has handed over.
#[derive(Debug)]
pub(crate) struct HandedOver {
    pub(crate) socket: OwnedFd,
    pub(crate) accepted_ns: u64,
}

/// A queue with a door that can be closed.
#[derive(Debug)]
pub(crate) struct AcceptQueue {
    state: Mutex<State>,
    /// Readable while looking again is worth it.
    ready: Waker,
    /// Readable while there may be a connection, here or where they come from.
    waiting: Epoll,
    closed: AtomicBool,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<HandedOver>,
    /// What this worker accepts from by itself.
    own: Option<Socket>,
    /// Nothing more will come.
    ended: bool,
    /// The source is not waited for, because there is no descriptor free.
    muted: bool,
}

/// What a look at a gate finds.
#[derive(Debug)]
pub(crate) enum Next {
    /// A connection that had been handed over.
    HandedOver(HandedOver),
    /// Nothing, and nothing will come.
    End,
    /// Nothing so far; ask the socket that this worker has of its own.
    AskOwn,
    /// Nothing so far; ask the inbox.
    AskInbox,
}

impl AcceptQueue {
    /// A gate whose connections come from the inbox.
    pub(crate) fn at_inbox(inbox: BorrowedFd<'_>) -> Result<Self> {
        Self::new(None, Some(inbox))
    }

    /// A gate whose connections this worker accepts by itself.
    pub(crate) fn of_own(socket: Socket) -> Result<Self> {
        Self::new(Some(socket), None)
    }

    fn new(own: Option<Socket>, inbox: Option<BorrowedFd<'_>>) -> Result<Self> {
        let failed = |errno| Error::system("prepare waiting for connections (epoll)", errno);
        let ready = Waker::new()?;
        let waiting = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        waiting.add(&ready, EpollEvent::new(EpollFlags::EPOLLIN, 0)).map_err(failed)?;
        let source = EpollEvent::new(EpollFlags::EPOLLIN, 1);
        match (&own, inbox) {
            (Some(socket), _) => waiting.add(socket, source).map_err(failed)?,
            (None, Some(inbox)) => waiting.add(inbox, source).map_err(failed)?,
            (None, None) => {}
        }
        let state = State { queue: VecDeque::new(), own, ended: false, muted: false };
        Ok(Self { state: Mutex::new(state), ready, waiting, closed: AtomicBool::new(false) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds a gate")
    }

    /// Looks for a connection.
    pub(crate) fn look(&self) -> Next {
        let mut state = self.state();
        if let Some(handed) = state.queue.pop_front() {
            return Next::HandedOver(handed);
        }
        if state.ended {
            return Next::End;
        }
        self.ready.clear();
        match state.own {
            Some(_) => Next::AskOwn,
            None => Next::AskInbox,
        }
    }

    /// Puts a connection in. Gives it back if the gate is closed.
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

    /// Has everybody who waits look again.
    pub(crate) fn kick(&self) {
        self.ready.wake();
    }

    /// Nothing more will come: who waits is told. An own socket is closed.
    pub(crate) fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        state.own = None;
        self.ready.wake();
    }

    /// Closes the gate: gives what was handed over and not accepted.
    pub(crate) fn close(&self) -> VecDeque<HandedOver> {
        let mut state = self.state();
        self.closed.store(true, Ordering::Release);
        state.ended = true;
        state.own = None;
        std::mem::take(&mut state.queue)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Nothing is left to be accepted, and nothing will come.
    pub(crate) fn is_done(&self) -> bool {
        let state = self.state();
        state.ended && state.queue.is_empty()
    }

    /// Stops waiting for the source, or begins again.
    pub(crate) fn mute(&self, source: Option<BorrowedFd<'_>>, muted: bool) {
        let mut state = self.state();
        if state.muted == muted {
            return;
        }
        state.muted = muted;
        let flags = if muted { EpollFlags::empty() } else { EpollFlags::EPOLLIN };
        let mut event = EpollEvent::new(flags, 1);
        // The source was added with the gate and stays until the gate goes, or is closed by it.
        let _ = match (&state.own, source) {
            (Some(socket), _) => self.waiting.modify(socket, &mut event),
            (None, Some(inbox)) => self.waiting.modify(inbox, &mut event),
            (None, None) => Ok(()),
        };
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
