//! Instructions that both parts of the program have in common: constants, and looking up the only
//! entry of a map.

use std::os::fd::RawFd;

use crate::bpf::{Instruction, RESULT, code};

/// `r10` is the stack.
pub(super) const STACK: u8 = 10;
/// The stack offset of a lookup's key.
pub(super) const KEY_AT: i16 = -4;
/// `bpf_map_lookup_elem`.
pub(super) const LOOK_UP: i32 = 1;
/// The source register of a constant that is a map (`BPF_PSEUDO_MAP_FD`).
const IS_MAP: u8 = 1;

/// Points `r0` to a map's only entry, which is always there; otherwise the part would end with this
/// result.
pub(super) fn look_up_or(board: RawFd, result: i32) -> Vec<Instruction> {
    let mut steps = stack_address(2, KEY_AT).to_vec();
    steps.extend(map(1, board));
    steps.push(op(code::CALL, 0, 0, 0, LOOK_UP));
    steps.push(op(code::UNLESS_EQUAL, RESULT, 0, 2, 0));
    steps.extend([set(RESULT, result), op(code::EXIT, 0, 0, 0, 0)]);
    steps
}

pub(super) fn stack_address(register: u8, at: i16) -> [Instruction; 2] {
    [op(code::MOVE, register, STACK, 0, 0), op(code::ADD_CONSTANT, register, 0, 0, at.into())]
}

pub(super) fn map(register: u8, map: RawFd) -> [Instruction; 2] {
    [op(code::LOAD_WIDE, register, IS_MAP, 0, map), op(0, 0, 0, 0, 0)]
}

pub(super) fn set(register: u8, value: i32) -> Instruction {
    op(code::SET, register, 0, 0, value)
}

/// How far a jump over these goes.
pub(super) fn length(steps: &[Instruction]) -> i16 {
    i16::try_from(steps.len()).expect("it is short")
}

pub(super) fn op(code: u8, target: u8, source: u8, offset: i16, value: i32) -> Instruction {
    Instruction::new(code, target, source, offset, value)
}
