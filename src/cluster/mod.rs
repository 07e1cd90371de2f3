//! Clusters of worker processes that share listeners: `node:cluster` for Rust programs.

mod bridge_thread;
mod bus;
mod completion;
mod data_path;
mod event;
mod listeners;
mod mailbox;
mod message;
mod own_sockets;
mod plane;
mod primary;
mod role;
mod settings;
mod worker;
mod worker_handle;

pub use bus::Events;
pub use completion::Completion;
pub use event::{AddressKind, Event, ListeningAddress, WorkerCounts};
pub use message::{Handle, Message};
pub use primary::{Cluster, ForkOptions};
pub use role::{Role, is_primary, is_worker, role};
pub use settings::{
    ClusterSettings, InspectPort, POLICY_VARIABLE, StreamSetting, policy_from_environment,
};
pub use worker::{Connection, Datagrams, Guard, Listener, Messages, Opening, Tracked, Worker};
pub use worker_handle::WorkerHandle;
