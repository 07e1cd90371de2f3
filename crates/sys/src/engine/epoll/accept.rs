//! Accepting for the epoll engine: level-triggered, a bounded burst from each listener in a turn.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::socket::{SockFlag, accept4};

use super::super::event::{Event, Key};
use super::{EpollEngine, Kind};
use crate::limits;

/// Connections accepted from a listener in one turn; the rest follows in the next, after these
/// have been handed over.
const BURST_MAX: u32 = 64;

/// The accept of one listener.
#[derive(Debug, Default)]
pub(super) struct Accept {
    key: Key,
    raw: RawFd,
    armed: bool,
    /// Descriptors are below this number; not known before the engine has been entered.
    limit: Option<u64>,
    /// The last descriptor was the last one below the limit.
    is_at_limit: bool,
}

impl Accept {
    /// The engine is entered: from now on this moment's limit counts.
    pub(super) fn note_limit(&mut self) {
        if self.armed && self.limit.is_none() {
            self.limit = Some(limits::descriptor_limits().map_or(u64::MAX, |(soft, _)| soft));
        }
    }

    fn limit(&self) -> u64 {
        self.limit.unwrap_or(u64::MAX)
    }

    /// Whether a descriptor below the limit is to be had. The kernel gives the lowest that is
    /// free, so after one short of the limit there is none until some have been closed.
    fn has_room(&mut self) -> bool {
        if self.is_at_limit {
            // SAFETY: the caller of the engine keeps the listener open while its accept is armed.
            let listener = unsafe { BorrowedFd::borrow_raw(self.raw) };
            let lowest = listener.try_clone_to_owned();
            self.is_at_limit = !lowest.is_ok_and(|lowest| number(&lowest) < self.limit());
        }
        !self.is_at_limit
    }
}

impl EpollEngine {
    pub(in super::super) fn accept_many(&mut self, key: Key, listener: BorrowedFd<'_>) {
        let place = key.index as usize;
        if place >= self.accepts.len() {
            self.accepts.resize_with(place + 1, Accept::default);
        }
        let event = EpollEvent::new(EpollFlags::EPOLLIN, key.pack(Kind::Accept as u8));
        if let Err(errno) = self.set.add(listener, event) {
            return self.happened.push(failed(key, errno));
        }
        let accept = &mut self.accepts[place];
        let is_at_limit = accept.is_at_limit && accept.key == key;
        *accept = Accept { key, raw: listener.as_raw_fd(), armed: true, limit: None, is_at_limit };
        self.unentered = true;
    }

    pub(in super::super) fn cancel_accept(&mut self, key: Key) {
        let accept = self.accepts.get(key.index as usize);
        if accept.is_some_and(|accept| accept.armed && accept.key == key) {
            self.end_accept(key, Errno::ECANCELED);
        }
    }

    /// Takes what waits, until there is nothing, the turn is over, or there is no room.
    pub(super) fn on_accept_ready(&mut self, key: Key) {
        for _ in 0..BURST_MAX {
            let Some(accept) = self.accepts.get_mut(key.index as usize) else { return };
            if !accept.armed || accept.key != key {
                return;
            }
            if !accept.has_room() {
                return self.end_accept(key, Errno::EMFILE);
            }
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            match accept4(accept.raw, flags) {
                Ok(raw) => {
                    // SAFETY: accept4 has just installed this descriptor for us.
                    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
                    accept.is_at_limit = number(&socket).saturating_add(1) >= accept.limit();
                    self.happened.push(Event::Accepted { key, outcome: Ok(socket), armed: true });
                }
                Err(Errno::EAGAIN) => return,
                // The client gave up while it was queued.
                Err(Errno::ECONNABORTED | Errno::EINTR | Errno::EPROTO) => {}
                Err(errno) => return self.end_accept(key, errno),
            }
        }
    }

    fn end_accept(&mut self, key: Key, errno: Errno) {
        let accept = &mut self.accepts[key.index as usize];
        accept.armed = false;
        // SAFETY: the caller of the engine keeps the listener open until this event.
        let listener = unsafe { BorrowedFd::borrow_raw(accept.raw) };
        let _ = self.set.delete(listener);
        self.happened.push(failed(key, errno));
    }
}

fn failed(key: Key, errno: Errno) -> Event {
    Event::Accepted { key, outcome: Err(errno), armed: false }
}

fn number(descriptor: &OwnedFd) -> u64 {
    u64::try_from(descriptor.as_raw_fd()).unwrap_or(0)
}
