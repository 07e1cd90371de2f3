//! The command: one run, its progress on stderr, its results on stdout and in files.
//!
//! Owns the order of steps and the exit code. It never ends the process.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::cli::LoadArgs;
use crate::collect::{Interval, Row};
use crate::engine::{Observer, Progress, StopFlag, measure};
use crate::environment::Environment;
use crate::error::Error;
use crate::output::hdr_log::HdrLog;
use crate::output::live::LiveView;
use crate::output::{self, csv, text};
use crate::report::Report;
use crate::sys::signals::Signals;

/// Carries out what the arguments ask for and prints the results.
///
/// Returns 0 if the run was done, 1 if it failed, 2 if the arguments are refused, 3 if this machine
/// does not allow it, 4 if a condition on its results is not met. SIGINT and SIGTERM end the run
/// early; its results are still printed.
#[must_use]
pub fn run(arguments: &LoadArgs) -> ExitCode {
    let code = match load(arguments) {
        Ok(code) => code,
        Err(error) => {
            output::complain(&error.to_string(), error.hint());
            error.exit_code()
        }
    };
    ExitCode::from(code)
}

fn load(arguments: &LoadArgs) -> Result<u8, Error> {
    let settings = arguments.settings()?;
    // Files are opened first: after the run it is too late to learn that they cannot be written.
    let mut csv_file = arguments.csv.as_deref().map(output::create).transpose()?;
    let hdr_log = arguments.hdr_log.as_deref().map(HdrLog::create).transpose()?;
    let signals = Signals::new()?;
    let stop = StopFlag::default();
    let mut watcher = Watcher {
        view: LiveView::new(&settings, arguments.quiet),
        quiet: arguments.quiet,
        signals,
        stop: stop.clone(),
        hdr_log,
        hdr_error: None,
    };
    let measured = measure(&settings, &stop, &mut watcher);
    watcher.view.clear();
    let report = measured?;
    if let Some(file) = csv_file.as_mut() {
        file.write_with(|writer| csv::write(writer, &report))?;
    }
    if let Some(error) = watcher.hdr_error.take() {
        return Err(error);
    }
    // A table without values would only hide the reason.
    if arguments.json || report.failure.is_none() || report.totals.completed > 0 {
        print(&report, arguments.json)?;
    }
    if let Some(failure) = &report.failure {
        output::complain(&format!("{}: {}", failure.step, failure.cause), &failure.hint);
    }
    for unmet in report.unmet() {
        let what = format!("expected {}: {}", unmet.condition, unmet.measured);
        output::complain(&what, "exit code 4 says that a condition is not met");
    }
    Ok(report.exit_code())
}

/// Writes the results to stdout. It is no failure if the reader has gone away.
fn print(report: &Report, json: bool) -> Result<(), Error> {
    let mut bytes = Vec::new();
    let written = if json {
        serde_json::to_writer_pretty(&mut bytes, report)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(bytes))
    } else {
        text::write(&mut bytes, report)
    };
    let mut stdout = io::stdout().lock();
    let shown = written.and_then(|()| stdout.write_all(&bytes)).and_then(|()| stdout.flush());
    match shown {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::Output { path: "the standard output".into(), source: error })
        }
        _ => Ok(()),
    }
}

/// Shows progress, looks for signals, writes the histogram log.
struct Watcher {
    view: LiveView,
    quiet: bool,
    signals: Signals,
    stop: StopFlag,
    hdr_log: Option<HdrLog>,
    hdr_error: Option<Error>,
}

impl Watcher {
    /// Writes to the histogram log. A failure ends the log, not the run; it is reported at the end.
    fn log(&mut self, write: impl FnOnce(&mut HdrLog) -> Result<(), Error>) {
        if let Some(Err(error)) = self.hdr_log.as_mut().map(write) {
            self.hdr_log = None;
            self.hdr_error = Some(error);
        }
    }
}

impl Observer for Watcher {
    fn prepared(&mut self, environment: &Environment) {
        if self.quiet {
            return;
        }
        if environment.debug_build {
            output::note("this is a debug build: build with --release before trusting any figure");
        }
        if let Some(warning) = &environment.port_warning {
            output::note(warning);
        }
    }

    fn began(&mut self, measured_from_unix_ms: u64) {
        self.log(|log| log.begin(measured_from_unix_ms));
    }

    fn second(&mut self, interval: &Interval, row: &Row) {
        self.view.second(interval, row);
        self.log(|log| log.second(interval));
    }

    fn tick(&mut self, progress: &Progress) {
        self.view.show(progress);
        if self.signals.arrived() {
            self.stop.set();
        }
    }
}
