//! The errors of the workspace, grouped by who can fix them, each with the failed step and a
//! remedy.
//!
//! Owns the error type. Options of a command and exit codes are the command's.

use std::{fmt, io};

use nix::errno::Errno;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// The kind of a failure, for programs that handle errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The machine, the container or the account does not allow what is needed.
    Environment,
    /// The request is invalid.
    Usage,
    /// Another socket uses the address (EADDRINUSE).
    AddressInUse,
    /// This machine does not have the address (EADDRNOTAVAIL, EAFNOSUPPORT).
    AddressNotAvailable,
    /// This account lacks the permission (EACCES, EPERM).
    PermissionDenied,
    /// The file or program does not exist (ENOENT, ENOTDIR).
    NotFound,
    /// Descriptors or memory are exhausted (EMFILE, ENFILE, ENOMEM, ENOBUFS).
    OutOfResources,
    /// A queue is full or there are too many processes; a later attempt may succeed (EAGAIN).
    Busy,
    /// The peer has disconnected (EPIPE, ECONNRESET).
    Disconnected,
    /// The message is too large (EMSGSIZE).
    TooLarge,
    /// The request was cancelled because the worker is leaving (ECANCELED).
    Canceled,
    /// Another failed system call; [`Error::raw_os_error`] has the number.
    System,
    /// A bound has been reached.
    NoRoom,
    /// The cluster or the supervisor has ended or is ending.
    Ended,
    /// The worker does not exist or is already leaving.
    NoSuchWorker,
    /// Workers did not serve in time.
    StartTimeout,
    /// Workers ended before they served.
    StartFailed,
    /// No worker is left, and none will be started.
    NoWorkersLeft,
    /// Replacing workers has stopped.
    ReloadStopped,
    /// Workers do not behave as required.
    Workers,
    /// A thread of the cluster has ended, which is a defect.
    Defect,
}

/// The kernel's number for a failure (`errno(3)`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct OsError(Errno);

impl OsError {
    /// The error with this number.
    #[must_use]
    pub fn from_raw(number: i32) -> Self {
        Self(Errno::from_raw(number))
    }

    /// The number.
    #[must_use]
    pub fn as_raw(self) -> i32 {
        self.0 as i32
    }
}

impl fmt::Display for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.desc())
    }
}

impl fmt::Debug for OsError {
    /// The name, such as `EAGAIN`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::error::Error for OsError {}

impl From<Errno> for OsError {
    fn from(errno: Errno) -> Self {
        Self(errno)
    }
}

impl From<OsError> for Errno {
    fn from(error: OsError) -> Self {
        error.0
    }
}

impl From<OsError> for io::Error {
    fn from(error: OsError) -> Self {
        Self::from_raw_os_error(error.as_raw())
    }
}

impl PartialEq<Errno> for OsError {
    fn eq(&self, errno: &Errno) -> bool {
        self.0 == *errno
    }
}

/// A failed step, its cause and a remedy.
#[derive(Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine, the container or the account does not allow what is needed.
    #[error("{step}: {source}")]
    Environment {
        /// The failed step.
        step: String,
        /// The kernel's error.
        source: OsError,
        /// The remedy.
        hint: String,
    },
    /// An address cannot be opened.
    #[error("cannot {step} {address}: {source}")]
    Listen {
        /// The address as requested.
        address: String,
        /// The call that failed: `bind`, `listen on`, `open`, …
        step: String,
        /// The kernel's error.
        source: OsError,
    },
    /// A system call failed that does not fail on a healthy machine.
    #[error("{step}: {source}")]
    System {
        /// The failed step.
        step: String,
        /// The kernel's error.
        source: OsError,
    },
    /// An invalid argument or environment variable.
    #[error("{what}")]
    Usage {
        /// The request, and why it is invalid.
        what: String,
        /// What would be valid.
        hint: String,
    },
    /// The workers cannot be kept running.
    #[error("{what}")]
    Workers {
        /// What happened to them.
        what: String,
        /// The remedy.
        hint: String,
    },
    /// A failure of a cluster or its supervisor.
    #[error("{what}")]
    Cluster {
        /// The kind of failure.
        kind: ErrorKind,
        /// What happened.
        what: String,
        /// The remedy.
        hint: String,
    },
}

/// What failed and what to do, because a program whose `main` returns the error shows this form.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}; {}", self.hint())
    }
}

impl Error {
    /// Creates the error of a cluster or its supervisor.
    pub fn cluster(kind: ErrorKind, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Cluster { kind, what: what.into(), hint: hint.into() }
    }

    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Environment { .. } => ErrorKind::Environment,
            Self::Usage { .. } => ErrorKind::Usage,
            Self::Workers { .. } => ErrorKind::Workers,
            Self::Cluster { kind, .. } => *kind,
            Self::Listen { source, .. } | Self::System { source, .. } => kind_of(source.0),
        }
    }

    /// The kernel's error number; `None` if the failure is not from the kernel.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Environment { source, .. }
            | Self::Listen { source, .. }
            | Self::System { source, .. } => Some(source.as_raw()),
            Self::Usage { .. } | Self::Workers { .. } | Self::Cluster { .. } => None,
        }
    }

    /// Creates the error of a system call; `step` names the failed step.
    pub fn system(step: impl Into<String>, source: impl Into<OsError>) -> Self {
        Self::System { step: step.into(), source: source.into() }
    }

    /// Creates the error of an invalid request; `hint` says what would be valid.
    pub fn usage(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { what: what.into(), hint: hint.into() }
    }

    /// The remedy.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Environment { hint, .. }
            | Self::Usage { hint, .. }
            | Self::Workers { hint, .. }
            | Self::Cluster { hint, .. } => hint.clone(),
            Self::Listen { address, source, .. } => listen_hint(address, source.0),
            Self::System { source, .. } => system_hint(source.0),
        }
    }
}

impl From<Error> for io::Error {
    /// Uses the matching kind of the standard library and keeps the text.
    fn from(error: Error) -> Self {
        let kind = match (error.raw_os_error(), error.kind()) {
            (Some(number), _) => Self::from_raw_os_error(number).kind(),
            (None, ErrorKind::Usage) => io::ErrorKind::InvalidInput,
            (None, ErrorKind::Busy) => io::ErrorKind::WouldBlock,
            (None, ErrorKind::Ended) => io::ErrorKind::BrokenPipe,
            (None, ErrorKind::NoSuchWorker) => io::ErrorKind::NotFound,
            (None, ErrorKind::StartTimeout) => io::ErrorKind::TimedOut,
            (None, _) => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

fn kind_of(source: Errno) -> ErrorKind {
    match source {
        Errno::EADDRINUSE => ErrorKind::AddressInUse,
        Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT => ErrorKind::AddressNotAvailable,
        Errno::EACCES | Errno::EPERM => ErrorKind::PermissionDenied,
        Errno::ENOENT | Errno::ENOTDIR => ErrorKind::NotFound,
        Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS => ErrorKind::OutOfResources,
        Errno::EAGAIN => ErrorKind::Busy,
        Errno::EPIPE | Errno::ECONNRESET => ErrorKind::Disconnected,
        Errno::EMSGSIZE => ErrorKind::TooLarge,
        Errno::ECANCELED => ErrorKind::Canceled,
        _ => ErrorKind::System,
    }
}

/// The error number of an I/O error; 0 if it has none.
#[must_use]
pub fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

fn listen_hint(address: &str, source: Errno) -> String {
    match source {
        Errno::EADDRINUSE if address.starts_with("unix:") => format!(
            "another process listens there (`ss -lxp` names it), or the file is no socket: stop \
             it, remove the file, or choose another address instead of {address}"
        ),
        Errno::EINVAL if address.starts_with("[fe80:") => {
            "a link-local address names its interface: [fe80::1%eth0]:PORT".into()
        }
        Errno::EROFS => "choose a folder that may be written to".into(),
        Errno::EADDRINUSE => format!(
            "another process listens there (`ss -ltnp` names it): stop it, or choose another \
             address (port 0 takes a free one) instead of {address}"
        ),
        Errno::EACCES | Errno::EPERM => "ports below 1024 and foreign directories need a \
             privilege: choose a port from 1024, give the binary CAP_NET_BIND_SERVICE, or pass \
             an open socket as fd:N"
            .into(),
        Errno::EADDRNOTAVAIL => "this machine has no such address: `ip address` lists those it \
             has; 0.0.0.0 or [::] stand for all"
            .into(),
        Errno::EAFNOSUPPORT => "this kernel has that address family switched off: use IPv4".into(),
        Errno::ENOTSOCK | Errno::EBADF | Errno::EINVAL => "pass the number of an inherited, \
             listening stream socket, as a service manager or a parent process does"
            .into(),
        Errno::ENOENT | Errno::ENOTDIR => "the directory of a unix socket must exist".into(),
        Errno::ENAMETOOLONG => "a unix socket path has room for 107 bytes".into(),
        _ => system_hint(source),
    }
}

fn system_hint(source: Errno) -> String {
    match source {
        Errno::EMFILE | Errno::ENFILE => "too few file descriptors: raise `ulimit -n` (hard \
             limit) or fs.file-max"
            .into(),
        Errno::ENOMEM | Errno::ENOBUFS => "too little memory: check the cgroup's memory limit, \
             `ulimit -l` (locked memory) and `ulimit -v` (address space)"
            .into(),
        Errno::EAGAIN => "too many processes or threads: check `ulimit -u`, the cgroup's \
             pids.max and kernel.threads-max"
            .into(),
        Errno::ENOSPC | Errno::EDQUOT => "the disk, or the quota on it, is full: make room, or \
             write elsewhere"
            .into(),
        Errno::EFBIG => "the file has reached the size that `ulimit -f` allows".into(),
        Errno::EPIPE => "what reads it has ended".into(),
        Errno::EBADF => "it is closed: open it, or send it to /dev/null".into(),
        Errno::ETIMEDOUT => "the name server or user database does not answer: check \
             /etc/resolv.conf and /etc/nsswitch.conf, or give numbers"
            .into(),
        _ => "check the limits and the security policy of this machine".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_can_be_matched_and_survive_the_way_to_the_standard_library() {
        let busy = Error::Listen {
            address: "127.0.0.1:80".into(),
            step: "bind".into(),
            source: Errno::EADDRINUSE.into(),
        };
        assert_eq!((busy.kind(), busy.raw_os_error()), (ErrorKind::AddressInUse, Some(98)));
        let text = busy.to_string();
        let busy = io::Error::from(busy);
        assert_eq!((busy.kind(), busy.to_string()), (io::ErrorKind::AddrInUse, text));
        let full = Error::system("send", Errno::EAGAIN);
        assert_eq!(full.kind(), ErrorKind::Busy);
        assert_eq!(io::Error::from(full).kind(), io::ErrorKind::WouldBlock);
        let usage = Error::usage("0 workers", "give 1 or more");
        assert_eq!((usage.kind(), usage.raw_os_error()), (ErrorKind::Usage, None));
        assert_eq!(io::Error::from(usage).kind(), io::ErrorKind::InvalidInput);
        let late = Error::cluster(ErrorKind::StartTimeout, "too late", "wait");
        assert_eq!((late.kind(), late.hint()), (ErrorKind::StartTimeout, "wait".to_owned()));
    }

    #[test]
    fn an_error_that_main_returns_shows_its_remedy() {
        let error = Error::usage("3 is too many", "take two");
        assert_eq!(format!("{error:?}"), "3 is too many; take two");
    }

    #[test]
    fn a_busy_port_says_how_to_find_the_other_server() {
        let error = Error::Listen {
            address: "127.0.0.1:80".into(),
            step: "listen on".into(),
            source: Errno::EADDRINUSE.into(),
        };
        assert_eq!(error.to_string(), "cannot listen on 127.0.0.1:80: Address already in use");
        assert!(error.hint().contains("ss -ltnp"));
        for (address, source, words) in [
            ("unix:/run/a", Errno::EADDRINUSE, "is no socket"),
            ("unix:/run/a", Errno::EROFS, "folder"),
            ("[fe80::1]:80", Errno::EINVAL, "%eth0"),
            ("fd:3", Errno::EINVAL, "inherited"),
        ] {
            let error = Error::Listen {
                address: address.into(),
                step: "bind".into(),
                source: source.into(),
            };
            assert!(error.hint().contains(words), "{}", error.hint());
        }
    }
}
