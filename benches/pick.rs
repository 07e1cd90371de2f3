//! Cost of choosing a worker, without sockets: the search alone, and including the roster's
//! bookkeeping.
//!
//! Every filter stage is on, including the relative one. In the first group the loads are constant,
//! so that it shows the cost of the search; its cases run from best to worst. In the second group
//! the roster counts every choice. With `observed`, each worker has five connections and finishes
//! the oldest after every choice, which the roster is told, so the loads change as in a real run.
//! With `one serves less`, one worker does not serve every listener.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::Duration;

use clusterlb_schedule::id::{ListenerId, Slot};
use clusterlb_schedule::{
    Client, CreditRule, Limits, Loads, Picker, Policy, Roster, Sample, Scheduler, SchedulerConfig,
    SchedulerFactory, Status, WorkerLoad,
};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

/// In-flight limit of a worker.
const INFLIGHT_MAX: u32 = 100;
const SIZES: [usize; 3] = [2, 8, 64];

fn ready(in_flight: u32) -> WorkerLoad {
    WorkerLoad::ready(in_flight)
}

/// All workers are eligible, with loads as even as a rotation leaves them: the first look succeeds.
fn even(workers: usize) -> Vec<WorkerLoad> {
    vec![ready(5); workers]
}

/// Every other worker is above the average: every pick skips one.
fn uneven(workers: usize) -> Vec<WorkerLoad> {
    (0..workers).map(|place| ready(if place % 2 == 0 { 9 } else { 5 })).collect()
}

/// Every filter stage rejects a worker: one of eight is left.
fn every_stage(workers: usize) -> Vec<WorkerLoad> {
    let load = |place| match place % 8 {
        0 => ready(5),
        1 => ready(9),
        2 => WorkerLoad { credits: 0, ..ready(5) },
        3 => ready(INFLIGHT_MAX),
        4 => WorkerLoad { status: Status::Full, ..ready(5) },
        5 => WorkerLoad { hung: true, ..ready(5) },
        6 => WorkerLoad { status: Status::Draining, ..ready(5) },
        _ => WorkerLoad::default(),
    };
    (0..workers).map(load).collect()
}

/// One worker is eligible: every pick goes all the way round, the worst case.
fn one_left(workers: usize) -> Vec<WorkerLoad> {
    let mut loads = vec![ready(9); workers];
    loads[workers / 2] = ready(5);
    loads
}

/// The only worker at or below the average is not eligible: every pick goes all the way round and
/// then searches for the least loaded.
fn fallback(workers: usize) -> Vec<WorkerLoad> {
    let mut loads = vec![ready(9); workers];
    loads[workers / 2] = WorkerLoad { credits: 0, ..ready(5) };
    loads
}

/// A case: its name and a function that makes its loads.
type Case = (&'static str, fn(usize) -> Vec<WorkerLoad>);

fn pick(criterion: &mut Criterion) {
    let cases: [Case; 5] = [
        ("even", even),
        ("uneven", uneven),
        ("every stage", every_stage),
        ("one left", one_left),
        ("fallback", fallback),
    ];
    let mut group = criterion.benchmark_group("pick");
    for (name, make) in cases {
        for workers in SIZES {
            let loads: Loads = make(workers).into_iter().collect();
            let limits = Limits { inflight_max: Some(INFLIGHT_MAX), ..Limits::default() };
            let mut picker = Picker::new(Policy::Rr, limits);
            group.bench_function(BenchmarkId::new(name, workers), |bencher| {
                bencher.iter(|| picker.pick(black_box(&loads), Client::default()));
            });
        }
    }
    group.finish();
}

/// A scheduler as a user of the library would write it, equal to the built-in one.
struct Foreign(Picker);

impl Scheduler for Foreign {
    fn pick(&mut self, loads: &Loads, client: Client) -> Option<Slot> {
        self.0.pick(loads, client)
    }
}

/// A roster whose workers do not run out of credits during the benchmark.
fn roster(scheduler: Option<SchedulerFactory>, workers: usize) -> Roster {
    let scheduling = SchedulerConfig {
        scheduler,
        credits: CreditRule::Fixed(u32::MAX),
        credits_max: u32::MAX,
        slow_start_ns: 0,
        ..SchedulerConfig::default()
    };
    let mut roster = Roster::new(Policy::Rr, scheduling, 2);
    for slot in (0..).map(Slot::new).take(workers) {
        roster.attach(slot, 0);
        roster.join(slot, ListenerId::new(0));
        roster.join(slot, ListenerId::new(1));
    }
    roster
}

/// A roster with workers that finish their oldest connection after each choice.
struct Observed {
    roster: Roster,
    claimed: Vec<u64>,
    /// Chosen workers whose loads have not been updated since.
    chosen: VecDeque<Slot>,
}

impl Observed {
    fn new(mut roster: Roster, workers: usize) -> Self {
        let chosen: VecDeque<_> = (0..workers * 5)
            .filter_map(|_| roster.pick(ListenerId::new(0), Client::default()))
            .collect();
        assert_eq!(chosen.len(), workers * 5, "no worker runs out of credits");
        Self { roster, claimed: vec![0; workers], chosen }
    }

    fn pick(&mut self) {
        let chosen = self.roster.pick(black_box(ListenerId::new(0)), Client::default());
        self.chosen.extend(chosen);
        let Some(slot) = self.chosen.pop_front() else { return };
        let claimed = &mut self.claimed[slot.index()];
        *claimed += 1;
        let sample = Sample { claimed: *claimed, finished: *claimed, ..Sample::default() };
        self.roster.observe(slot, sample, 1);
    }
}

fn pick_by_roster(criterion: &mut Criterion) {
    let picker = || Picker::new(Policy::Rr, Limits::default());
    let foreign = SchedulerFactory::new(move |_| Box::new(Foreign(picker())));
    let mut group = criterion.benchmark_group("roster");
    for workers in SIZES {
        for (name, factory) in [("built in", None), ("foreign", Some(foreign.clone()))] {
            let mut roster = roster(factory, workers);
            group.bench_function(BenchmarkId::new(name, workers), |bencher| {
                bencher.iter(|| roster.pick(black_box(ListenerId::new(0)), Client::default()));
            });
        }
    }
    for workers in SIZES {
        let mut observed = Observed::new(roster(None, workers), workers);
        group.bench_function(BenchmarkId::new("observed", workers), |bencher| {
            bencher.iter(|| observed.pick());
        });
        // One worker does not serve the other listener, so each listener has its own row of loads.
        let mut apart = roster(None, workers);
        apart.leave(Slot::new(0), ListenerId::new(1));
        group.bench_function(BenchmarkId::new("one serves less", workers), |bencher| {
            bencher.iter(|| apart.pick(black_box(ListenerId::new(0)), Client::default()));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = pick, pick_by_roster
}
criterion_main!(benches);
