//! The control messages between a primary and a worker. Plain data.

use serde::{Deserialize, Serialize};

use crate::id::ListenerId;

/// From a worker to its primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "kebab-case")]
pub enum ToPrimary {
    /// The worker runs and has opened its channel (Node's `online`).
    Online {
        /// Its pid.
        pid: u32,
    },
    /// The worker asks to serve an address (Node's `queryServer`).
    Listen {
        /// Identifies the request in the reply.
        sequence: u32,
        /// The address, in the syntax of `--listen`.
        address: String,
        /// How to open it. Workers that ask for the same address with the same options share a
        /// socket.
        #[serde(default)]
        options: ListenOptions,
    },
    /// The worker has started serving a listener (Node's `listening`).
    Serving {
        /// The listener.
        listener: ListenerId,
    },
    /// The worker has stopped serving a listener (Node's `close`).
    Close {
        /// The listener.
        listener: ListenerId,
    },
    /// The worker received the attached socket and will not serve it.
    Return {
        /// The listener that accepted it.
        listener: ListenerId,
        /// Time of the accept, in nanoseconds of CLOCK_MONOTONIC.
        accepted_ns: u64,
    },
    /// The worker is leaving: it takes no new connections and finishes those it has (Node's
    /// `exitedAfterDisconnect`).
    Leaving,
    /// The last message of a worker.
    Farewell {
        /// Latency from accept to claim.
        handoff: Option<LatencySummary>,
    },
}

/// The transport of an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Transport {
    /// Connections.
    #[default]
    Stream,
    /// Datagrams (UDP): all workers share one socket, and the first to read gets the datagram.
    Datagram,
    /// Datagrams with one socket per worker (SO_REUSEPORT): the kernel selects by a hash of the
    /// sender's address.
    DatagramEach,
}

/// Options for opening an address. Start from the default and change it with the methods:
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
    /// The transport.
    pub transport: Transport,
    /// Maximum number of connections queued in the kernel; `None` for the primary's setting.
    pub backlog: Option<u32>,
    /// Whether `[::]` excludes IPv4 (Node: `ipv6Only`).
    pub ipv6_only: bool,
    /// Permissions of a unix socket's file, as in `chmod(2)`; `None` leaves them to the primary's
    /// umask (Node: `readableAll`, `writableAll`).
    pub mode: Option<u32>,
    /// For datagrams: share the address with other sockets that set this (SO_REUSEADDR; Node:
    /// `reuseAddr`). A worker can then open the address several times; its nth socket is shared
    /// with the nth of other workers.
    pub reuse_address: bool,
    /// For streams: every connection begins with a header of the PROXY protocol, version 1 or 2,
    /// which the worker reads. One without a header is closed. For an address that the primary
    /// holds, set it in the primary.
    #[serde(skip_serializing_if = "is_off")]
    pub proxy_protocol: bool,
}

/// Whether a word may leave a flag out, as older ones do.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_off(flag: &bool) -> bool {
    !*flag
}

impl ListenOptions {
    /// Sets the transport.
    #[must_use]
    pub fn transport(self, transport: Transport) -> Self {
        Self { transport, ..self }
    }

    /// Sets the backlog; the kernel limits it to `net.core.somaxconn`.
    #[must_use]
    pub fn backlog(self, connections: u32) -> Self {
        Self { backlog: Some(connections), ..self }
    }

    /// Excludes IPv4 at `[::]`.
    #[must_use]
    pub fn ipv6_only(self) -> Self {
        Self { ipv6_only: true, ..self }
    }

    /// Sets the permissions of a unix socket's file, such as `0o660`.
    #[must_use]
    pub fn mode(self, mode: u32) -> Self {
        Self { mode: Some(mode), ..self }
    }

    /// Shares the address with other sockets that do the same.
    #[must_use]
    pub fn reuse_address(self) -> Self {
        Self { reuse_address: true, ..self }
    }

    /// Reads a header of the PROXY protocol, version 1 or 2, in front of every connection, as a
    /// balancer sends it: addresses are then those of its client.
    #[must_use]
    pub fn proxy_protocol(self) -> Self {
        Self { proxy_protocol: true, ..self }
    }
}

/// From a primary to a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "kebab-case")]
pub enum ToWorker {
    /// The reply to `Listen`. If a descriptor is attached, the worker accepts from it; otherwise
    /// connections arrive in the worker's inbox.
    Listening {
        /// The request that this answers.
        sequence: u32,
        /// Id of the listener, as used in handoffs.
        listener: ListenerId,
        /// The bound address.
        address: String,
        /// Every connection begins with a header of the PROXY protocol, because the worker or the
        /// primary's settings say so. The worker reads it, and closes connections without one.
        #[serde(default, skip_serializing_if = "is_off")]
        proxy_protocol: bool,
    },
    /// The reply to a `Listen` that failed.
    ListenFailed {
        /// The request that this answers.
        sequence: u32,
        /// The call that failed: `bind`, `listen on`, …
        step: String,
        /// The kernel's error number.
        errno: i32,
    },
    /// The reply to `Close`: every connection of this listener sent to the worker is now in its
    /// inbox.
    Closed {
        /// The listener.
        listener: ListenerId,
    },
    /// Stop accepting, finish open connections, then leave.
    Drain {
        /// Time after which open connections are cut, in milliseconds; `None` for no limit.
        grace_ms: Option<u64>,
    },
}

/// Summary of a latency distribution, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencySummary {
    /// Number of values.
    pub count: u64,
    /// Median.
    pub p50_us: u64,
    /// 90th percentile.
    pub p90_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// Maximum.
    pub max_us: u64,
}
