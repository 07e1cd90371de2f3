//! The descriptor on which the callers of one listener wait.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::error::{Error, Result};
use crate::sys::waker::Waker;

/// The part that belongs to the owner of the connections, who holds a lock to use it.
#[derive(Debug)]
pub(super) struct WaitSet {
    waiting: Arc<Epoll>,
    ready: Waker,
    /// Callers are told to look, whether or not a source has something.
    is_open: bool,
    /// The sources are not polled, because no descriptor is free.
    is_muted: bool,
}

/// The part on which callers wait without a lock: readable while it is worth looking.
#[derive(Clone, Debug)]
pub(super) struct Waiting(Arc<Epoll>);

impl WaitSet {
    /// A set that is readable when one of `sources` is.
    pub(super) fn at<'a>(sources: impl Iterator<Item = BorrowedFd<'a>>) -> Result<Self> {
        let failed = |errno| Error::system("prepare waiting for connections (epoll)", errno);
        let ready = Waker::new()?;
        let waiting = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        waiting.add(&ready, EpollEvent::new(EpollFlags::EPOLLIN, 0)).map_err(failed)?;
        for source in sources {
            waiting.add(source, EpollEvent::new(EpollFlags::EPOLLIN, 1)).map_err(failed)?;
        }
        Ok(Self { waiting: Arc::new(waiting), ready, is_open: false, is_muted: false })
    }

    pub(super) fn waiting(&self) -> Waiting {
        Waiting(Arc::clone(&self.waiting))
    }

    /// Whether callers wait for this set.
    pub(super) fn is(&self, waiting: &Waiting) -> bool {
        Arc::ptr_eq(&self.waiting, &waiting.0)
    }

    /// Wakes every caller, until `close`.
    pub(super) fn open(&mut self) {
        if !std::mem::replace(&mut self.is_open, true) {
            self.ready.wake();
        }
    }

    /// Wakes every caller once more, also those that wait for edges.
    pub(super) fn renew(&mut self) {
        self.is_open = true;
        self.ready.wake();
    }

    /// Leaves only the sources to wake callers.
    pub(super) fn close(&mut self) {
        if std::mem::take(&mut self.is_open) {
            self.ready.clear();
        }
    }

    /// Whether this changes whether the sources are polled, each of which is then to be muted or
    /// not.
    pub(super) fn set_muted(&mut self, is_muted: bool) -> bool {
        std::mem::replace(&mut self.is_muted, is_muted) != is_muted
    }

    /// Stops or resumes polling a source.
    pub(super) fn mute(&self, source: BorrowedFd<'_>, is_muted: bool) {
        let flags = if is_muted { EpollFlags::empty() } else { EpollFlags::EPOLLIN };
        // It was added with the set, and stays in it while it is open.
        let _ = self.waiting.modify(source, &mut EpollEvent::new(flags, 1));
    }
}

impl Waiting {
    /// Makes it readable while another source is, which never is muted.
    pub(super) fn add(&self, source: &impl AsFd) -> nix::Result<()> {
        self.0.add(source, EpollEvent::new(EpollFlags::EPOLLIN, 2))
    }
}

impl AsFd for Waiting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}
