//! The TCP addresses on which a process listens, from `/proc`.
//!
//! Owns parsing the kernel's tables (`proc(5)`). Unreadable entries are skipped.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// State of a listening socket in the kernel's tables.
const LISTENS: &str = "0A";

/// The addresses on which this process listens, however it obtained the sockets.
#[must_use]
pub fn addresses_of(pid: u32) -> Vec<SocketAddr> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = links.filter_map(|link| fs::read_link(link.path()).ok());
    let sockets: BTreeSet<u64> = links
        .filter_map(|link| {
            let number = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            number.parse().ok()
        })
        .collect();
    let tables = ["tcp", "tcp6"].map(|name| format!("/proc/{pid}/net/{name}"));
    let tables: Vec<String> =
        tables.iter().filter_map(|table| fs::read_to_string(table).ok()).collect();
    let found = tables.iter().flat_map(|table| table.lines()).filter_map(listening);
    found.filter(|(_, socket)| sockets.contains(socket)).map(|(address, _)| address).collect()
}

/// How many sockets listen at an address, of any process; `None` if that cannot be read.
///
/// The kernel lists listening sockets before all connections, so only those are read.
#[must_use]
pub fn sockets_at(address: SocketAddr) -> Option<usize> {
    let name = if address.is_ipv4() { "tcp" } else { "tcp6" };
    let table = fs::File::open(format!("/proc/self/net/{name}")).ok()?;
    let lines = BufReader::new(table).lines().skip(1).map_while(|line| line.ok());
    let found = lines.map_while(|line| listening(&line).map(|(address, _)| address));
    let bound = |one: &SocketAddr| (one.ip(), one.port()) == (address.ip(), address.port());
    Some(found.filter(bound).count())
}

/// Address and inode number of a listening socket, parsed from its line.
fn listening(line: &str) -> Option<(SocketAddr, u64)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (address, state, number) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    let (host, port) = address.split_once(':').filter(|_| *state == LISTENS)?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // The kernel prints words in native byte order.
    let word = |place: usize| {
        let word = u32::from_str_radix(host.get(8 * place..8 * place + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let host = match host.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
            IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(words).ok()?))
        }
        _ => return None,
    };
    Some((SocketAddr::new(host, port), number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_process_sees_where_it_listens() {
        let own = ["127.0.0.1:0", "[::1]:0"].map(TcpListener::bind);
        let own = own.into_iter().flatten();
        let own: Vec<TcpListener> = own.collect();
        let found = addresses_of(std::process::id());
        for listener in own {
            let address = listener.local_addr().expect("it is bound");
            assert!(found.contains(&address), "{address}: {found:?}");
        }
        assert!(addresses_of(u32::MAX).is_empty());
    }

    #[test]
    fn sockets_at_an_address_are_counted() {
        let own = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = own.local_addr().expect("it is bound");
        let _client = std::net::TcpStream::connect(address).expect("it listens");
        assert_eq!(sockets_at(address), Some(1));
        drop(own);
        assert_eq!(sockets_at(address), Some(0));
    }

    #[test]
    fn only_sockets_that_listen_count() {
        let line =
            "0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 42 1";
        #[cfg(target_endian = "little")]
        assert_eq!(listening(line), Some((([127, 0, 0, 1], 8080).into(), 42)));
        assert_eq!(listening(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(listening("sl local_address rem_address st"), None);
    }
}
