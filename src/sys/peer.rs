//! Who is at the other end of a socket, as a number.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{SockaddrStorage, getpeername};

/// A number for the client's address, without its port: the same for all its connections. None
/// for sockets without an address, such as unix sockets, and for clients that have gone.
#[must_use]
pub fn client_of(socket: &OwnedFd) -> Option<u64> {
    let peer: SockaddrStorage = getpeername(socket.as_raw_fd()).ok()?;
    let mut hasher = DefaultHasher::new();
    match (peer.as_sockaddr_in(), peer.as_sockaddr_in6()) {
        (Some(v4), _) => v4.ip().hash(&mut hasher),
        (_, Some(v6)) => v6.ip().hash(&mut hasher),
        _ => return None,
    }
    Some(hasher.finish())
}
