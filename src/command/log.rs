//! Formats of log lines: plain, with the time, with the level in front for the journal, or as JSON.
//!
//! Owns levels and the text in front of a line. Writes nothing.

use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::SystemTime;

use clap::ValueEnum;
use nix::sys::stat::fstat;
use serde::Serialize;

use super::event::ConsoleEvent;

/// The variable in which systemd names the stream that goes to the journal (`systemd.exec(5)`).
const JOURNAL_VARIABLE: &str = "JOURNAL_STREAM";

/// The requested format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// Plain text, with the time in front unless it goes to a terminal.
    Text,
    /// A JSON object a line, with the time and a level.
    Json,
}

/// Importance of a line, by the names and numbers of syslog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// The run serves less than it should, or not at all.
    Err = 3,
    /// A failure that is being repaired.
    Warning = 4,
    /// Worth knowing.
    Notice = 5,
    /// Normal operation.
    Info = 6,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dress {
    /// Unchanged.
    Plain,
    /// With the time in front.
    Timed,
    /// With the level in front, as in `sd-daemon(3)`; the journal adds the time.
    Journal,
    /// As JSON.
    Json,
}

impl Dress {
    /// The format for the given options, file and standard error.
    pub(super) fn of(format: Option<LogFormat>, file: Option<&Path>) -> Self {
        match format {
            Some(LogFormat::Json) => Self::Json,
            _ if file.is_none() && goes_to_journal() => Self::Journal,
            _ if file.is_some() => Self::Timed,
            Some(LogFormat::Text) if !std::io::stderr().is_terminal() => Self::Timed,
            _ => Self::Plain,
        }
    }

    /// A text in this format, line by line.
    pub(super) fn dressed(self, text: &str, level: Level, at: SystemTime) -> String {
        let front = match self {
            Self::Plain | Self::Json => return text.to_owned(),
            Self::Timed => format!("{} ", time(at)),
            Self::Journal => format!("<{}>", level as u8),
        };
        // An empty line separates a table; with a prefix it would be noise.
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let lines: Vec<String> = lines.map(|line| format!("{front}{line}")).collect();
        lines.join("\n")
    }
}

/// A time as in RFC 3339.
pub(super) fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

/// Whether standard error is the stream in the variable, and not a redirection.
pub(super) fn goes_to_journal() -> bool {
    let Ok(stream) = std::env::var(JOURNAL_VARIABLE) else { return false };
    let Ok(found) = fstat(std::io::stderr().as_fd()) else { return false };
    stream == format!("{}:{}", found.st_dev, found.st_ino)
}

/// The level of an event.
pub(super) fn level(event: &ConsoleEvent) -> Level {
    match event {
        ConsoleEvent::GiveUp { .. } => Level::Err,
        ConsoleEvent::Hung { .. } | ConsoleEvent::Kill { .. } | ConsoleEvent::Respawn { .. } => {
            Level::Warning
        }
        ConsoleEvent::Exit { code: Some(0), aborted: 0, .. } => Level::Info,
        ConsoleEvent::Exit { .. } => Level::Warning,
        ConsoleEvent::Note { .. } => Level::Notice,
        _ => Level::Info,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn lines_get_in_front_of_them_what_their_reader_wants() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        let dressed = |dress: Dress| dress.dressed("\none\ntwo", Level::Warning, at);
        assert_eq!(dressed(Dress::Plain), "\none\ntwo");
        let timed = "1970-01-01T00:00:01.500Z one\n1970-01-01T00:00:01.500Z two";
        assert_eq!(dressed(Dress::Timed), timed);
        assert_eq!(dressed(Dress::Journal), "<4>one\n<4>two");
    }

    #[test]
    fn a_file_has_times_whatever_else() {
        assert_eq!(Dress::of(None, Some(Path::new("x"))), Dress::Timed);
        assert_eq!(Dress::of(Some(LogFormat::Json), None), Dress::Json);
    }
}
