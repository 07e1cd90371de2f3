//! Unmodified Node.js programs as workers: the channel of `node:cluster`, seen from the primary.
//!
//! Three layers, each knowing only the one before it:
//!
//! * [`codec`]: bytes to messages and back, for both of Node's serializations. Pure.
//! * [`session`]: what one worker's messages mean, and what is sent to it when. Pure.
//! * [`bridge`]: sockets, inboxes and counters of all Node workers, on one thread.
//!
//! And [`preload`], a script within the workers, which tells what the channel does not.
//!
//! To the data path a Node worker is a worker like any other: it has an inbox and a page of the
//! load board. The bridge holds the receiving end of the inbox and writes the page in the worker's
//! name, so choosing, credits, suspicion, taking back and the books stay one mechanism.
//! The protocol is byte for byte the same from Node 18 to 25.

pub mod bridge;
pub mod codec;
mod env_file;
pub mod preload;
mod script_file;
pub mod session;

use std::os::fd::RawFd;

use crate::id::WorkerId;
pub use codec::Serialization;

/// The variables that make a Node process a worker with a channel. It deletes them before the
/// program's own code runs. All are needed: with an id and no channel the program would listen in
/// vain, silently. `channel` is the number of its end of a stream socket pair.
#[must_use]
pub fn environment(
    id: WorkerId,
    channel: RawFd,
    serialization: Serialization,
) -> [(String, String); 3] {
    [
        ("NODE_UNIQUE_ID".into(), id.to_string()),
        ("NODE_CHANNEL_FD".into(), channel.to_string()),
        ("NODE_CHANNEL_SERIALIZATION_MODE".into(), serialization.name().into()),
    ]
}
