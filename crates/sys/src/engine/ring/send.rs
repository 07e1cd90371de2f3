//! Sending bytes from buffers that are lent to the ring.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use io_uring::types::Fd;
use io_uring::{opcode, squeue};
use nix::libc;

use super::Ring;
use super::operation::{Operation, place_key};
use crate::engine::{EngineEvent, Key, Outcome};

impl Ring {
    /// Sends `buffer[from..]`; the buffer comes back with the completion.
    ///
    /// # Panics
    /// If `from` is beyond the end of the buffer.
    pub fn send(&mut self, key: Key, socket: BorrowedFd<'_>, buffer: Vec<u8>, from: usize) {
        // MSG_WAITALL makes the kernel continue after a partial send.
        self.push_send(key, socket, buffer, from, libc::MSG_NOSIGNAL | libc::MSG_WAITALL);
    }

    /// Sends `buffer` and closes `socket` in a single entry into the kernel. The last bytes share a
    /// segment with the FIN, which saves a packet on both sides. If the send has to wait for room,
    /// the socket stays open until it is done.
    pub fn send_last(&mut self, key: Key, socket: OwnedFd, buffer: Vec<u8>) {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL | libc::MSG_MORE;
        self.push_send(key, socket.as_fd(), buffer, 0, flags);
        self.close(socket);
    }

    fn push_send(
        &mut self,
        key: Key,
        socket: BorrowedFd<'_>,
        buffer: Vec<u8>,
        from: usize,
        flags: i32,
    ) {
        let bytes = &buffer[from..];
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let address = bytes.as_ptr();
        let place = self.sends.insert((key, buffer));
        let entry = opcode::Send::new(Fd(socket.as_raw_fd()), address, length).flags(flags).build();
        self.push(Operation::Send, place_key(place), entry);
    }

    /// Sends `remark` without blocking. Its outcome is not reported.
    pub fn remark(&mut self, socket: BorrowedFd<'_>, remark: &'static [u8]) {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        let length = u32::try_from(remark.len()).expect("remarks are short");
        let send = opcode::Send::new(Fd(socket.as_raw_fd()), remark.as_ptr(), length).flags(flags);
        let send = send.build().flags(squeue::Flags::SKIP_SUCCESS);
        self.push(Operation::Quiet, Key::default(), send);
    }
}

/// The event of a completion, with the buffer that was lent under `place`.
pub(super) fn sent(ring: &mut Ring, place: usize, outcome: Outcome<u32>) -> Option<EngineEvent> {
    let (key, buffer) = ring.sends.try_remove(place)?;
    Some(EngineEvent::Sent { key, buffer, outcome: outcome.map(|sent| sent as usize) })
}
