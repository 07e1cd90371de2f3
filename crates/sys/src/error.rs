//! What can go wrong, sorted by who can mend it, each with the step that failed and a remedy.
//!
//! Owns the one error type and its exit codes. Refuses to print: `main` does that, once.

use std::io;

use nix::errno::Errno;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What kind of failure it is, for programs that decide by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The machine, the container or the account does not allow what is needed.
    Environment,
    /// What was asked for cannot be.
    Usage,
    /// The address is somebody else's (EADDRINUSE).
    AddressInUse,
    /// This machine has no such address (EADDRNOTAVAIL, EAFNOSUPPORT).
    AddressNotAvailable,
    /// This account may not do that (EACCES, EPERM).
    PermissionDenied,
    /// There is no such file or program (ENOENT, ENOTDIR).
    NotFound,
    /// Too few descriptors, or too little memory (EMFILE, ENFILE, ENOMEM, ENOBUFS).
    OutOfResources,
    /// Too much waits already, or there are too many processes: it may work later (EAGAIN).
    Busy,
    /// The other end has gone (EPIPE, ECONNRESET).
    Disconnected,
    /// More than fits (EMSGSIZE).
    TooLarge,
    /// It was called off, because a worker leaves (ECANCELED).
    Canceled,
    /// Another failed system call; [`Error::raw_os_error`] has the number.
    System,
    /// There is room for no more of them.
    NoRoom,
    /// The cluster or the supervisor has ended, or is ending.
    Ended,
    /// There is no such worker, or it leaves already.
    NoSuchWorker,
    /// Workers did not serve in time.
    StartTimeout,
    /// Workers ended before they served.
    StartFailed,
    /// No worker is left, and none will be started.
    NoWorkersLeft,
    /// Replacing workers has stopped.
    ReloadStopped,
    /// Workers do not do what they should.
    Workers,
    /// A thread of the cluster's own has ended: a defect.
    Defect,
}

/// A failed step, its cause and what to do about it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine, the container or the account does not allow what is needed.
    #[error("{step}: {}", .source.desc())]
    Environment {
        /// What was being done.
        step: String,
        /// What the kernel answered.
        source: Errno,
        /// What the reader can do.
        hint: String,
    },
    /// An address could not be listened on.
    #[error("cannot {step} {address}: {}", .source.desc())]
    Listen {
        /// The address as it was given.
        address: String,
        /// The call that failed: `bind`, `listen on`, `open`, …
        step: String,
        /// What the kernel answered.
        source: Errno,
    },
    /// A system call failed that has no reason to fail on a healthy machine.
    #[error("{step}: {}", .source.desc())]
    System {
        /// What was being done.
        step: String,
        /// What the kernel answered.
        source: Errno,
    },
    /// The command line or an environment variable asks for what cannot be.
    #[error("{what}")]
    Usage {
        /// What was asked for, and why it cannot be.
        what: String,
        /// What would work.
        hint: String,
    },
    /// The workers cannot be kept alive.
    #[error("{what}")]
    Workers {
        /// What happened to them.
        what: String,
        /// What the reader can do.
        hint: String,
    },
    /// A cluster or its supervisor cannot do what it should.
    #[error("{what}")]
    Cluster {
        /// What kind of failure it is.
        kind: ErrorKind,
        /// What happened.
        what: String,
        /// What the reader can do.
        hint: String,
    },
}

impl Error {
    /// Something that a cluster or its supervisor cannot do.
    pub fn cluster(kind: ErrorKind, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Cluster { kind, what: what.into(), hint: hint.into() }
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Environment { .. } => ErrorKind::Environment,
            Self::Usage { .. } => ErrorKind::Usage,
            Self::Workers { .. } => ErrorKind::Workers,
            Self::Cluster { kind, .. } => *kind,
            Self::Listen { source, .. } | Self::System { source, .. } => kind_of(*source),
        }
    }

    /// What the kernel answered, as it numbers errors, if it was asked.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Environment { source, .. }
            | Self::Listen { source, .. }
            | Self::System { source, .. } => Some(*source as i32),
            Self::Usage { .. } | Self::Workers { .. } | Self::Cluster { .. } => None,
        }
    }

    /// A failed system call; `step` says what was being done.
    pub fn system(step: impl Into<String>, source: impl Into<Errno>) -> Self {
        Self::System { step: step.into(), source: source.into() }
    }

    /// A request that cannot be met; `hint` says what would work.
    pub fn usage(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { what: what.into(), hint: hint.into() }
    }

    /// The process's exit code: 2 usage, 3 the environment cannot, 1 otherwise.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage { .. } => 2,
            Self::Environment { .. } => 3,
            Self::Listen { .. }
            | Self::System { .. }
            | Self::Workers { .. }
            | Self::Cluster { .. } => 1,
        }
    }

    /// What a person at a terminal can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Environment { hint, .. }
            | Self::Usage { hint, .. }
            | Self::Workers { hint, .. }
            | Self::Cluster { hint, .. } => hint.clone(),
            Self::Listen { address, source, .. } => listen_hint(address, *source),
            Self::System { source, .. } => system_hint(*source),
        }
    }
}

impl From<Error> for io::Error {
    /// With the kind that the standard library has for it; the text stays.
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

/// The step of an I/O error, kept as the kernel's number.
#[must_use]
pub fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

fn listen_hint(address: &str, source: Errno) -> String {
    match source {
        Errno::EADDRINUSE => format!(
            "another process listens there (`ss -ltnp` names it): stop it, or choose another \
             address with --listen (port 0 takes a free one) instead of {address}"
        ),
        Errno::EACCES | Errno::EPERM => "ports below 1024 and foreign directories need a \
             privilege: choose a port from 1024, give the binary CAP_NET_BIND_SERVICE, or pass \
             an open socket with --listen fd:N; workers that run as somebody else may have what \
             --allow-listen names"
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
        _ => "`clusterlb check` shows what this machine allows".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_name_who_is_at_fault() {
        let environment = Error::Environment {
            step: "create an io_uring".into(),
            source: Errno::EPERM,
            hint: "allow it".into(),
        };
        assert_eq!(environment.exit_code(), 3);
        assert_eq!(Error::usage("0 workers", "give 1 or more").exit_code(), 2);
        assert_eq!(Error::system("fork", Errno::EAGAIN).exit_code(), 1);
    }

    #[test]
    fn kinds_can_be_matched_and_survive_the_way_to_the_standard_library() {
        let busy = Error::Listen {
            address: "127.0.0.1:80".into(),
            step: "bind".into(),
            source: Errno::EADDRINUSE,
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
    fn a_busy_port_says_how_to_find_the_other_server() {
        let error = Error::Listen {
            address: "127.0.0.1:80".into(),
            step: "listen on".into(),
            source: Errno::EADDRINUSE,
        };
        assert_eq!(error.to_string(), "cannot listen on 127.0.0.1:80: Address already in use");
        assert!(error.hint().contains("ss -ltnp"));
    }
}
