//! Waiting until a descriptor is ready.

use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::opcode;
use io_uring::types::Fd;
use nix::libc;

use super::Ring;
use super::operation::Operation;
use crate::engine::Key;

impl Ring {
    /// Reports once when `descriptor` is readable.
    pub fn poll_readable(&mut self, key: Key, descriptor: BorrowedFd<'_>) {
        self.poll(key, descriptor, libc::POLLIN);
    }

    /// Reports once when `descriptor` is writable.
    pub fn poll_writable(&mut self, key: Key, descriptor: BorrowedFd<'_>) {
        self.poll(key, descriptor, libc::POLLOUT);
    }

    fn poll(&mut self, key: Key, descriptor: BorrowedFd<'_>, events: libc::c_short) {
        let events = u32::try_from(events).expect("poll events are positive");
        let entry = opcode::PollAdd::new(Fd(descriptor.as_raw_fd()), events).build();
        self.push(Operation::Poll, key, entry);
    }
}
