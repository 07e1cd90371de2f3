//! An address that a worker serves, as Node reports it.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::address::{FileAccess, ListenAddress};
use crate::id::ListenerId;
use crate::protocol::control::Transport;

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

    /// The same as one would give it to [`Worker::bind`](crate::Worker::bind).
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
            let address = ListeningAddress::new(bound, transport, ListenerId::new(0), false);
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
