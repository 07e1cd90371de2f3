//! A Linux load-balancing front end on io_uring: one primary process accepts, workers serve.

pub mod error;
pub mod handler;
pub mod id;
