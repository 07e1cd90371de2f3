//! Accepting in the epoll engine: level-triggered, with a bounded burst per listener and turn.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::socket::{SockFlag, accept4};

use super::super::event::{EngineEvent, Key};
use super::{EpollEngine, ReadyKind};
use crate::limits;

/// Maximum number of connections accepted from a listener per turn. The rest follows in the next
/// turn, after these have been handed over.
const BURST_MAX: u32 = 64;

/// The accept of one listener.
#[derive(Debug, Default)]
pub(super) struct Accept {
    key: Key,
    raw: RawFd,
    armed: bool,
    /// Upper bound for descriptors; unknown before the engine is first entered.
    limit: Option<u64>,
    /// The last descriptor accepted was the last one below the limit.
    is_at_limit: bool,
}

impl Accept {
    /// Records the descriptor limit when the engine is entered.
    pub(super) fn note_limit(&mut self) {
        if self.armed && self.limit.is_none() {
            self.limit = Some(limits::descriptor_limits().map_or(u64::MAX, |(soft, _)| soft));
        }
    }

    fn limit(&self) -> u64 {
        self.limit.unwrap_or(u64::MAX)
    }

    /// Whether a descriptor below the limit is free. The kernel assigns the lowest free number, so
    /// after the last one below the limit there is none until some are closed.
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
        let mut event = EpollEvent::new(EpollFlags::EPOLLIN, key.pack(ReadyKind::Accept as u8));
        let added = match self.set.add(listener, event) {
            // It was polled before.
            Err(Errno::EEXIST) => self.set.modify(listener, &mut event),
            added => added,
        };
        if let Err(errno) = added {
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

    /// Accepts until the queue is empty, the turn's burst is used up, or descriptors are exhausted.
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
                    self.happened.push(EngineEvent::Accepted {
                        key,
                        outcome: Ok(socket),
                        armed: true,
                    });
                }
                Err(Errno::EAGAIN) => return,
                // The client disconnected while queued.
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

fn failed(key: Key, errno: Errno) -> EngineEvent {
    EngineEvent::Accepted { key, outcome: Err(errno), armed: false }
}

fn number(descriptor: &OwnedFd) -> u64 {
    u64::try_from(descriptor.as_raw_fd()).unwrap_or(0)
}
