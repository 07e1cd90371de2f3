//! `clusterlb imbalance`: how each mechanism spreads the load over the workers, as a matrix.

use clap::Args;

use super::measuring::{
    MeasuringArguments, Missing, ProgressLine, Renderers, available, check_machine,
};
use super::version::COMMIT;
use clusterlb::{Error, Result};
use clusterlb_harness::environment::Environment;
use clusterlb_harness::imbalance::{self, Plan};
use clusterlb_harness::interrupt::Interrupt;
use clusterlb_harness::matrix::{Extent, cases};
use clusterlb_harness::placement::Sharing;
use clusterlb_harness::report;
use clusterlb_harness::target::{Peer, Target, mechanisms};

const EXAMPLES: &str = "\
Examples:
  clusterlb imbalance
      every mechanism and Node, if it is installed, under ten loads; three minutes at most
  clusterlb imbalance --quick --report matrix.html
      the loads that differ most, and write a page for a browser
  clusterlb imbalance --full --csv runs.csv
      six runs of every cell with 10 000 connections each; an hour
  clusterlb imbalance --target rr --target none:epoll-exclusive --workers 4

Exit codes: 0 done, 1 a mechanism could not be run, 2 wrong usage, 3 this machine cannot, or is too
busy, 130/143 ended by SIGINT/SIGTERM (what was measured is shown).";

/// Options of the matrix.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct ImbalanceArguments {
    /// Worker processes of each server
    #[arg(short, long, value_name = "N", default_value_t = 8,
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: u16,

    /// Fewer loads and connections: done in half a minute
    #[arg(long, conflicts_with = "full")]
    quick: bool,

    /// Six runs of every cell and many connections, for figures to publish
    #[arg(long)]
    full: bool,

    /// Connections per cell [default: 2000 or as many as take 1.35 s; 800 or 320 ms with --quick;
    /// 10000 with --full]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    connections: Option<u32>,

    /// Runs of each cell [default: 1; 6 with --full]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    repeats: Option<u16>,

    /// Only these mechanisms; can be repeated: rr, none:epoll, node:rr, … [default: all]
    #[arg(long, value_name = "TARGET", value_parser = super::values::parse::<Target>)]
    target: Vec<Target>,

    /// Another server as two more rows, one for each policy [default: node, where it is
    /// installed]
    #[arg(long, value_name = "node|none", value_parser = ["node", "none"])]
    peer: Option<String>,

    #[command(flatten)]
    measuring: MeasuringArguments,
}

/// Node in both of its policies.
const NODE: [Target; 2] = [
    Target::Peer(Peer::Node { primary_accepts: false }),
    Target::Peer(Peer::Node { primary_accepts: true }),
];

impl ImbalanceArguments {
    /// The rows, and the requested ones that are missing.
    fn targets(&self) -> Result<(Vec<Target>, Vec<Missing>)> {
        let mut wanted = if self.target.is_empty() { mechanisms() } else { self.target.clone() };
        let node = match self.peer.as_deref() {
            Some("none") => false,
            Some(_) => true,
            None => self.target.is_empty(),
        };
        if node {
            wanted.extend(NODE.iter().filter(|node| !self.target.contains(node)));
        }
        let uncounted =
            |target: &&Target| matches!(target, Target::Peer(Peer::Nginx { .. } | Peer::Haproxy));
        if let Some(target) = wanted.iter().find(uncounted) {
            return Err(Error::usage(
                format!("{target} does not report how many connections each worker got"),
                "compare it with `clusterlb bench --against` instead",
            ));
        }
        let (targets, missing) = available(wanted, false);
        // If Node was not requested, its row is left out with a remark.
        let asked = self.peer.is_some() || !self.target.is_empty();
        if !missing.is_empty() && asked {
            return Err(Missing::error(&missing));
        }
        Ok((targets, missing))
    }

    /// Measures and reports.
    ///
    /// # Errors
    /// The request is not valid, or nothing could be run.
    pub(super) fn run(&self) -> Result<u8> {
        let extent = match (self.quick, self.full) {
            (true, _) => Extent::Quick,
            (_, true) => Extent::Full,
            _ => Extent::Default,
        };
        let (targets, missing) = self.targets()?;
        let workers = usize::from(self.workers);
        let (facts, placement) = self.measuring.place(workers + 1, Sharing::TogetherIfFew)?;
        let outputs = self.measuring.open()?;
        let mut environment = Environment::look(&facts, &placement, &targets, COMMIT);
        let connections = self.connections.map_or_else(|| extent.connections(), u64::from);
        let plan = Plan {
            targets,
            // An explicit number holds, however long it takes.
            cases: cases(
                extent,
                connections,
                extent.limit().filter(|_| self.connections.is_none()),
            ),
            repeats: self.repeats.map_or_else(|| extent.repeats(), usize::from),
            workers,
            seed: self.measuring.seed,
            extent,
        };
        let mut interrupt = Interrupt::new()?;
        check_machine(&self.measuring, &mut environment, &missing)?;
        let mut progress = ProgressLine::new(self.measuring.quiet);
        let measured =
            imbalance::run(&plan, environment, &mut interrupt, &mut |done, all, what| {
                progress.show(done, all, what);
            });
        progress.clear();
        let (mut found, signal) = measured?;
        found.missing = missing.iter().map(Missing::sentence).collect();
        let renderers = Renderers {
            text: report::text::imbalance,
            csv: report::csv::imbalance,
            page: report::matrix_page::imbalance,
        };
        let failed = found.cells.iter().any(|cell| !cell.failures.is_empty());
        outputs.end(&found, renderers, u8::from(failed), signal)
    }
}
