//! Closing descriptors.

use std::os::fd::{IntoRawFd, OwnedFd};

use io_uring::types::Fd;
use io_uring::{opcode, squeue};

use super::Ring;
use super::operation::Operation;
use crate::engine::Key;

impl Ring {
    /// Closes a descriptor in the next entry into the kernel, which saves a system call.
    pub fn close(&mut self, descriptor: OwnedFd) {
        let entry = opcode::Close::new(Fd(descriptor.into_raw_fd()))
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS);
        self.push(Operation::Quiet, Key::default(), entry);
    }
}
