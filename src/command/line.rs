//! The command line of a run: the given words, the layers behind them, and their meaning when read
//! again.

use std::ffi::OsString;

use clusterlb::{Error, Result};

use super::arguments::{Cli, Command};
use super::layers::Layers;
use super::settings::Settings;

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

/// The command line of a run: the given words, and the layers behind them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    given: Vec<OsString>,
    /// Where the options of the run begin.
    options_from: usize,
    layers: Layers,
}

impl Line {
    /// Reads the layers behind these words, if they are those of a run.
    pub(super) fn behind(given: Vec<OsString>) -> std::result::Result<Option<Self>, Unread> {
        let lenient = Cli::command_for(&given).ignore_errors(true);
        let found = lenient.try_get_matches_from(&given)?;
        let (options_from, of_run) = match found.subcommand() {
            None => (1, &found),
            Some(("run", of_run)) => (2, of_run),
            Some(_) => return Ok(None),
        };
        let layers = Layers::read(of_run)?;
        Ok(Some(Self { given, options_from, layers }))
    }

    /// All words.
    pub(super) fn words(&self) -> Vec<OsString> {
        self.layers.apply(&self.given, self.options_from)
    }

    /// The arguments of workers of this program: without this program's name, and without
    /// variables, which other users would see in a list of processes.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        self.layers.without("env").apply(&self.given, self.options_from).split_off(1)
    }

    /// Reads the line again. Options not in `may` stay as they are; their names are returned.
    ///
    /// # Errors
    /// A layer behind the words is not valid.
    pub(super) fn read_again(&self, may: &[&str]) -> Result<(Self, Vec<String>)> {
        let now = match Self::behind(self.given.clone()) {
            Ok(now) => now.unwrap_or_default(),
            Err(unread) => return Err(unread.into_error()),
        };
        let (layers, refused) = now.layers.limited_to(may, &self.layers);
        Ok((Self { layers, ..now }, refused))
    }

    /// The options whose values differ from `before`.
    pub(super) fn changed_from(&self, before: &Self) -> Vec<String> {
        self.layers.changed_from(&before.layers)
    }

    /// Converts the line to settings.
    ///
    /// # Errors
    /// The options contradict each other.
    pub(super) fn settings(&self) -> Result<Settings> {
        let cli = Cli::parse(&self.words()).map_err(|error| Unread::from(error).into_error())?;
        let mut run = match cli.command {
            Some(Command::Run(run)) => *run,
            _ => cli.run,
        };
        run.line = self.clone();
        run.settings()
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
