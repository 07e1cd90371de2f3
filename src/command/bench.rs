//! `clusterlb bench`: compares policies and other servers under the same loads.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::measuring::{
    MeasuringArguments, Missing, ProgressLine, Renderers, available, check_machine,
};
use super::values::{parse, positive_time, time};
use super::version::COMMIT;
use clusterlb::{Error, Result};
use clusterlb_harness::bench::ComparisonSettings;
use clusterlb_harness::environment::Environment;
use clusterlb_harness::interrupt::Interrupt;
use clusterlb_harness::placement::Sharing;
use clusterlb_harness::report;
use clusterlb_harness::scenario::{ALL, DEFAULT, Knobs, Scenario};
use clusterlb_harness::target::Target;

/// Fewer trials cannot show what a scenario measures.
const TOO_FEW_COUNT: u8 = 4;
/// Below this the load has hardly started.
const DURATION_MIN: Duration = Duration::from_millis(100);
/// Longest trial.
const DURATION_MAX: Duration = Duration::from_secs(3600);

const EXAMPLES: &str = "\
Examples:
  clusterlb bench
      rr, none:epoll and none:reuseport in four scenarios; about twelve minutes
  clusterlb bench --scenario heavy-70 --scenario stall --repeats 10 --report tail.html
      who keeps the tail short, and write a page for a browser
  clusterlb bench --target rr --against nginx,haproxy,node --scenario short
      the same load on other servers, which are started and stopped by this command
  clusterlb bench --scenario heavy-70 --target rr --target 'rr --overload-factor off'
      what an option of this program is worth
  clusterlb bench --scenario capacity -w 2 -t node:rr -t rr+node -t none:reuseport+node
      Node's workers under its own primary, and the same under this one
  clusterlb bench --scenario uneven -t rr -t least -t fastest -t central
      which policy copes with slow workers
  clusterlb bench --placement shared --scenario capacity --against nginx
      as when a server is tried for the first time: nothing is pinned
  clusterlb bench --scenario all --target rr --target none:uring --duration 10s --json

Scenarios: short, capacity, keep-alive, heavy-25, heavy-50, heavy-70, heavy-85, uneven, mixed,
stall, stopped, burst.

Exit codes: 0 done, 1 nothing could be run, 2 wrong usage, 3 this machine cannot (a server that is
not installed) or is too busy, 4 done, but for some of what is compared too few trials count (which
and why is shown), 130/143 ended by SIGINT/SIGTERM (what was measured is shown).";

/// Options of the comparison.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct BenchArguments {
    /// A load; can be repeated, `all` for all of them
    /// [default: short, capacity, keep-alive, heavy-70]
    #[arg(short, long, value_name = "NAME")]
    scenario: Vec<String>,

    /// A policy of this program, with its own options after the name; rr+node has Node workers.
    /// Can be repeated; the others are compared with the first [default: rr, none:epoll,
    /// none:reuseport; only rr with --against]
    #[arg(short, long, value_name = "TARGET", value_parser = parse::<Target>)]
    target: Vec<Target>,

    /// Other servers, which must be installed: nginx, nginx:reuseport, haproxy, node, node:none
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = parse::<Target>)]
    against: Vec<Target>,

    /// Worker processes of each server
    #[arg(short, long, value_name = "N", default_value_t = 8,
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: u16,

    /// Rounds, each with a trial of every target; fewer than six show nothing
    #[arg(short, long, value_name = "N", default_value_t = 8)]
    repeats: usize,

    /// Measured time of each trial
    #[arg(short, long, value_name = "TIME", default_value = "5s", value_parser = positive_time)]
    duration: Duration,

    /// Warm-up before it, not measured
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = time)]
    warmup: Duration,

    /// Connections a second in scenarios at a constant rate
    #[arg(long, value_name = "N", default_value_t = 3000,
          value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    rate: u32,

    /// Clients at once in scenarios without a rate; a burst has 16 times as many
    #[arg(short, long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=4096))]
    connections: u32,

    /// CPU placement: split gives server and generator separate CPUs, shared pins nothing. The cost
    /// of a connection differs by a third between the two
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    placement: PlacementChoice,

    #[command(flatten)]
    measuring: MeasuringArguments,
}

/// CPU placement.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum PlacementChoice {
    /// Server and generator have separate CPUs, if there are two or more
    #[default]
    Split,
    /// The kernel places both, as when a server is tried for the first time
    Shared,
}

impl From<PlacementChoice> for Sharing {
    fn from(choice: PlacementChoice) -> Self {
        match choice {
            PlacementChoice::Split => Self::Apart,
            PlacementChoice::Shared => Self::Shared,
        }
    }
}

impl BenchArguments {
    fn scenarios(&self) -> Result<Vec<Scenario>> {
        if self.scenario.is_empty() {
            return Ok(DEFAULT.to_vec());
        }
        if self.scenario.iter().any(|name| name == "all") {
            return Ok(ALL.to_vec());
        }
        let mut scenarios = Vec::new();
        for name in &self.scenario {
            let scenario = name.parse()?;
            if !scenarios.contains(&scenario) {
                scenarios.push(scenario);
            }
        }
        Ok(scenarios)
    }

    /// The available targets, and the requested ones that are missing.
    fn targets(&self, scenarios: &[Scenario]) -> Result<(Vec<Target>, Vec<Missing>)> {
        let defaults = ["rr", "none:epoll", "none:reuseport"];
        let few = if self.against.is_empty() { defaults.len() } else { 1 };
        let mut wanted = self.target.clone();
        if wanted.is_empty() {
            wanted = defaults[..few].iter().map(|name| name.parse()).collect::<Result<_>>()?;
        }
        wanted.extend(&self.against);
        let mut once = Vec::new();
        for target in wanted {
            if !once.contains(&target) {
                once.push(target);
            }
        }
        let blocking = scenarios.iter().any(|scenario| scenario.work().is_some());
        let (targets, missing) = available(once, blocking);
        let none_of_them =
            !self.against.is_empty() && !targets.iter().any(|target| self.against.contains(target));
        if !missing.is_empty() && (none_of_them || targets.is_empty()) {
            return Err(Missing::error(&missing));
        }
        Ok((targets, missing))
    }

    /// Measures and reports.
    ///
    /// # Errors
    /// The request is not valid, or nothing could be run.
    pub(super) fn run(&self) -> Result<u8> {
        if !(DURATION_MIN..=DURATION_MAX).contains(&self.duration) {
            return Err(Error::usage(
                format!("a measurement of {:?}", self.duration),
                format!("give --duration from {DURATION_MIN:?} to an hour"),
            ));
        }
        let scenarios = self.scenarios()?;
        let (targets, missing) = self.targets(&scenarios)?;
        let comparison = ComparisonSettings {
            scenarios,
            targets,
            repeats: self.repeats,
            knobs: Knobs {
                workers: usize::from(self.workers),
                rate_per_s: f64::from(self.rate),
                connections: self.connections,
                duration: self.duration,
                warm_up: self.warmup,
                seed: self.measuring.seed,
            },
        };
        comparison.check()?;
        let processes = usize::from(self.workers) + 1;
        let (facts, placement) = self.measuring.place(processes, self.placement.into())?;
        let outputs = self.measuring.open()?;
        let mut environment = Environment::look(&facts, &placement, &comparison.targets, COMMIT);
        let mut interrupt = Interrupt::new()?;
        check_machine(&self.measuring, &mut environment, &missing)?;
        let mut progress = ProgressLine::new(self.measuring.quiet);
        let measured = comparison.run(environment, &mut interrupt, &mut |done, all, what| {
            progress.show(done, all, what);
        });
        progress.clear();
        let (mut found, signal) = measured?;
        found.missing = missing.iter().map(Missing::sentence).collect();
        let renderers = Renderers {
            text: report::bench_text::bench,
            csv: report::csv::bench,
            page: report::bench_page::bench,
        };
        let code = if found.is_lacking() { TOO_FEW_COUNT } else { 0 };
        outputs.end(&found, renderers, code, signal)
    }
}
