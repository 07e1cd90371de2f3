//! Properties of a socket: its endpoints and type, and resetting it on close.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, UnixAddr, getpeername, getsockname,
    getsockopt, setsockopt, sockopt,
};

use crate::address::Endpoint;
use crate::hashing;

/// The type of a received descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TCP connection.
    Tcp,
    /// A listening TCP socket.
    TcpListener,
    /// A UDP socket.
    Udp,
    /// A unix stream socket.
    Unix,
    /// A listening unix stream socket.
    UnixListener,
    /// A unix datagram socket.
    UnixDatagram,
    /// Something else.
    Other,
}

/// Determines the type of a descriptor.
#[must_use]
pub fn kind_of(descriptor: &OwnedFd) -> Kind {
    let Ok(own) = getsockname::<SockaddrStorage>(descriptor.as_raw_fd()) else {
        return Kind::Other;
    };
    let listens = getsockopt(descriptor, sockopt::AcceptConn).unwrap_or(false);
    let kind = getsockopt(descriptor, sockopt::SockType);
    match (own.family(), kind) {
        (Some(AddressFamily::Inet | AddressFamily::Inet6), Ok(SockType::Stream)) => match listens {
            true => Kind::TcpListener,
            false => Kind::Tcp,
        },
        (Some(AddressFamily::Inet | AddressFamily::Inet6), Ok(SockType::Datagram)) => Kind::Udp,
        (Some(AddressFamily::Unix), Ok(SockType::Stream)) => match listens {
            true => Kind::UnixListener,
            false => Kind::Unix,
        },
        (Some(AddressFamily::Unix), Ok(SockType::Datagram)) => Kind::UnixDatagram,
        _ => Kind::Other,
    }
}

/// Whether a descriptor is a stream socket that does not listen. It is made non-blocking, because
/// the process that held it may have changed that.
#[must_use]
pub fn is_connection(descriptor: &OwnedFd) -> bool {
    let is_stream = matches!(kind_of(descriptor), Kind::Tcp | Kind::Unix);
    // It need not be connected: the client may have disconnected.
    if !is_stream {
        return false;
    }
    let flags = fcntl(descriptor, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    let flags = flags.unwrap_or(OFlag::empty()) | OFlag::O_NONBLOCK;
    fcntl(descriptor, FcntlArg::F_SETFL(flags)).is_ok()
}

/// The peer address of a connection.
///
/// # Errors
/// ENOTCONN if the peer has disconnected.
pub fn peer_of(socket: &impl AsRawFd) -> Result<Endpoint, Errno> {
    getpeername(socket.as_raw_fd()).map(endpoint)
}

/// The local address of a connection.
///
/// # Errors
/// ENOTSOCK if it is not a socket.
pub fn local_of(socket: &impl AsRawFd) -> Result<Endpoint, Errno> {
    getsockname(socket.as_raw_fd()).map(endpoint)
}

fn endpoint(address: SockaddrStorage) -> Endpoint {
    match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => Endpoint::Inet((*v4).into()),
        (_, Some(v6)) => Endpoint::Inet((*v6).into()),
        _ => address.as_unix_addr().map_or(Endpoint::Unix(None), unix_endpoint),
    }
}

/// The address of a unix socket.
pub(crate) fn unix_endpoint(address: &UnixAddr) -> Endpoint {
    match address.as_abstract() {
        Some(name) => Endpoint::Abstract(String::from_utf8_lossy(name).into_owned()),
        None => Endpoint::Unix(address.path().map(Path::to_owned)),
    }
}

/// A hash of the client's address without the port, equal for all its connections. `None` for
/// sockets without an address, such as unix sockets, and for disconnected clients.
#[must_use]
pub fn client_of(socket: &OwnedFd) -> Option<u64> {
    let peer: SockaddrStorage = getpeername(socket.as_raw_fd()).ok()?;
    match (peer.as_sockaddr_in(), peer.as_sockaddr_in6()) {
        (Some(v4), _) => Some(client_at(v4.ip().into())),
        (_, Some(v6)) => Some(client_at(v6.ip().into())),
        _ => None,
    }
}

/// The hash of an address; an IPv4 address in an IPv6 one counts as itself.
#[must_use]
pub fn client_at(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(v4) => hashing::of_address(0, u32::from_ne_bytes(v4.octets()).into()),
        IpAddr::V6(v6) => {
            let [upper, lower] = [0, 8].map(|at| {
                let mut half = [0; 8];
                half.copy_from_slice(&v6.octets()[at..at + 8]);
                u64::from_ne_bytes(half)
            });
            hashing::of_address(upper, lower)
        }
    }
}

/// Whether anything was ever written to a TCP connection, through any copy of the descriptor.
/// `None` if that does not show whether the client was answered: the client has closed its side, or
/// this is not a TCP connection.
#[must_use]
pub fn is_answered(socket: &impl AsRawFd) -> Option<bool> {
    // SAFETY: it consists of numbers, which may all be zero.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of_val(&info)).expect("a few hundred bytes");
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `info`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            std::ptr::from_mut(&mut info).cast(),
            &raw mut length,
        )
    };
    Errno::result(result).ok()?;
    // Bytes that do not fit the client's window are an answer, too.
    if info.tcpi_bytes_sent > 0 || info.tcpi_notsent_bytes > 0 {
        return Some(true);
    }
    (info.tcpi_state == TCP_ESTABLISHED).then_some(false)
}

/// The kernel's number for a connection that neither side has closed.
const TCP_ESTABLISHED: u8 = 1;

/// Makes closing `socket` reset the connection (SO_LINGER with 0 seconds).
///
/// For clients that keep sending: with a full window, an ordinary close would leave them waiting
/// until the kernel forgets the socket a minute later.
pub fn reset_on_close(socket: &impl AsRawFd) {
    // SAFETY: the descriptor is open as long as its owner is borrowed, which is during this call.
    let socket = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
    // On failure the client waits, which is harmless.
    let _ = setsockopt(&socket, sockopt::Linger, &at_once);
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram, UnixListener, UnixStream};

    use super::*;

    #[test]
    fn sockets_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("room");
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let (unix, _far) = UnixStream::pair().expect("a pair");
        let datagram = UnixDatagram::unbound().expect("a socket");
        let (pipe, _end) = std::io::pipe().expect("a pipe");
        let all: [(OwnedFd, Kind); 6] = [
            (listener.into(), Kind::TcpListener),
            (client.into(), Kind::Tcp),
            (udp.into(), Kind::Udp),
            (unix.into(), Kind::Unix),
            (datagram.into(), Kind::UnixDatagram),
            (pipe.into(), Kind::Other),
        ];
        for (descriptor, kind) in all {
            assert_eq!(kind_of(&descriptor), kind);
        }
    }

    #[test]
    fn an_answer_is_seen_on_every_copy() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let mut client = TcpStream::connect(address).expect("room");
        let (mut server, _) = listener.accept().expect("it has come");
        let copy = server.try_clone().expect("a duplicate");
        client.write_all(b"question").expect("room");
        assert_eq!(is_answered(&copy), Some(false));
        server.write_all(b"answer").expect("room");
        assert_eq!(is_answered(&copy), Some(true));
        let gone = TcpStream::connect(address).expect("room");
        let (mut server, _) = listener.accept().expect("it has come");
        drop(gone);
        assert_eq!(server.read(&mut [0]).expect("the end"), 0);
        assert_eq!(is_answered(&server), None);
        let (unix, _far) = UnixStream::pair().expect("a pair");
        assert_eq!(is_answered(&unix), None);
    }

    #[test]
    fn both_ends_of_a_connection_are_known() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let bound = listener.local_addr().expect("bound");
        let client = TcpStream::connect(bound).expect("room");
        let own = client.local_addr().expect("connected");
        assert_eq!(peer_of(&client), Ok(Endpoint::Inet(bound)));
        assert_eq!(local_of(&client), Ok(Endpoint::Inet(own)));
        let (unix, _far) = UnixStream::pair().expect("a pair");
        assert_eq!(peer_of(&unix), Ok(Endpoint::Unix(None)));
        let name = format!("clusterlb-test-peer-{}", std::process::id());
        let address = UnixAddress::from_abstract_name(&name).expect("a short name");
        let bound = UnixListener::bind_addr(&address).expect("a free name");
        assert_eq!(local_of(&bound), Ok(Endpoint::Abstract(name)));
    }
}
