//! The meaning of completions.

use nix::errno::Errno;

use super::operation::{Operation, Token};
use super::{Ring, accept, receive, receive_message, send, send_message};
use crate::engine::EngineEvent;

/// Turns a completion into an event; closes and stale user data give none.
pub(super) fn restore(
    ring: &mut Ring,
    token: Token,
    result: i32,
    flags: u32,
    armed: bool,
) -> Option<EngineEvent> {
    let key = token.key();
    let place = key.index as usize;
    let outcome = u32::try_from(result).map_err(|_| Errno::from_raw(-result));
    match token.operation()? {
        Operation::Accept => Some(accept::accepted(key, outcome, result, armed)),
        Operation::Receive => {
            let outcome = receive::received(ring, outcome, flags);
            Some(EngineEvent::Received { key, outcome, armed })
        }
        Operation::Send => send::sent(ring, place, outcome),
        Operation::SendMessage => send_message::message_sent(ring, place, outcome),
        Operation::ReceiveMessage => {
            let outcome = receive_message::message_received(ring, outcome, flags);
            Some(EngineEvent::MessageReceived { key, outcome, armed })
        }
        Operation::Poll => Some(EngineEvent::Ready { key, outcome: outcome.map(drop) }),
        Operation::Cancel => Some(EngineEvent::Cancelled { key }),
        Operation::Alarm => {
            ring.alarm_ns = None;
            None
        }
        Operation::LastClose => {
            send_message::last_closed(ring, result);
            None
        }
        // Only failures report: the descriptor or alarm no longer existed, or there was no room for
        // a remark.
        Operation::Quiet | Operation::MoveAlarm => None,
    }
}
