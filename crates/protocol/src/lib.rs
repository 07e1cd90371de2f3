//! The protocol between a primary and its workers, for both ends.
//!
//! * [`environment`]: the variables and descriptors that a worker inherits.
//! * [`control`]: framed messages over a stream socket, with descriptors attached.
//! * [`handoff_layout`]: the layout of a message with accepted sockets.
//! * [`scoreboard`]: the page of counters that the primary and one worker map.
//! * [`latency`]: the time from accept to claim.
//! * [`proxy_protocol`]: the header that a balancer puts in front of a client's bytes.
//! * [`worker_end`]: what every worker does on its side, without a loop.
//!
//! Most programs use the `clusterlb` library, which implements this protocol. Use this crate to
//! write a worker on another event loop.

#![forbid(unsafe_code)]

pub mod control;
pub mod environment;
pub mod handoff_layout;
pub mod latency;
pub mod proxy_protocol;
pub mod scoreboard;
pub mod worker_end;

use clusterlb_schedule::{self as schedule, id};
use clusterlb_sys::{self as sys, error};

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
