//! The youngest system calls that we make whatever the engine is, tried.
//!
//! Owns which they are, since when Linux has them, and who cannot do without them.

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent};

use crate::{process, watch};

/// A call that this machine lacks or refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingCall {
    /// Its name.
    pub name: &'static str,
    /// The first Linux that has it.
    pub since: &'static str,
    /// Only Node workers need it.
    pub for_node: bool,
}

/// Those that fail, in whatever way.
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
