//! Receiving bytes into the ring's buffers.

use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::types::Fd;
use io_uring::{cqueue, opcode, squeue};

use super::operation::Operation;
use super::{DATA_GROUP, Ring};
use crate::engine::{Chunk, Key, Outcome};

impl Ring {
    /// Receives once.
    pub fn receive_once(&mut self, key: Key, socket: BorrowedFd<'_>) {
        let length = DATA_GROUP.buffer_bytes;
        let entry = opcode::Recv::new(Fd(socket.as_raw_fd()), std::ptr::null_mut(), length)
            .buf_group(DATA_GROUP.group)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        self.push(Operation::Receive, key, entry);
    }

    /// Receives until cancelled, failed, or out of buffers (multishot, 6.0).
    pub fn receive_many(&mut self, key: Key, socket: BorrowedFd<'_>) {
        let entry = opcode::RecvMulti::new(Fd(socket.as_raw_fd()), DATA_GROUP.group).build();
        self.push(Operation::Receive, key, entry);
    }
}

/// The bytes of a completion, if it has any; a buffer without bytes goes back to the kernel.
pub(super) fn received(
    ring: &mut Ring,
    outcome: Outcome<u32>,
    flags: u32,
) -> Outcome<Option<Chunk>> {
    let buffer = cqueue::buffer_select(flags)
        .and_then(|number| ring.data.as_mut().map(|group| group.take(number)));
    match (outcome, buffer) {
        (Ok(length @ 1..), Some(buffer)) => Ok(Some(Chunk { buffer, length })),
        (outcome, Some(buffer)) => {
            if let Some(group) = &mut ring.data {
                group.recycle(buffer);
            }
            outcome.map(|_| None)
        }
        (outcome, None) => outcome.map(|_| None),
    }
}
