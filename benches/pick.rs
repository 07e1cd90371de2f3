//! What it costs to choose a worker: the rotation alone, without a socket.
//!
//! The loads do not change while it runs, so this is the cost of the search, not of bookkeeping.

use std::hint::black_box;
use std::time::Duration;

use clusterlb::schedule::{Client, Limits, Order, Picker, Scheduler, WorkerLoad};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

/// A worker with this many connections in flight is overloaded.
const INFLIGHT_MAX: u32 = 100;

fn ready(in_flight: u32) -> WorkerLoad {
    WorkerLoad::ready(in_flight)
}

/// Everybody takes connections: the first look succeeds.
fn all_ready(workers: usize) -> Vec<WorkerLoad> {
    vec![ready(0); workers]
}

/// Every other worker is overloaded: every pick passes over one.
fn half_overloaded(workers: usize) -> Vec<WorkerLoad> {
    let full = |place| if place % 2 == 0 { INFLIGHT_MAX } else { 0 };
    (0..workers).map(|place| ready(full(place))).collect()
}

/// One worker is left: every pick goes all the way round, the worst that can happen.
fn one_ready(workers: usize) -> Vec<WorkerLoad> {
    let mut loads = vec![ready(INFLIGHT_MAX); workers];
    loads[workers / 2] = ready(0);
    loads
}

/// A case: its name, how its loads are made, and for how many workers.
type Case = (&'static str, fn(usize) -> Vec<WorkerLoad>, &'static [usize]);

fn pick(criterion: &mut Criterion) {
    let cases: [Case; 3] = [
        ("all ready", all_ready, &[2, 8, 64]),
        ("half overloaded", half_overloaded, &[2, 8, 64]),
        ("one ready", one_ready, &[64]),
    ];
    let mut group = criterion.benchmark_group("pick");
    for (name, make, sizes) in cases {
        for workers in sizes {
            let loads = make(*workers);
            let limits = Limits { inflight_max: Some(INFLIGHT_MAX), ..Limits::default() };
            let mut picker = Picker::new(Order::Rotation, limits);
            group.bench_function(BenchmarkId::new(name, workers), |bencher| {
                bencher.iter(|| picker.pick(black_box(&loads), Client::default()));
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = pick
}
criterion_main!(benches);
