//! Tries the most recent system calls that are used with either engine.
//!
//! Owns the list, the Linux version of each, and the feature that needs it.

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent};

use crate::{process, watch};

/// A system call that this machine lacks or refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingCall {
    /// Its name.
    pub name: &'static str,
    /// The first Linux version that has it.
    pub since: &'static str,
    /// Whether only Node workers need it.
    pub for_node: bool,
}

/// The calls that fail, for any reason.
#[must_use]
pub fn missing_calls() -> Vec<MissingCall> {
    let mut missing = Vec::new();
    if process::open_watch(std::process::id()).is_err() {
        missing.push(MissingCall { name: "pidfd_open", since: "5.3", for_node: false });
    }
    if wait_briefly().is_err() {
        missing.push(MissingCall { name: "epoll_pwait2", since: "5.11", for_node: true });
    }
    missing
}

fn wait_briefly() -> Result<(), Errno> {
    let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    watch::wait(&set, &mut [EpollEvent::empty()], Some(0)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_runs_our_tests_has_all_of_them() {
        assert_eq!(missing_calls(), []);
    }
}
