//! Runs the program without a kernel: its instructions by `rbpf`, its helpers and maps by this.
//!
//! A map's descriptor is a number that only the helpers read, as in the kernel. Helpers are plain
//! functions, so what they use belongs to the thread.

use std::cell::RefCell;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::ptr;

use rbpf::EbpfVmRaw;

use super::super::program::{IPV4, LOAD_BYTES, PROTOCOL_AT, SELECT};
use super::super::steps::LOOK_UP;
use super::super::watch::{OUTPUT, TIMER_CALL, TIMER_INIT, TIMER_START, state_bytes};
use super::super::{PICKED_MAX, ProgramMaps, Rule, WatchMaps, assemble};
use super::LAYOUT;
use crate::bpf::{Instruction, code};

const SOCKETS: RawFd = 1000;
const CURSOR: RawFd = 1001;
const STATE: RawFd = 1002;
const ALARM: RawFd = 1003;
/// A register that neither part of the program uses when it adds atomically.
const SCRATCH: u8 = 5;
/// As much of a page as the program reads.
const PAGE_WORDS: usize = 64;
/// `ETH_P_IPV6` in network byte order.
const IPV6: u16 = 0x86dd_u16.to_be();
/// More than the longest header that the program reads from.
const HEADER_BYTES: usize = 40;

/// What helpers see.
#[derive(Debug, Default)]
struct Inputs {
    /// The address of the pages, whose descriptors are their indices.
    pages: u64,
    cursor: u64,
    state: u64,
    /// The timer was started.
    is_started: bool,
    is_told: bool,
    /// The packet from its network header on.
    header: Option<[u8; HEADER_BYTES]>,
    selected: Option<u32>,
}

thread_local! {
    static INPUTS: RefCell<Inputs> = RefCell::default();
}

pub(super) struct Machine {
    program: Vec<u8>,
    tick: Vec<u8>,
    pages: Vec<u64>,
    cursor: Box<u64>,
    state: Vec<u64>,
    header: Option<[u8; HEADER_BYTES]>,
    protocol: u16,
}

impl Machine {
    /// The program for these sockets, which are sorted. The last one was picked last.
    pub(super) fn new(rule: Rule, sockets: &[u16]) -> Self {
        let entries: Vec<(u16, RawFd)> = sockets.iter().copied().zip(0..).collect();
        let watch = Some(WatchMaps { state: STATE, alarm: ALARM });
        let maps = ProgramMaps { sockets: SOCKETS, cursor: CURSOR, watch };
        let program = assemble(rule, &entries, maps, LAYOUT);
        let tick_at = program.tick_at.unwrap_or(program.instructions.len());
        let (pick, tick) = program.instructions.split_at(tick_at);
        let encode = |part: &[Instruction]| expanded(part).iter().flat_map(encoded).collect();
        Self {
            program: encode(pick),
            tick: encode(tick),
            pages: vec![0; sockets.len() * PAGE_WORDS],
            cursor: Box::new(sockets.len().saturating_sub(1) as u64),
            state: vec![0; state_bytes(PICKED_MAX) as usize / size_of::<u64>()],
            header: None,
            protocol: 0,
        }
    }

    pub(super) fn connect_from(&mut self, client: IpAddr) {
        let mut header = [0; HEADER_BYTES];
        match client {
            IpAddr::V4(v4) => header[12..16].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => header[8..24].copy_from_slice(&v6.octets()),
        }
        self.protocol = if client.is_ipv4() { IPV4 } else { IPV6 };
        self.header = Some(header);
    }

    /// Stores into the page of the worker at `place`.
    pub(super) fn set(&mut self, place: usize, offset: i16, value: u64) {
        let word = usize::try_from(offset).expect("inside") / size_of::<u64>();
        self.pages[place * PAGE_WORDS + word] = value;
    }

    /// Reads from the page of the worker at `place`.
    pub(super) fn get(&self, place: usize, offset: i16) -> u64 {
        let word = usize::try_from(offset).expect("inside") / size_of::<u64>();
        self.pages[place * PAGE_WORDS + word]
    }

    /// The socket that the program selects, and whether it starts the timer.
    pub(super) fn run(&mut self) -> (Option<u16>, bool) {
        let mut context = [0; 64];
        let at = usize::try_from(PROTOCOL_AT).expect("inside");
        context[at..at + 4].copy_from_slice(&u32::from(self.protocol).to_ne_bytes());
        let program = std::mem::take(&mut self.program);
        assert_eq!(self.execute(&program, &mut context), 1);
        self.program = program;
        let (selected, is_started) =
            INPUTS.with_borrow(|inputs| (inputs.selected, inputs.is_started));
        (selected.map(|socket| u16::try_from(socket).expect("a socket's number")), is_started)
    }

    /// The timer runs out. Returns whether the primary is told, and whether the timer is started.
    pub(super) fn tick(&mut self) -> (bool, bool) {
        let tick = std::mem::take(&mut self.tick);
        assert_eq!(self.execute(&tick, &mut []), 0);
        self.tick = tick;
        INPUTS.with_borrow(|inputs| (inputs.is_told, inputs.is_started))
    }

    fn execute(&mut self, program: &[u8], context: &mut [u8]) -> u64 {
        let [pages, state] =
            [&mut self.pages, &mut self.state].map(|words| words.as_mut_ptr_range());
        let cursor = ptr::from_mut(&mut *self.cursor) as u64;
        let inputs = Inputs {
            pages: pages.start as u64,
            cursor,
            state: state.start as u64,
            header: self.header,
            ..Inputs::default()
        };
        INPUTS.replace(inputs);
        let mut machine = EbpfVmRaw::new(Some(program)).expect("well-formed");
        machine.register_allowed_memory(pages.start as u64..pages.end as u64);
        machine.register_allowed_memory(state.start as u64..state.end as u64);
        machine.register_allowed_memory(cursor..cursor + size_of::<u64>() as u64);
        for (number, helper) in [
            (LOOK_UP, look_up as rbpf::Helper),
            (LOAD_BYTES, load_bytes),
            (SELECT, select),
            (TIMER_INIT, prepare_timer),
            (TIMER_CALL, prepare_timer),
            (TIMER_START, start_timer),
            (OUTPUT, output),
        ] {
            let number = u32::try_from(number).expect("a number");
            machine.register_helper(number, helper).expect("there is room");
        }
        machine.execute_program(context).expect("it ends")
    }
}

/// The same without atomic additions, which `rbpf` does not have: each is three instructions.
fn expanded(program: &[Instruction]) -> Vec<Instruction> {
    let is_atomic = |one: &Instruction| one.code == code::ADD_ATOMICALLY;
    let mut places = vec![0];
    for one in program {
        places.push(places[places.len() - 1] + if is_atomic(one) { 3 } else { 1 });
    }
    let mut result = Vec::new();
    for (place, one) in program.iter().enumerate() {
        let ((target, source), at) = (one.registers(), one.offset);
        let is_jump = one.code & 7 == 5 && ![code::CALL, code::EXIT].contains(&one.code);
        if is_atomic(one) {
            result.push(Instruction::new(code::LOAD, SCRATCH, target, at, 0));
            result.push(Instruction::new(code::ADD, SCRATCH, source, 0, 0));
            result.push(Instruction::new(code::STORE, target, SCRATCH, at, 0));
        } else if is_jump {
            let goal = place + 1 + usize::try_from(at).expect("forward");
            let over = i16::try_from(places[goal] - places[place + 1]).expect("short");
            result.push(Instruction::new(one.code, target, source, over, one.value));
        } else {
            result.push(*one);
        }
    }
    result
}

/// As `rbpf` reads it.
fn encoded(instruction: &Instruction) -> [u8; 8] {
    let Instruction { code, offset, value, .. } = *instruction;
    let (target, source) = instruction.registers();
    let ([offset_low, offset_high], [first, second, third, fourth]) =
        (offset.to_le_bytes(), value.to_le_bytes());
    [code, target | source << 4, offset_low, offset_high, first, second, third, fourth]
}

/// `bpf_map_lookup_elem(map, key)`.
fn look_up(map: u64, key: u64, _: u64, _: u64, _: u64) -> u64 {
    // SAFETY: the program passes the address of an aligned number on its stack.
    let key = unsafe { *(key as *const u32) };
    assert_eq!(key, 0, "each map has one entry");
    INPUTS.with_borrow(|inputs| match RawFd::try_from(map) {
        Ok(CURSOR) => inputs.cursor,
        Ok(STATE) => inputs.state,
        _ => inputs.pages + map * (PAGE_WORDS * size_of::<u64>()) as u64,
    })
}

/// `bpf_skb_load_bytes_relative(context, offset, to, length, start)`.
fn load_bytes(_: u64, offset: u64, to: u64, length: u64, start: u64) -> u64 {
    assert_eq!(start, 1, "from the network header");
    let Some(header) = INPUTS.with_borrow(|inputs| inputs.header) else {
        return u64::MAX;
    };
    let [offset, length] = [offset, length].map(|one| usize::try_from(one).expect("short"));
    let bytes = &header[offset..offset + length];
    // SAFETY: the program passes the address of as many bytes on its stack.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, length) };
    0
}

/// `bpf_sk_select_reuseport(context, map, key, flags)`.
fn select(_: u64, map: u64, key: u64, _: u64, _: u64) -> u64 {
    assert_eq!(RawFd::try_from(map), Ok(SOCKETS));
    // SAFETY: the program passes the address of an aligned number on its stack.
    let key = unsafe { *(key as *const u32) };
    INPUTS.with_borrow_mut(|inputs| inputs.selected = Some(key));
    0
}

/// `bpf_timer_init(timer, map, clock)` and `bpf_timer_set_callback(timer, part)`.
fn prepare_timer(timer: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    INPUTS.with_borrow(|inputs| assert_eq!(timer, inputs.state));
    0
}

/// `bpf_timer_start(timer, nanoseconds, flags)`.
fn start_timer(timer: u64, _: u64, flags: u64, _: u64, _: u64) -> u64 {
    assert_eq!(flags, 0);
    INPUTS.with_borrow_mut(|inputs| {
        assert_eq!(timer, inputs.state);
        inputs.is_started = true;
    });
    0
}

/// `bpf_ringbuf_output(ring, message, bytes, flags)`.
fn output(ring: u64, _: u64, bytes: u64, flags: u64, _: u64) -> u64 {
    assert_eq!((RawFd::try_from(ring), bytes, flags), (Ok(ALARM), 8, 2));
    INPUTS.with_borrow_mut(|inputs| inputs.is_told = true);
    0
}
