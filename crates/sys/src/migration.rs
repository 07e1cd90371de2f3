//! Moves the queued connections of a listening socket to the other sockets of its port, when it
//! closes or while it stays open.
//!
//! The kernel does this if a BPF program of the socket group (SO_REUSEPORT) allows it, or if the
//! whole machine is configured for it (`net.ipv4.tcp_migrate_req`). The program here allows it and
//! leaves the selection of a socket to the kernel. Loading it needs CAP_BPF.

use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd as _};

use nix::errno::Errno;
use nix::sys::socket::{Shutdown, SockaddrStorage, bind, shutdown};

use crate::backlog;
use crate::bpf::{self, Instruction, PASS, RESULT, code};
use crate::listener::{Listener, listen};

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
    bpf::attach(socket, &bpf::load(&PROGRAM, None)?)
}

/// Moves the queued connections of this socket to others of its port, and lets it listen again. A
/// program of the group must allow it and choose among the others; without another socket the
/// connections are reset. In between, accepting from it fails, in every process that has it.
///
/// # Errors
/// It does not listen, or cannot any more.
pub fn move_queue(listener: &Listener) -> Result<(), Errno> {
    let room = backlog::length_max(listener)?;
    let socket = listener.as_fd().as_raw_fd();
    shutdown(socket, Shutdown::Read)?;
    let address: SocketAddr = listener.address().parse().map_err(|_| Errno::EINVAL)?;
    match bind(socket, &SockaddrStorage::from(address)) {
        // It has kept its port, unlike one that the kernel has chosen.
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(errno) => return Err(errno),
    }
    listen(listener, room)
}

/// Wakes those who wait for connections of this socket, which older kernels leave asleep when
/// connections move to it. Nothing else changes: a listening socket has nothing to send.
pub fn wake(listener: &Listener) {
    let _ = shutdown(listener.as_fd().as_raw_fd(), Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;
    use crate::listener::{OpenOptions, open_shared};

    fn pair(address: &str) -> (Listener, Listener) {
        let options = OpenOptions {
            backlog: 256,
            share_port: true,
            ipv6_only: false,
            mode: None,
            blocking: false,
            defer_accept: false,
        };
        let address = address.parse().expect("an address");
        let first = Listener::open(&address, options).expect("a free port");
        let second = open_shared(first.address(), options).expect("a second socket");
        (first, second)
    }

    #[test]
    fn the_other_socket_of_a_port_gets_what_waits_in_one_that_listens_again() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (first, second) = pair(address);
            if let Err(errno) = arrange(&first) {
                assert_eq!(errno, Errno::EPERM);
                return crate::missing::lacking("CAP_BPF, with which others are given connections");
            }
            let connect = |_| TcpStream::connect(second.address()).expect("it listens");
            let mut clients: Vec<TcpStream> = (0..40).map(connect).collect();
            // The first one's port was chosen by the kernel, the second one's was not.
            for (from, to) in [(&first, &second), (&second, &first)] {
                move_queue(from).expect("it listens");
                wake(to);
                assert_eq!(backlog::length(from), Ok(0), "{address}");
                assert_eq!(backlog::length(to).map(|count| count as usize), Ok(clients.len()));
                assert_eq!(backlog::length_max(from), Ok(256));
            }
            clients.extend((0..40).map(connect));
            let waiting = [&first, &second].map(|one| backlog::length(one).expect("it is TCP"));
            assert!(waiting[1] > 0 && waiting.iter().sum::<u32>() == 80, "{waiting:?}");
            let accepted = || first.accept_now().expect("it listens");
            assert_eq!(std::iter::from_fn(accepted).count(), waiting[0] as usize);
        }
    }

    #[test]
    fn the_other_socket_of_a_port_gets_what_waits_in_a_closed_one() {
        let (first, second) = pair("127.0.0.1:0");
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
