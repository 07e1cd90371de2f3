//! Runs the load generator as a separate process, so that its CPU time and its faults are kept
//! apart from those of the measurement.
//!
//! Owns the generator's arguments and parses its report. Does not judge the report.

use std::net::SocketAddr;
use std::time::Duration;

use crate::sys::signal::Signal;
use loadtest::Report;

use super::child::{Child, failure};
use super::interrupt::{Halt, Interrupt};
use super::placement::Placement;
use super::server::own_command;
use crate::sys::cpu::format_cpu_list;

/// Time beyond the planned duration after which a run counts as stuck.
const MARGIN: Duration = Duration::from_secs(60);
/// How long an interrupted run may take to end.
const END_WITHIN: Duration = Duration::from_secs(3);

/// When requests start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// Open loop: starts at a fixed rate, independent of the server.
    Rate {
        /// Starts per second.
        per_s: f64,
        /// Exponential gaps, as from many independent clients; otherwise equal gaps.
        random: bool,
    },
    /// Closed loop: this many clients, each sending its next request when the last is answered.
    Clients(u32),
}

/// A load.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// When requests start.
    pub pace: Pace,
    /// Time limit; `None` if `requests` ends the load.
    pub duration: Option<Duration>,
    /// Number of requests; `None` if `duration` ends the load.
    pub requests: Option<u64>,
    /// Reuse connections.
    pub keep_alive: bool,
    /// Idle connections held open during the load.
    pub hold: u32,
    /// Timeout of a request.
    pub timeout: Duration,
    /// Seed of the random gaps.
    pub seed: u64,
}

impl Load {
    /// A closed loop of this many clients with one request per connection.
    #[must_use]
    pub fn clients(count: u32) -> Self {
        Self {
            pace: Pace::Clients(count),
            duration: None,
            requests: None,
            keep_alive: false,
            hold: 0,
            timeout: Duration::from_secs(10),
            seed: 1,
        }
    }

    /// The arguments of `load`, without the target.
    #[must_use]
    pub fn arguments(&self, placement: &Placement) -> Vec<String> {
        let mut words: Vec<String> = vec!["--json".into(), "--quiet".into()];
        let mut add = |name: &str, value: String| words.extend([name.to_owned(), value]);
        match self.pace {
            Pace::Rate { per_s, random } => {
                add("--rate", per_s.to_string());
                add("--arrivals", if random { "poisson" } else { "constant" }.into());
            }
            Pace::Clients(count) => add("--connections", count.to_string()),
        }
        if let Some(duration) = self.duration {
            add("--duration", format!("{}us", duration.as_micros()));
        }
        if let Some(requests) = self.requests {
            add("--requests", requests.to_string());
        }
        if self.keep_alive {
            add("--requests-per-connection", "unlimited".into());
        }
        add("--hold", self.hold.to_string());
        add("--timeout", format!("{}us", self.timeout.as_micros()));
        add("--seed", self.seed.to_string());
        add("--threads", placement.load_threads.to_string());
        let cpus = &placement.load_cpus;
        add("--pin", if cpus.is_empty() { "none".into() } else { format_cpu_list(cpus) });
        words
    }
}

/// Runs the load against a server and returns the generator's report. `during` is called every few
/// milliseconds with the time since the generator started.
///
/// # Errors
/// A signal, or a generator that failed.
pub fn run(
    load: &Load,
    address: SocketAddr,
    placement: &Placement,
    interrupt: &mut Interrupt,
    during: &mut dyn FnMut(Duration),
) -> Result<Report, Halt> {
    let mut command = own_command()?;
    command.arg("load").args(load.arguments(placement)).arg(address.to_string());
    let mut child = Child::start("the load generator", &mut command)?;
    let within = load.duration.unwrap_or_default() + load.timeout + MARGIN;
    child.wait(within, interrupt, during)?;
    let ended = child.end(Signal::SIGINT, END_WITHIN);
    serde_json::from_str(&ended.lines.join("\n"))
        .map_err(|_| failure("the load generator", "gave no report", &ended.complaints).into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        load: loadtest::cli::LoadArgs,
    }

    #[test]
    fn the_generator_understands_its_arguments() {
        let open = Load {
            pace: Pace::Rate { per_s: 1234.5, random: true },
            duration: Some(Duration::from_millis(1500)),
            keep_alive: true,
            hold: 9,
            ..Load::clients(1)
        };
        let placement =
            Placement { load_cpus: vec![1, 0], load_threads: 2, ..Placement::default() };
        let unpinned = Placement { load_threads: 1, ..Placement::default() };
        let words = Load::clients(1).arguments(&unpinned).join(" ");
        assert!(words.ends_with("--threads 1 --pin none"), "{words}");
        for load in [open, Load { requests: Some(77), ..Load::clients(3) }] {
            let words = ["load".to_owned()].into_iter().chain(load.arguments(&placement));
            let words = words.chain(["127.0.0.1:80".to_owned()]);
            let arguments = Command::try_parse_from(words).expect("the generator's own words");
            let settings = arguments.load.settings().expect("a sound run");
            assert_eq!((settings.threads, settings.hold), (2, load.hold));
            assert_eq!(settings.requests, load.requests);
            assert_eq!(settings.duration_ms, load.duration.map(|_| 1500));
        }
    }
}
