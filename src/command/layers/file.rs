//! The file of `--config`: TOML with the names of options as keys.

use std::ffi::OsString;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction};
use clusterlb::{Error, Result};
use clusterlb_sys::error::errno_of;
use toml::de::{DeTable, DeValue};

use super::{FILE, Origin, PROGRAM, unknown};

/// Larger than any sensible file.
const BYTES_MAX: u64 = 1024 * 1024;

/// A file that has been read.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    key: String,
    /// Counted from 1.
    line: usize,
    value: Value,
}

/// The value of a key, in the kinds that options know.
#[derive(Debug)]
enum Value {
    Switch(bool),
    Text(String),
    List(Vec<String>),
    /// Names with values.
    Pairs(Vec<(String, String)>),
    /// Another kind, by its name.
    Other(&'static str),
}

impl File {
    /// Reads the file.
    ///
    /// # Errors
    /// [`Error::Usage`]: it cannot be read, or is not TOML.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = text(path)?;
        let table = DeTable::parse(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_of(&text, span.start));
            let why = error.message().lines().collect::<Vec<_>>().join(", ");
            let key = key_in(&text, line).map_or_else(String::new, |key| format!("{key}: "));
            Error::usage(
                format!("{}, line {line}: {key}{why}", path.display()),
                "write KEY = VALUE as in TOML: \"text\", 1, true, or [\"one\", \"two\"]",
            )
        })?;
        let mut entries: Vec<Entry> = table
            .get_ref()
            .iter()
            .map(|(key, value)| Entry {
                key: key.get_ref().to_string(),
                line: line_of(&text, key.span().start),
                value: Value::of(value.get_ref()),
            })
            .collect();
        entries.sort_by_key(|entry| entry.line);
        Ok(Self { path: path.to_owned(), entries })
    }

    /// A position, for people.
    pub(super) fn place(&self, line: usize) -> String {
        format!("{}, line {line}", self.path.display())
    }

    /// Checks that every key is one of these or the program's.
    ///
    /// # Errors
    /// [`Error::Usage`] names the first unknown key and the nearest known one.
    pub(super) fn ensure_known<'a>(&self, keys: impl Iterator<Item = &'a str>) -> Result<()> {
        let keys: Vec<&str> = keys.filter(|key| *key != FILE).chain([PROGRAM]).collect();
        match self.entries.iter().find(|entry| !keys.contains(&entry.key.as_str())) {
            None => Ok(()),
            Some(Entry { key, line, .. }) => {
                let what = format!("{}: there is no key `{key}`", self.place(*line));
                Err(unknown(what, key, keys.into_iter()))
            }
        }
    }

    /// The values of an option in the file.
    ///
    /// # Errors
    /// [`Error::Usage`]: the option does not take a value of this kind.
    pub(super) fn values(
        &self,
        key: &str,
        argument: &Arg,
    ) -> Result<Option<(Origin, Vec<OsString>)>> {
        let Some(entry) = self.entries.iter().find(|entry| entry.key == key) else {
            return Ok(None);
        };
        let refuse = |takes: &str| {
            Err(Error::usage(
                format!("{}: `{key}` {}", self.place(entry.line), entry.value.kind()),
                takes,
            ))
        };
        let can_repeat = matches!(argument.get_action(), ArgAction::Append);
        let needs_no_value = argument.get_num_args().is_some_and(|count| count.min_values() == 0);
        let has_pairs = argument
            .get_value_names()
            .is_some_and(|names| names.iter().any(|name| name.contains('=')));
        let values = match (&entry.value, argument.get_action()) {
            (Value::Switch(true), ArgAction::SetTrue) => vec!["true".into()],
            (Value::Switch(false), ArgAction::SetTrue) => vec![],
            (_, ArgAction::SetTrue) => return refuse("write true or false"),
            (Value::Switch(true), _) if needs_no_value => vec!["default".into()],
            (Value::Text(text), _) => vec![text.clone()],
            (Value::List(list), _) if can_repeat => list.clone(),
            (Value::Pairs(pairs), _) if can_repeat && has_pairs => {
                pairs.iter().map(|(name, value)| format!("{name}={value}")).collect()
            }
            _ if can_repeat => return refuse("write \"text\", or [\"one\", \"two\"] for several"),
            _ => return refuse("write a number, or \"text\" in quotes"),
        };
        let values = values.into_iter().map(OsString::from).collect();
        Ok(Some((Origin::Line(entry.line), values)))
    }

    /// The words of the program, if the file names one.
    ///
    /// # Errors
    /// [`Error::Usage`]: the value is not a list of words.
    pub(super) fn program(&self) -> Result<Vec<OsString>> {
        let Some(entry) = self.entries.iter().find(|entry| entry.key == PROGRAM) else {
            return Ok(vec![]);
        };
        match &entry.value {
            Value::List(words) => Ok(words.iter().map(OsString::from).collect()),
            Value::Text(text) => Ok(text.split_whitespace().map(OsString::from).collect()),
            other => Err(Error::usage(
                format!("{}: `{PROGRAM}` {}", self.place(entry.line), other.kind()),
                "write its words, such as [\"node\", \"server.js\"]",
            )),
        }
    }
}

impl Value {
    fn of(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::Boolean(on) => Self::Switch(*on),
            DeValue::Array(array) => {
                let texts = array.iter().map(|one| scalar(one.get_ref())).collect::<Option<_>>();
                texts.map_or(Self::Other("is a list with something other than values"), Self::List)
            }
            DeValue::Table(table) => {
                let pairs = table.iter().map(|(name, value)| {
                    Some((name.get_ref().to_string(), scalar(value.get_ref())?))
                });
                let pairs = pairs.collect::<Option<_>>();
                pairs.map_or(Self::Other("is a table of tables"), Self::Pairs)
            }
            DeValue::Datetime(_) => Self::Other("is a date"),
            other => scalar(other).map_or(Self::Other("is too large a number"), Self::Text),
        }
    }

    /// The kind, for errors.
    fn kind(&self) -> &'static str {
        match self {
            Self::Switch(_) => "cannot be true or false",
            Self::Text(_) => "cannot be a text or a number",
            Self::List(_) => "cannot be a list",
            Self::Pairs(_) => "cannot be a table",
            Self::Other(what) => what,
        }
    }
}

/// A text or a number, spelled as on the command line.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => {
            let number = i128::from_str_radix(number.as_str(), number.radix()).ok()?;
            Some(number.to_string())
        }
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        _ => None,
    }
}

fn text(path: &Path) -> Result<String> {
    let cannot = |why: &str| {
        Error::usage(
            format!("cannot read --config {}: {why}", path.display()),
            "name a file of TOML that this user may read",
        )
    };
    let why = |error: &std::io::Error| cannot(errno_of(error).desc());
    // Reading a pipe could block forever.
    if !fs::metadata(path).map_err(|error| why(&error))?.is_file() {
        return Err(cannot("it is not a file"));
    }
    let file = fs::File::open(path).map_err(|error| why(&error))?;
    let mut bytes = Vec::new();
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| why(&error))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > BYTES_MAX {
        return Err(cannot("it is larger than 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|_| cannot("it is not UTF-8"))
}

/// The key of a line that is no TOML.
fn key_in(text: &str, line: usize) -> Option<String> {
    let (key, _) = text.lines().nth(line.checked_sub(1)?)?.split_once('=')?;
    let key = key.trim();
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || "-_.\"".contains(letter);
    (!key.is_empty() && key.chars().all(is_name)).then(|| format!("`{key}`"))
}

/// The line of a byte offset, counted from 1.
fn line_of(text: &str, place: usize) -> usize {
    text.bytes().take(place).filter(|byte| *byte == b'\n').count() + 1
}
