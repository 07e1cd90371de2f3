//! Clusters of worker processes that share listeners: `node:cluster` for Rust programs.

mod bus;
mod completion;
mod data_path;
mod event;
mod listeners;
mod mailbox;
mod message;
mod plane;
mod primary;
mod role;
mod settings;
mod worker_handle;

pub use bus::Events;
pub use completion::Completion;
pub use event::{AddressKind, Event, ListeningAddress, WorkerCounts};
pub use message::{Handle, Message};
pub use primary::{Cluster, ForkOptions};
pub use role::{is_primary, is_worker};
pub use settings::{
    ClusterSettings, InspectPort, POLICY_VARIABLE, StreamSetting, policy_from_environment,
};
pub use worker_handle::WorkerHandle;
