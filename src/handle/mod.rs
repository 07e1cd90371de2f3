//! What the control plane and a program share: requests to it, events from it, and its workers.
//!
//! Owns no thread. The control plane serves these handles and `Cluster` gives them out, so that
//! neither needs the other.

mod bus;
mod event;
mod listening_address;
mod registry;
mod requests;
mod worker_counts;
mod worker_handle;
mod worker_state;

pub(crate) use bus::Bus;
pub use bus::Events;
pub use event::Event;
pub use listening_address::{AddressKind, ListeningAddress};
pub use registry::ListenerSnapshot;
pub(crate) use registry::{Registered, Registry};
pub(crate) use requests::{CompletionGuard, ControlHandle, ForkRequest, Request};
pub use worker_counts::WorkerCounts;
pub use worker_handle::WorkerHandle;
pub(crate) use worker_state::{LifeState, Streams, WorkerState};
