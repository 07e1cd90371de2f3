//! Simulates request latencies on an ideal machine: the bound printed beside the measurements.
//!
//! Models Poisson arrivals at servers that take one request at a time, first come first served, at
//! no cost for accepting or switching. Any loss of a discipline here comes from its decisions
//! alone. Deterministic for a given seed.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use fastrand::Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::work::{Sampler, ServiceTime, exponential};

/// Maximum number of servers.
pub const SERVERS_MAX: usize = 1_024;
/// Maximum number of requests in a simulation; each takes 8 bytes while it runs.
pub const REQUESTS_MAX: usize = 20_000_000;
/// Before the requests that count, a tenth as many fill the queues.
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

/// How a server compares with one that does nothing but serve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    /// It takes this multiple of the service times.
    Times(f64),
    /// It is stopped and runs in turns, as `duty_cycle` makes it: it begins and ends a request only
    /// while it runs, and a request that waits for time to pass does so all the while.
    InTurns {
        /// How long it is stopped in each turn, which begins with that.
        stopped: Duration,
        /// How long it runs then.
        runs: Duration,
    },
}

/// Parameters of a simulation.
#[derive(Clone, Debug, PartialEq)]
pub struct Queue {
    speeds: Vec<Speed>,
    capacity: f64,
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

/// The figures of many simulated runs of the same length.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Repeated {
    /// The median of each figure.
    pub median: Latencies,
    /// The 5th percentile of each figure: nine of ten runs lie between this and `high`.
    pub low: Latencies,
    /// The 95th percentile of each figure.
    pub high: Latencies,
}

impl Speed {
    /// That of a server that does nothing but serve.
    pub const FULL: Self = Self::Times(1.0);

    fn is_possible(self) -> bool {
        match self {
            Self::Times(times) => times > 0.0 && times.is_finite(),
            Self::InTurns { runs, .. } => !runs.is_zero(),
        }
    }

    /// What a request takes that gets the server at this time.
    fn takes_ns(self, needs_ns: f64, at_ns: f64) -> f64 {
        match self {
            Self::Times(times) => needs_ns * times,
            Self::InTurns { stopped, runs } => {
                let [stopped_ns, runs_ns] = [stopped, runs].map(|one| one.as_secs_f64() * 1e9);
                let turn_ns = stopped_ns + runs_ns;
                let when_it_runs = |at_ns: f64| at_ns + (stopped_ns - at_ns % turn_ns).max(0.0);
                when_it_runs(when_it_runs(at_ns) + needs_ns) - at_ns
            }
        }
    }
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
        let (speeds, capacity) = (vec![Speed::FULL; servers], to_f64(servers));
        Ok(Self { speeds, capacity, service, utilisation, requests })
    }

    /// Makes servers slower, from the first on. The utilisation is that of all of them together,
    /// which do as much as `capacity` servers at full speed.
    ///
    /// # Errors
    /// [`Error::Usage`] for more than there are, and for a speed or a capacity that is not above 0.
    pub fn with_speeds(mut self, speeds: &[Speed], capacity: f64) -> Result<Self> {
        let is_possible = capacity > 0.0 && speeds.iter().all(|speed| speed.is_possible());
        if speeds.len() > self.speeds.len() || !is_possible {
            let what = format!("servers as fast as {speeds:?} with a capacity of {capacity}");
            return Err(Error::usage(what, "give each server at most one speed above 0"));
        }
        self.speeds[..speeds.len()].copy_from_slice(speeds);
        self.capacity = capacity;
        Ok(self)
    }

    /// Runs the simulation. For a given seed, all disciplines see the same arrivals and service
    /// times.
    #[must_use]
    pub fn simulate(&self, discipline: Discipline, seed: u64) -> Latencies {
        let mut arrivals = Rng::with_seed(seed);
        let mut service = Sampler::new(self.service.clone(), arrivals.u64(..));
        let mut chooser = Chooser::new(discipline, self.speeds.len(), arrivals.u64(..));
        let between_ns = self.service.mean_ns() / (self.utilisation * self.capacity);
        let uncounted = self.requests / WARM_UP_ONE_IN;
        let mut latencies = Vec::with_capacity(self.requests);
        let (mut now_ns, mut waited_ns) = (0.0, 0.0);
        for request in 0..uncounted + self.requests {
            now_ns += between_ns * exponential(&mut arrivals);
            let needs_ns = whole(service.draw_ns());
            let (begins_ns, took_ns) = chooser.begin(now_ns, needs_ns, &self.speeds);
            if request >= uncounted {
                waited_ns += begins_ns - now_ns;
                latencies.push(begins_ns - now_ns + took_ns);
            }
        }
        summarize(latencies, waited_ns)
    }

    /// Runs the simulation this many times, at least once, with seeds drawn from this one. A high
    /// percentile of a heavy tail varies by half of its value between runs of some ten thousand
    /// requests, and its median rises with their length. So compare a measured run with simulated
    /// runs that are as long.
    #[must_use]
    pub fn repeat(&self, discipline: Discipline, seed: u64, runs: usize) -> Repeated {
        let mut seeds = Rng::with_seed(seed);
        let runs = (0..runs.max(1)).map(|_| self.simulate(discipline, seeds.u64(..)));
        let runs: Vec<Latencies> = runs.collect();
        let [low, median, high] = [50, 500, 950].map(|rank| each(&runs, rank));
        Repeated { median, low, high }
    }
}

/// Each figure at this rank, in thousandths, of the same figure of all runs.
fn each(runs: &[Latencies], rank: usize) -> Latencies {
    let of = |figure: fn(&Latencies) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(figure).collect();
        values.sort_unstable_by(f64::total_cmp);
        per_mille(&values, rank)
    };
    Latencies {
        mean_wait_ns: of(|run| run.mean_wait_ns),
        mean_ns: of(|run| run.mean_ns),
        p50_ns: of(|run| run.p50_ns),
        p90_ns: of(|run| run.p90_ns),
        p95_ns: of(|run| run.p95_ns),
        p98_ns: of(|run| run.p98_ns),
        p99_ns: of(|run| run.p99_ns),
        p999_ns: of(|run| run.p999_ns),
        max_ns: of(|run| run.max_ns),
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
    fn begin(&mut self, now_ns: f64, needs_ns: f64, speeds: &[Speed]) -> (f64, f64) {
        let (free_ns, place) = match self {
            Self::Central(servers) => {
                let mut first = servers.peek_mut().expect("there is a server");
                let (free_ns, place) = first.0;
                let begins_ns = f64::from_bits(free_ns).max(now_ns);
                let took_ns = speeds[place].takes_ns(needs_ns, begins_ns);
                *first = Reverse(((begins_ns + took_ns).to_bits(), place));
                return (begins_ns, took_ns);
            }
            Self::Random(servers, random) => {
                let place = random.usize(0..servers.len());
                (&mut servers[place], place)
            }
            Self::InTurn(servers, cursor) => {
                *cursor = (*cursor + 1) % servers.len();
                (&mut servers[*cursor], *cursor)
            }
            Self::Relative(servers) => return servers.begin(now_ns, needs_ns, speeds),
        };
        let begins_ns = free_ns.max(now_ns);
        let took_ns = speeds[place].takes_ns(needs_ns, begins_ns);
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
    fn begin(&mut self, now_ns: f64, needs_ns: f64, speeds: &[Speed]) -> (f64, f64) {
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
        let took_ns = speeds[place].takes_ns(needs_ns, begins_ns);
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
