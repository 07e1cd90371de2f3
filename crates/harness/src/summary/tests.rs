//! Summaries and sentences for synthetic trials.

use std::time::Duration;

use super::super::trial::Percentiles;
use super::*;

fn outcome(target: &str, repeat: usize, p99_us: f64, counts_for: &[Aspect]) -> Outcome {
    let response = Percentiles { p99_us: Some(p99_us), ..Percentiles::default() };
    let (rate_per_s, server_cpu_us_per_request) = (100.0, 3.0);
    let record = Record { response, rate_per_s, server_cpu_us_per_request, ..Record::default() };
    Outcome {
        scenario: Scenario::Short,
        target: target.parse().expect("a target"),
        repeat,
        started_unix_ms: 0,
        counts_for: counts_for.to_vec(),
        failure: None,
        record: Some(record),
    }
}

fn knobs() -> Knobs {
    Knobs {
        workers: 4,
        rate_per_s: 1.0,
        connections: 1,
        duration: Duration::from_secs(1),
        warm_up: Duration::ZERO,
        seed: 1,
    }
}

fn compared(trials: &[Outcome]) -> Comparisons {
    let targets = [Target::RR, "none:uring".parse().expect("a target")];
    Comparisons::of(Scenario::Short, &targets, Vec::new(), trials, &knobs())
}

#[test]
fn pairs_are_compared_round_by_round() {
    let drift = [10.0, 20.0, 40.0, 80.0, 160.0, 320.0];
    let trials: Vec<Outcome> = drift
        .iter()
        .enumerate()
        .flat_map(|(repeat, p99_us)| {
            [
                outcome("rr", repeat, *p99_us, &Aspect::ALL),
                outcome("none:uring", repeat, 2.0 * p99_us, &Aspect::ALL),
            ]
        })
        .collect();
    let found = compared(&trials);
    let value = found.summaries[1].value("p99_us").expect("measured");
    let ratio = value.ratio_to_first.expect("six rounds");
    assert_eq!((ratio.interval.low, ratio.interval.high), (2.0, 2.0));
    assert_eq!(ratio.verdict, Verdict::SecondLower);
    assert_eq!(found.summaries[0].value("p99_us").and_then(|value| value.ratio_to_first), None);
    assert!(found.words[0].contains("99th percentile × 2.00 [2.00, 2.00]"), "{found:?}");
    assert!(found.words[0].contains("rate no difference shown"));
}

#[test]
fn what_does_not_count_leaves_too_few() {
    let trials: Vec<Outcome> = (0..6)
        .flat_map(|repeat| {
            let all_but_one: &[Aspect] = if repeat == 3 { &[] } else { &Aspect::ALL };
            [
                outcome("rr", repeat, 5.0, all_but_one),
                outcome("none:uring", repeat, 5.0, &Aspect::ALL),
            ]
        })
        .collect();
    let found = compared(&trials);
    let first = &found.summaries[0];
    assert_eq!((first.trials, first.speed_trials, first.cost_trials), (6, 5, 5));
    let value = first.value("p99_us").expect("measured");
    assert_eq!((value.standing, value.trials, value.interval), (Standing::Counts, 5, None));
    assert!(found.words[0].contains("too few rounds"));
    assert_eq!(found.too_few.len(), 2, "{:?}", found.too_few);
    assert!(found.too_few[0].starts_with("rr: 5 of 6 trials count for rate and latencies"));
    let none: Vec<Outcome> = (0..6).map(|repeat| outcome("rr", repeat, 7.0, &[])).collect();
    let found_none = compared(&none);
    let value = found_none.summaries[0].value("p99_us").expect("for orientation");
    let told = (value.median, value.standing, value.trials, value.interval);
    assert_eq!(told, (7.0, Standing::Orientation, 0, None));
    // A measure that was never taken has no median.
    assert!(found.summaries[0].value("p50_us").is_none());
}

#[test]
fn a_busy_generator_leaves_a_closed_loop_what_it_is_about() {
    let in_scenario = |scenario: Scenario| {
        let trials: Vec<Outcome> = (0..12)
            .map(|place| {
                let target = ["rr", "none:uring"][place % 2];
                Outcome { scenario, ..outcome(target, place / 2, 5.0, &[Aspect::Cost]) }
            })
            .collect();
        let targets = [Target::RR, "none:uring".parse().expect("a target")];
        Comparisons::of(scenario, &targets, Vec::new(), &trials, &knobs())
    };
    let capacity = in_scenario(Scenario::Capacity);
    assert_eq!(capacity.too_few, Vec::<String>::new());
    let other = &capacity.summaries[1];
    assert_eq!((other.trials, other.speed_trials, other.cost_trials), (6, 0, 6));
    let cost = other.value("server_cpu_us_per_request").expect("measured");
    assert_eq!((cost.standing, cost.trials), (Standing::Counts, 6));
    assert!(cost.ratio_to_first.is_some());
    let standing = |key| other.value(key).map(|value| (value.standing, value.ratio_to_first));
    assert_eq!(standing("rate_per_s"), Some((Standing::AtLeast, None)));
    assert_eq!(standing("p99_us"), Some((Standing::Orientation, None)));
    // An open loop counts latencies from the planned start, and they are its main result.
    let short = in_scenario(Scenario::Short);
    assert_eq!(short.too_few.len(), 2);
    let rate = short.summaries[1].value("rate_per_s").map(|value| value.standing);
    assert_eq!(rate, Some(Standing::Orientation));
}

#[test]
fn the_bound_stands_beside_requests_of_known_cost() {
    let bound = ideal(Scenario::Heavy(70), &knobs()).expect("a bound");
    assert!(bound.central_queue.p99_ns < bound.round_robin.p99_ns);
    assert!(bound.central_queue.mean_ns < bound.random.mean_ns);
    assert_eq!(ideal(Scenario::Short, &knobs()), None);
}

#[test]
fn the_bound_is_that_of_trials_as_long_as_the_measured_ones() {
    // Eight workers that take 1.49 ms on average, at 70 %.
    let knobs = Knobs { workers: 8, ..knobs() };
    let bound = ideal(Scenario::Heavy(70), &knobs).expect("a bound");
    assert_eq!((bound.runs, bound.requests), (SIMULATED_RUNS_MAX, 3_758));
    // Chance decides in so short a trial, and the report says so.
    let (low, high) = (bound.central_queue_low, bound.central_queue_high);
    assert!(high.p98_ns > 4.0 * low.p98_ns, "{low:?} {high:?}");
    let caution = bound.caution().expect("a caution");
    assert!(caution.starts_with("Even one ideal queue has, in nine of ten trials of 3758"));
    assert!(caution.contains("p98 between"), "{caution}");
    let certain = Ideal { central_queue_low: bound.central_queue, ..bound };
    let certain = Ideal { central_queue_high: bound.central_queue, ..certain };
    assert_eq!(certain.caution(), None);
}

#[test]
fn all_simulated_requests_together_are_bounded() {
    assert_eq!(simulated(0), (SIMULATED_RUNS_MAX, 1));
    assert_eq!(simulated(SIMULATED_REQUESTS_MAX / 2), (2, SIMULATED_REQUESTS_MAX / 2));
    assert_eq!(simulated(usize::MAX), (1, SIMULATED_REQUESTS_MAX));
}
