//! The script that Node workers load before their program, so that the primary learns what Node's
//! own channel never says: which connections have ended, and whether the event loop moves; and so
//! that connections need no message each on that channel.
//!
//! Owns the file that it lies in, and how a worker is told to load it and where it reports. What
//! it does is in the parts below `preload/`, and the words that it writes are `scoreboard`'s.
//!
//! It is a file because `--require` takes nothing else: Node looks for the real path of what it
//! loads, and what lies in memory has none. `--import` takes the text itself, but then Node loads
//! the program as a module would be, and not every program can be. Where the file lies, and that
//! it stays there, is seen to in `script_file`.

mod script;

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::env_file;
pub use super::script_file::Reader;
use super::script_file::{ScriptFile, folders};
use crate::error::{Error, Result};

/// Where Node finds further options.
const OPTIONS: &str = "NODE_OPTIONS";
/// What the script finds its own words in.
const VARIABLE: &str = "CLUSTERLB_PRELOAD";
/// Node refuses to read files that a program has not been allowed, and ends.
const RESTRICTION: [&str; 3] =
    ["--permission", "--experimental-permission", "--experimental-policy"];

/// The script, ready to be loaded. Dropping it removes the file, unless another primary uses it.
#[derive(Debug)]
pub struct Preload {
    file: ScriptFile,
    /// Tells when something in the file's folder is removed; absent where the system has no more
    /// of these, and then the file is looked after before each start only.
    watch: Option<Inotify>,
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
    /// Writes the script where `reader` can read it and only this user can change it.
    ///
    /// # Errors
    /// There is no such place.
    pub fn write(reader: Reader) -> Result<Self> {
        let text = script::text();
        let file = ScriptFile::write(folders(), text, reader).map_err(|error| {
            // It says where, too.
            Error::Environment {
                step: format!("write the script for Node workers ({error})"),
                source: error.raw_os_error().map_or(Errno::EACCES, Errno::from_raw),
                hint: "they run as with --preload off; let TMPDIR name a folder that only this \
                       user can write to and workers can enter"
                    .into(),
            }
        })?;
        let option = format!("--require {}", quoted(&file.path().to_string_lossy()));
        let mut preload = Self { file, watch: None, option };
        preload.begin_watch();
        Ok(preload)
    }

    /// Whether a worker that runs as this user and group can load it.
    #[must_use]
    pub fn is_for(&self, reader: Reader) -> bool {
        self.file.is_for(reader)
    }

    /// Writes the file again if it has been removed. Tells whether it is there.
    pub fn restore(&mut self) -> bool {
        match self.file.restore() {
            Ok(false) => true,
            Ok(true) => {
                self.begin_watch();
                true
            }
            Err(_) => false,
        }
    }

    /// What becomes readable when something has been removed beside the file, or the file itself.
    #[must_use]
    pub fn watch(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(AsFd::as_fd)
    }

    /// Something has been removed there.
    pub fn on_removal(&mut self) {
        if let Some(watch) = &self.watch {
            while watch.read_events().is_ok_and(|events| !events.is_empty()) {}
        }
        self.restore();
    }

    /// Watches the folder, which may be a new one at the old path.
    fn begin_watch(&mut self) {
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        if self.watch.is_none() {
            self.watch = Inotify::init(flags).ok();
        }
        let removals = AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        if let Some(watch) = &self.watch {
            // Without it the file is looked after before each start.
            let _ = watch.add_watch(self.file.folder(), removals);
        }
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

/// The options that a worker has besides those of its command line: those of its environment, or
/// else those of the files that its own `options` name, as seen from its `directory`.
#[must_use]
pub fn options_of<'a>(
    variables: &'a [(OsString, OsString)],
    options: &[OsString],
    directory: Option<&Path>,
) -> Option<Cow<'a, OsStr>> {
    let own = variables.iter().rev().find(|(name, _)| name == OPTIONS);
    match own {
        Some((_, value)) => Some(value.as_os_str().into()),
        None => {
            let value = std::env::var_os(OPTIONS);
            value.or_else(|| env_file::variable(options, directory, OPTIONS)).map(Into::into)
        }
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

    /// Who runs the tests.
    fn own() -> Reader {
        Reader::from_ids(None, None)
    }

    #[test]
    fn the_file_comes_back_when_it_is_removed() {
        let mut preload = Preload::write(own()).expect("room");
        let path = preload.file.path();
        assert!(path.exists() && preload.watch().is_some());
        std::fs::remove_file(&path).expect("it is there");
        preload.on_removal();
        assert!(path.exists() && preload.restore());
    }

    #[test]
    fn options_of_the_user_stay() {
        let preload = Preload::write(own()).expect("room");
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
