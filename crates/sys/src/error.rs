//! What can go wrong, sorted by who can mend it, each with the step that failed and a remedy.
//!
//! Owns the one error type and its exit codes. Refuses to print: `main` does that, once.

use nix::errno::Errno;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

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
}

impl Error {
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
            Self::Listen { .. } | Self::System { .. } | Self::Workers { .. } => 1,
        }
    }

    /// What a person at a terminal can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Environment { hint, .. }
            | Self::Usage { hint, .. }
            | Self::Workers { hint, .. } => hint.clone(),
            Self::Listen { address, source, .. } => listen_hint(address, *source),
            Self::System { source, .. } => system_hint(*source),
        }
    }
}

/// The step of an I/O error, kept as the kernel's number.
#[must_use]
pub fn errno_of(error: &std::io::Error) -> Errno {
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
             an open socket with --listen fd:N"
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
        Errno::ENOMEM | Errno::ENOBUFS => "too little memory: check the cgroup's memory limit and \
             `ulimit -l`"
            .into(),
        Errno::EAGAIN => "too many processes or threads: check `ulimit -u` and the cgroup's \
             pids.max"
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
