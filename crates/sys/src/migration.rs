//! Moves the queued connections of a closing listening socket to the other sockets of its port.
//!
//! The kernel does this if a BPF program of the socket group (SO_REUSEPORT) allows it, or if the
//! whole machine is configured for it (`net.ipv4.tcp_migrate_req`). The program here allows it and
//! leaves the selection of a socket to the kernel. Loading it needs CAP_BPF.

use std::fs;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::libc;

const PROG_LOAD: libc::c_int = 5;
/// `BPF_PROG_TYPE_SK_REUSEPORT`.
const OF_REUSEPORT: u32 = 21;
/// `BPF_SK_REUSEPORT_SELECT_OR_MIGRATE`.
const MAY_MIGRATE: u32 = 40;
/// `r0 = SK_PASS; exit` without selecting a socket, so the kernel selects by hash.
static PROGRAM: [Instruction; 2] = [Instruction { code: MOVE, value: PASS, ..EXIT }, EXIT];
const EXIT: Instruction = Instruction { code: 0x95, registers: 0, offset: 0, value: 0 };
/// `BPF_ALU64 | BPF_MOV | BPF_K`: loads a constant into a register.
const MOVE: u8 = 0xb7;
const PASS: i32 = 1;
const SETTING: &str = "/proc/sys/net/ipv4/tcp_migrate_req";

/// `struct bpf_insn`. It uses native byte order, so it is written field by field.
#[repr(C)]
struct Instruction {
    code: u8,
    /// Target and source register, four bits each, in an order that depends on the machine. Both
    /// are `r0`, so the byte is zero.
    registers: u8,
    offset: i16,
    value: i32,
}

/// The start of `union bpf_attr` for loading a program.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_kind: u32,
}

/// Moves the queued connections of this socket to others of its port when it is closed.
///
/// # Errors
/// This process may not load the program, and the machine is not configured for it. Queued
/// connections are then reset.
pub fn arrange(socket: &impl AsFd) -> Result<(), Errno> {
    if fs::read_to_string(SETTING).is_ok_and(|setting| setting.trim() == "1") {
        return Ok(());
    }
    let program = load()?;
    let number = program.as_raw_fd();
    let length = libc::socklen_t::try_from(size_of_val(&number)).expect("a number is small");
    // SAFETY: the kernel reads one number, which lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_EBPF,
            (&raw const number).cast(),
            length,
        )
    };
    Errno::result(result).map(drop)
}

fn load() -> Result<OwnedFd, Errno> {
    let license = c"MIT";
    let load = Load {
        kind: OF_REUSEPORT,
        instruction_count: u32::try_from(PROGRAM.len()).expect("it is short"),
        instructions: PROGRAM.as_ptr() as u64,
        license: license.as_ptr() as u64,
        attach_kind: MAY_MIGRATE,
        ..Load::default()
    };
    // SAFETY: the kernel reads the structure, and the instructions and the text that it points to,
    // all of which live until the call returns.
    let raw =
        unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()) };
    let raw = Errno::result(raw)?;
    let raw = i32::try_from(raw).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just installed this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
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
