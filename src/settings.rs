//! Plain settings of a cluster's workers: what they speak, and when they count as serving.

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use crate::schedule::{AcceptMechanism, Policy};

/// Most workers of one primary.
pub const WORKERS_MAX: usize = 1024;
/// Most listeners that one primary has open at once.
pub const LISTENERS_MAX: usize = crate::schedule::LISTENERS_MAX;

/// The language in which workers and their primary talk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// This project's own.
    #[default]
    Native,
    /// The channel of `node:cluster`: workers are unmodified Node.js programs.
    Node,
    /// None at all: workers are programs that take their listening sockets over from whoever has
    /// started them, as from systemd (`sd_listen_fds(3)`), and accept by themselves. Only under
    /// [`Policy::None`].
    ListenFds,
}

/// When a worker counts as serving that has no channel to say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// When it has run for so long.
    After(Duration),
    /// When it has said `READY=1` (`sd_notify(3)`).
    Notified,
}

impl Default for Readiness {
    fn default() -> Self {
        Self::After(Duration::from_secs(1))
    }
}
