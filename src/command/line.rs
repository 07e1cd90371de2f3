//! The command line of a run: the words that were given, what stands behind them, and what it means
//! when it is read again.

use std::ffi::OsString;

use clusterlb::{Error, Result};

use super::arguments::{Cli, Command};
use super::layers::Layers;
use super::settings::Settings;

/// Why a command line is not obeyed.
#[derive(Debug)]
pub(super) enum Unread {
    /// What clap has to say: help and the version, or wrong usage.
    Shown(Box<clap::Error>),
    /// What stands behind the command line means nothing.
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

/// The command line of a run: the words that were given, and what stands behind them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    given: Vec<OsString>,
    /// Where the options of the run begin.
    options_from: usize,
    layers: Layers,
}

impl Line {
    /// What stands behind these words, if they are those of a run.
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

    /// All of it.
    pub(super) fn words(&self) -> Vec<OsString> {
        self.layers.apply(&self.given, self.options_from)
    }

    /// What workers of the same program are started with: the same without this program's name,
    /// and without variables that others would see in a list of processes.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        self.layers.without("env").apply(&self.given, self.options_from).split_off(1)
    }

    /// The line as it would be now. Other options than those that `may` change stay as they are,
    /// and are named.
    ///
    /// # Errors
    /// What stands behind the words means nothing.
    pub(super) fn read_again(&self, may: &[&str]) -> Result<(Self, Vec<String>)> {
        let now = match Self::behind(self.given.clone()) {
            Ok(now) => now.unwrap_or_default(),
            Err(unread) => return Err(unread.into_error()),
        };
        let (layers, refused) = now.layers.limited_to(may, &self.layers);
        Ok((Self { layers, ..now }, refused))
    }

    /// The options whose values are others than `before`.
    pub(super) fn changed_from(&self, before: &Self) -> Vec<String> {
        self.layers.changed_from(&before.layers)
    }

    /// What the line means.
    ///
    /// # Errors
    /// It contradicts itself.
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
    /// As an error of ours, on one line.
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
