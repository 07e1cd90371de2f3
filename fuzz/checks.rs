//! Invariants for arbitrary input, shared by the fuzz targets and `tests/fuzz.rs`.

use clusterlb::internals::dialect::node::Serialization;
use clusterlb::internals::dialect::node::codec::{Decoder, FromWorker};
use clusterlb::internals::dialect::node::session::{
    Action, Answer, ConnectionId, Session, SessionEvent, WindowRule,
};
use clusterlb_schedule::id::ListenerId;

const LISTENER: ListenerId = ListenerId::new(0);

/// Decoding does not depend on how a worker's bytes are split, and for any input, every connection
/// given to the worker ends exactly once.
pub(crate) fn node(serialization: Serialization, bytes: &[u8]) {
    let at_once = decode(serialization, bytes, bytes.len().max(1));
    let in_pieces = decode(serialization, bytes, 7);
    assert_eq!(at_once, in_pieces);
    converse(serialization, at_once.0);
}

/// The messages before the first error, and whether there was one.
fn decode(
    serialization: Serialization,
    bytes: &[u8],
    piece_bytes: usize,
) -> (Vec<FromWorker>, bool) {
    let mut decoder = Decoder::new(serialization);
    let mut messages = Vec::new();
    for piece in bytes.chunks(piece_bytes) {
        decoder.feed(piece);
        loop {
            match decoder.next_message() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(_) => return (messages, true),
            }
        }
    }
    (messages, false)
}

fn converse(serialization: Serialization, messages: Vec<FromWorker>) {
    let mut session = Session::new(serialization, WindowRule::Fixed(4));
    session.mark_connections();
    let (mut given, mut ended) = (0, Vec::new());
    for (message, now_ns) in messages.into_iter().zip((0..).step_by(1_000_000)) {
        let fine = session.receive(message, now_ns % 2 == 0, now_ns).is_ok();
        settle(&mut session, &mut ended);
        if !fine {
            break;
        }
        if session.room(now_ns) > 0 && session.hand_over(ConnectionId(given), LISTENER, now_ns) {
            given += 1;
        }
        assert!(session.unanswered() <= 4);
    }
    session.end();
    settle(&mut session, &mut ended);
    ended.sort_unstable();
    assert!(ended.into_iter().eq(0..given));
}

/// Performs the session's actions and answers its requests.
fn settle(session: &mut Session, ended: &mut Vec<usize>) {
    while let Some(action) = session.next_action() {
        match action {
            Action::Accepted(connection)
            | Action::Returned(connection)
            | Action::Refused(connection) => ended.push(connection.0),
            Action::Emit(SessionEvent::Query(query, request)) => {
                let answer =
                    Answer::HandOver { listener: LISTENER, name: None, proxy_protocol: false };
                session.answer(query, &answer, &request.data);
            }
            Action::Emit(SessionEvent::Message(message) | SessionEvent::Handle(message)) => {
                let _ = message.value();
            }
            // The owner of the sockets would look for an attached one, and may find none.
            Action::SentBack(_) | Action::InboxEnded | Action::ShortOfDescriptors { .. } => {}
            Action::Send { .. } | Action::Deliver { .. } | Action::Emit(_) => {}
        }
    }
}
