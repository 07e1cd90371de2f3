//! Random sequences of events in a worker's life, checked against a model of the channel.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use serde_json::json;

use super::super::super::codec::SocketKind;
use super::super::fd_ordering::READ_BYTES;
use super::super::*;
use super::{LISTENER, answered, arrived, chat, hand_over, lost, query, say, session};

/// The next step of the simulated worker.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// This many connections are offered.
    Offer(u8),
    /// The worker reads everything sent to it.
    Read,
    /// It confirms the oldest connection read: taken or refused.
    Answer(bool),
    /// It has no descriptor for the next one it reads.
    Starve,
    /// The programs of the primary and the worker exchange messages.
    Chat(u16),
    /// The primary's program sends a socket.
    UserMessageOut(u16),
    /// Time passes, in microseconds.
    Pass(u32),
    /// The server is closed, or opened again.
    Toggle,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1_u8..20).prop_map(Step::Offer),
        4 => Just(Step::Read),
        6 => any::<bool>().prop_map(Step::Answer),
        6 => Just(Step::Answer(true)),
        1 => Just(Step::Starve),
        // Often just long enough that the next message extends across the end of a read.
        2 => (65_000_u16..65_535).prop_map(Step::Chat),
        1 => (0_u16..65_535).prop_map(Step::Chat),
        1 => (0_u16..65_535).prop_map(Step::UserMessageOut),
        1 => (0_u16..100).prop_map(Step::UserMessageOut),
        3 => (0_u32..20_000).prop_map(Step::Pass),
        1 => Just(Step::Toggle),
    ];
    prop::collection::vec(step, 1..100)
}

/// Number of a program's socket among all descriptors sent.
fn beyond(sequence: i64) -> usize {
    usize::MAX - usize::try_from(-sequence).expect("they are counted down from zero")
}

/// A model of a worker and its channel.
#[derive(Debug, Default)]
struct World {
    now_ns: u64,
    key: Option<String>,
    /// Sent but not read: length, message and descriptor.
    channel: VecDeque<(usize, Value, Option<usize>)>,
    /// Read but not confirmed.
    read: VecDeque<i64>,
    starved: bool,
    /// A descriptor read before its message.
    pending: Option<usize>,
    /// The connection attached to each message.
    carried: BTreeMap<i64, usize>,
    /// Sockets of the program, numbered below zero; as descriptors they are numbered after all
    /// connections.
    user_messages: i64,
    user_messages_seen: i64,
    /// The outcome of each connection.
    outcomes: BTreeMap<usize, &'static str>,
    given: usize,
}

impl World {
    fn settle(&mut self, session: &mut Session) {
        while let Some(action) = session.next_action() {
            match action {
                Action::Send { frame, attachment } => {
                    let message: Value = serde_json::from_slice(&frame).expect("a line of JSON");
                    let attachment = attachment.map(|attachment| match attachment {
                        Attachment::Connection(connection) => connection.0,
                        Attachment::Socket(_) => panic!("nothing is shared here"),
                    });
                    let sequence = message["msg"]["seq"].as_i64();
                    self.carried.extend(sequence.zip(attachment));
                    self.channel.push_back((frame.len(), message, attachment));
                }
                Action::Deliver { frame, with_socket: false } => {
                    self.channel.push_back((frame.len(), Value::Null, None));
                }
                Action::Deliver { frame, with_socket: true } => {
                    let message: Value = serde_json::from_slice(&frame).expect("a line of JSON");
                    let sequence = message["msg"]["seq"].as_i64().expect("a number");
                    let attachment = beyond(sequence);
                    self.carried.insert(sequence, attachment);
                    self.channel.push_back((frame.len(), message, Some(attachment)));
                }
                Action::Accepted(connection) => self.note(connection.0, "accepted"),
                Action::Returned(connection) => self.note(connection.0, "returned"),
                Action::Refused(connection) => self.note(connection.0, "refused"),
                Action::Emit(_) => {}
                other => panic!("unexpected without an inbox: {other:?}"),
            }
        }
    }

    fn note(&mut self, connection: usize, outcome: &'static str) {
        assert_eq!(self.outcomes.insert(connection, outcome), None, "{connection} ends twice");
        assert!(connection < self.given, "{connection} was never given");
    }

    /// Reads like libuv: up to 64 KiB, and never beyond the segment that a descriptor came with.
    /// Returns the complete messages.
    fn read_once(&mut self) -> Vec<Value> {
        let (mut room, mut whole) = (READ_BYTES, Vec::new());
        while let Some((bytes, message, attachment)) = self.channel.pop_front() {
            let head = bytes.min(room);
            room -= head;
            self.pending = attachment.or(self.pending);
            if head < bytes {
                self.channel.push_front((bytes - head, message, None));
                break;
            }
            whole.push(message);
            if attachment.is_some() {
                break;
            }
        }
        whole
    }

    /// Reads everything. As in Node, the last descriptor received is assigned to the first message
    /// that expects one.
    fn read(&mut self, session: &mut Session) {
        while !self.channel.is_empty() {
            for message in self.read_once() {
                if message["cmd"] != "NODE_HANDLE" {
                    continue;
                }
                let sequence = message["msg"]["seq"].as_i64().expect("a number");
                let expected = self.carried.remove(&sequence);
                assert_eq!(self.pending.take(), expected, "a descriptor met another message");
                if sequence < 0 {
                    self.user_messages_seen -= 1;
                    assert_eq!(sequence, self.user_messages_seen, "messages keep their order");
                }
                if std::mem::take(&mut self.starved) {
                    say(session, &lost(), self.now_ns);
                } else {
                    if sequence >= 0 {
                        self.read.push_back(sequence);
                    }
                    say(session, &arrived(), self.now_ns);
                }
                self.settle(session);
            }
        }
    }

    fn toggle(&mut self, session: &mut Session) {
        match self.key.take() {
            Some(key) => {
                let close = json!({ "cmd": "NODE_CLUSTER", "act": "close", "key": key, "seq": 1 });
                say(session, &close, self.now_ns);
            }
            None => {
                say(session, &query(1, 4), self.now_ns);
                assert!(session.answer(
                    QueryId(session.queries),
                    &hand_over(LISTENER),
                    &Value::Null
                ));
                self.key = session.listens.key_of(LISTENER).map(ToString::to_string);
            }
        }
    }

    fn step(&mut self, session: &mut Session, step: Step) {
        match step {
            Step::Offer(count) => {
                for _ in 0..count {
                    let room = session.room(self.now_ns);
                    let given = session.hand_over(ConnectionId(self.given), LISTENER, self.now_ns);
                    assert_eq!(given, room > 0 && session.serves(LISTENER));
                    self.given += usize::from(given);
                    self.settle(session);
                }
            }
            Step::Read => self.read(session),
            Step::Answer(accepts) => {
                if let Some(sequence) = self.read.pop_front() {
                    say(session, &answered(sequence, accepts), self.now_ns);
                }
            }
            Step::Starve => self.starved = true,
            Step::Chat(bytes) => chat(session, &json!("x".repeat(bytes.into()))),
            Step::UserMessageOut(bytes) => {
                self.user_messages -= 1;
                let message =
                    json!({ "seq": self.user_messages, "text": "x".repeat(bytes.into()) });
                let fd = ToWorker::UserSocket { kind: SocketKind::Stream, message: &message };
                assert!(session.send_message(fd.frame(Serialization::Json), true));
            }
            Step::Pass(microseconds) => self.now_ns += u64::from(microseconds) * 1_000,
            Step::Toggle => self.toggle(session),
        }
        self.settle(session);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn every_connection_ends_once_and_every_descriptor_meets_its_message(
        most in 1_u16..20,
        fixed in any::<bool>(),
        steps in steps(),
    ) {
        let rule = if fixed { WindowRule::Fixed(most) } else { WindowRule::UpTo(most) };
        let mut session = session(rule);
        let mut world = World::default();
        world.toggle(&mut session);
        world.settle(&mut session);
        for step in steps {
            world.step(&mut session, step);
            prop_assert!(session.unanswered() <= usize::from(most), "the window is exceeded");
        }
        while world.user_messages_seen > world.user_messages {
            let before = world.user_messages_seen;
            world.step(&mut session, Step::Read);
            prop_assert!(world.user_messages_seen < before, "a message waits for ever");
        }
        session.end();
        world.settle(&mut session);
        prop_assert_eq!(world.outcomes.len(), world.given, "every one has ended");
    }
}
