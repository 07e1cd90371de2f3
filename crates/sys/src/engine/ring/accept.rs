//! Accepting connections.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use io_uring::opcode;
use io_uring::types::Fd;
use nix::libc;

use super::Ring;
use super::operation::Operation;
use crate::engine::{EngineEvent, Key, Outcome};

const ACCEPT_FLAGS: i32 = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;

impl Ring {
    /// Accepts from `listener` until cancelled or failed (multishot, 5.19).
    pub fn accept_many(&mut self, key: Key, listener: BorrowedFd<'_>) {
        let entry = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).flags(ACCEPT_FLAGS).build();
        self.push(Operation::Accept, key, entry);
    }

    /// Accepts one connection from `listener`.
    pub fn accept_one(&mut self, key: Key, listener: BorrowedFd<'_>) {
        let none = std::ptr::null_mut();
        let entry = opcode::Accept::new(Fd(listener.as_raw_fd()), none, none.cast())
            .flags(ACCEPT_FLAGS)
            .build();
        self.push(Operation::Accept, key, entry);
    }
}

/// The event of a completion whose outcome is the descriptor of the new socket.
pub(super) fn accepted(key: Key, outcome: Outcome<u32>, result: i32, armed: bool) -> EngineEvent {
    EngineEvent::Accepted { key, outcome: outcome.map(|_| adopt(result)), armed }
}

fn adopt(raw: i32) -> OwnedFd {
    // SAFETY: the accept has just installed this descriptor for us, and its completion is turned
    // into an event once.
    unsafe { OwnedFd::from_raw_fd(raw) }
}
