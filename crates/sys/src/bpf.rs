//! The few parts of `bpf(2)` that programs of a socket group need: instructions, maps, loading.
//!
//! Owns the system call and its structures. The caller writes the program. All of it needs CAP_BPF.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
/// `BPF_MAP_TYPE_ARRAY`.
const ARRAY: u32 = 2;
/// `BPF_MAP_TYPE_REUSEPORT_SOCKARRAY`.
const SOCKETS: u32 = 20;
/// `BPF_F_MMAPABLE`: processes can map the values.
const MAPPABLE: u32 = 1 << 10;
/// `BPF_PROG_TYPE_SK_REUSEPORT`.
const OF_REUSEPORT: u32 = 21;
/// `BPF_SK_REUSEPORT_SELECT_OR_MIGRATE`.
const MAY_MIGRATE: u32 = 40;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// The operation.
    pub code: u8,
    registers: u8,
    /// The length of a jump, or the offset of a value.
    pub offset: i16,
    /// A constant.
    pub value: i32,
}

impl Instruction {
    /// An instruction with a target and a source register.
    #[must_use]
    pub const fn new(code: u8, target: u8, source: u8, offset: i16, value: i32) -> Self {
        // Two fields of four bits, in the machine's order.
        let registers = match cfg!(target_endian = "little") {
            true => target | source << 4,
            false => target << 4 | source,
        };
        Self { code, registers, offset, value }
    }

    /// The target and the source register.
    #[must_use]
    pub const fn registers(self) -> (u8, u8) {
        let (low, high) = (self.registers & 0xf, self.registers >> 4);
        match cfg!(target_endian = "little") {
            true => (low, high),
            false => (high, low),
        }
    }
}

/// The start of `union bpf_attr` for creating a map.
#[repr(C)]
#[derive(Default)]
struct Create {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    flags: u32,
    /// Fields of later kernels.
    rest: [u32; 5],
}

/// The start of `union bpf_attr` for setting an entry.
#[repr(C)]
struct Update {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
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

/// An array of values that programs read and write, and processes that map it too.
///
/// # Errors
/// This process may not create maps, or memory is exhausted.
pub fn create_array(value_bytes: u32, is_mappable: bool) -> Result<OwnedFd, Errno> {
    let flags = if is_mappable { MAPPABLE } else { 0 };
    create(Create { kind: ARRAY, key_bytes: 4, value_bytes, entries: 1, flags, rest: [0; 5] })
}

/// Room for the sockets of a group.
///
/// # Errors
/// As [`create_array`].
pub fn create_sockets(entries: u32) -> Result<OwnedFd, Errno> {
    create(Create { kind: SOCKETS, key_bytes: 4, value_bytes: 8, entries, ..Create::default() })
}

fn create(create: Create) -> Result<OwnedFd, Errno> {
    // SAFETY: the kernel reads the structure, which lives until the call returns.
    let raw =
        unsafe { libc::syscall(libc::SYS_bpf, MAP_CREATE, &raw const create, size_of::<Create>()) };
    adopt(raw)
}

/// Whether a descriptor is an array of one page that processes map. The size of a map never
/// changes.
#[must_use]
pub fn is_page(map: &impl AsFd) -> bool {
    let path = format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd());
    let Ok(text) = std::fs::read_to_string(path) else { return false };
    let has = |name: &str, wanted: &str| {
        let mut values = text.lines().filter_map(|line| line.strip_prefix(name));
        values.any(|value| value.trim() == wanted)
    };
    has("map_type:", "2")
        && has("value_size:", "4096")
        && has("max_entries:", "1")
        && has("map_flags:", "0x400")
}

/// Puts a listening socket into such a map. Closing the socket removes it.
///
/// # Errors
/// It does not listen with SO_REUSEPORT, or the map is shorter.
pub fn set_socket(map: &impl AsFd, key: u32, socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let number = |raw: RawFd| u32::try_from(raw).map_err(|_| Errno::EBADF);
    let value = u64::from(number(socket.as_raw_fd())?);
    let update = Update {
        map: number(map.as_fd().as_raw_fd())?,
        padding: 0,
        key: &raw const key as u64,
        value: &raw const value as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads the structure, and the key and the value that it points to, all of
    // which live until the call returns.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, MAP_UPDATE, &raw const update, size_of::<Update>()) };
    Errno::result(result).map(drop)
}

/// Loads a program that selects a socket of a group, or decides about the queue of a closing one.
///
/// # Errors
/// This process may not load it, or the kernel rejects the program.
pub fn load(program: &[Instruction]) -> Result<OwnedFd, Errno> {
    let license = c"MIT";
    let load = Load {
        kind: OF_REUSEPORT,
        instruction_count: u32::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        attach_kind: MAY_MIGRATE,
        ..Load::default()
    };
    // SAFETY: the kernel reads the structure, and the instructions and the text that it points to,
    // all of which live until the call returns.
    let raw =
        unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()) };
    adopt(raw)
}

/// Lets a program decide for the group of a socket.
///
/// # Errors
/// The socket is in no group.
pub fn attach(socket: &impl AsFd, program: &impl AsFd) -> Result<(), Errno> {
    let number = program.as_fd().as_raw_fd();
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

fn adopt(raw: libc::c_long) -> Result<OwnedFd, Errno> {
    let raw = Errno::result(raw)?;
    let raw = RawFd::try_from(raw).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just installed this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}
