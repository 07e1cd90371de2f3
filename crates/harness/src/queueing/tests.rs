//! Compares the simulation with closed forms, and checks its invariants for any input.

use proptest::prelude::*;

use super::*;

const MS: f64 = 1e6;
const REQUESTS: usize = 1_000_000;

fn simulate(servers: usize, service: &str, utilisation: f64, discipline: Discipline) -> Latencies {
    let service = service.parse().expect("a distribution");
    let queue = Queue::new(servers, service, utilisation, REQUESTS).expect("a queue");
    queue.simulate(discipline, 11)
}

fn close(found: f64, expected: f64, tolerance: f64) -> bool {
    (found / expected - 1.0).abs() < tolerance
}

/// Mean wait in M/M/k by Erlang's C formula, in units of the mean service time.
fn erlang_c_wait(servers: u32, utilisation: f64) -> f64 {
    let count = f64::from(servers);
    let offered = count * utilisation;
    // Erlang's B by recursion, then C from B.
    let blocked = (1..=servers)
        .fold(1.0, |blocked, server| offered * blocked / (f64::from(server) + offered * blocked));
    let waits = blocked / (1.0 - utilisation * (1.0 - blocked));
    waits / (count * (1.0 - utilisation))
}

#[test]
fn exponential_service_waits_as_erlang_says() {
    assert!(close(erlang_c_wait(1, 0.5), 1.0, 1e-12));
    assert!(close(erlang_c_wait(2, 0.5), 1.0 / 3.0, 1e-12));
    for (servers, utilisation) in [(1, 0.5), (2, 0.7), (8, 0.7), (8, 0.85), (64, 0.9)] {
        let found = simulate(servers, "exp:1ms", utilisation, Discipline::CentralQueue);
        let servers = u32::try_from(servers).expect("few");
        let expected = erlang_c_wait(servers, utilisation) * MS;
        assert!(close(found.mean_wait_ns, expected, 0.08), "{servers}: {found:?} {expected}");
    }
}

#[test]
fn one_server_waits_as_pollaczek_and_khinchine_say() {
    for text in ["1ms", "exp:1ms", "lognormal:1ms,cv=1.5", "heavy"] {
        for utilisation in [0.5, 0.7] {
            let service: ServiceTime = text.parse().expect("a distribution");
            let factor = (1.0 + service.squared_variation()) / 2.0;
            let expected = utilisation / (1.0 - utilisation) * factor * service.mean_ns();
            let found = simulate(1, text, utilisation, Discipline::CentralQueue);
            assert!(close(found.mean_wait_ns, expected, 0.06), "{text}: {found:?} {expected}");
            let total = expected + service.mean_ns();
            assert!(close(found.mean_ns, total, 0.06), "{text}: {found:?} {total}");
        }
    }
}

#[test]
fn chance_makes_of_many_servers_as_many_single_ones() {
    let alone = simulate(1, "exp:1ms", 0.7, Discipline::CentralQueue);
    let chance = simulate(8, "exp:1ms", 0.7, Discipline::Random);
    assert!(close(chance.mean_ns, alone.mean_ns, 0.05));
    // The latency of M/M/1 is exponential.
    assert!(close(alone.p99_ns, 100.0_f64.ln() * alone.mean_ns, 0.05));
    assert!(close(alone.p50_ns, 2.0_f64.ln() * alone.mean_ns, 0.05));
}

#[test]
fn a_heavy_tail_shows_what_a_discipline_is_worth() {
    let relative = Discipline::RoundRobinRelative { factor: 1.0 };
    for (discipline, p90_ms, mean_ms) in [
        (Discipline::Random, 66.0, 22.0),
        (Discipline::RoundRobin, 60.0, 19.7),
        (relative, 1.9, 2.7),
        (Discipline::CentralQueue, 2.3, 2.1),
    ] {
        let found = simulate(8, "heavy", 0.7, discipline);
        let (p90, mean) = (found.p90_ns / MS, found.mean_ns / MS);
        assert!(close(p90, p90_ms, 0.08), "{discipline:?}: p90 {p90} ms");
        assert!(close(mean, mean_ms, 0.08), "{discipline:?}: mean {mean} ms");
    }
}

#[test]
fn slow_servers_of_one_queue_make_its_tail() {
    let service: ServiceTime = "exp:1ms".parse().expect("a distribution");
    let queue = Queue::new(8, service, 0.7, REQUESTS).expect("a queue");
    let same = queue.clone().with_speeds(&[Speed::FULL; 8], 8.0).expect("eight servers");
    let equal = queue.simulate(Discipline::CentralQueue, 11);
    assert_eq!(same.simulate(Discipline::CentralQueue, 11), equal);
    let uneven = queue.clone().with_speeds(&[Speed::Times(4.0); 2], 6.5).expect("eight servers");
    let uneven = uneven.simulate(Discipline::CentralQueue, 11);
    assert!(close(uneven.p99_ns / MS, 9.0, 0.08), "{uneven:?}");
    let never = Speed::InTurns { stopped: Duration::from_millis(1), runs: Duration::ZERO };
    for refused in
        [&[Speed::FULL; 9][..], &[Speed::Times(0.0)], &[Speed::Times(f64::NAN)], &[never]]
    {
        assert!(queue.clone().with_speeds(refused, 8.0).is_err(), "{refused:?}");
    }
    assert!(queue.with_speeds(&[], 0.0).is_err());
}

#[test]
fn a_server_that_is_stopped_in_turns_begins_and_ends_a_request_while_it_runs() {
    let (stopped, runs) = (Duration::from_millis(4), Duration::from_micros(300));
    let speed = Speed::InTurns { stopped, runs };
    for (at_ms, needs_ms, takes_ms) in [
        // It runs from 4 ms on for 0.3 ms, and again from 8.3 ms on.
        (4.1, 0.1, 0.1),
        (4.1, 1.0, 4.2),
        (3.0, 0.1, 1.1),
        (0.0, 1.0, 8.3),
        (4.1, 5.0, 8.5),
    ] {
        let takes = speed.takes_ns(needs_ms * MS, at_ms * MS) / MS;
        assert!((takes - takes_ms).abs() < 1e-6, "{needs_ms} ms at {at_ms} ms take {takes} ms");
    }
}

#[test]
fn the_figures_of_many_runs_are_medians_with_the_range_of_nine_in_ten() {
    let queue = Queue::new(8, ServiceTime::heavy(), 0.7, 2_000).expect("a queue");
    let discipline = Discipline::CentralQueue;
    let found = queue.repeat(discipline, 11, 100);
    let mut seeds = fastrand::Rng::with_seed(11);
    let runs: Vec<Latencies> =
        (0..100).map(|_| queue.simulate(discipline, seeds.u64(..))).collect();
    for figure in [|of: &Latencies| of.p98_ns, |of: &Latencies| of.mean_wait_ns] {
        let within = |low: f64, high: f64| {
            runs.iter().filter(|run| (low..=high).contains(&figure(run))).count()
        };
        assert_eq!(within(0.0, figure(&found.low)), 5);
        assert_eq!(within(0.0, figure(&found.median)), 50);
        assert_eq!(within(figure(&found.high), f64::MAX), 6);
    }
    let single = queue.repeat(discipline, 11, 1);
    assert_eq!((single.low, single.high), (single.median, single.median));
}

#[test]
fn what_cannot_be_simulated_is_refused() {
    let refused = |servers, utilisation, requests| {
        let queue = Queue::new(servers, ServiceTime::heavy(), utilisation, requests);
        queue.expect_err("no queue").to_string()
    };
    assert_eq!(refused(0, 0.5, 10), "0 servers");
    assert_eq!(refused(8, 1.0, 10), "a utilisation of 1");
    assert_eq!(refused(8, f64::NAN, 10), "a utilisation of NaN");
    assert_eq!(refused(8, 0.5, 0), "0 requests");
}

fn any_discipline() -> impl Strategy<Value = Discipline> {
    prop_oneof![
        Just(Discipline::CentralQueue),
        Just(Discipline::Random),
        Just(Discipline::RoundRobin),
        (0.5..3.0).prop_map(|factor| Discipline::RoundRobinRelative { factor }),
    ]
}

proptest! {
    #[test]
    fn latencies_are_in_order_and_repeat(
        servers in 1usize..20,
        utilisation in 0.05..0.95,
        requests in 1usize..500,
        discipline in any_discipline(),
        seed in any::<u64>(),
    ) {
        let service = ServiceTime::heavy();
        let queue = Queue::new(servers, service, utilisation, requests).expect("a queue");
        let found = queue.simulate(discipline, seed);
        prop_assert!(found.p50_ns <= found.p90_ns && found.p90_ns <= found.p99_ns);
        prop_assert!(found.p99_ns <= found.p999_ns && found.p999_ns <= found.max_ns);
        prop_assert!(found.p50_ns >= MS - 1.0 && found.mean_wait_ns >= 0.0);
        prop_assert!(found.mean_ns >= found.mean_wait_ns);
        prop_assert_eq!(queue.simulate(discipline, seed), found);
    }

    #[test]
    fn one_server_knows_no_disciplines(
        utilisation in 0.05..0.95,
        discipline in any_discipline(),
        seed in any::<u64>(),
    ) {
        let queue = Queue::new(1, ServiceTime::heavy(), utilisation, 300).expect("a queue");
        let central = queue.simulate(Discipline::CentralQueue, seed);
        prop_assert_eq!(queue.simulate(discipline, seed), central);
    }
}
