//! Messages as Node writes them, arbitrary input, and independence of how bytes are split.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn all(serialization: Serialization, pieces: &[&[u8]]) -> Result<Vec<FromWorker>, Garbage> {
    let mut decoder = Decoder::new(serialization);
    let mut messages = Vec::new();
    for piece in pieces {
        decoder.feed(piece);
        while let Some(message) = decoder.next_message()? {
            messages.push(message);
        }
    }
    Ok(messages)
}

fn line(text: &str) -> Result<FromWorker, Garbage> {
    FromWorker::from_json(text.as_bytes())
}

fn query(text: &str) -> Query {
    match line(text) {
        Ok(FromWorker::Query(query)) => *query,
        other => panic!("{text} was read as {other:?}"),
    }
}

/// A value encoded as a worker with advanced serialisation would.
fn block(value: &Value) -> Vec<u8> {
    ToWorker::User(value).frame(Serialization::Advanced)
}

#[test]
fn the_first_words_of_a_worker_are_understood_in_both_serializations() {
    let line = b"{\"cmd\":\"NODE_CLUSTER\",\"act\":\"online\",\"seq\":0}\n";
    assert_eq!(all(Serialization::Json, &[line]), Ok(vec![FromWorker::Online]));
    // Written by Node 20, byte for byte.
    let block =
        b"\0\0\0\x2c\xff\x0fo\"\x03cmd\"\x0cNODE_CLUSTER\"\x03act\"\x06online\"\x03seqI\0{\x03";
    assert_eq!(all(Serialization::Advanced, &[block]), Ok(vec![FromWorker::Online]));
}

#[test]
fn every_kind_of_listen_is_told_apart() {
    let place = |fields: &str| {
        query(&format!(r#"{{"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,{fields}}}"#)).place
    };
    let tcp = |host: Option<&str>, port| ListenTarget::Tcp { host: host.map(str::to_owned), port };
    let table = [
        (r#""address":null,"port":8000,"addressType":4"#, tcp(None, 8000)),
        (r#""address":"::1","port":0,"addressType":6,"flags":0"#, tcp(Some("::1"), 0)),
        (r#""address":"/a/b","port":-1,"addressType":-1"#, ListenTarget::Unix("/a/b".into())),
        (
            r#""address":"/a/\u0000b","port":-1,"addressType":-1"#,
            ListenTarget::Abstract("b".into()),
        ),
        (r#""address":null,"port":null,"addressType":null,"fd":7"#, ListenTarget::Inherited(7)),
        (r#""address":null,"port":-1,"addressType":-1"#, ListenTarget::Nowhere),
        (
            r#""address":"0.0.0.0","addressType":"udp4","fd":-1,"flags":4"#,
            ListenTarget::Udp { host: Some("0.0.0.0".into()), port: 0, v6: false },
        ),
        (
            r#""address":null,"port":5,"addressType":"udp6","fd":null"#,
            ListenTarget::Udp { host: None, port: 5, v6: true },
        ),
    ];
    for (fields, expected) in table {
        assert_eq!(place(fields), expected, "{fields}");
    }
}

#[test]
fn the_rest_of_a_query_is_kept() {
    let whole = query(
        r#"{"cmd":"NODE_CLUSTER","act":"queryServer","index":3,"data":{"ticketKeys":"00"},
        "address":"/s","port":-1,"addressType":-1,"flags":1,"backlog":9,"readableAll":true,
        "writableAll":true,"seq":12}"#,
    );
    assert_eq!((whole.sequence, whole.index, whole.flags, whole.backlog), (12, 3, 1, Some(9)));
    assert!(whole.readable_by_all && whole.writable_by_all);
    assert_eq!(whole.data, json!({ "ticketKeys": "00" }));
    for none in ["0", "false", "null", "-3"] {
        let text = format!(
            r#"{{"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,"port":1,"addressType":4,
            "backlog":{none}}}"#
        );
        assert_eq!(query(&text).backlog, None);
    }
}

#[test]
fn short_messages_are_what_they_say() {
    let key = || "k".to_owned();
    let table = [
        (
            r#""CLUSTER","ack":4,"accepted":true,"seq":9"#,
            FromWorker::Answer { to: 4, accepted: Some(true) },
        ),
        (r#""CLUSTER","ack":-1"#, FromWorker::Answer { to: -1, accepted: None }),
        (r#""CLUSTER","act":"close","key":"k","seq":1"#, FromWorker::Close { key: key() }),
        (
            r#""CLUSTER","act":"exitedAfterDisconnect","seq":5"#,
            FromWorker::Leaving { sequence: Some(5) },
        ),
        (r#""HANDLE_ACK""#, FromWorker::HandleArrived),
        (r#""HANDLE_NACK""#, FromWorker::HandleLost),
        (r#""SOCKET_NOTIFY_CLOSE","key":"k""#, FromWorker::SocketsClose { key: key() }),
        (r#""SOCKET_GET_COUNT","key":"k""#, FromWorker::SocketsCount { key: key() }),
        (r#""DEBUG_ENABLED""#, FromWorker::Other),
        (r#""CLUSTER","act":"unheard of""#, FromWorker::Other),
    ];
    for (fields, expected) in table {
        let text = format!(r#"{{"cmd":"NODE_{}}}"#, fields.trim_start_matches('"'));
        assert_eq!(line(&text), Ok(expected), "{text}");
    }
}

#[test]
fn messages_of_the_program_are_never_node_s() {
    for text in [
        r#""NODE_CLUSTER""#,
        "[1]",
        "null",
        r#"{"cmd":5}"#,
        r#"{"cmd":"NODE_"}"#,
        r#"{"cmd":"node_CLUSTER"}"#,
        r#"{"a":{"cmd":"NODE_HANDLE_ACK"}}"#,
        r#"{"address":[],"port":"x"}"#,
    ] {
        let value: Value = serde_json::from_str(text).expect("it is JSON");
        let read = line(text);
        assert!(
            matches!(&read, Ok(FromWorker::User(one)) if one.value().as_ref() == Some(&value)),
            "{read:?}"
        );
        let read = all(Serialization::Advanced, &[&block(&value)]).expect("a block");
        assert!(
            matches!(&read[..], [FromWorker::User(message)] if message.value() == Some(value)),
            "{read:?}"
        );
    }
    // At any position, with any spacing.
    assert_eq!(line(r#" { "a": [1], "cmd": "NODE_HANDLE_ACK" }"#), Ok(FromWorker::HandleArrived));
}

#[test]
fn what_json_does_not_have_is_passed_on_unread() {
    // A map, a cycle and a date, written by Node 20.
    let map = b"\xff\x0f;I\x02I\x04:\x02";
    let cycle = b"\xff\x0fo\"\x04self^\0{\x01";
    let date = b"\xff\x0fD\0\0\0\0\0\0\xf0?";
    for payload in [&map[..], cycle, date] {
        let read = FromWorker::from_v8(payload);
        assert!(matches!(&read, Ok(FromWorker::User(message)) if message.value().is_none()));
    }
    // A message with a descriptor is counted all the same.
    let handle = b"\xff\x0fo\"\x03cmd\"\x0bNODE_HANDLE\"\x03msg;:\0{\x02";
    assert!(matches!(FromWorker::from_v8(handle), Ok(FromWorker::Handle(_))));
}

#[test]
fn arrays_that_lack_elements_are_read_and_their_claims_are_not_believed() {
    let array = |payload: &[u8]| match FromWorker::from_v8(payload) {
        Ok(FromWorker::User(message)) => message.value(),
        other => panic!("{other:?}"),
    };
    // `[1, 2.5, null, -7]` after a round trip through V8's reader, written by Node 20.
    let once_sparse = b"\xff\x0fa\x04I\x00I\x02I\x02N\0\0\0\0\0\0\x04@I\x040I\x06I\x0d@\x04\x04";
    assert_eq!(array(once_sparse), Some(json!([1, 2.5, null, -7])));
    assert_eq!(array(b"\xff\x0fa\x03I\x02T@\x01\x03"), Some(json!([null, true, null])));
    assert_eq!(array(b"\xff\x0fA\x02-T$\x00\x02"), Some(json!([null, true])));
    assert_eq!(array(b"\xff\x0fa\xff\xff\xff\x07@\x00\xff\xff\xff\x07"), None);
    assert_eq!(array(b"\xff\x0fa\xff\xff\xff\x07I\xfe\xff\xff\x07T@\x01\xff\xff\xff\x07"), None);
    assert_eq!(array(b"\xff\x0fA\xff\xff\xff\x07T$\x00\xff\xff\xff\x07"), None);
}

#[test]
fn garbage_is_named() {
    for text in ["", "{", "nonsense", r#"{"cmd":"NODE_CLUSTER""#] {
        assert!(line(text).is_err(), "{text}");
    }
    for text in [
        r#"{"cmd":"NODE_CLUSTER","act":"queryServer"}"#,
        r#"{"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,"port":70000,"addressType":4}"#,
        r#"{"cmd":"NODE_CLUSTER","act":"close"}"#,
        r#"{"cmd":"NODE_CLUSTER","seq":"one"}"#,
    ] {
        let error = line(text).expect_err(text).to_string();
        assert!(error.starts_with("the worker's channel carries garbage: "), "{error}");
    }
    assert!(all(Serialization::Advanced, &[b"\0\0\0\x02{}"]).is_err());
}

#[test]
fn lengths_beyond_the_bound_end_the_channel_before_anything_is_kept() {
    let claim = u32::try_from(FRAME_BYTES_MAX + 1).expect("it fits").to_be_bytes();
    assert!(all(Serialization::Advanced, &[&claim]).is_err());
    let mut decoder = Decoder::new(Serialization::Json);
    let piece = vec![b'x'; 1024 * 1024];
    let refused = (0..=16).find(|_| {
        decoder.feed(&piece);
        decoder.next_message().is_err()
    });
    assert_eq!(refused, Some(16), "one byte more than the bound is too much");
    let long = format!(r#"{{"cmd":"NODE_HANDLE","msg":"{}"}}"#, "x".repeat(PARSED_BYTES_MAX));
    assert!(line(&long).is_err());
}

#[test]
fn depth_is_bounded() {
    let nested = |depth: usize| {
        let mut payload = b"\xff\x0f".to_vec();
        payload.extend([b'A', 1].repeat(depth));
        payload.push(b'0');
        payload.extend([b'$', 0, 1].repeat(depth));
        match FromWorker::from_v8(&payload) {
            Ok(FromWorker::User(message)) => message.value().is_some(),
            other => panic!("{other:?}"),
        }
    };
    assert!(nested(DEPTH_MAX));
    assert!(!nested(DEPTH_MAX + 1));
    assert!(!nested(100_000));
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let read = line(&deep);
    assert!(matches!(&read, Ok(FromWorker::User(message)) if message.value().is_none()));
}

#[test]
fn what_is_said_to_a_worker_is_what_node_says() {
    let text = |message: ToWorker<'_>| {
        String::from_utf8(message.frame(Serialization::Json)).expect("JSON is text")
    };
    assert_eq!(
        text(ToWorker::Connection { key: "k", sequence: 1 }),
        "{\"cmd\":\"NODE_HANDLE\",\"type\":\"net.Native\",\"msg\":{\"cmd\":\"NODE_CLUSTER\",\
         \"act\":\"newconn\",\"key\":\"k\",\"seq\":1}}\n"
    );
    let name = SocketName::new("127.0.0.1".into(), false, 80);
    let (data, name) = (&Value::Null, Some(&name));
    let share =
        |own| ToWorker::ListenYourself { key: "k", to: 1, data, datagram: true, own, sequence: 0 };
    assert_eq!(
        text(ToWorker::Listen { key: "k", to: 1, data, name, own: Own::default(), sequence: 0 }),
        "{\"cmd\":\"NODE_CLUSTER\",\"key\":\"k\",\"errno\":null,\"data\":null,\"sockname\":\
         {\"address\":\"127.0.0.1\",\"family\":\"IPv4\",\"port\":80},\"ack\":1,\"seq\":0}\n"
    );
    assert_eq!(
        text(share(Own::default())),
        "{\"cmd\":\"NODE_HANDLE\",\"type\":\"dgram.Native\",\"msg\":{\"cmd\":\"NODE_CLUSTER\",\
         \"key\":\"k\",\"errno\":0,\"data\":null,\"ack\":1,\"seq\":0}}\n"
    );
    // The only fields unknown to Node, sent only on request.
    let marked = text(share(Own::new(Some(7), true).counted(true)));
    let unknown = ",\"clusterlb\":7,\"clusterlbProxied\":true,\"clusterlbCounted\":true";
    assert_eq!(marked.replace(unknown, ""), text(share(Own::default())));
    assert_eq!(
        text(ToWorker::ListenFailed { key: "k", to: 2, data, errno: 98, sequence: 1 }),
        "{\"cmd\":\"NODE_CLUSTER\",\"key\":\"k\",\"errno\":-98,\"data\":null,\"ack\":2,\"seq\":1}\n"
    );
    assert_eq!(
        text(ToWorker::SocketsCount { key: "k" }),
        "{\"cmd\":\"NODE_SOCKET_COUNT\",\"key\":\"k\",\"count\":0}\n"
    );
}

/// Any value that both formats can represent.
fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        (-9_007_199_254_740_992_i64..=9_007_199_254_740_992).prop_map(Value::from),
        // Halves, because `serde_json` rounds other fractions incorrectly in the last digit.
        any::<i32>().prop_map(|number| Value::from(f64::from(number) + 0.5)),
        ".{0,20}".prop_map(Value::from),
        "[a-zà-ÿ]{0,200}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 60, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            prop::collection::btree_map("[a-zß☃]{0,6}", inner, 0..8)
                .prop_map(|map| map.into_iter().collect()),
        ]
    })
}

fn serializations() -> impl Strategy<Value = Serialization> {
    prop_oneof![Just(Serialization::Json), Just(Serialization::Advanced)]
}

proptest! {
    #[test]
    fn values_come_back_however_their_frames_are_split(
        serialization in serializations(),
        values in prop::collection::vec(values(), 1..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let bytes: Vec<u8> =
            values.iter().flat_map(|value| ToWorker::User(value).frame(serialization)).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
        let read = all(serialization, &pieces).expect("nothing is wrong with it");
        let read: Vec<Option<Value>> = read
            .into_iter()
            .map(|message| match message {
                FromWorker::User(message) => message.value(),
                other => panic!("{other:?}"),
            })
            .collect();
        prop_assert_eq!(read, values.into_iter().map(Some).collect::<Vec<_>>());
    }

    #[test]
    fn splitting_at_any_byte_changes_nothing(
        serialization in serializations(),
        value in values(),
    ) {
        let message = json!({ "cmd": "NODE_CLUSTER", "act": "close", "key": "k", "data": value });
        let bytes = ToWorker::User(&message).frame(serialization);
        let expected = vec![FromWorker::Close { key: "k".into() }];
        for cut in 0..=bytes.len() {
            let (head, tail) = bytes.split_at(cut);
            prop_assert_eq!(all(serialization, &[head, tail]), Ok(expected.clone()));
        }
    }

    #[test]
    fn whatever_comes_is_read_or_refused(
        serialization in serializations(),
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let _ = all(serialization, &[&bytes]);
        let mut payload = b"\xff\x0f".to_vec();
        payload.extend(bytes);
        let _ = FromWorker::from_v8(&payload);
    }

    #[test]
    fn short_ways_lead_where_the_parser_leads(
        to in "-?[0-9]{1,20}(\\.0|e1)?",
        accepted in "true|false|null|1",
        sequence in "-?[0-9]{1,3}",
        end in "(,\"act\":\"close\",\"key\":\"k\")?[ }]{0,2}",
    ) {
        let answer = format!(
            r#"{{"cmd":"NODE_CLUSTER","ack":{to},"accepted":{accepted},"seq":{sequence}{end}"#
        );
        let arrived = format!(r#"{{"cmd":"NODE_HANDLE_ACK"{end}"#);
        for text in [answer, arrived] {
            // A leading space does not change the meaning but forces the general parser.
            prop_assert_eq!(line(&text).ok(), line(&format!(" {text}")).ok(), "{}", text);
        }
    }
}
