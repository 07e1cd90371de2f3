//! The part of the program with which the kernel watches the workers' queues, so that the primary
//! sleeps while none of them is stuck.
//!
//! Owns its instructions and its state. A pick starts a timer, unless it runs already. Each time
//! the timer runs out, the kernel compares what waits for a worker, and what that worker has
//! accepted, with the time before. A queue is stuck if something waited both times and nothing was
//! accepted; then the primary is told. While anything waits the timer is started again.

use std::os::fd::RawFd;

use super::BoardLayout;
use super::steps::{KEY_AT, STACK, length, look_up_or, map, op, set, stack_address};
use crate::bpf::{Instruction, RESULT, TIMER_BYTES, code};

/// Between two runs of the timer.
pub const TICK_NS: u64 = 2_500_000;
/// A worker for which something has waited at this many runs in a row is told about as well: what
/// the kernel counts for it may be too high.
pub(super) const TICKS_WAITING_MAX: u16 = 100;
/// The primary is told regularly after this many runs, for rules that need figures of its.
pub(super) const TICKS_REGULAR: u16 = 40;

/// Reasons in a page: [`super::Told`].
pub(super) const STUCK: u16 = 1;
pub(super) const WAITING: u16 = 2;

/// The state, registers of the program.
const STATE: u8 = 6;
const ACCEPTED: u8 = 7;
const COUNT: u8 = 8;

/// Offsets in the state, behind the timer.
const RUNS_AT: i16 = 16;
pub(super) const BUSY_AT: i16 = 24;
const TOLD_AT: i16 = 32;
const TICKS_AT: i16 = 40;
/// Three words a worker: what it had accepted, how often something has waited in a row, and how
/// often nothing of that was accepted.
const WORKERS_AT: i16 = 48;
const WORKER_BYTES: i16 = 24;
const TICKS_WAITING: i16 = 8;
const TICKS_STILL: i16 = 16;

/// Helpers: `bpf_timer_init`, `bpf_timer_set_callback`, `bpf_timer_start`, `bpf_ringbuf_output`.
pub(super) const TIMER_INIT: i32 = 169;
pub(super) const TIMER_CALL: i32 = 170;
pub(super) const TIMER_START: i32 = 171;
pub(super) const OUTPUT: i32 = 130;
/// `CLOCK_MONOTONIC`.
const MONOTONIC: i32 = 1;
/// `BPF_RB_FORCE_WAKEUP`.
const WAKE: i32 = 2;
/// The source register of a constant that is a part of the program (`BPF_PSEUDO_FUNC`).
const IS_PART: u8 = 4;

/// The maps of the watch.
#[derive(Clone, Copy, Debug)]
pub struct WatchMaps {
    /// Its state, which begins with the timer.
    pub state: RawFd,
    /// The ring by which the primary is told.
    pub alarm: RawFd,
}

/// Size of the state for this many workers.
pub(super) fn state_bytes(workers: usize) -> u32 {
    let bytes = usize::try_from(WORKERS_AT).expect("positive")
        + workers * usize::try_from(WORKER_BYTES).expect("positive");
    u32::try_from(bytes).expect("workers are bounded").max(TIMER_BYTES)
}

/// Starts the timer after a pick, unless it runs. `r9` stays. The part that it calls begins
/// `behind` instructions after the end of these.
pub(super) fn start(state: RawFd, behind: usize) -> Vec<Instruction> {
    let mut begin = vec![op(code::MOVE, COUNT, RESULT, 0, 0)];
    begin.extend([set(1, 1), op(code::STORE, COUNT, 1, RUNS_AT, 0)]);
    // The timer stays as it is if there is one.
    begin.push(op(code::MOVE, 1, COUNT, 0, 0));
    begin.extend(map(2, state));
    begin.extend([set(3, MONOTONIC), op(code::CALL, 0, 0, 0, TIMER_INIT)]);
    let mut end = vec![op(code::MOVE, 1, COUNT, 0, 0), op(code::CALL, 0, 0, 0, TIMER_CALL)];
    end.extend(run_out_later(COUNT));
    end.push(op(code::IF_EQUAL, RESULT, 0, 2, 0));
    // The next pick tries again.
    end.extend([set(1, 0), op(code::STORE, COUNT, 1, RUNS_AT, 0)]);
    // Relative to the instruction behind the first half of the constant.
    let part = i32::try_from(1 + end.len() + behind).expect("programs are bounded");
    begin.extend([op(code::LOAD_WIDE, 2, IS_PART, 0, part), op(0, 0, 0, 0, 0)]);
    begin.extend(end);
    let mut steps = look_up_or(state, 1);
    steps.push(op(code::LOAD, 1, RESULT, RUNS_AT, 0));
    steps.push(op(code::UNLESS_EQUAL, 1, 0, length(&begin), 0));
    steps.extend(begin);
    steps
}

/// The part that the timer calls.
pub(super) fn tick(
    boards: impl Iterator<Item = RawFd>,
    maps: WatchMaps,
    layout: BoardLayout,
    is_regular: bool,
) -> Vec<Instruction> {
    let mut program = vec![op(code::STORE_CONSTANT, STACK, 0, KEY_AT, 0)];
    program.extend(look_up_or(maps.state, 0));
    program.push(op(code::MOVE, STATE, RESULT, 0, 0));
    program.extend([BUSY_AT, TOLD_AT].map(|at| store(STATE, at, 0)));
    for (board, at) in boards.zip((0..).map(|place| WORKERS_AT + WORKER_BYTES * place)) {
        program.extend(look_up_or(board, 0));
        program.extend(compare(at, layout));
    }
    if is_regular {
        program.extend([
            op(code::LOAD, 1, STATE, TICKS_AT, 0),
            op(code::ADD_CONSTANT, 1, 0, 0, 1),
            op(code::STORE, STATE, 1, TICKS_AT, 0),
            op(code::IF_FROM_CONSTANT, 1, 0, 1, TICKS_REGULAR.into()),
            op(code::JUMP, 0, 0, 2, 0),
            store(STATE, TICKS_AT, 0),
            store(STATE, TOLD_AT, 1),
        ]);
    }
    let mut tell = map(1, maps.alarm).to_vec();
    tell.extend(stack_address(2, MESSAGE_AT));
    tell.insert(0, store(STACK, MESSAGE_AT, 0));
    tell.extend([set(3, 8), set(4, WAKE), op(code::CALL, 0, 0, 0, OUTPUT)]);
    program.push(op(code::LOAD, 1, STATE, TOLD_AT, 0));
    program.push(op(code::IF_EQUAL, 1, 0, length(&tell), 0));
    program.extend(tell);
    program.extend(go_on());
    program.extend([set(RESULT, 0), op(code::EXIT, 0, 0, 0, 0)]);
    program
}

/// A message's place on the stack.
const MESSAGE_AT: i16 = -16;

/// Compares a worker with the time before. `r0` points to its page.
fn compare(at: i16, layout: BoardLayout) -> Vec<Instruction> {
    let (waiting_at, still_at) = (at + TICKS_WAITING, at + TICKS_STILL);
    let mut tell = vec![op(code::STORE, RESULT, 3, layout.told, 0), store(STATE, TOLD_AT, 1)];
    let none = [store(STATE, waiting_at, 0), store(STATE, still_at, 0)];
    tell.extend(none);
    let waits = [
        store(STATE, BUSY_AT, 1),
        op(code::LOAD, 3, STATE, at, 0),
        op(code::STORE, STATE, ACCEPTED, at, 0),
        op(code::LOAD, 4, STATE, still_at, 0),
        op(code::ADD_CONSTANT, 4, 0, 0, 1),
        op(code::IF_SAME, 3, ACCEPTED, 1, 0),
        set(4, 0),
        op(code::LOAD, 2, STATE, waiting_at, 0),
        // What waits for the first time may have come just now.
        op(code::UNLESS_EQUAL, 2, 0, 1, 0),
        set(4, 0),
        op(code::ADD_CONSTANT, 2, 0, 0, 1),
        op(code::STORE, STATE, 2, waiting_at, 0),
        op(code::STORE, STATE, 4, still_at, 0),
        set(3, STUCK.into()),
        op(code::IF_FROM, 4, 1, 3, 0),
        set(3, WAITING.into()),
        op(code::IF_FROM_CONSTANT, 2, 0, 1, TICKS_WAITING_MAX.into()),
        op(code::JUMP, 0, 0, length(&tell), 0),
    ];
    let over = length(&waits) + length(&tell);
    let mut steps = vec![
        op(code::LOAD, 1, RESULT, layout.patience, 0),
        // Before the picks: what is accepted between the two has been picked before.
        op(code::LOAD, ACCEPTED, RESULT, layout.accepted, 0),
        op(code::LOAD, COUNT, RESULT, layout.picked, 0),
        op(code::LOAD, 2, RESULT, layout.correction, 0),
        op(code::ADD, COUNT, 2, 0, 0),
        op(code::SUBTRACT, COUNT, ACCEPTED, 0, 0),
        // Nothing waits for a worker that the primary watches.
        op(code::UNLESS_EQUAL, 1, 0, 1, 0),
        set(COUNT, 0),
        // More has been accepted than was counted: the count is too low.
        op(code::IF_SIGNED_FROM, COUNT, 0, 3, 0),
        op(code::NEGATE, COUNT, 0, 0, 0),
        op(code::ADD_ATOMICALLY, RESULT, COUNT, layout.correction, 0),
        set(COUNT, 0),
        op(code::UNLESS_EQUAL, COUNT, 0, 3, 0),
    ];
    steps.extend(none);
    steps.push(op(code::JUMP, 0, 0, over, 0));
    steps.extend(waits);
    steps.extend(tell);
    steps
}

/// Starts the timer again if something waits, and once more after the last time: a pick may have
/// seen that it runs, and was not counted yet.
fn go_on() -> Vec<Instruction> {
    let again = run_out_later(STATE);
    vec![
        op(code::LOAD, 1, STATE, BUSY_AT, 0),
        op(code::IF_EQUAL, 1, 0, 2, 0),
        store(STATE, RUNS_AT, 1),
        op(code::JUMP, 0, 0, 3, 0),
        op(code::LOAD, 1, STATE, RUNS_AT, 0),
        op(code::IF_EQUAL, 1, 0, 1 + length(&again), 0),
        store(STATE, RUNS_AT, 0),
    ]
    .into_iter()
    .chain(again)
    .collect()
}

/// Starts the timer at the address in this register.
fn run_out_later(timer: u8) -> [Instruction; 4] {
    let tick_ns = i32::try_from(TICK_NS).expect("it is short");
    [
        op(code::MOVE, 1, timer, 0, 0),
        set(2, tick_ns),
        set(3, 0),
        op(code::CALL, 0, 0, 0, TIMER_START),
    ]
}

fn store(register: u8, at: i16, value: i32) -> Instruction {
    op(code::STORE_LONG_CONSTANT, register, 0, at, value)
}
