//! What a ring promises of messages: when they have gone, no copy of their descriptors is left.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use nix::unistd::read;

use super::*;
use crate::clock::monotonic_ns;
use crate::fdpass::{bound_send_buffer, packet_pair, stream_pair};

const SHAPE: RingShape = RingShape { submissions: 64, completions: 128 };
const KEY: Key = Key { index: 3, generation: 7 };
const PATIENCE_NS: u64 = 30_000_000_000;

/// A message with this many descriptors, and the far ends of what they are.
fn message(descriptors: usize) -> (Box<OutgoingMessage>, Vec<std::os::fd::OwnedFd>) {
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

fn answers(events: &mut Vec<Event>) -> Vec<Outcome<usize>> {
    let answer = |event| match event {
        Event::MessageSent { key, message, outcome } => {
            assert_eq!(key, KEY);
            Some(outcome.map(|()| message.descriptors()))
        }
        _ => None,
    };
    events.drain(..).filter_map(answer).collect()
}

#[test]
fn when_a_message_has_gone_no_copy_is_left_here() {
    type Enter = fn(&mut Ring, &mut Vec<Event>);
    let ways: [Enter; 3] = [
        |ring, _| ring.submit(),
        |ring, events| ring.turn(events).expect("a ring"),
        |ring, events| ring.wait(events, None).expect("a ring"),
    ];
    for enter in ways {
        let mut ring = Ring::new(SHAPE).expect("this test needs io_uring");
        let bell = EventFd::from_value(1).expect("a descriptor");
        let (sender, receiver) = packet_pair().expect("two descriptors");
        let mut far = Vec::new();
        for descriptors in [1, 2, 3, 32] {
            let (message, ends) = message(descriptors);
            ring.send_message(KEY, sender.as_fd(), message);
            far.extend(ends);
        }
        // Something else has happened, so that nothing has to be waited for.
        ring.poll_readable(Key::default(), bell.as_fd());
        let mut events = Vec::new();
        enter(&mut ring, &mut events);
        // The channel's references go with it, and then every connection has ended.
        drop((sender, receiver));
        let ended = far.iter().map(|end| read(end, &mut [0; 8]));
        assert!(ended.into_iter().all(|outcome| outcome == Ok(0)));
        ring.turn(&mut events).expect("a ring");
        assert_eq!(answers(&mut events), [Ok(0); 4]);
    }
}

#[test]
fn a_message_that_has_not_gone_ends_a_wait_and_brings_everything_back() {
    for descriptors in [0, 1, 2, 32] {
        let mut ring = Ring::new(SHAPE).expect("this test needs io_uring");
        let (sender, _receiver) = packet_pair().expect("two descriptors");
        bound_send_buffer(sender.as_fd(), 4096).expect("a valid bound");
        let mut far = Vec::new();
        let refused = (0..100).find_map(|_| {
            let (message, ends) = message(descriptors);
            far.extend(ends);
            ring.send_message(KEY, sender.as_fd(), message);
            let mut events = Vec::new();
            ring.turn(&mut events).expect("a ring");
            answers(&mut events).pop().and_then(|answer| answer.err())
        });
        assert_eq!(refused, Some(Errno::EAGAIN), "the channel is bounded");
        let (message, ends) = message(descriptors);
        ring.send_message(KEY, sender.as_fd(), message);
        let mut events = Vec::new();
        let until_ns = monotonic_ns() + PATIENCE_NS;
        ring.wait(&mut events, Some(until_ns)).expect("a ring");
        assert!(monotonic_ns() < until_ns, "only the alarm ended the wait");
        let back = events.iter().find_map(|event| match event {
            Event::MessageSent { message, .. } => Some(message.descriptors()),
            _ => None,
        });
        assert_eq!(back, Some(descriptors));
        let alive = ends.iter().map(|end| read(end, &mut [0; 8]));
        assert!(alive.into_iter().all(|outcome| outcome == Err(Errno::EAGAIN)));
    }
}

#[test]
fn messages_that_have_gone_do_not_end_a_wait() {
    let mut ring = Ring::new(SHAPE).expect("this test needs io_uring");
    let (sender, _receiver) = packet_pair().expect("two descriptors");
    for descriptors in [0, 1, 2, 32] {
        let (message, _far) = message(descriptors);
        ring.remark(sender.as_fd(), b"a remark");
        ring.send_message(KEY, sender.as_fd(), message);
        let mut events = Vec::new();
        let until_ns = monotonic_ns() + 20_000_000;
        ring.wait(&mut events, Some(until_ns)).expect("a ring");
        assert!(monotonic_ns() >= until_ns, "something else than the alarm ended the wait");
        assert_eq!(answers(&mut events), [Ok(0)]);
    }
}
