//! A message with descriptors on its way out, in memory that stays put until it is sent.

use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::libc;

use crate::fdpass::{ControlSpace, DESCRIPTORS_PER_MESSAGE_MAX, empty_header, write_rights};

/// Most bytes of payload in one message.
pub const PAYLOAD_BYTES_MAX: usize = 768;

/// Payload and descriptors of one message. The descriptors are this process's copies: the engine
/// closes them when the message has gone; otherwise the owner takes them out again.
#[derive(Debug)]
pub struct OutgoingMessage {
    /// The payload, at most [`PAYLOAD_BYTES_MAX`] bytes.
    payload: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    control: ControlSpace,
    part: libc::iovec,
    header: libc::msghdr,
}

// SAFETY: the raw pointers point into this very value and are only set while an engine owns it.
unsafe impl Send for OutgoingMessage {}

impl Default for OutgoingMessage {
    fn default() -> Self {
        Self {
            payload: Vec::with_capacity(PAYLOAD_BYTES_MAX),
            descriptors: Vec::with_capacity(DESCRIPTORS_PER_MESSAGE_MAX),
            control: ControlSpace::default(),
            part: libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 },
            header: empty_header(),
        }
    }
}

impl OutgoingMessage {
    /// Whether no further descriptor fits.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.descriptors.len() >= DESCRIPTORS_PER_MESSAGE_MAX
    }

    /// How many descriptors it carries.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        self.descriptors.len()
    }

    /// The payload, to be written by the caller.
    pub fn payload_mut(&mut self) -> &mut Vec<u8> {
        &mut self.payload
    }

    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Adds a descriptor.
    ///
    /// # Errors
    /// The message is full: the descriptor comes back.
    pub fn push(&mut self, descriptor: OwnedFd) -> Result<(), OwnedFd> {
        if self.is_full() {
            return Err(descriptor);
        }
        self.descriptors.push(descriptor);
        Ok(())
    }

    /// Takes the descriptors of a message that has not gone out, in order, and empties it for its
    /// next use.
    pub fn drain(&mut self) -> std::vec::Drain<'_, OwnedFd> {
        self.payload.clear();
        self.descriptors.drain(..)
    }

    /// The descriptors as the kernel knows them.
    pub(crate) fn raw_descriptors(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.descriptors.iter().map(AsRawFd::as_raw_fd)
    }

    /// Empties the message of descriptors that the kernel has closed.
    pub(crate) fn forget_descriptors(&mut self) {
        self.descriptors.drain(..).for_each(|descriptor| {
            let _ = descriptor.into_raw_fd();
        });
    }

    /// Sends it without waiting for room, and closes its descriptors if it has gone.
    ///
    /// # Errors
    /// EAGAIN when the socket is full; EPIPE when the other end is closed; ETOOMANYREFS when too
    /// many descriptors of this user are under way.
    pub(crate) fn send(&mut self, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        let header = self.seal();
        loop {
            // SAFETY: the header points at parts of this very value, which does not move.
            let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), header, flags) };
            match Errno::result(sent) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
                Ok(_) => break,
            }
        }
        self.descriptors.clear();
        Ok(())
    }

    /// Points the header at the parts, which must not move from here to the completion.
    pub(crate) fn seal(&mut self) -> *const libc::msghdr {
        let control_bytes = write_rights(&mut self.control, &self.descriptors);
        self.part =
            libc::iovec { iov_base: self.payload.as_mut_ptr().cast(), iov_len: self.payload.len() };
        self.header = empty_header();
        self.header.msg_iov = &raw mut self.part;
        self.header.msg_iovlen = 1;
        self.header.msg_control = self.control.0.as_mut_ptr().cast();
        self.header.msg_controllen = control_bytes;
        &raw const self.header
    }
}
