//! An outgoing message with descriptors, in memory that does not move until it is sent.

use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::libc;

use crate::fdpass::{ControlSpace, DESCRIPTORS_PER_MESSAGE_MAX, empty_header, write_rights};

/// Maximum length of a payload in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 768;

/// Payload and descriptors of one message. The descriptors are this process's copies: the engine
/// closes them once the message is sent; otherwise the owner takes them out again.
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

    /// Number of descriptors.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        self.descriptors.len()
    }

    /// The payload, for writing.
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
    /// The message is full; the descriptor is returned.
    pub fn push(&mut self, descriptor: OwnedFd) -> Result<(), OwnedFd> {
        if self.is_full() {
            return Err(descriptor);
        }
        self.descriptors.push(descriptor);
        Ok(())
    }

    /// Takes the descriptors of an unsent message, in order, and empties it for reuse.
    pub fn drain(&mut self) -> std::vec::Drain<'_, OwnedFd> {
        self.payload.clear();
        self.descriptors.drain(..)
    }

    /// The raw descriptors.
    pub(crate) fn raw_descriptors(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.descriptors.iter().map(AsRawFd::as_raw_fd)
    }

    /// Removes descriptors that the kernel has closed.
    pub(crate) fn forget_descriptors(&mut self) {
        self.descriptors.drain(..).for_each(|descriptor| {
            let _ = descriptor.into_raw_fd();
        });
    }

    /// Sends it without blocking, and closes its descriptors on success.
    ///
    /// # Errors
    /// EAGAIN when the socket is full; EPIPE when the peer is closed; ETOOMANYREFS when this user
    /// has too many descriptors in flight.
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

    /// Points the header at the parts, which must not move until the completion.
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
