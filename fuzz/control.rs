//! Invariants of the control channel and of handoff messages for arbitrary input: frames are the
//! same however their bytes are split, and no length is believed before the bytes are there.

use std::fmt::Debug;
use std::io::Write as _;
use std::os::unix::net::UnixStream;

use clusterlb_protocol::control::{ToPrimary, ToWorker, halves};
use clusterlb_protocol::handoff_layout;
use serde::de::DeserializeOwned;

/// Bytes per write. A socket has room for them, and a frame may be longer.
const PIECE_BYTES: usize = 32 * 1024;

/// Checks one input.
pub(crate) fn control(bytes: &[u8]) {
    assert_eq!(frames::<ToPrimary>(bytes, PIECE_BYTES), frames::<ToPrimary>(bytes, 7));
    assert_eq!(frames::<ToWorker>(bytes, PIECE_BYTES), frames::<ToWorker>(bytes, 5));
    if let Some(records) = handoff_layout::records(bytes) {
        assert!(records.count() <= bytes.len());
    }
}

/// The frames before the first error, in words, and whether there was one.
fn frames<M: DeserializeOwned + Debug>(bytes: &[u8], piece_bytes: usize) -> (Vec<String>, bool) {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    ours.set_nonblocking(true).expect("it is a socket");
    let (mut incoming, _outgoing) = halves(ours.into());
    let mut received = Vec::new();
    let mut failed = false;
    for piece in bytes.chunks(piece_bytes) {
        theirs.write_all(piece).expect("it is read at once");
        failed = incoming.receive::<M>(&mut received).is_err();
        if failed {
            break;
        }
    }
    (received.iter().map(|frame| format!("{:?}", frame.body)).collect(), failed)
}
