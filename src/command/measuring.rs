//! Shared by the measuring commands: options on output and placement, and the progress line.
//!
//! Owns where results go. Measures nothing.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use clusterlb_sys::signal::Signal;
use nix::errno::Errno;
use serde::Serialize;

use super::output;
use clusterlb::{EngineChoice, EngineDecision, EngineKind, Error, Result};
use clusterlb_harness::environment::Environment;
use clusterlb_harness::other_load::{OtherLoad, SHARE_MAX};
use clusterlb_harness::peer::NGINX_ECHO_MODULE;
use clusterlb_harness::placement::{Placement, PlacementRequest, Sharing, place};
use clusterlb_harness::server::find_program;
use clusterlb_harness::target::{Peer, Target};
use clusterlb_sys::cpu::{CpuFacts, parse_cpu_list};
use clusterlb_sys::error::errno_of;
use clusterlb_sys::limits;

/// Options on output and placement.
#[derive(Clone, Debug, Args)]
pub(super) struct MeasuringArguments {
    /// Print one JSON object instead of tables
    #[arg(long)]
    pub(super) json: bool,

    /// Write a table with a row for each worker of each run to this file
    #[arg(long, value_name = "FILE")]
    pub(super) csv: Option<PathBuf>,

    /// Write a page for a browser, complete in itself, to this file
    #[arg(long, value_name = "FILE")]
    pub(super) report: Option<PathBuf>,

    /// Print no progress
    #[arg(short, long)]
    pub(super) quiet: bool,

    /// Measure even while other processes take most of the CPUs
    #[arg(long)]
    pub(super) anyway: bool,

    /// CPUs of the server, as 0-3,6 [default: those that the generator does not use]
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    pub(super) server_cpus: Option<CpuList>,

    /// CPUs of the load generator, one for each of its threads [default: the last ones]
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    pub(super) load_cpus: Option<CpuList>,

    /// Threads of the load generator
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(super) load_threads: u16,

    /// Seed of every random choice
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) seed: u64,
}

/// CPUs in the given order.
#[derive(Clone, Debug)]
pub(super) struct CpuList(Vec<usize>);

fn cpu_list(text: &str) -> std::result::Result<CpuList, String> {
    parse_cpu_list(text).map(CpuList)
}

impl MeasuringArguments {
    /// The placement with the facts behind it. `processes` of the server run at the same time.
    ///
    /// # Errors
    /// The CPUs may not be used.
    pub(super) fn place(
        &self,
        processes: usize,
        sharing: Sharing,
    ) -> Result<(CpuFacts, Placement)> {
        let facts = CpuFacts::gather()?;
        let request = PlacementRequest {
            threads: usize::from(self.load_threads),
            processes,
            sharing,
            server: self.server_cpus.clone().map(|list| list.0),
            load: self.load_cpus.clone().map(|list| list.0),
        };
        let placement = place(&facts.cpus, &request)?;
        // Children inherit the limit, and other servers do not raise it.
        limits::raise_descriptor_limit()?;
        Ok((facts, placement))
    }

    /// Opens the files of results before the measurement, so a file that cannot be written costs no
    /// minutes.
    ///
    /// # Errors
    /// A file cannot be written, or standard output is closed.
    pub(super) fn open(&self) -> Result<Outputs> {
        output::ensure_open()?;
        let create = |path: &PathBuf| {
            File::create(path).map(|file| (path.clone(), file)).map_err(|error| {
                let why = errno_of(&error).desc();
                let hint = "name a file in a folder that exists and that you may write to";
                Error::usage(format!("cannot write {}: {why}", path.display()), hint)
            })
        };
        Ok(Outputs {
            json: self.json,
            csv: self.csv.as_ref().map(create).transpose()?,
            page: self.report.as_ref().map(create).transpose()?,
        })
    }
}

/// The forms of a report.
pub(super) struct Renderers<R> {
    pub(super) text: fn(&R) -> String,
    pub(super) csv: fn(&R) -> String,
    pub(super) page: fn(&R) -> String,
}

/// Where results go.
#[derive(Debug)]
pub(super) struct Outputs {
    json: bool,
    csv: Option<(PathBuf, File)>,
    page: Option<(PathBuf, File)>,
}

impl Outputs {
    /// Writes all requested forms. Returns the exit code: `code`, or that of the signal that ended
    /// the measurement early.
    ///
    /// # Errors
    /// A file cannot be written. A closed reader of standard output is not an error.
    pub(super) fn end<R: Serialize>(
        self,
        report: &R,
        renderers: Renderers<R>,
        code: u8,
        signal: Option<Signal>,
    ) -> Result<u8> {
        let Renderers { text, csv, page } = renderers;
        let shown = if self.json {
            serde_json::to_string_pretty(report).expect("a report is plain data") + "\n"
        } else {
            text(report)
        };
        output::print(&shown)?;
        for (file, render) in [(self.csv, csv), (self.page, page)] {
            if let Some((path, file)) = file {
                save(&path, file, &render(report))?;
            }
        }
        Ok(signal.map_or(code, signal_code))
    }
}

fn save(path: &Path, mut file: File, text: &str) -> Result<()> {
    file.write_all(text.as_bytes())
        .map_err(|error| Error::system(format!("write {}", path.display()), errno_of(&error)))
}

/// Progress on standard error: a line that is rewritten on a terminal, and an occasional line
/// elsewhere.
#[derive(Debug)]
pub(super) struct ProgressLine {
    quiet: bool,
    terminal: bool,
    begun: Instant,
    shown_percent: usize,
}

impl ProgressLine {
    pub(super) fn new(quiet: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        Self { quiet, terminal, begun: Instant::now(), shown_percent: 0 }
    }

    /// `done` of `all` steps are done, and `what` begins.
    pub(super) fn show(&mut self, done: usize, all: usize, what: &str) {
        let percent = 100 * done / all.max(1);
        if self.quiet || (!self.terminal && done > 0 && percent < self.shown_percent + 10) {
            return;
        }
        self.shown_percent = percent;
        let took_s = self.begun.elapsed().as_secs();
        let mut stderr = io::stderr().lock();
        // A failed write must not end the measurement.
        let _ = if self.terminal {
            write!(stderr, "\r\x1b[2K{}/{all}  {took_s} s  {what}", done + 1)
        } else {
            writeln!(stderr, "{}/{all}  {took_s} s  {what}", done + 1)
        };
        let _ = stderr.flush();
    }

    /// Clears the line for other output.
    pub(super) fn clear(&self) {
        if self.terminal && !self.quiet {
            let _ = write!(io::stderr().lock(), "\r\x1b[2K");
        }
    }
}

/// A shell's exit code for a signal.
fn signal_code(signal: Signal) -> u8 {
    u8::try_from(128 + signal as i32).unwrap_or(1)
}

/// A target that cannot be started here.
#[derive(Clone, Debug)]
pub(super) struct Missing {
    target: Target,
    what: String,
    remedy: &'static str,
}

impl Missing {
    /// What is missing and how to get it, in a sentence.
    pub(super) fn sentence(&self) -> String {
        let how = if self.target.needs_ring() { "" } else { "to install it: " };
        format!("{} is left out: {}; {how}{}.", self.target, self.what, self.remedy)
    }

    /// The error of a command that has nothing to run without these.
    pub(super) fn error(all: &[Self]) -> Error {
        let whats: Vec<&str> = all.iter().map(|missing| &*missing.what).collect();
        let remedies: Vec<&str> = all.iter().map(|missing| missing.remedy).collect();
        Error::Environment {
            step: whats.join(", "),
            source: if all.iter().all(|one| one.target.needs_ring()) {
                Errno::EOPNOTSUPP.into()
            } else {
                Errno::ENOENT.into()
            },
            hint: remedies.join("; "),
        }
    }
}

/// The targets whose programs are installed, and those whose are not. nginx needs a module for
/// requests that block.
pub(super) fn available(targets: Vec<Target>, blocking: bool) -> (Vec<Target>, Vec<Missing>) {
    let mut missing = Vec::new();
    let no_ring = targets.iter().any(|target| target.needs_ring()).then(refused_ring).flatten();
    let there = targets.into_iter().filter(|target| {
        if let Some(why) = no_ring.as_ref().filter(|_| target.needs_ring()) {
            let what = format!("{target} needs io_uring ({why})");
            let remedy = "`clusterlb check` says what refuses it";
            missing.push(Missing { target: *target, what, remedy });
            return false;
        }
        let Some(peer) = target.requires() else {
            return true;
        };
        let what = absence(peer, blocking);
        let remedy = peer.remedy();
        missing.extend(what.map(|what| Missing { target: *target, what, remedy }));
        missing.last().is_none_or(|missing| missing.target != *target)
    });
    (there.collect(), missing)
}

/// Why io_uring is unavailable, if it is.
fn refused_ring() -> Option<String> {
    let decision = EngineChoice::from_environment().and_then(EngineChoice::decide);
    match decision {
        Ok(EngineDecision { kind: EngineKind::IoUring, .. }) => None,
        Ok(EngineDecision { reason, .. }) => Some(reason),
        Err(error) => Some(error.to_string()),
    }
}

/// How long to observe the machine before measuring, and how often while it is too busy.
const LOOK: Duration = Duration::from_millis(300);
const LOOKS_MAX: usize = 5;
/// With others on more than this share of the CPUs the result would be worthless: it shows what
/// they do.
const WORTHLESS: f64 = 0.6;

/// Says what distorts results before minutes are spent.
///
/// # Errors
/// Other processes take most of the CPUs, and measuring was not asked for anyway.
pub(super) fn check_machine(
    arguments: &MeasuringArguments,
    environment: &mut Environment,
    missing: &[Missing],
) -> Result<()> {
    let placement = &environment.placement;
    let cpus = [&*placement.server_cpus, &*placement.load_cpus].concat();
    let busy = least_busy(|| {
        let other_load = OtherLoad::look(cpus.iter().copied());
        thread::sleep(LOOK);
        other_load.share().unwrap_or_default()
    });
    if busy > WORTHLESS && !arguments.anyway {
        return Err(Error::Environment {
            step: format!(
                "other processes take {:.0} % of the CPUs: a measurement would be worthless",
                100.0 * busy
            ),
            source: Errno::EBUSY.into(),
            hint: "end them, or measure with --anyway".into(),
        });
    }
    if busy > SHARE_MAX {
        let text = "The machine was busy with other processes before the measurement began.";
        environment.warnings.push(text.to_owned());
    }
    if arguments.quiet {
        return Ok(());
    }
    let missing = missing.iter().map(Missing::sentence);
    for line in environment.warnings.iter().cloned().chain(missing) {
        // A failed write must not end the measurement.
        let _ = writeln!(io::stderr().lock(), "! {line}");
    }
    Ok(())
}

/// The share of the CPUs that others take, by the first look that finds it bearable, or the best of
/// all: what has just ended, such as a build, must not refuse a measurement.
fn least_busy(mut look: impl FnMut() -> f64) -> f64 {
    let mut least = f64::INFINITY;
    for _ in 0..LOOKS_MAX {
        least = least.min(look());
        if least <= WORTHLESS {
            break;
        }
    }
    least
}

/// What a server lacks here, if anything.
fn absence(peer: Peer, blocking: bool) -> Option<String> {
    let program = peer.program();
    if find_program(program).is_none() {
        return Some(format!("no `{program}` on the PATH"));
    }
    let module = blocking && matches!(peer, Peer::Nginx { .. });
    let lacking = module && !Path::new(NGINX_ECHO_MODULE).exists();
    lacking.then(|| format!("no echo module of nginx at {NGINX_ECHO_MODULE}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_some_time_to_become_quiet() {
        for (shares, found, looks) in [
            (&[0.1][..], 0.1, 1),
            (&[0.9, 0.5], 0.5, 2),
            (&[0.9, 0.8, 0.95, 0.7, 0.99], 0.7, LOOKS_MAX),
        ] {
            let mut left = shares.iter();
            let least = least_busy(|| *left.next().expect("no further look"));
            assert!((least - found).abs() < f64::EPSILON, "{shares:?}: {least}");
            assert_eq!(shares.len() - left.len(), looks);
        }
    }
}
