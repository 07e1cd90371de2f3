//! Workers that inherit their listening sockets (`sd_listen_fds(3)`) and have no channel.
//!
//! Owns what they inherit, and when they count as serving: after a while, or when they say so
//! (`sd_notify(3)`). What they do with their connections is not known.

use std::ffi::OsString;
use std::os::fd::{OwnedFd, RawFd};

use nix::errno::Errno;

use crate::error::Error;
use crate::settings::Readiness;
use crate::sys::clock::monotonic_ns;

/// The first inherited socket (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;
/// What a program sends when it serves.
const READY: &[u8] = b"READY=1";

/// The variable with the id of the process that the sockets are for.
pub(crate) const ID_VARIABLE: &str = "LISTEN_PID";

const NOTIFY_VARIABLE: &str = "NOTIFY_SOCKET";
/// What a service manager has told this process alone. No worker gets these from its primary's
/// environment, whatever its dialect.
pub(crate) const NOT_FOR_WORKERS: [&str; 6] =
    [NOTIFY_VARIABLE, "WATCHDOG_PID", "WATCHDOG_USEC", ID_VARIABLE, "LISTEN_FDS", "LISTEN_FDNAMES"];

/// A worker that is about to be started.
#[derive(Debug)]
pub(crate) struct Start {
    sockets: Vec<OwnedFd>,
    names: Vec<String>,
    /// The socket for its notifications.
    notify: Option<String>,
}

/// A worker that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It counts as serving from this time on.
    Settling {
        until_ns: u64,
    },
    /// It counts as serving once it has sent `READY=1`.
    AwaitingNotification,
    Serving,
}

impl Start {
    /// Without sockets. `notify` names the socket where the worker may say that it serves.
    pub(crate) fn new(notify: Option<String>) -> Self {
        Self { sockets: Vec::new(), names: Vec::new(), notify }
    }

    /// Adds the next socket. Without a name it is called by its number, from 1.
    pub(crate) fn add(&mut self, socket: OwnedFd, name: Option<&String>) {
        self.sockets.push(socket);
        let number = self.sockets.len();
        self.names.push(name.cloned().unwrap_or_else(|| format!("listener-{number}")));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// The sockets, each with its number in the worker.
    pub(super) fn take_sockets(&mut self) -> Vec<(RawFd, OwnedFd)> {
        (FIRST..).zip(self.sockets.drain(..)).collect()
    }

    /// Adds all variables but [`ID_VARIABLE`], whose value is known only after the fork.
    pub(super) fn add_variables(&self, variables: &mut Vec<(OsString, OsString)>) {
        let mut add =
            |name: &str, value: String| variables.push((OsString::from(name), value.into()));
        add("LISTEN_FDS", self.names.len().to_string());
        add("LISTEN_FDNAMES", self.names.join(":"));
        if let Some(notify) = &self.notify {
            add(NOTIFY_VARIABLE, notify.clone());
        }
    }
}

impl State {
    pub(super) fn new(readiness: Readiness) -> Self {
        match readiness {
            Readiness::Notified => Self::AwaitingNotification,
            Readiness::After(time) => {
                let time_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                Self::Settling { until_ns: monotonic_ns().saturating_add(time_ns) }
            }
        }
    }

    /// When it counts as serving, if that is a matter of time.
    pub(crate) fn settles_ns(self) -> Option<u64> {
        match self {
            Self::Settling { until_ns } => Some(until_ns),
            Self::AwaitingNotification | Self::Serving => None,
        }
    }

    /// Handles the passing of time. Returns whether it counts as serving from now on.
    pub(crate) fn on_time(&mut self, now_ns: u64) -> bool {
        let is_due = self.settles_ns().is_some_and(|settles_ns| settles_ns <= now_ns);
        self.serve_if(is_due)
    }

    /// Handles a notification. Returns whether it counts as serving from now on, which only the
    /// first `READY=1` does.
    pub(crate) fn on_notification(&mut self, text: &[u8]) -> bool {
        let is_ready = text.split(|byte| *byte == b'\n').any(|line| line == READY);
        self.serve_if(*self == Self::AwaitingNotification && is_ready)
    }

    fn serve_if(&mut self, serves: bool) -> bool {
        if serves {
            *self = Self::Serving;
        }
        serves
    }
}

pub(super) fn has_no_channel() -> Error {
    Error::system("send a message to a worker that has no channel", Errno::EOPNOTSUPP)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_worker_serves_once_after_its_time_or_its_notification() {
        let mut timed = State::new(Readiness::After(Duration::ZERO));
        let until_ns = timed.settles_ns().expect("it is a matter of time");
        assert!(!timed.on_notification(READY) && !timed.on_time(until_ns - 1));
        assert!(timed.on_time(until_ns) && !timed.on_time(until_ns));
        let mut notified = State::new(Readiness::Notified);
        assert!(!notified.on_time(u64::MAX) && !notified.on_notification(b"STATUS=READY=1"));
        assert!(notified.on_notification(b"STATUS=well\nREADY=1\n"));
        assert!(!notified.on_notification(READY));
    }
}
