//! What every policy must do, whatever the loads.

use proptest::prelude::*;

use super::super::{CREDITS_MAX, Status, WorkerLoad};
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
    (status, prop::bool::weighted(0.1), 0u32..9, credits, slow_start).prop_map(
        |(status, hung, in_flight, credits, slow_start_permille)| WorkerLoad {
            status,
            hung,
            in_flight,
            credits,
            slow_start_permille,
        },
    )
}

fn any_limits() -> impl Strategy<Value = Limits> {
    let factor = prop_oneof![Just(None), (1.0f32..3.0).prop_map(Some)];
    (prop::option::of(1u32..9), factor)
        .prop_map(|(inflight_max, overload_factor)| Limits { inflight_max, overload_factor })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    prop_oneof![Just(Policy::Rr), Just(Policy::Least), Just(Policy::Sticky)]
}

/// Says in the plainest way who can take a connection at all.
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
    (0..count).filter_map(|_| picker.pick(&loads, EVERYBODY)).map(|slot| slot.0).collect()
}

#[test]
fn nobody_means_none() {
    let mut picker = Picker::new(Policy::Rr, Limits::default());
    assert_eq!(pick(&mut picker, &[], EVERYBODY), None);
    assert_eq!(pick(&mut picker, &[WorkerLoad::default(); 3], EVERYBODY), None);
}

#[test]
fn a_full_turn_visits_everybody_in_order() {
    let mut picker = Picker::new(Policy::Rr, Limits::default());
    assert_eq!(picks(&mut picker, &[WorkerLoad::ready(0); 4], 8), [0, 1, 2, 3, 0, 1, 2, 3]);
}

#[test]
fn each_stage_counts_whom_it_passed_over() {
    let limits = Limits { inflight_max: Some(5), overload_factor: Some(1.0) };
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
    assert_eq!(pick(&mut picker, &loads, EVERYBODY), Some(Slot(7)));
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
    let limits = Limits { inflight_max: Some(100), overload_factor: None };
    let mut picker = Picker::new(Policy::Rr, limits);
    assert_eq!(pick(&mut picker, &[WorkerLoad::ready(100)], EVERYBODY), None);
    assert_eq!(pick(&mut picker, &[WorkerLoad::ready(95)], EVERYBODY), None);
    assert!(!picker.has_room(&row(&[WorkerLoad::ready(95)])));
    assert_eq!(pick(&mut picker, &[WorkerLoad::ready(90)], EVERYBODY), Some(Slot(0)));
    assert_eq!(pick(&mut picker, &[WorkerLoad::ready(95)], EVERYBODY), Some(Slot(0)));
}

#[test]
fn a_small_limit_is_left_with_the_first_connection_that_ends() {
    for limit in 1..10 {
        let limits = Limits { inflight_max: Some(limit), overload_factor: None };
        let mut picker = Picker::new(Policy::Rr, limits);
        assert_eq!(pick(&mut picker, &[WorkerLoad::ready(limit)], EVERYBODY), None);
        assert_eq!(pick(&mut picker, &[WorkerLoad::ready(limit - 1)], EVERYBODY), Some(Slot(0)));
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
        assert!(home == other || home == Slot(3));
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

/// What happens to a row between two choices.
#[derive(Clone, Debug)]
enum Change {
    /// Somebody's load becomes another.
    Load(prop::sample::Index, WorkerLoad),
    /// Whoever was chosen last has done with so many.
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
    fn only_those_who_can_are_chosen_and_somebody_is_if_anybody_can(
        loads in prop::collection::vec(any_load(), 1..70),
        limits in any_limits(),
        policy in any_policy(),
        clients in prop::collection::vec(any::<u64>(), 1..50),
    ) {
        let mut picker = Picker::new(policy, limits);
        for client in clients {
            // Nobody rests in a fresh picker, and these loads do not change.
            let somebody = loads.iter().any(|load| can(load, &limits));
            prop_assert_eq!(picker.has_room(&row(&loads)), somebody);
            match pick(&mut picker, &loads, Client(client)) {
                Some(slot) => prop_assert!(can(&loads[slot.index()], &limits)),
                None => prop_assert!(!loads.iter().any(|load| can(load, &limits))),
            }
        }
    }

    #[test]
    fn nobody_above_the_average_is_chosen_while_somebody_is_not(
        in_flight in prop::collection::vec(0u32..30, 1..40),
        factor in 1.0f32..2.0,
        client in any::<u64>(),
    ) {
        let loads: Vec<_> = in_flight.iter().map(|count| WorkerLoad::ready(*count)).collect();
        let limits = Limits { inflight_max: None, overload_factor: Some(factor) };
        let share = model::share(&loads, factor).expect("everybody is ready");
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
        let limits = Limits { inflight_max: None, overload_factor: None };
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
    fn least_never_passes_over_somebody_with_less(
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
    fn whoever_becomes_eligible_is_served_within_one_turn(
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
