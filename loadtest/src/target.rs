//! What is loaded: an address and, for HTTP, a path. Parsing is pure; resolving asks the system.
//!
//! ```text
//! 127.0.0.1:8000            host:port/path    http://host:port/path   HTTP unless --mode says else
//! tcp://host:port                                                     bytes: echo or connect
//! unix:/run/app.sock        unix:/run/app.sock:/path   unix:@name     the same over a unix socket
//! ```

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The longest path of a unix socket, the kernel's own bound less the final zero.
const UNIX_PATH_BYTES_MAX: usize = 107;

/// A target as it was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Target {
    /// Where to connect.
    pub endpoint: Endpoint,
    /// What to ask for, from `/` on.
    pub path: String,
    /// What the scheme said about the protocol.
    pub scheme: Scheme,
}

/// Where to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `host:port`, not yet resolved.
    Tcp(String),
    /// A unix socket's path; a leading `@` names an abstract one.
    Unix(PathBuf),
}

/// What the scheme said about the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `http://`: HTTP and nothing else.
    Http,
    /// `tcp://`: anything but HTTP.
    Tcp,
    /// No scheme, or `unix:`: the mode decides.
    Any,
}

/// An address to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Target {
    /// The address behind the name; the first one if there are several.
    pub(crate) fn resolve(&self) -> Result<Address, Error> {
        match &self.endpoint {
            Endpoint::Unix(path) => Ok(Address::Unix(path.clone())),
            Endpoint::Tcp(authority) => {
                let failed = |cause: String| Error::Target {
                    step: format!("resolve {authority}"),
                    cause,
                    hint: "check the name, or give a numeric address".into(),
                };
                let mut found =
                    authority.to_socket_addrs().map_err(|error| failed(error.to_string()))?;
                let first = found.next().ok_or_else(|| failed("no address".into()))?;
                Ok(Address::Tcp(first))
            }
        }
    }

    /// The value of the `Host` header.
    pub(crate) fn host(&self) -> &str {
        match &self.endpoint {
            Endpoint::Tcp(authority) => authority,
            Endpoint::Unix(_) => "localhost",
        }
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some(rest) = text.strip_prefix("unix:") {
            return unix(text, rest);
        }
        let (scheme, rest) = match text.split_once("://") {
            None => (Scheme::Any, text),
            Some(("http", rest)) => (Scheme::Http, rest),
            Some(("tcp", rest)) => (Scheme::Tcp, rest),
            Some(("https", _)) => {
                return Err(Error::usage(
                    format!("{text}: TLS is not spoken here"),
                    "give the http:// address behind the TLS end",
                ));
            }
            Some((other, _)) => {
                return Err(Error::usage(
                    format!("{text}: the scheme {other}:// is unknown"),
                    "give http://host:port/path, tcp://host:port, host:port or unix:/path",
                ));
            }
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        if scheme == Scheme::Tcp && path != "/" {
            return Err(Error::usage(
                format!("{text}: tcp:// has no path"),
                "give tcp://host:port, or http:// if a path is meant",
            ));
        }
        check_path(text, path)?;
        Ok(Self {
            endpoint: Endpoint::Tcp(with_port(text, authority, scheme)?),
            path: path.to_owned(),
            scheme,
        })
    }
}

fn unix(text: &str, rest: &str) -> Result<Target, Error> {
    // The HTTP path, if any, begins at the first ":/": a socket path may hold any other colon.
    let (socket, path) = match rest.find(":/") {
        Some(at) => (&rest[..at], &rest[at + 1..]),
        None => (rest, "/"),
    };
    if socket.is_empty() || socket == "@" || socket.len() > UNIX_PATH_BYTES_MAX {
        return Err(Error::usage(
            format!("{text}: a unix socket path has 1 to {UNIX_PATH_BYTES_MAX} bytes"),
            "give unix:/path, unix:/path:/http/path or unix:@abstract-name",
        ));
    }
    check_path(text, path)?;
    Ok(Target {
        endpoint: Endpoint::Unix(PathBuf::from(socket)),
        path: path.to_owned(),
        scheme: Scheme::Any,
    })
}

/// A path goes into a request line as it is, so what would break that line is refused.
fn check_path(text: &str, path: &str) -> Result<(), Error> {
    if path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    Err(Error::usage(
        format!(
            "{}: the path holds a space or another byte a URL cannot hold",
            text.escape_debug()
        ),
        "percent-encode it, as in /a%20b",
    ))
}

fn with_port(text: &str, authority: &str, scheme: Scheme) -> Result<String, Error> {
    let wrong = |why: &str| {
        Error::usage(
            format!("{}: {why}", text.escape_debug()),
            "give host:port, [v6-address]:port, http://host:port/path or unix:/path",
        )
    };
    let after_host = authority.rfind(']').map_or(0, |at| at + 1);
    let (host, port) = match authority[after_host..].rfind(':') {
        Some(at) => (&authority[..after_host + at], Some(&authority[after_host + at + 1..])),
        None => (authority, None),
    };
    if host.is_empty() || !host.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong("there is no host name in it"));
    }
    if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
        return Err(wrong("an IPv6 address needs brackets before its port"));
    }
    match port.map(str::parse::<u16>) {
        Some(Ok(port)) if port > 0 => Ok(format!("{host}:{port}")),
        Some(_) => Err(wrong("the port is not a number from 1 to 65535")),
        None if scheme == Scheme::Http => Ok(format!("{host}:80")),
        None => Err(wrong("there is no port in it")),
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.endpoint, self.scheme) {
            (Endpoint::Unix(path), _) if self.path == "/" => write!(f, "unix:{}", path.display()),
            (Endpoint::Unix(path), _) => write!(f, "unix:{}:{}", path.display(), self.path),
            (Endpoint::Tcp(authority), Scheme::Http) => {
                write!(f, "http://{authority}{}", self.path)
            }
            (Endpoint::Tcp(authority), Scheme::Tcp) => write!(f, "tcp://{authority}"),
            (Endpoint::Tcp(authority), Scheme::Any) => write!(f, "{authority}{}", self.path),
        }
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl TryFrom<String> for Target {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_documented_form_is_read() {
        for (text, authority, path, scheme) in [
            ("127.0.0.1:8000", "127.0.0.1:8000", "/", Scheme::Any),
            ("host:80/a/b?c", "host:80", "/a/b?c", Scheme::Any),
            ("http://host", "host:80", "/", Scheme::Http),
            ("http://[::1]:81/x", "[::1]:81", "/x", Scheme::Http),
            ("tcp://host:7", "host:7", "/", Scheme::Tcp),
        ] {
            let target: Target = text.parse().expect(text);
            assert_eq!(target.endpoint, Endpoint::Tcp(authority.into()), "{text}");
            assert_eq!((target.path.as_str(), target.scheme), (path, scheme), "{text}");
        }
        let target: Target = "unix:/run/a:b.sock:/x".parse().expect("a unix target");
        assert_eq!(target.endpoint, Endpoint::Unix("/run/a:b.sock".into()));
        assert_eq!(target.path, "/x");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_a_hint() {
        let long = format!("unix:/{}", "x".repeat(107));
        for text in [
            "",
            "host",
            "host:0",
            "host:99999",
            ":80",
            "::1:80",
            "https://host",
            "ftp://host:1",
            "tcp://host:1/path",
            "unix:",
            "unix:@",
            "host:1/a b",
            "http://h/a\nb",
            &long,
        ] {
            let error = text.parse::<Target>().expect_err(text);
            assert_eq!(error.exit_code(), 2, "{text}");
            assert!(!error.to_string().contains('\n'), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_reads_back(text in "\\PC{0,40}") {
            if let Ok(target) = text.parse::<Target>() {
                let again = target.to_string().parse::<Target>();
                prop_assert_eq!(again.expect("its own text"), target);
            }
        }

        #[test]
        fn targets_read_back(
            text in "(http://|tcp://|)[a-z]{1,9}:[1-9][0-9]{0,3}(/[a-z:/]{0,9})?",
        ) {
            if let Ok(target) = text.parse::<Target>() {
                let again = target.to_string().parse::<Target>();
                prop_assert_eq!(again.expect("its own text"), target);
            }
        }
    }
}
