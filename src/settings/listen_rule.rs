//! Rules for the addresses that workers request. Parses and compares; opens nothing.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use crate::error::Error;
use crate::sys::address::ListenAddress;

/// Addresses of workers: those that they may listen on, although the primary opens them with its
/// own rights, or those behind a balancer.
///
/// As text: `all`; a [`ListenAddress`] for one address; `PORT` or `FROM-TO` for these ports of
/// every host, where 0 stands for one that the kernel chooses; `HOST:FROM-TO` for ports of one
/// host; and `unix:/folder/` for unix sockets directly in this folder.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListenRule {
    /// Every address.
    All,
    /// This address.
    Address(ListenAddress),
    /// TCP and UDP ports of every host.
    Ports(RangeInclusive<u16>),
    /// TCP and UDP ports of one host, spelled as in the address.
    PortsOf(String, RangeInclusive<u16>),
    /// Paths of unix sockets directly in this folder.
    Folder(PathBuf),
}

const FORMS: &str = "write an address to listen on, PORT, FROM-TO, HOST:FROM-TO, \
     unix:/folder/ with a slash at its end, or all";

impl ListenRule {
    /// Ports that need no privilege: those from 1024 on, and those that the kernel chooses.
    #[must_use]
    pub fn unprivileged() -> Vec<Self> {
        vec![Self::Ports(0..=0), Self::Ports(1024..=u16::MAX)]
    }

    /// Whether it is about this address, as a worker requests it.
    #[must_use]
    pub fn allows(&self, address: &ListenAddress) -> bool {
        match self {
            Self::All => true,
            Self::Address(allowed) => allowed == address,
            Self::Ports(ports) => {
                host_and_port(address).is_some_and(|(_, port)| ports.contains(&port))
            }
            Self::PortsOf(host, ports) => host_and_port(address)
                .is_some_and(|(other, port)| *host == other && ports.contains(&port)),
            Self::Folder(folder) => match address {
                ListenAddress::Unix(path, _) => is_right_in(path, folder),
                _ => false,
            },
        }
    }
}

fn host_and_port(address: &ListenAddress) -> Option<(String, u16)> {
    match address {
        ListenAddress::Tcp(address) => Some((address.ip().to_string(), address.port())),
        ListenAddress::Name(host, port) => Some((host.clone(), *port)),
        _ => None,
    }
}

/// Compares only the text; links are detected when the socket is created.
fn is_right_in(path: &Path, folder: &Path) -> bool {
    let (Ok(path), Ok(folder)) = (std::path::absolute(path), std::path::absolute(folder)) else {
        return false;
    };
    let leads_up = |path: &Path| path.components().any(|one| one == Component::ParentDir);
    !leads_up(&path) && path.file_name().is_some() && path.parent() == Some(folder.as_path())
}

impl FromStr for ListenRule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::usage(format!("{text} is no rule for addresses"), FORMS);
        if text == "all" {
            return Ok(Self::All);
        }
        if let Some(folder) = text.strip_prefix("unix:").filter(|path| path.ends_with('/')) {
            return Ok(Self::Folder(PathBuf::from(folder)));
        }
        if let Some(ports) = ports(text) {
            return Ok(Self::Ports(ports));
        }
        if text.starts_with("unix:") || text.starts_with("fd:") {
            // Workers know passed sockets only by number.
            return match text.parse() {
                Ok(ListenAddress::InheritedName(_)) | Err(_) => Err(wrong()),
                Ok(address) => Ok(Self::Address(address)),
            };
        }
        let (host, range) = text.rsplit_once(':').ok_or_else(wrong)?;
        match ports(range) {
            Some(ports) if ports.start() != ports.end() && !host.is_empty() => {
                let host = host.trim_start_matches('[').trim_end_matches(']');
                Ok(Self::PortsOf(host.to_owned(), ports))
            }
            _ => text.parse().map(Self::Address).map_err(|_: Error| wrong()),
        }
    }
}

fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..=last)
}

impl fmt::Display for ListenRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Address(address) => write!(f, "{address}"),
            Self::Ports(ports) => write!(f, "{}-{}", ports.start(), ports.end()),
            Self::PortsOf(host, ports) => {
                let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
                write!(f, "{open}{host}{close}:{}-{}", ports.start(), ports.end())
            }
            Self::Folder(folder) => {
                let folder = folder.display().to_string();
                write!(f, "unix:{}/", folder.trim_end_matches('/'))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(rule: &str, address: &str) -> bool {
        let rule: ListenRule = rule.parse().expect(rule);
        rule.allows(&address.parse().expect(address))
    }

    #[test]
    fn rules_allow_what_they_name_and_nothing_else() {
        for (rule, allowed, refused) in [
            ("80", "127.0.0.1:80", "127.0.0.1:81"),
            ("all:80", "all:80", "127.0.0.1:80"),
            ("1024-65535", "[::1]:1024", "[::1]:1023"),
            ("1024-65535", "localhost:8080", "localhost:0"),
            ("0", "0.0.0.0:0", "0.0.0.0:1"),
            ("127.0.0.1:1-1023", "127.0.0.1:81", "0.0.0.0:81"),
            ("[::1]:1-1023", "[::1]:81", "[::]:81"),
            ("127.0.0.1:81", "127.0.0.1:81", "127.0.0.1:82"),
            ("unix:/run/a", "unix:/run/a", "unix:/run/b"),
            ("unix:/run/app/", "unix:/run/app/a", "unix:/run/app/b/a"),
            ("unix:/run/app/", "unix:/run/app/a", "unix:/run/app/../a"),
            ("unix:/run/app/", "unix:/run/app/a", "unix:/run/app/../app/a"),
            ("unix:@a", "unix:@a", "unix:@b"),
            ("fd:3", "fd:3", "fd:4"),
            ("0-65535", "127.0.0.1:1", "fd:1"),
            ("0-65535", "127.0.0.1:1", "unix:/run/a"),
        ] {
            assert!(allows(rule, allowed), "{rule} allows {allowed}");
            assert!(!allows(rule, refused), "{rule} refuses {refused}");
        }
    }

    #[test]
    fn every_address_is_meant_by_all() {
        for address in ["127.0.0.1:0", "[::]:80", "unix:/run/a", "unix:@a", "fd:3"] {
            assert!(allows("all", address), "{address}");
        }
    }

    #[test]
    fn rules_are_printed_as_they_are_written() {
        let hosts = ["80-81", "127.0.0.1:1-2", "[::1]:1-2"];
        for text in hosts.into_iter().chain(["unix:/a/", "unix:/", "unix:@a", "fd:3", "all"]) {
            let rule: ListenRule = text.parse().expect(text);
            assert_eq!(rule.to_string(), text);
        }
        for text in ["", "2-1", "host", "fd:x", "unix:", "host:x-y", ":1-2"] {
            assert!(text.parse::<ListenRule>().is_err(), "{text}");
        }
    }
}
