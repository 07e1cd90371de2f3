//! Receiving messages with descriptors.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use io_uring::types::{Fd, RecvMsgOut};
use io_uring::{cqueue, opcode};
use nix::libc;

use super::Ring;
use super::operation::Operation;
use crate::engine::{Key, Opened, Outcome, SealedMessage};
use crate::fdpass::{ControlSpace, adopt_descriptors};

impl Ring {
    /// Receives messages with descriptors until cancelled, failed, or out of buffers.
    ///
    /// # Panics
    /// If the ring was not made `with_message_buffers`.
    pub fn receive_messages(&mut self, key: Key, socket: BorrowedFd<'_>) {
        let group = self.messages_in.as_ref().expect("the ring has message buffers").group();
        let flags = u32::try_from(libc::MSG_CMSG_CLOEXEC).expect("message flags are positive");
        let header: *const libc::msghdr = &raw const *self.inbox_header;
        let entry =
            opcode::RecvMsgMulti::new(Fd(socket.as_raw_fd()), header, group).flags(flags).build();
        self.push(Operation::ReceiveMessage, key, entry);
    }

    /// Takes the payload and descriptors of a message. Its buffer stays unused until the next
    /// [`Ring::offer_messages`].
    pub fn open_message(
        &mut self,
        sealed: SealedMessage,
        payload: &mut Vec<u8>,
        descriptors: &mut Vec<OwnedFd>,
    ) -> Opened {
        let Some(group) = &mut self.messages_in else {
            return Opened { truncated: true };
        };
        let buffer = group.bytes(&sealed.buffer, sealed.length as usize);
        let mut truncated = true;
        if let Ok(message) = RecvMsgOut::parse(buffer, &self.inbox_header) {
            payload.extend_from_slice(message.payload_data());
            truncated = message.is_control_data_truncated() || message.is_payload_truncated();
            let mut control = ControlSpace::default();
            let length = message.control_data().len().min(control.0.len());
            control.0[..length].copy_from_slice(&message.control_data()[..length]);
            // SAFETY: the kernel wrote this for a message of a receive-message operation, and a
            // `SealedMessage` is consumed by being opened.
            unsafe { adopt_descriptors(&control.0[..length], descriptors) };
        }
        group.hold_back(sealed.buffer);
        Opened { truncated }
    }
}

/// The message of a completion, still sealed; `None` once the peer is closed.
pub(super) fn message_received(
    ring: &mut Ring,
    outcome: Outcome<u32>,
    flags: u32,
) -> Outcome<Option<SealedMessage>> {
    let number = cqueue::buffer_select(flags);
    let (Some(group), Some(number)) = (ring.messages_in.as_mut(), number) else {
        return outcome.map(|_| None);
    };
    let buffer = group.take(number);
    match outcome {
        Ok(length) if !is_end_of_messages(group.bytes(&buffer, length as usize)) => {
            Ok(Some(SealedMessage { buffer, length }))
        }
        outcome => {
            group.hold_back(buffer);
            outcome.map(|_| None)
        }
    }
}

/// A closed peer is reported by a header without payload and control data. Its four words are the
/// lengths of name, control data and payload, and the flags (`struct io_uring_recvmsg_out`).
fn is_end_of_messages(buffer: &[u8]) -> bool {
    buffer.len() < 16 || buffer[4..12].iter().all(|byte| *byte == 0)
}
