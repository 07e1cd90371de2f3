//! The `clusterlb` command: arguments in, exit code out.
//!
//! Owns dispatch. Everything it starts lives in the modules below it.

mod arguments;
mod bench;
mod check;
mod choices;
mod console;
mod escape;
mod event;
mod imbalance;
mod inspect;
mod known_programs;
mod launcher;
mod lines;
mod measuring;
mod note_limit;
mod printer;
mod program;
mod run;
mod server;
mod settings;
mod start_errors;
mod summary;
mod unread_messages;
mod worker_environment;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser as _, ValueEnum};
use nix::sys::signal::Signal;

use crate::command::settings::{Runtime, Settings};
use arguments::{Cli, Command, RunArguments};
use clusterlb::protocol::environment;
use clusterlb::topology::{self, CpuPlan};
use clusterlb::{AcceptMechanism, Policy};
use clusterlb::{Error, Result};
use clusterlb_sys::cpu::CpuFacts;
use clusterlb_sys::limits;
use clusterlb_sys::probe::{self, FeatureLevel};
use clusterlb_sys::process;
use console::{Console, Style};
use printer::Printer;

/// Descriptors that the primary needs besides connections: its own, and some for each worker.
const DESCRIPTORS_BASE: u64 = 64;
const DESCRIPTORS_PER_WORKER: u64 = 6;

/// Runs the command and gives the process's exit code.
#[must_use]
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Some(Command::Check { json }) => show_check(json),
        Some(Command::Bench(arguments)) => arguments.run(),
        Some(Command::Imbalance(arguments)) => arguments.run(),
        Some(Command::Load(arguments)) => return loadtest::run(&arguments),
        Some(Command::Run(arguments)) => run(&arguments),
        None => run(&cli.run),
    };
    let code = result.unwrap_or_else(|error| {
        complain(&error);
        error.exit_code()
    });
    ExitCode::from(code)
}

/// One line: what failed, why, and what to do.
fn complain(error: &Error) {
    let text = format!("clusterlb: {error}; {}", error.hint());
    let _ = writeln!(std::io::stderr().lock(), "{}", escape::on_one_line(&text));
}

fn show_check(json: bool) -> Result<u8> {
    let report = check::run();
    let text = if json {
        serde_json::to_string(&report).expect("a report is plain data")
    } else {
        check::render(&report)
    };
    let _ = writeln!(std::io::stdout().lock(), "{}", text.trim_end());
    Ok(check::exit_code(&report))
}

fn run(arguments: &RunArguments) -> Result<u8> {
    let settings = arguments.settings()?;
    if environment::is_worker() {
        return be_worker(&settings).map(|()| 0);
    }
    let plan = topology::plan(&CpuFacts::gather()?, settings.workers, &settings.pin)?;
    ensure_descriptors(&plan)?;
    let style = match (arguments.json, arguments.quiet) {
        (true, _) => Style::Json,
        (_, true) => Style::Quiet,
        _ => Style::Text,
    };
    let support = probe::probe();
    if let Some(errno) = support.refusal {
        return Err(probe::refusal_error(errno));
    }
    let level = support.level();
    let introduction = introduction(&settings, &plan, level);
    let printer = Printer::start()?;
    let console = Console::new(style, settings.listen.len(), introduction, printer.clone());
    let forced_by = run::run(&settings, &plan, level, console, &printer);
    // What has failed is told behind everything else.
    printer.finish();
    Ok(forced_by?.map_or(0, forced_code))
}

fn be_worker(settings: &Settings) -> Result<()> {
    let inheritance = environment::Inheritance::take()?;
    process::set_name(&format!("clusterlb:{}", inheritance.id));
    match settings.serve.runtime {
        Runtime::Ring => server::run(settings, inheritance),
        #[cfg(feature = "tokio-uring")]
        Runtime::TokioUring => server::runtime::run(settings, inheritance),
    }
}

/// A shell's code for a process that a signal ended.
fn forced_code(signal: Signal) -> u8 {
    u8::try_from(128 + signal as i32).unwrap_or(1)
}

fn ensure_descriptors(plan: &CpuPlan) -> Result<()> {
    let limit = limits::raise_descriptor_limit()?;
    let workers = plan.workers.len() as u64;
    let needed = DESCRIPTORS_BASE + workers * DESCRIPTORS_PER_WORKER;
    if limit >= needed {
        return Ok(());
    }
    Err(Error::Environment {
        step: format!("the hard limit of {limit} descriptors is too low for {workers} workers"),
        source: nix::errno::Errno::EMFILE,
        hint: format!("raise it to {needed} or more (`ulimit -Hn`), or start fewer workers"),
    })
}

/// What is printed before the listeners are ready.
fn introduction(settings: &Settings, plan: &CpuPlan, level: FeatureLevel) -> Vec<String> {
    let policy = match settings.policy {
        Policy::None => format!("none (workers accept, {})", source(settings)),
        policy => format!("{policy} (the primary accepts and hands over)"),
    };
    let place = plan.primary.map_or_else(|| "not pinned".to_owned(), |cpu| format!("on CPU {cpu}"));
    let served = match &settings.program {
        Some(program) => program.path.display().to_string(),
        None => name(&settings.serve.serve),
    };
    let mut lines = vec![
        format!(
            "clusterlb {}: serving {served}, policy {policy}, engine io_uring {level}",
            env!("CARGO_PKG_VERSION")
        ),
        format!("primary: pid {}, {place}; {}", std::process::id(), plan.reason),
    ];
    lines.extend(plan.notes.iter().map(|text| format!("note: {text}")));
    lines
}

/// From what workers accept by themselves.
fn source(settings: &Settings) -> String {
    match (&settings.program, settings.accept) {
        (Some(_), AcceptMechanism::Reuseport) => "each from a socket of its own".into(),
        (Some(_), _) => "from one socket".into(),
        (None, accept) => format!("by {accept}"),
    }
}

/// A value as the command line spells it.
fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
