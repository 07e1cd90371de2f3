//! The few parts of `bpf(2)` that programs of a socket group need: instructions, maps, loading.
//!
//! Owns the system call and its structures. The caller writes the program. All of it needs CAP_BPF.

mod types;

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;

pub use types::{TIMER_BYTES, load_types};

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
/// The kernel gives up on a program (EAGAIN) if a signal or other work is pending for this thread,
/// as on a busy machine. It does that work when the call returns, so another try helps.
const LOAD_TRIES: usize = 20;
/// `BPF_MAP_TYPE_ARRAY`.
const ARRAY: u32 = 2;
/// `BPF_MAP_TYPE_REUSEPORT_SOCKARRAY`.
const SOCKETS: u32 = 20;
/// `BPF_MAP_TYPE_RINGBUF`.
const RING: u32 = 27;
/// `BPF_F_MMAPABLE`: processes can map the values.
const MAPPABLE: u32 = 1 << 10;
/// `BPF_PROG_TYPE_SK_REUSEPORT`.
const OF_REUSEPORT: u32 = 21;
/// `BPF_SK_REUSEPORT_SELECT_OR_MIGRATE`.
const MAY_MIGRATE: u32 = 40;

/// `r0` has the result.
pub(crate) const RESULT: u8 = 0;
/// The result that lets a connection pass.
pub(crate) const PASS: i32 = 1;

/// Codes: arithmetic and jumps of 64 bits, with a constant or with a register.
pub mod code {
    /// `target = constant` of 64 bits, in two instructions.
    pub const LOAD_WIDE: u8 = 0x18;
    /// Jumps always.
    pub const JUMP: u8 = 0x05;
    /// `target = *(u64 *)(source + offset)`.
    pub const LOAD: u8 = 0x79;
    /// `target = *(u32 *)(source + offset)`.
    pub const LOAD_HALF: u8 = 0x61;
    /// `*(u32 *)(target + offset) = source`.
    pub const STORE_HALF: u8 = 0x63;
    /// `*(u64 *)(target + offset) = source`.
    pub const STORE: u8 = 0x7b;
    /// `*(u32 *)(target + offset) = constant`.
    pub const STORE_CONSTANT: u8 = 0x62;
    /// `target = constant`.
    pub const SET: u8 = 0xb7;
    /// `target = source`.
    pub const MOVE: u8 = 0xbf;
    /// `target += constant`.
    pub const ADD_CONSTANT: u8 = 0x07;
    /// `target += source`.
    pub const ADD: u8 = 0x0f;
    /// `target -= source`.
    pub const SUBTRACT: u8 = 0x1f;
    /// `target *= constant`.
    pub const MULTIPLY_CONSTANT: u8 = 0x27;
    /// `target *= source`.
    pub const MULTIPLY: u8 = 0x2f;
    /// `target /= source`; by zero it is zero.
    pub const DIVIDE: u8 = 0x3f;
    /// `target %= constant`.
    pub const MODULO: u8 = 0x97;
    /// `target = -target`.
    pub const NEGATE: u8 = 0x87;
    /// `target |= source`.
    pub const OR: u8 = 0x4f;
    /// `target &= constant`.
    pub const AND_CONSTANT: u8 = 0x57;
    /// `target &= source`.
    pub const AND: u8 = 0x5f;
    /// `target ^= constant`.
    pub const XOR_CONSTANT: u8 = 0xa7;
    /// `target ^= source`.
    pub const XOR: u8 = 0xaf;
    /// `target <<= constant`.
    pub const SHIFT: u8 = 0x67;
    /// `target >>= constant`.
    pub const SHIFT_DOWN: u8 = 0x77;
    /// `target >>= constant`, signed.
    pub const SHIFT_SIGN_DOWN: u8 = 0xc7;
    /// Jumps if `target == constant`.
    pub const IF_EQUAL: u8 = 0x15;
    /// Jumps if `target != constant`.
    pub const UNLESS_EQUAL: u8 = 0x55;
    /// Jumps if `target == source`.
    pub const IF_SAME: u8 = 0x1d;
    /// Jumps if `target >= source`.
    pub const IF_FROM: u8 = 0x3d;
    /// Jumps if `target > source`.
    pub const IF_ABOVE: u8 = 0x2d;
    /// Jumps if `target >= constant`.
    pub const IF_FROM_CONSTANT: u8 = 0x35;
    /// Jumps if `target >= constant`, signed.
    pub const IF_SIGNED_FROM: u8 = 0x75;
    /// `*(u64 *)(target + offset) = constant`.
    pub const STORE_LONG_CONSTANT: u8 = 0x7a;
    /// `*(u64 *)(target + offset) += source`, atomically.
    pub const ADD_ATOMICALLY: u8 = 0xdb;
    /// Calls a helper.
    pub const CALL: u8 = 0x85;
    /// Ends the program.
    pub const EXIT: u8 = 0x95;
}

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
    inner: u32,
    node: u32,
    name: [u8; 16],
    interface: u32,
    /// What a value consists of.
    types: u32,
    key_type: u32,
    value_type: u32,
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
    types: u32,
    function_bytes: u32,
    functions: u64,
    function_count: u32,
    /// The structure has no padding.
    rest: u32,
}

/// `struct bpf_func_info`.
#[repr(C)]
struct Function {
    at: u32,
    kind: u32,
}

/// A program in which a timer calls a part of it.
#[derive(Clone, Copy, Debug)]
pub struct Timed<'a> {
    /// See [`load_types`].
    pub types: BorrowedFd<'a>,
    /// Where that part begins.
    pub at: usize,
}

/// An array of values that programs read and write, and processes that map it too.
///
/// # Errors
/// This process may not create maps, or memory is exhausted.
pub fn create_array(value_bytes: u32, is_mappable: bool) -> Result<OwnedFd, Errno> {
    let flags = if is_mappable { MAPPABLE } else { 0 };
    create(Create {
        kind: ARRAY,
        key_bytes: 4,
        value_bytes,
        entries: 1,
        flags,
        ..Create::default()
    })
}

/// An array of one value, which begins with a timer.
///
/// # Errors
/// As [`create_array`], or the kernel has no timers for programs.
pub fn create_timed(types: &impl AsFd, value_bytes: u32) -> Result<OwnedFd, Errno> {
    create(Create {
        kind: ARRAY,
        key_bytes: 4,
        value_bytes,
        entries: 1,
        types: number(types.as_fd())?,
        key_type: types::KEY,
        value_type: types::VALUE,
        ..Create::default()
    })
}

/// A ring of messages from programs. It can be polled.
///
/// # Errors
/// As [`create_array`], or the kernel has no rings.
pub fn create_ring(bytes: u32) -> Result<OwnedFd, Errno> {
    create(Create { kind: RING, entries: bytes, ..Create::default() })
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
    let value = u64::from(number(socket)?);
    let update = Update {
        map: number(map.as_fd())?,
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
pub fn load(program: &[Instruction], timed: Option<Timed<'_>>) -> Result<OwnedFd, Errno> {
    let mut tries = 1;
    loop {
        match load_once(program, timed) {
            Err(Errno::EAGAIN) if tries < LOAD_TRIES => tries += 1,
            result => return result,
        }
    }
}

fn load_once(program: &[Instruction], timed: Option<Timed<'_>>) -> Result<OwnedFd, Errno> {
    // The kernel lets only programs that are also offered under the GPL use timers.
    let license = if timed.is_some() { c"Dual MIT/GPL" } else { c"MIT" };
    let mut functions = Vec::new();
    let mut types = 0;
    if let Some(timed) = timed {
        types = number(timed.types)?;
        functions.push(Function { at: 0, kind: types::PROGRAM });
        let at = u32::try_from(timed.at).map_err(|_| Errno::E2BIG)?;
        functions.push(Function { at, kind: types::CALLED });
    }
    let load = Load {
        kind: OF_REUSEPORT,
        instruction_count: u32::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        attach_kind: MAY_MIGRATE,
        types,
        function_bytes: u32::try_from(size_of::<Function>()).expect("it is small"),
        functions: functions.as_ptr() as u64,
        function_count: u32::try_from(functions.len()).expect("at most two"),
        ..Load::default()
    };
    // SAFETY: the kernel reads the structure, and the instructions, the text and the functions that
    // it points to, all of which live until the call returns.
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

fn number(file: BorrowedFd<'_>) -> Result<u32, Errno> {
    u32::try_from(file.as_raw_fd()).map_err(|_| Errno::EBADF)
}

fn adopt(raw: libc::c_long) -> Result<OwnedFd, Errno> {
    let raw = Errno::result(raw)?;
    let raw = RawFd::try_from(raw).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just installed this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}
