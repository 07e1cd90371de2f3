//! The life of a worker, message by message.

mod model;
mod own_inbox;

use serde_json::json;

use super::super::codec::{Decoder, SocketKind};
use super::*;

const MILLISECOND: u64 = 1_000_000;
const LISTENER: ListenerId = ListenerId::new(3);

fn session(window: WindowRule) -> Session {
    Session::new(Serialization::Json, window)
}

/// Processes a line, with or without a descriptor.
fn hear(session: &mut Session, line: &Value, arrived: bool, now_ns: u64) -> Result<(), Garbage> {
    let mut decoder = Decoder::new(Serialization::Json);
    decoder.feed(&ToWorker::User(line).frame(Serialization::Json));
    let message = decoder.next_message()?.expect("a whole line");
    session.receive(message, arrived, now_ns)
}

/// Sends a message of the program without a socket.
fn chat(session: &mut Session, message: &Value) {
    assert!(session.send_message(ToWorker::User(message).frame(Serialization::Json), false));
}

fn say(session: &mut Session, line: &Value, now_ns: u64) {
    hear(session, line, false, now_ns).expect("the worker keeps to the protocol");
}

/// The actions of a session, with messages decoded.
#[derive(Clone, Debug, PartialEq)]
enum Done {
    Sent(Value, Option<Attachment>),
    Delivered(Value, bool),
    Accepted(usize),
    Returned(usize),
    Refused(usize),
    SentBack(SentBack),
    InboxEnded,
    Short(bool),
    Told(SessionEvent),
}

fn done(session: &mut Session) -> Vec<Done> {
    let actions = std::iter::from_fn(|| session.next_action());
    actions
        .map(|action| match action {
            Action::Send { frame, attachment } => {
                Done::Sent(serde_json::from_slice(&frame).expect("one line of JSON"), attachment)
            }
            Action::Deliver { frame, with_socket } => {
                let message = serde_json::from_slice(&frame).expect("one line of JSON");
                Done::Delivered(message, with_socket)
            }
            Action::Accepted(connection) => Done::Accepted(connection.0),
            Action::Returned(connection) => Done::Returned(connection.0),
            Action::Refused(connection) => Done::Refused(connection.0),
            Action::SentBack(connection) => Done::SentBack(connection),
            Action::InboxEnded => Done::InboxEnded,
            Action::ShortOfDescriptors { lost } => Done::Short(lost),
            Action::Emit(event) => Done::Told(event),
        })
        .collect()
}

fn query(sequence: i64, address_type: i64) -> Value {
    json!({ "cmd": "NODE_CLUSTER", "act": "queryServer", "seq": sequence, "port": 80,
        "addressType": address_type })
}

fn hand_over(listener: ListenerId) -> Answer {
    Answer::HandOver { listener, name: None, proxy_protocol: false }
}

/// Requests a listener, replies, and returns the key.
fn listen(session: &mut Session, listener: ListenerId) -> String {
    say(session, &query(1, 4), 0);
    let query = QueryId(session.queries);
    assert!(session.answer(query, &hand_over(listener), &Value::Null));
    match done(session).last() {
        Some(Done::Sent(reply, None)) => reply["key"].as_str().expect("a key").to_owned(),
        other => panic!("{other:?}"),
    }
}

/// A worker that listens, with its key.
fn listening(window: WindowRule) -> (Session, String) {
    let mut session = session(window);
    let key = listen(&mut session, LISTENER);
    (session, key)
}

/// Hands a connection over and returns its sequence number.
fn give(session: &mut Session, connection: usize, now_ns: u64) -> i64 {
    assert!(session.hand_over(ConnectionId(connection), LISTENER, now_ns));
    match &done(session)[..] {
        [Done::Sent(message, Some(Attachment::Connection(attachment)))] => {
            assert_eq!((attachment.0, &message["cmd"]), (connection, &json!("NODE_HANDLE")));
            message["msg"]["seq"].as_i64().expect("a number")
        }
        other => panic!("{other:?}"),
    }
}

fn arrived() -> Value {
    json!({ "cmd": "NODE_HANDLE_ACK" })
}

fn lost() -> Value {
    json!({ "cmd": "NODE_HANDLE_NACK" })
}

fn answered(to: i64, accepted: bool) -> Value {
    json!({ "cmd": "NODE_CLUSTER", "ack": to, "accepted": accepted, "seq": 1 })
}

#[test]
fn a_connection_is_kept_until_the_worker_has_it() {
    let (mut session, _) = listening(WindowRule::Fixed(1));
    let sequence = give(&mut session, 7, 0);
    assert_eq!(session.room(0), 0, "one at a time, as Node does it");
    say(&mut session, &arrived(), 0);
    assert_eq!((session.room(0), done(&mut session)), (0, vec![]), "it has only been received");
    say(&mut session, &answered(sequence, true), 0);
    assert_eq!(done(&mut session), [Done::Accepted(7)]);
    assert_eq!(session.room(0), 1);
    say(&mut session, &answered(sequence, true), 0);
    assert_eq!(done(&mut session), [], "an answer to nothing is nothing");
}

#[test]
fn a_worker_that_refuses_rests_longer_each_time() {
    let (mut session, _) = listening(WindowRule::UpTo(16));
    let mut now_ns = 0;
    let mut rests = Vec::new();
    for _ in 0..3 {
        let sequence = give(&mut session, 0, now_ns);
        say(&mut session, &arrived(), now_ns);
        say(&mut session, &answered(sequence, false), now_ns);
        assert_eq!(done(&mut session), [Done::Refused(0)]);
        let until_ns = session.backoff_until_ns(now_ns).expect("it rests");
        assert_eq!(session.room(until_ns - 1), 0);
        rests.push((until_ns - now_ns) / MILLISECOND);
        now_ns = until_ns;
    }
    assert_eq!(rests, [5, 10, 20]);
    let sequence = give(&mut session, 1, now_ns);
    say(&mut session, &answered(sequence, true), now_ns);
    assert_eq!((done(&mut session), session.room(now_ns)), (vec![Done::Accepted(1)], 2));
}

#[test]
fn a_closed_server_refuses_what_was_under_way_and_the_worker_goes_on() {
    let (mut session, first) = listening(WindowRule::Fixed(4));
    let second = listen(&mut session, ListenerId::new(4));
    assert_ne!(first, second);
    let sequence = give(&mut session, 0, 0);
    let close = json!({ "cmd": "NODE_CLUSTER", "act": "close", "key": first, "seq": 5 });
    say(&mut session, &close, 0);
    say(&mut session, &close, 0);
    say(&mut session, &answered(sequence, false), 0);
    assert_eq!(done(&mut session), [Done::Told(SessionEvent::Left(LISTENER)), Done::Refused(0)]);
    assert_eq!(session.backoff_until_ns(0), None);
    assert!(!session.hand_over(ConnectionId(1), LISTENER, 0));
    assert!(session.hand_over(ConnectionId(1), ListenerId::new(4), 0));
    // Another request for the same listener creates another server.
    assert!(![first, second].contains(&listen(&mut session, LISTENER)));
    assert!(session.serves(LISTENER));
}

#[test]
fn a_descriptor_that_does_not_arrive_is_given_to_another_worker() {
    let (mut session, _) = listening(WindowRule::Fixed(2));
    give(&mut session, 0, 0);
    let second = give(&mut session, 1, 0);
    say(&mut session, &lost(), 0);
    assert_eq!(done(&mut session), [Done::Returned(0)], "they are told in order");
    assert!(session.backoff_until_ns(0).is_some());
    say(&mut session, &arrived(), 0);
    say(&mut session, &answered(second, true), 0);
    assert_eq!(done(&mut session), [Done::Accepted(1)]);
    assert!(hear(&mut session, &lost(), false, 0).is_err(), "nothing is under way");
}

#[test]
fn an_end_returns_everything_in_order() {
    let (mut session, _) = listening(WindowRule::Fixed(4));
    let numbers: Vec<i64> = (0..4).map(|connection| give(&mut session, connection, 0)).collect();
    say(&mut session, &answered(numbers[1], true), 0);
    session.end();
    let expected = [1, 0, 2, 3].map(|connection| match connection {
        1 => Done::Accepted(1),
        other => Done::Returned(other),
    });
    assert_eq!(done(&mut session), expected);
    assert_eq!((session.room(0), session.unanswered()), (0, 0));
}

#[test]
fn a_worker_that_leaves_is_answered_and_gets_nothing_more() {
    let (mut session, _) = listening(WindowRule::Fixed(2));
    let sequence = give(&mut session, 0, 0);
    say(
        &mut session,
        &json!({ "cmd": "NODE_CLUSTER", "act": "exitedAfterDisconnect", "seq": 9 }),
        0,
    );
    match &done(&mut session)[..] {
        [Done::Sent(reply, None), Done::Told(SessionEvent::Leaving)] => assert_eq!(reply["ack"], 9),
        other => panic!("{other:?}"),
    }
    assert_eq!(session.room(0), 0);
    say(&mut session, &query(10, 4), 0);
    assert_eq!(done(&mut session), [], "as in Node, it asks in vain");
    say(&mut session, &answered(sequence, true), 0);
    assert_eq!(done(&mut session), [Done::Accepted(0)]);
}

#[test]
fn a_disconnected_worker_may_still_take_what_is_under_way() {
    let (mut session, _) = listening(WindowRule::Fixed(2));
    let sequence = give(&mut session, 0, 0);
    session.disconnect();
    session.disconnect();
    match &done(&mut session)[..] {
        [Done::Sent(message, None)] => assert_eq!(message["act"], "disconnect"),
        other => panic!("{other:?}"),
    }
    assert!(!session.hand_over(ConnectionId(1), LISTENER, 0));
    say(&mut session, &answered(sequence, true), 0);
    assert_eq!(done(&mut session), [Done::Accepted(0)]);
}

#[test]
fn requests_that_cannot_be_are_declined_at_once() {
    let mut session = session(WindowRule::default());
    let nowhere = json!({ "cmd": "NODE_CLUSTER", "act": "queryServer", "seq": 4, "address": null,
        "port": -1, "addressType": -1, "data": { "ticketKeys": "00" } });
    say(&mut session, &nowhere, 0);
    match &done(&mut session)[..] {
        [Done::Sent(reply, None)] => {
            assert_eq!((&reply["ack"], &reply["errno"]), (&json!(4), &json!(-22)));
            // A TLS server reads its keys from every reply.
            assert_eq!(reply["data"], json!({ "ticketKeys": "00" }));
        }
        other => panic!("{other:?}"),
    }
    for sequence in 0..listens::SERVERS_MAX {
        say(&mut session, &query(i64::try_from(sequence).expect("it is small"), 4), 0);
    }
    done(&mut session);
    say(&mut session, &query(1_000, 4), 0);
    match &done(&mut session)[..] {
        [Done::Sent(reply, None)] => assert_eq!(reply["errno"], -(Errno::ENOBUFS as i32)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn data_of_the_first_worker_reaches_all_workers() {
    let mut session = session(WindowRule::default());
    let mut request = query(1, 4);
    request["data"] = json!({ "ticketKeys": "ab" });
    say(&mut session, &request, 0);
    assert_eq!(session.data_of(QueryId(1)), Some(&json!({ "ticketKeys": "ab" })));
    assert!(session.answer(QueryId(1), &hand_over(LISTENER), &json!({ "ticketKeys": "cd" })));
    match done(&mut session).last() {
        Some(Done::Sent(reply, None)) => assert_eq!(reply["data"]["ticketKeys"], "cd"),
        other => panic!("{other:?}"),
    }
    assert!(!session.answer(QueryId(1), &hand_over(LISTENER), &Value::Null), "once is enough");
}

#[test]
fn a_shared_socket_that_does_not_arrive_is_an_error_of_listen() {
    let mut session = session(WindowRule::default());
    say(&mut session, &query(1, 4), 0);
    let share = Answer::Share {
        listener: LISTENER,
        datagram: false,
        counted: false,
        proxy_protocol: false,
    };
    assert!(session.answer(QueryId(1), &share, &Value::Null));
    match done(&mut session).last() {
        Some(Done::Sent(fd, Some(Attachment::Socket(QueryId(1))))) => {
            assert_eq!((&fd["type"], &fd["msg"]["errno"]), (&json!("net.Native"), &json!(0)));
        }
        other => panic!("{other:?}"),
    }
    say(&mut session, &lost(), 0);
    match &done(&mut session)[..] {
        [Done::Sent(reply, None), Done::Told(SessionEvent::Left(LISTENER))] => {
            assert_eq!((&reply["ack"], &reply["errno"]), (&json!(1), &json!(-24)));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn handles_of_the_program_are_acknowledged_and_never_kept() {
    let mut session = session(WindowRule::default());
    let handle =
        json!({ "cmd": "NODE_HANDLE", "type": "net.Socket", "msg": { "a": 1 }, "key": "4:null:0" });
    hear(&mut session, &handle, true, 0).expect("it is fine");
    match &done(&mut session)[..] {
        [Done::Sent(reply, None), Done::Told(SessionEvent::Handle(message))] => {
            assert_eq!((reply, message.value()), (&arrived(), Some(json!({ "a": 1 }))));
        }
        other => panic!("{other:?}"),
    }
    hear(&mut session, &handle, false, 0).expect("it is fine");
    assert_eq!(done(&mut session), [Done::Sent(lost(), None)]);
    say(&mut session, &json!({ "cmd": "NODE_SOCKET_GET_COUNT", "key": "k" }), 0);
    say(&mut session, &json!({ "cmd": "NODE_SOCKET_NOTIFY_CLOSE", "key": "k" }), 0);
    let expected = [
        json!({ "cmd": "NODE_SOCKET_COUNT", "key": "k", "count": 0 }),
        json!({ "cmd": "NODE_SOCKET_ALL_CLOSED", "key": "k" }),
    ];
    assert_eq!(done(&mut session), expected.map(|reply| Done::Sent(reply, None)));
}

#[test]
fn messages_of_the_program_keep_their_order_when_sockets_travel_with_them() {
    let (mut session, _) = listening(WindowRule::Fixed(8));
    let send = |number: i64, bytes: usize, session: &mut Session| {
        let message = json!([number, "x".repeat(bytes)]);
        let fd = ToWorker::UserSocket { kind: SocketKind::Stream, message: &message };
        assert!(session.send_message(fd.frame(Serialization::Json), true));
    };
    let numbers = |session: &mut Session| -> Vec<i64> {
        let delivered = done(session).into_iter().map(|one| match one {
            Done::Delivered(Value::Array(list), false) => list[0].as_i64(),
            Done::Delivered(fd, true) => fd["msg"][0].as_i64(),
            other => panic!("{other:?}"),
        });
        delivered.map(|number| number.expect("a number")).collect()
    };
    send(0, 10, &mut session);
    send(1, 10, &mut session);
    assert_eq!(numbers(&mut session), [0, 1], "short ones need not wait");
    // This message may be read in parts, and what follows must not overtake it.
    send(2, 800_000, &mut session);
    chat(&mut session, &json!([3]));
    assert_eq!((numbers(&mut session), session.room(0)), (vec![], 0));
    say(&mut session, &arrived(), 0);
    say(&mut session, &arrived(), 0);
    assert_eq!(numbers(&mut session), [2, 3]);
    say(&mut session, &lost(), 0);
    assert_eq!(done(&mut session), [Done::Told(SessionEvent::SocketLost)]);
    session.end();
    assert!(!session.send_message(vec![], false), "nothing goes after the end");
}

#[test]
fn nothing_follows_a_descriptor_that_may_lie_across_the_end_of_a_read() {
    let (mut session, _) = listening(WindowRule::Fixed(8));
    let long = json!("x".repeat(40_000));
    give(&mut session, 0, 0);
    chat(&mut session, &long);
    done(&mut session);
    give(&mut session, 1, 0);
    chat(&mut session, &long);
    chat(&mut session, &long);
    done(&mut session);
    assert_eq!(session.room(0), 0, "the third would have to wait for the first two");
    say(&mut session, &arrived(), 0);
    assert_eq!(session.room(0), 0);
    say(&mut session, &arrived(), 0);
    done(&mut session);
    assert_eq!(session.room(0), 1, "alone it may lie anywhere");
    give(&mut session, 2, 0);
    assert_eq!(session.room(0), 0, "but nothing may follow it");
    say(&mut session, &query(1, 4), 0);
    let share = Answer::Share {
        listener: ListenerId::new(9),
        datagram: false,
        counted: false,
        proxy_protocol: false,
    };
    assert!(session.answer(QueryId(2), &share, &Value::Null));
    assert!(!done(&mut session).iter().any(|one| matches!(one, Done::Sent(..))), "nor an answer");
    say(&mut session, &arrived(), 0);
    let attachment = Some(Attachment::Socket(QueryId(2)));
    assert!(matches!(&done(&mut session)[..], [Done::Sent(_, carried)] if *carried == attachment));
    assert!(session.room(0) > 1);
}
