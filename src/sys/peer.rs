//! The other end of a socket: who it is, as a number, and parting from it for good.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{SockaddrStorage, getpeername, setsockopt, sockopt};

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

/// Makes the coming close of `socket` reset the connection (SO_LINGER with 0 seconds).
///
/// For clients that go on sending whatever they are told: after an ordinary close with a full
/// window they would wait for room until the kernel forgets the socket, a minute later.
pub fn reset_on_close(socket: &impl AsRawFd) {
    // SAFETY: the descriptor is open as long as its owner is borrowed, which is during this call.
    let socket = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
    // A failure only means that the client waits.
    let _ = setsockopt(&socket, sockopt::Linger, &at_once);
}
