//! The settings of a run, validated. Plain data from the command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use clusterlb::topology::{Pin, Workers};
use clusterlb::{
    AcceptMechanism, DescriptorLimit, Dialect, Dispatch, EngineChoice, Error, LISTENERS_MAX,
    ListenAddress, ListenRule, Policy, Readiness, ReadyAfter, Result, SchedulerConfig,
};
use clusterlb_harness::work::Work;
use clusterlb_schedule::Unsupported;
use serde::{Deserialize, Serialize};

use super::admin_address::AdminAddress;
use super::handler::Serve;
use super::line::CommandLine;
use super::recycle::RecycleArguments;

/// Which ended workers are restarted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum RestartChoice {
    /// All of them.
    #[default]
    Always,
    /// Those that ended by a signal or with a code other than 0.
    OnFailure,
    /// None.
    Never,
}

/// Encoding of messages between the primary and programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum MessageFormat {
    /// JSON.
    #[default]
    Json,
    /// V8's structured clone for Node, which preserves dates, maps and byte arrays; CBOR for the
    /// native channel.
    Advanced,
}

/// What drives the built-in worker's connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Runtime {
    /// The worker's own io_uring loop.
    #[default]
    Ring,
    /// The tokio-uring runtime, one task a connection. Only in builds with the feature
    /// `tokio-uring`, which is on by default.
    #[cfg(feature = "tokio-uring")]
    TokioUring,
}

/// A program for the workers, instead of the built-in one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// Its file, or a name to look up in `PATH`.
    pub path: PathBuf,
    /// Its own arguments, before those of what it runs.
    pub options: Vec<OsString>,
    /// Its further arguments.
    pub arguments: Vec<OsString>,
    /// Its dialect.
    pub dialect: Dialect,
    /// When its workers are ready, with [`Dialect::ListenFds`].
    pub readiness: Readiness,
    /// When a worker with a channel is ready.
    pub ready_after: ReadyAfter,
    /// Names of its sockets, with [`Dialect::ListenFds`].
    pub socket_names: Vec<String>,
    /// The script that Node runs, if known.
    pub script: Option<String>,
    /// Node's arguments for the program's own primary branch, if it runs.
    pub companion: Option<Vec<OsString>>,
    /// The first worker's debugger port, with [`Dialect::Node`]; each further worker gets the next.
    pub inspect_port: Option<u16>,
}

/// When connections are accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum DeferAccept {
    /// On with the built-in HTTP server, off otherwise
    #[default]
    Auto,
    /// When their first bytes have arrived
    On,
    /// At once
    Off,
}

/// The environment of a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct WorkerEnvironment {
    /// Variables added to the environment.
    pub environment: Vec<(OsString, OsString)>,
    /// The primary's variables to leave out.
    pub removed: Vec<OsString>,
    /// What workers may listen on, if restricted.
    pub allow_listen: Vec<ListenRule>,
    /// Its folder; by default the primary's.
    pub directory: Option<PathBuf>,
    /// Its user; supplementary groups are dropped.
    pub user: Option<u32>,
    /// Its group.
    pub group: Option<u32>,
    /// Its limit of descriptors.
    pub descriptor_limit: DescriptorLimit,
    /// The primary prints its output, with its name on each line.
    pub prefix: bool,
}

/// A run.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// The program of the workers; by default the built-in one.
    pub program: Option<Program>,
    /// Node workers load our script, which reports connections, unless they must not.
    pub preload: bool,
    /// The environment of workers.
    pub worker_environment: WorkerEnvironment,
    /// Time limit for workers to be ready, at the start and in a reload.
    pub start_limit: Duration,
    /// How long a successor serves before its predecessor leaves.
    pub settle: Duration,
    /// Number of workers.
    pub workers: Workers,
    /// CPU pinning.
    pub pin: Pin,
    /// Encoding of messages to and from the program.
    pub message_format: MessageFormat,
    /// The policy.
    pub policy: Policy,
    /// Who dispatches connections to the chosen worker.
    pub dispatch: Dispatch,
    /// How workers accept, if they do.
    pub accept: AcceptMechanism,
    /// The requested I/O engine.
    pub engine: EngineChoice,
    /// Listen addresses. Programs open their own listeners, except those that inherit sockets.
    pub listen: Vec<ListenAddress>,
    /// Backlog of each listener.
    pub backlog: u32,
    /// When connections are accepted.
    pub defer_accept: DeferAccept,
    /// Listeners whose connections begin with a header of the PROXY protocol.
    pub proxy_protocol: Vec<ListenRule>,
    /// Rules for choosing and judging workers when the primary hands over.
    pub scheduling: SchedulerConfig,
    /// A worker that hangs for this long is killed and replaced; never, if `None`.
    pub hang_kill: Option<Duration>,
    /// What the built-in worker does.
    pub serve: ServeSettings,
    /// Which ended workers are replaced.
    pub restart: RestartChoice,
    /// Grace period of open connections during a drain.
    pub grace: Duration,
    /// Limits after which workers are replaced.
    pub recycle: RecycleArguments,
    /// The log goes to a file.
    pub has_log_file: bool,
    /// The command line and its layers.
    pub line: CommandLine,
    /// Variables of workers that the primary sets.
    pub own_variables: Vec<(OsString, OsString)>,
    /// Addresses of the admin interface.
    pub admin: Vec<AdminAddress>,
    /// Addresses of HAProxy's agent-check.
    pub agent_check: Vec<AdminAddress>,
    /// TCP clients of the admin interface may act, too.
    pub admin_allows_actions: bool,
    /// How long serving continues after a signal to end.
    pub drain_delay: Duration,
}

/// The built-in worker.
#[derive(Clone, Debug)]
pub(super) struct ServeSettings {
    /// The protocol.
    pub serve: Serve,
    /// What drives its connections.
    pub runtime: Runtime,
    /// Cost of a request in addition to its answer.
    pub work: Option<Work>,
    /// Seed of the work's times.
    pub work_seed: u64,
    /// Time limit of a request's head.
    pub header_timeout: Duration,
    /// Time limit of an idle kept connection.
    pub idle_timeout: Duration,
    /// Primary and workers may make only the system calls that they need.
    pub seccomp: bool,
}

impl Settings {
    /// What workers may listen on. Workers of another user may use the primary's rights only for
    /// the named addresses, or those that need no rights.
    pub(super) fn allow_listen(&self) -> Option<Vec<ListenRule>> {
        let WorkerEnvironment { allow_listen, user, .. } = &self.worker_environment;
        if allow_listen.is_empty() && user.is_none() {
            return None;
        }
        let mut rules = allow_listen.clone();
        if rules.is_empty() && self.program.is_some() {
            rules = ListenRule::unprivileged();
        }
        rules.extend(self.listen.iter().cloned().map(ListenRule::Address));
        Some(rules)
    }

    /// Whether the program's own primary branch runs, too.
    pub(super) fn has_companion(&self) -> bool {
        self.program.as_ref().is_some_and(|program| program.companion.is_some())
    }

    /// Whether connections are accepted only when their first bytes have arrived.
    pub(super) fn defers_accept(&self) -> bool {
        match self.defer_accept {
            DeferAccept::Auto => self.program.is_none() && self.serve.serve == Serve::Hello,
            DeferAccept::On => true,
            DeferAccept::Off => false,
        }
    }

    /// Checks combinations of settings.
    ///
    /// # Errors
    /// [`Error::Usage`] for settings that contradict each other.
    pub(super) fn validate(&self) -> Result<()> {
        self.validate_dispatch()?;
        self.validate_admin()?;
        if let Some(program) = &self.program {
            self.validate_program(program)?;
            if program.dialect != Dialect::ListenFds {
                return Ok(());
            }
        }
        let count = self.listen.len();
        if count == 0 || count > LISTENERS_MAX {
            return Err(Error::usage(
                format!("{count} listeners"),
                format!("give --listen between once and {LISTENERS_MAX} times"),
            ));
        }
        let doubled = self.listen.iter().enumerate().find(|(place, address)| {
            !address.is_port_zero() && self.listen[..*place].contains(address)
        });
        if let Some((_, address)) = doubled {
            return Err(Error::usage(
                format!("--listen {address} is given twice"),
                "give every address once",
            ));
        }
        if self.serve.work.is_some() && self.serve.serve != Serve::Hello {
            return Err(Error::usage(
                "--work is done for each request, and only --serve hello has requests",
                "use --serve hello, or leave --work out",
            ));
        }
        if self.serve.seccomp && self.serve.runtime != Runtime::Ring {
            return Err(Error::usage(
                "--seccomp knows the system calls of --runtime ring",
                "use --runtime ring, or omit --seccomp",
            ));
        }
        if self.policy == Policy::None {
            self.validate_accepting_workers()?;
        }
        Ok(())
    }

    /// An address of the admin interface is no other one's.
    fn validate_admin(&self) -> Result<()> {
        let admin = self.admin.iter().map(|one| ("--admin", one));
        let agents = self.agent_check.iter().map(|one| ("--agent-check", one));
        for (option, address) in admin.chain(agents) {
            if let Some(other) = self.listen.iter().find(|other| address.rules_out(other)) {
                return Err(Error::usage(
                    format!("{option} {address} and --listen {other} overlap"),
                    "give each a separate address",
                ));
            }
        }
        Ok(())
    }

    fn validate_dispatch(&self) -> Result<()> {
        let takes_sockets =
            self.program.as_ref().is_some_and(|program| program.dialect == Dialect::ListenFds);
        if takes_sockets && self.policy == Policy::Fastest {
            return Err(Error::usage(
                "--policy fastest takes the time of each connection, and programs with --dialect \
                 listen-fds do not tell",
                "use --policy rr, least or sticky with --dispatch kernel",
            ));
        }
        let checked = self.dispatch.check(self.policy, &self.scheduling);
        checked.map_err(|Unsupported { what, hint }| {
            Error::usage(format!("--dispatch {}: {what}", self.dispatch), hint)
        })?;
        if self.dispatch == Dispatch::Kernel && self.serve.runtime != Runtime::Ring {
            return Err(Error::usage(
                "--runtime tokio-uring takes its connections from the primary",
                "use --dispatch primary, or --runtime ring",
            ));
        }
        Ok(())
    }

    fn validate_program(&self, program: &Program) -> Result<()> {
        if self.serve.seccomp {
            return Err(Error::usage(
                format!(
                    "--seccomp allows only the system calls of the built-in worker, and {} would \
                     inherit that filter",
                    program.path.display()
                ),
                "omit --seccomp; the program can install another filter, or confine the service, \
                 for example with systemd's SystemCallFilter=",
            ));
        }
        let takes_sockets = program.dialect == Dialect::ListenFds;
        if let Some(address) = self.listen.first().filter(|_| !takes_sockets) {
            return Err(Error::usage(
                format!(
                    "--listen {address} has no meaning with a program: it opens its own listeners"
                ),
                "leave --listen out, and let the program listen there; or say --dialect \
                 listen-fds, if it inherits its listening sockets",
            ));
        }
        let is_primary = self.dispatch == Dispatch::Primary;
        if takes_sockets && is_primary && self.policy != Policy::None {
            return Err(Error::usage(
                "programs with --dialect listen-fds accept connections themselves: no policy but \
                 none can choose among them, unless the kernel dispatches",
                "leave --policy out; or use --dispatch kernel",
            ));
        }
        self.validate_headers(program)?;
        let (names, sockets) = (program.socket_names.len(), self.listen.len());
        if names > 0 && names != sockets {
            return Err(Error::usage(
                format!("--fdname has {names} names, and --listen is given {sockets} times"),
                "name each socket, with a colon between two names, or none",
            ));
        }
        let gets_one_of_both =
            matches!(self.accept, AcceptMechanism::Epoll | AcceptMechanism::Reuseport);
        let has_own_way = takes_sockets || program.dialect == Dialect::Node;
        if has_own_way && self.policy == Policy::None && !gets_one_of_both {
            return Err(Error::usage(
                "the program accepts in its own way; --accept only says from which socket",
                "use --accept reuseport for one each, or leave --accept out for one shared by all",
            ));
        }
        if self.policy == Policy::None && self.scheduling.limits.inflight_max.is_some() {
            return self.validate_accepting_workers();
        }
        Ok(())
    }

    /// Programs see a client's address only if something of clusterlb is in them.
    fn validate_headers(&self, program: &Program) -> Result<()> {
        let Some(rule) = self.proxy_protocol.first() else { return Ok(()) };
        match program.dialect {
            Dialect::ListenFds => Err(Error::usage(
                format!(
                    "--proxy-protocol {rule}: programs with --dialect listen-fds accept \
                     connections themselves, and would take the header for a request"
                ),
                "leave it out; if the program can read the header, tell the program",
            )),
            Dialect::Node if !self.preload => Err(Error::usage(
                format!("--proxy-protocol {rule}: the preload reads the header"),
                "omit --preload off",
            )),
            Dialect::Native | Dialect::Node => Ok(()),
        }
    }

    fn validate_accepting_workers(&self) -> Result<()> {
        if self.scheduling.limits.inflight_max.is_some() {
            return Err(Error::usage(
                "--max-inflight has no meaning with --policy none, where the kernel chooses",
                "use --policy rr, or leave --max-inflight out",
            ));
        }
        if self.scheduling.scheduler.is_some() {
            return Err(Error::usage(
                "a scheduler of one's own has no meaning with --policy none, where the kernel \
                 chooses",
                "use another policy, or leave the scheduler out of the rules",
            ));
        }
        if self.serve.runtime != Runtime::Ring {
            return Err(Error::usage(
                "--runtime tokio-uring takes its connections from the primary",
                "use --policy rr, or --runtime ring",
            ));
        }
        let lone = self
            .listen
            .iter()
            .find(|address| !matches!(address, ListenAddress::Tcp(_) | ListenAddress::Name(..)));
        match lone {
            Some(address) if self.accept == AcceptMechanism::Reuseport => Err(Error::usage(
                format!(
                    "--accept reuseport needs one socket a worker, and {address} is one socket"
                ),
                "listen on HOST:PORT, or choose another --accept",
            )),
            _ => Ok(()),
        }
    }
}
