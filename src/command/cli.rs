//! The command line as clap parses it: the commands, help and examples, and the layers behind the
//! line of a run.
//!
//! Owns the commands' names and the texts around the options. Refuses to act.

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use clusterlb::protocol::environment;
use clusterlb::{Error, Result};

use super::arguments::RunArguments;
use super::headings;
use super::layers::Layers;
use super::line::CommandLine;
use super::settings::Settings;
use super::version::LONG_VERSION;

const SHORT_EXAMPLES: &str = "\
Examples (--help has more, and all options):
  clusterlb --workers 4 node server.js   a Node server in four processes
  clusterlb --listen 0.0.0.0:80          hello world, a worker for each CPU
  clusterlb check                        whether and how it can run here";

const EXAMPLES: &str = "\
Examples:
  clusterlb --workers auto
      hello world on 127.0.0.1:8000, a worker for each CPU
  clusterlb --workers 4 node server.js
      an unmodified Node server in four processes; kill -HUP replaces them one by one
  clusterlb --dialect listen-fds --listen 0.0.0.0:8000 gunicorn MODULE:APP
      any program that takes its listening sockets over as from systemd
  clusterlb --workers 4 --listen 0.0.0.0:80 --listen '[::1]:8080' --listen unix:/run/hello.sock
      several listeners, each with its own rotation
  clusterlb --policy none --accept uring-multishot --workers 8
      let the kernel choose the worker, and see who gets the load
  clusterlb --json --listen 127.0.0.1:0
      a free port, reported as JSON on standard output

Exit codes: 0 ended in order, 1 failed, 2 wrong usage, 3 this machine cannot (too few descriptors,
or something needs io_uring and it is refused), 130/143 cut short by a second SIGINT/SIGTERM.";

/// Load balancing over worker processes: a primary accepts and hands sockets over
#[derive(Debug, Parser)]
#[command(
    name = "clusterlb",
    version,
    long_version = LONG_VERSION,
    args_conflicts_with_subcommands = true,
    max_term_width = 100,
    override_usage = "clusterlb [OPTIONS] [PROGRAM [ARGUMENTS]...]\n       clusterlb <COMMAND>",
    after_help = SHORT_EXAMPLES,
    after_long_help = EXAMPLES,
    disable_help_flag = true,
    disable_version_flag = true
)]
pub(super) struct Cli {
    /// The command; none serves.
    #[command(subcommand)]
    pub(super) command: Option<Command>,
    /// Options of a run.
    #[command(flatten)]
    pub(super) run: RunArguments,
    /// Show help: -h on one screen, --help all of it
    #[arg(short, long, action = ArgAction::Help, global = true, help_heading = headings::OPERATION)]
    help: Option<bool>,
    /// Show the version, and with --version the build
    #[arg(short = 'V', long, action = ArgAction::Version, help_heading = headings::OPERATION)]
    version: Option<bool>,
}

impl Cli {
    /// Parses a command line whose first word is this program, and adds the environment and the
    /// file.
    ///
    /// # Errors
    /// Help or the version is requested, or the words are not valid.
    pub(super) fn read(
        words: impl IntoIterator<Item = OsString>,
    ) -> std::result::Result<Self, Unread> {
        let words: Vec<OsString> = words.into_iter().collect();
        // A worker gets the whole line from its primary.
        if environment::is_worker() {
            return Ok(Self::parse(&words)?);
        }
        match Self::line_of(&words)? {
            Some(line) => Self::parse_line(line),
            None => Ok(Self::parse(&words)?),
        }
    }

    /// Reads the line of a run again. Options that may not change stay as they are; their names
    /// are returned.
    ///
    /// # Errors
    /// A layer behind the words is not valid.
    pub(super) fn read_again(
        line: &CommandLine,
        may: impl Fn(&str) -> bool,
    ) -> Result<(CommandLine, Vec<String>)> {
        let now = Self::line_of(line.given()).map_err(Unread::into_error)?.unwrap_or_default();
        Ok(now.limited_to(may, line))
    }

    /// The settings of the line of a run.
    ///
    /// # Errors
    /// The options contradict each other.
    pub(super) fn settings_of(line: CommandLine) -> Result<Settings> {
        let mut cli = Self::parse_line(line).map_err(Unread::into_error)?;
        cli.run_arguments().settings(&Self::commands())
    }

    /// The options of a run.
    pub(super) fn run_arguments(&mut self) -> &mut RunArguments {
        match &mut self.command {
            Some(Command::Run(run)) => run,
            _ => &mut self.run,
        }
    }

    /// Reads the layers behind these words, if they are those of a run.
    fn line_of(given: &[OsString]) -> std::result::Result<Option<CommandLine>, Unread> {
        let lenient = Self::command_for(given).ignore_errors(true);
        let found = lenient.try_get_matches_from(given)?;
        let (options_from, of_run) = match found.subcommand() {
            None => (1, &found),
            Some(("run", of_run)) => (2, of_run),
            Some(_) => return Ok(None),
        };
        let layers = Layers::read(&RunArguments::command(), of_run)?;
        Ok(Some(CommandLine::new(given.to_vec(), options_from, layers)))
    }

    fn parse_line(line: CommandLine) -> std::result::Result<Self, Unread> {
        let mut cli = Self::parse(&line.words()).map_err(|error| match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Unread::from(error),
            _ if !line.has_layers() => Unread::from(error),
            // A mistake of the words alone: clap's text has the whole of it, with the tip.
            kind => match Self::parse(line.given()) {
                Err(error) if error.kind() == kind => Unread::from(error),
                _ => Unread::Failed(line.translate(Unread::from(error).into_error())),
            },
        })?;
        cli.run_arguments().line = line;
        Ok(cli)
    }

    /// The command that parses these words.
    fn command_for(words: &[OsString]) -> clap::Command {
        let mut command = Self::command();
        if words.iter().any(|word| word == "-h") {
            // The short help is one screen, and its text covers what matters of them.
            command = command.mut_args(|argument| {
                let takes_values = argument.get_action().takes_values();
                argument.hide_possible_values(takes_values)
            });
        }
        command
    }

    fn parse(words: &[OsString]) -> std::result::Result<Self, clap::Error> {
        let command = Self::command_for(words);
        let cli = Self::from_arg_matches_mut(&mut command.try_get_matches_from(words)?)?;
        let program = cli.run.program.words();
        let is_marked = words.iter().rev().nth(program.len()).is_some_and(|word| word == "--");
        match program.first().and_then(|name| name.to_str()) {
            // A command's name behind options of a run.
            Some(name) if !is_marked && Self::commands().iter().any(|one| one == name) => {
                Err(Self::command().error(
                    ErrorKind::ArgumentConflict,
                    format!(
                        "the command '{name}' cannot be used with options in front of it; write \
                         `-- {name}` if that is your program"
                    ),
                ))
            }
            _ => Ok(cli),
        }
    }

    /// The names of the commands.
    pub(super) fn commands() -> Vec<String> {
        let command = Self::command();
        command.get_subcommands().map(|one| one.get_name().to_owned()).collect()
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Compare policies, and other servers, under the same loads
    Bench(super::bench::BenchArguments),
    /// Show what this machine allows, and which engine a run would have
    Check {
        /// Print one JSON object instead of a table
        #[arg(long)]
        json: bool,
        /// Check this file of options, too, as a run with --config would read it
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Show how each accept mechanism spreads the load over the workers
    Imbalance(super::imbalance::ImbalanceArguments),
    /// Put load on any server and measure its latency
    Load(loadtest::cli::LoadArgs),
    /// Serve; the same as giving no subcommand
    Run(Box<RunArguments>),
    /// Show a run that has --admin: its state, listeners and workers
    Status(super::admin::StatusArguments),
    /// Show a run's workers live, with a bar for each; q quits
    Top(super::admin::TopArguments),
    /// Replace a run's workers one by one, and wait until that is done
    Reload(super::admin::ClientArguments),
    /// Change how many workers a run has, and wait until that is done
    Scale(super::admin::ScaleArguments),
    /// Replace, drain or kill one worker, and wait until that is done
    Worker(super::admin::WorkerArguments),
    /// Show a run's scheduling rules, or change some of them
    Policy(super::admin::PolicyArguments),
    /// End a run in order: open requests are finished first
    Drain(super::admin::DrainArguments),
    /// Follow a run's events as JSON lines, from now on
    Events(super::admin::ClientArguments),
    /// Print completions of commands and options for a shell
    Completions(super::generated::CompletionsArguments),
    /// Write the man pages to a folder
    #[command(hide = true)]
    Man(super::generated::ManArguments),
}

/// Why a command line is refused.
#[derive(Debug)]
pub(super) enum Unread {
    /// From clap: help and the version, or wrong usage.
    Shown(Box<clap::Error>),
    /// A layer behind the command line is not valid.
    Failed(Error),
}

impl From<clap::Error> for Unread {
    fn from(error: clap::Error) -> Self {
        Self::Shown(Box::new(error))
    }
}

impl From<Error> for Unread {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Unread {
    /// As a library error, on one line.
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Failed(error) => error,
            Self::Shown(error) => {
                let text = error.render().to_string();
                let first = text.split("\n\n").next().unwrap_or_default();
                let words: Vec<&str> = first.split_whitespace().collect();
                let what = words.join(" ");
                let what = what.strip_prefix("error: ").unwrap_or(&what).to_owned();
                Error::usage(what, "see `clusterlb --help`")
            }
        }
    }
}
