//! Checks the contract on each engine.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use nix::unistd::read;

use super::*;
use crate::clock::monotonic_ns;
use crate::fdpass::{self, bound_send_buffer, packet_pair, stream_pair};

const SHAPE: RingShape = RingShape { submissions: 64, completions: 128 };
const KEY: Key = Key { index: 3, generation: 7 };
const PATIENCE_NS: u64 = 30_000_000_000;

fn engine(kind: EngineKind) -> Engine {
    let engine = Engine::new(kind, SHAPE).expect("this test needs io_uring, too");
    let engine = engine.with_data_buffers().expect("some memory");
    engine.with_message_buffers().expect("some memory")
}

/// Waits until an event matches.
fn await_event<T>(
    engine: &mut Engine,
    mut look: impl FnMut(EngineEvent, &mut Engine) -> Option<T>,
) -> T {
    let until_ns = monotonic_ns() + PATIENCE_NS;
    let mut events = Vec::new();
    loop {
        engine.wait(&mut events, Some(until_ns)).expect("an engine");
        assert!(monotonic_ns() < until_ns, "waited in vain");
        let mut found = None;
        for event in events.drain(..) {
            // Every event is visited, so that every buffer is returned.
            let seen = look(event, engine);
            found = found.or(seen);
        }
        if let Some(found) = found {
            return found;
        }
    }
}

/// A connected pair whose first end is non-blocking, as accepted sockets are.
fn connection() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let far = TcpStream::connect(address).expect("it listens");
    let (near, _) = listener.accept().expect("a connection");
    near.set_nonblocking(true).expect("a socket");
    (near.into(), far)
}

/// The bytes of a receive, collected until it ends.
fn received(engine: &mut Engine, bytes: usize) -> (Vec<u8>, bool) {
    let mut collected = Vec::new();
    let armed = await_event(engine, |event, engine| {
        let EngineEvent::Received { key: KEY, outcome, armed } = event else { return None };
        if let Some(chunk) = outcome.expect("bytes or an end") {
            collected.extend_from_slice(engine.bytes(&chunk));
            engine.recycle(chunk);
            return (collected.len() >= bytes).then_some(armed);
        }
        Some(armed)
    });
    (collected, armed)
}

/// A message with this many descriptors, and their peers.
fn message(descriptors: usize) -> (Box<OutgoingMessage>, Vec<OwnedFd>) {
    let mut message = Box::<OutgoingMessage>::default();
    message.payload_mut().extend_from_slice(b"something");
    let far = (0..descriptors).map(|_| {
        let (near, far) = stream_pair().expect("two descriptors");
        message.push(near).expect("room for it");
        far
    });
    let far = far.collect();
    (message, far)
}

/// Whether no other end is left. A process that another test is just starting has a copy of every
/// descriptor for a moment.
fn has_ended(end: &OwnedFd) -> bool {
    let until_ns = monotonic_ns() + PATIENCE_NS;
    loop {
        match read(end, &mut [0; 8]) {
            Err(Errno::EAGAIN) if monotonic_ns() < until_ns => {
                std::thread::sleep(Duration::from_millis(1));
            }
            outcome => return outcome == Ok(0),
        }
    }
}

fn answers(events: &mut Vec<EngineEvent>) -> Vec<Outcome<usize>> {
    let answer = |event| match event {
        EngineEvent::MessageSent { key, message, outcome } => {
            assert_eq!(key, KEY);
            Some(outcome.map(|()| message.descriptors()))
        }
        _ => None,
    };
    events.drain(..).filter_map(answer).collect()
}

fn when_a_message_has_gone_no_copy_is_left_here(kind: EngineKind) {
    type Enter = fn(&mut Engine, &mut Vec<EngineEvent>);
    let ways: [Enter; 3] = [
        |engine, _| engine.submit(),
        |engine, events| engine.turn(events).expect("an engine"),
        |engine, events| engine.wait(events, None).expect("an engine"),
    ];
    for enter in ways {
        let mut engine = engine(kind);
        let eventfd = EventFd::from_value(1).expect("a descriptor");
        let (sender, receiver) = packet_pair().expect("two descriptors");
        let mut far = Vec::new();
        for descriptors in [1, 2, 3, 32] {
            let (message, ends) = message(descriptors);
            engine.send_message(KEY, sender.as_fd(), message);
            far.extend(ends);
        }
        // Another event has happened, so there is nothing to wait for.
        engine.poll_readable(Key::default(), eventfd.as_fd());
        let mut events = Vec::new();
        enter(&mut engine, &mut events);
        // The channel's references are dropped with it, and then every connection has ended.
        drop((sender, receiver));
        assert!(far.iter().all(has_ended));
        engine.turn(&mut events).expect("an engine");
        assert_eq!(answers(&mut events), [Ok(0); 4]);
    }
}

fn a_message_that_has_not_gone_ends_a_wait_and_brings_everything_back(kind: EngineKind) {
    for descriptors in [0, 1, 2, 32] {
        let mut engine = engine(kind);
        let (sender, _receiver) = packet_pair().expect("two descriptors");
        bound_send_buffer(sender.as_fd(), 4096).expect("a valid bound");
        let mut far = Vec::new();
        let refused = (0..100).find_map(|_| {
            let (message, ends) = message(descriptors);
            far.extend(ends);
            engine.send_message(KEY, sender.as_fd(), message);
            let mut events = Vec::new();
            engine.turn(&mut events).expect("an engine");
            answers(&mut events).pop().and_then(|answer| answer.err())
        });
        assert_eq!(refused, Some(Errno::EAGAIN), "the channel is bounded");
        let (message, ends) = message(descriptors);
        engine.send_message(KEY, sender.as_fd(), message);
        let mut events = Vec::new();
        let until_ns = monotonic_ns() + PATIENCE_NS;
        engine.wait(&mut events, Some(until_ns)).expect("an engine");
        assert!(monotonic_ns() < until_ns, "only the alarm ended the wait");
        let back = events.iter().find_map(|event| match event {
            EngineEvent::MessageSent { message, .. } => Some(message.descriptors()),
            _ => None,
        });
        assert_eq!(back, Some(descriptors));
        let alive = ends.iter().map(|end| read(end, &mut [0; 8]));
        assert!(alive.into_iter().all(|outcome| outcome == Err(Errno::EAGAIN)));
    }
}

fn messages_that_have_gone_do_not_end_a_wait(kind: EngineKind) {
    let mut engine = engine(kind);
    let (sender, _receiver) = packet_pair().expect("two descriptors");
    for descriptors in [0, 1, 2, 32] {
        let (message, _far) = message(descriptors);
        engine.remark(sender.as_fd(), b"a remark");
        engine.send_message(KEY, sender.as_fd(), message);
        let mut events = Vec::new();
        let until_ns = monotonic_ns() + 20_000_000;
        engine.wait(&mut events, Some(until_ns)).expect("an engine");
        assert!(monotonic_ns() >= until_ns, "something else than the alarm ended the wait");
        assert_eq!(answers(&mut events), [Ok(0)]);
    }
}

fn one_receive_brings_one_chunk_and_many_go_on_until_the_end(kind: EngineKind) {
    let mut engine = engine(kind);
    let (near, mut far) = connection();
    far.write_all(b"first").expect("room");
    engine.receive_once(KEY, near.as_fd());
    assert_eq!(received(&mut engine, 5), (b"first".to_vec(), false));
    engine.receive_many(KEY, near.as_fd());
    // More than a turn's share, and more than all buffers hold.
    let sent: Vec<u8> = (0..4 << 20).map(|number: u32| number.to_le_bytes()[1]).collect();
    let expected = sent.clone();
    let writer = std::thread::spawn(move || {
        far.write_all(&sent).expect("the peer reads");
        far
    });
    let (found, armed) = received(&mut engine, expected.len());
    assert!(found == expected && armed);
    drop(writer.join().expect("no panic"));
    assert_eq!(received(&mut engine, 1), (vec![], false));
    engine.close(near);
}

fn a_socket_that_is_shut_down_ends_what_is_armed_on_it(kind: EngineKind) {
    let mut engine = engine(kind);
    let (near, far) = connection();
    engine.receive_many(KEY, near.as_fd());
    let mut events = Vec::new();
    engine.turn(&mut events).expect("an engine");
    assert!(events.is_empty(), "{events:?}");
    let near = TcpStream::from(near);
    near.shutdown(Shutdown::Both).expect("a connection");
    assert_eq!(received(&mut engine, 1), (vec![], false));
    engine.close(near.into());
    drop(far);
}

fn a_cancelled_receive_says_so_once(kind: EngineKind) {
    let mut engine = engine(kind);
    let (near, mut far) = connection();
    engine.receive_many(KEY, near.as_fd());
    engine.turn(&mut Vec::new()).expect("an engine");
    engine.cancel_receive(KEY);
    let outcome = await_event(&mut engine, |event, _| match event {
        EngineEvent::Received { key: KEY, outcome, armed: false } => Some(outcome.map(|_| ())),
        _ => None,
    });
    assert_eq!(outcome, Err(Errno::ECANCELED));
    far.write_all(b"later").expect("room");
    let mut events = Vec::new();
    engine.wait(&mut events, Some(monotonic_ns() + 20_000_000)).expect("an engine");
    assert!(
        !events.iter().any(|event| matches!(event, EngineEvent::Received { .. })),
        "{events:?}"
    );
    engine.receive_once(KEY, near.as_fd());
    assert_eq!(received(&mut engine, 5), (b"later".to_vec(), false));
    engine.close(near);
}

fn a_send_waits_for_room_and_the_last_one_closes_behind_itself(kind: EngineKind) {
    let mut engine = engine(kind);
    let (near, mut far) = connection();
    let buffer: Vec<u8> = (0..8 << 20).map(|number: u32| number.to_le_bytes()[1]).collect();
    engine.send(KEY, near.as_fd(), buffer.clone(), 1);
    let mut events = Vec::new();
    engine.turn(&mut events).expect("an engine");
    assert!(events.is_empty(), "it is more than the kernel takes: {events:?}");
    let expected = buffer.clone();
    let reader = std::thread::spawn(move || {
        let mut found = Vec::new();
        far.read_to_end(&mut found).map(|_| found)
    });
    let mut left = 1;
    while left < buffer.len() {
        let (sent, back) = await_event(&mut engine, |event, _| match event {
            EngineEvent::Sent { key: KEY, buffer, outcome } => {
                Some((outcome.expect("a client"), buffer))
            }
            _ => None,
        });
        assert!(back == buffer && sent > 0);
        left += sent;
        if left < buffer.len() {
            engine.send(KEY, near.as_fd(), back, left);
        }
    }
    engine.send_last(KEY, near, b"the end".to_vec());
    let sent = await_event(&mut engine, |event, _| match event {
        EngineEvent::Sent { key: KEY, outcome, .. } => Some(outcome),
        _ => None,
    });
    assert_eq!(sent, Ok(7));
    let found = reader.join().expect("no panic").expect("an end, and no reset");
    assert!(found == [&expected[1..], b"the end"].concat());
}

fn a_cancelled_last_send_closes_its_socket(kind: EngineKind) {
    let mut engine = engine(kind);
    let (near, mut far) = connection();
    engine.send_last(KEY, near, vec![7; 8 << 20]);
    engine.turn(&mut Vec::new()).expect("an engine");
    engine.cancel_send(KEY);
    let back = await_event(&mut engine, |event, _| match event {
        EngineEvent::Sent { key: KEY, buffer, .. } => Some(buffer.len()),
        _ => None,
    });
    assert_eq!(back, 8 << 20);
    let mut found = Vec::new();
    let ended = far.read_to_end(&mut found);
    assert!(found.len() < 8 << 20, "{ended:?}");
}

fn an_accept_goes_on_until_it_is_cancelled(kind: EngineKind) {
    let mut engine = engine(kind);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a socket");
    let address = listener.local_addr().expect("it is bound");
    let connect = |count| (0..count).map(|_| TcpStream::connect(address).expect("a backlog"));
    let _clients: Vec<TcpStream> = connect(100).collect();
    engine.accept_many(KEY, listener.as_fd());
    let mut sockets = Vec::new();
    await_event(&mut engine, |event, _| match event {
        EngineEvent::Accepted { key: KEY, outcome, armed: true } => {
            sockets.push(outcome.expect("a socket"));
            (sockets.len() == 100).then_some(())
        }
        event => panic!("{event:?}"),
    });
    engine.cancel_accept(KEY);
    let outcome = await_event(&mut engine, |event, _| match event {
        EngineEvent::Accepted { key: KEY, outcome, armed: false } => Some(outcome.map(drop)),
        _ => None,
    });
    assert_eq!(outcome, Err(Errno::ECANCELED));
    let _later: Vec<TcpStream> = connect(1).collect();
    let mut events = Vec::new();
    engine.wait(&mut events, Some(monotonic_ns() + 20_000_000)).expect("an engine");
    assert!(
        !events.iter().any(|event| matches!(event, EngineEvent::Accepted { .. })),
        "{events:?}"
    );
    // It can be polled in between.
    engine.poll_readable(KEY, listener.as_fd());
    let polled = await_event(&mut engine, |event, _| match event {
        EngineEvent::Ready { key: KEY, outcome } => Some(outcome),
        _ => None,
    });
    assert_eq!(polled, Ok(()));
    assert!(listener.accept().is_ok(), "it has stayed in the backlog");
    engine.accept_many(KEY, listener.as_fd());
    let _last: Vec<TcpStream> = connect(1).collect();
    await_event(&mut engine, |event, _| {
        matches!(event, EngineEvent::Accepted { outcome: Ok(_), armed: true, .. }).then_some(())
    });
}

fn messages_are_received_only_as_far_as_there_is_room(kind: EngineKind) {
    let mut engine = engine(kind);
    let (sender, receiver) = packet_pair().expect("two descriptors");
    let (socket, _far) = stream_pair().expect("two descriptors");
    for _ in 0..5 {
        fdpass::send(sender.as_fd(), b"come in", &[socket.as_fd()]).expect("room");
    }
    engine.offer_messages(2);
    assert_eq!(engine.messages_offered(), 2);
    engine.receive_messages(KEY, receiver.as_fd());
    let mut sealed = Vec::new();
    let mut armed_still = true;
    let mut take = |engine: &mut Engine, count: usize, armed_still: &mut bool| {
        let until_ns = monotonic_ns() + PATIENCE_NS;
        let mut events = Vec::new();
        while sealed.len() < count && monotonic_ns() < until_ns {
            engine.wait(&mut events, Some(until_ns)).expect("an engine");
            for event in events.drain(..) {
                let EngineEvent::MessageReceived { key: KEY, outcome, armed } = event else {
                    continue;
                };
                *armed_still = armed;
                sealed.extend(outcome.ok().flatten());
            }
        }
        std::mem::take(&mut sealed)
    };
    let first = take(&mut engine, 2, &mut armed_still);
    assert_eq!((first.len(), engine.messages_offered()), (2, 0));
    let mut events = Vec::new();
    engine.wait(&mut events, Some(monotonic_ns() + 20_000_000)).expect("an engine");
    for event in events {
        let EngineEvent::MessageReceived { outcome: Err(Errno::ENOBUFS), armed, .. } = event else {
            continue;
        };
        armed_still = armed;
    }
    for message in first {
        let (mut payload, mut descriptors) = (Vec::new(), Vec::new());
        let opened = engine.open_message(message, &mut payload, &mut descriptors);
        assert_eq!((opened.truncated, &*payload, descriptors.len()), (false, &b"come in"[..], 1));
    }
    engine.offer_messages(32);
    if !armed_still {
        engine.receive_messages(KEY, receiver.as_fd());
    }
    assert_eq!(take(&mut engine, 3, &mut armed_still).len(), 3);
    drop(sender);
    let end = await_event(&mut engine, |event, _| match event {
        EngineEvent::MessageReceived { outcome, armed: false, .. } => {
            Some(outcome.map(|one| one.is_none()))
        }
        _ => None,
    });
    assert_eq!(end, Ok(true));
}

fn a_poll_tells_once_and_again_when_asked(kind: EngineKind) {
    let mut engine = engine(kind);
    let eventfd = EventFd::new().expect("a descriptor");
    eventfd.write(1).expect("room");
    for _ in 0..2 {
        engine.poll_readable(KEY, eventfd.as_fd());
        await_event(&mut engine, |event, _| {
            matches!(event, EngineEvent::Ready { key: KEY, .. }).then_some(())
        });
        let mut events = Vec::new();
        engine.wait(&mut events, Some(monotonic_ns() + 5_000_000)).expect("an engine");
        assert!(events.is_empty(), "{events:?}");
    }
    let (sender, receiver) = packet_pair().expect("two descriptors");
    bound_send_buffer(sender.as_fd(), 4096).expect("a valid bound");
    while fdpass::send(sender.as_fd(), &[0; 512], &[]).is_ok() {}
    engine.poll_writable(KEY, sender.as_fd());
    let mut events = Vec::new();
    engine.wait(&mut events, Some(monotonic_ns() + 5_000_000)).expect("an engine");
    assert!(events.is_empty(), "{events:?}");
    while fdpass::receive(receiver.as_fd(), &mut [0; 512], &mut Vec::new()).is_ok() {}
    await_event(&mut engine, |event, _| {
        matches!(event, EngineEvent::Ready { key: KEY, .. }).then_some(())
    });
}

fn the_notifier_tells_that_there_are_events(kind: EngineKind) {
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
    let mut engine = engine(kind);
    let notifier = engine.notifier().expect("descriptors");
    let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("a set");
    let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
    set.add(&notifier, EpollEvent::new(edge, 0)).expect("room");
    let (near, mut far) = connection();
    engine.receive_many(KEY, near.as_fd());
    for _ in 0..3 {
        let mut events = Vec::new();
        while {
            events.clear();
            engine.turn(&mut events).expect("an engine");
            !events.is_empty()
        } {}
        far.write_all(b"bytes").expect("room");
        let mut ready = [EpollEvent::empty(); 1];
        assert_eq!(set.wait(&mut ready, 30_000_u16), Ok(1), "nothing was told");
        assert_eq!(received(&mut engine, 5).0, b"bytes");
    }
    engine.close(near);
}

fn deadlines_end_waits_and_may_come_nearer(kind: EngineKind) {
    let mut engine = engine(kind);
    let mut events = Vec::new();
    for wait_ns in [20_000_000, 5_000_000, 0, 10_000_000] {
        let until_ns = monotonic_ns() + wait_ns;
        while monotonic_ns() < until_ns {
            engine.wait(&mut events, Some(until_ns)).expect("an engine");
        }
        assert!(monotonic_ns() < until_ns + PATIENCE_NS);
    }
    engine.wait(&mut events, Some(1)).expect("an engine");
    assert!(events.is_empty(), "{events:?}");
}

/// Tests that must pass on either engine.
macro_rules! on_each_engine {
    ($($name:ident)*) => {
        mod io_uring {
            $(#[test]
            fn $name() {
                super::$name(super::EngineKind::IoUring);
            })*
        }

        mod epoll {
            $(#[test]
            fn $name() {
                super::$name(super::EngineKind::Epoll);
            })*
        }
    };
}

on_each_engine! {
    when_a_message_has_gone_no_copy_is_left_here
    a_message_that_has_not_gone_ends_a_wait_and_brings_everything_back
    messages_that_have_gone_do_not_end_a_wait
    one_receive_brings_one_chunk_and_many_go_on_until_the_end
    a_socket_that_is_shut_down_ends_what_is_armed_on_it
    a_cancelled_receive_says_so_once
    a_send_waits_for_room_and_the_last_one_closes_behind_itself
    a_cancelled_last_send_closes_its_socket
    an_accept_goes_on_until_it_is_cancelled
    messages_are_received_only_as_far_as_there_is_room
    a_poll_tells_once_and_again_when_asked
    the_notifier_tells_that_there_are_events
    deadlines_end_waits_and_may_come_nearer
}
