//! Samples the number of connections that each worker holds during a run, from outside.
//!
//! In every server, a connection being served is a descriptor of the process that serves it. The
//! number of a worker's descriptors, less those it has when idle, comes from the kernel, is
//! comparable between servers and costs them nothing. A connection still in a backlog or in transit
//! to a worker is not counted. Workers that are threads share one descriptor table and have one
//! common curve.
//!
//! Owns the sampling, the number of samples kept, and their statistics. Does not judge them.

use std::fs;
use std::time::Duration;

use serde::Serialize;

/// Maximum number of samples kept. At the bound every other sample is dropped and the sampling
/// interval doubles, so that a run of any length keeps between half of them and all.
const LOOKS_MAX: usize = 200;
/// Initial sampling interval.
const INTERVAL: Duration = Duration::from_millis(5);

/// The samples and their statistics.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct InFlight {
    /// Sample times, from the start of the load.
    pub at_ms: Vec<f64>,
    /// Connections of each worker at those times; a single row where workers are threads.
    pub connections: Vec<Vec<u64>>,
    /// Mean over time of each row.
    pub mean: Vec<f64>,
    /// Maximum of each row, including samples that were dropped.
    pub max: Vec<u64>,
    /// Mean over time of the difference between the fullest and the emptiest worker.
    pub spread_mean: Option<f64>,
}

/// Samples the workers of a server under load.
#[derive(Debug)]
pub struct Watch {
    processes: Vec<u32>,
    looks: Looks,
}

impl Watch {
    /// Samples these workers or, if there are none, the server's only process. Call it before the
    /// load begins: descriptors open now are the baseline.
    #[must_use]
    pub fn new(workers: &[u32], root: u32) -> Self {
        let processes = if workers.is_empty() { vec![root] } else { workers.to_vec() };
        let mut watch = Self { looks: Looks::new(processes.len()), processes };
        watch.looks.rest(&watch.counts());
        watch
    }

    /// Takes a sample if one is due. `now` counts from the start of the load.
    pub fn look(&mut self, now: Duration) {
        if self.looks.is_due(now) {
            let counts = self.counts();
            self.looks.enter(now, counts);
        }
    }

    /// The result.
    #[must_use]
    pub fn finish(self) -> InFlight {
        self.looks.finish()
    }

    fn counts(&self) -> Vec<Option<u64>> {
        self.processes.iter().map(|pid| descriptors(*pid)).collect()
    }
}

/// Number of descriptors of a process; `None` if it has ended.
fn descriptors(pid: u32) -> Option<u64> {
    let temp_dir = format!("/proc/{pid}/fd");
    match fs::metadata(&temp_dir).ok()?.len() {
        // Before Linux 6.2 this directory reports no size, so its entries are counted.
        0 => Some(fs::read_dir(&temp_dir).ok()?.count() as u64),
        count => Some(count),
    }
}

/// Counts of several processes over time. Pure.
#[derive(Debug)]
struct Looks {
    at: Vec<Duration>,
    counts: Vec<Vec<Option<u64>>>,
    /// Minimum and maximum count of each process.
    extremes: Vec<Option<(u64, u64)>>,
    interval: Duration,
}

impl Looks {
    fn new(processes: usize) -> Self {
        Self {
            at: Vec::new(),
            counts: Vec::new(),
            extremes: vec![None; processes],
            interval: INTERVAL,
        }
    }

    /// Records the baseline.
    fn rest(&mut self, counts: &[Option<u64>]) {
        for (known, count) in self.extremes.iter_mut().zip(counts) {
            let Some(count) = *count else { continue };
            let (least, most) = known.unwrap_or((count, count));
            *known = Some((least.min(count), most.max(count)));
        }
    }

    fn is_due(&self, now: Duration) -> bool {
        self.at.last().is_none_or(|last| now >= *last + self.interval)
    }

    fn enter(&mut self, now: Duration, counts: Vec<Option<u64>>) {
        if self.at.len() == LOOKS_MAX {
            drop_every_other(&mut self.at);
            drop_every_other(&mut self.counts);
            self.interval *= 2;
        }
        self.rest(&counts);
        self.at.push(now);
        self.counts.push(counts);
    }

    fn finish(self) -> InFlight {
        let Self { at, counts, extremes, .. } = self;
        // A program opens other files now and then, some only at the first request. The
        // minimum ever seen is the number of descriptors that are not connections.
        let least = |place: usize| extremes[place].map_or(0, |(least, _)| least);
        let row = |place: usize| -> Vec<u64> {
            let own = counts.iter().map(|look| look[place]);
            own.map(|count| count.map_or(0, |count| count.saturating_sub(least(place)))).collect()
        };
        let connections: Vec<Vec<u64>> = (0..extremes.len()).map(row).collect();
        let max = extremes.iter().map(|seen| seen.map_or(0, |(least, most)| most - least));
        let spread: Vec<u64> = (0..at.len()).map(|look| spread(&connections, look)).collect();
        let several = connections.len() > 1;
        InFlight {
            at_ms: at.iter().map(|at| (at.as_secs_f64() * 1e6).round() / 1e3).collect(),
            mean: connections.iter().map(|row| mean(&at, row).unwrap_or(0.0)).collect(),
            max: max.collect(),
            spread_mean: mean(&at, &spread).filter(|_| several),
            connections,
        }
    }
}

fn drop_every_other<T>(values: &mut Vec<T>) {
    let mut place = 0;
    values.retain(|_| {
        place += 1;
        place % 2 == 1
    });
}

/// Difference between the fullest and the emptiest row at one sample.
fn spread(rows: &[Vec<u64>], look: usize) -> u64 {
    let counts = || rows.iter().map(|row| row[look]);
    counts().max().unwrap_or(0) - counts().min().unwrap_or(0)
}

/// Time-weighted mean: each count holds until the next sample. The last sample only ends the
/// previous interval; a single sample is its own mean.
fn mean(at: &[Duration], counts: &[u64]) -> Option<f64> {
    let whole_s = (at.last()?.saturating_sub(*at.first()?)).as_secs_f64();
    if whole_s <= 0.0 {
        return counts.first().map(|count| to_f64(*count));
    }
    let gaps = at.windows(2).map(|pair| pair[1].saturating_sub(pair[0]).as_secs_f64());
    let sum: f64 = gaps.zip(counts).map(|(gap_s, count)| gap_s * to_f64(*count)).sum();
    Some(sum / whole_s)
}

#[expect(clippy::cast_precision_loss, reason = "descriptors are counted in millions at most")]
fn to_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn what_is_open_at_rest_is_no_connection() {
        let mut looks = Looks::new(2);
        looks.rest(&[Some(10), Some(12)]);
        looks.enter(ms(0), vec![Some(14), Some(12)]);
        looks.enter(ms(30), vec![Some(10), Some(13)]);
        // A process that has ended holds no connections.
        looks.enter(ms(40), vec![None, Some(12)]);
        let found = looks.finish();
        assert_eq!(found.at_ms, [0.0, 30.0, 40.0]);
        assert_eq!(found.connections, [[4, 0, 0], [0, 1, 0]]);
        assert_eq!(found.max, [4, 1]);
        assert_eq!(found.mean, [3.0, 0.25]);
        assert_eq!(found.spread_mean, Some(3.25));
    }

    #[test]
    fn without_looks_or_with_one_there_is_still_an_answer() {
        let none = Looks::new(1).finish();
        assert_eq!((none.mean, none.max, none.spread_mean), (vec![0.0], vec![0], None));
        let mut looks = Looks::new(1);
        looks.rest(&[Some(3)]);
        looks.enter(ms(7), vec![Some(5)]);
        assert_eq!(looks.finish().mean, [2.0]);
    }

    #[test]
    fn sockets_of_a_process_are_seen() {
        // Other tests in this process open files too, so only the minimum is certain.
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let mut watch = Watch::new(&[], std::process::id());
        let pairs: Vec<(TcpStream, TcpStream)> = (0..200)
            .map(|_| {
                let client = TcpStream::connect(address).expect("a listener");
                (client, listener.accept().expect("a client").0)
            })
            .collect();
        watch.look(ms(1));
        drop(pairs);
        let found = watch.finish();
        assert!(found.max[0] >= 200, "{found:?}");
        assert_eq!(descriptors(u32::MAX), None);
    }

    proptest! {
        #[test]
        fn looks_are_bounded_and_spread_over_the_whole_run(
            gaps in prop::collection::vec(1_u64..20, 1..3_000),
        ) {
            let (mut looks, mut now, mut most) = (Looks::new(1), 0, 0);
            for (place, gap) in gaps.iter().enumerate() {
                now += gap;
                if looks.is_due(ms(now)) {
                    let count = place as u64 % 97;
                    most = most.max(count);
                    looks.enter(ms(now), vec![Some(count)]);
                    prop_assert!(looks.at.len() <= LOOKS_MAX);
                    prop_assert_eq!(looks.at.len(), looks.counts.len());
                }
            }
            // Samples come up to 20 ms late; dropping samples doubles both terms.
            let longest = looks.interval * (5 + 20) / 5;
            for pair in looks.at.windows(2) {
                prop_assert!(pair[1] - pair[0] <= longest, "{:?} to {:?}", pair[0], pair[1]);
            }
            prop_assert!(looks.at.last().is_some_and(|last| ms(now) - *last <= longest));
            let found = looks.finish();
            prop_assert!(found.mean[0] <= to_f64(found.max[0]));
            prop_assert!(found.max[0] <= most);
        }
    }
}
