//! The admin thread's sockets, and the rights of who connects.

use std::io;
use std::net::TcpListener as StdTcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::time::Duration;

use clusterlb::Result;
use clusterlb_sys::listener::{Family, Listener};
use tokio::net::{TcpListener, UnixListener};

/// Pause after accepting fails, mostly for lack of descriptors.
pub(super) const REST: Duration = Duration::from_millis(50);

/// Rights of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Read and act.
    Full,
    /// Read.
    ReadOnly,
    /// None: it belongs to another user.
    Refused,
}

/// A bound socket.
#[derive(Debug)]
pub(super) struct Door {
    socket: OwnedFd,
    family: Family,
    allow_actions: bool,
}

impl Door {
    /// Duplicates a listener's descriptor.
    ///
    /// # Errors
    /// Too few descriptors.
    pub(super) fn new(listener: &Listener, allow_actions: bool) -> Result<Self> {
        Ok(Self { socket: listener.copy()?, family: listener.family(), allow_actions })
    }
}

/// A bound socket registered with the runtime.
#[derive(Debug)]
pub(super) enum Entrance {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Entrance {
    pub(super) fn new(door: Door) -> io::Result<(Self, bool)> {
        let entrance = match door.family {
            Family::Tcp(_) => Self::Tcp(TcpListener::from_std(StdTcpListener::from(door.socket))?),
            Family::Unix => Self::Unix(UnixListener::from_std(StdUnixListener::from(door.socket))?),
        };
        Ok((entrance, door.allow_actions))
    }
}
