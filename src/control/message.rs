//! What a primary and a worker tell each other beside the sockets. Plain data.

use serde::{Deserialize, Serialize};

use crate::id::ListenerId;

/// From a worker to its primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ToPrimary {
    /// The worker runs and has a channel (Node's `online`).
    Online {
        /// Its process id.
        pid: u32,
    },
    /// The worker wants to serve an address (Node's `queryServer`).
    Listen {
        /// Names this request in the reply.
        sequence: u32,
        /// The address as `--listen` would have it.
        address: String,
    },
    /// Every address that the worker asked for is served (the last `listening` of Node).
    Ready,
    /// The worker leaves: nothing more for it, please. What it has it will finish.
    Leaving,
    /// The worker's last words.
    Farewell {
        /// From accept to claim.
        handoff: Option<LatencySummary>,
    },
}

/// From a primary to a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ToWorker {
    /// The answer to `Listen`. With a descriptor beside it, the worker accepts by itself; with
    /// none, connections arrive in its inbox.
    Listening {
        /// The request that is answered.
        sequence: u32,
        /// The listener's number, as connections will name it.
        listener: ListenerId,
        /// The address that was bound.
        address: String,
    },
    /// The answer to `Listen` when that failed.
    ListenFailed {
        /// The request that is answered.
        sequence: u32,
        /// The kernel's error number.
        errno: i32,
        /// What failed, in words.
        reason: String,
    },
    /// Take nothing new, finish what is open, then leave.
    Drain {
        /// After this time open connections are cut, in milliseconds.
        grace_ms: u64,
    },
}

/// A latency distribution in five numbers, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencySummary {
    /// Values recorded.
    pub count: u64,
    /// Median.
    pub p50_us: u64,
    /// 90th percentile.
    pub p90_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// Largest value.
    pub max_us: u64,
}
