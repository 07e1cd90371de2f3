//! A worker that takes connections from its inbox itself.

use super::*;

fn back(full: bool, received: u64) -> Value {
    json!({ "cmd": "NODE_HANDLE", "type": "net.Native", "msg": {
        "cmd": "NODE_CLUSTERLB", "act": "back", "listener": 3, "acceptedNs": "18446744073709551615",
        "full": full, "received": received } })
}

fn came_back(full: bool, received: u64) -> Done {
    Done::SentBack(SentBack { listener: 3, accepted_ns: u64::MAX, full, received })
}

fn acknowledged() -> Done {
    Done::Sent(json!({ "cmd": "NODE_HANDLE_ACK" }), None)
}

#[test]
fn answers_tell_the_mark_only_to_a_worker_that_asks_for_it() {
    for marked in [false, true] {
        let mut session = session(WindowRule::default());
        if marked {
            session.mark_connections();
        }
        say(&mut session, &query(1, 4), 0);
        assert!(session.answer(QueryId(1), &hand_over(LISTENER), &Value::Null));
        let done = done(&mut session);
        let Some(Done::Sent(reply, None)) = done.last() else { panic!("{done:?}") };
        let expected = if marked { json!(3) } else { Value::Null };
        assert_eq!(reply["clusterlb"], expected, "{reply}");
        assert_eq!(reply.get("clusterlb").is_some(), marked, "{reply}");
        assert!(session.serves_connections());
    }
}

#[test]
fn a_socket_for_datagrams_has_no_mark_and_no_connections() {
    let mut session = session(WindowRule::default());
    session.mark_connections();
    for (number, datagram) in [(1, true), (2, false)] {
        say(&mut session, &query(number, 4), 0);
        let answer =
            Answer::Share { listener: LISTENER, datagram, counted: false, proxy_protocol: false };
        let query = QueryId(u64::try_from(number).expect("it is positive"));
        assert!(session.answer(query, &answer, &Value::Null));
        let done = done(&mut session);
        let Some(Done::Sent(reply, Some(_))) = done.last() else { panic!("{done:?}") };
        assert_eq!(reply["msg"].get("clusterlb").is_none(), datagram, "{reply}");
        assert_eq!(session.serves_connections(), !datagram);
        say(&mut session, &arrived(), 0);
    }
}

#[test]
fn what_comes_back_is_acknowledged_and_given_to_others() {
    let mut session = session(WindowRule::default());
    hear(&mut session, &back(false, 4), true, 0).expect("it is understood");
    assert_eq!(done(&mut session), [acknowledged(), came_back(false, 4)]);
    assert_eq!(session.backoff_until_ns(0), None, "only its server was gone");
    // Lost in transit: there is nothing to resend.
    hear(&mut session, &back(false, 4), false, 0).expect("it is understood");
    assert_eq!(done(&mut session), [acknowledged(), Done::Short(true)]);
}

#[test]
fn a_full_worker_rests_longer_each_time_until_it_takes_one() {
    let mut session = session(WindowRule::default());
    let mut now_ns = 0;
    let mut rests = Vec::new();
    for received in [1, 1, 1, 2] {
        hear(&mut session, &back(true, received), true, now_ns).expect("it is understood");
        assert_eq!(done(&mut session), [acknowledged(), came_back(true, received)]);
        let until_ns = session.backoff_until_ns(now_ns).expect("it rests");
        rests.push((until_ns - now_ns) / MILLISECOND);
        now_ns = until_ns;
    }
    assert_eq!(rests, [5, 10, 20, 5]);
    let short = json!({ "cmd": "NODE_CLUSTERLB", "act": "short", "lost": false, "received": 2 });
    say(&mut session, &short, now_ns);
    assert_eq!(done(&mut session), [Done::Short(false)]);
    let until_ns = session.backoff_until_ns(now_ns).expect("it rests");
    assert_eq!((until_ns - now_ns) / MILLISECOND, 10);
}

#[test]
fn the_end_of_the_inbox_is_told() {
    let mut session = session(WindowRule::default());
    say(&mut session, &json!({ "cmd": "NODE_CLUSTERLB", "act": "end" }), 0);
    assert_eq!(done(&mut session), [Done::InboxEnded]);
    say(&mut session, &json!({ "cmd": "NODE_CLUSTERLB", "act": "something new" }), 0);
    assert_eq!(done(&mut session), []);
    let nameless = json!({ "cmd": "NODE_CLUSTERLB", "act": "back", "acceptedNs": "x" });
    assert!(hear(&mut session, &nameless, true, 0).is_err(), "whose it is cannot be known");
}
