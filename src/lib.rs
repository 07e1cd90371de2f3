//! A Linux load-balancing front end on io_uring: one primary process accepts, workers serve.

pub mod address;
pub mod board;
pub mod error;
pub mod handler;
pub mod handoff;
pub mod id;
pub mod schedule;
pub mod sys;
