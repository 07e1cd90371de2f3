//! Ports for programs that must be told one before they listen.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below the range from which the kernel chooses (`ip_local_port_range`).
const FIRST: u32 = 10_000;
const COUNT: u32 = 22_000;

/// Ports in a row that are free at each of some addresses. The kernel gives none of them to another
/// server or client, and no other call returns them.
pub(crate) fn free_ports(hosts: &[&str], count: u16) -> Vec<u16> {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Test programs that run at the same time begin at different places.
    let begin = std::process::id().wrapping_mul(97);
    let is_free = |port: u16| hosts.iter().all(|host| TcpListener::bind((*host, port)).is_ok());
    let mut rows = (0..COUNT).map(|_| {
        let given = GIVEN.fetch_add(count.into(), Ordering::Relaxed);
        let first = FIRST + begin.wrapping_add(given) % (COUNT - u32::from(count));
        let first = u16::try_from(first).expect("ports have 16 bits");
        first..first + count
    });
    let row = rows.find(|row| row.clone().all(is_free));
    row.expect("some of thousands are free").collect()
}
