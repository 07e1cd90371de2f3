//! The command line of a run: the given words, and the layers behind them.

use std::ffi::OsString;

use clusterlb::Error;

use super::layers::Layers;

/// The command line of a run: the given words, and the layers behind them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CommandLine {
    given: Vec<OsString>,
    /// Where the options of the run begin.
    options_from: usize,
    layers: Layers,
}

impl CommandLine {
    pub(super) fn new(given: Vec<OsString>, options_from: usize, layers: Layers) -> Self {
        Self { given, options_from, layers }
    }

    /// The given words.
    pub(super) fn given(&self) -> &[OsString] {
        &self.given
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

    /// This line, with the options that may not change taken from `before`; also returns the names
    /// of those that differ.
    pub(super) fn limited_to(
        self,
        may: impl Fn(&str) -> bool,
        before: &Self,
    ) -> (Self, Vec<String>) {
        let (layers, refused) = self.layers.limited_to(may, &before.layers);
        (Self { layers, ..self }, refused)
    }

    /// The same error, with options called as where they stand.
    pub(super) fn translate(&self, error: Error) -> Error {
        self.layers.translate(error)
    }

    /// Whether there are options that the command line does not have.
    pub(super) fn has_layers(&self) -> bool {
        self.layers != Layers::default()
    }

    /// The options whose values differ from `before`.
    pub(super) fn changed_from(&self, before: &Self) -> Vec<String> {
        self.layers.changed_from(&before.layers)
    }
}
