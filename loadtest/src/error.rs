//! What can go wrong, by where it is put right: each with the step, the cause and a remedy.
//!
//! Owns the one error type and its exit codes. Prints nothing: the command does that, once.

use nix::errno::Errno;

/// A failed step, its cause and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The command line or the settings ask for something impossible.
    #[error("{what}")]
    Usage {
        /// What was asked for, and why it is refused.
        what: String,
        /// What would work.
        hint: String,
    },
    /// The machine, the container or the account does not allow what is needed.
    #[error("{step}: {cause}")]
    Environment {
        /// What was being done.
        step: String,
        /// Why that is impossible here.
        cause: String,
        /// What the reader can do.
        hint: String,
    },
    /// The target cannot be used.
    #[error("{step}: {cause}")]
    Target {
        /// What was being done.
        step: String,
        /// Why it failed.
        cause: String,
        /// What the reader can do.
        hint: String,
    },
    /// A file of results could not be written.
    #[error("cannot write {path}: {source}")]
    Output {
        /// The file as it was given.
        path: String,
        /// What the system answered.
        source: std::io::Error,
    },
    /// A system call failed that has no reason to fail on a healthy machine.
    #[error("{step}: {}", .source.desc())]
    System {
        /// What was being done.
        step: String,
        /// What the kernel answered.
        source: Errno,
    },
}

impl Error {
    /// A request that cannot be met; `hint` says what would work.
    pub fn usage(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { what: what.into(), hint: hint.into() }
    }

    /// A machine that does not allow what is needed.
    pub fn environment(
        step: impl Into<String>,
        cause: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::Environment { step: step.into(), cause: cause.into(), hint: hint.into() }
    }

    /// A failed system call; `step` says what was being done.
    pub fn system(step: impl Into<String>, source: Errno) -> Self {
        Self::System { step: step.into(), source }
    }

    /// The process's exit code: 2 usage, 3 the environment cannot, 1 otherwise.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage { .. } => 2,
            Self::Environment { .. } => 3,
            Self::Target { .. } | Self::Output { .. } | Self::System { .. } => 1,
        }
    }

    /// What a person at a terminal can do about it.
    #[must_use]
    pub fn hint(&self) -> &str {
        match self {
            Self::Usage { hint, .. }
            | Self::Environment { hint, .. }
            | Self::Target { hint, .. } => hint,
            Self::Output { .. } => {
                "check that the directory exists, may be written to and has space left"
            }
            Self::System { source, .. } => match source {
                Errno::EMFILE | Errno::ENFILE => "raise `ulimit -n` (hard limit) or fs.file-max",
                Errno::ENOMEM | Errno::ENOBUFS => "check the cgroup's memory limit and `ulimit -l`",
                Errno::EAGAIN => "check `ulimit -u` and the cgroup's pids.max",
                _ => "`dmesg` and `strace -f` show more",
            },
        }
    }
}

/// The kernel's number in an I/O error.
pub(crate) fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_say_where_the_fault_is() {
        assert_eq!(Error::usage("rate 0", "give more").exit_code(), 2);
        assert_eq!(Error::environment("a", "b", "c").exit_code(), 3);
        assert_eq!(Error::system("open a socket", Errno::EMFILE).exit_code(), 1);
    }

    #[test]
    fn the_line_names_the_step_and_the_cause() {
        let error = Error::system("open a socket", Errno::EMFILE);
        assert_eq!(error.to_string(), "open a socket: Too many open files");
        assert!(error.hint().contains("ulimit -n"));
    }
}
