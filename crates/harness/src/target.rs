//! The servers to measure: this program's policies, and other servers under the same load.
//!
//! Owns their names. Pure: does not check whether a program is installed.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::error::Error;
use crate::schedule::{AcceptMechanism, Policy};
use crate::work::{ServiceTime, Work, WorkKind};

/// A server to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// This program.
    Own {
        /// The policy that assigns connections.
        policy: Policy,
        /// How workers accept, for the policies in which they do.
        accept: Option<AcceptMechanism>,
        /// Further arguments, such as `--credits 8`; usually empty. Targets are parsed once from
        /// the command line, so leaking the string is harmless.
        options: &'static str,
        /// Workers are Node processes that run the script of [`Peer::Node`].
        node: bool,
    },
    /// Another server.
    Peer(Peer),
}

/// Servers of other projects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Node.js with its cluster module.
    Node {
        /// Whether the primary accepts (SCHED_RR) or the workers do (SCHED_NONE).
        primary_accepts: bool,
    },
    /// nginx: worker processes that accept.
    Nginx {
        /// One listening socket per worker.
        reuseport: bool,
    },
    /// HAProxy: threads that pass connections to each other.
    Haproxy,
}

/// One target per way to accept; the default of `imbalance`.
#[must_use]
pub fn mechanisms() -> Vec<Target> {
    let none = AcceptMechanism::ALL.into_iter().map(|accept| Target::Own {
        policy: Policy::None,
        accept: Some(accept),
        options: "",
        node: false,
    });
    none.chain([Target::RR, Target::RR_BY_KERNEL]).collect()
}

const FORMS: &str = "name rr, least, fastest, central, sticky, none:MECHANISM (epoll, epoll-drain, \
     epoll-exclusive, uring, uring-multishot or reuseport), the same with Node's workers (rr+node, \
     least+node, fastest+node, central+node, sticky+node, none+node, none:reuseport+node), node, \
     node:none, nginx, nginx:reuseport or haproxy; own ones may be followed by options, as in \
     `rr --credits 8`";
/// Suffix of an own policy's name if its workers are Node processes.
pub(super) const NODE_MARK: &str = "+node";

impl Target {
    /// The primary accepts and hands over.
    pub const RR: Self = Self::Own { policy: Policy::Rr, accept: None, options: "", node: false };

    /// The kernel chooses, by what the primary tells it.
    pub const RR_BY_KERNEL: Self =
        Self::Own { policy: Policy::Rr, accept: None, options: "--dispatch kernel", node: false };

    /// Whether the workers are Node processes.
    #[must_use]
    pub fn runs_node(self) -> bool {
        matches!(self, Self::Own { node: true, .. } | Self::Peer(Peer::Node { .. }))
    }

    /// The foreign program it needs, with how to install it; `None` if it needs none.
    #[must_use]
    pub fn requires(self) -> Option<Peer> {
        match self {
            Self::Own { node: false, .. } => None,
            Self::Own { node: true, .. } => Some(Peer::Node { primary_accepts: true }),
            Self::Peer(peer) => Some(peer),
        }
    }

    /// Whether it runs with io_uring alone.
    #[must_use]
    pub fn needs_ring(self) -> bool {
        let Self::Own { accept, options, node: false, .. } = self else { return false };
        let by_ring = [AcceptMechanism::Uring, AcceptMechanism::UringMultishot];
        accept.is_some_and(|accept| by_ring.contains(&accept))
            || ["tokio-uring", "io_uring"].iter().any(|word| options.contains(word))
    }

    /// Why this target cannot perform the work; `None` if it can.
    #[must_use]
    pub fn objection(&self, work: &Work) -> Option<&'static str> {
        let constants = matches!(work.time, ServiceTime::Constant { .. } | ServiceTime::Mix { .. });
        match (self, work.kind) {
            (Self::Own { node: false, .. }, _) => None,
            (Self::Peer(Peer::Haproxy), _) => {
                Some("HAProxy generates the answer and cannot make a request cost something")
            }
            (Self::Peer(Peer::Nginx { .. }), WorkKind::Cpu) => {
                Some("nginx has no module that makes a request compute")
            }
            _ if !constants => Some("only constants and mixes of them are translated for others"),
            _ => None,
        }
    }
}

impl Peer {
    /// Program that must be on the PATH.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Node { .. } => "node",
            Self::Nginx { .. } => "nginx",
            Self::Haproxy => "haproxy",
        }
    }

    /// How to install it.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Node { .. } => "install Node.js 16 or newer (`apt install nodejs`)",
            Self::Nginx { .. } => "`apt install nginx libnginx-mod-http-echo`",
            Self::Haproxy => "`apt install haproxy`",
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own { policy, accept, options, node } => {
                f.write_str(policy.name())?;
                if let Some(accept) = accept {
                    write!(f, ":{accept}")?;
                }
                if *node {
                    f.write_str(NODE_MARK)?;
                }
                if options.is_empty() { Ok(()) } else { write!(f, " {options}") }
            }
            Self::Peer(Peer::Node { primary_accepts: true }) => f.write_str("node:rr"),
            Self::Peer(Peer::Node { primary_accepts: false }) => f.write_str("node:none"),
            Self::Peer(Peer::Nginx { reuseport: false }) => f.write_str("nginx"),
            Self::Peer(Peer::Nginx { reuseport: true }) => f.write_str("nginx:reuseport"),
            Self::Peer(Peer::Haproxy) => f.write_str("haproxy"),
        }
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let unknown = || Error::usage(format!("`{text}` is no target"), FORMS);
        let peer = match text {
            "node" | "node:rr" => Some(Peer::Node { primary_accepts: true }),
            "node:none" => Some(Peer::Node { primary_accepts: false }),
            "nginx" => Some(Peer::Nginx { reuseport: false }),
            "nginx:reuseport" => Some(Peer::Nginx { reuseport: true }),
            "haproxy" => Some(Peer::Haproxy),
            _ => None,
        };
        if let Some(peer) = peer {
            return Ok(Self::Peer(peer));
        }
        let (text, options) = text.split_once(" --").unwrap_or((text, ""));
        let options: &'static str = match options.trim() {
            "" => "",
            options => format!("--{options}").leak(),
        };
        let text = text.trim();
        let (text, node) = text.strip_suffix(NODE_MARK).map_or((text, false), |text| (text, true));
        let (policy, accept) =
            text.split_once(':').map_or((text, None), |(policy, accept)| (policy, Some(accept)));
        let policy = policy.parse().map_err(|_| unknown())?;
        let accept = accept.map(str::parse).transpose();
        let accept = accept.map_err(|_| unknown())?;
        let accept = match (policy, accept) {
            // Node decides how it accepts; only the owner of the socket can be chosen.
            (Policy::None, None | Some(AcceptMechanism::Reuseport)) if node => accept,
            (Policy::None, Some(_)) if node => return Err(unknown()),
            (Policy::None, None) => Some(AcceptMechanism::default()),
            (Policy::None, _) | (_, None) => accept,
            _ => return Err(unknown()),
        };
        Ok(Self::Own { policy, accept, options, node })
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn names_are_read_back() {
        let peers = ["node:rr", "node:none", "nginx", "nginx:reuseport", "haproxy"];
        let plain = ["least", "fastest", "central", "sticky"];
        let under = ["rr+node", "fastest+node", "central+node", "none+node", "none:reuseport+node"];
        let names = mechanisms().into_iter().map(|target| target.to_string());
        let others = peers.into_iter().chain(plain).chain(under).map(str::to_owned);
        let names: Vec<String> = names.chain(others).collect();
        assert_eq!(names.len(), 22);
        for name in names {
            let target: Target = name.parse().expect(&name);
            assert_eq!(target.to_string(), name);
        }
        let target = |text: &str| text.parse::<Target>().map(|target| target.to_string());
        assert_eq!(target("none").expect("a default"), "none:epoll");
        assert_eq!(target("node").expect("a default"), "node:rr");
        assert_eq!(target("least").expect("a policy"), "least");
        let turned = target(" rr  --credits 8 --overload-factor off ").expect("options");
        assert_eq!(turned, "rr --credits 8 --overload-factor off");
        let turned = target("rr+node --credits 8").expect("options");
        assert_eq!(turned, "rr+node --credits 8");
        let nonsense = ["", "rr:epoll", "none:", "none:kqueue", "apache", "nginx:epoll"];
        let mixed = ["nginx --fast", "nginx+node", "node+node", "none:epoll+node", "+node"];
        for nonsense in nonsense.into_iter().chain(mixed) {
            assert_eq!(target(nonsense).expect_err(nonsense).kind(), ErrorKind::Usage);
        }
    }

    #[test]
    fn what_a_peer_cannot_do_is_said() {
        let objects = |target: &str, work: &str| {
            let target: Target = target.parse().expect("a target");
            target.objection(&work.parse().expect("work")).is_some()
        };
        assert!(!objects("rr", "cpu:exp:1ms") && !objects("none:uring", "block:heavy"));
        assert!(!objects("node", "cpu:1ms") && !objects("nginx", "block:heavy"));
        assert!(objects("nginx", "cpu:1ms") && objects("node", "block:exp:1ms"));
        assert!(objects("haproxy", "block:1ms"));
        assert!(!objects("rr+node", "cpu:1ms") && objects("rr+node", "cpu:exp:1ms"));
    }

    #[test]
    fn what_has_to_be_installed_is_known() {
        let program = |target: &str| {
            let target: Target = target.parse().expect("a target");
            (target.requires().map(Peer::program), target.runs_node())
        };
        assert_eq!(program("rr"), (None, false));
        assert_eq!(program("none:reuseport+node"), (Some("node"), true));
        assert_eq!(program("node:none"), (Some("node"), true));
        assert_eq!(program("nginx"), (Some("nginx"), false));
        let needs_ring = |target: &str| target.parse::<Target>().expect("a target").needs_ring();
        for target in ["none:uring", "none:uring-multishot", "rr --engine io_uring"] {
            assert!(needs_ring(target), "{target}");
        }
        assert!(!needs_ring("rr") && !needs_ring("none:epoll") && !needs_ring("node"));
    }
}
