//! What one end sends the other receives, however the socket splits it.

use std::os::fd::AsFd;

use nix::errno::Errno;
use proptest::prelude::*;

use super::*;
use crate::control::{MESSAGE_BYTES_MAX, Serialization, ToPrimary, ToWorker};
use crate::error::Error;
use crate::sys::fdpass;

fn pair() -> (Channel, Channel) {
    let (left, right) = fdpass::stream_pair().expect("a pair");
    (Channel::new(left), Channel::new(right))
}

fn drain(grace_ms: u64) -> ToWorker {
    ToWorker::Drain { grace_ms: Some(grace_ms) }
}

fn frames(channel: &mut Channel) -> Vec<Received<ToWorker>> {
    let mut frames = Vec::new();
    channel.incoming.receive(&mut frames).expect("frames");
    frames
}

fn leaving(channel: &mut Channel, count: u32) {
    for _ in 0..count {
        channel.send(&ToPrimary::Leaving, vec![]).expect("below the bound");
    }
}

#[test]
fn words_and_their_descriptors_stay_together() {
    let (mut left, mut right) = pair();
    let (socket, _far) = fdpass::stream_pair().expect("a pair");
    left.send(&drain(1), vec![]).expect("room");
    left.send(&drain(2), vec![socket]).expect("room");
    left.send(&drain(3), vec![]).expect("room");
    let received: Vec<(ToWorker, Vec<OwnedFd>)> = right.receive().expect("frames");
    let counts: Vec<usize> = received.iter().map(|(_, descriptors)| descriptors.len()).collect();
    assert_eq!(counts, [0, 1, 0]);
    assert_eq!(received[2].0, drain(3));
}

#[test]
fn many_frames_with_descriptors_keep_their_own() {
    let (mut left, mut right) = pair();
    for count in [1, 3, 0, 8, 1] {
        let sockets = (0..count).map(|_| fdpass::stream_pair().expect("a pair").0).collect();
        left.send(&drain(count), sockets).expect("room");
    }
    let mut counts = Vec::new();
    while counts.len() < 5 {
        let arrived = frames(&mut right).into_iter();
        counts.extend(arrived.map(|frame| (frame.descriptors.len(), frame.lost)));
    }
    assert_eq!(counts, [(1, 0), (3, 0), (0, 0), (8, 0), (1, 0)]);
}

#[test]
fn a_full_socket_delays_but_loses_nothing() {
    let (mut left, mut right) = pair();
    fdpass::bound_send_buffer(left.as_fd(), 4096).expect("a bound");
    leaving(&mut left, 3000);
    assert_eq!(left.flush().expect("the other end lives"), Flushed::Full);
    let mut seen = 0;
    while seen < 3000 {
        seen += right.receive::<ToPrimary>().expect("frames").len();
        left.flush().expect("the other end lives");
    }
    assert!(!left.outgoing.has_waiting());
}

#[test]
fn large_messages_pass_each_other() {
    let (mut left, mut right) = pair();
    let body = Serialization::Json.encode(&"x".repeat(3_000_000)).expect("a string");
    for end in [&mut left, &mut right] {
        end.outgoing.send_message(Serialization::Json, &body, vec![]).expect("below the bound");
    }
    let mut arrived = [false, false];
    while arrived != [true, true] {
        for (end, arrived) in [&mut left, &mut right].into_iter().zip(&mut arrived) {
            end.flush().expect("the other end lives");
            for frame in frames(end) {
                let Body::Message { bytes, .. } = frame.body else { panic!("no word was sent") };
                *arrived = bytes == body;
            }
        }
    }
}

#[test]
fn a_reader_that_never_reads_is_noticed() {
    let (mut left, _right) = pair();
    let body = Serialization::Json.encode(&"x".repeat(1_000_000)).expect("a string");
    let failed =
        (0..100).find_map(|_| left.outgoing.send_message(Serialization::Json, &body, vec![]).err());
    assert!(
        matches!(failed, Some(Error::System { source, .. }) if source == Errno::EAGAIN),
        "{failed:?}"
    );
    left.send(&drain(1), vec![]).expect("there is room for words of ours");
    let failed = (0..20_000).find_map(|_| left.send(&drain(1), vec![]).err());
    assert!(failed.is_some(), "which is bounded, too");
}

#[test]
fn a_message_that_is_too_long_is_refused_before_it_is_sent() {
    let (mut left, mut right) = pair();
    let body = vec![b' '; MESSAGE_BYTES_MAX + 1];
    let failed = left.outgoing.send_message(Serialization::Json, &body, vec![]);
    assert!(matches!(failed, Err(Error::System { source, .. }) if source == Errno::EMSGSIZE));
    left.send(&drain(1), vec![]).expect("the channel is as it was");
    assert_eq!(frames(&mut right).len(), 1);
}

#[test]
fn an_end_that_closes_is_seen_by_both() {
    let (mut left, mut right) = pair();
    left.send(&drain(1), vec![]).expect("room");
    left.outgoing.close();
    assert_eq!(frames(&mut right).len(), 1, "what was sent arrives");
    assert!(right.is_closed());
    let failed = left.send(&drain(2), vec![]);
    assert!(matches!(failed, Err(Error::System { source, .. }) if source == Errno::EPIPE));
}

#[test]
fn what_came_before_garbage_is_heard() {
    let (mut left, mut right) = pair();
    left.send(&drain(1), vec![]).expect("room");
    fdpass::send(left.as_fd(), b"nonsense", &[]).expect("room");
    let mut heard: Vec<Received<ToWorker>> = Vec::new();
    let error = right.incoming.receive(&mut heard).expect_err("garbage");
    assert!(error.to_string().contains("garbage"), "{error}");
    assert_eq!(heard.len(), 1);
}

#[test]
fn a_message_that_is_none_is_garbage() {
    let (mut left, mut right) = pair();
    left.outgoing.send_message(Serialization::Json, b"{\"a\":", vec![]).expect("room");
    let mut heard: Vec<Received<ToWorker>> = Vec::new();
    assert!(right.incoming.receive(&mut heard).is_err() && heard.is_empty());
}

#[test]
fn a_reader_with_others_to_read_gets_as_much_as_it_asks_for() {
    let (mut left, mut right) = pair();
    for sequence in 0..5 {
        left.send(&drain(sequence), vec![]).expect("room");
    }
    let mut heard: Vec<Received<ToWorker>> = Vec::new();
    for (count, has_more) in [(2, true), (4, true), (5, false)] {
        right.incoming.receive_some(&mut heard, 2, 4096).expect("frames");
        assert_eq!((heard.len(), right.incoming.has_more()), (count, has_more));
    }
}

/// What a side does that sends descriptors in other ways than with the frame that names them.
#[test]
fn descriptors_without_a_frame_that_names_them_end_the_channel() {
    let null = || std::fs::File::open("/dev/null").expect("it is there");
    let header = |length: u32, descriptors: u8| {
        let [a, b, c, d] = length.to_le_bytes();
        [a, b, c, d, descriptors, 1, 0, 0]
    };
    let cases: [(&[u8], usize); 4] = [
        // A frame that names none, one that never ends and names none, one that names fewer, and
        // nothing but bytes of the frame before.
        (&[&header(1, 0)[..], b"0"].concat(), 1),
        (&header(60_000, 0), 32),
        (&[&header(1, 2)[..], b"0"].concat(), 3),
        (b" ", 32),
    ];
    for (bytes, count) in cases {
        let (left, mut right) = pair();
        if bytes == b" " {
            fdpass::send(left.as_fd(), &header(60_000, 0), &[]).expect("room");
        }
        let files: Vec<_> = (0..count).map(|_| null()).collect();
        let passed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        fdpass::send(left.as_fd(), bytes, &passed).expect("room");
        let mut heard: Vec<Received<ToWorker>> = Vec::new();
        let outcome = right.incoming.receive(&mut heard);
        let outcome = outcome.and_then(|()| right.incoming.receive(&mut heard));
        assert!(outcome.is_err(), "{bytes:?} with {count}");
    }
    // The rest of a frame may come later than its descriptors.
    let (left, mut right) = pair();
    fdpass::send(left.as_fd(), &header(2, 1), &[null().as_fd()]).expect("room");
    let mut heard: Vec<Received<ToWorker>> = Vec::new();
    right.incoming.receive(&mut heard).expect("so far it is a frame");
    fdpass::send(left.as_fd(), b"12", &[]).expect("room");
    right.incoming.receive(&mut heard).expect("a frame");
    assert_eq!(heard[0].descriptors.len(), 1);
}

proptest! {
    #[test]
    fn garbage_ends_the_channel_without_panic(
        bytes in prop::collection::vec(any::<u8>(), 1..400),
    ) {
        let (left, mut right) = pair();
        fdpass::send(left.as_fd(), &bytes, &[]).expect("room");
        drop(left);
        let _ = right.receive::<ToPrimary>();
    }
}
