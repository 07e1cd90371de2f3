//! Moves the queued connections of a closing listening socket to the other sockets of its port.
//!
//! The kernel does this if a BPF program of the socket group (SO_REUSEPORT) allows it, or if the
//! whole machine is configured for it (`net.ipv4.tcp_migrate_req`). The program here allows it and
//! leaves the selection of a socket to the kernel. Loading it needs CAP_BPF.

use std::fs;
use std::os::fd::AsFd;

use nix::errno::Errno;

use crate::bpf::{self, Instruction, PASS, RESULT, code};

/// Passes the connection on without selecting a socket, so the kernel selects by hash.
static PROGRAM: [Instruction; 2] =
    [Instruction::new(code::SET, RESULT, 0, 0, PASS), Instruction::new(code::EXIT, 0, 0, 0, 0)];
const SETTING: &str = "/proc/sys/net/ipv4/tcp_migrate_req";

/// Moves the queued connections of this socket to others of its port when it is closed.
///
/// # Errors
/// This process may not load the program, and the machine is not configured for it. Queued
/// connections are then reset.
pub fn arrange(socket: &impl AsFd) -> Result<(), Errno> {
    if fs::read_to_string(SETTING).is_ok_and(|setting| setting.trim() == "1") {
        return Ok(());
    }
    bpf::attach(socket, &bpf::load(&PROGRAM)?)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;
    use crate::listener::{Listener, OpenOptions, open_shared};

    #[test]
    fn the_other_socket_of_a_port_gets_what_waits_in_a_closed_one() {
        let options = OpenOptions {
            backlog: 64,
            share_port: true,
            ipv6_only: false,
            mode: None,
            blocking: false,
            defer_accept: false,
        };
        let address = "127.0.0.1:0".parse().expect("an address");
        let first = Listener::open(&address, options).expect("a free port");
        let second = open_shared(first.address(), options).expect("a second socket");
        let connect = |_| TcpStream::connect(second.address()).expect("it listens");
        let clients: Vec<TcpStream> = (0..40).map(connect).collect();
        if let Err(errno) = arrange(&first) {
            assert_eq!(errno, Errno::EPERM);
            return crate::missing::lacking("CAP_BPF, with which others are given connections");
        }
        drop(first);
        let mut taken = 0;
        while second.accept_now().expect("it listens").is_some() {
            taken += 1;
        }
        assert_eq!(taken, clients.len());
    }
}
