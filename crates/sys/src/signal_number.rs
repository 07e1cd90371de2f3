//! The signals of Linux, except the real-time ones.

use std::fmt;

use nix::libc;

/// A signal, by the name that `signal(7)` gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(i32)]
#[non_exhaustive]
pub enum Signal {
    /// The terminal was closed.
    SIGHUP = libc::SIGHUP,
    /// Interrupted from the terminal (Ctrl-C).
    SIGINT = libc::SIGINT,
    /// Ended from the terminal, with a core dump (Ctrl-\\).
    SIGQUIT = libc::SIGQUIT,
    /// An illegal instruction.
    SIGILL = libc::SIGILL,
    /// A trap of a debugger.
    SIGTRAP = libc::SIGTRAP,
    /// `abort(3)`.
    SIGABRT = libc::SIGABRT,
    /// Access to memory that does not exist.
    SIGBUS = libc::SIGBUS,
    /// An arithmetic error.
    SIGFPE = libc::SIGFPE,
    /// Killed; cannot be handled.
    SIGKILL = libc::SIGKILL,
    /// For the program's own use.
    SIGUSR1 = libc::SIGUSR1,
    /// Access to memory that is not mapped.
    SIGSEGV = libc::SIGSEGV,
    /// For the program's own use.
    SIGUSR2 = libc::SIGUSR2,
    /// A write to a pipe without a reader.
    SIGPIPE = libc::SIGPIPE,
    /// A timer of `alarm(2)`.
    SIGALRM = libc::SIGALRM,
    /// Asked to end.
    SIGTERM = libc::SIGTERM,
    /// Unused by the kernel.
    SIGSTKFLT = libc::SIGSTKFLT,
    /// A child has ended or stopped.
    SIGCHLD = libc::SIGCHLD,
    /// Continued.
    SIGCONT = libc::SIGCONT,
    /// Stopped; cannot be handled.
    SIGSTOP = libc::SIGSTOP,
    /// Stopped from the terminal (Ctrl-Z).
    SIGTSTP = libc::SIGTSTP,
    /// A read from the terminal in the background.
    SIGTTIN = libc::SIGTTIN,
    /// A write to the terminal in the background.
    SIGTTOU = libc::SIGTTOU,
    /// Urgent data at a socket.
    SIGURG = libc::SIGURG,
    /// The limit of CPU time was reached.
    SIGXCPU = libc::SIGXCPU,
    /// The limit of file sizes was reached.
    SIGXFSZ = libc::SIGXFSZ,
    /// A timer of CPU time.
    SIGVTALRM = libc::SIGVTALRM,
    /// A timer of a profiler.
    SIGPROF = libc::SIGPROF,
    /// The terminal has another size.
    SIGWINCH = libc::SIGWINCH,
    /// A descriptor is ready.
    SIGIO = libc::SIGIO,
    /// A power failure.
    SIGPWR = libc::SIGPWR,
    /// A system call that is not allowed.
    SIGSYS = libc::SIGSYS,
}

impl Signal {
    /// All of them.
    const ALL: [Self; 31] = [
        Self::SIGHUP,
        Self::SIGINT,
        Self::SIGQUIT,
        Self::SIGILL,
        Self::SIGTRAP,
        Self::SIGABRT,
        Self::SIGBUS,
        Self::SIGFPE,
        Self::SIGKILL,
        Self::SIGUSR1,
        Self::SIGSEGV,
        Self::SIGUSR2,
        Self::SIGPIPE,
        Self::SIGALRM,
        Self::SIGTERM,
        Self::SIGSTKFLT,
        Self::SIGCHLD,
        Self::SIGCONT,
        Self::SIGSTOP,
        Self::SIGTSTP,
        Self::SIGTTIN,
        Self::SIGTTOU,
        Self::SIGURG,
        Self::SIGXCPU,
        Self::SIGXFSZ,
        Self::SIGVTALRM,
        Self::SIGPROF,
        Self::SIGWINCH,
        Self::SIGIO,
        Self::SIGPWR,
        Self::SIGSYS,
    ];

    /// The signal with this number; `None` for real-time signals and other numbers.
    #[must_use]
    pub fn from_raw(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|signal| *signal as i32 == number)
    }

    /// The signal with this name, such as `SIGTERM`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|signal| signal.to_string() == name)
    }

    /// The number, as `kill(2)` takes it.
    #[must_use]
    pub fn as_raw(self) -> i32 {
        self as i32
    }
}

impl fmt::Display for Signal {
    /// The name, such as `SIGTERM`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl From<nix::sys::signal::Signal> for Signal {
    fn from(signal: nix::sys::signal::Signal) -> Self {
        Self::from_raw(signal as i32).expect("both know the same signals")
    }
}

impl From<Signal> for nix::sys::signal::Signal {
    fn from(signal: Signal) -> Self {
        Self::try_from(signal as i32).expect("both know the same signals")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_has_a_name_and_a_number() {
        assert_eq!((Signal::SIGTERM.to_string(), Signal::SIGTERM.as_raw()), ("SIGTERM".into(), 15));
        assert_eq!([0, 32, 64].map(Signal::from_raw), [None; 3]);
        assert_eq!(["SIGINT", "INT"].map(Signal::from_name), [Some(Signal::SIGINT), None]);
        for signal in nix::sys::signal::Signal::iterator() {
            let own = Signal::from(signal);
            assert_eq!((own.to_string(), own.as_raw()), (signal.to_string(), signal as i32));
            assert_eq!(nix::sys::signal::Signal::from(own), signal);
        }
    }
}
