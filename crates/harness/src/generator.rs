//! The load generator as a process of its own, so that its CPU time and its faults are its own.
//!
//! Owns its arguments and the reading of its report. Refuses to judge the report.

use std::net::SocketAddr;
use std::time::Duration;

use loadtest::Report;
use nix::sys::signal::Signal;

use super::child::{Child, failure};
use super::interrupt::{Halt, Interrupt};
use super::server::own_command;
use crate::sys::cpu::format_cpu_list;

/// What is added to the time that a run should take before it counts as stuck.
const MARGIN: Duration = Duration::from_secs(60);
/// How long a run that was interrupted may take to end.
const END_WITHIN: Duration = Duration::from_secs(3);

/// When requests start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// At so many a second, whatever the server does.
    Rate {
        /// Starts a second.
        per_s: f64,
        /// Random gaps, as of many independent clients; otherwise equal ones.
        random: bool,
    },
    /// So many at once, each as soon as the one before is answered.
    Clients(u32),
}

/// A load.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// When requests start.
    pub pace: Pace,
    /// How long, if the number of requests does not end it.
    pub duration: Option<Duration>,
    /// How many requests, if time does not end it.
    pub requests: Option<u64>,
    /// Connections are kept open and used again.
    pub keep_alive: bool,
    /// Idle connections held open meanwhile.
    pub hold: u32,
    /// How long a request may take.
    pub timeout: Duration,
    /// Seed of random gaps.
    pub seed: u64,
}

impl Load {
    /// So many clients at once, each connection for one request.
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

    /// The words after `load`, without the target.
    #[must_use]
    pub fn arguments(&self, cpus: &[usize]) -> Vec<String> {
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
        add("--threads", cpus.len().to_string());
        add("--pin", format_cpu_list(cpus));
        words
    }
}

/// Puts a load on a server and waits for what came of it. `during` is called every few
/// milliseconds with the time since the generator was started.
///
/// # Errors
/// A signal; a generator that cannot do what it shall.
pub fn run(
    load: &Load,
    address: SocketAddr,
    cpus: &[usize],
    interrupt: &mut Interrupt,
    during: &mut dyn FnMut(Duration),
) -> Result<Report, Halt> {
    let mut command = own_command()?;
    command.arg("load").args(load.arguments(cpus)).arg(address.to_string());
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
        for load in [open, Load { requests: Some(77), ..Load::clients(3) }] {
            let words = ["load".to_owned()].into_iter().chain(load.arguments(&[1, 0]));
            let words = words.chain(["127.0.0.1:80".to_owned()]);
            let arguments = Command::try_parse_from(words).expect("the generator's own words");
            let settings = arguments.load.settings().expect("a sound run");
            assert_eq!((settings.threads, settings.hold), (2, load.hold));
            assert_eq!(settings.requests, load.requests);
            assert_eq!(settings.duration_ms, load.duration.map(|_| 1500));
        }
    }
}
