//! Addresses to listen on, and endpoints of connections. Parses and prints; does not open or
//! resolve.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
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
    /// A host name and port, resolved before it is opened (`resolve`). `*` stands for every address
    /// of the machine; an IPv6 address may name its interface (`fe80::1%eth0`).
    Name(String, u16),
    /// A unix stream socket at a path, and the permissions of its file.
    Unix(PathBuf, FileAccess),
    /// A unix stream socket in the abstract namespace, written `unix:@name`.
    Abstract(String),
    /// A listening socket inherited under this descriptor number.
    Inherited(RawFd),
    /// A listening socket that the service manager passed under this name (`LISTEN_FDNAMES`),
    /// written `fd:NAME`. The command finds its number.
    InheritedName(String),
}

/// Permissions of a unix socket's file, where they differ from those of the umask and this
/// process's user. Written after the path: `unix:/path,mode=660,user=NAME,group=NAME`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FileAccess {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner, by name or id.
    pub user: Option<String>,
    /// Group, by name or id.
    pub group: Option<String>,
}

/// An end of a connection, or what a listener is bound to: what `SocketAddr` is for TCP, for unix
/// sockets, too. It is printed and parsed in the form of [`ListenAddress`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// An IPv4 or IPv6 address and port.
    Inet(SocketAddr),
    /// A unix socket and its path, if it is bound; a client's usually is not.
    Unix(Option<PathBuf>),
    /// A unix socket in the abstract namespace, and its name.
    Abstract(String),
}

impl Endpoint {
    /// The address and port; `None` for a unix socket.
    #[must_use]
    pub fn inet(&self) -> Option<SocketAddr> {
        match self {
            Self::Inet(address) => Some(*address),
            Self::Unix(_) | Self::Abstract(_) => None,
        }
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let Some(path) = text.strip_prefix("unix:") else {
            return text.parse().map(Self::Inet).map_err(|_| {
                let forms = "write ADDRESS:PORT, unix:/path or unix:@name";
                Error::usage(format!("{text} is no end of a connection"), forms)
            });
        };
        Ok(match path.strip_prefix('@') {
            Some(name) => Self::Abstract(name.to_owned()),
            None => Self::Unix((!path.is_empty()).then(|| PathBuf::from(path))),
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => write!(f, "{address}"),
            Self::Unix(Some(path)) => write!(f, "unix:{}", path.display()),
            Self::Unix(None) => write!(f, "unix:"),
            Self::Abstract(name) => write!(f, "unix:@{name}"),
        }
    }
}

const SETTINGS: &str = "behind a path come mode=, user= and group=, each with a value";

const FORMS: &str = "write HOST:PORT (127.0.0.1:8000, [::1]:8000, [fe80::1%eth0]:8000, \
     localhost:8000, *:8000 for every address, port 0 for a free one), PORT, unix:/path, \
     unix:/path,mode=660,user=NAME,group=NAME, unix:@name, fd:N or fd:NAME";

/// All permission bits, without set-id and sticky bits.
const MODE_MAX: u32 = 0o777;

impl FromStr for ListenAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong =
            |why: &str| Error::usage(format!("{text} is no address to listen on: {why}"), FORMS);
        if let Some(number) = text.strip_prefix("fd:") {
            return inherited(number).ok_or_else(|| wrong("neither a descriptor nor a name"));
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return unix(path).map_err(wrong);
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Tcp(address));
        }
        if let Ok(port) = text.parse() {
            return Ok(Self::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)));
        }
        if text.contains("://") {
            return Err(wrong("it has a scheme; leave that out, and what follows the port"));
        }
        if text.starts_with(['/', '.', '@']) {
            return Err(wrong("a unix socket begins with unix:"));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("no port"))?;
        if text.ends_with([']', ':']) {
            return Err(wrong("no port"));
        }
        let port = port.parse().map_err(|_| wrong("the port is not a number from 0 to 65535"))?;
        if host.is_empty() {
            return Err(wrong("no host; * stands for all addresses"));
        }
        if let Some(scoped) = scoped(host) {
            return Ok(Self::Name(scoped.to_owned(), port));
        }
        if host.contains([':', '/', '[', ']', ' ', '%']) {
            return Err(wrong("not an address; an IPv6 address stands in brackets"));
        }
        Ok(Self::Name(host.to_owned(), port))
    }
}

/// An IPv6 address with an interface, extracted from its brackets.
fn scoped(host: &str) -> Option<&str> {
    let inner = host.strip_prefix('[')?.strip_suffix(']')?;
    let (address, interface) = inner.split_once('%')?;
    let is_name = !interface.is_empty() && !interface.contains(['/', '%', ' ', ']']);
    (is_name && address.parse::<Ipv6Addr>().is_ok()).then_some(inner)
}

/// A descriptor's number, or the name that a service manager gives to a socket.
fn inherited(text: &str) -> Option<ListenAddress> {
    if let Ok(number) = text.parse::<RawFd>() {
        return (number >= 0).then_some(ListenAddress::Inherited(number));
    }
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || "._-@".contains(letter);
    let is_name = text.starts_with(|letter: char| letter.is_ascii_alphabetic());
    let is_name = is_name && text.chars().all(is_part);
    is_name.then(|| ListenAddress::InheritedName(text.to_owned()))
}

fn unix(text: &str) -> Result<ListenAddress, &'static str> {
    const LENGTH: &str = "a unix socket's name has 1 to 107 bytes";
    if let Some(name) = text.strip_prefix('@') {
        let fits = !name.is_empty() && text.len() <= UNIX_PATH_BYTES_MAX;
        return if fits { Ok(ListenAddress::Abstract(name.to_owned())) } else { Err(LENGTH) };
    }
    // A comma ends the path only if one of these follows.
    let options = [",mode=", ",user=", ",group="];
    let end = options.iter().filter_map(|option| text.find(option)).min().unwrap_or(text.len());
    let (path, options) = text.split_at(end);
    let is_setting = |part: &str| {
        let word = part.split_once('=').map_or("", |(name, _)| name);
        !word.is_empty() && word.chars().all(|letter| letter.is_ascii_lowercase())
    };
    if path.split(',').skip(1).any(is_setting) {
        return Err(SETTINGS);
    }
    if !(1..=UNIX_PATH_BYTES_MAX).contains(&path.len()) {
        return Err(LENGTH);
    }
    let access = options.split(',').skip(1).try_fold(FileAccess::default(), with_option)?;
    Ok(ListenAddress::Unix(PathBuf::from(path), access))
}

fn with_option(access: FileAccess, option: &str) -> Result<FileAccess, &'static str> {
    let (name, value) = option.split_once('=').unwrap_or((option, ""));
    let text = (!value.is_empty()).then(|| value.to_owned());
    match name {
        "mode" => {
            let mode = u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= MODE_MAX);
            let mode = mode.ok_or("mode= takes permissions in octal, such as 660")?;
            Ok(FileAccess { mode: Some(mode), ..access })
        }
        "user" if text.is_some() => Ok(FileAccess { user: text, ..access }),
        "group" if text.is_some() => Ok(FileAccess { group: text, ..access }),
        _ => Err(SETTINGS),
    }
}

impl ListenAddress {
    /// Whether it asks for a free port.
    #[must_use]
    pub fn is_port_zero(&self) -> bool {
        match self {
            Self::Tcp(address) => address.port() == 0,
            Self::Name(_, port) => *port == 0,
            Self::Unix(..) | Self::Abstract(_) | Self::Inherited(_) | Self::InheritedName(_) => {
                false
            }
        }
    }
}

impl fmt::Display for FileAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(mode) = self.mode {
            write!(f, ",mode={mode:03o}")?;
        }
        if let Some(user) = &self.user {
            write!(f, ",user={user}")?;
        }
        match &self.group {
            Some(group) => write!(f, ",group={group}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Name(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path, access) => write!(f, "unix:{}{access}", path.display()),
            Self::Abstract(name) => write!(f, "unix:@{name}"),
            Self::Inherited(number) => write!(f, "fd:{number}"),
            Self::InheritedName(name) => write!(f, "fd:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn every_form_is_understood_and_printed_back() {
        for text in [
            "127.0.0.1:8000",
            "[::1]:0",
            "[fe80::1%2]:80",
            "[fe80::1%eth0]:80",
            "localhost:80",
            "*:8000",
            "unix:/run/a",
            "unix:/run/a,b",
            "unix:/run/a,mode=660",
            "unix:/run/a,mode=060,user=www-data,group=33",
            "unix:@a",
            "fd:3",
            "fd:web.socket",
        ] {
            let address: ListenAddress = text.parse().expect("a valid form");
            assert_eq!(address.to_string(), text);
        }
        assert_eq!("8000".parse::<ListenAddress>().expect("a port").to_string(), "127.0.0.1:8000");
    }

    #[test]
    fn ends_of_connections_are_understood_and_printed_back() {
        let path = Endpoint::Unix(Some(PathBuf::from("/run/a,mode=660")));
        for (text, end) in [
            ("127.0.0.1:80", Endpoint::Inet(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 80))),
            ("[::1]:80", Endpoint::Inet(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 80))),
            ("unix:/run/a,mode=660", path),
            ("unix:@a", Endpoint::Abstract("a".to_owned())),
            ("unix:", Endpoint::Unix(None)),
        ] {
            assert_eq!(text.parse::<Endpoint>().expect("a valid form"), end);
            assert_eq!(end.to_string(), text);
        }
        for text in ["", "80", "localhost:80", "fd:3", "/run/a"] {
            let error = text.parse::<Endpoint>().expect_err(text);
            assert_eq!((error.kind(), error.hint().contains("unix:")), (ErrorKind::Usage, true));
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_forms() {
        for text in [
            "",
            ":80",
            "host",
            "host:70000",
            "::1:80",
            "[fe80::1%]:80",
            "[host%eth0]:80",
            "fe80::1%eth0:80",
            "fd:",
            "fd:3x",
            "fd:a b",
            "fd:-1",
            "unix:",
            "unix:@",
            "unix:/run/a,mode=",
            "unix:/run/a,mode=rw",
            "unix:/run/a,mode=4755",
            "unix:/run/a,user=",
            "unix:/run/a,mod=660",
            "unix:/run/a,owner=me,mode=660",
            "http://127.0.0.1:80",
            "/run/a",
            "@a",
            "[::1]",
            "unix:/run/a,mode=660,owner=me",
            "unix:,mode=660",
        ] {
            let error = text.parse::<ListenAddress>().expect_err(text);
            assert_eq!(
                (error.kind(), error.hint().contains("HOST:PORT")),
                (ErrorKind::Usage, true)
            );
        }
        assert!(format!("unix:/{}", "a".repeat(107)).parse::<ListenAddress>().is_err());
    }
}
