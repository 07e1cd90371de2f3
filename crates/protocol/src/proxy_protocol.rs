//! Headers of the PROXY protocol, versions 1 and 2: which client a balancer has in front of it.
//!
//! Pure: bytes in, a header out. As HAProxy's specification says: LOCAL, UNKNOWN and transports
//! other than streams keep the real addresses, and extensions (TLVs, their CRC included) are
//! skipped. Stricter than it must be, so that no byte can be read in two ways.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::Duration;

use crate::sys::address::Endpoint;

/// Longest header, extensions included; nginx has the same bound. A longer one is malformed.
pub const HEADER_BYTES_MAX: usize = 4096;
/// How long a worker waits for a header. The built-in worker uses `--header-timeout` instead.
pub const HEADER_LIMIT: Duration = Duration::from_secs(5);

/// Longest line of version 1, its end included.
const LINE_BYTES_MAX: usize = 107;
const LINE_START: &str = "PROXY ";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version with command, family with transport, length.
const FIXED_BYTES: usize = 16;
const UNIX_ADDRESS_BYTES: usize = 108;

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Header {
    /// The balancer speaks for itself, or does not know: the addresses of the socket are right.
    Local,
    /// The balancer speaks for a client.
    Proxied {
        /// The client.
        peer: Endpoint,
        /// Where it connected to.
        local: Endpoint,
    },
}

/// The bytes are no header, and no more of them can make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Reads the header at the start of `bytes`. Returns it with its length; `None` if more bytes are
/// needed, and then all these bytes belong to it.
///
/// # Errors
/// [`Malformed`], as early as the bytes show it.
///
/// ```
/// use clusterlb_protocol::proxy_protocol::{Header, parse};
///
/// let bytes = b"PROXY TCP4 192.0.2.1 198.51.100.7 4711 443\r\nGET / HTTP/1.1\r\n";
/// let (header, length) = parse(bytes).unwrap().unwrap();
/// assert!(matches!(header, Header::Proxied { peer, .. } if peer.to_string() == "192.0.2.1:4711"));
/// assert!(bytes[length..].starts_with(b"GET"));
/// assert_eq!(parse(b"PROXY TC"), Ok(None));
/// assert!(parse(b"GET / HTTP/1.1\r\n").is_err());
/// ```
pub fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    match bytes.first() {
        None => Ok(None),
        Some(b'P') => parse_line(bytes),
        Some(_) => parse_binary(bytes),
    }
}

/// Whether one begins as the other does, as far as both go.
fn agree(bytes: &[u8], expected: &[u8]) -> bool {
    bytes.iter().zip(expected).all(|(one, other)| one == other)
}

/// Version 1.
fn parse_line(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    if !agree(bytes, LINE_START.as_bytes()) {
        return Err(Malformed);
    }
    let most = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let end = most.iter().position(|byte| *byte == b'\n');
    let line = std::str::from_utf8(&most[..end.unwrap_or(most.len())]).map_err(|_| Malformed)?;
    if !line.bytes().all(|byte| (b' '..=b'~').contains(&byte) || byte == b'\r') {
        return Err(Malformed);
    }
    match end {
        None if bytes.len() < LINE_BYTES_MAX => Ok(None),
        None => Err(Malformed),
        Some(end) => {
            let words = line.strip_prefix(LINE_START).and_then(|line| line.strip_suffix('\r'));
            Ok(Some((line_header(words.ok_or(Malformed)?)?, end + 1)))
        }
    }
}

fn line_header(words: &str) -> Result<Header, Malformed> {
    let mut words = words.split(' ');
    let family = words.next();
    if family == Some("UNKNOWN") {
        // Whatever follows is ignored.
        return Ok(Header::Local);
    }
    let mut next = || words.next().ok_or(Malformed);
    let (peer, local) = (next()?, next()?);
    let (peer_port, local_port) = (port(next()?)?, port(next()?)?);
    if words.next().is_some() {
        return Err(Malformed);
    }
    let (peer, local): (IpAddr, IpAddr) = match family {
        Some("TCP4") => (address::<Ipv4Addr>(peer)?.into(), address::<Ipv4Addr>(local)?.into()),
        Some("TCP6") => (address::<Ipv6Addr>(peer)?.into(), address::<Ipv6Addr>(local)?.into()),
        _ => return Err(Malformed),
    };
    Ok(proxied((peer, peer_port), (local, local_port)))
}

fn address<A: std::str::FromStr>(text: &str) -> Result<A, Malformed> {
    text.parse().map_err(|_| Malformed)
}

/// Neither signs nor leading zeros, which the specification forbids.
fn port(text: &str) -> Result<u16, Malformed> {
    let port: u16 = text.parse().map_err(|_| Malformed)?;
    if port.to_string() == text { Ok(port) } else { Err(Malformed) }
}

fn proxied(peer: (IpAddr, u16), local: (IpAddr, u16)) -> Header {
    let end = |(ip, port)| Endpoint::Inet(SocketAddr::new(ip, port));
    Header::Proxied { peer: end(peer), local: end(local) }
}

/// Version 2.
fn parse_binary(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    let is_command = bytes.get(12).is_none_or(|byte| matches!(byte, 0x20 | 0x21));
    if !agree(bytes, SIGNATURE) || !is_command {
        return Err(Malformed);
    }
    let Some(fixed) = bytes.first_chunk::<FIXED_BYTES>() else { return Ok(None) };
    let [.., command, family, high, low] = *fixed;
    let end = FIXED_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if end > HEADER_BYTES_MAX {
        return Err(Malformed);
    }
    let Some(block) = bytes.get(FIXED_BYTES..end) else { return Ok(None) };
    let header = match command {
        // The rest means nothing then, however it is filled.
        0x20 => Header::Local,
        _ => binary_header(family, block)?,
    };
    Ok(Some((header, end)))
}

/// Of the family and the bytes behind it, which may have extensions at their end.
fn binary_header(family: u8, block: &[u8]) -> Result<Header, Malformed> {
    match family {
        0x11 => {
            let [a, b, c, d, e, f, g, h, ports @ ..] = *first::<12>(block)?;
            let (peer, local) = (Ipv4Addr::new(a, b, c, d), Ipv4Addr::new(e, f, g, h));
            let [peer_port, local_port] = two_ports(ports);
            Ok(proxied((peer.into(), peer_port), (local.into(), local_port)))
        }
        0x21 => {
            let (peer, block) = block.split_first_chunk::<16>().ok_or(Malformed)?;
            let (local, block) = block.split_first_chunk::<16>().ok_or(Malformed)?;
            let [peer_port, local_port] = two_ports(*first(block)?);
            let (peer, local) = (Ipv6Addr::from(*peer), Ipv6Addr::from(*local));
            Ok(proxied((peer.into(), peer_port), (local.into(), local_port)))
        }
        0x31 => {
            let (peer, block) = block.split_first_chunk::<UNIX_ADDRESS_BYTES>().ok_or(Malformed)?;
            let local = first::<UNIX_ADDRESS_BYTES>(block)?;
            Ok(Header::Proxied { peer: unix_end(peer), local: unix_end(local) })
        }
        // An unspecified family or transport, or datagrams.
        family if family >> 4 <= 3 && family & 0xf <= 2 => Ok(Header::Local),
        _ => Err(Malformed),
    }
}

fn first<const BYTES: usize>(block: &[u8]) -> Result<&[u8; BYTES], Malformed> {
    block.first_chunk().ok_or(Malformed)
}

fn two_ports([a, b, c, d]: [u8; 4]) -> [u16; 2] {
    [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]
}

/// A path, or behind a zero the name of a socket in the abstract namespace.
fn unix_end(bytes: &[u8]) -> Endpoint {
    let until_zero =
        |bytes: &[u8]| -> Vec<u8> { bytes.iter().copied().take_while(|byte| *byte != 0).collect() };
    if let Some(name) = bytes.strip_prefix(b"\0").map(until_zero).filter(|name| !name.is_empty()) {
        return Endpoint::Abstract(String::from_utf8_lossy(&name).into_owned());
    }
    let path = until_zero(bytes);
    Endpoint::Unix((!path.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(&path))))
}

#[cfg(test)]
mod tests;
