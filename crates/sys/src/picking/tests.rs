//! The program without a kernel, against the expected pick, and in the kernel where that is
//! allowed.

use std::collections::HashMap;
use std::net::TcpStream;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::*;
use crate::listener::{Listener, OpenOptions, open_shared};
use crate::shared::SharedPage;

const LAYOUT: BoardLayout = BoardLayout { excluded: 0, come: [128, 136], gone: [256, 264] };
const SOCKETS: RawFd = 1000;
const CURSOR: RawFd = 1001;

/// A map is at this address in the interpreter's memory; the stack ends at [`STACK_END`].
const MAP_BYTES: u64 = 0x1_0000;
const STACK_END: u64 = 0x10;

/// The kernel's semantics of these instructions: memory by address, in words of 8 bytes.
struct Machine {
    memory: HashMap<u64, u64>,
    selected: Option<u64>,
}

impl Machine {
    fn new() -> Self {
        Self { memory: HashMap::new(), selected: None }
    }

    fn address(map: RawFd) -> u64 {
        u64::try_from(map).expect("a number") * MAP_BYTES
    }

    fn set(&mut self, map: RawFd, offset: i16, value: u64) {
        let offset = u64::try_from(offset).expect("inside");
        self.memory.insert(Self::address(map) + offset, value);
    }

    fn run(&mut self, program: &[Instruction]) -> u64 {
        let mut registers = [0u64; 11];
        registers[usize::from(STACK)] = STACK_END;
        let (mut next, mut steps) = (0usize, 0);
        loop {
            steps += 1;
            assert!(steps < 10_000, "it ends");
            let Instruction { code, offset, value, .. } = program[next];
            let (target, source) = program[next].registers();
            let (to, from) = (usize::from(target), usize::from(source));
            let constant = i64::from(value).cast_unsigned();
            next += 1;
            let at = |base: u64| base.wrapping_add(i64::from(offset).cast_unsigned());
            let mut jump_if = |condition: bool| {
                if condition {
                    next = next.checked_add_signed(isize::from(offset)).expect("forward");
                }
            };
            match code {
                code::LOAD_WIDE => {
                    assert_eq!(source, IS_MAP);
                    registers[to] = Self::address(value);
                    next += 1;
                }
                code::LOAD => registers[to] = *self.memory.get(&at(registers[from])).unwrap_or(&0),
                code::STORE | code::STORE_HALF => {
                    self.memory.insert(at(registers[to]), registers[from]);
                }
                code::STORE_CONSTANT => _ = self.memory.insert(at(registers[to]), constant),
                code::SET => registers[to] = constant,
                code::MOVE => registers[to] = registers[from],
                code::ADD_CONSTANT => registers[to] = registers[to].wrapping_add(constant),
                code::ADD => registers[to] = registers[to].wrapping_add(registers[from]),
                code::SUBTRACT => registers[to] = registers[to].wrapping_sub(registers[from]),
                code::OR => registers[to] |= registers[from],
                code::SHIFT => registers[to] <<= constant,
                code::MODULO => registers[to] %= constant,
                code::JUMP => jump_if(true),
                code::IF_EQUAL => jump_if(registers[to] == constant),
                code::UNLESS_EQUAL => jump_if(registers[to] != constant),
                code::IF_FROM => jump_if(registers[to] >= registers[from]),
                code::IF_UP_TO => jump_if(registers[to] <= constant),
                code::IF_SIGNED_FROM => jump_if(registers[to].cast_signed() >= i64::from(value)),
                code::CALL if value == LOOK_UP => {
                    assert_eq!(self.memory[&registers[2]], 0, "each map has one entry");
                    registers[usize::from(RESULT)] = registers[1];
                }
                code::CALL => {
                    assert_eq!((value, registers[2]), (SELECT, Self::address(SOCKETS)));
                    self.selected = Some(self.memory[&registers[3]]);
                }
                code::EXIT => return registers[usize::from(RESULT)],
                code => panic!("an instruction of another kind: {code:#x}"),
            }
        }
    }
}

/// A worker as the program sees it.
#[derive(Clone, Copy, Debug)]
struct Board {
    excluded: bool,
    come: [u32; 2],
    gone: [u32; 2],
}

impl Board {
    fn in_flight(&self) -> u64 {
        let sum = |two: [u32; 2]| two.into_iter().map(i64::from).sum::<i64>();
        let count = (sum(self.come) - sum(self.gone)).max(0).cast_unsigned();
        count.min(u64::from(IN_FLIGHT_MAX.cast_unsigned()))
    }
}

/// The expected pick: among those with the fewest in flight, the first after the last pick.
fn expected(boards: &[Board], last: usize) -> Option<usize> {
    let count = boards.len();
    let turn = |place: usize| (place + count - 1 - last % count) % count;
    let able = (0..count).filter(|place| !boards[*place].excluded);
    able.min_by_key(|place| (boards[*place].in_flight(), turn(*place)))
}

fn any_board() -> impl Strategy<Value = Board> {
    let few = || prop_oneof![4 => 0u32..4, 1 => any::<u32>()];
    (prop::bool::weighted(0.2), [few(), few()], [few(), few()])
        .prop_map(|(excluded, come, gone)| Board { excluded, come, gone })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn the_program_picks_the_expected_socket(
        boards in prop::collection::vec((any_board(), 1u16..3), 1..PICKED_MAX),
        last in 0usize..200,
    ) {
        let mut socket = 0;
        let entries: Vec<(u16, RawFd)> = (0..).zip(&boards).map(|(place, (_, step))| {
            socket += step;
            (socket - 1, place + 1)
        }).collect();
        let boards: Vec<Board> = boards.into_iter().map(|(board, _)| board).collect();
        let program = assemble(&entries, (SOCKETS, CURSOR), LAYOUT);
        let mut machine = Machine::new();
        machine.set(CURSOR, 0, last as u64);
        for (board, (_, map)) in boards.iter().zip(&entries) {
            machine.set(*map, LAYOUT.excluded, u64::from(board.excluded));
            for turn in 0..2 {
                machine.set(*map, LAYOUT.come[turn], board.come[turn].into());
                machine.set(*map, LAYOUT.gone[turn], board.gone[turn].into());
            }
        }
        prop_assert_eq!(machine.run(&program), 1);
        let expected = expected(&boards, last);
        prop_assert_eq!(machine.selected, expected.map(|place| u64::from(entries[place].0)));
        if let Some(place) = expected {
            prop_assert_eq!(machine.memory[&Machine::address(CURSOR)], place as u64);
        }
    }
}

#[test]
fn without_sockets_the_kernel_chooses() {
    let mut machine = Machine::new();
    assert_eq!(machine.run(&assemble(&[], (SOCKETS, CURSOR), LAYOUT)), 1);
    assert_eq!(machine.selected, None);
}

fn group(count: usize) -> Vec<Listener> {
    let options = OpenOptions {
        backlog: 512,
        share_port: true,
        ipv6_only: false,
        mode: None,
        blocking: false,
        defer_accept: false,
    };
    let address = "127.0.0.1:0".parse().expect("an address");
    let mut group = vec![Listener::open(&address, options).expect("a free port")];
    while group.len() < count {
        group.push(open_shared(group[0].address(), options).expect("one more"));
    }
    group
}

fn accepted(group: &[Listener]) -> Vec<usize> {
    let take = |one: &Listener| std::iter::from_fn(|| one.accept_now().ok().flatten()).count();
    group.iter().map(take).collect()
}

fn pick_among(picking: &Picking, group: &[Listener], boards: &[SharedPage]) {
    let pickable: Vec<Pickable<'_>> = (0..)
        .zip(boards)
        .map(|(socket, board)| Pickable { socket, board: board.as_fd() })
        .collect();
    picking.pick_among(&group[0], &pickable).expect("the kernel takes it");
}

#[test]
fn the_kernel_picks_by_plain_stores_of_others() {
    let boards: nix::Result<Vec<SharedPage>> = (0..8).map(|_| SharedPage::create_map()).collect();
    let (Ok(boards), Ok(picking)) = (boards, Picking::new(8, LAYOUT)) else {
        return crate::missing::lacking("CAP_BPF, with which the kernel picks by counters");
    };
    let group = group(8);
    (0..).zip(&group).for_each(|(key, socket)| picking.enter(key, socket).expect("it listens"));
    pick_among(&picking, &group, &boards);
    let connect = |_| TcpStream::connect(group[0].address()).expect("it listens, and has room");
    let mut clients: Vec<TcpStream> = (0..80).map(connect).collect();
    assert_eq!(accepted(&group), [10; 8], "all have none in flight, so they take turns");
    boards[0].word(0, 0).store(1, Ordering::Release);
    (1..3).for_each(|place| boards[place].word(1, 0).store(5, Ordering::Release));
    clients.extend((0..50).map(connect));
    assert_eq!(accepted(&group), [0, 0, 0, 10, 10, 10, 10, 10], "one is left out, two have more");
    boards.iter().for_each(|board| board.word(0, 0).store(1, Ordering::Release));
    clients.extend((0..40).map(connect));
    assert_eq!(accepted(&group).iter().sum::<usize>(), 40, "by hash, and none is lost");
    // The number of a socket is its key, whichever sockets remain.
    let last = [Pickable { socket: 6, board: boards[6].as_fd() }];
    boards[6].word(0, 0).store(0, Ordering::Release);
    picking.pick_among(&group[0], &last).expect("the kernel takes it");
    clients.extend((0..5).map(connect));
    assert_eq!(accepted(&group), [0, 0, 0, 0, 0, 0, 5, 0]);
}

#[test]
fn the_longest_program_is_one_that_the_kernel_takes() {
    let boards: nix::Result<Vec<SharedPage>> =
        (0..PICKED_MAX).map(|_| SharedPage::create_map()).collect();
    let (Ok(boards), Ok(picking)) = (boards, Picking::new(64, LAYOUT)) else {
        return crate::missing::lacking("CAP_BPF, with which the kernel picks by counters");
    };
    let group = group(1);
    let pickable: Vec<Pickable<'_>> = (0..)
        .step_by(2)
        .zip(&boards)
        .map(|(socket, board)| Pickable { socket, board: board.as_fd() })
        .collect();
    picking.pick_among(&group[0], &pickable).expect("the kernel takes it");
    let more: Vec<Pickable<'_>> = pickable.iter().chain(&pickable[..1]).copied().collect();
    assert_eq!(picking.pick_among(&group[0], &more), Err(Errno::E2BIG));
}
