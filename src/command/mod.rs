//! The `clusterlb` command: arguments in, exit code out.
//!
//! Owns dispatch to the subcommands. The modules below start everything else.

mod absent;
mod addresses;
mod admin;
mod admin_address;
mod arguments;
mod assembly;
mod balancing;
mod bench;
mod built_in;
mod changes;
mod check;
mod choices;
mod cli;
mod companion;
mod console;
mod dispatching;
mod engine;
mod escape;
mod event;
mod failure;
mod generated;
mod handler;
mod headings;
mod imbalance;
mod inspect;
mod known_programs;
mod launcher;
mod layers;
mod line;
mod lines;
mod log;
mod measuring;
mod needs;
mod no_script;
mod note_limit;
mod output;
mod printer;
mod program;
mod recycle;
mod reloading;
mod run;
mod seccomp;
mod server;
mod service_manager;
mod settings;
mod start_errors;
mod summary;
mod unread_messages;
mod usage;
mod values;
mod version;
mod worker_environment;
mod wrappers;

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use clap::{CommandFactory as _, ValueEnum};
use clusterlb_sys::signal::Signal;

use crate::command::settings::Settings;
use arguments::RunArguments;
use cli::{Cli, Command, Unread};
use clusterlb::protocol::environment;
use clusterlb::topology::{self, CpuPlan, Pin};
use clusterlb::{AcceptMechanism, Dialect, EngineDecision, Policy};
use clusterlb::{Error, Result};
use clusterlb_sys::cpu::CpuFacts;
use clusterlb_sys::engine::ring;
use clusterlb_sys::process;
use clusterlb_sys::{inherited, limits, passed, signal};
use console::{Console, Style};
use dispatching::Dispatching;
use log::{Dress, Level, goes_to_journal};
use printer::Printer;

/// Signals that arrive while a run is prepared wait until it can handle them. Until anything is
/// started, SIGINT and SIGTERM end the process.
const EARLY_SIGNALS: [Signal; 8] = [
    Signal::SIGCHLD,
    Signal::SIGHUP,
    Signal::SIGPWR,
    Signal::SIGQUIT,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// How long the last line waits for its reader.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// Runs the command and returns the process's exit code.
#[must_use]
pub(crate) fn main() -> ExitCode {
    let result = inherited::repair().and_then(|()| match Cli::read(std::env::args_os()) {
        Ok(cli) => run_command(cli),
        Err(Unread::Shown(error)) => show(&error),
        Err(Unread::Failed(error)) => Err(error),
    });
    result.unwrap_or_else(|error| {
        complain(&error);
        failure::exit_code(&error).into()
    })
}

fn run_command(cli: Cli) -> Result<ExitCode> {
    let code = match cli.command {
        Some(Command::Check { json, config }) => show_check(json, config),
        Some(Command::Bench(arguments)) => arguments.run(),
        Some(Command::Imbalance(arguments)) => arguments.run(),
        Some(Command::Load(arguments)) => {
            output::ensure_open()?;
            return Ok(loadtest::run(&arguments));
        }
        Some(Command::Run(arguments)) => run(&arguments),
        Some(Command::Status(arguments)) => arguments.run(),
        Some(Command::Top(arguments)) => arguments.run(),
        Some(Command::Reload(arguments)) => arguments.reload(),
        Some(Command::Scale(arguments)) => arguments.run(),
        Some(Command::Worker(arguments)) => arguments.run(),
        Some(Command::Policy(arguments)) => arguments.run(),
        Some(Command::Drain(arguments)) => arguments.run(),
        Some(Command::Events(arguments)) => arguments.events(),
        Some(Command::Completions(arguments)) => arguments.run(Cli::command()),
        Some(Command::Man(arguments)) => arguments.run(Cli::command()),
        None => run(&cli.run),
    };
    code.map(ExitCode::from)
}

/// Prints clap's output: help and the version on standard output, or wrong usage.
fn show(error: &clap::Error) -> Result<ExitCode> {
    let text = error.render();
    if error.use_stderr() {
        // If printing fails, so would an error message.
        let _ = error.print();
    } else if std::io::stdout().is_terminal() {
        output::print(&text.ansi().to_string())?;
    } else {
        output::print(&text.to_string())?;
    }
    Ok(ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2)))
}

/// One line: what failed, the cause, the remedy. A stopped terminal (Ctrl-S) delays the end only
/// for a limited time: after a run no signal would end the wait.
fn complain(error: &Error) {
    let text = format!("clusterlb: {error}; {}", failure::remedy(error));
    let mut line = format!("{}\n", escape::on_one_line(&text));
    if goes_to_journal() {
        line = format!("<{}>{line}", Level::Err as u8);
    }
    let say = |line: &str| drop(std::io::stderr().lock().write_all(line.as_bytes()));
    let (done, is_done) = sync_channel(1);
    let text = line.clone();
    let body = move || {
        say(&text);
        let _ = done.send(());
    };
    match thread::Builder::new().spawn(body) {
        Ok(_) => drop(is_done.recv_timeout(LAST_PATIENCE)),
        Err(_) => say(&line),
    }
}

fn show_check(json: bool, config: Option<PathBuf>) -> Result<u8> {
    if let Some(path) = &config {
        let words = ["clusterlb".into(), "--config".into(), path.into()];
        Cli::read(words).map_err(Unread::into_error)?.run.settings(&Cli::commands())?;
    }
    let report = check::run()?;
    let path = config.map(|path| path.display().to_string());
    let text = if json {
        let mut report = serde_json::to_value(&report).expect("a report is plain data");
        if let Some(path) = path {
            report["config"] = path.into();
        }
        report.to_string()
    } else {
        let read = path.map(|path| format!("\n{path}: every key and value is right"));
        check::render(&report).trim_end().to_owned() + &read.unwrap_or_default()
    };
    output::print(&format!("{}\n", text.trim_end()))?;
    Ok(check::exit_code(&report))
}

fn run(arguments: &RunArguments) -> Result<u8> {
    let mut settings = arguments.settings(&Cli::commands())?;
    if environment::is_worker() {
        addresses::take_over(&mut settings)?;
        return be_worker(&settings).map(|()| 0);
    }
    inherited::unblock_signals()?;
    signal::block(&EARLY_SIGNALS)?;
    arguments.worker_environment.become_primary_user()?;
    if arguments.json {
        output::ensure_open()?;
    }
    let passed = passed::take();
    addresses::find_passed(&mut settings, &passed)?;
    addresses::resolve(&mut settings)?;
    let pin = needs::pin(&settings.pin)?;
    let mut plan = topology::plan(&CpuFacts::gather()?, settings.workers, &pin)
        .map_err(|error| Error::usage(format!("--pin: {error}"), error.hint()))?;
    if pin != settings.pin {
        plan.notes.push("nothing is pinned: sched_setaffinity is refused here".into());
    }
    let is_native = settings.program.as_ref().is_none_or(|one| one.dialect == Dialect::Native);
    if !is_native && matches!(pin, Pin::List(_)) {
        plan.notes.push(
            "--pin places only the primary: the kernel places workers of Node and programs that \
             take their sockets over, which have several threads; taskset in front of clusterlb \
             limits all of them"
                .into(),
        );
    }
    let style = match (arguments.json, arguments.quiet) {
        (true, _) => Style::Json,
        (_, true) => Style::Quiet,
        _ => Style::Text,
    };
    needs::ensure(plan.workers.len())?;
    let (decision, share) = engine::decide_with_memory(&settings, plan.workers.len())?;
    settings.engine = decision.kind.into();
    if let Some(bytes) = share {
        ring::limit_locked_bytes(bytes);
        let variable = (environment::RING_BYTES.into(), bytes.to_string().into());
        settings.own_variables.push(variable);
        let text = format!("rings are smaller: each may lock {} KiB (`ulimit -l`)", bytes / 1024);
        plan.notes.push(text);
    }
    let dispatching = Dispatching::decide(&settings, plan.workers.len());
    let introduction = introduction(&settings, &plan, &decision, &dispatching);
    let dress = Dress::of(arguments.log_format, arguments.log_file.as_deref());
    let printer = Printer::start(arguments.log_file.clone())?;
    if settings.serve.seccomp {
        seccomp::restrict_rings();
        seccomp::confine_primary()?;
    }
    let listeners = settings.listen.len();
    let console = Console::new(style, dress, listeners, introduction, printer.clone());
    let forced_by = run::run(&settings, &plan, &decision, &dispatching, passed, console, &printer);
    // A write failure is reported after everything else.
    let lost = printer.finish();
    match (forced_by?, lost) {
        (Some(signal), _) => Ok(forced_code(signal)),
        (None, Some(errno)) => Err(output::failed(errno)),
        (None, None) => Ok(0),
    }
}

fn be_worker(settings: &Settings) -> Result<()> {
    #[cfg(feature = "tokio-uring")]
    if settings.serve.runtime == settings::Runtime::TokioUring {
        return server::runtime::run(settings);
    }
    let inheritance = environment::Inheritance::take()?;
    limits::raise_descriptor_limit()?;
    if let Some(bytes) = inheritance.ring_bytes {
        ring::limit_locked_bytes(bytes);
    }
    if settings.serve.seccomp {
        seccomp::restrict_rings();
    }
    process::set_name(&format!("clusterlb:{}", inheritance.id));
    server::run(settings, inheritance)
}

/// A shell's exit code for a process that a signal ended.
fn forced_code(signal: Signal) -> u8 {
    u8::try_from(128 + signal as i32).unwrap_or(1)
}

/// The lines printed before the listeners are ready.
fn introduction(
    settings: &Settings,
    plan: &CpuPlan,
    decision: &EngineDecision,
    dispatching: &Dispatching,
) -> Vec<String> {
    let policy = match settings.policy {
        Policy::None => format!("none (workers accept, {})", source(settings)),
        Policy::Central => "central (one queue in front of idle workers)".to_owned(),
        policy => dispatching.in_words(policy),
    };
    let place = plan.primary.map_or_else(|| "not pinned".to_owned(), |cpu| format!("on CPU {cpu}"));
    let served = match &settings.program {
        Some(program) => program.path.display().to_string(),
        None => name(&settings.serve.serve),
    };
    let mut lines = vec![
        format!("clusterlb {}: serving {served}, policy {policy}", env!("CARGO_PKG_VERSION")),
        format!("engine {decision}"),
        format!("primary: pid {}, {place}; {}", std::process::id(), plan.reason),
    ];
    lines.extend(plan.notes.iter().map(|text| format!("note: {text}")));
    lines
}

/// The sockets from which workers accept.
fn source(settings: &Settings) -> String {
    match (&settings.program, settings.accept) {
        (Some(_), AcceptMechanism::Reuseport) => "each from its own socket".into(),
        (Some(_), _) => "from one socket".into(),
        (None, accept) => format!("by {accept}"),
    }
}

/// A value as the command line spells it.
fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
