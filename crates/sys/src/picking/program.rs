//! The program by which the kernel picks, assembled by hand.
//!
//! Owns the instructions. Each worker's page is a separate map, so the program has no loop. Each
//! worker's part is computed without jumps where possible: the kernel's verifier follows every
//! path, and jumps would multiply the paths with each of sixty workers.

use std::os::fd::RawFd;

use super::steps::{KEY_AT, STACK, length, look_up_or, map, op, set, stack_address};
use super::watch::{self, WatchMaps};
use super::{BoardLayout, Rule};
use crate::bpf::{Instruction, PASS, RESULT, code};
use crate::hashing::{FACTORS, GOLDEN, SHIFTS};

/// `r1` to `r5` are arguments, `r6` to `r9` are preserved.
pub(super) const CONTEXT: u8 = 6;
/// The last one picked, or the client's hash.
const LAST: u8 = 7;
const CLIENT: u8 = 7;
const BEST: u8 = 8;
const CHOSEN: u8 = 9;
/// Before anything is chosen: the sum of connections in flight, and the workers that it is of.
const SUM: u8 = 8;
const WORKERS: u8 = 9;
/// The most that a worker within the bound has.
const BOUND: u8 = 5;
/// The factors of the hash, where no helper is called.
const FACTOR: [u8; 2] = [3, 4];

/// Stack offsets: of the cursor, of the client's address, and of what the first
/// worker has in flight.
const CURSOR_AT: i16 = -16;
const ADDRESS_AT: i16 = -24;
const IN_FLIGHT_AT: i16 = -28;
/// The place before one is found.
const NONE_FOUND: i32 = i32::MAX;
/// All higher numbers in flight count as equal.
pub(super) const IN_FLIGHT_MAX: i32 = 0x000f_ffff;
const IN_FLIGHT_BITS: i32 = 20;
/// Set for a worker that is excluded, above everything it can have in flight.
const EXCLUDED_BIT: i32 = 31;
/// Above this the bound excludes no worker, and must not reach that bit.
const BOUND_PERMILLE_MAX: u32 = 1_000_000;
/// The low bits of a rank hold the turn, which is less than the number of workers.
const TURN_BITS: i32 = 6;

/// Helpers: `bpf_skb_load_bytes_relative`, `bpf_sk_select_reuseport`.
pub(super) const LOAD_BYTES: i32 = 68;
pub(super) const SELECT: i32 = 82;
/// Offsets are from the network header (`BPF_HDR_START_NET`).
const FROM_NETWORK_HEADER: i32 = 1;
/// The place of `eth_protocol` in the context.
pub(super) const PROTOCOL_AT: i16 = 20;
/// `ETH_P_IP` in network byte order.
pub(super) const IPV4: u16 = 0x0800_u16.to_be();
/// Offset and length of the client's address in a header.
const IPV4_ADDRESS: (i32, i32) = (12, 4);
const IPV6_ADDRESS: (i32, i32) = (8, 16);

/// The maps of a program other than the workers' pages.
#[derive(Clone, Copy, Debug)]
pub struct ProgramMaps {
    /// The sockets by their keys.
    pub sockets: RawFd,
    /// The place that was picked last.
    pub cursor: RawFd,
    /// The kernel watches the queues by these.
    pub watch: Option<WatchMaps>,
}

/// An assembled program.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its instructions.
    pub instructions: Vec<Instruction>,
    /// Where the part begins that its timer calls, if it has one.
    pub tick_at: Option<usize>,
}

/// The program over these sockets and the maps that are their workers' pages.
#[must_use]
pub fn assemble(
    rule: Rule,
    entries: &[(u16, RawFd)],
    maps: ProgramMaps,
    layout: BoardLayout,
) -> Program {
    if entries.is_empty() {
        return Program { instructions: pass().to_vec(), tick_at: None };
    }
    let mut program = choose(rule, entries, maps.cursor, layout);
    program.extend(settle(entries, layout));
    let mut select = vec![op(code::STORE_HALF, STACK, CHOSEN, KEY_AT, 0)];
    select.push(op(code::MOVE, 1, CONTEXT, 0, 0));
    select.extend(map(2, maps.sockets));
    select.extend(stack_address(3, KEY_AT));
    select.extend([set(4, 0), op(code::CALL, 0, 0, 0, SELECT)]);
    select.extend(pass());
    if let Some(watch) = maps.watch {
        program.extend(watch::start(watch.state, select.len()));
    }
    program.extend(select);
    let tick_at = maps.watch.map(|watch| {
        let boards = entries.iter().map(|(_, board)| *board);
        let tick = watch::tick(boards, watch, layout, rule == Rule::Fastest);
        let tick_at = program.len();
        program.extend(tick);
        tick_at
    });
    Program { instructions: program, tick_at }
}

/// Chooses a place, and passes if there is none.
fn choose(
    rule: Rule,
    entries: &[(u16, RawFd)],
    cursor: RawFd,
    layout: BoardLayout,
) -> Vec<Instruction> {
    let mut program = vec![op(code::MOVE, CONTEXT, 1, 0, 0)];
    program.push(op(code::STORE_CONSTANT, STACK, 0, KEY_AT, 0));
    match rule {
        Rule::Least => program.extend(by_rank(entries, cursor, layout, &[])),
        Rule::Fastest => {
            let times = by_time(layout);
            program.extend(by_rank(entries, cursor, layout, &times));
        }
        Rule::Sticky { bound_permille } => {
            program.extend(client());
            program.extend(count(entries, layout));
            program.extend(bound(bound_permille));
            program.extend(by_hash(entries));
        }
    }
    // Comparing the best rank instead would make the verifier track it exactly on every path.
    program.extend(pass_unless(code::UNLESS_EQUAL, CHOSEN, NONE_FOUND));
    if !matches!(rule, Rule::Sticky { .. }) {
        program.push(op(code::LOAD, 1, STACK, CURSOR_AT, 0));
        program.push(op(code::STORE, 1, CHOSEN, 0, 0));
    }
    program
}

/// Chooses the lowest rank: in flight, changed by these instructions. Equals take turns.
fn by_rank(
    entries: &[(u16, RawFd)],
    cursor: RawFd,
    layout: BoardLayout,
    change: &[Instruction],
) -> Vec<Instruction> {
    let count = i32::try_from(entries.len()).expect("sockets are bounded");
    let mut program = look_up(cursor);
    program.push(op(code::STORE, STACK, RESULT, CURSOR_AT, 0));
    program.push(op(code::LOAD, LAST, RESULT, 0, 0));
    program.push(op(code::MODULO, LAST, 0, 0, count));
    program.extend([set(BEST, -1), set(CHOSEN, NONE_FOUND)]);
    for (place, (_, board)) in (0..).zip(entries) {
        program.extend(look_up(*board));
        let mut rival = in_flight(layout);
        rival.extend(change);
        rival.extend([
            op(code::SHIFT, 1, 0, 0, TURN_BITS),
            set(2, place + count - 1),
            op(code::SUBTRACT, 2, LAST, 0, 0),
            op(code::MODULO, 2, 0, 0, count),
            op(code::OR, 1, 2, 0, 0),
        ]);
        rival.extend(choose_if_lower(place));
        program.push(op(code::LOAD, 1, RESULT, layout.excluded, 0));
        program.push(op(code::UNLESS_EQUAL, 1, 0, length(&rival), 0));
        program.extend(rival);
    }
    program
}

/// Multiplies what the worker would have in flight by its time; `r0` points to its page.
fn by_time(layout: BoardLayout) -> [Instruction; 5] {
    [
        op(code::ADD_CONSTANT, 1, 0, 0, 1),
        op(code::LOAD, 2, RESULT, layout.time, 0),
        // A product of more than 64 bits would be a low one.
        op(code::SHIFT, 2, 0, 0, 32),
        op(code::SHIFT_DOWN, 2, 0, 0, 32),
        op(code::MULTIPLY, 1, 2, 0, 0),
    ]
}

/// Loads what a worker has in flight into `r1`: what it has accepted and not finished, and what was
/// picked for it and is not accepted yet. `r0` points to its page.
fn in_flight(layout: BoardLayout) -> Vec<Instruction> {
    let add = |at: i16| [op(code::LOAD, 2, RESULT, at, 0), op(code::ADD, 1, 2, 0, 0)];
    let subtract = |at: i16| [op(code::LOAD, 2, RESULT, at, 0), op(code::SUBTRACT, 1, 2, 0, 0)];
    let mut steps = vec![set(1, 0)];
    steps.extend(add(layout.picked));
    steps.extend(add(layout.correction));
    steps.extend(subtract(layout.accepted));
    // More than was picked may have been accepted since the correction.
    steps.extend(no_less_than_zero());
    layout.gone.into_iter().for_each(|at| steps.extend(subtract(at)));
    layout.come.into_iter().for_each(|at| steps.extend(add(at)));
    // Counters are read one after the other, so the difference may briefly be negative.
    steps.extend(no_less_than_zero());
    steps.extend([
        // Anything above the maximum sets all of its bits.
        op(code::MOVE, 2, 1, 0, 0),
        op(code::SHIFT_DOWN, 2, 0, 0, IN_FLIGHT_BITS),
        op(code::NEGATE, 2, 0, 0, 0),
        op(code::SHIFT_SIGN_DOWN, 2, 0, 0, 63),
        op(code::OR, 1, 2, 0, 0),
        op(code::AND_CONSTANT, 1, 0, 0, IN_FLIGHT_MAX),
    ]);
    steps
}

/// The sign in every bit, inverted, leaves nothing of a negative number in `r1`.
fn no_less_than_zero() -> [Instruction; 4] {
    [
        op(code::MOVE, 2, 1, 0, 0),
        op(code::SHIFT_SIGN_DOWN, 2, 0, 0, 63),
        op(code::XOR_CONSTANT, 2, 0, 0, -1),
        op(code::AND, 1, 2, 0, 0),
    ]
}

/// Hashes the client's address, as `hashing` does. A packet without one is left to the kernel.
fn client() -> Vec<Instruction> {
    let load = |(offset, length): (i32, i32)| {
        let mut steps = vec![op(code::MOVE, 1, CONTEXT, 0, 0), set(2, offset)];
        steps.extend(stack_address(3, ADDRESS_AT));
        steps.extend([set(4, length), set(5, FROM_NETWORK_HEADER)]);
        steps.push(op(code::CALL, 0, 0, 0, LOAD_BYTES));
        steps.extend(pass_unless(code::IF_EQUAL, RESULT, 0));
        steps
    };
    let mut short = load(IPV4_ADDRESS);
    short.push(op(code::LOAD_HALF, CLIENT, STACK, ADDRESS_AT, 0));
    let mut long = load(IPV6_ADDRESS);
    long.push(op(code::LOAD, CLIENT, STACK, ADDRESS_AT, 0));
    long.extend(wide(1, GOLDEN));
    long.push(op(code::MULTIPLY, CLIENT, 1, 0, 0));
    long.push(op(code::LOAD, 1, STACK, ADDRESS_AT + 8, 0));
    long.push(op(code::XOR, CLIENT, 1, 0, 0));
    long.push(op(code::JUMP, 0, 0, length(&short), 0));
    let mut program = vec![op(code::LOAD_HALF, 1, CONTEXT, PROTOCOL_AT, 0)];
    program.push(op(code::IF_EQUAL, 1, 0, length(&long), IPV4.into()));
    program.extend(long);
    program.extend(short);
    program.push(op(code::MOVE, 1, CLIENT, 0, 0));
    program.extend(factors());
    program.extend(mix());
    program.push(op(code::MOVE, CLIENT, 1, 0, 0));
    program
}

/// Notes what each worker has in flight, and sums it up over those that are not excluded.
fn count(entries: &[(u16, RawFd)], layout: BoardLayout) -> Vec<Instruction> {
    let mut program = vec![set(SUM, 0), set(WORKERS, 0)];
    for ((_, board), at) in entries.iter().zip(noted()) {
        program.extend(look_up(*board));
        program.extend(in_flight(layout));
        program.extend([
            // 1 if the word is not zero: then it or its negative has the sign.
            op(code::LOAD, 2, RESULT, layout.excluded, 0),
            op(code::MOVE, 3, 2, 0, 0),
            op(code::NEGATE, 3, 0, 0, 0),
            op(code::OR, 2, 3, 0, 0),
            op(code::SHIFT_DOWN, 2, 0, 0, 63),
            op(code::MOVE, 3, 2, 0, 0),
            op(code::XOR_CONSTANT, 3, 0, 0, 1),
            op(code::ADD, WORKERS, 3, 0, 0),
            op(code::MULTIPLY, 3, 1, 0, 0),
            op(code::ADD, SUM, 3, 0, 0),
            op(code::SHIFT, 2, 0, 0, EXCLUDED_BIT),
            op(code::OR, 1, 2, 0, 0),
            op(code::STORE_HALF, STACK, 1, at, 0),
        ]);
    }
    program
}

fn bound(permille: Option<u32>) -> Vec<Instruction> {
    let Some(permille) = permille else { return vec![set(BOUND, i32::MAX)] };
    let permille = permille.min(BOUND_PERMILLE_MAX).cast_signed();
    vec![
        op(code::MULTIPLY_CONSTANT, SUM, 0, 0, permille),
        op(code::MULTIPLY_CONSTANT, WORKERS, 0, 0, 1000),
        op(code::DIVIDE, SUM, WORKERS, 0, 0),
        op(code::MOVE, BOUND, SUM, 0, 0),
        op(code::UNLESS_EQUAL, BOUND, 0, 1, 0),
        set(BOUND, 1),
    ]
}

/// Chooses the worker within the bound that the client prefers.
fn by_hash(entries: &[(u16, RawFd)]) -> Vec<Instruction> {
    let mut program = factors();
    program.extend([set(BEST, -1), set(CHOSEN, NONE_FOUND)]);
    for (place, ((socket, _), at)) in (0..).zip(entries.iter().zip(noted())) {
        let mut rival: Vec<Instruction> =
            wide(1, (u64::from(*socket) + 1).wrapping_mul(GOLDEN)).to_vec();
        rival.push(op(code::XOR, 1, CLIENT, 0, 0));
        rival.extend(mix());
        rival.extend(choose_if_lower(place));
        program.push(op(code::LOAD_HALF, 1, STACK, at, 0));
        program.push(op(code::IF_ABOVE, 1, BOUND, length(&rival), 0));
        program.extend(rival);
    }
    program
}

/// The stack offsets of what workers have in flight.
fn noted() -> impl Iterator<Item = i16> {
    (0..).map(|place| IN_FLIGHT_AT - 4 * place)
}

/// Mixes `r1`, with the factors in their registers.
fn mix() -> Vec<Instruction> {
    let step = |shift| {
        [
            op(code::MOVE, 2, 1, 0, 0),
            op(code::SHIFT_DOWN, 2, 0, 0, shift),
            op(code::XOR, 1, 2, 0, 0),
        ]
    };
    let mut steps = Vec::new();
    for (shift, factor) in SHIFTS.into_iter().zip(FACTOR) {
        steps.extend(step(shift));
        steps.push(op(code::MULTIPLY, 1, factor, 0, 0));
    }
    steps.extend(step(SHIFTS[2]));
    steps
}

fn factors() -> Vec<Instruction> {
    FACTOR.into_iter().zip(FACTORS).flat_map(|(register, factor)| wide(register, factor)).collect()
}

/// Chooses a place if the rank in `r1` is lower than the best so far.
fn choose_if_lower(place: i32) -> [Instruction; 3] {
    [op(code::IF_FROM, 1, BEST, 2, 0), op(code::MOVE, BEST, 1, 0, 0), set(CHOSEN, place)]
}

/// Counts the pick in the worker's page, and converts its place to its socket's number.
fn settle(entries: &[(u16, RawFd)], layout: BoardLayout) -> Vec<Instruction> {
    let mut steps = Vec::new();
    // From the last one on, each jumps over those that are already there.
    let count = i32::try_from(entries.len()).expect("sockets are bounded");
    for (place, (socket, board)) in (0..count).zip(entries).rev() {
        let mut one = look_up(*board);
        one.extend([
            set(1, 1),
            op(code::ADD_ATOMICALLY, RESULT, 1, layout.picked, 0),
            set(CHOSEN, (*socket).into()),
            op(code::JUMP, 0, 0, length(&steps), 0),
        ]);
        one.insert(0, op(code::UNLESS_EQUAL, CHOSEN, 0, length(&one), place));
        one.append(&mut steps);
        steps = one;
    }
    steps
}

/// Points `r0` to a map's only entry, which is always there.
fn look_up(board: RawFd) -> Vec<Instruction> {
    look_up_or(board, PASS)
}

/// Leaves the choice to the kernel.
fn pass() -> [Instruction; 2] {
    [set(RESULT, PASS), op(code::EXIT, 0, 0, 0, 0)]
}

/// Passes, unless this jump is taken.
fn pass_unless(jump: u8, register: u8, value: i32) -> [Instruction; 3] {
    let [result, exit] = pass();
    [op(jump, register, 0, 2, value), result, exit]
}

fn wide(register: u8, value: u64) -> [Instruction; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "each instruction has a half")]
    let (lower, upper) = (value as u32, (value >> 32) as u32);
    [op(code::LOAD_WIDE, register, 0, 0, lower.cast_signed()), op(0, 0, 0, 0, upper.cast_signed())]
}
