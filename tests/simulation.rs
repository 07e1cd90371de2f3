//! A deterministic simulation of roster, scoreboard and channels: thousands of runs with faults
//! drawn from the seed, with all invariants checked after every step.
//!
//! The roster is the real one; primary, kernel and workers are models. `CLUSTERLB_SEED` selects a
//! single seed.

#[path = "simulation/checks.rs"]
mod checks;
#[path = "simulation/dispatch.rs"]
mod dispatch;
#[path = "simulation/front.rs"]
mod front;
#[path = "simulation/plan.rs"]
mod plan;
#[path = "simulation/worker.rs"]
mod worker;
#[path = "simulation/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use clusterlb_harness::queueing::{Discipline, Queue, Speed};
use clusterlb_harness::work::ServiceTime;
use clusterlb_schedule::{CREDITS_MAX, CreditRule, Policy};
use plan::{FOR_GOOD, Fault, MILLISECOND, Plan, START_NS, Strike};
use world::{Place, Record, World};

/// Number of seeds per test run.
const SEEDS: u64 = 3_000;

/// Runs a plan; a failure names its seed.
fn run(plan: Plan) -> World {
    let seed = plan.seed;
    let mut world = World::new(plan);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.run())) {
        eprintln!(
            "seed {seed} failed in step {} at {} us; alone: CLUSTERLB_SEED={seed} cargo test \
             --test simulation; {:?}",
            world.step,
            (world.now_ns - START_NS) / 1_000,
            world.plan,
        );
        std::panic::resume_unwind(panic);
    }
    world
}

/// The requested seed, or all of them.
fn seeds(count: u64) -> std::ops::Range<u64> {
    match std::env::var("CLUSTERLB_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("CLUSTERLB_SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..count,
    }
}

#[test]
fn nothing_is_lost_and_nothing_is_served_twice_whatever_fails() {
    let (mut redispatched, mut aborted, mut returns) = (0, 0, 0);
    for seed in seeds(SEEDS) {
        let world = run(Plan::storm(seed));
        redispatched += world.front.redispatched;
        aborted += world.aborted;
        returns = world.records.iter().fold(returns, |most, record| most.max(record.returns));
    }
    println!("{redispatched} came back, one of them {returns} times; {aborted} were aborted");
}

#[test]
fn a_worker_that_stays_stopped_delays_only_its_credits() {
    for seed in seeds(72) {
        let fixed = u32::try_from(seed % 24).expect("it is small");
        let (rule, credits) = match fixed {
            0..8 => (CreditRule::Adaptive, CREDITS_MAX),
            _ => (CreditRule::Fixed(fixed), fixed),
        };
        let service = ServiceTime::Exponential { mean_ns: MILLISECOND };
        let mut plan = Plan::calm(seed, 8, service, 0.6, 1_000);
        plan.scheduling.credits = rule;
        let at_ns = plan.arrivals[500 + usize::from(seed.to_le_bytes()[0] % 100)];
        let slot = usize::from(seed.to_le_bytes()[0] % 8);
        plan.strikes = vec![Strike { at_ns, slot, fault: Fault::Stop(FOR_GOOD) }];
        let hang_after_ns = plan.scheduling.hang_after_ns.expect("a default");
        let world = run(plan);
        let stopped = world.stopped.expect("one was stopped");
        let given = stopped.exposed + stopped.later;
        assert!(given <= credits as usize, "seed {seed}: {given} given, {credits} credits");
        let suspected_ns = stopped.suspected_ns.expect("something was left with it");
        assert!(suspected_ns <= at_ns + 2 * hang_after_ns, "seed {seed}: suspected late");
        let late = |record: &&Record| record.finished_ns - record.came_ns > hang_after_ns;
        let later = world.records.iter().filter(|record| record.came_ns > suspected_ns);
        assert_eq!(later.filter(late).count(), 0, "seed {seed}: delayed after the suspicion");
    }
}

#[test]
fn a_listener_whose_only_worker_is_stopped_holds_up_no_other_listener() {
    for seed in seeds(48) {
        let service = ServiceTime::Exponential { mean_ns: MILLISECOND };
        let mut plan = Plan::calm(seed, 4, service, 0.25, 1_000);
        let slot = usize::from(seed.to_le_bytes()[0] % 4);
        plan.listeners = 2;
        plan.served[slot] = 0b11;
        let at_ns = plan.arrivals[300];
        plan.strikes = vec![Strike { at_ns, slot, fault: Fault::Stop(FOR_GOOD) }];
        let hang_after_ns = plan.scheduling.hang_after_ns.expect("a default");
        let world = run(plan);
        // By then it is skipped, because of its loop or its unclaimed connections.
        let known_ns = at_ns + 2 * hang_after_ns;
        let common = world.records.iter().filter(|record| record.listener == 0);
        let later: Vec<&Record> = common.filter(|record| record.came_ns > known_ns).collect();
        assert!(later.len() > 50, "seed {seed}: hardly any came");
        for record in later {
            let took_ns = record.finished_ns.saturating_sub(record.came_ns);
            assert_eq!(record.place, Place::Finished, "seed {seed}: {record:?}");
            assert!(took_ns < hang_after_ns, "seed {seed}: {record:?} waited for another listener");
        }
        let others = world.records.iter().filter(|record| record.listener == 1);
        let waits = |record: &&Record| matches!(record.place, Place::Outside | Place::Queue);
        assert!(others.filter(waits).count() > 50, "seed {seed}: other workers served them");
    }
}

/// Runs a plan, and gives the percentiles of latency, without the first tenth of the connections.
fn percentiles(plan: Plan) -> impl Fn(usize) -> f64 {
    let world = run(plan);
    let counted = &world.records[world.records.len() / 10..];
    let mut took: Vec<u64> =
        counted.iter().map(|record| record.finished_ns - record.came_ns).collect();
    took.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53 ns")]
    move |percent| took[took.len() * percent / 100] as f64
}

/// Ratios of the 90th and 99th percentiles of latency to those of one central queue. `alone_ns` is
/// the 99th percentile of the service time alone, as far as it is known.
fn against_one_queue(policy: Policy, service: &ServiceTime, alone_ns: f64) -> (f64, f64) {
    let (seed, workers, utilisation, count) = (7, 8, 0.7, 30_000);
    let mut plan = Plan::calm(seed, workers, service.clone(), utilisation, count);
    plan.policy = policy;
    let percentile = percentiles(plan);
    let queue = Queue::new(workers, service.clone(), utilisation, count);
    let queue = queue.expect("within the bounds");
    let bound = queue.simulate(Discipline::CentralQueue, seed);
    (percentile(90) / bound.p90_ns, percentile(99) / bound.p99_ns.max(alone_ns))
}

#[test]
fn under_a_heavy_tail_rotation_comes_close_to_one_central_queue() {
    // One request in a hundred takes 50 ms, so chance decides on which side of this step the 99th
    // percentile of the bound lies. The fair reference is the step itself.
    let mix = against_one_queue(Policy::Rr, &ServiceTime::heavy(), 50_000_000.0);
    // Without a step. A rotation gives a second connection to a busy worker while others are idle,
    // which weighs more here than with the mix.
    let skewed = ServiceTime::LogNormal { mean_ns: MILLISECOND, variation: 3.0 };
    let rotation = against_one_queue(Policy::Rr, &skewed, 0.0);
    let least = against_one_queue(Policy::Least, &skewed, 0.0);
    println!("p90 and p99 over the bound: {mix:.2?} for the mix");
    println!("for a skewed one: {rotation:.2?} in rotation, {least:.2?} by the least in flight");
    for ((p90, p99), most) in [(mix, 1.5), (rotation, 2.0), (least, 1.7)] {
        assert!(p90 <= most && p99 <= most, "{p90:.2} and {p99:.2} times the bound, not {most}");
    }
}

/// Two of eight workers take four times as long as the others, as on unequal cores or beside other
/// programs. The 99th percentile of a policy over that of one central queue, in the median of the
/// seeds: a queue gives a slow worker whatever comes when it is idle.
fn with_two_slow_workers(policy: Policy) -> f64 {
    let service = ServiceTime::Exponential { mean_ns: MILLISECOND };
    let (slowness, utilisation, count) = (vec![4, 4, 1, 1, 1, 1, 1, 1], 0.7, 30_000);
    let ratio = |seed| {
        let mut plan = Plan::uneven(seed, slowness.clone(), service.clone(), utilisation, count);
        plan.policy = policy;
        let percentile = percentiles(plan);
        let queue = Queue::new(slowness.len(), service.clone(), utilisation, count);
        let queue = queue.and_then(|queue| queue.with_speeds(&[Speed::Times(4.0); 2], 6.5));
        let bound = queue.expect("within the bounds").simulate(Discipline::CentralQueue, seed);
        percentile(99) / bound.p99_ns
    };
    let mut ratios: Vec<f64> = (1..=5).map(ratio).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

#[test]
fn where_workers_are_unequal_the_fastest_beats_one_central_queue() {
    let fastest = with_two_slow_workers(Policy::Fastest);
    let [rr, least, central] =
        [Policy::Rr, Policy::Least, Policy::Central].map(with_two_slow_workers);
    println!(
        "p99 over one queue: fastest {fastest:.2}, rr {rr:.2}, least {least:.2}, central \
         {central:.2}"
    );
    assert!(fastest <= 0.7, "{fastest:.2} times one queue");
}

#[test]
fn one_queue_in_the_primary_has_the_tail_of_one_queue() {
    let mix = against_one_queue(Policy::Central, &ServiceTime::heavy(), 50_000_000.0);
    println!("p90 and p99 over the bound: {mix:.2?}");
    assert!(mix.0 <= 1.3 && mix.1 <= 1.1, "{mix:.2?}");
}

/// The 98th percentile in rotation over that of one central queue, in the median of the seeds, and
/// the same for the 90th.
fn heavy_tail_in_rotation(utilisation: f64) -> (f64, f64) {
    let (workers, count) = (8, 10_000);
    let queue = Queue::new(workers, ServiceTime::heavy(), utilisation, count);
    let queue = queue.expect("within the bounds");
    let ratios = |seed| {
        let mut plan = Plan::calm(seed, workers, ServiceTime::heavy(), utilisation, count);
        plan.publishes_claims = true;
        let percentile = percentiles(plan);
        let bound = queue.simulate(Discipline::CentralQueue, seed);
        (percentile(90) / bound.p90_ns, percentile(98) / bound.p98_ns)
    };
    let (mut p90, mut p98): (Vec<f64>, Vec<f64>) = (1..=3).map(ratios).unzip();
    p90.sort_unstable_by(f64::total_cmp);
    p98.sort_unstable_by(f64::total_cmp);
    (p90[1], p98[1])
}

#[test]
fn connections_behind_a_long_request_move_soon_enough_for_the_tail_of_one_queue() {
    let [usual, high] = [0.7, 0.85].map(heavy_tail_in_rotation);
    println!("p90 and p98 over one queue: {usual:.2?} at 70 %, {high:.2?} at 85 %");
    assert!(usual.0 <= 1.2 && usual.1 <= 1.2, "{usual:.2?}");
    assert!(high.0 <= 1.2 && high.1 <= 1.5, "{high:.2?}");
}
