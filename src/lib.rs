//! A Linux load-balancing front end on io_uring or epoll: one primary process accepts, workers
//! serve.
//!
//! `node:cluster` for Rust programs. [`guide`] teaches it, beginning with a server in fifteen
//! lines; everything else begins at [`Cluster`] and [`Worker`].

#![forbid(unsafe_code)]
#![cfg_attr(
    not(feature = "internals"),
    allow(
        unreachable_pub,
        reason = "what tests and benchmarks see is public with that feature only"
    )
)]

pub mod adapter;
mod cluster;
mod companion;
mod control_plane;
mod data_path;
mod dialect;
#[doc = include_str!("guide.md")]
pub mod guide {}
mod handle;
mod message;
mod settings;
mod supervisor;
mod sync;
pub mod topology;
mod worker;

use clusterlb_schedule as schedule;
use clusterlb_sys as sys;
use schedule::id;
use sys::{address, error};

pub use cluster::{Cluster, ForkOptions, Role, is_primary, is_worker, role};
pub use clusterlb_protocol as protocol;
pub use companion::{COMPANION_VARIABLE, Companion, CompanionEvent, RunningCompanion};
pub use data_path::{ClusterCounts, ListenerCounts};
pub use handle::{
    AddressKind, Event, Events, ListenerSnapshot, ListeningAddress, WorkerCounts, WorkerHandle,
};
pub use message::{Handle, Message};
pub use protocol::control::{LatencySummary, ListenOptions, Serialization, Transport};
pub use schedule::id::{ListenerId, Slot, WorkerId};
pub use schedule::{
    AcceptMechanism, CLAIM_BOUNDS_NS, CREDITS_MAX, ClaimTimes, Client, CreditRule, Dispatch,
    Limits, Loads, OverloadFactor, Policy, Scheduler, SchedulerConfig, SchedulerFactory, Skips,
    Status, UnknownName, WorkerLoad,
};
pub use settings::{
    ClusterSettings, DISPATCH_VARIABLE, Dialect, InspectPort, LISTENERS_MAX, ListenRule,
    POLICY_VARIABLE, Readiness, StreamSetting, WORKERS_MAX, dispatch_from_environment,
    policy_from_environment,
};
pub use supervisor::{
    Finished, ReadyAfter, ReloadChanges, Restart, RestartPolicy, SlotSnapshot, SlotState, Snapshot,
    Supervisor, SupervisorEvent, SupervisorEvents, SupervisorHandle, SupervisorStage,
    WorkerSnapshot, WorkerState,
};
pub use sync::completion::Completion;
pub use sys::address::{Endpoint, FileAccess, ListenAddress};
pub use sys::engine::choice::{ENGINE_VARIABLE, EngineChoice, EngineDecision, EngineKind};
pub use sys::error::{Error, ErrorKind, Result};
pub use sys::limits::DescriptorLimit;
pub use sys::process::Ending;
pub use sys::signal::Signal;
pub use worker::{BindFuture, Connection, Datagrams, Guard, Listener, Messages, Tracked, Worker};

/// Private modules for this project's own tests and benchmarks. No promise is made of them.
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals {
    pub mod data_path {
        pub use crate::data_path::*;
    }
    pub mod dialect {
        pub use crate::dialect::node;
    }
}

/// Compiles the code in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
