//! Who dispatches a connection to the chosen worker: the primary, or the kernel.
//!
//! Owns the names of both, as on the command line and in the environment, and the rules that the
//! kernel cannot follow.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::policy::UnknownName;
use super::{Policy, SchedulerConfig};

/// Who dispatches connections, for any policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dispatch {
    /// The primary accepts, chooses and hands over.
    #[default]
    Primary,
    /// Each worker accepts from its own listening socket (SO_REUSEPORT), and the kernel chooses
    /// among the sockets that the primary leaves enabled. The primary gives connections that a
    /// worker does not accept in time to others.
    Kernel,
}

/// A rule that the kernel cannot follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// The contradiction.
    pub what: &'static str,
    /// The remedy.
    pub hint: &'static str,
}

impl Dispatch {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Primary, Self::Kernel];

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Kernel => "kernel",
        }
    }

    /// Checks that connections can be dispatched this way under these rules.
    ///
    /// # Errors
    /// [`Unsupported`]: the first rule that the kernel cannot follow.
    pub fn check(self, policy: Policy, config: &SchedulerConfig) -> Result<(), Unsupported> {
        let primary =
            "use the policy rr, least, fastest or sticky, or leave dispatching to the primary";
        let refuse = |what, hint| Err(Unsupported { what, hint });
        match (self, policy) {
            (Self::Primary, _) => Ok(()),
            (Self::Kernel, Policy::None) => refuse(
                "with the policy none workers accept connections themselves: nothing is dispatched",
                "use the policy rr or least; or leave dispatching out, and let each worker accept \
                 from its own socket (reuseport)",
            ),
            (Self::Kernel, Policy::Central) => {
                refuse("the kernel has no central queue, as the policy central does", primary)
            }
            (Self::Kernel, _) if config.scheduler.is_some() => {
                refuse("the kernel cannot ask a custom scheduler", primary)
            }
            (Self::Kernel, _) if config.limits.inflight_max.is_some() => refuse(
                "the kernel does not keep to a limit of connections in flight",
                "leave the limit out, or leave dispatching to the primary",
            ),
            (Self::Kernel, _) => Ok(()),
        }
    }

    /// Whether the kernel can follow a policy only by the workers' counters.
    #[must_use]
    pub fn takes_counters(self, policy: Policy) -> bool {
        self == Self::Kernel && matches!(policy, Policy::Fastest | Policy::Sticky)
    }
}

impl FromStr for Dispatch {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let unknown = UnknownName { known: "primary, kernel" };
        Self::ALL.into_iter().find(|one| one.name() == name).ok_or(unknown)
    }
}

impl fmt::Display for Dispatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Limits;

    #[test]
    fn names_are_read_as_they_are_written() {
        for dispatch in Dispatch::ALL {
            assert_eq!(dispatch.to_string().parse(), Ok(dispatch));
        }
        let known = "worker".parse::<Dispatch>().expect_err("no such one").known;
        assert!(Dispatch::ALL.iter().all(|one| known.contains(one.name())));
    }

    #[test]
    fn the_kernel_refuses_what_it_cannot_do_and_the_primary_nothing() {
        let config = SchedulerConfig::default();
        let limits = Limits { inflight_max: Some(4), ..config.limits };
        let limited = SchedulerConfig { limits, ..config.clone() };
        for policy in Policy::ALL {
            assert_eq!(Dispatch::Primary.check(policy, &limited), Ok(()));
            let is_possible = !matches!(policy, Policy::None | Policy::Central);
            assert_eq!(Dispatch::Kernel.check(policy, &config).is_ok(), is_possible, "{policy}");
            assert!(Dispatch::Kernel.check(policy, &limited).is_err(), "{policy}");
        }
    }
}
