//! What a Node worker asks to listen on, as an address of this project, and the answer's name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use nix::errno::Errno;

use super::codec::{ListenTarget, Query, SocketName};
use crate::address::{FileAccess, ListenAddress};
use crate::error::{Error, Result};
use crate::protocol::control::{ListenOptions, Transport};
use crate::sys::listener::unspecified;
use crate::sys::resolve;

/// A flag of libuv for TCP and UDP: `[::]` takes no IPv4.
const IPV6_ONLY: u32 = 1;
/// A flag of libuv for UDP: other sockets with this flag may have the same address.
const UDP_REUSE_ADDRESS: u32 = 4;

/// The address and the options that a query asks for.
///
/// # Errors
/// The address does not exist here, or it is a handle that the worker has opened.
pub(crate) fn address_of(query: &Query) -> Result<(ListenAddress, ListenOptions)> {
    let mut options = ListenOptions::default();
    options.backlog = query.backlog;
    options.ipv6_only = query.flags & IPV6_ONLY != 0;
    options.mode = mode_of(query);
    let address = match &query.place {
        ListenTarget::Tcp { host: Some(host), port } => inet(host, *port)?,
        ListenTarget::Tcp { host: None, port } => ListenAddress::Tcp(unspecified(*port)),
        ListenTarget::Udp { host, port, v6 } => {
            options.transport = Transport::Datagram;
            options.backlog = None;
            options.reuse_address = query.flags & UDP_REUSE_ADDRESS != 0;
            let unspecified = match v6 {
                true => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
                false => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            };
            let unspecified = ListenAddress::Tcp(SocketAddr::new(unspecified, *port));
            let host = host.as_ref().map(|host| inet(host, *port)).transpose()?;
            host.unwrap_or(unspecified)
        }
        ListenTarget::Unix(path) => ListenAddress::Unix(PathBuf::from(path), FileAccess::default()),
        ListenTarget::Abstract(name) => ListenAddress::Abstract(name.clone()),
        ListenTarget::Inherited(number) => ListenAddress::Inherited(*number),
        ListenTarget::Nowhere => {
            return Err(Error::system("listen on an open handle of the worker's", Errno::EINVAL));
        }
    };
    Ok((address, options))
}

/// The address as Node workers are told it; `None` for unix sockets.
pub(crate) fn name_of(address: &str) -> Option<SocketName> {
    address.parse::<SocketAddr>().ok().map(SocketName::from)
}

/// An address as Node gives it; one of IPv6 may name its interface.
fn inet(host: &str, port: u16) -> Result<ListenAddress> {
    let text = match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    let missing = || Error::Listen {
        address: text.clone(),
        step: "find".into(),
        source: Errno::EADDRNOTAVAIL.into(),
    };
    match text.parse().map_err(|_| missing())? {
        // The host is a number, so the kernel alone answers.
        address @ ListenAddress::Name(..) if host.contains('%') => {
            let mut found = resolve::resolve(&address).map_err(|_| missing())?;
            found.pop().ok_or_else(missing)
        }
        // Node has resolved names before it asks.
        ListenAddress::Name(..) => Err(missing()),
        address => Ok(address),
    }
}

/// `readableAll` and `writableAll` add to the permissions of the owner.
fn mode_of(query: &Query) -> Option<u32> {
    let (readable, writable) = (query.readable_by_all, query.writable_by_all);
    let bits = if readable { 0o444 } else { 0 } | if writable { 0o222 } else { 0 };
    (readable || writable).then_some(0o700 | bits)
}
