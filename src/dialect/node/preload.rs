//! The script that Node workers load before their program. It reports what Node's channel does not:
//! which connections have ended, and whether the event loop turns. It also receives connections
//! without a message each on that channel.
//!
//! Owns the file of the script, and the options and descriptors for a worker. The script's parts
//! are in `preload/`; the words that it writes are defined by `scoreboard`.
//!
//! The script is a file because `--require` resolves the real path of what it loads, which memory
//! does not have. `--import` takes the text itself, but then Node loads the program like a module,
//! which not every program supports. `script_file` chooses the file's location and keeps it there;
//! `script_link` is the way to it, which each worker closes behind itself, so that its threads load
//! nothing.

mod script;

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::env_file;
pub use super::script_file::Reader;
use super::script_file::{ScriptFile, folders};
use super::script_link::{link_to, path_of};
use crate::error::{Error, Result};
use crate::settings::ClusterSettings;

/// The variable with additional options for Node.
const OPTIONS: &str = "NODE_OPTIONS";
/// The variable with the script's parameters.
const VARIABLE: &str = "CLUSTERLB_PRELOAD";
/// Options with which Node exits instead of reading a file that is not permitted.
const RESTRICTION: [&str; 3] =
    ["--permission", "--experimental-permission", "--experimental-policy"];

/// The script, ready to be loaded. Dropping it removes the file, unless another primary uses it.
#[derive(Debug)]
pub struct Preload {
    file: ScriptFile,
    /// Reports removals in the file's directory. `None` if the system is out of inotify instances;
    /// the file is then checked only before each start.
    watch: Option<Inotify>,
    /// What workers inherit in order to load it. `None` where that cannot be; they then load the
    /// file by its path, and so do their threads.
    link: Option<OwnedFd>,
}

/// Descriptors that a worker inherits for its script.
#[derive(Clone, Copy, Debug)]
pub struct Reporting {
    /// Its scoreboard page.
    pub page: RawFd,
    /// The waker to use when the page says so.
    pub waker: RawFd,
    /// The receiving end of its inbox.
    pub inbox: RawFd,
    /// What the process inherits of [`Preload::link`]; negative if that is nothing.
    pub link: RawFd,
    /// Time without a turn of the loop after which the worker counts as stalled; `None` for no
    /// limit.
    pub hang_after: Option<Duration>,
}

impl Preload {
    /// Writes the script where `reader` can read it and only this user can change it.
    ///
    /// # Errors
    /// There is no such directory.
    pub fn write(reader: Reader) -> Result<Self> {
        let text = script::text();
        let file = ScriptFile::write(folders(), text, reader).map_err(|error| {
            // The error already names the location.
            Error::Environment {
                step: format!("write the script for Node workers ({error})"),
                source: error.raw_os_error().map_or(Errno::EACCES, Errno::from_raw).into(),
                hint: "they run without it; let TMPDIR name a folder that only this \
                       user can write to and workers can enter"
                    .into(),
            }
        })?;
        let link = link_to(&file.path(), file.text());
        let mut preload = Self { file, watch: None, link };
        preload.begin_watch();
        Ok(preload)
    }

    /// Whether a worker with this user and group can load it.
    #[must_use]
    pub fn is_for(&self, reader: Reader) -> bool {
        self.file.is_for(reader)
    }

    /// Writes the file again if it has been removed. Returns whether it exists now.
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

    /// A descriptor that becomes readable when the file, or something beside it, is removed.
    #[must_use]
    pub fn watch(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(AsFd::as_fd)
    }

    /// What a process that loads it inherits.
    #[must_use]
    pub fn link(&self) -> Option<BorrowedFd<'_>> {
        self.link.as_ref().map(AsFd::as_fd)
    }

    /// Handles a removal in the directory.
    pub fn on_removal(&mut self) {
        if let Some(watch) = &self.watch {
            while watch.read_events().is_ok_and(|events| !events.is_empty()) {}
        }
        self.restore();
    }

    /// Watches the directory, which may be a new one at the old path.
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
            // Without the watch, the file is checked before each start.
            let _ = watch.add_watch(self.file.folder(), removals);
        }
    }

    /// The variables of a process that loads it as the program's own primary branch, with a channel
    /// and the link under these numbers. `options` are those that it would otherwise have.
    #[must_use]
    pub fn variables_of_companion(
        &self,
        channel: RawFd,
        link: RawFd,
        options: Option<&OsStr>,
    ) -> [(OsString, OsString); 2] {
        self.variables_with(&format!("companion,{channel}"), link, options)
    }

    /// The variables of a worker that loads it. `options` are those that it would otherwise have.
    #[must_use]
    pub fn variables(
        &self,
        reporting: Reporting,
        options: Option<&OsStr>,
    ) -> [(OsString, OsString); 2] {
        let Reporting { page, waker, inbox, link, hang_after } = reporting;
        let beat_ms = hang_after.map_or(0, beat_ms);
        self.variables_with(&format!("{page},{waker},{inbox},{beat_ms}"), link, options)
    }

    fn variables_with(
        &self,
        parameters: &str,
        link: RawFd,
        options: Option<&OsStr>,
    ) -> [(OsString, OsString); 2] {
        let path = if link < 0 { self.file.path() } else { path_of(link) };
        let own = format!("--require {}", quoted(&path.to_string_lossy()));
        let words = format!("{parameters},{link},{own}");
        let mut all = OsString::from(own);
        if let Some(options) = options.filter(|options| !options.is_empty()) {
            all.push(" ");
            all.push(options);
        }
        [(OPTIONS.into(), all), (VARIABLE.into(), words.into())]
    }
}

/// Whether a worker with these additional variables loads the script.
pub(crate) fn is_wanted(settings: &ClusterSettings, environment: &[(OsString, OsString)]) -> bool {
    let arguments: Vec<OsString> =
        settings.exec_argv.iter().chain(&settings.args).cloned().collect();
    let options = options_of(environment, &settings.exec_argv, settings.cwd.as_deref());
    settings.preload && is_allowed(&arguments, options.as_deref())
}

/// The options of a worker other than those of its command line: those of its environment, or else
/// those of the files that its `options` name, relative to its `directory`.
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

/// Whether a program started with these options can load a script.
#[must_use]
pub fn is_allowed(arguments: &[OsString], options: Option<&OsStr>) -> bool {
    let words = arguments.iter().map(|word| word.to_string_lossy());
    let options = options.map(OsStr::to_string_lossy).unwrap_or_default();
    let options = options.split_whitespace().map(Into::into);
    let restricts = |word: &str| RESTRICTION.contains(&word.split('=').next().unwrap_or(word));
    !words.chain(options).any(|word| restricts(&word))
}

/// Interval at which the loop reports its turns: a fifth of the limit, but with a lower bound that
/// keeps the cost negligible.
fn beat_ms(hang_after: Duration) -> u128 {
    match hang_after.as_millis() {
        0..25 => 0,
        hang_after_ms => (hang_after_ms / 5).min(1000),
    }
}

/// Quotes a text in the syntax of Node's options.
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

    /// The user who runs the tests.
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
        let hang_after = Some(Duration::from_millis(100));
        let reporting = Reporting { page: 4, waker: 5, inbox: 6, link: 7, hang_after };
        let own = r#"--require "/proc/self/fd/7""#;
        let [(_, alone), (_, words)] = preload.variables(reporting, None);
        assert_eq!(alone, own);
        assert_eq!(words, *format!("4,5,6,20,7,{own}"));
        let [(name, all), _] = preload.variables(reporting, Some(OsStr::new("--no-warnings")));
        assert_eq!((name, all), (OPTIONS.into(), format!("{own} --no-warnings").into()));
        let [(_, alone), _] = preload.variables(Reporting { link: -1, ..reporting }, None);
        assert_eq!(alone, *format!("--require \"{}\"", preload.file.path().display()));
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
