//! What a worker and its primary share, for both ends.
//!
//! * [`environment`]: what a worker inherits, and the variables that name it.
//! * [`control`]: framed messages over a stream socket, with descriptors beside them.
//! * [`handoff`]: the layout of a message with accepted sockets.
//! * [`scoreboard`]: the page of counters that the primary and one worker map.
//! * [`latency`]: how long sockets were on their way.
//!
//! Most programs use the `clusterlb` library, which speaks this for them. Use this crate to write a
//! worker on an event loop of your own.

#![forbid(unsafe_code)]

pub mod control;
pub mod environment;
pub mod handoff;
pub mod latency;
pub mod scoreboard;

use clusterlb_schedule::{self as schedule, id};
use clusterlb_sys::{self as sys, error};
