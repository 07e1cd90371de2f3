//! Messages that a descriptor travels with: in which order they go, and what has become of them.
//!
//! Owns the rule that two of them can never be taken for each other. Node takes the last descriptor
//! that it has received for the first message that wants one, so a message that may be read in
//! parts waits until all before it have arrived, and lets none follow until it has itself.

use nix::errno::Errno;
use serde_json::Value;

use super::super::codec::Garbage;
use super::{Action, Attachment, Event, QueryId, Session};

/// What a worker reads at once (libuv's buffer). Of two descriptors, the second must not be sent
/// while the first one's message may lie across the end of such a read: the rest of that message
/// would be read together with the second descriptor, and Node would take it for the first.
pub(super) const READ_BYTES: usize = 64 * 1024;
/// A message with a descriptor that is longer than this may be split by the kernel, which has the
/// same effect as the end of a read.
const UNSPLIT_BYTES_MAX: usize = 16 * 1024;

/// A message with a descriptor whose arrival has not been told.
#[derive(Clone, Debug)]
pub(super) enum Cover {
    Connection { sequence: i64 },
    Answer { key: String, to: i64, data: Value },
    Program,
}

/// What must not be sent yet: it has a socket, or comes after a message that has one.
#[derive(Clone, Debug)]
pub(super) enum Delayed {
    Answer { query: QueryId, frame: Vec<u8>, cover: Cover },
    Message { frame: Vec<u8>, with_socket: bool },
}

impl Session {
    pub(super) fn cover_arrived(&mut self) -> Result<(), Garbage> {
        self.next_cover()?;
        self.send_delayed();
        Ok(())
    }

    pub(super) fn cover_lost(&mut self, now_ns: u64) -> Result<(), Garbage> {
        match self.next_cover()? {
            Cover::Connection { sequence } => {
                if let Some(flight) = self.take_flight(sequence) {
                    self.note_refusal(now_ns);
                    self.actions.push_back(Action::Returned(flight.connection));
                }
            }
            // The server would wait for ever otherwise.
            Cover::Answer { key, to, data } => {
                self.decline(&key, to, &data, Errno::EMFILE);
                self.close(&key);
            }
            Cover::Program => self.tell(Event::SocketLost),
        }
        self.send_delayed();
        Ok(())
    }

    /// The oldest message with a descriptor whose arrival has not been told: they are told in
    /// order.
    fn next_cover(&mut self) -> Result<Cover, Garbage> {
        let cover = self.covers.pop_front();
        let cover = cover.ok_or_else(|| {
            Garbage::new("the arrival of a descriptor is acknowledged that was never sent")
        })?;
        self.solitary &= !self.covers.is_empty();
        Ok(cover)
    }

    pub(super) fn send_delayed(&mut self) {
        while let Some(next) = self.delayed.pop_front() {
            match next {
                Delayed::Answer { query, frame, cover } if self.may_send_cover(frame.len()) => {
                    self.note_cover(frame.len(), cover);
                    let attachment = Some(Attachment::Socket(query));
                    self.actions.push_back(Action::Send { frame, attachment });
                }
                Delayed::Message { frame, with_socket: false } => {
                    self.plain_bytes = self.plain_bytes.saturating_add(frame.len());
                    self.actions.push_back(Action::Deliver { frame, with_socket: false });
                }
                Delayed::Message { frame, .. } if self.may_send_cover(frame.len()) => {
                    self.note_cover(frame.len(), Cover::Program);
                    self.actions.push_back(Action::Deliver { frame, with_socket: true });
                }
                waits => return self.delayed.push_front(waits),
            }
        }
    }

    /// Whether a message of this length with a descriptor may follow those that are under way.
    pub(super) fn may_send_cover(&self, length: usize) -> bool {
        self.covers.is_empty() || !self.solitary && !self.may_be_read_in_parts(length)
    }

    pub(super) fn may_be_read_in_parts(&self, length: usize) -> bool {
        length > UNSPLIT_BYTES_MAX || self.plain_bytes.saturating_add(length) > READ_BYTES
    }

    /// A message with a descriptor goes.
    pub(super) fn note_cover(&mut self, length: usize, cover: Cover) {
        self.solitary = self.may_be_read_in_parts(length);
        self.plain_bytes = 0;
        self.covers.push_back(cover);
    }
}
