//! Tries the most recent system calls that are used with either engine.
//!
//! Owns the list, the Linux version of each, and what is lost without it.

use nix::sys::epoll::{Epoll, EpollCreateFlags};

use crate::{process, watch};

/// A system call that this machine lacks or refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingCall {
    /// Its name.
    pub name: &'static str,
    /// The first Linux version that has it.
    pub since: &'static str,
    /// What a run does instead; `None` if it cannot do without.
    pub instead: Option<&'static str>,
}

/// The calls that fail, for any reason.
#[must_use]
pub fn missing_calls() -> Vec<MissingCall> {
    let mut missing = Vec::new();
    if process::open_watch(std::process::id()).is_err() {
        missing.push(MissingCall { name: "pidfd_open", since: "5.3", instead: None });
    }
    if Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).is_ok_and(|set| !watch::is_precise(&set)) {
        let instead = Some("Node workers are waited for in whole milliseconds");
        missing.push(MissingCall { name: "epoll_pwait2", since: "5.11", instead });
    }
    if !process::marks_ranges() {
        let instead = Some("starting a worker takes up to some milliseconds more");
        missing.push(MissingCall { name: "close_range", since: "5.11", instead });
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_runs_our_tests_has_all_of_them() {
        assert_eq!(missing_calls(), []);
    }
}
