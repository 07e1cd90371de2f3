//! The admin thread's sockets, and the rights of who connects.

use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener as StdTcpListener};
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

/// Whether a web page may be behind a request to a loopback address: its host is a name of the
/// internet, which the page's owner can let point here. Names without a dot are of this network.
pub(super) fn is_rebound(local: IpAddr, host: Option<&str>) -> bool {
    let Some(host) = host.filter(|_| local.to_canonical().is_loopback()) else { return false };
    let is_port = |port: &str| port.bytes().all(|digit| digit.is_ascii_digit());
    let name =
        host.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(host, |(name, _)| name);
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let is_literal = name.starts_with('[') || name.parse::<Ipv4Addr>().is_ok();
    name.contains('.') && !is_literal && !name.ends_with(".localhost")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_internet_are_refused_at_loopback_addresses() {
        let here: IpAddr = "127.0.0.1".parse().expect("an address");
        let mapped: IpAddr = "::ffff:127.0.0.1".parse().expect("an address");
        let elsewhere: IpAddr = "192.0.2.1".parse().expect("an address");
        for host in ["evil.example", "evil.example:9100", "EVIL.example.:9100", "1.2.3.4.nip.io"] {
            assert!(is_rebound(here, Some(host)) && is_rebound(mapped, Some(host)), "{host}");
            assert!(!is_rebound(elsewhere, Some(host)), "{host}");
        }
        for host in ["", "127.0.0.1:9100", "[::1]:9100", "localhost", "a.localhost:1", "clusterlb"]
        {
            assert!(!is_rebound(here, Some(host)), "{host}");
        }
        assert!(!is_rebound(here, None));
    }
}
