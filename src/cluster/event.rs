//! What happens in a cluster, as the program is told.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::mailbox::Item;
use super::{ClusterSettings, Message, WorkerHandle};
use crate::address::{FileAccess, ListenAddress};
use crate::error::Error;
use crate::id::ListenerId;
use crate::protocol::control::{LatencySummary, Transport};
use crate::protocol::scoreboard::{Counters, PageView, Statistic};
use crate::schedule::ClaimTimes;
use crate::sys::process::Ending;

/// Something happened. Names and order are Node's.
///
/// For each worker: `Fork`, `Online`, any number of `Listening`, `Closed`, `Refused`, `Message`,
/// `Hung`, `Recovered` and `Error`, at most one `Leaving`, then `Disconnect` and `Exit`, each once
/// and in this order. A worker that could not be started tells of itself in the error of the fork
/// only.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The settings were changed (Node: `setup`).
    Setup {
        /// As they are from now on.
        settings: Arc<ClusterSettings>,
    },
    /// A worker process was started (Node: `fork`).
    Fork {
        /// Which one.
        worker: WorkerHandle,
    },
    /// A worker runs and has said so (Node: `online`).
    Online {
        /// Which one.
        worker: WorkerHandle,
    },
    /// A worker serves an address (Node: `listening`).
    Listening {
        /// Which worker.
        worker: WorkerHandle,
        /// Which address.
        address: ListeningAddress,
    },
    /// A worker has closed what it served at an address, and lives on.
    Closed {
        /// Which worker.
        worker: WorkerHandle,
        /// Which address.
        address: ListeningAddress,
    },
    /// A worker asked for an address that it cannot have. It has been told, too (Node: only the
    /// worker is told).
    Refused {
        /// Which worker.
        worker: WorkerHandle,
        /// Why not.
        error: Arc<Error>,
    },
    /// A worker has sent a message (Node: `message`).
    Message {
        /// Which worker.
        worker: WorkerHandle,
        /// What it says.
        message: Message,
    },
    /// A worker has said that it leaves, without having been asked: it gets nothing new, and
    /// finishes what it has.
    Leaving {
        /// Which worker.
        worker: WorkerHandle,
    },
    /// A worker's channel has ended (Node: `disconnect`). Its process may live on for a while.
    Disconnect {
        /// Which worker.
        worker: WorkerHandle,
    },
    /// A worker's process has ended, and it is no longer among the cluster's workers (Node:
    /// `exit`).
    Exit {
        /// Which worker.
        worker: WorkerHandle,
        /// With which code, or by which signal.
        ending: Ending,
        /// What became of its connections.
        counts: WorkerCounts,
    },
    /// Something failed (Node: `error`). Nothing more needs to be done about it: a worker whose
    /// channel carried garbage is disconnected.
    Error {
        /// Whose failure it was; without a worker, the cluster's own.
        worker: Option<WorkerHandle>,
        /// What failed.
        error: Arc<Error>,
    },
    /// A worker left connections unclaimed for too long: they went to others, and it gets nothing
    /// until it answers.
    Hung {
        /// Which worker.
        worker: WorkerHandle,
        /// Connections taken back from it.
        taken_back: u32,
    },
    /// A hung worker has answered and gets connections again.
    Recovered {
        /// Which worker.
        worker: WorkerHandle,
    },
}

/// What a worker serves.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListeningAddress {
    /// The host's address, or the path of a unix socket (`@name` in the abstract namespace).
    pub address: String,
    /// The port; none for unix sockets.
    pub port: Option<u16>,
    /// What kind of address it is (Node: `addressType`).
    pub kind: AddressKind,
    /// The listener's number in this cluster, as connections name it.
    pub listener: ListenerId,
    /// The kernel chose the port: it was asked for as 0.
    pub ephemeral: bool,
}

/// What kind of address it is (Node: 4, 6, -1, `'udp4'`, `'udp6'`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum AddressKind {
    /// TCP over IPv4.
    V4,
    /// TCP over IPv6.
    V6,
    /// A unix stream socket.
    Unix,
    /// UDP over IPv4.
    Udp4,
    /// UDP over IPv6.
    Udp6,
}

/// A worker's connections: those that it has now, and what became of the others.
///
/// `assigned = returned + finished + aborted + in_flight()`; when it has ended, none is in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerCounts {
    /// Connections given to it, or accepted by itself under the policy `none`.
    pub assigned: u64,
    /// Of these, the ones that it accepted by itself.
    pub own: u64,
    /// Connections taken back from it, or sent back by it, before it had claimed them.
    pub returned: u64,
    /// Connections that it received.
    pub claimed: u64,
    /// Connections that it had done with.
    pub finished: u64,
    /// Connections that it lost, or that were open when it ended.
    pub aborted: u64,
    /// Requests that it answered, if it counts them.
    pub requests: u64,
    /// From accept to claim; only for workers that left in order and measure it.
    pub handoff: Option<LatencySummary>,
    /// From handoff to claim, as the data path sees it when it next looks.
    pub claim_times: ClaimTimes,
    /// How often a Node worker has looked how late its loop is, which it does while it has
    /// connections.
    pub beats: u64,
    /// How late its loop was, all looks together, in nanoseconds.
    pub late_ns: u64,
}

impl WorkerCounts {
    /// Of a worker that lives, as its page shows them.
    pub(crate) fn living(counters: Counters, page: &PageView) -> Self {
        // Sockets for which it had no descriptor: it has counted them as done with.
        let lost = page.statistic(Statistic::Truncated).min(counters.finished);
        let (beats, late_ns) = page.loop_delay();
        Self {
            assigned: counters.assigned,
            own: counters.own,
            returned: counters.returned,
            claimed: counters.claimed,
            finished: counters.finished - lost,
            aborted: lost,
            requests: page.statistic(Statistic::Requests),
            handoff: None,
            claim_times: page.claim_times(),
            beats,
            late_ns,
        }
    }

    /// The same when the worker has ended: what was in flight is lost.
    pub(crate) fn ended(self, handoff: Option<LatencySummary>) -> Self {
        Self { aborted: self.aborted + self.in_flight(), handoff, ..self }
    }

    /// Connections that it has been given and has not done with.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        let done = self.returned + self.finished + self.aborted;
        self.assigned.saturating_sub(done)
    }

    /// Connections that it has been given and has not received.
    #[must_use]
    pub fn unclaimed(&self) -> u64 {
        self.assigned.saturating_sub(self.returned).saturating_sub(self.claimed)
    }

    /// Adds the counts of another worker, without its [`handoff`](Self::handoff).
    pub fn add(&mut self, other: &Self) {
        self.assigned += other.assigned;
        self.own += other.own;
        self.returned += other.returned;
        self.claimed += other.claimed;
        self.finished += other.finished;
        self.aborted += other.aborted;
        self.requests += other.requests;
        self.claim_times.add(&other.claim_times);
        self.beats = self.beats.saturating_add(other.beats);
        self.late_ns = self.late_ns.saturating_add(other.late_ns);
    }
}

impl Event {
    /// The worker that it concerns, if it concerns one.
    #[must_use]
    pub fn worker(&self) -> Option<&WorkerHandle> {
        match self {
            Self::Setup { .. } => None,
            Self::Error { worker, .. } => worker.as_ref(),
            Self::Fork { worker }
            | Self::Online { worker }
            | Self::Listening { worker, .. }
            | Self::Closed { worker, .. }
            | Self::Leaving { worker }
            | Self::Message { worker, .. }
            | Self::Refused { worker, .. }
            | Self::Disconnect { worker }
            | Self::Exit { worker, .. }
            | Self::Hung { worker, .. }
            | Self::Recovered { worker } => Some(worker),
        }
    }
}

impl Item for Event {
    fn bytes(&self) -> usize {
        match self {
            Self::Message { message, .. } => message.bytes().len(),
            _ => 0,
        }
    }

    fn descriptors(&self) -> usize {
        match self {
            Self::Message { message, .. } => message.descriptors(),
            _ => 0,
        }
    }

    fn sender(&self) -> Option<u32> {
        let as_often_as_it_likes = matches!(
            self,
            Self::Message { .. }
                | Self::Refused { .. }
                | Self::Listening { .. }
                | Self::Closed { .. }
                | Self::Error { .. }
        );
        self.worker().filter(|_| as_often_as_it_likes).map(|worker| worker.id().0)
    }
}

impl ListeningAddress {
    /// From an address as listeners write it.
    pub(crate) fn new(
        bound: &str,
        transport: Transport,
        listener: ListenerId,
        ephemeral: bool,
    ) -> Self {
        let datagrams = transport != Transport::Stream;
        if let Ok(inet) = bound.parse::<SocketAddr>() {
            let kind = match (inet.is_ipv6(), datagrams) {
                (false, false) => AddressKind::V4,
                (true, false) => AddressKind::V6,
                (false, true) => AddressKind::Udp4,
                (true, true) => AddressKind::Udp6,
            };
            let (address, port) = (inet.ip().to_string(), Some(inet.port()));
            return Self { address, port, kind, listener, ephemeral };
        }
        let address = bound.strip_prefix("unix:").unwrap_or(bound).to_owned();
        Self { address, port: None, kind: AddressKind::Unix, listener, ephemeral }
    }

    /// The same as one would give it to [`Worker::listen`](crate::Worker::listen).
    #[must_use]
    pub fn to_listen_address(&self) -> ListenAddress {
        let inet =
            self.port.and_then(|port| Some(SocketAddr::new(self.address.parse().ok()?, port)));
        match (inet, self.address.strip_prefix('@')) {
            (Some(address), _) => ListenAddress::Tcp(address),
            (None, Some(name)) => ListenAddress::Abstract(name.to_owned()),
            (None, None) => {
                ListenAddress::Unix(PathBuf::from(&self.address), FileAccess::default())
            }
        }
    }
}

impl fmt::Display for ListeningAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_listen_address().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_as_node_does() {
        let told = |bound: &str, transport| {
            let address = ListeningAddress::new(bound, transport, ListenerId(0), false);
            assert_eq!(address.to_string(), bound);
            (address.address, address.port, address.kind)
        };
        let (stream, datagram) = (Transport::Stream, Transport::Datagram);
        assert_eq!(told("1.2.3.4:80", stream), ("1.2.3.4".into(), Some(80), AddressKind::V4));
        assert_eq!(told("[::1]:80", stream), ("::1".into(), Some(80), AddressKind::V6));
        assert_eq!(told("unix:/run/a", stream), ("/run/a".into(), None, AddressKind::Unix));
        assert_eq!(told("unix:@a", stream), ("@a".into(), None, AddressKind::Unix));
        assert_eq!(told("1.2.3.4:80", datagram), ("1.2.3.4".into(), Some(80), AddressKind::Udp4));
        assert_eq!(told("[::1]:80", datagram), ("::1".into(), Some(80), AddressKind::Udp6));
    }
}
