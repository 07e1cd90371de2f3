//! How workers are started and connections are distributed (Node's `cluster.settings`).
//!
//! Owns the defaults and the effect of environment variables. Plain data; acts on nothing.

use std::ffi::OsString;
use std::fmt;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{AcceptMechanism, Dialect, ListenRule, Policy, Readiness};
use crate::address::ListenAddress;
use crate::error::{Error, Result};
use crate::protocol::control::Serialization;
use crate::schedule::{Dispatch, SchedulerConfig, UnknownName, Unsupported};
use crate::sys::engine::EngineChoice;
use crate::sys::limits::DescriptorLimit;

/// Sets the policy of a cluster whose program does not (Node's `NODE_CLUSTER_SCHED_POLICY`):
/// `rr`, `least`, `fastest`, `central`, `sticky` or `none`.
pub const POLICY_VARIABLE: &str = "CLUSTERLB_SCHED_POLICY";

/// Sets who dispatches connections in a cluster whose program does not: `primary` or `kernel`.
pub const DISPATCH_VARIABLE: &str = "CLUSTERLB_DISPATCH";

/// The running program, even after its file was replaced or removed.
pub(crate) const OWN_PROGRAM: &str = "/proc/self/exe";
/// Most streams of a worker.
const STREAMS_MAX: usize = 64;
/// Debugger ports restart here after the last one, as in Node.
const INSPECT_PORT_FIRST: u16 = 1024;

/// How workers are started, and how connections are distributed among them.
///
/// Changed with [`Cluster::setup_primary`](crate::Cluster::setup_primary). Settings of workers
/// apply to those forked afterwards; settings of the whole cluster (from [`policy`](Self::policy)
/// on) are fixed by the first setup or fork.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClusterSettings {
    /// The program of the workers (Node: `exec`). By default this program, even if its file has
    /// been replaced; its role is then decided by [`role`](crate::role).
    pub exec: PathBuf,
    /// Arguments before those of the program (Node: `execArgv`): for an interpreter, or options
    /// only for workers.
    pub exec_argv: Vec<OsString>,
    /// The protocol of the workers. With [`Dialect::Node`] they are unmodified Node.js programs:
    /// their listen addresses are opened here, and connections are handed to them as by Node's own
    /// primary. Such a worker is not pinned, and takes only messages that JSON can express. A
    /// message of its program that JSON cannot express, possible with [`Serialization::Advanced`],
    /// arrives as null.
    ///
    /// With [`Dialect::ListenFds`] any program can be a worker that inherits listening sockets by
    /// the convention of systemd: it gets all that are [held](crate::Cluster::hold) at that moment,
    /// in order, from descriptor 3 on, not close-on-exec and blocking. It has no channel: it is
    /// told to leave by SIGTERM, reports no counts, and gets no messages.
    pub dialect: Dialect,
    /// Node workers load our script before their program (by `NODE_OPTIONS`). With it they report
    /// when connections end, so in flight means open; without it a connection counts as finished as
    /// soon as a Node worker has it. With it, leaving workers also close kept connections.
    pub preload: bool,
    /// When a worker without a channel is online and listening.
    pub readiness: Readiness,
    /// The names of the listening sockets of a worker without a channel, in the order in which they
    /// were held (`LISTEN_FDNAMES`); by default `listener-1` and so on.
    pub socket_names: Vec<String>,
    /// Each worker gets its own process group and session, so that a terminal's signals (Ctrl-C)
    /// reach only this process.
    pub own_groups: bool,
    /// The descriptor limit of a worker (`RLIMIT_NOFILE`): by default the limit that this process
    /// was started with, not the one it has raised itself to.
    pub descriptor_limit: DescriptorLimit,
    /// The arguments of the program (Node: `args`). By default those of this process.
    pub args: Vec<OsString>,
    /// Where workers run (Node: `cwd`); by default where this process does.
    pub cwd: Option<PathBuf>,
    /// The encoding of messages (Node: `serialization`).
    pub serialization: Serialization,
    /// Standard output and error of the workers are pipes, which the
    /// [`WorkerHandle`](crate::WorkerHandle) has, instead of this process's own (Node: `silent`).
    /// They must be read: a worker waits when it writes to a full pipe.
    pub silent: bool,
    /// The streams of the workers by number: 0 standard input, 1 output, 2 error, further ones from
    /// 3 on (Node: `stdio`). Overrides `silent`. Streams not named have the defaults: input empty,
    /// output and error as in this process. The channel has no entry; it finds its own number.
    pub stdio: Option<Vec<StreamSetting>>,
    /// The user that workers run as (`setuid(2)`; Node: `uid`). Supplementary groups are dropped.
    pub uid: Option<u32>,
    /// The group that workers run as (`setgid(2)`, before the user; Node: `gid`). Supplementary
    /// groups are dropped.
    pub gid: Option<u32>,
    /// Workers keep no capability, and cannot gain any by an exec (`no_new_privs`). For workers of
    /// an untrusted user.
    pub confine: bool,
    /// Variables of this process that workers do not get. They never get those of a service manager
    /// (`NOTIFY_SOCKET`, `LISTEN_FDS` and the like).
    pub environment_removed: Vec<OsString>,
    /// Workers that still run this long after this process was killed are killed as well, by a
    /// small process that is forked with the first of them. Without it a worker that is stopped, or
    /// never reads its channel, lives on.
    pub orphan_grace: Option<Duration>,
    /// A debugger port for each worker, in its variable `CLUSTERLB_INSPECT_PORT` (Node:
    /// `inspectPort`); for [`Dialect::Node`] in the option `--inspect-port` after
    /// [`exec_argv`](Self::exec_argv), as in Node.
    pub inspect_port: Option<InspectPort>,
    /// The CPUs of the workers by place, repeated in order; if empty, none are pinned.
    pub cpus: Vec<Option<usize>>,

    /// The policy (Node: `schedulingPolicy`).
    pub policy: Policy,
    /// Who dispatches connections to the chosen worker: the primary, or the kernel, which chooses
    /// among the workers' own sockets, one per worker and TCP address. By default as
    /// [`DISPATCH_VARIABLE`] says, otherwise the primary. With [`Dispatch::Kernel`] the policy is
    /// [`Policy::Rr`] or [`Policy::Least`], and the primary still dispatches unix and inherited
    /// sockets, which cannot be one per worker.
    pub dispatch: Dispatch,
    /// How the built-in worker accepts under [`Policy::None`]. With [`AcceptMechanism::Reuseport`]
    /// every worker gets a separate socket for each TCP address; if Node workers are forked first,
    /// connections that one of them leaves in it are given to others.
    pub accept: AcceptMechanism,
    /// How workers are judged when the primary hands over, under any policy.
    pub scheduling: SchedulerConfig,
    /// Connections that may wait in the kernel for each listener, from 1 to 65,535 and at most
    /// `net.core.somaxconn`. A worker can request another number.
    pub backlog: u32,
    /// TCP connections are accepted when their first bytes have arrived, or after about a second
    /// (TCP_DEFER_ACCEPT): a worker then finds the request with the connection, and is woken once
    /// instead of twice. Only where clients speak first, as with HTTP and TLS. Off by default;
    /// inherited sockets stay as they are.
    pub defer_accept: bool,
    /// What workers may listen on. Without rules it is everything that this process can open,
    /// including its descriptors (`fd:N`) and ports below 1024: workers are trusted with that.
    pub allow_listen: Option<Vec<ListenRule>>,
    /// Addresses whose connections begin with a header of the PROXY protocol, as a balancer sends
    /// it: workers read it before anything else, and close connections without one. Node workers
    /// need the [`preload`](Self::preload) for it; those that take sockets over do not read it. A
    /// worker can also ask for it itself
    /// ([`ListenOptions::proxy_protocol`](crate::ListenOptions::proxy_protocol)).
    pub proxy_protocol: Vec<ListenRule>,
    /// Listeners stay open when the last worker that serves them ends: connections wait in the
    /// kernel for the next worker in its slot, until that has served for 5 s without requesting the
    /// address. Without it they are refused, as by Node. An address that a worker closes and no
    /// other worker serves is closed either way.
    pub hold: bool,
    /// The expected number of workers. More are possible; the number only divides what can be in
    /// flight to workers among them. By default the number of CPUs.
    pub workers_expected: NonZeroUsize,
    /// The I/O engine: decided once, when the first worker is forked or the first address is
    /// opened, for the data path and the built-in workers. By default as
    /// [`ENGINE_VARIABLE`](crate::ENGINE_VARIABLE) says, otherwise io_uring where it works and
    /// epoll where it does not.
    pub engine: EngineChoice,
    /// The CPU that the data path's thread is pinned to; `None` to leave the choice to the kernel.
    pub primary_cpu: Option<usize>,
    /// Nothing is accepted before [`Cluster::open`](crate::Cluster::open), so that all workers
    /// begin with an equal share.
    pub start_closed: bool,
}

/// A standard or further stream of a worker.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum StreamSetting {
    /// The one of this process with the same number (Node: `'inherit'`).
    Inherit,
    /// Empty, discarding all output (Node: `'ignore'`); from 3 on it is closed.
    Ignore,
    /// A pipe, whose other end the [`WorkerHandle`](crate::WorkerHandle) has; from 3 on a pair of
    /// connected unix sockets (Node: `'pipe'`).
    Pipe,
    /// This descriptor.
    Descriptor(Arc<OwnedFd>),
}

/// How debugger ports are chosen.
#[derive(Clone)]
#[non_exhaustive]
pub enum InspectPort {
    /// Every worker gets the next one: this and 1, this and 2, and so on; after 65,535 comes 1024.
    From(u16),
    /// Every worker gets the same (Node: a number).
    Same(u16),
    /// The function's result at each fork (Node: a function).
    Function(Arc<dyn Fn() -> u16 + Send + Sync>),
}

impl fmt::Debug for InspectPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::From(port) => f.debug_tuple("From").field(port).finish(),
            Self::Same(port) => f.debug_tuple("Same").field(port).finish(),
            Self::Function(_) => f.write_str("Function(..)"),
        }
    }
}

impl InspectPort {
    /// The port of the `nth` worker forked with this, from 1.
    pub(crate) fn nth(&self, nth: u32) -> u16 {
        match self {
            Self::From(first) => {
                let beyond = u32::from(*first) + nth;
                let span = u32::from(u16::MAX - INSPECT_PORT_FIRST) + 1;
                u16::try_from(beyond).unwrap_or_else(|_| {
                    let round = (beyond - u32::from(u16::MAX) - 1) % span;
                    INSPECT_PORT_FIRST + u16::try_from(round).expect("less than the span")
                })
            }
            Self::Same(port) => *port,
            Self::Function(function) => function(),
        }
    }
}

impl ClusterSettings {
    /// The defaults, with a policy.
    pub(crate) fn with_policy(policy: Policy) -> Self {
        let cpus = std::thread::available_parallelism();
        Self {
            exec: PathBuf::from(OWN_PROGRAM),
            exec_argv: Vec::new(),
            dialect: Dialect::default(),
            preload: true,
            readiness: Readiness::default(),
            socket_names: Vec::new(),
            own_groups: false,
            descriptor_limit: DescriptorLimit::default(),
            args: std::env::args_os().skip(1).collect(),
            cwd: None,
            serialization: Serialization::default(),
            silent: false,
            stdio: None,
            uid: None,
            gid: None,
            confine: false,
            environment_removed: Vec::new(),
            orphan_grace: None,
            inspect_port: None,
            cpus: Vec::new(),
            policy,
            dispatch: Dispatch::default(),
            accept: AcceptMechanism::default(),
            scheduling: SchedulerConfig::default(),
            backlog: 4096,
            defer_accept: false,
            allow_listen: None,
            proxy_protocol: Vec::new(),
            hold: false,
            workers_expected: cpus.unwrap_or(NonZeroUsize::MIN),
            engine: EngineChoice::default(),
            primary_cpu: None,
            start_closed: false,
        }
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`Error::Usage`] for invalid settings.
    pub(crate) fn validate(&self) -> Result<()> {
        if self.backlog == 0 || self.backlog > u32::from(u16::MAX) {
            return Err(Error::usage(
                format!("a backlog of {}", self.backlog),
                "choose one from 1 to 65535; the kernel caps it at net.core.somaxconn",
            ));
        }
        let streams = self.stdio.as_ref().map_or(0, Vec::len);
        if streams > STREAMS_MAX {
            return Err(Error::usage(
                format!("{streams} streams for a worker"),
                format!("name at most {STREAMS_MAX}, the standard ones included"),
            ));
        }
        if self.dialect == Dialect::ListenFds {
            self.validate_taking_over(streams)?;
        }
        let checked = self.dispatch.check(self.policy, &self.scheduling);
        checked.map_err(|Unsupported { what, hint }| Error::usage(what, hint))
    }

    fn validate_taking_over(&self, streams: usize) -> Result<()> {
        match (self.dispatch, self.policy) {
            (Dispatch::Primary, Policy::None) => {}
            (Dispatch::Primary, _) => {
                return Err(Error::usage(
                    "workers that take sockets over accept connections themselves",
                    "set the policy to none, under which the kernel chooses among them, or let \
                     the kernel dispatch",
                ));
            }
            (Dispatch::Kernel, Policy::Fastest) => {
                return Err(Error::usage(
                    "workers that take sockets over do not tell how long connections take",
                    "use the policy rr, least or sticky",
                ));
            }
            (Dispatch::Kernel, _) => {}
        }
        if !self.proxy_protocol.is_empty() {
            return Err(Error::usage(
                "workers that take sockets over do not read the PROXY protocol",
                "leave it off in the balancer, or let the program read it",
            ));
        }
        if streams > 3 {
            return Err(Error::usage(
                "workers that take sockets over have these from descriptor 3 on",
                "name the three standard streams only",
            ));
        }
        Ok(())
    }

    /// Whether the settings of the whole cluster are equal.
    pub(crate) fn has_same_cluster_settings(&self, other: &Self) -> bool {
        self.policy == other.policy
            && self.dispatch == other.dispatch
            && self.accept == other.accept
            && self.scheduling == other.scheduling
            && self.hold == other.hold
            && self.allow_listen == other.allow_listen
            && self.proxy_protocol == other.proxy_protocol
            && self.backlog == other.backlog
            && self.defer_accept == other.defer_accept
            && self.workers_expected == other.workers_expected
            && self.engine == other.engine
            && self.primary_cpu == other.primary_cpu
            && self.start_closed == other.start_closed
    }

    /// Whether workers may request an address.
    pub(crate) fn allows(&self, address: &ListenAddress) -> bool {
        let rules = self.allow_listen.as_ref();
        rules.is_none_or(|rules| rules.iter().any(|rule| rule.allows(address)))
    }

    /// Whether connections to an address begin with a header of the PROXY protocol.
    pub(crate) fn expects_header(&self, address: &ListenAddress) -> bool {
        self.proxy_protocol.iter().any(|rule| rule.allows(address))
    }

    /// Workers accept from their own sockets instead of a shared one.
    pub(crate) fn has_socket_for_each(&self) -> bool {
        let by_hash = self.policy == Policy::None && self.accept == AcceptMechanism::Reuseport;
        by_hash || self.dispatch == Dispatch::Kernel
    }

    /// The primary accepts and hands over.
    pub(crate) fn hands_over(&self) -> bool {
        self.policy != Policy::None && self.dialect != Dialect::ListenFds
    }

    /// The kernel dispatches to workers that count what they accept.
    pub(crate) fn is_counted_by_kernel(&self) -> bool {
        let counts = match self.dialect {
            Dialect::Native => true,
            Dialect::Node => self.preload,
            Dialect::ListenFds => false,
        };
        self.dispatch == Dispatch::Kernel && counts
    }

    /// The policy needs to know how long connections take.
    pub(crate) fn takes_times(&self) -> bool {
        self.policy == Policy::Fastest
    }

    /// The primary watches workers' own sockets, and gives what waits there to others.
    pub(crate) fn steals(&self) -> bool {
        let has_inboxes = self.dialect == Dialect::Node || self.dispatch == Dispatch::Kernel;
        self.has_socket_for_each() && has_inboxes
    }
}

/// The policy in the environment, or the default.
///
/// # Errors
/// [`Error::Usage`] when [`POLICY_VARIABLE`] names no policy.
pub fn policy_from_environment() -> Result<Policy> {
    match std::env::var(POLICY_VARIABLE) {
        Err(_) => Ok(Policy::default()),
        Ok(text) => text.parse().map_err(|error: UnknownName| {
            Error::usage(
                format!("{POLICY_VARIABLE}={text} is not a policy"),
                format!("set it to one of {}, or unset it", error.known),
            )
        }),
    }
}

/// The dispatcher in the environment, or the default.
///
/// # Errors
/// [`Error::Usage`] when [`DISPATCH_VARIABLE`] names neither.
pub fn dispatch_from_environment() -> Result<Dispatch> {
    match std::env::var(DISPATCH_VARIABLE) {
        Err(_) => Ok(Dispatch::default()),
        Ok(text) => text.parse().map_err(|error: UnknownName| {
            Error::usage(
                format!("{DISPATCH_VARIABLE}={text} is not a way to dispatch"),
                format!("set it to one of {}, or unset it", error.known),
            )
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_for_debuggers_are_counted_up_and_round() {
        let ports = InspectPort::From(65_533);
        let found: Vec<u16> = (1..=4).map(|nth| ports.nth(nth)).collect();
        assert_eq!(found, [65_534, 65_535, 1024, 1025]);
        assert_eq!(InspectPort::Same(9229).nth(7), 9229);
        assert_eq!(InspectPort::Function(Arc::new(|| 5000)).nth(7), 5000);
        assert_eq!(InspectPort::From(u16::MAX).nth(64_512 + 1), 1024, "all the way round");
    }
}
