//! Makes the kernel pick the listening socket whose worker has the fewest connections in flight.
//!
//! Owns the assembly of the program, an SK_REUSEPORT one, which needs CAP_BPF. Workers write their
//! counters into pages that are BPF maps, so the kernel reads a worker's plain store at the next
//! connection; the primary excludes a worker by another store. Workers with equally many
//! connections take turns after the last one picked: the program remembers only that, so nothing
//! leaks with a connection that is never established.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;

use crate::bpf::{self, Instruction};

/// Most sockets of a program: a program has at most 64 maps, and two have other uses.
pub const PICKED_MAX: usize = 60;

/// Offsets of the program's inputs in a page, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoardLayout {
    /// Not zero: the worker is excluded.
    pub excluded: i16,
    /// Added: connections that arrived at the worker.
    pub come: [i16; 2],
    /// Subtracted: connections that have left it.
    pub gone: [i16; 2],
}

/// A socket that may be picked.
#[derive(Clone, Copy, Debug)]
pub struct Pickable<'a> {
    /// Its key in the map of sockets.
    pub socket: u16,
    /// The page of the worker that accepts from it, which is a BPF map.
    pub board: BorrowedFd<'a>,
}

/// The maps of a port.
#[derive(Debug)]
pub struct Picking {
    sockets: OwnedFd,
    cursor: OwnedFd,
    layout: BoardLayout,
}

/// `r1` to `r5` are arguments, `r0` is the result, `r6` to `r9` are preserved, `r10` is the stack.
pub(crate) const RESULT: u8 = 0;
const CONTEXT: u8 = 6;
const LAST: u8 = 7;
const BEST: u8 = 8;
const CHOSEN: u8 = 9;
const STACK: u8 = 10;
/// Stack offsets of a lookup's key and of the cursor.
const KEY_AT: i16 = -4;
const CURSOR_AT: i16 = -16;
/// The place before one is found.
const NONE_FOUND: i32 = -1;
/// All higher numbers in flight count as equal. The lower sixteen bits hold the turn.
const IN_FLIGHT_MAX: i32 = 0x000f_ffff;
const TURN_BITS: i32 = 16;
/// Helpers: `bpf_map_lookup_elem`, `bpf_sk_select_reuseport`.
const LOOK_UP: i32 = 1;
const SELECT: i32 = 82;
/// The result that lets the connection pass.
pub(crate) const PASS: i32 = 1;
/// The source register of a constant that is a map (`BPF_PSEUDO_MAP_FD`).
const IS_MAP: u8 = 1;

/// Codes: 64-bit arithmetic and jumps, with a constant or with a register.
pub mod code {
    /// `target = constant` of 64 bits, in two instructions.
    pub const LOAD_WIDE: u8 = 0x18;
    /// Jumps always.
    pub const JUMP: u8 = 0x05;
    /// `target = *(u64 *)(source + offset)`.
    pub const LOAD: u8 = 0x79;
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
    /// `target |= source`.
    pub const OR: u8 = 0x4f;
    /// `target <<= constant`.
    pub const SHIFT: u8 = 0x67;
    /// `target %= constant`.
    pub const MODULO: u8 = 0x97;
    /// Jumps if `target == constant`.
    pub const IF_EQUAL: u8 = 0x15;
    /// Jumps if `target != constant`.
    pub const UNLESS_EQUAL: u8 = 0x55;
    /// Jumps if `target >= source`.
    pub const IF_FROM: u8 = 0x3d;
    /// Jumps if `target <= constant`, unsigned.
    pub const IF_UP_TO: u8 = 0xb5;
    /// Jumps if `target >= constant`, signed.
    pub const IF_SIGNED_FROM: u8 = 0x75;
    /// Calls a helper.
    pub const CALL: u8 = 0x85;
    /// Ends the program.
    pub const EXIT: u8 = 0x95;
}

impl Picking {
    /// Room for this many sockets of a port.
    ///
    /// # Errors
    /// This process may not create maps, or memory is exhausted.
    pub fn new(sockets_max: u32, layout: BoardLayout) -> Result<Self, Errno> {
        let sockets = bpf::create_sockets(sockets_max)?;
        Ok(Self { sockets, cursor: bpf::create_array(8, false)?, layout })
    }

    /// Adds a socket.
    ///
    /// # Errors
    /// There is no room, or it does not listen.
    pub fn enter(&self, key: u16, socket: &impl AsFd) -> Result<(), Errno> {
        bpf::set_socket(&self.sockets, key.into(), socket.as_fd())
    }

    /// Makes the kernel pick one of these for each connection to the port of `socket`. If all of
    /// them are excluded, or gone, the kernel chooses by hash.
    ///
    /// # Errors
    /// The kernel refuses the program, or there are too many (E2BIG).
    pub fn pick_among(&self, socket: &impl AsFd, pickable: &[Pickable<'_>]) -> Result<(), Errno> {
        if pickable.len() > PICKED_MAX {
            return Err(Errno::E2BIG);
        }
        let entries = pickable.iter().map(|one| (one.socket, one.board.as_raw_fd()));
        let entries: Vec<(u16, RawFd)> = entries.collect();
        let maps = (self.sockets.as_raw_fd(), self.cursor.as_raw_fd());
        let program = bpf::load(&assemble(&entries, maps, self.layout))?;
        bpf::attach(socket, &program)
    }
}

/// The program over these sockets and the maps that are their workers' pages; `sockets` and
/// `cursor` are the other maps.
#[must_use]
pub fn assemble(
    entries: &[(u16, RawFd)],
    (sockets, cursor): (RawFd, RawFd),
    layout: BoardLayout,
) -> Vec<Instruction> {
    let count = i32::try_from(entries.len()).expect("sockets are bounded");
    let pass = [set(RESULT, PASS), op(code::EXIT, 0, 0, 0, 0)];
    if entries.is_empty() {
        return pass.to_vec();
    }
    let mut program = vec![op(code::MOVE, CONTEXT, 1, 0, 0)];
    program.push(op(code::STORE_CONSTANT, STACK, 0, KEY_AT, 0));
    program.extend(look_up(cursor));
    program.push(op(code::UNLESS_EQUAL, RESULT, 0, 2, 0));
    program.extend(pass);
    program.push(op(code::STORE, STACK, RESULT, CURSOR_AT, 0));
    program.push(op(code::LOAD, LAST, RESULT, 0, 0));
    program.push(op(code::MODULO, LAST, 0, 0, count));
    program.extend([set(BEST, -1), set(CHOSEN, NONE_FOUND)]);
    for (place, (_, board)) in (0..).zip(entries) {
        program.extend(look_up(*board));
        let rival = rival(place, count, layout);
        let over = i16::try_from(rival.len()).expect("it is short");
        program.push(op(code::IF_EQUAL, RESULT, 0, over, 0));
        program.extend(rival);
    }
    // Comparing the best load instead would make the verifier track it exactly on every path.
    program.push(op(code::UNLESS_EQUAL, CHOSEN, 0, 2, NONE_FOUND));
    program.extend(pass);
    program.push(op(code::LOAD, 1, STACK, CURSOR_AT, 0));
    program.push(op(code::STORE, 1, CHOSEN, 0, 0));
    // The loop counts places; the key is the socket's number.
    program.extend(keys(entries));
    program.push(op(code::STORE_HALF, STACK, CHOSEN, KEY_AT, 0));
    program.push(op(code::MOVE, 1, CONTEXT, 0, 0));
    program.extend(map(2, sockets));
    program.extend([op(code::MOVE, 3, STACK, 0, 0), op(code::ADD_CONSTANT, 3, 0, 0, -4)]);
    program.extend([set(4, 0), op(code::CALL, 0, 0, 0, SELECT)]);
    program.extend(pass);
    program
}

/// Compares the worker at a place with the best so far; `r0` points to its page.
fn rival(place: i32, count: i32, layout: BoardLayout) -> Vec<Instruction> {
    let load = |register: u8, at: i16| op(code::LOAD, register, RESULT, at, 0);
    let mut sum = vec![set(1, 0)];
    for at in layout.gone {
        sum.extend([load(2, at), op(code::SUBTRACT, 1, 2, 0, 0)]);
    }
    for at in layout.come {
        sum.extend([load(2, at), op(code::ADD, 1, 2, 0, 0)]);
    }
    let body = [
        // Counters are read one after the other, so the difference may briefly be negative.
        op(code::IF_SIGNED_FROM, 1, 0, 1, 0),
        set(1, 0),
        op(code::IF_UP_TO, 1, 0, 1, IN_FLIGHT_MAX),
        set(1, IN_FLIGHT_MAX),
        op(code::SHIFT, 1, 0, 0, TURN_BITS),
        set(2, place + count - 1),
        op(code::SUBTRACT, 2, LAST, 0, 0),
        op(code::MODULO, 2, 0, 0, count),
        op(code::OR, 1, 2, 0, 0),
        op(code::IF_FROM, 1, BEST, 2, 0),
        op(code::MOVE, BEST, 1, 0, 0),
        set(CHOSEN, place),
    ];
    let over = i16::try_from(sum.len() + body.len()).expect("it is short");
    let mut rival = vec![load(1, layout.excluded), op(code::UNLESS_EQUAL, 1, 0, over, 0)];
    rival.extend(sum);
    rival.extend(body);
    rival
}

/// Converts a place to its socket's number, where the two differ.
fn keys(entries: &[(u16, RawFd)]) -> Vec<Instruction> {
    let differing = (0..).zip(entries).filter(|(place, (socket, _))| *place != i32::from(*socket));
    // From the last one on, since a number may equal a later place: no place is converted twice.
    let mut pairs: Vec<(i32, i32)> =
        differing.map(|(place, (socket, _))| (place, i32::from(*socket))).collect();
    pairs.reverse();
    let steps = pairs.iter().enumerate().flat_map(|(step, (place, socket))| {
        let left = pairs.len() - step - 1;
        let over = i16::try_from(3 * left).expect("sockets are bounded");
        [
            op(code::UNLESS_EQUAL, CHOSEN, 0, 2, *place),
            set(CHOSEN, *socket),
            op(code::JUMP, 0, 0, over, 0),
        ]
    });
    steps.collect()
}

fn look_up(board: RawFd) -> Vec<Instruction> {
    let mut steps = vec![op(code::MOVE, 2, STACK, 0, 0), op(code::ADD_CONSTANT, 2, 0, 0, -4)];
    steps.extend(map(1, board));
    steps.push(op(code::CALL, 0, 0, 0, LOOK_UP));
    steps
}

fn map(register: u8, map: RawFd) -> [Instruction; 2] {
    [op(code::LOAD_WIDE, register, IS_MAP, 0, map), op(0, 0, 0, 0, 0)]
}

fn set(register: u8, value: i32) -> Instruction {
    op(code::SET, register, 0, 0, value)
}

fn op(code: u8, target: u8, source: u8, offset: i16, value: i32) -> Instruction {
    Instruction::new(code, target, source, offset, value)
}

#[cfg(test)]
mod tests;
