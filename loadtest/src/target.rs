//! What is loaded: an address and, for HTTP, a path. Parsing is pure; resolving asks the system.
//!
//! ```text
//! http://host/path?query    https://host:port/path    [user:password@] before the host; no #part
//! 127.0.0.1:8000            host:port/path            HTTP unless --mode says otherwise
//! tcp://host:port                                     bytes: echo or connect
//! unix:/run/app.sock        unix:/run/app.sock:/path  unix:@name, the same over a unix socket
//! ```
//!
//! URLs are read as browsers read them (the `url` crate), with two additions: an IPv6 address may
//! carry a scope, `[fe80::1%eth0]`, and spaces are refused rather than encoded.

mod credentials;

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use url::{Position, Url};

use crate::error::Error;
pub use credentials::Credentials;

/// The longest path of a unix socket: the kernel's bound less the final zero.
const UNIX_PATH_BYTES_MAX: usize = 107;
/// Addresses of one name that are tried; further ones are ignored.
const ADDRESSES_MAX: usize = 16;
/// What to write instead of a target that cannot be read.
const FORMS: &str = "give http://host/path, https://host/path, host:port, [v6-address]:port, \
    tcp://host:port or unix:/path";

/// A target as it was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Target {
    /// Where to connect.
    pub endpoint: Endpoint,
    /// What to ask for, from `/` on, with the query.
    pub path: String,
    /// What the scheme said about the protocol.
    pub scheme: Scheme,
    /// The user of the URL. Neither printed nor repeated in reports.
    pub credentials: Option<Credentials>,
}

/// Where to connect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `host:port`, not yet resolved.
    Tcp(String),
    /// A unix socket's path; a leading `@` names an abstract one.
    Unix(PathBuf),
}

/// What the scheme said about the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `http://`: HTTP over TCP.
    Http,
    /// `https://`: HTTP over TLS.
    Https,
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

impl Scheme {
    /// True if the scheme leaves no doubt that HTTP is meant.
    #[must_use]
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Https)
    }

    fn default_port(self) -> Option<u16> {
        match self {
            Self::Http => Some(80),
            Self::Https => Some(443),
            Self::Tcp | Self::Any => None,
        }
    }
}

impl Target {
    /// The addresses behind the name, in the order in which the system prefers them. Blocks while
    /// the system asks its name servers.
    pub(crate) fn resolve(&self) -> Result<Vec<Address>, Error> {
        let authority = match &self.endpoint {
            Endpoint::Unix(path) => return Ok(vec![Address::Unix(path.clone())]),
            Endpoint::Tcp(authority) => authority,
        };
        let failed = |cause: String| Error::Target {
            step: format!("resolve {authority}"),
            cause,
            hint: "check the spelling and the name servers, or give a numeric address".into(),
        };
        let (host, port) = split_port(authority);
        let found = (unbracketed(host), port)
            .to_socket_addrs()
            .map_err(|error| failed(error.to_string()))?;
        let mut addresses = Vec::new();
        for address in found.map(Address::Tcp) {
            if addresses.len() < ADDRESSES_MAX && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        match addresses.is_empty() {
            true => Err(failed("the name has no address".into())),
            false => Ok(addresses),
        }
    }

    /// The value of the `Host` header: no scope, and no port where the scheme implies it.
    pub(crate) fn host(&self) -> String {
        let Endpoint::Tcp(authority) = &self.endpoint else {
            return "localhost".into();
        };
        let (host, port) = split_port(authority);
        let host = without_scope(host);
        match self.scheme.default_port() == Some(port) {
            true => host,
            false => format!("{host}:{port}"),
        }
    }

    /// The name that a TLS certificate must prove: no brackets, no scope, no final dot.
    pub(crate) fn server_name(&self) -> Option<String> {
        match &self.endpoint {
            Endpoint::Tcp(authority) if self.scheme == Scheme::Https => {
                let host = without_scope(split_port(authority).0);
                Some(unbracketed(&host).trim_end_matches('.').to_owned())
            }
            _ => None,
        }
    }
}

/// Cuts `host:port`, which parsing has made sure of.
fn split_port(authority: &str) -> (&str, u16) {
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "0"));
    (host, port.parse().unwrap_or(0))
}

fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host)
}

fn without_scope(host: &str) -> String {
    match host.split_once('%') {
        Some((address, _)) if host.starts_with('[') => format!("{address}]"),
        _ => host.to_owned(),
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        if let Some((scheme, rest)) = text.split_once(':')
            && scheme.eq_ignore_ascii_case("unix")
        {
            return unix(text, rest);
        }
        let (scheme, rest) = scheme_of(text)?;
        check_bytes(text, rest)?;
        let (rest, scope) = take_scope(text, rest)?;
        // Any scheme that browsers know makes the parser read a host and a path.
        let shape = if scheme == Scheme::Https { "https" } else { "http" };
        let url = Url::parse(&format!("{shape}://{rest}"))
            .map_err(|error| unreadable(text, &error.to_string()))?;
        let target = Self {
            endpoint: Endpoint::Tcp(authority(text, &url, (scheme, &rest), scope)?),
            path: url[Position::BeforePath..Position::AfterQuery].to_owned(),
            scheme,
            credentials: Credentials::of(&url),
        };
        if scheme == Scheme::Tcp && (target.path != "/" || target.credentials.is_some()) {
            return Err(Error::usage(
                format!("{text}: tcp:// has no path and no user"),
                "give tcp://host:port, or http:// if HTTP is meant",
            ));
        }
        Ok(target)
    }
}

/// The scheme and what follows it. A `://` within a path or a query is none.
fn scheme_of(text: &str) -> Result<(Scheme, &str), Error> {
    let is_scheme = |name: &str| {
        name.starts_with(|first: char| first.is_ascii_alphabetic())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    };
    let Some((name, rest)) = text.split_once("://").filter(|(name, _)| is_scheme(name)) else {
        return Ok((Scheme::Any, text));
    };
    match name.to_ascii_lowercase().as_str() {
        "http" => Ok((Scheme::Http, rest)),
        "https" => Ok((Scheme::Https, rest)),
        "tcp" => Ok((Scheme::Tcp, rest)),
        other => Err(Error::usage(format!("{text}: the scheme {other}:// is unknown"), FORMS)),
    }
}

/// A browser would encode a space and drop a line end. In a shell both are mostly a slip.
fn check_bytes(text: &str, rest: &str) -> Result<(), Error> {
    match rest.chars().any(|letter| letter.is_whitespace() || letter.is_control()) {
        false => Ok(()),
        true => Err(Error::usage(
            format!("{}: it holds a space or a control character", text.escape_debug()),
            "percent-encode it, as in /a%20b, and quote the URL for the shell",
        )),
    }
}

/// Takes the scope out of `[fe80::1%eth0]`, which a URL has no place for. As in RFC 6874 its `%`
/// may be written `%25`.
fn take_scope<'a>(text: &str, rest: &'a str) -> Result<(String, Option<&'a str>), Error> {
    let authority = rest.find(['/', '?', '#']).map_or(rest, |end| &rest[..end]);
    let open = authority.rfind('@').map_or(0, |at| at + 1);
    let inside = authority[open..].strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let Some((address, written)) = inside.and_then(|(inside, _)| inside.split_once('%')) else {
        return Ok((rest.to_owned(), None));
    };
    let scope = written.strip_prefix("25").filter(|rest| !rest.is_empty()).unwrap_or(written);
    if scope.is_empty() || !scope.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    {
        return Err(unreadable(text, "the scope after % is no interface's name or number"));
    }
    let tail = &rest[open + 1 + address.len() + 1 + written.len()..];
    Ok((format!("{}[{address}{tail}", &rest[..open]), Some(scope)))
}

fn authority(
    text: &str,
    url: &Url,
    (scheme, rest): (Scheme, &str),
    scope: Option<&str>,
) -> Result<String, Error> {
    let host = url.host_str().unwrap_or_default();
    let port = match scheme.default_port() {
        Some(default) => url.port().unwrap_or(default),
        None if has_port(rest) => url.port_or_known_default().unwrap_or(0),
        None => {
            let what = format!("{text}: there is no port in it");
            return Err(Error::usage(what, format!("give http://{text} or {text}:PORT")));
        }
    };
    if port == 0 {
        return Err(unreadable(text, "the port is not a number from 1 to 65535"));
    }
    Ok(match scope {
        Some(scope) => format!("{}%{scope}]:{port}", host.trim_end_matches(']')),
        None => format!("{host}:{port}"),
    })
}

/// True if a port was written, even one that the parser leaves out because it is the default.
fn has_port(rest: &str) -> bool {
    let authority = rest.find(['/', '\\', '?', '#']).map_or(rest, |end| &rest[..end]);
    let host = authority.rfind('@').map_or(authority, |at| &authority[at + 1..]);
    let after_host = host.rfind(']').map_or(host, |at| &host[at + 1..]);
    after_host.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty())
}

fn unreadable(text: &str, why: &str) -> Error {
    Error::usage(format!("{}: {why}", text.escape_debug()), FORMS)
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
    check_bytes(text, path)?;
    let url = Url::parse(&format!("http://localhost{path}"))
        .map_err(|error| unreadable(text, &error.to_string()))?;
    Ok(Target {
        endpoint: Endpoint::Unix(PathBuf::from(socket)),
        path: url[Position::BeforePath..Position::AfterQuery].to_owned(),
        scheme: Scheme::Any,
        credentials: None,
    })
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        match (&self.endpoint, self.scheme) {
            (Endpoint::Unix(socket), _) if path == "/" => write!(f, "unix:{}", socket.display()),
            (Endpoint::Unix(socket), _) => write!(f, "unix:{}:{path}", socket.display()),
            (Endpoint::Tcp(authority), Scheme::Http) => write!(f, "http://{authority}{path}"),
            (Endpoint::Tcp(authority), Scheme::Https) => write!(f, "https://{authority}{path}"),
            (Endpoint::Tcp(authority), Scheme::Tcp) => write!(f, "tcp://{authority}"),
            (Endpoint::Tcp(authority), Scheme::Any) => write!(f, "{authority}{path}"),
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
mod tests;
