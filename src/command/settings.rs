//! What a run of the command is asked for, validated. Plain data that the command line fills in.

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

use super::admin::AdminAddress;
use super::line::Line;
use super::recycle::RecycleArguments;
use super::server::handler::Serve;

/// Which ended workers are replaced.
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

/// How messages between the primary and programs are written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum MessageFormat {
    /// JSON.
    #[default]
    Json,
    /// V8's structured clone for Node, which keeps dates, maps and byte arrays apart; CBOR for
    /// the native channel.
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

/// A program to be run as workers, instead of the built-in one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// Its file, or a name to be looked up in `PATH`.
    pub path: PathBuf,
    /// Its arguments that come before those of what it runs.
    pub options: Vec<OsString>,
    /// Its further arguments.
    pub arguments: Vec<OsString>,
    /// What it speaks.
    pub dialect: Dialect,
    /// When its workers serve, with [`Dialect::ListenFds`].
    pub readiness: Readiness,
    /// What makes a worker with a channel ready.
    pub ready_after: ReadyAfter,
    /// What they are told their sockets are called, with [`Dialect::ListenFds`].
    pub socket_names: Vec<String>,
    /// The script that Node runs, as far as it is known.
    pub script: Option<String>,
    /// What Node is given to run the program's own primary branch, if it is run.
    pub companion: Option<Vec<OsString>>,
    /// The first worker's port for a debugger, with [`Dialect::Node`]; the next one gets the next.
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

/// What surrounds a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct WorkerEnvironment {
    /// Variables added to the environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Variables of the primary's that are left out of it.
    pub removed: Vec<OsString>,
    /// What workers may listen on, if anything is said about that.
    pub allow_listen: Vec<ListenRule>,
    /// Where it runs; without one, where the primary does.
    pub directory: Option<PathBuf>,
    /// Who it runs as; supplementary groups are dropped.
    pub user: Option<u32>,
    /// The group that it runs as.
    pub group: Option<u32>,
    /// How many descriptors it may open.
    pub descriptor_limit: DescriptorLimit,
    /// What it prints comes by way of the primary, which names it on each line.
    pub prefix: bool,
}

/// A run.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// What the workers are; without it the built-in ones.
    pub program: Option<Program>,
    /// Node workers load a script of ours that reports connections, unless they must not.
    pub preload: bool,
    /// What surrounds them.
    pub worker_environment: WorkerEnvironment,
    /// How long workers may take until they serve, at the start and when they replace others.
    pub start_limit: Duration,
    /// How long a successor serves before its predecessor leaves.
    pub settle: Duration,
    /// How many workers.
    pub workers: Workers,
    /// Which process runs on which CPU.
    pub pin: Pin,
    /// How messages to and from the program are written down.
    pub message_format: MessageFormat,
    /// Who chooses.
    pub policy: Policy,
    /// Who takes connections to the worker that is chosen.
    pub dispatch: Dispatch,
    /// How workers accept when they do.
    pub accept: AcceptMechanism,
    /// What moves connections, as far as that is asked for.
    pub engine: EngineChoice,
    /// Where to listen. Programs listen by themselves, but for those that take sockets over.
    pub listen: Vec<ListenAddress>,
    /// Connections that may wait in the kernel for each listener.
    pub backlog: u32,
    /// When connections are accepted.
    pub defer_accept: DeferAccept,
    /// How workers are chosen and judged when the primary hands over.
    pub scheduling: SchedulerConfig,
    /// A worker that hangs for this long is killed and replaced; never, if none.
    pub hang_kill: Option<Duration>,
    /// What the built-in worker does.
    pub serve: ServeSettings,
    /// Which ended workers are replaced.
    pub restart: RestartChoice,
    /// How long a drain may take before open connections are cut.
    pub grace: Duration,
    /// When workers have served enough.
    pub recycle: RecycleArguments,
    /// The log goes to a file.
    pub has_log_file: bool,
    /// The command line, and what stands behind it.
    pub line: Line,
    /// Variables of workers that the primary sets itself.
    pub own_variables: Vec<(OsString, OsString)>,
    /// Where the run can be looked at and steered.
    pub admin: Vec<AdminAddress>,
    /// Where HAProxy's agent-check is answered.
    pub agent_check: Vec<AdminAddress>,
    /// Whoever can connect there by TCP can steer it, too.
    pub admin_allows_actions: bool,
    /// How long serving goes on once a signal wants the end.
    pub drain_delay: Duration,
}

/// The built-in worker.
#[derive(Clone, Debug)]
pub(super) struct ServeSettings {
    /// The protocol.
    pub serve: Serve,
    /// What drives the connections.
    pub runtime: Runtime,
    /// What a request costs besides being answered.
    pub work: Option<Work>,
    /// What the work's times are drawn from.
    pub work_seed: u64,
    /// How long a request's head may take.
    pub header_timeout: Duration,
    /// How long a kept connection may be idle.
    pub idle_timeout: Duration,
}

impl Settings {
    /// What workers may listen on. Those who run as another user may not use the primary's rights
    /// for other addresses than are named, or need none.
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

    /// The program's own primary branch is run, too.
    pub(super) fn has_companion(&self) -> bool {
        self.program.as_ref().is_some_and(|program| program.companion.is_some())
    }

    /// Connections are accepted when their first bytes have arrived.
    pub(super) fn defers_accept(&self) -> bool {
        match self.defer_accept {
            DeferAccept::Auto => self.program.is_none() && self.serve.serve == Serve::Hello,
            DeferAccept::On => true,
            DeferAccept::Off => false,
        }
    }

    /// Checks what no single setting can check alone.
    ///
    /// # Errors
    /// [`Error::Usage`] for settings that contradict each other.
    pub(super) fn validate(&self) -> Result<()> {
        self.validate_dispatch()?;
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
        if self.policy == Policy::None {
            self.validate_accepting_workers()?;
        }
        Ok(())
    }

    fn validate_dispatch(&self) -> Result<()> {
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
        let takes_sockets = program.dialect == Dialect::ListenFds;
        if let Some(address) = self.listen.first().filter(|_| !takes_sockets) {
            return Err(Error::usage(
                format!("--listen {address} has no meaning with a program: it listens by itself"),
                "leave --listen out, and let the program listen there; or say --dialect \
                 listen-fds, if it takes its listening sockets from whoever starts it",
            ));
        }
        if takes_sockets && self.policy != Policy::None {
            return Err(Error::usage(
                "programs with --dialect listen-fds accept by themselves: no policy but none can \
                 choose among them",
                "leave --policy out; with --accept reuseport the kernel spreads them by hash",
            ));
        }
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
