//! Errors of workers that do not become ready, with the remedy.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use clusterlb::{Dialect, Error, ErrorKind, Readiness, ReadyAfter};

use super::settings::{Program, Settings};

/// Packages whose primary listens instead of its workers.
const STICKY_PACKAGES: [&str; 4] =
    ["@socket.io/sticky", "sticky-session", "sticky-cluster", "socketio-sticky-session"];

/// An error of the run, with its remedy at the command line. `online` is whether any worker has
/// reported that it runs.
pub(super) fn in_words_of_the_command(error: Error, settings: &Settings, online: bool) -> Error {
    match error.kind() {
        ErrorKind::StartTimeout => unready(settings, online),
        ErrorKind::StartFailed => start_failed(error, settings, online),
        ErrorKind::NoWorkersLeft => Error::cluster(
            ErrorKind::NoWorkersLeft,
            error.to_string(),
            "the exit events above say how they ended; --restart always replaces them, within a \
             budget",
        ),
        _ => error,
    }
}

/// The note about workers that take long to become ready.
pub(super) fn still_waiting(workers: &str, program: Option<&Program>, limit: Duration) -> String {
    let limit = humantime::format_duration(limit);
    let what = match program {
        None => "not ready; this machine is busy".to_owned(),
        Some(program) => {
            let path = program.path.display();
            match (program.dialect, program.readiness) {
                (Dialect::ListenFds, Readiness::Notified) => format!(
                    "not accepting: {path} has not said READY=1 (sd_notify); without --ready-after \
                     notify it does not have to"
                ),
                (Dialect::ListenFds, Readiness::Accepting) => format!(
                    "not accepting: {path} does not wait for connections on the sockets that it \
                     has inherited (LISTEN_FDS)"
                ),
                (Dialect::ListenFds, Readiness::After(time)) => format!(
                    "not accepting: {path} has not run for {} without an end",
                    humantime::format_duration(time)
                ),
                _ => format!("not listening: {path} has to listen on something in its workers"),
            }
        }
    };
    let who = match workers.contains(',') {
        true => format!("workers {workers} are"),
        false => format!("worker {workers} is"),
    };
    format!("after 5 s {who} {what}; waiting until {limit} (--start-limit) are over")
}

/// The error for workers that are not ready in time.
fn unready(settings: &Settings, online: bool) -> Error {
    let limit = humantime::format_duration(settings.start_limit);
    let (what, hint) = match &settings.program {
        None => (
            format!("the workers were not ready after {limit}"),
            "a machine this busy cannot run them; try fewer with --workers".to_owned(),
        ),
        Some(program) if program.dialect == Dialect::ListenFds => {
            taking_over(program, &limit.to_string())
        }
        Some(program) if online && program.ready_after == ReadyAfter::Message => (
            format!("not every worker listens and has sent the message \"ready\" after {limit}"),
            format!(
                "{} has to call process.send('ready') when it can serve; if it does not, leave \
                 --ready-after message out, and if it needs more time, see --start-limit",
                program.path.display()
            ),
        ),
        Some(program) if online => (
            format!("not every worker listens on something after {limit}"),
            match sticky_package(program, settings.worker_environment.directory.as_deref()) {
                Some(package) => format!(
                    "{package} makes its own primary listen: leave its setupMaster and \
                     setupWorker out, listen in the workers, and say --policy sticky"
                ),
                None => format!(
                    "{} has to listen in its workers; if it needs more time, see --start-limit",
                    program.path.display()
                ),
            },
        ),
        Some(program) => (
            format!("no worker has connected to the primary after {limit}"),
            other_dialects(program),
        ),
    };
    Error::cluster(ErrorKind::StartTimeout, what, hint)
}

/// The error for a worker that ended before it was ready. One that never reported that it runs may
/// speak another dialect.
fn start_failed(error: Error, settings: &Settings, online: bool) -> Error {
    match &settings.program {
        Some(program) if !online && program.dialect == Dialect::Native => {
            let hint = format!("{}; {}", other_dialects(program), error.hint());
            Error::cluster(ErrorKind::StartFailed, error.to_string(), hint)
        }
        _ => error,
    }
}

/// A package with which the program may distribute connections itself.
fn sticky_package(program: &Program, directory: Option<&Path>) -> Option<&'static str> {
    let is_script = |word: &&OsString| !word.as_encoded_bytes().starts_with(b"-");
    let script = program.arguments.iter().find(is_script)?;
    let script = directory.unwrap_or_else(|| Path::new("")).join(script);
    let script = script.canonicalize().ok()?;
    let has = |package: &&&str| {
        let mut folders = script.ancestors().skip(1);
        folders.any(|folder| folder.join("node_modules").join(package).is_dir())
    };
    STICKY_PACKAGES.iter().find(has).copied().filter(|_| program.dialect == Dialect::Node)
}

fn taking_over(program: &Program, limit: &str) -> (String, String) {
    match program.readiness {
        Readiness::Notified => (
            format!("not every worker has said READY=1 after {limit}"),
            format!(
                "if {} does not know sd_notify, leave --ready-after notify out; if it needs more \
                 time, see --start-limit",
                program.path.display()
            ),
        ),
        Readiness::Accepting => (
            format!("not every worker waits for connections after {limit}"),
            format!(
                "see whether {} takes the sockets in LISTEN_FDS; if it does in a way that /proc \
                 does not show, say --ready-after 1s",
                program.path.display()
            ),
        ),
        Readiness::After(_) => (
            format!("not every worker has run for long enough after {limit}"),
            "let --start-limit be longer than --ready-after".to_owned(),
        ),
    }
}

/// Other dialects that the program may speak.
pub(super) fn other_dialects(Program { path, dialect, .. }: &Program) -> String {
    let path = path.display();
    match dialect {
        Dialect::Native => format!(
            "{path} does not seem to be built for clusterlb: if it runs Node, say --dialect node; \
             if it takes listening sockets as from systemd (LISTEN_FDS), say --dialect listen-fds"
        ),
        Dialect::Node => format!(
            "{path} does not seem to run Node; --dialect native is for programs built for \
             clusterlb, --dialect listen-fds for those that take listening sockets as from systemd"
        ),
        Dialect::ListenFds => format!("see whether {path} takes the sockets in LISTEN_FDS"),
    }
}
