//! Simulates request latencies on an ideal machine: the bound printed beside the measurements.
//!
//! Models Poisson arrivals at servers that take one request at a time, first come first served, at
//! no cost for accepting or switching. Any loss of a discipline here comes from its decisions
//! alone. Deterministic for a given seed.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use fastrand::Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::work::{Sampler, ServiceTime, exponential};

/// Maximum number of servers.
pub const SERVERS_MAX: usize = 1_024;
/// Maximum number of requests in a simulation; each takes 8 bytes while it runs.
pub const REQUESTS_MAX: usize = 20_000_000;
/// The first tenth of the requests is not counted: the queues are not yet full.
const WARM_UP_ONE_IN: usize = 10;

/// How a request is assigned.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Discipline {
    /// One queue for all; a free server takes the first request. No assignment on arrival has a
    /// lower mean without knowing service times.
    CentralQueue,
    /// A random server, each with its own queue.
    Random,
    /// The servers in turn, each with its own queue.
    RoundRobin,
    /// The servers in turn, skipping those with more than one in flight and more than `factor`
    /// times the average; if none remains, the server with the fewest.
    RoundRobinRelative {
        /// The factor.
        factor: f64,
    },
}

/// Parameters of a simulation.
#[derive(Clone, Debug, PartialEq)]
pub struct Queue {
    /// What each server takes for a request, as a multiple of its service time.
    slowness: Vec<f64>,
    service: ServiceTime,
    utilisation: f64,
    requests: usize,
}

/// Latencies, from arrival to end of service, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latencies {
    /// Mean time in the queue.
    pub mean_wait_ns: f64,
    /// The mean.
    pub mean_ns: f64,
    /// The median.
    pub p50_ns: f64,
    /// The 90th percentile.
    pub p90_ns: f64,
    /// The 95th percentile.
    pub p95_ns: f64,
    /// The 98th percentile.
    pub p98_ns: f64,
    /// The 99th percentile.
    pub p99_ns: f64,
    /// The 99.9th percentile.
    pub p999_ns: f64,
    /// The maximum.
    pub max_ns: f64,
}

impl Queue {
    /// Validates the parameters.
    ///
    /// # Errors
    /// [`Error::Usage`] for no or too many servers or requests, and for a utilisation at which the
    /// queue is unstable.
    pub fn new(
        servers: usize,
        service: ServiceTime,
        utilisation: f64,
        requests: usize,
    ) -> Result<Self> {
        let refuse = |what: String, hint: String| Err(Error::usage(what, hint));
        if servers == 0 || servers > SERVERS_MAX {
            return refuse(format!("{servers} servers"), format!("ask for 1 to {SERVERS_MAX}"));
        }
        if !(utilisation > 0.0 && utilisation < 1.0) {
            let hint = "above 0 and below 1: at 1 the queue grows without end";
            return refuse(format!("a utilisation of {utilisation}"), hint.into());
        }
        if requests == 0 || requests > REQUESTS_MAX {
            return refuse(format!("{requests} requests"), format!("ask for 1 to {REQUESTS_MAX}"));
        }
        Ok(Self { slowness: vec![1.0; servers], service, utilisation, requests })
    }

    /// Makes servers slower, from the first on: each takes this multiple of the service times. The
    /// utilisation is that of all of them together.
    ///
    /// # Errors
    /// [`Error::Usage`] for more than there are, or a multiple that is not above 0.
    pub fn with_slowness(mut self, slowness: &[f64]) -> Result<Self> {
        let is_possible = |one: &f64| *one > 0.0 && one.is_finite();
        if slowness.len() > self.slowness.len() || !slowness.iter().all(is_possible) {
            let hint = "give at most one positive number for each server";
            return Err(Error::usage(format!("servers as slow as {slowness:?}"), hint));
        }
        self.slowness[..slowness.len()].copy_from_slice(slowness);
        Ok(self)
    }

    /// Runs the simulation. For a given seed, all disciplines see the same arrivals and service
    /// times.
    #[must_use]
    pub fn simulate(&self, discipline: Discipline, seed: u64) -> Latencies {
        let mut arrivals = Rng::with_seed(seed);
        let mut service = Sampler::new(self.service.clone(), arrivals.u64(..));
        let mut chooser = Chooser::new(discipline, self.slowness.len(), arrivals.u64(..));
        let capacity: f64 = self.slowness.iter().map(|one| one.recip()).sum();
        let between_ns = self.service.mean_ns() / (self.utilisation * capacity);
        let uncounted = self.requests / WARM_UP_ONE_IN;
        let mut latencies = Vec::with_capacity(self.requests - uncounted);
        let (mut now_ns, mut waited_ns) = (0.0, 0.0);
        for request in 0..self.requests {
            now_ns += between_ns * exponential(&mut arrivals);
            let needs_ns = whole(service.draw_ns());
            let (begins_ns, took_ns) = chooser.begin(now_ns, needs_ns, &self.slowness);
            if request >= uncounted {
                waited_ns += begins_ns - now_ns;
                latencies.push(begins_ns - now_ns + took_ns);
            }
        }
        summarize(latencies, waited_ns)
    }
}

fn summarize(mut latencies: Vec<f64>, waited_ns: f64) -> Latencies {
    latencies.sort_unstable_by(f64::total_cmp);
    let count = to_f64(latencies.len());
    Latencies {
        mean_wait_ns: waited_ns / count,
        mean_ns: latencies.iter().sum::<f64>() / count,
        p50_ns: per_mille(&latencies, 500),
        p90_ns: per_mille(&latencies, 900),
        p95_ns: per_mille(&latencies, 950),
        p98_ns: per_mille(&latencies, 980),
        p99_ns: per_mille(&latencies, 990),
        p999_ns: per_mille(&latencies, 999),
        max_ns: per_mille(&latencies, 1_000),
    }
}

/// The smallest value that is at least `rank` thousandths of the values.
fn per_mille(sorted: &[f64], rank: usize) -> f64 {
    sorted[(sorted.len() * rank).div_ceil(1_000).max(1) - 1]
}

/// State of the servers, per discipline.
enum Chooser {
    /// When each server becomes free, earliest first, as bit patterns: times are not negative, so
    /// the bits sort in the same order.
    Central(BinaryHeap<Reverse<(u64, usize)>>),
    /// When each server has finished its queue.
    Random(Vec<f64>, Rng),
    InTurn(Vec<f64>, usize),
    Relative(Relative),
}

impl Chooser {
    fn new(discipline: Discipline, servers: usize, seed: u64) -> Self {
        match discipline {
            Discipline::CentralQueue => Self::Central(
                (0..servers).map(|place| Reverse((0.0_f64.to_bits(), place))).collect(),
            ),
            Discipline::Random => Self::Random(vec![0.0; servers], Rng::with_seed(seed)),
            Discipline::RoundRobin => Self::InTurn(vec![0.0; servers], 0),
            Discipline::RoundRobinRelative { factor } => Self::Relative(Relative {
                ends_ns: vec![VecDeque::new(); servers],
                cursor: 0,
                in_flight: 0,
                factor,
            }),
        }
    }

    /// Assigns a request that arrives now. Returns when its service begins, and how long it takes.
    fn begin(&mut self, now_ns: f64, needs_ns: f64, slowness: &[f64]) -> (f64, f64) {
        let (free_ns, took_ns) = match self {
            Self::Central(servers) => {
                let mut first = servers.peek_mut().expect("there is a server");
                let (free_ns, place) = first.0;
                let begins_ns = f64::from_bits(free_ns).max(now_ns);
                let took_ns = needs_ns * slowness[place];
                *first = Reverse(((begins_ns + took_ns).to_bits(), place));
                return (begins_ns, took_ns);
            }
            Self::Random(servers, random) => {
                let place = random.usize(0..servers.len());
                (&mut servers[place], needs_ns * slowness[place])
            }
            Self::InTurn(servers, cursor) => {
                *cursor = (*cursor + 1) % servers.len();
                (&mut servers[*cursor], needs_ns * slowness[*cursor])
            }
            Self::Relative(servers) => return servers.begin(now_ns, needs_ns, slowness),
        };
        let begins_ns = free_ns.max(now_ns);
        *free_ns = begins_ns + took_ns;
        (begins_ns, took_ns)
    }
}

/// Servers in turn, skipping busy ones.
struct Relative {
    /// End times of each server's requests, the next one first.
    ends_ns: Vec<VecDeque<f64>>,
    cursor: usize,
    in_flight: usize,
    factor: f64,
}

impl Relative {
    fn begin(&mut self, now_ns: f64, needs_ns: f64, slowness: &[f64]) -> (f64, f64) {
        for server in &mut self.ends_ns {
            while server.front().is_some_and(|end_ns| *end_ns <= now_ns) {
                server.pop_front();
                self.in_flight -= 1;
            }
        }
        let place = self.choose();
        self.cursor = (place + 1) % self.ends_ns.len();
        let server = &mut self.ends_ns[place];
        let begins_ns = server.back().map_or(now_ns, |end_ns| end_ns.max(now_ns));
        let took_ns = needs_ns * slowness[place];
        server.push_back(begins_ns + took_ns);
        self.in_flight += 1;
        (begins_ns, took_ns)
    }

    /// The next server at or below the limit, or else the one with the fewest; ties go to the next
    /// in turn.
    fn choose(&self) -> usize {
        let count = self.ends_ns.len();
        let average = to_f64(self.in_flight) / to_f64(count);
        let limit = (self.factor * average).max(1.0);
        let mut turn = (0..count).map(|step| (self.cursor + step) % count);
        let accepts = |place: &usize| to_f64(self.ends_ns[*place].len()) <= limit;
        turn.clone()
            .find(accepts)
            .or_else(|| turn.by_ref().min_by_key(|place| self.ends_ns[*place].len()))
            .expect("there is a server")
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are bounded by REQUESTS_MAX")]
fn to_f64(count: usize) -> f64 {
    count as f64
}

#[expect(clippy::cast_precision_loss, reason = "service times stay far below 2^53 ns")]
fn whole(ns: u64) -> f64 {
    ns as f64
}
