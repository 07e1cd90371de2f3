//! Sending a message with descriptors and closing them, in one chain of entries.

use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::types::Fd;
use io_uring::{opcode, squeue};
use nix::libc;

use super::Ring;
use super::operation::{Operation, Token, place_key};
use crate::engine::{EngineEvent, Key, Outcome, OutgoingMessage};

impl Ring {
    /// Sends `message` without blocking and, if it was sent, closes its descriptors, in a single
    /// entry into the kernel. The message comes back with the completions of that entry. A sent
    /// message does not end a wait; a refused one does, and brings its descriptors back.
    pub fn send_message(
        &mut self,
        key: Key,
        socket: BorrowedFd<'_>,
        mut message: Box<OutgoingMessage>,
    ) {
        let header = message.seal();
        let flags = u32::try_from(libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
            .expect("message flags are small and positive");
        let send = opcode::SendMsg::new(Fd(socket.as_raw_fd()), header).flags(flags).build();
        let mut chain = std::mem::take(&mut self.chain);
        chain.push(send);
        chain.extend(message.raw_descriptors().map(|raw| {
            let close = opcode::Close::new(Fd(raw)).build().flags(squeue::Flags::SKIP_SUCCESS);
            close.user_data(Token::new(Operation::Quiet, Key::default()).0)
        }));
        if chain.len() == 1 {
            // As with a close: a refused message has one more completion.
            let nothing = opcode::Nop::new().build().flags(squeue::Flags::SKIP_SUCCESS);
            chain.push(nothing.user_data(Token::new(Operation::Quiet, Key::default()).0));
        }
        self.steps += steps_of(&message);
        let place = self.messages_out.insert((key, message));
        chain[0].set_user_data(Token::new(Operation::SendMessage, place_key(place)).0);
        link(&mut chain);
        self.in_kernel += 1;
        self.push_chain(&chain);
        chain.clear();
        self.chain = chain;
    }
}

/// Links the send of a message to the closes of its descriptors. If the send fails, nothing is
/// closed; a failed close does not stop the others. Only the last close reports success.
fn link(chain: &mut [squeue::Entry]) {
    if let [_, _, .., last] = chain {
        let token = Token::new(Operation::LastClose, Key::default()).0;
        *last = last.clone().clear_flags().user_data(token);
    }
    let links = chain.len() - 1;
    for (place, entry) in chain[..links].iter_mut().enumerate() {
        let kind = match place {
            0 => squeue::Flags::IO_LINK,
            _ => squeue::Flags::IO_HARDLINK,
        };
        *entry = entry.clone().flags(kind);
    }
}

/// Number of completions after which a message is sent and its descriptors are closed. With a
/// single descriptor one suffices: when its send reports, the close follows at once.
fn steps_of(message: &OutgoingMessage) -> usize {
    message.descriptors().clamp(1, 2)
}

/// The event of a completed send, with the message that was lent under `place`.
pub(super) fn message_sent(
    ring: &mut Ring,
    place: usize,
    outcome: Outcome<u32>,
) -> Option<EngineEvent> {
    let (key, mut message) = ring.messages_out.try_remove(place)?;
    match outcome {
        Ok(_) => {
            ring.steps = ring.steps.saturating_sub(1);
            message.forget_descriptors();
        }
        // The cancelled closes report, which is one completion more than for a sent message and
        // ends a wait.
        Err(_) => ring.steps = ring.steps.saturating_sub(steps_of(&message)),
    }
    Some(EngineEvent::MessageSent { key, message, outcome: outcome.map(drop) })
}

/// Counts the completion of the last close of a chain. A cancelled one was counted with its send.
pub(super) fn last_closed(ring: &mut Ring, result: i32) {
    ring.steps = ring.steps.saturating_sub((result != -libc::ECANCELED).into());
}
