//! Runs the program without a kernel: its instructions by `rbpf`, its helpers and maps by this.
//!
//! A map's descriptor is a number that only the helpers read, as in the kernel. Helpers are plain
//! functions, so what they use belongs to the thread.

use std::cell::RefCell;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::ptr;

use rbpf::EbpfVmRaw;

use super::super::program::{IPV4, LOAD_BYTES, LOOK_UP, PROTOCOL_AT, SELECT};
use super::super::{Rule, assemble};
use super::LAYOUT;
use crate::bpf::Instruction;

const SOCKETS: RawFd = 1000;
const CURSOR: RawFd = 1001;
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
    /// The packet from its network header on.
    header: Option<[u8; HEADER_BYTES]>,
    selected: Option<u32>,
}

thread_local! {
    static INPUTS: RefCell<Inputs> = RefCell::default();
}

pub(super) struct Machine {
    program: Vec<u8>,
    pages: Vec<u64>,
    cursor: Box<u64>,
    header: Option<[u8; HEADER_BYTES]>,
    protocol: u16,
}

impl Machine {
    /// The program for these sockets, which are sorted. The last one was picked last.
    pub(super) fn new(rule: Rule, sockets: &[u16]) -> Self {
        let entries: Vec<(u16, RawFd)> = sockets.iter().copied().zip(0..).collect();
        let program = assemble(rule, &entries, (SOCKETS, CURSOR), LAYOUT);
        Self {
            program: program.iter().flat_map(encoded).collect(),
            pages: vec![0; sockets.len() * PAGE_WORDS],
            cursor: Box::new(sockets.len().saturating_sub(1) as u64),
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

    /// The socket that the program selects.
    pub(super) fn run(&mut self) -> Option<u16> {
        let pages = self.pages.as_mut_ptr_range();
        let cursor = ptr::from_mut(&mut *self.cursor) as u64;
        let inputs =
            Inputs { pages: pages.start as u64, cursor, header: self.header, selected: None };
        INPUTS.replace(inputs);
        let mut machine = EbpfVmRaw::new(Some(&self.program)).expect("well-formed");
        machine.register_allowed_memory(pages.start as u64..pages.end as u64);
        machine.register_allowed_memory(cursor..cursor + size_of::<u64>() as u64);
        for (number, helper) in
            [(LOOK_UP, look_up as rbpf::Helper), (LOAD_BYTES, load_bytes), (SELECT, select)]
        {
            let number = u32::try_from(number).expect("a number");
            machine.register_helper(number, helper).expect("there is room");
        }
        let mut context = [0; 64];
        let at = usize::try_from(PROTOCOL_AT).expect("inside");
        context[at..at + 4].copy_from_slice(&u32::from(self.protocol).to_ne_bytes());
        assert_eq!(machine.execute_program(&mut context).expect("it ends"), 1);
        let selected = INPUTS.with_borrow(|inputs| inputs.selected);
        selected.map(|socket| u16::try_from(socket).expect("the number of a socket"))
    }
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
