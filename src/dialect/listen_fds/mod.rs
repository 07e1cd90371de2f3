//! Workers that inherit their listening sockets (`sd_listen_fds(3)`) and have no channel.
//!
//! Owns what they inherit, and when they count as serving: once they are seen to wait for
//! connections, after a while, or when they say so (`sd_notify(3)`). What they do with their
//! connections is not known.

use std::ffi::OsString;
use std::os::fd::{OwnedFd, RawFd};

use nix::errno::Errno;

use crate::error::Error;
use crate::settings::Readiness;
use crate::sys::accepting::{self, Accepting};
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

/// A worker of which it cannot be seen whether it accepts counts as serving after this time.
const UNSEEN_NS: u64 = 1_000_000_000;
/// How often to look: at first, after a second, and after five.
const LOOKS_NS: [(u64, u64); 3] =
    [(1_000_000_000, 20_000_000), (5_000_000_000, 100_000_000), (u64::MAX, 500_000_000)];

/// A worker that is about to be started.
#[derive(Debug)]
pub(crate) struct Start {
    sockets: Vec<OwnedFd>,
    /// The numbers by which the kernel shows them.
    numbers: Vec<u64>,
    names: Vec<String>,
    /// The socket for its notifications.
    notify: Option<String>,
}

/// A worker that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It counts as serving once it is seen to wait for connections on one of these sockets.
    Watched {
        sockets: Vec<u64>,
        since_ns: u64,
        next_ns: u64,
    },
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
        Self { sockets: Vec::new(), numbers: Vec::new(), names: Vec::new(), notify }
    }

    /// Adds the next socket. Without a name it is called by its number, from 1.
    pub(crate) fn add(&mut self, socket: OwnedFd, name: Option<&String>) {
        self.numbers.extend(accepting::number_of(&socket));
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

    /// The state of the worker that has been started with them.
    pub(super) fn into_state(self, readiness: Readiness) -> State {
        State::new(readiness, self.numbers, monotonic_ns())
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
    fn new(readiness: Readiness, sockets: Vec<u64>, now_ns: u64) -> Self {
        match readiness {
            Readiness::Notified => Self::AwaitingNotification,
            Readiness::After(time) => {
                let time_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                Self::Settling { until_ns: now_ns.saturating_add(time_ns) }
            }
            Readiness::Accepting => Self::Watched { sockets, since_ns: now_ns, next_ns: now_ns },
        }
    }

    /// When to look next whether it serves, if that is a matter of time.
    pub(crate) fn settles_ns(&self) -> Option<u64> {
        match self {
            Self::Settling { until_ns } => Some(*until_ns),
            Self::Watched { next_ns, .. } => Some(*next_ns),
            Self::AwaitingNotification | Self::Serving => None,
        }
    }

    /// Its sockets, if it is time to look whether it accepts from one of them.
    pub(crate) fn watched_at(&self, now_ns: u64) -> Option<&[u64]> {
        match self {
            Self::Watched { sockets, next_ns, .. } if *next_ns <= now_ns => Some(sockets),
            _ => None,
        }
    }

    /// Handles the passing of time. Returns whether it counts as serving from now on. `look` finds
    /// out whether it accepts from these sockets.
    pub(crate) fn on_time(&mut self, now_ns: u64, look: impl FnOnce(&[u64]) -> Accepting) -> bool {
        let is_due = self.settles_ns().is_some_and(|settles_ns| settles_ns <= now_ns);
        let serves = match self {
            Self::Watched { sockets, since_ns, next_ns } if is_due => {
                let passed_ns = now_ns.saturating_sub(*since_ns);
                let pace = LOOKS_NS.iter().find(|(until_ns, _)| passed_ns < *until_ns);
                *next_ns = now_ns.saturating_add(pace.map_or(UNSEEN_NS, |(_, pace_ns)| *pace_ns));
                match look(sockets) {
                    Accepting::Yes => true,
                    Accepting::No => false,
                    Accepting::Unknown => passed_ns >= UNSEEN_NS,
                }
            }
            _ => is_due,
        };
        self.serve_if(serves)
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
        let unseen = |_: &[u64]| unreachable!("it is not looked at");
        let mut timed = State::new(Readiness::After(Duration::from_nanos(5)), vec![], 100);
        assert_eq!(timed.settles_ns(), Some(105));
        assert!(!timed.on_notification(READY) && !timed.on_time(104, unseen));
        assert!(timed.on_time(105, unseen) && !timed.on_time(105, unseen));
        let mut notified = State::new(Readiness::Notified, vec![], 100);
        assert!(!notified.on_time(u64::MAX, unseen));
        assert!(!notified.on_notification(b"STATUS=READY=1"));
        assert!(notified.on_notification(b"STATUS=well\nREADY=1\n"));
        assert!(!notified.on_notification(READY));
    }

    #[test]
    fn a_worker_serves_once_it_is_seen_to_accept() {
        let new = || State::new(Readiness::Accepting, vec![7], 100);
        let mut seen = new();
        assert!(!seen.on_time(100, |_| Accepting::No) && seen.settles_ns() > Some(100));
        // Not looked at again before it is due.
        assert!(!seen.on_time(101, |_| Accepting::Yes));
        assert!(seen.on_time(UNSEEN_NS, |sockets| match sockets {
            [7] => Accepting::Yes,
            _ => Accepting::No,
        }));
        assert_eq!(seen, State::Serving);
        let (mut unseen, mut never) = (new(), new());
        assert!(!unseen.on_time(UNSEEN_NS, |_| Accepting::Unknown));
        assert!(unseen.on_time(2 * UNSEEN_NS, |_| Accepting::Unknown));
        assert!(!never.on_time(60 * UNSEEN_NS, |_| Accepting::No));
        assert_eq!(never.settles_ns(), Some(60 * UNSEEN_NS + LOOKS_NS[2].1));
    }
}
