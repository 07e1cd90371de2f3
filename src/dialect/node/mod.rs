//! Unmodified Node.js programs as workers: the primary's side of the channel of `node:cluster`.
//!
//! Three layers, each of which uses only the ones before:
//!
//! * [`codec`]: bytes to messages and back, for both of Node's serializations. Pure.
//! * [`session`]: meaning and order of one worker's messages. Pure.
//! * [`bridge`]: sockets, inboxes and counters of all Node workers, on one thread.
//!
//! In addition, [`preload`] is a script in the workers that reports what the channel does not.
//!
//! To the data path, a Node worker looks like any other: it has an inbox and a scoreboard page. The
//! bridge holds the receiving end of the inbox and writes the page on the worker's behalf, so
//! choosing, credits, stall detection, taking back and counting use the same code. The protocol is
//! byte for byte the same from Node 18 to 25.

pub mod bridge;
pub mod codec;
mod env_file;
pub(crate) mod listen_query;
mod messages;
pub mod preload;
mod script_file;
mod script_link;
pub mod session;
mod worker;

use std::os::fd::RawFd;

use crate::id::WorkerId;
pub use codec::Serialization;
pub(crate) use messages::MessageChannel;
pub(in crate::dialect) use messages::reads_no_v8;
pub(crate) use worker::{Start, State};
pub(super) use worker::{options, split};

/// The variables that make a Node process a worker with a channel. Node deletes them before the
/// program runs. All of them are needed: with an id and no channel, the program would silently
/// never listen. `channel` is the descriptor number of its end of a stream socket pair.
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
