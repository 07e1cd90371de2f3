//! The matrix of mechanisms and loads: its cells and their statistics.
//!
//! Owns the loads, their sizes, and the summary over repeats. Pure: does not run anything.

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::balance::{Balance, Yardstick};
use super::generator::Load;
use super::interval::median;
use super::target::Target;
use crate::work::Work;

/// Share of the two busiest workers above which a cell is marked; the figure made known by Node's
/// documentation.
pub const SHARE_CALLED_OUT: f64 = 0.70;
/// Number of clients of the small and of the large loads.
const FEW: u32 = 8;
const MANY: u32 = 64;

/// Which loads to run, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Extent {
    /// The loads that differ most, with few connections.
    Quick,
    /// Every load once.
    Default,
    /// Every load several times, many connections.
    Full,
}

impl Extent {
    /// Default number of connections per cell.
    #[must_use]
    pub fn connections(self) -> u64 {
        match self {
            Self::Quick => 800,
            Self::Default => 2_000,
            Self::Full => 10_000,
        }
    }

    /// Default time limit of a load, unless a number of connections is requested. It bounds the
    /// total duration however slow the machine or a mechanism is.
    #[must_use]
    pub fn limit(self) -> Option<Duration> {
        match self {
            Self::Quick => Some(Duration::from_millis(320)),
            Self::Default => Some(Duration::from_millis(1_350)),
            Self::Full => None,
        }
    }

    /// Default number of runs per cell.
    #[must_use]
    pub fn repeats(self) -> usize {
        match self {
            Self::Quick | Self::Default => 1,
            Self::Full => 6,
        }
    }
}

/// One column.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Case {
    /// Its heading.
    pub name: String,
    /// Concurrent clients; each opens its next connection when the last is answered.
    pub clients: u32,
    /// Cost of a request.
    pub work: Option<Work>,
    /// Number of connections to open.
    pub connections: u64,
    /// All connections stay open at the same time.
    pub held: bool,
    /// Time after which no more connections are opened. Held connections are opened at once.
    #[serde(rename = "limit_s", serialize_with = "as_seconds")]
    pub limit: Option<Duration>,
}

fn as_seconds<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    duration.map(|duration| duration.as_secs_f64()).serialize(serializer)
}

impl Case {
    /// The generator's load for this column.
    #[must_use]
    pub fn load(&self) -> Load {
        if self.held {
            // The generator needs at least one request to measure, which the last connection makes.
            let hold = u32::try_from(self.connections.saturating_sub(1)).unwrap_or(u32::MAX);
            return Load { requests: Some(1), hold, ..Load::clients(1) };
        }
        let requests = Some(self.connections);
        Load { requests, duration: self.limit, ..Load::clients(self.clients) }
    }
}

/// The columns.
#[must_use]
pub fn cases(extent: Extent, connections: u64, limit: Option<Duration>) -> Vec<Case> {
    let work = |text: &str| Some(text.parse().expect("work that this program writes itself"));
    let works: [(&str, Option<Work>); 3] = [
        ("", None),
        (", computing 200 µs", work("cpu:200us")),
        (", blocking 1 ms", work("block:1ms")),
    ];
    let clients = [("one client", 1), ("8 clients", FEW), ("64 clients", MANY)];
    let mut all = Vec::new();
    for (cost, work) in works {
        for (who, clients) in clients {
            let work = work.clone();
            let name = format!("{who}{cost}");
            all.push(Case { name, clients, work, connections, held: false, limit });
        }
    }
    // Held connections cost descriptors and carry no requests, so fewer are enough.
    let connections = connections.min(400);
    let name = "held open".to_owned();
    all.push(Case { name, clients: 1, work: None, connections, held: true, limit });
    let quick = [0, 2, 8, 9];
    let wanted = |place: &usize| extent != Extent::Quick || quick.contains(place);
    all.into_iter().enumerate().filter(|(place, _)| wanted(place)).map(|(_, case)| case).collect()
}

/// One run of a cell.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    /// Index of the repeat, from 0.
    pub repeat: usize,
    /// Connections of each worker.
    pub connections: Vec<u64>,
    /// Evenness of the spread.
    pub balance: Balance,
    /// Requests answered per second. Like latency, `None` where connections are only held.
    pub rate_per_s: Option<f64>,
    /// Median latency of a request, connection included. Closed loop: it flatters a slow server.
    pub p50_us: Option<f64>,
    /// The 99th percentile.
    pub p99_us: Option<f64>,
    /// The maximum.
    pub max_us: Option<f64>,
    /// Problems found during the run.
    pub problems: Vec<String>,
}

/// A cell: a mechanism under a load.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    /// The mechanism.
    pub target: Target,
    /// The heading of its column.
    pub load: String,
    /// Medians over the runs; `None` if no run succeeded.
    pub summary: Option<CellSummary>,
    /// Expected spread of random assignment for the same number of connections.
    pub yardstick: Option<Yardstick>,
    /// The runs.
    pub runs: Vec<Run>,
    /// Reasons of missing runs, one sentence each.
    pub failures: Vec<String>,
}

/// Medians over the runs of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CellSummary {
    /// Number of runs.
    pub runs: usize,
    /// The share of the two busiest workers.
    pub top_two_share: f64,
    /// The smallest of these shares in any run.
    pub top_two_share_min: f64,
    /// The largest of these shares in any run.
    pub top_two_share_max: f64,
    /// The busiest worker's count over the mean.
    pub max_over_mean: f64,
    /// Standard deviation over mean.
    pub variation: f64,
    /// Jain's index.
    pub jain: f64,
    /// Workers without connections.
    pub idle_workers: f64,
    /// Requests answered per second.
    pub rate_per_s: Option<f64>,
    /// Median latency.
    pub p50_us: Option<f64>,
    /// The 99th percentile.
    pub p99_us: Option<f64>,
}

impl Cell {
    /// A cell without runs.
    #[must_use]
    pub fn new(target: Target, case: &Case, workers: usize, seed: u64) -> Self {
        Self {
            target,
            load: case.name.clone(),
            summary: None,
            yardstick: Yardstick::random(workers, case.connections, seed),
            runs: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Adds a run. If the time limit ended it early, the yardstick is computed for the connections
    /// actually made.
    pub fn enter(&mut self, run: Run, seed: u64) {
        let least = self.runs.iter().map(|run| run.balance.total).fold(run.balance.total, u64::min);
        self.yardstick = Yardstick::random(run.connections.len(), least, seed);
        self.runs.push(run);
        self.summary = CellSummary::of(&self.runs);
    }

    /// Whether the two busiest workers got more than [`SHARE_CALLED_OUT`].
    #[must_use]
    pub fn is_called_out(&self) -> bool {
        self.summary.is_some_and(|summary| summary.top_two_share > SHARE_CALLED_OUT)
    }
}

impl CellSummary {
    fn of(runs: &[Run]) -> Option<Self> {
        let of = |value: fn(&Run) -> f64| median(&runs.iter().map(value).collect::<Vec<f64>>());
        let known = |value: fn(&Run) -> Option<f64>| {
            median(&runs.iter().filter_map(value).collect::<Vec<f64>>())
        };
        let shares = runs.iter().map(|run| run.balance.top_two_share);
        Some(Self {
            runs: runs.len(),
            top_two_share: of(|run| run.balance.top_two_share)?,
            top_two_share_min: shares.clone().fold(f64::INFINITY, f64::min),
            top_two_share_max: shares.fold(0.0, f64::max),
            max_over_mean: of(|run| run.balance.max_over_mean)?,
            variation: of(|run| run.balance.variation)?,
            jain: of(|run| run.balance.jain)?,
            idle_workers: of(|run| idle(&run.balance))?,
            rate_per_s: known(|run| run.rate_per_s),
            p50_us: known(|run| run.p50_us),
            p99_us: known(|run| run.p99_us),
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "workers are few")]
fn idle(balance: &Balance) -> f64 {
    balance.idle as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(repeat: usize, counts: &[u64], p99_us: Option<f64>) -> Run {
        Run {
            repeat,
            connections: counts.to_vec(),
            balance: Balance::of(counts).expect("counts"),
            rate_per_s: Some(100.0),
            p50_us: None,
            p99_us,
            max_us: None,
            problems: Vec::new(),
        }
    }

    #[test]
    fn every_kind_of_load_is_there() {
        let limit = Some(Duration::from_secs(1));
        let all = cases(Extent::Default, 2_000, limit);
        assert_eq!(all.len(), 10);
        assert_eq!(all[0].name, "one client");
        assert_eq!(all[8].name, "64 clients, blocking 1 ms");
        let load = all[8].load();
        assert_eq!((load.requests, load.duration), (Some(2_000), limit));
        let held = all[9].load();
        assert_eq!((held.hold, held.requests, held.duration), (399, Some(1), None));
        assert_eq!(cases(Extent::Full, 5, None).len(), 10);
        let quick: Vec<String> =
            cases(Extent::Quick, 100, None).into_iter().map(|case| case.name).collect();
        let wanted = ["one client", "64 clients", "64 clients, blocking 1 ms", "held open"];
        assert_eq!(quick, wanted);
    }

    #[test]
    fn a_cell_is_the_median_of_its_runs() {
        let case = &cases(Extent::Quick, 100, None)[0];
        let mut cell = Cell::new(Target::RR, case, 4, 1);
        assert_eq!(cell.summary, None);
        assert!(!cell.is_called_out());
        cell.enter(run(0, &[97, 1, 1, 1], Some(5.0)), 1);
        assert!(cell.is_called_out());
        cell.enter(run(1, &[25, 25, 25, 25], None), 1);
        let chance = cell.yardstick;
        cell.enter(run(2, &[6, 0, 2, 2], Some(7.0)), 1);
        let summary = cell.summary.expect("runs");
        assert_eq!((summary.runs, summary.top_two_share), (3, 0.8));
        assert_eq!((summary.top_two_share_min, summary.top_two_share_max), (0.5, 0.98));
        assert_eq!(summary.p99_us, Some(6.0));
        assert_eq!(summary.idle_workers, 0.0);
        // Random assignment spreads ten connections less evenly than a hundred.
        let share = |chance: Option<Yardstick>| chance.expect("chance").top_two_share;
        assert!(share(cell.yardstick) > share(chance) && share(chance) > 0.5);
    }

    proptest! {
        #[test]
        fn the_median_lies_between_the_ends(
            counts in prop::collection::vec(prop::collection::vec(1_u64..1000, 8), 1..9),
        ) {
            let runs: Vec<Run> =
                counts.iter().enumerate().map(|(place, counts)| run(place, counts, None)).collect();
            let summary = CellSummary::of(&runs).expect("runs");
            prop_assert!(summary.top_two_share_min <= summary.top_two_share);
            prop_assert!(summary.top_two_share <= summary.top_two_share_max);
        }
    }
}
