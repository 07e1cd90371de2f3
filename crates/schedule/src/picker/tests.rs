//! Properties of every policy, under any loads.

use proptest::prelude::*;

use super::super::{CREDITS_MAX, OverloadFactor, Status, WorkerLoad};
use super::*;

mod model;

use model::Model;

const EVERYBODY: Client = Client(0);

fn any_load() -> impl Strategy<Value = WorkerLoad> {
    let status = prop_oneof![
        1 => Just(Status::Dead),
        1 => Just(Status::Draining),
        1 => Just(Status::Full),
        5 => Just(Status::Ready),
    ];
    let credits = prop_oneof![1 => Just(0), 4 => 1..=CREDITS_MAX];
    let slow_start = prop_oneof![1 => 0u16..1000, 4 => Just(1000u16)];
    let usual = prop_oneof![1 => Just(0), 2 => 1u32..40, 1 => any::<u32>()];
    (status, prop::bool::weighted(0.1), 0u32..9, credits, slow_start, usual).prop_map(
        |(status, hung, in_flight, credits, slow_start_permille, usual_us)| WorkerLoad {
            status,
            hung,
            in_flight,
            credits,
            slow_start_permille,
            usual_us,
        },
    )
}

fn any_limits() -> impl Strategy<Value = Limits> {
    let factor = prop_oneof![
        Just(OverloadFactor::Auto),
        Just(OverloadFactor::Off),
        (1.0f32..3.0).prop_map(OverloadFactor::Times),
    ];
    (prop::option::of(1u32..9), factor)
        .prop_map(|(inflight_max, overload_factor)| Limits { inflight_max, overload_factor })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    prop::sample::select(&Policy::ALL[..5])
}

/// The limits as the policy sees them.
fn under(policy: Policy, limits: Limits) -> Limits {
    match (policy, limits.inflight_max) {
        (Policy::Central, None) => Limits { inflight_max: Some(1), ..limits },
        _ => limits,
    }
}

/// The plainest form of whether a worker can take a connection at all.
fn can(load: &WorkerLoad, limits: &Limits) -> bool {
    load.status == Status::Ready
        && !load.hung
        && load.credits > 0
        && limits.inflight_max.is_none_or(|limit| load.in_flight < limit)
}

fn row(loads: &[WorkerLoad]) -> Loads {
    loads.iter().copied().collect()
}

fn pick(picker: &mut Picker, loads: &[WorkerLoad], client: Client) -> Option<Slot> {
    picker.pick(&row(loads), client)
}

fn picks(picker: &mut Picker, loads: &[WorkerLoad], count: usize) -> Vec<u16> {
    let loads = row(loads);
    (0..count).filter_map(|_| picker.pick(&loads, EVERYBODY)).map(|slot| slot.get()).collect()
}

#[test]
fn without_eligible_workers_the_pick_is_none() {
    let mut picker = Picker::new(Policy::Rr, Limits::default());
    assert_eq!(pick(&mut picker, &[], EVERYBODY), None);
    assert_eq!(pick(&mut picker, &[WorkerLoad::default(); 3], EVERYBODY), None);
}

#[test]
fn a_full_turn_visits_every_worker_in_order() {
    let mut picker = Picker::new(Policy::Rr, Limits::default());
    assert_eq!(picks(&mut picker, &[WorkerLoad::ready(0); 4], 8), [0, 1, 2, 3, 0, 1, 2, 3]);
}

#[test]
fn each_stage_counts_whom_it_passed_over() {
    let limits = Limits { inflight_max: Some(5), overload_factor: OverloadFactor::Times(1.0) };
    let mut picker = Picker::new(Policy::Rr, limits);
    let ready = WorkerLoad::ready(0);
    let loads = [
        WorkerLoad::default(),
        WorkerLoad { hung: true, ..ready },
        WorkerLoad { status: Status::Draining, ..ready },
        WorkerLoad { status: Status::Full, ..ready },
        WorkerLoad::ready(5),
        WorkerLoad { credits: 0, ..ready },
        WorkerLoad::ready(4),
        ready,
    ];
    assert_eq!(pick(&mut picker, &loads, EVERYBODY), Some(Slot::new(7)));
    let expected = Skips {
        dead: 1,
        hung: 1,
        draining: 1,
        full: 1,
        at_limit: 1,
        out_of_credits: 1,
        above_average: 1,
        fallbacks: 0,
    };
    assert_eq!(picker.skips(), expected);
}

#[test]
fn one_connection_is_never_above_the_average() {
    let mut picker = Picker::new(Policy::Rr, Limits::default());
    let loads = [WorkerLoad::ready(1), WorkerLoad::ready(0)];
    assert_eq!(picks(&mut picker, &loads, 2), [0, 1]);
}

#[test]
fn a_worker_at_its_limit_comes_back_a_little_below_it() {
    let limits = Limits { inflight_max: Some(100), overload_factor: OverloadFactor::Off };
    let mut picker = Picker::new(Policy::Rr, limits);
    assert_eq!(pick(&mut picker, &[WorkerLoad::ready(100)], EVERYBODY), None);
    assert_eq!(pick(&mut picker, &[WorkerLoad::ready(95)], EVERYBODY), None);
    assert!(!picker.has_room(&row(&[WorkerLoad::ready(95)])));
    assert_eq!(pick(&mut picker, &[WorkerLoad::ready(90)], EVERYBODY), Some(Slot::new(0)));
    assert_eq!(pick(&mut picker, &[WorkerLoad::ready(95)], EVERYBODY), Some(Slot::new(0)));
}

#[test]
fn a_small_limit_is_left_with_the_first_connection_that_ends() {
    for limit in 1..10 {
        let limits = Limits { inflight_max: Some(limit), overload_factor: OverloadFactor::Off };
        let mut picker = Picker::new(Policy::Rr, limits);
        assert_eq!(pick(&mut picker, &[WorkerLoad::ready(limit)], EVERYBODY), None);
        assert_eq!(
            pick(&mut picker, &[WorkerLoad::ready(limit - 1)], EVERYBODY),
            Some(Slot::new(0))
        );
    }
}

#[test]
fn a_newcomer_is_not_flooded() {
    let mut picker = Picker::new(Policy::Rr, Limits::default());
    let newcomer = WorkerLoad { slow_start_permille: 100, ..WorkerLoad::ready(2) };
    let loads = [newcomer, WorkerLoad::ready(10), WorkerLoad::ready(10)];
    assert_eq!(picks(&mut picker, &loads, 3), [1, 2, 1]);
}

#[test]
fn a_client_stays_with_its_worker_and_only_the_clients_of_a_lost_one_move() {
    let mut picker = Picker::new(Policy::Sticky, Limits::default());
    let loads = [WorkerLoad::ready(1); 8];
    let mut without_three = loads;
    without_three[3] = WorkerLoad::default();
    let mut homes = [0; 8];
    for client in (0..1000).map(Client) {
        let home = pick(&mut picker, &loads, client).expect("everybody is ready");
        assert_eq!(pick(&mut picker, &loads, client), Some(home));
        homes[home.index()] += 1;
        let other = pick(&mut picker, &without_three, client).expect("seven are ready");
        assert!(home == other || home == Slot::new(3));
    }
    assert!(homes.iter().all(|count| (80..180).contains(count)), "{homes:?}");
}

#[test]
fn an_overloaded_home_sends_its_client_to_the_next() {
    let mut picker = Picker::new(Policy::Sticky, Limits::default());
    let mut loads = [WorkerLoad::ready(1); 4];
    let client = Client(7);
    let home = pick(&mut picker, &loads, client).expect("everybody is ready");
    loads[home.index()].in_flight = 50;
    let next = pick(&mut picker, &loads, client).expect("three are not overloaded");
    assert_ne!(next, home);
}

#[test]
fn one_queue_gives_to_idle_workers_and_waits_without_any() {
    let mut picker = Picker::new(Policy::Central, Limits::default());
    let mut loads = [WorkerLoad::ready(0); 3];
    for expected in [Some(0), Some(1), Some(2), None] {
        let slot = pick(&mut picker, &loads, EVERYBODY).map(Slot::index);
        assert_eq!(slot, expected);
        slot.into_iter().for_each(|place| loads[place].in_flight += 1);
    }
    assert!(!picker.has_room(&row(&loads)));
    let limits = Limits { inflight_max: Some(2), ..Limits::default() };
    let mut picker = Picker::new(Policy::Central, limits);
    assert_eq!(pick(&mut picker, &loads, EVERYBODY), Some(Slot::new(0)), "another limit holds");
}

#[test]
fn connections_go_to_workers_by_what_these_are_done_with_in_a_time() {
    let mut picker = Picker::new(Policy::Fastest, Limits::default());
    let times_us = [1_000, 1_000, 2_000, 4_000];
    let mut loads = times_us.map(|usual_us| WorkerLoad { usual_us, ..WorkerLoad::ready(0) });
    for _ in 0..110 {
        let slot = pick(&mut picker, &loads, EVERYBODY).expect("all are ready");
        loads[slot.index()].in_flight += 1;
    }
    // Differences below a half from the fastest are equal, so these count 1.5, 1.5, 2, 4.
    let shares = loads.map(|load| load.in_flight);
    assert_eq!(shares, [35, 35, 27, 13]);
}

#[test]
fn equal_workers_take_turns_and_unknown_ones_are_tried() {
    let mut picker = Picker::new(Policy::Fastest, Limits::default());
    let times_us = [1_000, 1_100, 0, 1_499, 9_000];
    let loads = times_us.map(|usual_us| WorkerLoad { usual_us, ..WorkerLoad::ready(0) });
    assert_eq!(picks(&mut picker, &loads, 8), [0, 1, 2, 3, 0, 1, 2, 3]);
}

#[test]
fn a_slow_worker_gets_something_when_the_fastest_has_sixteen() {
    let mut picker = Picker::new(Policy::Fastest, Limits::default());
    let fast = |in_flight| WorkerLoad { usual_us: 1_000, ..WorkerLoad::ready(in_flight) };
    let slow = WorkerLoad { usual_us: u32::MAX, ..WorkerLoad::ready(0) };
    assert_eq!(pick(&mut picker, &[fast(9), slow], EVERYBODY), Some(Slot::new(0)));
    assert_eq!(pick(&mut picker, &[fast(16), slow], EVERYBODY), Some(Slot::new(1)));
}

#[test]
fn a_client_moves_later_than_a_rotation_skips() {
    let factor = |policy| OverloadFactor::Auto.under(policy);
    assert_eq!((factor(Policy::Rr), factor(Policy::Sticky)), (Some(1.0), Some(1.25)));
    assert_eq!(OverloadFactor::Off.under(Policy::Sticky), None);
    let mut picker = Picker::new(Policy::Sticky, Limits::default());
    let mut loads = [WorkerLoad::ready(8); 8];
    let client = Client(7);
    let home = pick(&mut picker, &loads, client).expect("everybody is ready");
    // The average follows, a little: 8.25 times 1.25 is 10.3, and 8.375 times 1.25 is 10.5.
    loads[home.index()].in_flight = 10;
    assert_eq!(pick(&mut picker, &loads, client), Some(home));
    loads[home.index()].in_flight = 11;
    assert_ne!(pick(&mut picker, &loads, client), Some(home));
}

/// A change of the row between two choices.
#[derive(Clone, Debug)]
enum Change {
    /// A load changes.
    Load(prop::sample::Index, WorkerLoad),
    /// The worker that was chosen last finishes this many.
    Finish(u32),
    /// The row becomes shorter or longer.
    Length(usize),
    Nothing,
}

fn any_changed_load() -> impl Strategy<Value = Change> {
    let pair = (any::<prop::sample::Index>(), any_load());
    pair.prop_map(|(place, load)| Change::Load(place, load))
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => any_changed_load(),
        4 => (0u32..4).prop_map(Change::Finish),
        1 => (0usize..200).prop_map(Change::Length),
        8 => Just(Change::Nothing),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn sets_of_workers_come_to_the_same_as_one_after_the_other(
        mut loads in prop::collection::vec(any_load(), 0..200),
        limits in any_limits(),
        policy in any_policy(),
        steps in prop::collection::vec((any::<u64>(), any_change()), 1..60),
    ) {
        let (mut picker, mut model) = (Picker::new(policy, limits), Model::new(policy, limits));
        let mut sets = row(&loads);
        let mut last = None;
        for (client, change) in steps {
            match change {
                Change::Load(place, load) if !loads.is_empty() => {
                    let place = place.index(loads.len());
                    loads[place] = load;
                }
                Change::Finish(count) => {
                    let busy = last.and_then(|place: usize| loads.get_mut(place));
                    if let Some(load) = busy {
                        load.in_flight = load.in_flight.saturating_sub(count);
                    }
                }
                Change::Length(count) => {
                    loads.resize(count, WorkerLoad::ready(1));
                    sets = row(&loads);
                }
                _ => {}
            }
            loads.iter().enumerate().for_each(|(place, load)| sets.set(place, *load));
            prop_assert_eq!(&*sets, &*loads);
            prop_assert_eq!(picker.has_room(&sets), model.has_room(&loads));
            last = model.pick(&loads, Client(client));
            let slot = picker.pick(&sets, Client(client));
            prop_assert_eq!(slot.map(Slot::index), last);
            prop_assert_eq!(picker.skips(), model.skips);
            if let Some(load) = last.map(|place| &mut loads[place]) {
                load.in_flight += 1;
                load.credits -= 1;
            }
        }
    }
}

proptest! {
    #[test]
    fn only_eligible_workers_are_chosen_and_one_is_if_any_exists(
        loads in prop::collection::vec(any_load(), 1..70),
        limits in any_limits(),
        policy in any_policy(),
        clients in prop::collection::vec(any::<u64>(), 1..50),
    ) {
        let mut picker = Picker::new(policy, limits);
        let limits = under(policy, limits);
        for client in clients {
            // A fresh picker has no resting worker, and these loads do not change.
            let any_can = loads.iter().any(|load| can(load, &limits));
            prop_assert_eq!(picker.has_room(&row(&loads)), any_can);
            match pick(&mut picker, &loads, Client(client)) {
                Some(slot) => prop_assert!(can(&loads[slot.index()], &limits)),
                None => prop_assert!(!loads.iter().any(|load| can(load, &limits))),
            }
        }
    }

    #[test]
    fn no_worker_above_the_average_is_chosen_while_another_is_not(
        in_flight in prop::collection::vec(0u32..30, 1..40),
        factor in 1.0f32..2.0,
        client in any::<u64>(),
    ) {
        let loads: Vec<_> = in_flight.iter().map(|count| WorkerLoad::ready(*count)).collect();
        let limits = Limits { inflight_max: None, overload_factor: OverloadFactor::Times(factor) };
        let permille = limits.overload_factor.permille_under(Policy::Rr).expect("it is a number");
        let share = model::share(&loads, permille).expect("all ready");
        for policy in [Policy::Rr, Policy::Sticky] {
            let mut picker = Picker::new(policy, limits);
            let slot = pick(&mut picker, &loads, Client(client)).expect("all ready");
            let exists = loads.iter().any(|load| !model::above(load, share));
            prop_assert!(!exists || !model::above(&loads[slot.index()], share));
        }
    }

    #[test]
    fn shares_differ_by_one_at_most_while_the_eligible_stay_the_same(
        loads in prop::collection::vec(any_load(), 1..70),
        count in 1usize..500,
    ) {
        let limits = Limits { inflight_max: None, overload_factor: OverloadFactor::Off };
        let mut picker = Picker::new(Policy::Rr, limits);
        let mut shares = vec![0u32; loads.len()];
        for place in picks(&mut picker, &loads, count) {
            shares[usize::from(place)] += 1;
        }
        let pairs = loads.iter().zip(&shares);
        let shares: Vec<u32> =
            pairs.filter(|(load, _)| can(load, &limits)).map(|(_, share)| *share).collect();
        let most = shares.iter().max().copied().unwrap_or(0);
        prop_assert!(most - shares.iter().min().copied().unwrap_or(0) <= 1);
    }

    #[test]
    fn least_never_skips_a_worker_with_fewer_connections(
        in_flight in prop::collection::vec(0u32..30, 1..40),
        count in 1usize..100,
    ) {
        let mut loads: Vec<_> = in_flight.iter().map(|one| WorkerLoad::ready(*one)).collect();
        let mut picker = Picker::new(Policy::Least, Limits::default());
        for _ in 0..count {
            let slot = pick(&mut picker, &loads, EVERYBODY).expect("all ready");
            let least = loads.iter().map(|load| load.in_flight).min();
            prop_assert_eq!(Some(loads[slot.index()].in_flight), least);
            loads[slot.index()].in_flight += 1;
        }
    }

    #[test]
    fn no_worker_that_would_be_done_clearly_earlier_is_skipped(
        loads in prop::collection::vec((0u32..30, 1u32..1_000_000), 1..70),
    ) {
        let load =
            |(in_flight, usual_us)| WorkerLoad { usual_us, ..WorkerLoad::ready(in_flight) };
        let loads: Vec<_> = loads.into_iter().map(load).collect();
        let mut picker = Picker::new(Policy::Fastest, Limits::default());
        let slot = pick(&mut picker, &loads, EVERYBODY).expect("all ready");
        let least_us = u64::from(loads.iter().map(|load| load.usual_us).min().expect("some"));
        // Between half above the fastest and sixteen times it.
        let done_us = |load: &WorkerLoad| {
            (u64::from(load.in_flight) + 1) * u64::from(load.usual_us).min(16 * least_us)
        };
        let chosen_us = done_us(&loads[slot.index()]);
        for load in &loads {
            prop_assert!(chosen_us * 2 <= done_us(load) * 3 + 2 * u64::from(load.in_flight + 1));
        }
    }

    #[test]
    fn no_client_is_left_with_a_worker_above_the_bound(
        clients in prop::collection::vec(any::<u64>(), 1..400),
        workers in 1usize..40,
        factor in prop_oneof![Just(1.0f32), Just(1.25), 1.0f32..3.0],
    ) {
        let limits =
            Limits { inflight_max: None, overload_factor: OverloadFactor::Times(factor) };
        let mut picker = Picker::new(Policy::Sticky, limits);
        let mut loads = vec![WorkerLoad::ready(0); workers];
        for client in clients {
            let slot = pick(&mut picker, &loads, Client(client)).expect("all ready");
            loads[slot.index()].in_flight += 1;
        }
        let permille = limits.overload_factor.permille_under(Policy::Sticky).expect("a number");
        let (sum, count) = model::share(&loads, permille).expect("all ready");
        let most = sum.max(count) + count;
        let bound = |load: &WorkerLoad| u128::from(load.in_flight) * count <= most;
        prop_assert!(loads.iter().all(bound), "{sum}/{count} {loads:?}");
    }

    #[test]
    fn a_worker_that_becomes_eligible_is_served_within_one_turn(
        count in 1usize..70,
        warm_up in 0usize..200,
        late in any::<prop::sample::Index>(),
    ) {
        let late = late.index(count);
        let mut loads = vec![WorkerLoad::ready(0); count];
        loads[late].status = Status::Dead;
        let mut picker = Picker::new(Policy::Rr, Limits::default());
        picks(&mut picker, &loads, warm_up);
        loads[late].status = Status::Ready;
        prop_assert!(picks(&mut picker, &loads, count).iter().any(|one| usize::from(*one) == late));
    }
}
