//! A Linux load-balancing front end on io_uring: one primary process accepts, workers serve.
//!
//! `node:cluster` for Rust programs. [`guide`] teaches it, beginning with a server in fifteen
//! lines; everything else begins at [`Cluster`] and [`Worker`].

pub mod adapter;
pub mod address;
pub mod board;
pub mod check;
pub mod cli;
pub mod cluster;
pub mod control;
pub mod dialect;
pub mod error;
#[doc = include_str!("guide.md")]
pub mod guide {}
pub mod handler;
pub mod handoff;
pub mod harness;
pub mod id;
pub mod keeper;
pub mod primary;
#[cfg(feature = "tokio-uring")]
pub mod runtime;
pub mod schedule;
pub mod settings;
pub mod sys;
pub mod topology;
pub mod work;
pub mod worker;

pub use cluster::{
    AddressKind, Cluster, ClusterSettings, Completion, Connection, Datagrams, Event, Events,
    ForkOptions, Guard, Handle, InspectPort, Listener, ListeningAddress, Message, Messages,
    Opening, Role, StreamSetting, Tracked, Worker, WorkerCounts, WorkerHandle, is_primary,
    is_worker, role,
};
pub use control::{ListenOptions, Serialization, Transport};
pub use error::{Error, Result};
pub use id::{ListenerId, WorkerId};
pub use nix::sys::signal::Signal;
pub use settings::Policy;
pub use sys::process::Ending;

/// Compiles the code in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
