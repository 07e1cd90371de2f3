//! The layers behind the command line: options from the environment and from a file, converted to
//! words in front of the given ones.
//!
//! Owns the names of keys and variables, which are those of the options, and the precedence:
//! command line, environment, file. It knows no single option but that of the file.

mod file;
mod terms;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use clusterlb::{Error, Result};

use super::absent::nearest;
use file::File;
use terms::Terms;

/// Prefix of the variables.
const PREFIX: &str = "CLUSTERLB_";
/// The option that names the file: it has a variable, but no key.
const FILE: &str = "config";
/// The program: not an option, but it has a key.
const PROGRAM: &str = "program";
/// The policy's variable, which the library reads.
const POLICY: (&str, &str) = ("policy", "CLUSTERLB_SCHED_POLICY");

/// The options that the environment and the file add to a command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layers {
    /// The words of each option.
    options: BTreeMap<String, Vec<OsString>>,
    program: Vec<OsString>,
    /// What they are called where they stand.
    terms: Terms,
}

/// Where a value comes from, for errors.
#[derive(Clone, Debug)]
enum Origin {
    Variable(String),
    /// A line of the file.
    Line(usize),
}

impl Layers {
    /// Reads the options of `command` to add to the given ones.
    ///
    /// # Errors
    /// [`Error::Usage`]: a file that cannot be read or parsed, or an invalid value.
    pub(super) fn read(command: &Command, given: &ArgMatches) -> Result<Self> {
        let path = match given.get_raw(FILE).and_then(|mut words| words.next_back()) {
            Some(word) => Some(word.to_owned()),
            None => std::env::var_os(variable(FILE)).filter(|value| !value.is_empty()),
        };
        let file = path.map(|path| File::read(Path::new(&path))).transpose()?;
        if let Some(file) = &file {
            file.ensure_known(command.get_arguments().filter_map(key))?;
        }
        let mut layers = Self::default();
        let is_given = |id: &str| given.value_source(id) == Some(ValueSource::CommandLine);
        // An option in an upper layer excludes conflicting ones in the layers below.
        let mut said: Vec<&Arg> =
            command.get_arguments().filter(|arg| is_given(arg.get_id().as_str())).collect();
        for from_file in [false, true] {
            let mut of_this_layer = Vec::new();
            for argument in command.get_arguments() {
                let found = match (key(argument), &file) {
                    (None | Some(FILE), _) => continue,
                    (Some(key), Some(file)) if from_file => file.values(key, argument)?,
                    (Some(_), None) if from_file => None,
                    (Some(key), _) => from_variable(key, argument)?,
                };
                let Some((origin, values)) = found else { continue };
                let words = words(command, argument, &values, &origin, file.as_ref())?;
                let is_ruled_out = said.iter().any(|other| {
                    other.get_id() == argument.get_id() || conflict(command, other, argument)
                });
                if !is_ruled_out {
                    let key = key(argument).expect("it has been looked at");
                    layers.options.insert(key.to_owned(), words);
                    match (origin, &file) {
                        (Origin::Variable(name), _) => layers.terms.add_variable(key, &name),
                        (Origin::Line(line), Some(file)) => {
                            layers.terms.add_key(key, file.place(line));
                        }
                        (Origin::Line(_), None) => {}
                    }
                    of_this_layer.push(argument);
                }
            }
            said.extend(of_this_layer);
        }
        if let Some(file) = &file {
            let has_program = command.get_arguments().find(|arg| arg.get_id() == PROGRAM);
            let is_ruled_out = is_given(PROGRAM)
                || said.iter().any(|other| {
                    has_program.is_some_and(|program| conflict(command, other, program))
                });
            if !is_ruled_out {
                layers.program = file.program()?;
            }
        }
        Ok(layers)
    }

    /// The same error, with options called as in the file or the environment if they stand there.
    pub(super) fn translate(&self, error: Error) -> Error {
        self.terms.translate(error)
    }

    /// These options without one.
    pub(super) fn without(&self, key: &str) -> Self {
        let mut rest = self.clone();
        rest.options.remove(key);
        rest
    }

    /// The words with those of the layers in front of the options, and the program at the end.
    pub(super) fn apply(&self, words: &[OsString], options_from: usize) -> Vec<OsString> {
        let (before, behind) = words.split_at(options_from.min(words.len()));
        let mut all = before.to_vec();
        all.extend(self.options.values().flatten().cloned());
        all.extend_from_slice(behind);
        if !self.program.is_empty() {
            if behind.iter().all(|word| word != "--") {
                all.push("--".into());
            }
            all.extend_from_slice(&self.program);
        }
        all
    }

    /// These options, with the ones that cannot change during a run taken from `before`; also
    /// returns the names of those that differ.
    pub(super) fn limited_to(
        mut self,
        may: impl Fn(&str) -> bool,
        before: &Self,
    ) -> (Self, Vec<String>) {
        let mut refused = Vec::new();
        let keys = self.options.keys().chain(before.options.keys()).cloned();
        let keys: std::collections::BTreeSet<String> = keys.collect();
        for key in keys.into_iter().filter(|key| !may(key)) {
            if self.options.get(&key) != before.options.get(&key) {
                match before.options.get(&key) {
                    Some(words) => drop(self.options.insert(key.clone(), words.clone())),
                    None => drop(self.options.remove(&key)),
                }
                refused.push(key);
            }
        }
        if self.program != before.program && (self.program.is_empty() || before.program.is_empty())
        {
            refused.push(PROGRAM.to_owned());
            self.program.clone_from(&before.program);
        }
        (self, refused)
    }

    /// The options whose words differ, including the program.
    pub(super) fn changed_from(&self, before: &Self) -> Vec<String> {
        let keys = self.options.keys().chain(before.options.keys());
        let mut changed: Vec<String> = keys
            .filter(|key| self.options.get(*key) != before.options.get(*key))
            .cloned()
            .collect();
        changed.sort();
        changed.dedup();
        if self.program != before.program {
            changed.push(PROGRAM.to_owned());
        }
        changed
    }
}

/// The key of an option; the program has none.
fn key(argument: &Arg) -> Option<&str> {
    argument.get_long()
}

/// The variable of a key.
pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('-', "_").to_uppercase())
}

/// The value of an option in the environment. Blanks separate several values of an option that can
/// be repeated.
fn from_variable(key: &str, argument: &Arg) -> Result<Option<(Origin, Vec<OsString>)>> {
    let name = variable(key);
    let Some(value) = std::env::var_os(&name).filter(|value| !value.is_empty()) else {
        // The library reads this one.
        let is_read_elsewhere = key == POLICY.0 && std::env::var_os(POLICY.1).is_some();
        return Ok(is_read_elsewhere.then(|| (Origin::Variable(POLICY.1.into()), vec![])));
    };
    let text = value.to_str().ok_or_else(|| {
        Error::usage(format!("{name} is not UTF-8"), "write the value in the file of --config")
    })?;
    let values = match argument.get_action() {
        ArgAction::Append => text.split_whitespace().map(OsString::from).collect(),
        ArgAction::SetTrue => match text {
            "1" | "true" | "yes" | "on" => vec!["true".into()],
            "0" | "false" | "no" | "off" => vec![],
            _ => {
                let what = format!("{name}={text}: it is switched on or off");
                return Err(Error::usage(what, "write true or false"));
            }
        },
        _ => vec![text.into()],
    };
    Ok(Some((Origin::Variable(name), values)))
}

/// The words of an option with these values; each is parsed.
fn words(
    command: &Command,
    argument: &Arg,
    values: &[OsString],
    origin: &Origin,
    file: Option<&File>,
) -> Result<Vec<OsString>> {
    let key = argument.get_long().expect("it has a key");
    let flag = format!("--{key}");
    let with_value = |value: &OsString| {
        let mut word = OsString::from(format!("{flag}="));
        word.push(value);
        word
    };
    let words: Vec<OsString> = match argument.get_action() {
        ArgAction::SetTrue => values.iter().map(|_| flag.clone().into()).collect(),
        _ => values.iter().map(with_value).collect(),
    };
    for (word, value) in words.iter().zip(values) {
        let tried = command.clone().try_get_matches_from([OsStr::new("clusterlb"), word]);
        let Err(error) = tried else { continue };
        if let Some(why) = objection(&error) {
            let value = value.to_string_lossy();
            let place = match (origin, file) {
                (Origin::Line(line), Some(file)) => file.place(*line),
                (Origin::Variable(name), _) => name.clone(),
                (Origin::Line(line), None) => format!("line {line}"),
            };
            // Remedies for the command line alone.
            let why = why.split(", or `--").next().unwrap_or_default();
            let form = form(argument, origin);
            return Err(Error::usage(
                format!("{place}: {key} cannot be {value:?}"),
                format!("{why}; the form is {form}"),
            ));
        }
    }
    Ok(words)
}

/// How an option is written in the file or the environment.
fn form(argument: &Arg, origin: &Origin) -> String {
    let key = argument.get_long().unwrap_or_default();
    let value = argument.get_value_names().and_then(|names| names.first());
    let value = value.map_or("VALUE", |name| name.as_str());
    let can_repeat = matches!(argument.get_action(), ArgAction::Append);
    match (origin, can_repeat) {
        (Origin::Variable(name), false) => format!("{name}='{value}'"),
        (Origin::Variable(name), true) => {
            format!("{name}='{value}', with blanks between several")
        }
        (Origin::Line(_), false) => format!("{key} = \"{value}\""),
        (Origin::Line(_), true) => {
            format!("{key} = \"{value}\", or {key} = [\"{value}\", \"{value}\"] for several")
        }
    }
}

/// What is wrong with a value alone, regardless of other options.
fn objection(error: &clap::Error) -> Option<String> {
    use clap::error::{ContextKind, ContextValue};
    match error.kind() {
        ErrorKind::ValueValidation => {
            let why = std::error::Error::source(error).map(ToString::to_string);
            Some(why.unwrap_or_else(|| "it means nothing".into()))
        }
        ErrorKind::InvalidValue => match error.get(ContextKind::ValidValue) {
            Some(ContextValue::Strings(values)) if !values.is_empty() => {
                Some(format!("write {}", values.join(", ")))
            }
            _ => Some("it takes a value".into()),
        },
        _ => None,
    }
}

/// Whether two options exclude each other.
fn conflict(command: &Command, one: &Arg, other: &Arg) -> bool {
    let names = |from: &Arg, to: &Arg| {
        let all = command.get_arg_conflicts_with(from);
        all.iter().any(|named| named.get_id() == to.get_id())
    };
    one.get_id() != other.get_id() && (names(one, other) || names(other, one))
}

/// The error for an unknown key.
fn unknown<'a>(what: String, key: &str, known: impl Iterator<Item = &'a str>) -> Error {
    let hint = match nearest(key, known) {
        Some((name, _)) => format!("the nearest is `{name}`"),
        None => "the keys are the names of the options in `clusterlb --help`".to_owned(),
    };
    Error::usage(what, hint)
}
