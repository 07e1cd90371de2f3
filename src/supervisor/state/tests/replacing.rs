//! Workers replaced one after the other, by examples.

use super::*;

/// A successor serves, settles, and its predecessor leaves and ends.
fn replaces(world: &mut World, old: u32, new: u32) {
    world.serves(new, 80);
    world.pass(2_000);
    assert!(world.disconnected.contains(&id(old)));
    world.ends(old, Ending::Code(0));
}

#[test]
fn a_reload_replaces_all_one_after_the_other() {
    let mut world = World::serving(rules(), 2);
    world.reloads();
    assert_eq!(world.alive(), [1, 2, 3]);
    world.serves(3, 80);
    world.pass(1_999);
    assert!(world.disconnected.is_empty(), "it has not settled");
    world.pass(1);
    assert_eq!(world.disconnected, [id(1)].into());
    assert_eq!((world.alive(), world.currents()), (vec![1, 2, 3], vec![Some(3), Some(2)]));
    world.ends(1, Ending::Code(0));
    replaces(&mut world, 2, 4);
    assert_eq!((world.currents(), world.reloaded()), (vec![Some(3), Some(4)], 1));
    assert_eq!(world.alive(), [3, 4]);
}

#[test]
fn without_a_settling_time_the_predecessor_leaves_at_once() {
    let mut world = World::serving(Rules { settle_ns: 0, ..rules() }, 1);
    world.reloads();
    world.serves(2, 80);
    assert_eq!(world.disconnected, [id(1)].into());
}

#[test]
fn a_successor_that_ends_before_it_has_settled_stops_it_and_harms_no_one() {
    let mut world = World::serving(rules(), 4);
    world.reloads();
    world.serves(5, 80);
    world.pass(300);
    world.crashes(5);
    world.pass(60_000);
    assert_eq!((world.stopped(), world.reloaded()), (1, 0));
    assert_eq!((world.alive(), world.disconnected.len()), (vec![1, 2, 3, 4], 0));
    assert!(!world.state.is_reloading());
}

#[test]
fn a_successor_that_has_lost_its_channel_takes_no_slot() {
    let mut world = World::serving(rules(), 1);
    world.reloads();
    world.serves(2, 80);
    world.state.on_disconnect(id(2), false, true, world.now_ns);
    world.pass(400);
    assert!(world.disconnected.is_empty());
    world.crashes(2);
    assert_eq!((world.stopped(), world.alive()), (1, vec![1]));
    let why = |event: &SupervisorEvent| match event {
        SupervisorEvent::ReloadStopped { reason } => reason.contains("settled"),
        _ => false,
    };
    assert_eq!(world.count(why), 1);
}

#[test]
fn a_successor_that_does_not_serve_in_time_stops_it() {
    let mut world = World::serving(rules(), 1);
    world.reloads();
    world.goes_online(2);
    world.pass(60_000);
    assert_eq!(world.killed, [id(2)].into());
    world.ends(2, Ending::Signal(9));
    assert_eq!((world.stopped(), world.alive()), (1, vec![1]));
    assert!(world.stopped_with("worker 2 did not serve within the start limit"));
}

#[test]
fn a_successor_that_serves_other_addresses_is_told_which_one_is_missing() {
    let mut world = World::serving(rules(), 1);
    world.reloads();
    world.serves(2, 81);
    world.pass(60_000);
    world.ends(2, Ending::Signal(9));
    assert!(world.stopped_with("did not listen on 127.0.0.1:80 in time, as its predecessor does"));
    assert_eq!(world.alive(), [1]);
}

#[test]
fn a_successor_that_cannot_be_started_stops_it() {
    let mut world = World::serving(rules(), 1);
    world.program_is_away = true;
    world.reloads();
    assert_eq!((world.stopped(), world.alive()), (1, vec![1]));
}

#[test]
fn a_successor_serves_what_its_predecessor_serves_now() {
    let mut world = World::serving(rules(), 1);
    for port in [81, 82] {
        world.serves(1, port);
    }
    world.closes(1, 81);
    world.reloads();
    world.serves(2, 80);
    world.pass(2_000);
    assert!(world.disconnected.is_empty(), "port 82 is still to come");
    // Or is not wanted any more.
    world.closes(1, 82);
    world.pass(2_000);
    assert_eq!(world.disconnected, [id(1)].into());
}

#[test]
fn with_a_port_per_worker_a_successor_has_another_one() {
    let mut world = World::serving(rules(), 2);
    (1..=2).for_each(|worker| world.serves(worker, 9100 + u16::try_from(worker).expect("few")));
    world.reloads();
    world.serves(3, 80);
    world.pass(30_000);
    assert!(world.disconnected.is_empty(), "it has no separate port yet");
    world.serves(3, 9103);
    world.pass(2_000);
    assert_eq!(world.disconnected, [id(1)].into());
}

#[test]
fn what_only_one_worker_serves_its_successor_has_to_serve_by_name() {
    let mut world = World::serving(rules(), 2);
    world.serves(1, 9100);
    world.reloads();
    world.serves(3, 80);
    world.serves(3, 9103);
    world.pass(30_000);
    assert!(world.disconnected.is_empty());
    world.serves(3, 9100);
    world.pass(2_000);
    assert_eq!(world.disconnected, [id(1)].into());
}

#[test]
fn ports_that_the_kernel_chose_count_only_where_there_are_no_others() {
    let mut world = World::serving(rules(), 1);
    world.serves(1, 40_000);
    world.reloads();
    replaces(&mut world, 1, 2);
    let mut world = World::new(rules(), 1);
    world.serves(1, 40_000);
    world.reloads();
    world.goes_online(2);
    world.pass(2_000);
    assert!(world.disconnected.is_empty());
    world.serves(2, 40_000);
    world.pass(2_000);
    assert_eq!(world.disconnected, [id(1)].into());
}

#[test]
fn a_worker_that_never_listens_is_replaced_by_one_that_lives() {
    let mut world = World::new(rules(), 2);
    world.serves(1, 80);
    world.goes_online(2);
    world.pass(10_000);
    world.reloads();
    replaces(&mut world, 1, 3);
    world.goes_online(4);
    world.pass(1_999);
    assert!(!world.disconnected.contains(&id(2)));
    world.pass(1);
    world.ends(2, Ending::Code(0));
    assert_eq!((world.reloaded(), world.currents()), (1, vec![Some(3), Some(4)]));
}

#[test]
fn the_successor_of_one_that_does_not_serve_yet_serves_what_the_one_before_did() {
    let mut world = World::serving(rules(), 1);
    world.pass(5_000);
    world.crashes(1);
    world.reloads();
    world.goes_online(3);
    world.pass(10_000);
    assert!(world.disconnected.is_empty());
    replaces(&mut world, 2, 3);
    assert_eq!(world.currents(), [Some(3)]);
}

#[test]
fn a_reload_during_the_start_follows_it_once_and_without_settling() {
    let mut world = World::new(rules(), 2);
    world.serves(1, 80);
    (0..3).for_each(|_| world.reloads());
    assert_eq!(world.alive(), [1, 2]);
    world.serves(2, 80);
    assert!(world.opened);
    for (old, new) in [(1, 3), (2, 4)] {
        world.serves(new, 80);
        assert!(world.disconnected.contains(&id(old)));
        world.ends(old, Ending::Code(0));
    }
    assert_eq!((world.reloaded(), world.alive()), (1, vec![3, 4]));
    assert!(!world.state.is_reloading());
}

#[test]
fn a_reload_during_another_follows_it_once() {
    let mut world = World::serving(rules(), 2);
    world.reloads();
    (0..3).for_each(|_| world.reloads());
    for (old, new) in [(1, 3), (2, 4), (3, 5), (4, 6)] {
        replaces(&mut world, old, new);
    }
    assert_eq!((world.reloaded(), world.alive()), (2, vec![5, 6]));
    // Also when the first one is stopped: the second may be for what mends it.
    world.reloads();
    world.reloads();
    world.crashes(7);
    assert_eq!((world.stopped(), world.alive()), (1, vec![5, 6, 8]));
}

#[test]
fn a_reload_fills_slots_that_were_given_up_and_forgets_short_lives() {
    let mut world = World::serving(rules(), 2);
    let mut victim = 2;
    while world.given_up() == 0 {
        world.crashes(victim);
        world.pass(5_000);
        victim = world.currents()[1].unwrap_or(victim);
    }
    assert_eq!(world.currents(), [Some(1), None]);
    world.reloads();
    let [Some(1), Some(filled)] = world.currents()[..] else { panic!("it is filled at once") };
    world.crashes(filled);
    assert!(world.currents()[1].is_some(), "the first short life costs no time again");
}

#[test]
fn a_predecessor_that_ends_early_is_replaced_by_its_successor() {
    let mut world = World::serving(rules(), 2);
    world.reloads();
    world.crashes(1);
    assert_eq!((world.currents(), world.alive()), (vec![Some(3), Some(2)], vec![2, 3]));
    world.serves(3, 80);
    world.pass(2_000);
    replaces(&mut world, 2, 4);
    assert_eq!(world.reloaded(), 1);
}

#[test]
fn a_successor_without_a_predecessor_is_replaced_like_any_other() {
    let mut world = World::serving(rules(), 2);
    world.reloads();
    world.crashes(1);
    world.crashes(3);
    world.pass(100);
    assert_eq!((world.stopped(), world.currents()), (1, vec![Some(4), Some(2)]));
}

#[test]
fn a_predecessor_that_leaves_early_is_waited_for() {
    let mut world = World::serving(rules(), 1);
    world.reloads();
    world.leaves(1);
    assert_eq!(world.alive(), [1, 2]);
    world.serves(2, 80);
    world.pass(2_000);
    assert!(world.disconnected.is_empty(), "it knows already");
    assert_eq!(world.reloaded(), 0);
    world.ends(1, Ending::Code(0));
    assert_eq!((world.reloaded(), world.currents()), (1, vec![Some(2)]));
}

#[test]
fn a_slot_that_goes_takes_its_successor_along() {
    let mut world = World::serving(rules(), 2);
    let ticket = world.ticket();
    world.state.replace_worker(id(2), ticket, world.now_ns);
    world.act();
    let scale = world.ticket();
    world.state.scale(1, scale, world.now_ns);
    world.act();
    assert_eq!(world.disconnected, [id(2), id(3)].into());
    (2..=3).for_each(|number| world.ends(number, Ending::Code(0)));
    assert_eq!((world.alive(), world.outcome(scale)), (vec![1], Some(None)));
    assert!(world.outcome(ticket).is_some() && !world.state.is_reloading());
}

#[test]
fn who_waits_for_a_reload_is_told_how_it_ended() {
    let mut world = World::serving(rules(), 1);
    let [good, bad] = [(); 2].map(|()| world.ticket());
    world.state.reload(Some(good), world.now_ns);
    world.act();
    world.state.reload(Some(bad), world.now_ns);
    world.act();
    replaces(&mut world, 1, 2);
    assert_eq!((world.outcome(good), world.outcome(bad)), (Some(None), None));
    world.crashes(3);
    assert!(matches!(world.outcome(bad), Some(Some(GoalRefusal::Stopped(_)))));
}

#[test]
fn a_stop_ends_the_replacing() {
    let mut world = World::serving(rules(), 2);
    let [one, other] = [(); 2].map(|()| world.ticket());
    world.state.reload(Some(one), world.now_ns);
    world.state.reload(Some(other), world.now_ns);
    world.act();
    world.state.stop("it was asked for".into(), GRACE, world.now_ns);
    world.act();
    for ticket in [one, other] {
        assert_eq!(world.outcome(ticket), Some(Some(GoalRefusal::Ending)));
    }
    (1..=3).for_each(|number| world.ends(number, Ending::Code(0)));
    assert!(world.state.is_over());
    world.reloads();
    assert!(world.state.is_over());
}
