//! What a primary and a worker tell each other beside the sockets. Plain data.

use serde::{Deserialize, Serialize};

use crate::id::ListenerId;

/// From a worker to its primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "kebab-case")]
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
        /// How it shall be opened. Workers share a socket when they ask for the same in the same
        /// way.
        #[serde(default)]
        options: ListenOptions,
    },
    /// The worker serves a listener from now on (Node's `listening`).
    Serving {
        /// Which one.
        listener: ListenerId,
    },
    /// The worker does not serve a listener any more (Node's `close`).
    Close {
        /// Which one.
        listener: ListenerId,
    },
    /// The worker had taken the socket beside this out of its inbox, and will not serve it.
    Return {
        /// The listener that it came from.
        listener: ListenerId,
        /// When it was accepted, in nanoseconds of CLOCK_MONOTONIC.
        accepted_ns: u64,
    },
    /// The worker leaves: nothing more for it, please. What it has it will finish (Node's
    /// `exitedAfterDisconnect`).
    Leaving,
    /// The worker's last words.
    Farewell {
        /// From accept to claim.
        handoff: Option<LatencySummary>,
    },
}

/// What an address carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Transport {
    /// Connections.
    #[default]
    Stream,
    /// Datagrams (UDP): all workers share one socket, and the kernel gives a datagram to whoever
    /// reads first.
    Datagram,
    /// Datagrams, with a socket for each worker (SO_REUSEPORT): the kernel spreads by hash of the
    /// sender's address.
    DatagramEach,
}

/// How an address is opened. Begins with the default, and is changed by its methods:
///
/// ```
/// use clusterlb_protocol::control::ListenOptions;
///
/// let options = ListenOptions::default().backlog(128).ipv6_only();
/// assert_eq!((options.backlog, options.ipv6_only, options.mode), (Some(128), true, None));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct ListenOptions {
    /// What it carries.
    pub transport: Transport,
    /// Connections that may wait in the kernel; without one, what the primary's settings say.
    pub backlog: Option<u32>,
    /// `[::]` takes no IPv4 (Node: `ipv6Only`).
    pub ipv6_only: bool,
    /// The permissions of a unix socket's file, as in `chmod(2)`; otherwise what the primary's
    /// umask leaves (Node: `readableAll`, `writableAll`).
    pub mode: Option<u32>,
    /// Of datagrams: other sockets that say the same may have the address, too (SO_REUSEADDR;
    /// Node: `reuseAddr`). Then a worker can have it several times, and shares its nth socket with
    /// the nth ones of others.
    pub reuse_address: bool,
}

impl ListenOptions {
    /// The same with this transport.
    #[must_use]
    pub fn transport(self, transport: Transport) -> Self {
        Self { transport, ..self }
    }

    /// The same with room for so many connections that wait, at most `net.core.somaxconn`.
    #[must_use]
    pub fn backlog(self, connections: u32) -> Self {
        Self { backlog: Some(connections), ..self }
    }

    /// The same without IPv4 at `[::]`.
    #[must_use]
    pub fn ipv6_only(self) -> Self {
        Self { ipv6_only: true, ..self }
    }

    /// The same with these permissions of a unix socket's file, such as `0o660`.
    #[must_use]
    pub fn mode(self, mode: u32) -> Self {
        Self { mode: Some(mode), ..self }
    }

    /// The same for an address that other sockets may have, too.
    #[must_use]
    pub fn reuse_address(self) -> Self {
        Self { reuse_address: true, ..self }
    }
}

/// From a primary to a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "kebab-case")]
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
        /// The call that failed: `bind`, `listen on`, …
        step: String,
        /// The kernel's error number.
        errno: i32,
    },
    /// The answer to `Close`: everything of this listener that was under way to the worker is in
    /// its inbox.
    Closed {
        /// Which one.
        listener: ListenerId,
    },
    /// Take nothing new, finish what is open, then leave.
    Drain {
        /// After this time open connections are cut, in milliseconds; never, if none.
        grace_ms: Option<u64>,
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
