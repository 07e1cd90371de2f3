//! Properties for any order of events: no slot has two workers, none is left without one, and no
//! predecessor leaves before its successor serves.

use proptest::prelude::*;

use super::*;

/// An event of a living worker, or a request.
#[derive(Clone, Copy, Debug)]
enum Step {
    Online(usize),
    Listens(usize, u16),
    SaysReady(usize),
    Closes(usize, u16),
    Leaves(usize),
    LosesChannel(usize),
    Ends(usize, bool),
    Hangs(usize),
    Reload,
    Scale(u16),
    Replace(usize),
    Drain(usize),
    Kill(usize),
    Program(bool),
    Pass(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    let one = 0usize..8;
    prop_oneof![
        6 => one.clone().prop_map(Step::Online),
        12 => (one.clone(), 80u16..82).prop_map(|(one, port)| Step::Listens(one, port)),
        6 => one.clone().prop_map(Step::SaysReady),
        2 => (one.clone(), 80u16..82).prop_map(|(one, port)| Step::Closes(one, port)),
        2 => one.clone().prop_map(Step::Leaves),
        1 => one.clone().prop_map(Step::LosesChannel),
        6 => (one.clone(), any::<bool>()).prop_map(|(one, well)| Step::Ends(one, well)),
        1 => one.clone().prop_map(Step::Hangs),
        2 => Just(Step::Reload),
        2 => (1u16..5).prop_map(Step::Scale),
        1 => one.clone().prop_map(Step::Replace),
        1 => one.clone().prop_map(Step::Drain),
        1 => one.prop_map(Step::Kill),
        1 => any::<bool>().prop_map(Step::Program),
        8 => (0u64..4_000).prop_map(Step::Pass),
    ]
}

fn take(world: &mut World, step: Step) -> Option<Ticket> {
    let alive = world.alive();
    let worker = |one: usize| alive.get(one % alive.len().max(1)).copied().unwrap_or(0);
    let now_ns = world.now_ns;
    let ticket = world.ticket();
    match step {
        Step::Online(one) => world.goes_online(worker(one)),
        Step::Listens(one, port) => world.serves(worker(one), port),
        Step::SaysReady(one) => world.says_ready(worker(one)),
        Step::Closes(one, port) => world.closes(worker(one), port),
        Step::Leaves(one) => world.leaves(worker(one)),
        Step::LosesChannel(one) => {
            world.state.on_disconnect(id(worker(one)), false, true, now_ns);
        }
        Step::Ends(one, well) => {
            let ending = if well { Ending::Code(0) } else { Ending::Signal(6) };
            world.ends(worker(one), ending);
        }
        Step::Hangs(one) => world.state.on_hung(id(worker(one)), now_ns),
        Step::Reload => world.state.reload(Some(ticket), now_ns),
        Step::Scale(count) => world.state.scale(count, ticket, now_ns),
        Step::Replace(one) => world.state.replace_worker(id(worker(one)), ticket, now_ns),
        Step::Drain(one) => world.state.drain_worker(id(worker(one)), ticket, now_ns),
        Step::Kill(one) => world.state.kill_worker(id(worker(one)), ticket),
        Step::Program(is_away) => world.program_is_away = is_away,
        Step::Pass(time_ms) => world.pass(time_ms),
    }
    world.act();
    let asks = matches!(
        step,
        Step::Reload | Step::Scale(_) | Step::Replace(_) | Step::Drain(_) | Step::Kill(_)
    );
    asks.then_some(ticket)
}

fn check(world: &World) {
    let children = &world.state.children;
    let currents: Vec<u32> = world.currents().into_iter().flatten().collect();
    for worker in &currents {
        let child = children.get(&id(*worker)).expect("a slot's worker is alive");
        assert_eq!(child.role, Role::Current);
    }
    let of_role = |role| children.values().filter(|child| child.role == role).count();
    assert_eq!(of_role(Role::Current), currents.len(), "a current worker has a slot");
    assert!(of_role(Role::Successor) <= 1, "one at a time");
}

/// No more faults, until no more events follow.
fn goes_well(world: &mut World) {
    world.program_is_away = false;
    world.starts_a_turn = usize::MAX;
    for _ in 0..400 {
        for worker in world.alive() {
            let child = &world.state.children[&id(worker)];
            let goes = child.role == Role::Leaving || child.killed || child.cut_ns.is_some();
            match goes {
                true => world.ends(worker, Ending::Code(0)),
                false => {
                    (80..82).for_each(|port| world.serves(worker, port));
                    world.says_ready(worker);
                }
            }
        }
        world.pass(1_000);
        check(world);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn slots_and_workers_fit_whatever_happens(
        steps in prop::collection::vec(any_step(), 1..120),
        workers in 1u16..5,
        by_message in any::<bool>(),
        starts_a_turn in prop::sample::select(&[0, 1, usize::MAX][..]),
    ) {
        let ready_after =
            if by_message { ReadyAfter::Message } else { ReadyAfter::Listening };
        let rules = Rules { hang_kill_ns: Some(500 * MS), ready_after, ..rules() };
        let mut world = World::new(rules, workers);
        world.starts_a_turn = starts_a_turn;
        let mut tickets = Vec::new();
        for step in steps {
            tickets.extend(take(&mut world, step));
            check(&world);
        }
        goes_well(&mut world);
        let unfinished: Vec<_> =
            tickets.iter().filter(|one| world.outcome(**one).is_none()).collect();
        match world.state.stage {
            RunStage::Serving => {
                let filled = world.state.slots.iter().all(|slot| {
                    matches!(slot.occupancy, Occupancy::Current(_) | Occupancy::GivenUp)
                });
                prop_assert!(filled, "{:?}", world.state);
                prop_assert!(!world.state.is_reloading());
                let count = world.currents().into_iter().flatten().count();
                prop_assert_eq!(world.alive().len(), count);
            }
            _ => prop_assert!(world.state.is_over(), "{:?}", world.state),
        }
        prop_assert!(unfinished.is_empty(), "{unfinished:?} in {:?}", world.state);
        world.state.stop("the test is over".into(), GRACE, world.now_ns);
        world.act();
        world.alive().into_iter().for_each(|one| world.ends(one, Ending::Code(0)));
        prop_assert!(world.state.is_over());
    }

    #[test]
    fn a_reload_never_leaves_fewer_workers_that_serve(
        workers in 1u16..5,
        start_ms in 0u64..500,
    ) {
        let mut world = World::serving(rules(), workers);
        world.reloads();
        while world.state.is_reloading() {
            let alive = world.alive();
            let serving = alive.iter().filter(|one| {
                let child = &world.state.children[&id(**one)];
                child.role == Role::Current && child.serving_since_ns.is_some()
            });
            prop_assert_eq!(serving.count(), usize::from(workers));
            prop_assert!(alive.len() <= usize::from(workers) + 1);
            for one in alive {
                match world.state.children[&id(one)].role {
                    Role::Leaving => world.ends(one, Ending::Code(0)),
                    Role::Successor => {
                        world.pass(start_ms);
                        world.serves(one, 80);
                    }
                    Role::Current => {}
                }
            }
            world.pass(500);
        }
        prop_assert_eq!(world.reloaded(), 1);
    }
}
