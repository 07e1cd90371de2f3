//! The program without a kernel, against the policies of the scheduler, and in the kernel where
//! that is allowed.

mod machine;
mod watching;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clusterlb_schedule::{
    Client, Limits, Loads, OverloadFactor, Picker, Policy, Scheduler as _, WorkerLoad,
    compared_times,
};
use proptest::prelude::*;

use super::*;
use crate::listener::{Listener, OpenOptions, open_shared};
use crate::peer::client_at;
use crate::shared::SharedPage;
use machine::Machine;

const LAYOUT: BoardLayout = BoardLayout {
    excluded: 0,
    come: [128, 136],
    gone: [256, 264],
    picked: 384,
    accepted: 136,
    correction: 152,
    time: 144,
    patience: 160,
    told: 392,
};
/// Only a defect takes longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Picks from each state; each changes it.
const PICKS: usize = 4;

/// A worker as the program sees it.
#[derive(Clone, Copy, Debug)]
struct Board {
    excluded: bool,
    come: [u32; 2],
    gone: [u32; 2],
    picked: u32,
    correction: i32,
    time_us: u32,
}

impl Board {
    fn in_flight(&self) -> u32 {
        let sum = |two: [u32; 2]| two.into_iter().map(i64::from).sum::<i64>();
        let waits = i64::from(self.picked) + i64::from(self.correction) - i64::from(self.come[1]);
        let count = (waits.max(0) + sum(self.come) - sum(self.gone))
            .clamp(0, program::IN_FLIGHT_MAX.into());
        u32::try_from(count).expect("it is clamped")
    }

    fn load(&self) -> WorkerLoad {
        WorkerLoad {
            hung: self.excluded,
            usual_us: self.time_us,
            ..WorkerLoad::ready(self.in_flight())
        }
    }
}

fn any_board() -> impl Strategy<Value = Board> {
    let few = || prop_oneof![4 => 0u32..6, 1 => 0u32..0x0010_0000, 1 => any::<u32>()];
    let time_us = prop_oneof![1 => Just(0), 4 => 1u32..5_000, 1 => any::<u32>()];
    let picked = (few(), prop_oneof![4 => -5i32..6, 1 => any::<i32>()]);
    (prop::bool::weighted(0.2), [few(), few()], [few(), few()], picked, time_us).prop_map(
        |(excluded, come, gone, (picked, correction), time_us)| Board {
            excluded,
            come,
            gone,
            picked,
            correction,
            time_us,
        },
    )
}

/// Boards by the numbers of their sockets, of which some are missing.
fn any_boards() -> impl Strategy<Value = Vec<(u16, Board)>> {
    // A long program takes long to run.
    let count = prop_oneof![19 => 1..=9usize, 1 => 1..=PICKED_MAX];
    let boards = count.prop_flat_map(|count| prop::collection::vec((any_board(), 1u16..3), count));
    boards.prop_map(|boards| {
        let mut socket = 0;
        let numbered = boards.into_iter().map(|(board, step)| {
            socket += step;
            (socket - 1, board)
        });
        numbered.collect()
    })
}

/// Picks by both from the same state, a few times.
fn compare(
    rule: Rule,
    policy: Policy,
    overload_factor: OverloadFactor,
    mut boards: Vec<(u16, Board)>,
    client: IpAddr,
) -> Result<(), TestCaseError> {
    let mut picker = Picker::new(policy, Limits { overload_factor, ..Limits::default() });
    let mut machine = Machine::new(rule, &boards.iter().map(|(one, _)| *one).collect::<Vec<_>>());
    machine.connect_from(client);
    for (place, (_, board)) in boards.iter().enumerate() {
        machine.set(place, LAYOUT.picked, board.picked.into());
    }
    for _ in 0..PICKS {
        let places = usize::from(boards[boards.len() - 1].0) + 1;
        let mut row = vec![WorkerLoad::default(); places];
        boards.iter().for_each(|(socket, board)| row[usize::from(*socket)] = board.load());
        let loads: Loads = row.into_iter().collect();
        let times: Vec<u64> = compared_times(&loads).collect();
        for (place, (socket, board)) in boards.iter().enumerate() {
            machine.set(place, LAYOUT.excluded, u64::from(board.excluded));
            machine.set(place, LAYOUT.time, times[usize::from(*socket)]);
            machine.set(place, LAYOUT.correction, i64::from(board.correction).cast_unsigned());
            for turn in 0..2 {
                machine.set(place, LAYOUT.come[turn], board.come[turn].into());
                machine.set(place, LAYOUT.gone[turn], board.gone[turn].into());
            }
        }
        let expected = picker.pick(&loads, Client(client_at(client)));
        prop_assert_eq!(machine.run().0, expected.map(|slot| slot.get()));
        let chosen = boards.iter_mut().enumerate();
        let mut chosen =
            chosen.filter(|(_, (socket, _))| expected.is_some_and(|slot| slot.get() == *socket));
        if let Some((place, (_, board))) = chosen.next() {
            let picked = u64::from(board.picked) + 1;
            prop_assert_eq!(machine.get(place, LAYOUT.picked), picked);
            board.picked = u32::try_from(picked).unwrap_or(u32::MAX);
        }
    }
    Ok(())
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
        any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
    ]
}

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

proptest! {
    // Four states each.
    #![proptest_config(ProptestConfig::with_cases(2_500))]

    #[test]
    fn the_program_picks_the_least_loaded_as_the_scheduler_does(boards in any_boards()) {
        compare(Rule::Least, Policy::Least, OverloadFactor::Auto, boards, LOCAL)?;
    }

    #[test]
    fn the_program_picks_the_fastest_as_the_scheduler_does(boards in any_boards()) {
        compare(Rule::Fastest, Policy::Fastest, OverloadFactor::Auto, boards, LOCAL)?;
    }

    #[test]
    fn the_program_picks_a_client_s_worker_as_the_scheduler_does(
        boards in any_boards(),
        client in any_address(),
        factor in prop_oneof![
            Just(OverloadFactor::Auto),
            Just(OverloadFactor::Off),
            (0.5f32..9.0).prop_map(OverloadFactor::Times),
        ],
    ) {
        let rule = Rule::Sticky { bound_permille: factor.permille_under(Policy::Sticky) };
        compare(rule, Policy::Sticky, factor, boards, client)?;
    }
}

#[test]
fn without_sockets_or_an_address_the_kernel_chooses() {
    assert_eq!(Machine::new(Rule::Least, &[]).run(), (None, false));
    assert_eq!(Machine::new(Rule::Sticky { bound_permille: None }, &[0, 1]).run(), (None, false));
}

fn group(address: &str, count: usize) -> Vec<Listener> {
    let options = OpenOptions {
        backlog: 512,
        share_port: true,
        ipv6_only: false,
        mode: None,
        blocking: false,
        defer_accept: false,
    };
    let address = address.parse().expect("an address");
    let mut group = vec![Listener::open(&address, options).expect("a free port")];
    while group.len() < count {
        group.push(open_shared(group[0].address(), options).expect("one more"));
    }
    group
}

/// How many of these connections each socket has. The last step of a handshake may come a moment
/// after the client's.
fn accepted(group: &[Listener], connections: usize) -> Vec<usize> {
    let until = Instant::now() + PATIENCE;
    let mut counts = vec![0; group.len()];
    while counts.iter().sum::<usize>() < connections && Instant::now() < until {
        for (one, count) in group.iter().zip(&mut counts) {
            *count += std::iter::from_fn(|| one.accept_now().ok().flatten()).count();
        }
    }
    counts
}

fn pick_among(picking: &mut Picking, rule: Rule, group: &[Listener], boards: &[SharedPage]) {
    let pickable: Vec<Pickable<'_>> = (0..)
        .zip(boards)
        .map(|(socket, board)| Pickable { socket, board: board.as_fd() })
        .collect();
    picking.pick_among(&group[0], rule, &pickable, None).expect("the kernel takes it");
}

#[test]
fn the_kernel_picks_by_plain_stores_of_others() {
    let boards: nix::Result<Vec<SharedPage>> = (0..8).map(|_| SharedPage::create_map()).collect();
    let (Ok(boards), Ok(mut picking)) = (boards, Picking::new(8, LAYOUT)) else {
        return crate::missing::lacking("CAP_BPF, with which the kernel picks by counters");
    };
    let group = group("127.0.0.1:0", 8);
    (0..).zip(&group).for_each(|(key, socket)| picking.enter(key, socket).expect("it listens"));
    pick_among(&mut picking, Rule::Least, &group, &boards);
    let connect = |_| TcpStream::connect(group[0].address()).expect("it listens, and has room");
    let mut clients: Vec<TcpStream> = (0..80).map(connect).collect();
    assert_eq!(accepted(&group, 80), [10; 8], "each has as many as were picked for it");
    let correct = |board: &SharedPage| {
        let picked = board.word(3, 0).load(Ordering::Acquire);
        board.word(1, 3).store(picked.wrapping_neg(), Ordering::Release);
    };
    boards.iter().for_each(correct);
    boards[0].word(0, 0).store(1, Ordering::Release);
    (1..3).for_each(|place| boards[place].word(1, 0).store(5, Ordering::Release));
    clients.extend((0..50).map(connect));
    let counts = accepted(&group, 50);
    assert_eq!((counts[0], counts.iter().sum::<usize>()), (0, 50), "one is left out: {counts:?}");
    assert!(counts[1..3].iter().all(|count| (3..=4).contains(count)), "two had more: {counts:?}");
    assert!(counts[3..].iter().all(|count| (8..=9).contains(count)), "{counts:?}");
    boards.iter().for_each(|board| board.word(0, 0).store(1, Ordering::Release));
    clients.extend((0..40).map(connect));
    assert_eq!(accepted(&group, 40).iter().sum::<usize>(), 40, "by hash, and none is lost");
    // The number of a socket is its key, whichever sockets remain.
    let last = [Pickable { socket: 6, board: boards[6].as_fd() }];
    boards[6].word(0, 0).store(0, Ordering::Release);
    picking.pick_among(&group[0], Rule::Least, &last, None).expect("the kernel takes it");
    clients.extend((0..5).map(connect));
    assert_eq!(accepted(&group, 5), [0, 0, 0, 0, 0, 0, 5, 0]);
}

#[test]
fn the_longest_program_is_one_that_the_kernel_takes() {
    let boards: nix::Result<Vec<SharedPage>> =
        (0..PICKED_MAX).map(|_| SharedPage::create_map()).collect();
    let (Ok(boards), Ok(mut picking)) = (boards, Picking::new(64, LAYOUT)) else {
        return crate::missing::lacking("CAP_BPF, with which the kernel picks by counters");
    };
    let group = group("127.0.0.1:0", 1);
    let pickable: Vec<Pickable<'_>> = (0..)
        .step_by(2)
        .zip(&boards)
        .map(|(socket, board)| Pickable { socket, board: board.as_fd() })
        .collect();
    let alarm = Alarm::new().ok();
    for rule in
        [Rule::Least, Rule::Fastest, sticky(None), sticky(Some(1250)), sticky(Some(u32::MAX))]
    {
        picking.pick_among(&group[0], rule, &pickable, None).expect("the kernel takes it");
        if alarm.is_some() {
            let taken = picking.pick_among(&group[0], rule, &pickable, alarm.as_ref());
            taken.expect("the kernel takes it");
        }
    }
    let more: Vec<Pickable<'_>> = pickable.iter().chain(&pickable[..1]).copied().collect();
    assert_eq!(picking.pick_among(&group[0], Rule::Least, &more, None), Err(Errno::E2BIG));
}

fn sticky(bound_permille: Option<u32>) -> Rule {
    Rule::Sticky { bound_permille }
}

#[test]
fn the_kernel_picks_the_worker_that_should_finish_first() {
    let boards: nix::Result<Vec<SharedPage>> = (0..3).map(|_| SharedPage::create_map()).collect();
    let (Ok(boards), Ok(mut picking)) = (boards, Picking::new(3, LAYOUT)) else {
        return crate::missing::lacking("CAP_BPF, with which the kernel picks by counters");
    };
    let group = group("127.0.0.1:0", 3);
    (0..).zip(&group).for_each(|(key, socket)| picking.enter(key, socket).expect("it listens"));
    // Two in flight at a fast one end before the only one at a slow one.
    for (board, (time_us, come)) in boards.iter().zip([(100, 2), (1_000, 0), (200, 0)]) {
        board.word(1, 2).store(time_us, Ordering::Release);
        board.word(1, 0).store(come, Ordering::Release);
    }
    pick_among(&mut picking, Rule::Fastest, &group, &boards);
    let connect = |_: i32| TcpStream::connect(group[0].address()).expect("it listens");
    // 300, 1000 and 200; then 300, 1000 and 400; then 400, 1000 and 400; until all have 1000.
    let _clients: Vec<TcpStream> = (0..12).map(connect).collect();
    assert_eq!(accepted(&group, 12), [7, 1, 4]);
}

#[test]
fn the_kernel_keeps_a_client_at_its_worker_while_that_is_within_the_bound() {
    let boards: nix::Result<Vec<SharedPage>> = (0..4).map(|_| SharedPage::create_map()).collect();
    let (Ok(boards), Ok(mut picking)) = (boards, Picking::new(4, LAYOUT)) else {
        return crate::missing::lacking("CAP_BPF, with which the kernel picks by counters");
    };
    for (address, client) in
        [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "127.0.0.1")]
    {
        let group = group(address, 4);
        let picking = &mut picking;
        (0..).zip(&group).for_each(|(key, socket)| picking.enter(key, socket).expect("it listens"));
        for board in &boards {
            board.word(1, 0).store(0, Ordering::Release);
            // Nothing here tells what has been accepted.
            board.word(1, 3).store((i64::MIN / 2).cast_unsigned(), Ordering::Release);
        }
        pick_among(picking, sticky(Some(1250)), &group, &boards);
        let port = group[0].address().rsplit(':').next().expect("a port").parse().expect("one");
        let client: IpAddr = client.parse().expect("an address");
        let connect = |_| TcpStream::connect((client, port)).expect("it listens");
        let mut clients: Vec<TcpStream> = (0..20).map(connect).collect();
        let mut picker = Picker::new(Policy::Sticky, Limits::default());
        let mut loads: Loads = (0..4).map(|_| WorkerLoad::ready(0)).collect();
        let home = picker.pick(&loads, Client(client_at(client))).expect("all are ready");
        let mut expected = [0; 4];
        expected[home.index()] = 20;
        assert_eq!(accepted(&group, 20), expected, "{address}");
        boards[home.index()].word(1, 0).store(9, Ordering::Release);
        loads.set(home.index(), WorkerLoad::ready(9));
        let next = picker.pick(&loads, Client(client_at(client))).expect("all are ready");
        clients.extend((0..20).map(connect));
        (expected[home.index()], expected[next.index()]) = (0, 20);
        assert_ne!(home, next);
        assert_eq!(accepted(&group, 20), expected, "{address}");
    }
}
