//! Ordering of messages with descriptors, and their confirmation.
//!
//! Owns the rule that keeps each descriptor with its message. Node assigns the last descriptor
//! received to the first message that expects one. A message that may be read in parts therefore
//! waits until all earlier ones have arrived, and no other follows until it has arrived itself.

use nix::errno::Errno;
use serde_json::Value;

use super::super::codec::Garbage;
use super::{Action, Attachment, QueryId, Session, SessionEvent};

/// Size of libuv's read buffer. While the message of one descriptor may extend across the end of a
/// read, a second descriptor must not be sent: the rest of the first message would be read together
/// with the second descriptor, and Node would assign that to the first message.
pub(super) const READ_BYTES: usize = 64 * 1024;
/// The kernel may split a longer message with a descriptor, with the same effect as the end of a
/// read.
const UNSPLIT_BYTES_MAX: usize = 16 * 1024;

/// A message with a descriptor whose arrival has not been confirmed.
#[derive(Clone, Debug)]
pub(super) enum UnconfirmedFd {
    Connection { sequence: i64 },
    Answer { key: String, to: i64, data: Value },
    Program,
}

/// A message that must wait: it has a socket, or follows one that has.
#[derive(Clone, Debug)]
pub(super) enum Delayed {
    Answer { query: QueryId, frame: Vec<u8>, fd: UnconfirmedFd },
    Message { frame: Vec<u8>, with_socket: bool },
}

impl Session {
    pub(super) fn on_fd_arrived(&mut self) -> Result<(), Garbage> {
        self.next_unconfirmed()?;
        self.send_delayed();
        Ok(())
    }

    pub(super) fn on_fd_lost(&mut self, now_ns: u64) -> Result<(), Garbage> {
        match self.next_unconfirmed()? {
            UnconfirmedFd::Connection { sequence } => {
                if let Some(flight) = self.take_flight(sequence) {
                    self.on_refusal(now_ns);
                    self.actions.push_back(Action::Returned(flight.connection));
                }
            }
            // Otherwise the server would wait forever.
            UnconfirmedFd::Answer { key, to, data } => {
                self.decline(&key, to, &data, Errno::EMFILE);
                self.close(&key);
            }
            UnconfirmedFd::Program => self.emit(SessionEvent::SocketLost),
        }
        self.send_delayed();
        Ok(())
    }

    /// The oldest message with a descriptor that has not been confirmed; confirmations come in
    /// order.
    fn next_unconfirmed(&mut self) -> Result<UnconfirmedFd, Garbage> {
        let fd = self.unconfirmed_fds.pop_front();
        let fd = fd.ok_or_else(|| {
            Garbage::new("the arrival of a descriptor is acknowledged that was never sent")
        })?;
        self.solitary &= !self.unconfirmed_fds.is_empty();
        Ok(fd)
    }

    pub(super) fn send_delayed(&mut self) {
        while let Some(next) = self.delayed.pop_front() {
            match next {
                Delayed::Answer { query, frame, fd } if self.may_send_cover(frame.len()) => {
                    self.record_fd(frame.len(), fd);
                    let attachment = Some(Attachment::Socket(query));
                    self.actions.push_back(Action::Send { frame, attachment });
                }
                Delayed::Message { frame, with_socket: false } => {
                    self.plain_bytes = self.plain_bytes.saturating_add(frame.len());
                    self.actions.push_back(Action::Deliver { frame, with_socket: false });
                }
                Delayed::Message { frame, .. } if self.may_send_cover(frame.len()) => {
                    self.record_fd(frame.len(), UnconfirmedFd::Program);
                    self.actions.push_back(Action::Deliver { frame, with_socket: true });
                }
                waits => return self.delayed.push_front(waits),
            }
        }
    }

    /// Whether a message of this length with a descriptor may follow those in flight.
    pub(super) fn may_send_cover(&self, length: usize) -> bool {
        self.unconfirmed_fds.is_empty() || !self.solitary && !self.may_be_read_in_parts(length)
    }

    pub(super) fn may_be_read_in_parts(&self, length: usize) -> bool {
        length > UNSPLIT_BYTES_MAX || self.plain_bytes.saturating_add(length) > READ_BYTES
    }

    /// Records that a message with a descriptor is sent.
    pub(super) fn record_fd(&mut self, length: usize, fd: UnconfirmedFd) {
        self.solitary = self.may_be_read_in_parts(length);
        self.plain_bytes = 0;
        self.unconfirmed_fds.push_back(fd);
    }
}
