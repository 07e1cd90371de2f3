//! Datagram (UDP) sockets, shared between workers or one per worker.
//!
//! Owns opening them. The primary never reads from them.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, getsockopt, setsockopt, socket,
    sockopt,
};

use crate::address::ListenAddress;
use crate::error::{Error, Result, errno_of};

/// Options for opening a datagram socket.
#[derive(Clone, Copy, Debug, Default)]
pub struct DatagramOptions {
    /// Share the port with other sockets; the kernel distributes datagrams between them
    /// (SO_REUSEPORT).
    pub share_port: bool,
    /// Exclude IPv4 at `[::]`.
    pub ipv6_only: bool,
    /// Share the address with other sockets that set this (SO_REUSEADDR).
    pub reuse_address: bool,
}

/// Opens a non-blocking, close-on-exec datagram socket and returns its address.
///
/// # Errors
/// [`Error::Listen`] with the call that failed.
pub fn open(address: &ListenAddress, options: DatagramOptions) -> Result<(UdpSocket, SocketAddr)> {
    let wanted = match address {
        ListenAddress::Tcp(wanted) => wanted,
        // The option takes effect at `bind`, and this socket is already bound.
        ListenAddress::Inherited(_) if options.share_port => {
            return Err(failure(address, "have several sockets for")(Errno::EINVAL));
        }
        ListenAddress::Inherited(number) => return adopt(address, *number),
        _ => return Err(failure(address, "receive datagrams at")(Errno::EOPNOTSUPP)),
    };
    let failed = |step| failure(address, step);
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
    if options.reuse_address {
        setsockopt(&socket, sockopt::ReuseAddr, &true).map_err(&set)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(*wanted)).map_err(failed("bind"))?;
    let socket = UdpSocket::from(socket);
    let bound = socket.local_addr();
    let bound = bound.map_err(|error| failed("name the socket of")(errno_of(&error)))?;
    Ok((socket, bound))
}

/// Duplicates a bound datagram socket that this process has under this number. The original stays
/// open and becomes close-on-exec.
fn adopt(address: &ListenAddress, number: RawFd) -> Result<(UdpSocket, SocketAddr)> {
    let failed = failure(address, "receive datagrams at inherited");
    // SAFETY: the descriptor is only asked about, and only while this function runs.
    let candidate = unsafe { BorrowedFd::borrow_raw(number.max(0)) };
    if getsockopt(&candidate, sockopt::SockType).map_err(&failed)? != SockType::Datagram {
        return Err(failed(Errno::EINVAL));
    }
    let status = fcntl(candidate, FcntlArg::F_GETFL).map_err(&failed)?;
    let status = OFlag::from_bits_truncate(status) | OFlag::O_NONBLOCK;
    fcntl(candidate, FcntlArg::F_SETFL(status)).map_err(&failed)?;
    fcntl(candidate, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(&failed)?;
    let copy = candidate.try_clone_to_owned().map_err(|error| failed(errno_of(&error)))?;
    let socket = UdpSocket::from(copy);
    let Ok(bound) = socket.local_addr() else {
        // A unix socket.
        return Err(failed(Errno::EOPNOTSUPP));
    };
    match bound.port() {
        0 => Err(failed(Errno::EINVAL)),
        _ => Ok((socket, bound)),
    }
}

fn failure(address: &ListenAddress, step: &str) -> impl Fn(Errno) -> Error + use<> {
    let (address, step) = (address.to_string(), step.to_owned());
    move |source| Error::Listen {
        address: address.clone(),
        step: step.clone(),
        source: source.into(),
    }
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
        assert!(matches!(refused, Error::Listen { source, .. } if source == Errno::EADDRINUSE));
        let unix = "unix:@datagrams".parse().expect("an address");
        assert!(open(&unix, shared).is_err());
    }

    #[test]
    fn an_address_is_used_again_if_all_its_sockets_allow_it() {
        let any = "127.0.0.1:0".parse().expect("an address");
        let again = DatagramOptions { reuse_address: true, ..DatagramOptions::default() };
        let (_first, bound) = open(&any, again).expect("a free port");
        let (_second, same) = open(&ListenAddress::Tcp(bound), again).expect("it is used again");
        assert_eq!(bound, same);
        assert!(open(&ListenAddress::Tcp(bound), DatagramOptions::default()).is_err());
    }

    #[test]
    fn a_bound_socket_of_this_process_is_shared_and_nothing_else_is() {
        let errno =
            |descriptor: RawFd, options| match open(&ListenAddress::Inherited(descriptor), options)
            {
                Err(Error::Listen { source, .. }) => Some(Errno::from(source)),
                _ => None,
            };
        let own = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let (copy, bound) = open(&ListenAddress::Inherited(own.as_raw_fd()), Default::default())
            .expect("it is bound");
        assert_eq!(bound, own.local_addr().expect("it is bound"));
        drop(copy);
        assert!(own.local_addr().is_ok(), "the descriptor is still open");
        let each = DatagramOptions { share_port: true, ..DatagramOptions::default() };
        assert_eq!(errno(own.as_raw_fd(), each), Some(Errno::EINVAL));
        let stream = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        assert_eq!(errno(stream.as_raw_fd(), Default::default()), Some(Errno::EINVAL));
        let unix = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
        assert_eq!(errno(unix.as_raw_fd(), Default::default()), Some(Errno::EOPNOTSUPP));
        let file = std::fs::File::open("/dev/null").expect("it is there");
        assert_eq!(errno(file.as_raw_fd(), Default::default()), Some(Errno::ENOTSOCK));
        assert_eq!(errno(100_000, Default::default()), Some(Errno::EBADF));
    }
}
