//! Start, ends, scaling and the end of a run, by examples.

use super::*;
use crate::supervisor::restart::Restart;

#[test]
fn nothing_is_accepted_before_every_worker_serves() {
    let mut world = World::new(rules(), 2);
    world.serves(2, 80);
    assert!(!world.opened);
    world.serves(1, 80);
    assert!(world.opened);
    assert_eq!(world.currents(), [Some(1), Some(2)]);
}

#[test]
fn every_held_address_is_waited_for() {
    let mut world = World::new(Rules { held: 2, ..rules() }, 1);
    world.serves(1, 80);
    assert!(!world.opened);
    world.serves(1, 81);
    assert!(world.opened);
}

#[test]
fn a_worker_that_serves_nothing_does_not_hold_the_others_up_for_ever() {
    let mut world = World::new(rules(), 3);
    (1..=2).for_each(|number| world.serves(number, 80));
    world.pass(5_000);
    assert!(!world.opened, "it has not even said that it runs");
    world.goes_online(3);
    world.pass(60_000);
    assert!(world.opened);
    assert_eq!(world.count(|event| matches!(event, SupervisorEvent::Silent { .. })), 1);
    // Its life is not short because it serves nothing.
    world.crashes(3);
    assert_eq!(world.currents(), [Some(1), Some(2), Some(4)]);
}

#[test]
fn a_start_that_takes_too_long_fails() {
    let mut world = World::new(rules(), 2);
    world.serves(1, 80);
    world.pass(4_999);
    let is_late = |event: &SupervisorEvent| match event {
        SupervisorEvent::Waiting { workers } => *workers == [id(2)],
        _ => false,
    };
    assert_eq!(world.count(is_late), 0);
    world.pass(1);
    assert_eq!(world.count(is_late), 1);
    world.pass(55_000);
    assert_eq!(world.count(is_late), 1);
    assert_eq!(world.state.failure(), Some(&Failure::StartTimeout));
    assert_eq!(world.killed.len(), 2);
    (1..=2).for_each(|number| world.ends(number, Ending::Signal(9)));
    assert!(world.state.is_over());
}

#[test]
fn three_early_ends_in_a_slot_or_one_that_says_why_end_the_start() {
    let mut world = World::new(rules(), 1);
    for number in 1..=3 {
        assert_eq!(world.state.failure(), None);
        world.ends(number, Ending::Code(1));
        world.pass(1_000);
    }
    let ending = Ending::Code(1);
    let failure = Failure::StartFailed { worker: id(3), ending, fatal: false };
    assert_eq!(world.state.failure(), Some(&failure));
    let mut world = World::new(rules(), 2);
    world.ends(1, Ending::Code(2));
    assert!(matches!(world.state.failure(), Some(Failure::StartFailed { fatal: true, .. })));
}

#[test]
fn a_worker_that_is_killed_every_five_seconds_is_replaced_all_day() {
    let mut world = World::serving(rules(), 1);
    for number in 1..=17_280 {
        world.pass(5_000);
        world.crashes(number);
        assert_eq!(world.currents(), [Some(number + 1)], "at once");
        world.serves(number + 1, 80);
    }
    assert_eq!(world.given_up(), 0);
}

#[test]
fn a_worker_that_crashes_in_its_first_second_backs_off_and_is_given_up() {
    let mut world = World::serving(rules(), 2);
    for number in 2..=12 {
        world.serves(number, 80);
        world.crashes(number);
        assert_eq!(world.currents()[1].is_some(), number == 2, "only the first costs no time");
        // The longest delay.
        world.pass(5_000);
    }
    assert_eq!((world.given_up(), world.currents()), (1, vec![Some(1), None]));
    assert_eq!(world.state.stage, RunStage::Serving);
}

#[test]
fn a_worker_that_leaves_is_replaced_when_it_does_and_not_when_it_has_ended() {
    let mut world = World::serving(rules(), 1);
    world.leaves(1);
    assert_eq!((world.currents(), world.alive()), (vec![Some(2)], vec![1, 2]));
    assert_eq!(world.predecessors, [(id(2), id(1))].into());
    // Its end is no further reason to start one.
    world.ends(1, Ending::Code(0));
    assert_eq!(world.alive(), [2]);
    assert_eq!(world.given_up(), 0);
}

#[test]
fn a_worker_that_leaves_and_does_not_end_is_killed_after_the_grace_period() {
    let mut world = World::serving(rules(), 1);
    world.leaves(1);
    world.pass(10_000);
    assert!(world.killed.is_empty());
    world.pass(1_000);
    assert_eq!(world.killed, [id(1)].into());
}

#[test]
fn a_worker_that_has_lost_its_channel_and_lives_on_is_replaced_soon() {
    let mut world = World::serving(rules(), 1);
    world.state.on_disconnect(id(1), false, true, world.now_ns);
    world.act();
    assert_eq!(world.alive(), [1], "most have crashed, which is told in a moment");
    world.pass(1_000);
    assert_eq!(world.currents(), [Some(2)]);
}

#[test]
fn the_restart_rule_decides_replacements_and_the_last_end_ends_the_run() {
    let policy = |restart: Restart| Rules { restart: restart.into(), ..rules() };
    let mut world = World::serving(policy(Restart::Never), 2);
    world.crashes(1);
    assert_eq!(world.state.stage, RunStage::Serving);
    world.crashes(2);
    assert!(world.state.is_over());
    assert_eq!(world.state.failure(), Some(&Failure::NoWorkersLeft));
    let mut world = World::serving(policy(Restart::OnFailure), 2);
    world.crashes(1);
    assert_eq!(world.currents(), [Some(3), Some(2)]);
    world.serves(3, 80);
    (2..=3).for_each(|number| world.ends(number, Ending::Code(0)));
    assert!(world.state.is_over());
    assert_eq!(world.state.failure(), None);
}

#[test]
fn a_program_that_is_away_for_a_while_costs_nothing_but_time() {
    let mut world = World::serving(rules(), 2);
    world.program_is_away = true;
    world.crashes(1);
    world.pass(600_000);
    assert_eq!((world.currents(), world.given_up()), (vec![None, Some(2)], 0));
    world.program_is_away = false;
    world.pass(5_000);
    assert_eq!(world.currents(), [Some(3), Some(2)]);
    // Without a worker the run must not try forever.
    world.program_is_away = true;
    (2..=3).for_each(|number| world.crashes(number));
    world.pass(600_000);
    assert_eq!(world.state.failure(), Some(&Failure::NoWorkersLeft));
    assert!(world.state.is_over());
}

#[test]
fn a_worker_that_hangs_is_killed_if_so_wished() {
    let mut world = World::serving(Rules { hang_kill_ns: Some(500 * MS), ..rules() }, 1);
    world.state.on_hung(id(1), world.now_ns);
    world.pass(400);
    world.state.on_recovered(id(1));
    world.pass(400);
    assert!(world.killed.is_empty());
    world.state.on_hung(id(1), world.now_ns);
    world.pass(500);
    assert_eq!(world.killed, [id(1)].into());
}

#[test]
fn scaling_fills_new_slots_and_empties_the_highest() {
    let mut world = World::serving(rules(), 2);
    let more = world.ticket();
    world.state.scale(4, more, world.now_ns);
    world.act();
    assert_eq!(world.currents(), [Some(1), Some(2), Some(3), Some(4)]);
    assert_eq!(world.outcome(more), None);
    (3..=4).for_each(|number| world.serves(number, 80));
    assert_eq!(world.outcome(more), Some(None));
    let fewer = world.ticket();
    world.state.scale(1, fewer, world.now_ns);
    world.act();
    assert_eq!(world.disconnected, [id(2), id(3), id(4)].into());
    (2..=4).for_each(|number| world.ends(number, Ending::Code(0)));
    assert_eq!((world.outcome(fewer), world.alive()), (Some(None), vec![1]));
}

#[test]
fn a_thousand_starts_hold_up_neither_an_end_nor_a_smaller_number() {
    let mut world = World::serving(rules(), 2);
    world.starts_a_turn = 8;
    let (more, fewer) = (world.ticket(), world.ticket());
    world.state.scale(1024, more, world.now_ns);
    world.act();
    assert_eq!(world.alive().len(), 10);
    assert!(world.state.has_starts());
    world.starts_a_turn = 0;
    world.crashes(1);
    world.state.scale(5, fewer, world.now_ns);
    world.act();
    assert_eq!(world.outcome(more), Some(Some(GoalRefusal::Superseded)));
    assert_eq!(world.disconnected, (6..=10).map(id).collect());
    // Only the successor of the one that has crashed is still to be started.
    world.starts_a_turn = 8;
    world.act();
    assert_eq!(world.currents(), [Some(11), Some(2), Some(3), Some(4), Some(5)]);
    assert!(!world.state.has_starts());
    world.state.scale(1024, more, world.now_ns);
    world.state.stop("it was asked for".into(), GRACE, world.now_ns);
    world.act();
    assert!(!world.state.has_starts() && world.everyone_was_disconnected);
    world.alive().into_iter().for_each(|one| world.ends(one, Ending::Code(0)));
    assert!(world.state.is_over());
}

#[test]
fn scaling_fails_where_new_workers_do_not_stay() {
    let mut world = World::serving(rules(), 1);
    let more = world.ticket();
    world.state.scale(2, more, world.now_ns);
    world.act();
    for number in 2..=12 {
        assert_eq!(world.outcome(more), None);
        world.crashes(number);
        world.pass(5_000);
    }
    assert_eq!(world.given_up(), 1);
    assert_eq!(world.outcome(more), Some(Some(GoalRefusal::GivenUp(1))));
    let back = world.ticket();
    world.state.scale(1, back, world.now_ns);
    world.act();
    assert_eq!(world.outcome(back), Some(None));
}

#[test]
fn single_workers_are_drained_replaced_and_killed() {
    let mut world = World::serving(rules(), 2);
    let [drain, replace, kill, unknown] = [(); 4].map(|()| world.ticket());
    world.state.drain_worker(id(1), drain, world.now_ns);
    world.act();
    assert_eq!(world.currents(), [Some(3), Some(2)]);
    world.serves(3, 80);
    world.ends(1, Ending::Code(0));
    assert_eq!(world.outcome(drain), Some(None));
    world.state.replace_worker(id(2), replace, world.now_ns);
    world.act();
    world.serves(4, 80);
    world.pass(2_000);
    assert_eq!(world.currents(), [Some(3), Some(4)]);
    world.ends(2, Ending::Code(0));
    assert_eq!(world.outcome(replace), Some(None));
    world.state.kill_worker(id(3), kill);
    world.act();
    world.ends(3, Ending::Signal(9));
    assert_eq!((world.outcome(kill), world.currents()), (Some(None), vec![Some(5), Some(4)]));
    world.state.replace_worker(id(1), unknown, world.now_ns);
    world.act();
    assert_eq!(world.outcome(unknown), Some(Some(GoalRefusal::NoSuchWorker(id(1)))));
}

#[test]
fn a_stop_lets_workers_finish_and_then_forces_them() {
    let mut world = World::serving(rules(), 2);
    world.crashes(1);
    assert!(!world.state.stop_or_force("SIGTERM", world.now_ns));
    world.act();
    assert!(world.everyone_was_disconnected);
    world.crashes(3);
    world.pass(1);
    assert_eq!(world.alive(), [2], "no other one is started");
    world.pass(10_250);
    assert_eq!(world.killed, [id(2)].into());
    world.ends(2, Ending::Signal(9));
    assert!(world.state.is_over());
    assert_eq!(world.state.failure(), None);
}

#[test]
fn a_second_wish_for_the_end_is_no_echo_of_the_first() {
    let mut world = World::serving(rules(), 1);
    assert!(!world.state.stop_or_force("SIGINT", world.now_ns));
    assert!(!world.state.stop_or_force("SIGTERM", world.now_ns + 49 * MS));
    assert!(world.state.stop_or_force("SIGINT", world.now_ns + 50 * MS));
    world.act();
    assert_eq!(world.killed, [id(1)].into());
}

#[test]
fn a_stop_waits_until_balancers_have_noticed() {
    let rules = || Rules { drain_delay: Duration::from_secs(5), ..rules() };
    let mut world = World::serving(rules(), 1);
    assert!(!world.state.stop_or_force("SIGTERM", world.now_ns));
    assert!(world.state.is_stopping());
    world.pass(4_000);
    world.crashes(1);
    world.pass(500);
    assert!(!world.everyone_was_disconnected);
    assert_eq!(world.alive(), [2], "it goes on serving");
    world.pass(500);
    assert!(world.everyone_was_disconnected && !world.state.is_stopping());
    world.pass(10_250);
    assert_eq!(world.killed, [id(2)].into(), "the grace period begins afterwards");

    let mut world = World::serving(rules(), 1);
    assert!(!world.state.stop_or_force("SIGTERM", world.now_ns));
    assert!(!world.state.stop_or_force("SIGTERM", world.now_ns + 49 * MS));
    world.act();
    assert!(!world.everyone_was_disconnected, "that was an echo");
    assert!(!world.state.stop_or_force("SIGTERM", world.now_ns + 50 * MS));
    world.act();
    assert!(world.everyone_was_disconnected && world.killed.is_empty());
}

#[test]
fn a_stop_during_the_start_ends_it() {
    let mut world = World::new(rules(), 2);
    world.state.stop("it was asked for".into(), GRACE, world.now_ns);
    world.act();
    (1..=2).for_each(|number| world.ends(number, Ending::Code(0)));
    assert!(world.state.is_over());
    assert_eq!((world.state.failure(), world.opened), (None, false));
}
