//! The part that the timer calls: without a kernel against a plain function, and in the kernel
//! where that is allowed.

use std::net::TcpStream;
use std::sync::atomic::Ordering;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proptest::prelude::*;

use super::super::watch::{TICKS_REGULAR, TICKS_WAITING_MAX};
use super::machine::Machine;
use super::*;

/// A worker as the kernel watches it.
#[derive(Clone, Copy, Debug, Default)]
struct Watched {
    patience: u64,
    accepted: u64,
    picked: u64,
    correction: u64,
    told: u64,
    accepted_before: u64,
    ticks_waiting: u64,
    ticks_still: u64,
}

impl Watched {
    /// What a tick should do. Returns whether something waits, and whether the primary is told.
    fn tick(&mut self) -> (bool, bool) {
        let count = self.picked.wrapping_add(self.correction).wrapping_sub(self.accepted);
        let waiting = if self.patience > 0 { count.cast_signed() } else { 0 };
        if waiting < 0 {
            self.correction = self.correction.wrapping_sub(count);
        }
        if waiting <= 0 {
            (self.ticks_waiting, self.ticks_still) = (0, 0);
            return (false, false);
        }
        let is_still = self.ticks_waiting > 0 && self.accepted == self.accepted_before;
        self.ticks_still = if is_still { self.ticks_still + 1 } else { 0 };
        self.ticks_waiting += 1;
        self.accepted_before = self.accepted;
        self.told = match () {
            () if self.ticks_still >= self.patience => 1,
            () if self.ticks_waiting >= u64::from(TICKS_WAITING_MAX) => 2,
            () => return (true, false),
        };
        (self.ticks_waiting, self.ticks_still) = (0, 0);
        (true, true)
    }
}

/// What happens at a worker from one tick to the next.
#[derive(Clone, Copy, Debug)]
struct Step {
    picked: u64,
    accepted: u64,
    correction: Option<u64>,
    patience: Option<u64>,
}

fn any_step() -> impl Strategy<Value = Step> {
    let any_correction = prop_oneof![any::<u64>(), Just(0), Just(1), Just(u64::MAX)];
    let correction = prop::option::weighted(0.05, any_correction);
    let patience = prop::option::weighted(0.1, prop_oneof![3 => 1u64..5, 1 => Just(0)]);
    (0u64..3, 0u64..3, correction, patience).prop_map(|(picked, accepted, correction, patience)| {
        Step { picked, accepted, correction, patience }
    })
}

/// As many ticks, with a step for each worker.
fn any_steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let count = prop_oneof![19 => 1..=5usize, 1 => 1..=PICKED_MAX];
    count.prop_flat_map(|count| {
        prop::collection::vec(prop::collection::vec(any_step(), count), 1..12)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_500))]

    #[test]
    fn the_kernel_finds_what_is_stuck_as_a_plain_function_does(steps in any_steps()) {
        let sockets: Vec<u16> = (0..).take(steps[0].len()).collect();
        let mut machine = Machine::new(Rule::Least, &sockets);
        let mut workers = vec![Watched::default(); sockets.len()];
        let mut runs = false;
        for step in &steps {
            for (place, (worker, step)) in workers.iter_mut().zip(step).enumerate() {
                worker.picked += step.picked;
                worker.accepted += step.accepted;
                worker.correction = step.correction.unwrap_or(worker.correction);
                worker.patience = step.patience.unwrap_or(worker.patience);
                machine.set(place, LAYOUT.picked, worker.picked);
                machine.set(place, LAYOUT.accepted, worker.accepted);
                machine.set(place, LAYOUT.correction, worker.correction);
                machine.set(place, LAYOUT.patience, worker.patience);
            }
            // Picks start the timer unless it runs.
            let (selected, is_started) = machine.run();
            let selected = usize::from(selected.expect("none is excluded"));
            workers[selected].picked += 1;
            prop_assert_eq!(is_started, !runs);
            let found: Vec<(bool, bool)> = workers.iter_mut().map(Watched::tick).collect();
            runs = found.iter().any(|(waits, _)| *waits);
            let is_told = found.iter().any(|(_, is_told)| *is_told);
            // It runs once more after nothing waits.
            prop_assert_eq!(machine.tick(), (is_told, true));
            for (place, worker) in workers.iter().enumerate() {
                prop_assert_eq!(machine.get(place, LAYOUT.correction), worker.correction);
                prop_assert_eq!(machine.get(place, LAYOUT.told), worker.told);
            }
        }
    }
}

#[test]
fn the_timer_ends_when_nothing_waits_and_what_always_waits_is_told() {
    let mut machine = Machine::new(Rule::Least, &[0]);
    machine.set(0, LAYOUT.patience, 1);
    assert_eq!(machine.run(), (Some(0), true));
    assert_eq!(machine.run(), (Some(0), false), "it runs");
    machine.set(0, LAYOUT.accepted, 2);
    assert_eq!(machine.tick(), (false, true), "once more");
    assert_eq!(machine.tick(), (false, false));
    for tick in 1..=u64::from(TICKS_WAITING_MAX) {
        assert_eq!(machine.run(), (Some(0), tick == 1));
        machine.set(0, LAYOUT.accepted, 1 + tick);
        assert_eq!(machine.tick(), (tick == u64::from(TICKS_WAITING_MAX), true));
    }
    assert_eq!(Told::from_word(machine.get(0, LAYOUT.told)), Some(Told::Waiting));
    for _ in 0..2 {
        machine.tick();
    }
    assert_eq!(Told::from_word(machine.get(0, LAYOUT.told)), Some(Told::Stuck));
    machine.set(0, LAYOUT.patience, 0);
    assert_eq!(machine.tick(), (false, true), "the primary watches");
    assert_eq!(machine.tick(), (false, false));
}

#[test]
fn times_are_refreshed_regularly_while_connections_arrive() {
    let mut machine = Machine::new(Rule::Fastest, &[0]);
    machine.run();
    let told = (0..2 * TICKS_REGULAR).filter(|_| machine.tick().0).count();
    assert_eq!(told, 2);
}

#[test]
fn the_kernel_tells_what_is_stuck_and_only_that() {
    let boards: nix::Result<Vec<SharedPage>> = (0..2).map(|_| SharedPage::create_map()).collect();
    let (Ok(boards), Ok(alarm), Ok(mut picking)) = (boards, Alarm::new(), Picking::new(2, LAYOUT))
    else {
        return crate::missing::lacking("CAP_BPF, with which the kernel watches queues");
    };
    let group = group("127.0.0.1:0", 2);
    (0..).zip(&group).for_each(|(key, socket)| picking.enter(key, socket).expect("it listens"));
    let pickable: Vec<Pickable<'_>> = (0..)
        .zip(&boards)
        .map(|(socket, board)| Pickable { socket, board: board.as_fd() })
        .collect();
    picking.pick_among(&group[0], Rule::Least, &pickable, Some(&alarm)).expect("it is taken");
    let set = |at: i16, value: u64| {
        let at = usize::try_from(at).expect("inside");
        let words = boards.iter().map(|board| board.word(at / 128, at % 128 / 8));
        words.map(|word| word.swap(value, Ordering::AcqRel)).collect::<Vec<u64>>()
    };
    let is_told = |timeout: u16| {
        let mut polled = [PollFd::new(alarm.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::from(timeout)).expect("it is polled") > 0
    };
    set(LAYOUT.patience, 1);
    let connect = |_: u64| TcpStream::connect(group[0].address()).expect("it listens");
    let mut clients: Vec<TcpStream> = (0..2).map(connect).collect();
    assert!(is_told(30_000), "both are stuck");
    assert!(alarm.clear());
    // The primary takes over.
    set(LAYOUT.patience, 0);
    let told = set(LAYOUT.told, 0);
    assert!(told.iter().any(|word| Told::from_word(*word) == Some(Told::Stuck)), "{told:?}");
    // What a tick that was under way has told.
    while is_told(50) {
        alarm.clear();
    }
    set(LAYOUT.accepted, 1);
    set(LAYOUT.patience, 1_000_000);
    clients.extend((0..20).map(connect));
    set(LAYOUT.accepted, 11);
    assert!(!is_told(50), "all were accepted");
}
