//! The queue of one listener in a worker, and the descriptor on which callers wait for it.
//!
//! Owns the connections that were handed over for a listener and not yet accepted by the program.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::error::{Error, Result};
use crate::sys::listener::Listener as Socket;
use crate::sys::waker::Waker;

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
    /// No further connections will come.
    ended: bool,
    /// The source is not polled, because no descriptor is free.
    muted: bool,
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
}

impl AcceptQueue {
    /// A queue fed from the inbox.
    pub(crate) fn at_inbox(inbox: BorrowedFd<'_>) -> Result<Self> {
        Self::new(None, Some(inbox))
    }

    /// A queue fed by accepting from a socket of this worker.
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

    /// Takes a connection or says where to look next.
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

    /// Marks the end: wakes all waiters and closes the own socket.
    pub(crate) fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        state.own = None;
        self.ready.wake();
    }

    /// Closes the queue and returns the connections that were not accepted.
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

    /// Whether the queue is empty and no further connections will come.
    pub(crate) fn is_done(&self) -> bool {
        let state = self.state();
        state.ended && state.queue.is_empty()
    }

    /// Stops or resumes polling the source.
    pub(crate) fn mute(&self, source: Option<BorrowedFd<'_>>, muted: bool) {
        let mut state = self.state();
        if state.muted == muted {
            return;
        }
        state.muted = muted;
        let flags = if muted { EpollFlags::empty() } else { EpollFlags::EPOLLIN };
        let mut event = EpollEvent::new(flags, 1);
        // The source was added with the queue and stays until the queue closes or drops it.
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
