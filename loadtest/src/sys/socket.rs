//! Sockets to connect with: opened, bound to a source, set to end by FIN or RST.
//!
//! Owns socket calls and their options. The ring connects, sends and receives.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, SockaddrLike, SockaddrStorage,
    UnixAddr, bind, send, setsockopt, socket, sockopt,
};

use crate::error::Error;
use crate::target::Address;

/// An address in the kernel's form.
#[derive(Debug)]
pub(crate) enum SocketAddress {
    Internet(SockaddrStorage),
    Unix(UnixAddr),
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internet(address) => write!(f, "{address}"),
            Self::Unix(address) => write!(f, "{address}"),
        }
    }
}

impl SocketAddress {
    pub(crate) fn new(address: &Address) -> Result<Self, Error> {
        match address {
            Address::Tcp(address) => Ok(Self::Internet(SockaddrStorage::from(*address))),
            Address::Unix(path) => {
                let abstract_name = path.to_str().and_then(|text| text.strip_prefix('@'));
                let address = match abstract_name {
                    Some(name) => UnixAddr::new_abstract(name.as_bytes()),
                    None => UnixAddr::new(path),
                };
                address.map(Self::Unix).map_err(|errno| {
                    let what = format!("unix:{}: {}", path.display(), errno.desc());
                    Error::usage(what, "give a path of at most 107 bytes")
                })
            }
        }
    }

    /// What a system call takes; valid as long as `self`.
    pub(super) fn raw(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        match self {
            Self::Internet(address) => (address.as_ptr(), address.len()),
            Self::Unix(address) => (SockaddrLike::as_ptr(address), address.len()),
        }
    }

    fn is_loopback_v4(&self) -> bool {
        match self {
            Self::Internet(address) => {
                address.as_sockaddr_in().is_some_and(|address| address.ip().is_loopback())
            }
            Self::Unix(_) => false,
        }
    }

    fn family(&self) -> AddressFamily {
        match self {
            Self::Unix(_) => AddressFamily::Unix,
            Self::Internet(address) => address.family().unwrap_or(AddressFamily::Inet),
        }
    }
}

/// A socket that has not connected yet, bound to `source` if there is one and the address is in
/// 127/8. The port is left to connect, where the kernel knows all four parts and so finds many
/// times as many free ones.
pub(crate) fn open(address: &SocketAddress, source: Option<Ipv4Addr>) -> Result<OwnedFd, Errno> {
    let fd = socket(address.family(), SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    if let Some(source) = source.filter(|_| address.is_loopback_v4()) {
        setsockopt(&fd, sockopt::IpBindAddressNoPort, &true)?;
        bind(fd.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(source, 0)))?;
    }
    Ok(fd)
}

/// Sends small pieces at once: later requests must not wait for earlier acknowledgements.
pub(crate) fn send_at_once(fd: &OwnedFd) {
    // A unix socket has no such option and no need of it.
    let _ = setsockopt(fd, sockopt::TcpNoDelay, &true);
}

/// Sends a few last bytes if there is room for them, without waiting.
pub(crate) fn send_last(fd: &OwnedFd, bytes: &[u8]) {
    // A connection that takes no more bytes is about to be closed anyway.
    let _ = send(fd.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
}

/// Makes closing this socket a reset.
pub(crate) fn reset_on_close(fd: &OwnedFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // It can fail only for a socket that is already gone.
    let _ = setsockopt(fd, sockopt::Linger, &linger);
}

/// True if both ends are on this machine's loopback, where 127/8 gives any number of sources.
pub(crate) fn is_loopback_v4(address: &Address) -> bool {
    matches!(address, Address::Tcp(SocketAddr::V4(v4)) if v4.ip().is_loopback())
}
