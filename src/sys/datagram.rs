//! Datagram sockets (UDP) that workers share or have one each of.
//!
//! Owns opening them. What is received is no business of the primary.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};

use crate::address::ListenAddress;
use crate::error::{Error, Result, errno_of};

/// How a datagram socket is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct DatagramOptions {
    /// Several sockets share the address and the kernel spreads datagrams (SO_REUSEPORT).
    pub share_port: bool,
    /// `[::]` takes no IPv4.
    pub ipv6_only: bool,
}

/// Opens a datagram socket, non-blocking and close-on-exec, and tells its address.
///
/// # Errors
/// [`Error::Listen`] naming the call that failed.
pub fn open(address: &ListenAddress, options: DatagramOptions) -> Result<(UdpSocket, SocketAddr)> {
    let failed = |step: &str| {
        let (address, step) = (address.to_string(), step.to_owned());
        move |source: Errno| Error::Listen { address: address.clone(), step: step.clone(), source }
    };
    let ListenAddress::Tcp(wanted) = address else {
        return Err(failed("receive datagrams at")(Errno::EOPNOTSUPP));
    };
    let family = if wanted.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd = socket(family, SockType::Datagram, flags, None)
        .map_err(failed("open a datagram socket for"))?;
    let set = failed("set the options of");
    if wanted.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &options.ipv6_only).map_err(&set)?;
    }
    if options.share_port {
        setsockopt(&socket, sockopt::ReusePort, &true).map_err(&set)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(*wanted)).map_err(failed("bind"))?;
    let socket = UdpSocket::from(socket);
    let bound = socket.local_addr();
    let bound = bound.map_err(|error| failed("name the socket of")(errno_of(&error)))?;
    Ok((socket, bound))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_port_is_shared_only_if_so_wished() {
        let any = "127.0.0.1:0".parse().expect("an address");
        let shared = DatagramOptions { share_port: true, ..DatagramOptions::default() };
        let (_first, bound) = open(&any, shared).expect("a free port");
        let again = ListenAddress::Tcp(bound);
        let (_second, same) = open(&again, shared).expect("the port is shared");
        assert_eq!(bound, same);
        let refused = open(&again, DatagramOptions::default()).expect_err("it shares, we do not");
        assert!(matches!(refused, Error::Listen { source: Errno::EADDRINUSE, .. }));
        let unix = "unix:@datagrams".parse().expect("an address");
        assert!(open(&unix, shared).is_err());
    }
}
