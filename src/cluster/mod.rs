//! A run of one primary and its workers, as the command starts it.
//!
//! Owns the control plane. The data path is `primary`, what a worker does is `worker`.

mod data_path;
mod event;
mod listeners;
mod member;
mod restart;
mod summary;
mod supervisor;

pub use event::Event;
pub use summary::{Summary, WorkerSummary};
pub use supervisor::{Outcome, Supervisor};
