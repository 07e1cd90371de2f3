//! Workers that are ready when their programs say so, by examples.

use super::*;

fn by_message() -> Rules {
    Rules { ready_after: ReadyAfter::Message, ..rules() }
}

/// A run of workers that serve port 80 and have said that they are ready.
fn serving(workers: u16) -> World {
    let mut world = World::new(by_message(), workers);
    for worker in 1..=u32::from(workers) {
        world.serves(worker, 80);
        world.says_ready(worker);
    }
    assert!(world.opened);
    world
}

#[test]
fn a_start_waits_for_the_message_of_each() {
    let mut world = World::new(by_message(), 2);
    (1..=2).for_each(|worker| world.serves(worker, 80));
    world.says_ready(1);
    world.pass(30_000);
    assert!(!world.opened);
    world.says_ready(2);
    assert!(world.opened);
}

#[test]
fn a_start_without_messages_fails() {
    let mut world = World::new(by_message(), 2);
    (1..=2).for_each(|worker| world.serves(worker, 80));
    world.says_ready(1);
    world.pass(60_000);
    assert_eq!(world.state.failure(), Some(&Failure::StartTimeout));
}

#[test]
fn a_message_alone_is_not_enough_where_others_serve() {
    let mut world = World::new(by_message(), 2);
    world.goes_online(1);
    world.says_ready(1);
    assert!(!world.opened);
    world.serves(1, 80);
    world.goes_online(2);
    world.says_ready(2);
    assert!(!world.opened, "the second may still begin to serve");
    world.pass(10_000);
    assert!(world.opened, "it is one that serves nothing");
}

#[test]
fn a_successor_settles_by_its_message_and_not_by_the_time() {
    let mut world = serving(1);
    world.reloads();
    world.serves(2, 80);
    world.pass(59_000);
    assert!(world.disconnected.is_empty() && world.killed.is_empty());
    world.says_ready(2);
    assert_eq!(world.disconnected, [id(1)].into());
    world.ends(1, Ending::Code(0));
    assert_eq!((world.reloaded(), world.currents()), (1, vec![Some(2)]));
}

#[test]
fn a_successor_serves_what_its_predecessor_does_even_if_it_says_so_earlier() {
    let mut world = serving(1);
    world.reloads();
    world.goes_online(2);
    world.says_ready(2);
    world.pass(10_000);
    assert!(world.disconnected.is_empty());
    world.serves(2, 80);
    assert_eq!(world.disconnected, [id(1)].into());
}

#[test]
fn without_a_message_replacing_stops_and_the_others_stay() {
    let mut world = serving(2);
    world.reloads();
    world.serves(3, 80);
    world.pass(60_000);
    assert_eq!(world.killed, [id(3)].into());
    let names_it = |event: &SupervisorEvent| match event {
        SupervisorEvent::Killed { reason, .. } | SupervisorEvent::ReloadStopped { reason } => {
            reason.contains("the message \"ready\"")
        }
        _ => false,
    };
    world.ends(3, Ending::Signal(9));
    assert_eq!(world.count(names_it), 2);
    assert_eq!((world.alive(), world.disconnected.len()), (vec![1, 2], 0));
    assert!(!world.state.is_reloading());
}

#[test]
fn a_life_without_the_message_is_short_however_long_it_lasts() {
    let mut world = serving(1);
    world.pass(5_000);
    for worker in 1..=3 {
        world.crashes(worker);
        world.pass(0);
        if worker < 3 {
            assert_eq!(world.currents(), [Some(worker + 1)]);
            world.serves(worker + 1, 80);
            world.pass(5_000);
        }
    }
    assert_eq!(world.currents(), [None], "the second short life in a row costs time");
}
