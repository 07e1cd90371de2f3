//! The types of a program with a timer (BTF): the kernel looks in them for the timer of a map's
//! value, and for the part of a program that a timer calls.
//!
//! Owns their encoding. Nothing else about a program is described.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::libc;

const BTF_LOAD: libc::c_int = 18;
const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
const NO_FLAGS: u8 = 0;
const HEADER_BYTES: u32 = 24;

/// Size of `struct bpf_timer`, with which the value of a map of [`super::create_timed`] begins.
pub const TIMER_BYTES: u32 = 16;

/// Numbers of types, which are in this order from 1 on.
pub(super) const KEY: u32 = 1;
const LONG: u32 = 2;
const LONGS: u32 = 3;
const TIMER: u32 = 4;
pub(super) const VALUE: u32 = 5;
const NO_ARGUMENTS: u32 = 6;
pub(super) const PROGRAM: u32 = 7;
pub(super) const CALLED: u32 = 8;

/// Kinds, in the upper half of a type's second word; the lower one has the number of its members.
const INTEGER: u32 = 1 << 24;
const ARRAY: u32 = 3 << 24;
const STRUCTURE: u32 = 4 << 24;
const FUNCTION: u32 = 12 << 24;
const PROTOTYPE: u32 = 13 << 24;

/// `union bpf_attr` for loading types.
#[repr(C)]
struct Load {
    types: u64,
    log: u64,
    types_bytes: u32,
    log_bytes: u32,
    log_level: u32,
    /// The structure has no padding.
    rest: u32,
}

/// Loads the types for values of this size and programs of two parts.
///
/// # Errors
/// This process may not load them, or the kernel has none.
pub fn load_types(value_bytes: u32) -> Result<OwnedFd, Errno> {
    let types = encode(value_bytes);
    let load = Load {
        types: types.as_ptr() as u64,
        log: 0,
        types_bytes: u32::try_from(types.len()).expect("a few types"),
        log_bytes: 0,
        log_level: 0,
        rest: 0,
    };
    // SAFETY: the kernel reads the structure, and the types that it points to, all of which live
    // until the call returns.
    let raw = unsafe { libc::syscall(libc::SYS_bpf, BTF_LOAD, &raw const load, size_of::<Load>()) };
    super::adopt(raw)
}

fn encode(value_bytes: u32) -> Vec<u8> {
    let mut names = vec![0];
    let mut name = |text: &str| {
        let at = u32::try_from(names.len()).expect("a few names");
        names.extend(text.bytes().chain([0]));
        at
    };
    let types = [
        vec![name("key"), INTEGER, 4, 32],
        vec![name("long"), INTEGER, 8, 64],
        vec![0, ARRAY, 0, LONG, KEY, 2],
        // The kernel knows it by its name.
        vec![name("bpf_timer"), STRUCTURE | 1, TIMER_BYTES, name("opaque"), LONGS, 0],
        vec![name("value"), STRUCTURE | 1, value_bytes, name("timer"), TIMER, 0],
        vec![0, PROTOTYPE, KEY],
        vec![name("program"), FUNCTION, NO_ARGUMENTS],
        vec![name("called"), FUNCTION, NO_ARGUMENTS],
    ];
    let types: Vec<u32> = types.into_iter().flatten().collect();
    let types_bytes = u32::try_from(size_of_val(&*types)).expect("a few types");
    let names_bytes = u32::try_from(names.len()).expect("a few names");
    let mut encoded = Vec::new();
    encoded.extend(MAGIC.to_ne_bytes());
    encoded.extend([VERSION, NO_FLAGS]);
    let header = [HEADER_BYTES, 0, types_bytes, types_bytes, names_bytes];
    encoded.extend(header.into_iter().chain(types).flat_map(u32::to_ne_bytes));
    encoded.extend(names);
    encoded
}
