//! How the worker for a connection is chosen, and how workers accept when none is chosen.
//!
//! Owns the names of both, as on the command line and in the environment.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How the worker for a connection is chosen (Node's `schedulingPolicy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// The primary accepts and hands over, round robin (SCHED_RR).
    #[default]
    Rr,
    /// The primary hands over to the worker with the fewest connections in flight; ties rotate.
    Least,
    /// The primary hands over to the worker that should finish first: fewest in flight times its
    /// usual time per connection. For unequal cores, garbage collectors and noisy neighbours.
    Fastest,
    /// The primary hands over to an idle worker; without one, connections wait in the kernel's
    /// backlog: one queue for all. For requests that keep their worker busy; a connection that
    /// stays open occupies its worker. [`Limits::inflight_max`](crate::Limits) allows more than
    /// one.
    Central,
    /// The primary hands over to the worker that the client's address maps to, unless that worker
    /// is overloaded (rendezvous hashing with bounded load): for sessions that live in one
    /// worker's memory. [`OverloadFactor`](crate::OverloadFactor) is the bound.
    Sticky,
    /// The workers accept from the shared listener, the kernel chooses (SCHED_NONE).
    None,
}

impl Policy {
    /// Every policy.
    pub const ALL: [Self; 6] =
        [Self::Rr, Self::Least, Self::Fastest, Self::Central, Self::Sticky, Self::None];

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rr => "rr",
            Self::Least => "least",
            Self::Fastest => "fastest",
            Self::Central => "central",
            Self::Sticky => "sticky",
            Self::None => "none",
        }
    }
}

/// How workers accept under [`Policy::None`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AcceptMechanism {
    /// epoll, level-triggered: every idle worker is woken, one wins; what Node does.
    #[default]
    Epoll,
    /// As epoll, but accepting until the queue is empty; what libuv did before 1.45.
    EpollDrain,
    /// epoll with EPOLLEXCLUSIVE: one worker is woken, mostly the same one.
    EpollExclusive,
    /// One io_uring accept at a time: idle workers take turns.
    Uring,
    /// A multishot io_uring accept: the first worker to arm it gets everything.
    UringMultishot,
    /// A listening socket for each worker (SO_REUSEPORT): the kernel spreads by hash. Connections
    /// that a Node worker does not accept in time are given to others.
    Reuseport,
}

impl AcceptMechanism {
    /// Every mechanism.
    pub const ALL: [Self; 6] = [
        Self::Epoll,
        Self::EpollDrain,
        Self::EpollExclusive,
        Self::Uring,
        Self::UringMultishot,
        Self::Reuseport,
    ];

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Epoll => "epoll",
            Self::EpollDrain => "epoll-drain",
            Self::EpollExclusive => "epoll-exclusive",
            Self::Uring => "uring",
            Self::UringMultishot => "uring-multishot",
            Self::Reuseport => "reuseport",
        }
    }
}

/// A name that is neither a policy nor a mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnknownName {
    /// The known names, separated by commas.
    pub known: &'static str,
}

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown name; choose one of {}", self.known)
    }
}

impl std::error::Error for UnknownName {}

impl FromStr for Policy {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let unknown = UnknownName { known: "rr, least, fastest, central, sticky, none" };
        Self::ALL.into_iter().find(|one| one.name() == name).ok_or(unknown)
    }
}

impl FromStr for AcceptMechanism {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let unknown = UnknownName {
            known: "epoll, epoll-drain, epoll-exclusive, uring, uring-multishot, reuseport",
        };
        Self::ALL.into_iter().find(|one| one.name() == name).ok_or(unknown)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for AcceptMechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written_and_the_error_lists_all_of_them() {
        for policy in Policy::ALL {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        for mechanism in AcceptMechanism::ALL {
            assert_eq!(mechanism.to_string().parse(), Ok(mechanism));
        }
        let known = "slowest".parse::<Policy>().expect_err("no such policy").known;
        assert!(Policy::ALL.iter().all(|policy| known.contains(policy.name())));
        let known = "poll".parse::<AcceptMechanism>().expect_err("no such mechanism").known;
        assert!(AcceptMechanism::ALL.iter().all(|mechanism| known.contains(mechanism.name())));
    }
}
