//! Addresses to listen on, and endpoints of connections. Parses and prints; does not open or
//! resolve.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::Error;

/// Maximum length of a unix socket's path in bytes (`sun_path` without its final zero, `unix(7)`).
pub const UNIX_PATH_BYTES_MAX: usize = 107;

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ListenAddress {
    /// An IPv4 or IPv6 address and port; port 0 selects a free one.
    Tcp(SocketAddr),
    /// A host name and port, resolved when opened.
    Name(String, u16),
    /// A unix stream socket at a path.
    Unix(PathBuf),
    /// A unix stream socket in the abstract namespace, written `unix:@name`.
    Abstract(String),
    /// A listening socket inherited under this descriptor number.
    Inherited(RawFd),
}

/// An endpoint of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// An IPv4 or IPv6 address and port.
    Inet(SocketAddr),
    /// A unix socket and its path, if it is bound; a client's usually is not.
    Unix(Option<PathBuf>),
}

impl Endpoint {
    /// The address and port; `None` for a unix socket.
    #[must_use]
    pub fn inet(&self) -> Option<SocketAddr> {
        match self {
            Self::Inet(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => write!(f, "{address}"),
            Self::Unix(Some(path)) => write!(f, "unix:{}", path.display()),
            Self::Unix(None) => write!(f, "unix:"),
        }
    }
}

const FORMS: &str = "write HOST:PORT (127.0.0.1:8000, [::1]:8000, port 0 for a free one), PORT, \
     unix:/path, unix:@name or fd:N";

impl FromStr for ListenAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |why: &str| Error::usage(format!("--listen {text}: {why}"), FORMS);
        if let Some(number) = text.strip_prefix("fd:") {
            let number = number.parse().ok().filter(|number| *number >= 0);
            return number.map(Self::Inherited).ok_or_else(|| wrong("not a descriptor number"));
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return unix(path).ok_or_else(|| wrong("a unix socket's name has 1 to 107 bytes"));
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Tcp(address));
        }
        if let Ok(port) = text.parse() {
            return Ok(Self::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("no port"))?;
        let port = port.parse().map_err(|_| wrong("the port is not a number from 0 to 65535"))?;
        if host.is_empty() {
            return Err(wrong("no host; 0.0.0.0 or [::] stand for all addresses"));
        }
        if host.contains([':', '/', '[', ']', ' ']) {
            return Err(wrong("not an address; an IPv6 address stands in brackets"));
        }
        Ok(Self::Name(host.to_owned(), port))
    }
}

fn unix(path: &str) -> Option<ListenAddress> {
    let name = path.strip_prefix('@');
    let length = path.len();
    match name {
        Some(name) if !name.is_empty() && length <= UNIX_PATH_BYTES_MAX => {
            Some(ListenAddress::Abstract(name.to_owned()))
        }
        None if (1..=UNIX_PATH_BYTES_MAX).contains(&length) => {
            Some(ListenAddress::Unix(PathBuf::from(path)))
        }
        _ => None,
    }
}

impl ListenAddress {
    /// Whether it asks for a free port.
    #[must_use]
    pub fn is_port_zero(&self) -> bool {
        match self {
            Self::Tcp(address) => address.port() == 0,
            Self::Name(_, port) => *port == 0,
            Self::Unix(_) | Self::Abstract(_) | Self::Inherited(_) => false,
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Abstract(name) => write!(f, "unix:@{name}"),
            Self::Inherited(number) => write!(f, "fd:{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_understood_and_printed_back() {
        for text in ["127.0.0.1:8000", "[::1]:0", "localhost:80", "unix:/run/a", "unix:@a", "fd:3"]
        {
            let address: ListenAddress = text.parse().expect("a valid form");
            assert_eq!(address.to_string(), text);
        }
        assert_eq!("8000".parse::<ListenAddress>().expect("a port").to_string(), "127.0.0.1:8000");
    }

    #[test]
    fn nonsense_is_refused_with_the_forms() {
        for text in ["", ":80", "host", "host:70000", "::1:80", "fd:x", "fd:-1", "unix:", "unix:@"]
        {
            let error = text.parse::<ListenAddress>().expect_err(text);
            assert_eq!((error.exit_code(), error.hint().contains("HOST:PORT")), (2, true));
        }
        assert!(format!("unix:/{}", "a".repeat(107)).parse::<ListenAddress>().is_err());
    }
}
