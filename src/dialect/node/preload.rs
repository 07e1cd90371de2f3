//! The script that Node workers load before their program, so that the primary learns what Node's
//! own channel never says: which connections have ended, and whether the event loop moves; and so
//! that connections need no message each on that channel.
//!
//! Owns the file that it lies in, and how a worker is told to load it and where it reports. What
//! it does is in the parts below `preload/`, and the words that it writes are `scoreboard`'s.
//!
//! It is a file because `--require` takes nothing else: Node looks for the real path of what it
//! loads, and what lies in memory has none. `--import` takes the text itself, but then Node loads
//! the program as a module would be, and not every program can be. The file has to be there as
//! long as there are workers, since Node loads it again in every thread that they start.

mod script;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::RawFd;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use tempfile::TempDir;

use crate::error::{Error, Result};

/// Not `.js`, which means something else where a `package.json` in a folder above says so.
const NAME: &str = "preload.cjs";
/// Where Node finds further options.
const OPTIONS: &str = "NODE_OPTIONS";
/// What the script finds its own words in.
const VARIABLE: &str = "CLUSTERLB_PRELOAD";
/// Node refuses to read files that a program has not been allowed, and ends.
const RESTRICTION: [&str; 3] =
    ["--permission", "--experimental-permission", "--experimental-policy"];

/// The script, ready to be loaded. Dropping it removes the file.
#[derive(Debug)]
pub struct Preload {
    _folder: TempDir,
    /// What makes Node load it.
    option: String,
}

/// What a worker's script reports to and receives from, as descriptors that the worker inherits.
#[derive(Clone, Copy, Debug)]
pub struct Reporting {
    /// Its page of the load board.
    pub page: RawFd,
    /// What it rings when the page says so.
    pub waker: RawFd,
    /// The receiving end of its inbox.
    pub inbox: RawFd,
    /// How long a loop may stand still before its worker is passed over; for ever, if none.
    pub hang_after: Option<Duration>,
}

impl Preload {
    /// Writes the script to a new folder for temporary files.
    ///
    /// Everybody may read it, since workers may run as another user, and only the owner may change
    /// it.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn write() -> Result<Self> {
        let failed = |error: std::io::Error| Error::Workers {
            // It says where, too.
            what: format!("cannot write down what Node workers load: {error}"),
            hint: "let TMPDIR name a folder that can be written, or say --preload off".into(),
        };
        let folder = tempfile::Builder::new()
            .prefix("clusterlb-")
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir()
            .map_err(failed)?;
        let path = folder.path().join(NAME);
        fs::write(&path, script::text()).map_err(failed)?;
        // Whatever the mask of this process would take from them.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).map_err(failed)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).map_err(failed)?;
        let option = format!("--require {}", quoted(&path.to_string_lossy()));
        Ok(Self { _folder: folder, option })
    }

    /// The variables of a worker that loads it. `options` are the ones that it would have had.
    #[must_use]
    pub fn variables(
        &self,
        reporting: Reporting,
        options: Option<&OsStr>,
    ) -> [(OsString, OsString); 2] {
        let Reporting { page, waker, inbox, hang_after } = reporting;
        let beat_ms = hang_after.map_or(0, beat_ms);
        let mut all = OsString::from(&self.option);
        if let Some(options) = options.filter(|options| !options.is_empty()) {
            all.push(" ");
            all.push(options);
        }
        let words = format!("{page},{waker},{inbox},{beat_ms},{}", self.option);
        [(OPTIONS.into(), all), (VARIABLE.into(), words.into())]
    }
}

/// The options that a worker has besides those of its command line.
pub fn options_of<'a>(
    variables: &'a [(OsString, OsString)],
) -> Option<std::borrow::Cow<'a, OsStr>> {
    let own = variables.iter().rev().find(|(name, _)| name == OPTIONS);
    match own {
        Some((_, value)) => Some(value.as_os_str().into()),
        None => std::env::var_os(OPTIONS).map(Into::into),
    }
}

/// Whether a program started so can load anything at all.
#[must_use]
pub fn is_allowed(arguments: &[OsString], options: Option<&OsStr>) -> bool {
    let words = arguments.iter().map(|word| word.to_string_lossy());
    let options = options.map(OsStr::to_string_lossy).unwrap_or_default();
    let options = options.split_whitespace().map(Into::into);
    let restricts = |word: &str| RESTRICTION.contains(&word.split('=').next().unwrap_or(word));
    !words.chain(options).any(|word| restricts(&word))
}

/// How often the loop shows that it moves: five times before it would be passed over, and never
/// so often that this would be felt.
fn beat_ms(hang_after: Duration) -> u128 {
    match hang_after.as_millis() {
        0..25 => 0,
        hang_after_ms => (hang_after_ms / 5).min(1000),
    }
}

/// As Node reads its options.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for letter in text.chars() {
        if matches!(letter, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(letter);
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_there_as_long_as_the_value() {
        let preload = Preload::write().expect("room");
        let folder = preload._folder.path().to_owned();
        let mode = |path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        assert_eq!((mode(folder.clone()), mode(folder.join(NAME))), (0o755, 0o644));
        drop(preload);
        assert!(!folder.exists());
    }

    #[test]
    fn options_of_the_user_stay() {
        let preload = Preload::write().expect("room");
        let reporting =
            Reporting { page: 4, waker: 5, inbox: 6, hang_after: Some(Duration::from_millis(100)) };
        let [(_, alone), (_, words)] = preload.variables(reporting, None);
        assert_eq!(alone, *preload.option);
        assert_eq!(words, *format!("4,5,6,20,{}", preload.option));
        let [(name, all), _] = preload.variables(reporting, Some(OsStr::new("--no-warnings")));
        assert_eq!(
            (name, all),
            (OPTIONS.into(), format!("{} --no-warnings", preload.option).into())
        );
        assert_eq!(quoted("/a b/\"c\\"), "\"/a b/\\\"c\\\\\"");
        assert_eq!(
            [0, 24, 25, 60_000].map(|ms| beat_ms(Duration::from_millis(ms))),
            [0, 0, 5, 1000]
        );
    }

    #[test]
    fn a_program_that_may_not_read_is_left_alone() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert!(is_allowed(&words("server.js --permissions"), Some(OsStr::new("--no-warnings"))));
        assert!(!is_allowed(&words("--permission --allow-fs-read=/srv server.js"), None));
        assert!(!is_allowed(&words("server.js"), Some(OsStr::new("-r x --experimental-policy=y"))));
    }
}
