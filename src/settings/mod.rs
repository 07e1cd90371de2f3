//! Settings of a cluster's workers: their dialect, and when they count as serving.

mod cluster_settings;
mod listen_rule;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use cluster_settings::OWN_PROGRAM;
pub use cluster_settings::{
    ClusterSettings, DISPATCH_VARIABLE, InspectPort, POLICY_VARIABLE, StreamSetting,
    dispatch_from_environment, policy_from_environment,
};
pub use listen_rule::ListenRule;

pub(crate) use crate::schedule::{AcceptMechanism, Policy};

/// Maximum number of workers of a primary.
pub const WORKERS_MAX: usize = 1024;
/// Maximum number of open listeners of a primary.
pub const LISTENERS_MAX: usize = crate::schedule::LISTENERS_MAX;

/// The protocol between workers and their primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// The native protocol of this project.
    #[default]
    Native,
    /// The channel of `node:cluster`: workers are unmodified Node.js programs.
    Node,
    /// No protocol: workers are programs that inherit listening sockets, as from systemd
    /// (`sd_listen_fds(3)`), and accept from them. Under [`Policy::None`]; or, if the kernel
    /// dispatches ([`Dispatch::Kernel`](crate::Dispatch::Kernel)), under [`Policy::Rr`],
    /// [`Policy::Least`] and [`Policy::Sticky`].
    ListenFds,
}

/// When a worker without a channel counts as serving.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Readiness {
    /// Once it, or a process that it has started, waits for connections on a socket that it has
    /// inherited (`/proc`); after a second, where that cannot be seen.
    #[default]
    Accepting,
    /// After it has run for this time.
    After(Duration),
    /// After it has sent `READY=1` (`sd_notify(3)`).
    Notified,
}
