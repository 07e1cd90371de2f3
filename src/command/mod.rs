//! The `clusterlb` command: arguments in, exit code out.
//!
//! Owns dispatch. Everything it starts lives in the modules below it.

mod addresses;
mod arguments;
mod bench;
mod check;
mod choices;
mod console;
mod imbalance;
mod inspect;
mod keeper;
mod measuring;
mod output;
mod program;
mod server;
mod service_manager;
mod settings;
mod signals;
mod worker_environment;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::{Parser as _, ValueEnum};
use nix::sys::signal::Signal;

use crate::command::keeper::{Event, Keeper, Outcome, Printer};
use crate::command::settings::{Runtime, Settings};
use arguments::{Cli, Command, RunArguments};
use clusterlb::protocol::environment;
use clusterlb::topology::{self, CpuPlan};
use clusterlb::{AcceptMechanism, Policy};
use clusterlb::{Error, Result};
use clusterlb_sys::cpu::CpuFacts;
use clusterlb_sys::probe::{self, FeatureLevel};
use clusterlb_sys::process;
use clusterlb_sys::{inherited, limits};
use console::{Console, Style};
use service_manager::ServiceManager;

/// Descriptors that the primary needs besides connections: its own, and some for each worker.
const DESCRIPTORS_BASE: u64 = 64;
const DESCRIPTORS_PER_WORKER: u64 = 6;

/// Runs the command and gives the process's exit code.
#[must_use]
pub(crate) fn main() -> ExitCode {
    let result = inherited::repair().and_then(|()| match Cli::try_parse() {
        Ok(cli) => obey(cli),
        Err(error) => show(&error),
    });
    result.unwrap_or_else(|error| {
        complain(&error);
        error.exit_code().into()
    })
}

fn obey(cli: Cli) -> Result<ExitCode> {
    let code = match cli.command {
        Some(Command::Check { json }) => show_check(json),
        Some(Command::Bench(arguments)) => arguments.run(),
        Some(Command::Imbalance(arguments)) => arguments.run(),
        Some(Command::Load(arguments)) => return Ok(loadtest::run(&arguments)),
        Some(Command::Run(arguments)) => run(&arguments),
        None => run(&cli.run),
    };
    code.map(ExitCode::from)
}

/// Shows what clap has to say: help and the version on standard output, or wrong usage.
fn show(error: &clap::Error) -> Result<ExitCode> {
    let text = error.render();
    if error.use_stderr() {
        // What cannot be shown cannot be complained of either.
        let _ = error.print();
    } else if std::io::stdout().is_terminal() {
        output::print(&text.ansi().to_string())?;
    } else {
        output::print(&text.to_string())?;
    }
    Ok(ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2)))
}

/// One line: what failed, why, and what to do.
fn complain(error: &Error) {
    let _ = writeln!(std::io::stderr().lock(), "clusterlb: {error}; {}", error.hint());
}

fn show_check(json: bool) -> Result<u8> {
    let report = check::run();
    let text = if json {
        serde_json::to_string(&report).expect("a report is plain data")
    } else {
        check::render(&report)
    };
    output::print(&format!("{}\n", text.trim_end()))?;
    Ok(check::exit_code(&report))
}

fn run(arguments: &RunArguments) -> Result<u8> {
    let mut settings = arguments.settings()?;
    if environment::is_worker() {
        addresses::take_over(&mut settings)?;
        return be_worker(&settings).map(|()| 0);
    }
    inherited::unblock_signals()?;
    signals::keep_early()?;
    if arguments.json {
        output::ensure_open()?;
    }
    addresses::resolve(&mut settings)?;
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
    let mut console = Console::new(style, settings.listen.len(), introduction, printer.clone());
    let result = {
        let mut manager = ServiceManager::from_environment(settings.listen.len());
        let mut tell = |event: Event| {
            manager.on_event(&event);
            console.tell(event);
        };
        let keeper = Keeper::start(&settings, &plan, level, &mut tell, &printer);
        keeper.and_then(Keeper::run)
    };
    let result = result.and_then(|outcome| conclude(&mut console, outcome));
    // What has failed is told behind everything else.
    printer.finish();
    result
}

fn be_worker(settings: &Settings) -> Result<()> {
    let inheritance = environment::Inheritance::take()?;
    limits::raise_descriptor_limit()?;
    process::set_name(&format!("clusterlb:{}", inheritance.id));
    match settings.serve.runtime {
        Runtime::Ring => server::run(settings, inheritance),
        #[cfg(feature = "tokio-uring")]
        Runtime::TokioUring => server::runtime::run(settings, inheritance),
    }
}

fn conclude(console: &mut Console, outcome: Outcome) -> Result<u8> {
    console.tell(Event::Summary(outcome.summary));
    match (outcome.failure, outcome.forced_by) {
        (Some(error), _) => Err(error),
        (None, Some(signal)) => Ok(forced_code(signal)),
        (None, None) => Ok(0),
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
