//! A load generator on io_uring that knows nothing of the server it loads.
//!
//! * **Open loop**: requests start at planned instants and latency counts from the *planned*
//!   start, so that neither a stalled server nor a late generator can hide its delay.
//! * **Closed loop**: a number of connections kept busy, for finding what a server can do at
//!   most; its percentiles are labelled as uncorrected.
//!
//! [`run`] is the command, [`measure`] the library: it takes [`Settings`] and returns a
//! [`Report`], the object that `--json` prints. Levels, each using only those above it:
//!
//! * vocabulary: `error`, `units`, `target`, `settings`: what can be asked for, what is refused;
//! * pure: `plan`, `http`, `protocol`, `tls`, `latency`, `tally`, `collect`, `preflight`,
//!   `expect`, `verdict`: decisions and sums, without a clock or a socket;
//! * system: `sys`, `environment`: the kernel's facilities, and the only `unsafe`;
//! * engine: `engine`, `report`: threads, connections, results;
//! * shell: `cli`, `command`, `output`: arguments in, tables out.

pub mod cli;
pub mod collect;
mod command;
mod engine;
pub mod environment;
mod error;
pub mod expect;
mod http;
pub mod latency;
mod output;
pub mod plan;
mod preflight;
mod protocol;
pub mod report;
pub mod settings;
mod sys;
pub mod tally;
pub mod target;
mod tls;
mod units;
pub mod verdict;

pub use command::run;
pub use engine::{Observer, Progress, StopFlag, measure};
pub use error::Error;
pub use report::Report;
pub use settings::Settings;

/// The examples of the README are compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
