//! The options of a run as clap parses them, and their conversion to settings.
//!
//! Owns names, help and defaults. Refuses to act.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::admin::AdminArguments;
use super::balancing::BalancingArguments;
use super::built_in::BuiltInArguments;
use super::headings;
use super::line::CommandLine;
use super::log::LogFormat;
use super::program::{PreloadChoice, ProgramArguments};
use super::recycle::RecycleArguments;
use super::values::{parse, positive_time, time};
use super::worker_environment::WorkerEnvironmentArguments;
use crate::command::settings::{DeferAccept, Program, RestartChoice, Settings};
use clusterlb::Result;
use clusterlb::topology::{Pin, Workers};
use clusterlb::{Dialect, EngineChoice, ListenAddress, ListenRule, dispatch_from_environment};

/// Default address of the built-in worker.
const LISTEN_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8000);

/// Options of a run.
#[derive(Clone, Debug, Args)]
pub(super) struct RunArguments {
    /// The program.
    #[command(flatten)]
    pub(super) program: ProgramArguments,

    /// How many; auto is one per CPU
    ///
    /// auto counts allowed CPUs and the cgroup's quota, and leaves one CPU to the primary from
    /// three on.
    #[arg(
        short,
        long,
        value_name = "auto|N",
        default_value = "auto",
        value_parser = parse::<Workers>,
        help_heading = headings::WORKERS
    )]
    pub(super) workers: Workers,

    /// Which process runs on which CPU: auto, none, or a list such as 0-3,6
    ///
    /// `auto` pins if the primary and every worker can have one CPU each, there are at least three,
    /// and no quota grants less than all of them; otherwise the kernel places the processes. With
    /// a list, workers take its CPUs in order, round and round, and the primary the last one that
    /// no worker uses.
    #[arg(
        long,
        value_name = "auto|none|LIST",
        default_value = "auto",
        value_parser = parse::<Pin>,
        help_heading = headings::WORKERS,
        hide_short_help = true
    )]
    pub(super) pin: Pin,

    /// Which ended workers are replaced
    #[arg(
        long,
        value_enum,
        default_value_t,
        help_heading = headings::WORKERS,
        hide_short_help = true
    )]
    pub(super) restart: RestartChoice,

    /// How long workers may take until they serve, at the start and when they replace others
    #[arg(
        long,
        value_name = "TIME",
        default_value = "60s",
        value_parser = positive_time,
        help_heading = headings::WORKERS,
        hide_short_help = true
    )]
    pub(super) start_limit: Duration,

    /// How long a worker's successor serves beside it before the worker leaves
    ///
    /// If the successor ends within that time, the reload stops.
    #[arg(
        long,
        value_name = "TIME",
        default_value = "1s",
        value_parser = time,
        help_heading = headings::WORKERS,
        hide_short_help = true
    )]
    pub(super) settle: Duration,

    /// Limits after which workers are replaced.
    #[command(flatten)]
    pub(super) recycle: RecycleArguments,

    /// The environment of workers.
    #[command(flatten)]
    pub(super) worker_environment: WorkerEnvironmentArguments,

    /// Where to listen; repeatable [default: 127.0.0.1:8000]
    ///
    /// Programs that open their own listeners do not need it. HOST:PORT, *:PORT, PORT,
    /// unix:/path[,mode=660,user=NAME,group=NAME], unix:@name or fd:N. A name is looked up at the
    /// start, and all its addresses are served. *:PORT and [::]:PORT take IPv6 and IPv4,
    /// [fe80::1%eth0]:PORT names the interface, port 0 takes a free port, the same for all workers.
    /// fd:N is a listening socket inherited from the parent process.
    #[arg(
        short,
        long,
        value_name = "ADDRESS",
        value_parser = parse::<ListenAddress>,
        help_heading = headings::BALANCING
    )]
    pub(super) listen: Vec<ListenAddress>,

    /// Connections that may wait in the kernel for each listener (capped by net.core.somaxconn)
    #[arg(
        long,
        value_name = "N",
        default_value_t = 4096,
        value_parser = clap::value_parser!(u32).range(1..=65_535),
        help_heading = headings::BALANCING,
        hide_short_help = true
    )]
    pub(super) backlog: u32,

    /// Accept a TCP connection only when the client has sent data
    ///
    /// A worker then finds the request with the connection and is woken once instead of twice,
    /// which saves a third of the CPU of short connections. A client that sends nothing is accepted
    /// after a second or so. auto is on with the built-in HTTP server and off otherwise, since
    /// clients of some programs wait for these to speak first.
    #[arg(
        long,
        value_enum,
        default_value_t,
        help_heading = headings::BALANCING,
        hide_short_help = true
    )]
    pub(super) defer_accept: DeferAccept,

    /// Listeners behind a balancer that sends the PROXY protocol (v1 or v2); can be repeated
    ///
    /// all, an address, PORT or FROM-TO, HOST:FROM-TO, or unix:/folder/. Workers read the header in
    /// front of each connection, and programs see the client's address: Node programs unchanged,
    /// those of the library in its connections. A connection without a header is closed, so let
    /// only the balancer reach these listeners.
    #[arg(
        long,
        value_name = "RULE",
        value_parser = parse::<ListenRule>,
        help_heading = headings::BALANCING,
        hide_short_help = true
    )]
    proxy_protocol: Vec<ListenRule>,

    /// Options of balancing.
    #[command(flatten)]
    pub(super) balancing: BalancingArguments,

    /// How long open requests may take after SIGINT or SIGTERM
    ///
    /// Connections still open after that are cut.
    #[arg(
        long,
        value_name = "TIME",
        default_value = "10s",
        value_parser = time,
        help_heading = headings::ENDING,
        hide_short_help = true
    )]
    pub(super) grace: Duration,

    /// How long to go on serving after SIGINT or SIGTERM, so that balancers notice
    ///
    /// After it the run stops accepting, and the grace period begins.
    #[arg(
        long,
        value_name = "TIME",
        default_value = "0s",
        value_parser = time,
        help_heading = headings::ENDING,
        hide_short_help = true
    )]
    pub(super) drain_delay: Duration,

    /// Options of the admin interface.
    #[command(flatten)]
    pub(super) admin: AdminArguments,

    /// Read options from a file of TOML
    ///
    /// The keys are the names of the options here, and program is a list of words: workers = 4,
    /// listen = ["127.0.0.1:80", "[::1]:80"], program = ["node", "server.js"]. The command line
    /// overrides the environment, which overrides the file. Every option has a variable with its
    /// name in capitals: CLUSTERLB_MAX_INFLIGHT for --max-inflight; blanks separate several values.
    /// A reload reads the file again.
    #[arg(long, value_name = "FILE", help_heading = headings::OPERATION)]
    pub(super) config: Option<PathBuf>,

    /// Format of the lines on standard error
    ///
    /// By default they are plain text without a time. Where standard error goes to the journal of
    /// systemd, each line starts with its level (<3> to <6>), which the journal understands.
    #[arg(
        long,
        value_enum,
        conflicts_with = "json",
        help_heading = headings::OPERATION,
        hide_short_help = true
    )]
    pub(super) log_format: Option<LogFormat>,

    /// Append to this file, with the time in each line, instead of standard error
    ///
    /// SIGUSR1 reopens it after it has been renamed. The output of workers is not redirected, and
    /// the error that ends the run goes to standard error.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "json",
        help_heading = headings::OPERATION,
        hide_short_help = true
    )]
    pub(super) log_file: Option<PathBuf>,

    /// Print events and the summary as JSON lines on stdout
    #[arg(long, help_heading = headings::OPERATION)]
    pub(super) json: bool,

    /// Print only errors
    #[arg(
        short,
        long,
        conflicts_with = "json",
        help_heading = headings::OPERATION,
        hide_short_help = true
    )]
    pub(super) quiet: bool,

    /// Options of the built-in worker.
    #[command(flatten)]
    pub(super) built_in: BuiltInArguments,

    /// The origin of these options.
    #[arg(skip)]
    pub(super) line: CommandLine,
}

impl RunArguments {
    /// A command that has these options alone.
    pub(super) fn command() -> clap::Command {
        Self::augment_args(clap::Command::new("clusterlb"))
    }

    /// Converts the arguments to settings. `commands` are names that may have been meant by a
    /// program that does not exist.
    ///
    /// # Errors
    /// [`clusterlb::Error::Usage`] for arguments that contradict each other.
    pub(super) fn settings(&self, commands: &[String]) -> Result<Settings> {
        self.resolve(commands).map_err(|error| self.line.translate(error))
    }

    fn resolve(&self, commands: &[String]) -> Result<Settings> {
        let worker_environment = self.worker_environment.resolve()?;
        let node_options = self.worker_environment.variable("NODE_OPTIONS").unwrap_or_default();
        let directory = worker_environment.directory.as_deref();
        let program = self.program.resolve(directory, &node_options.to_string_lossy(), commands)?;
        let dispatch = self.balancing.dispatch.map_or_else(dispatch_from_environment, Ok)?;
        let policy = self.balancing.policy(self.program.takes_sockets(), dispatch)?;
        let settings = Settings {
            workers: self.workers,
            pin: self.pin(program.as_ref()),
            preload: self.program.preload == PreloadChoice::Auto,
            worker_environment,
            start_limit: self.start_limit,
            settle: self.settle,
            policy,
            dispatch,
            accept: self.balancing.accept.unwrap_or_default(),
            engine: self.balancing.engine.map_or_else(EngineChoice::from_environment, Ok)?,
            listen: self.listen(program.as_ref()),
            program,
            backlog: self.backlog,
            defer_accept: self.defer_accept,
            proxy_protocol: self.proxy_protocol.clone(),
            scheduling: self.balancing.scheduling(),
            hang_kill: self.balancing.hang_kill.0,
            serve: self.built_in.settings(),
            message_format: self.program.serialization,
            restart: self.restart,
            grace: self.grace,
            recycle: self.recycle.clone(),
            has_log_file: self.log_file.is_some(),
            line: self.line.clone(),
            own_variables: Vec::new(),
            admin: self.admin.addresses.clone(),
            agent_check: self.admin.agent_check.clone(),
            admin_allows_actions: self.admin.allow_actions,
            drain_delay: self.drain_delay,
        };
        settings.validate()?;
        Ok(settings)
    }

    /// The listen addresses. Programs open their own listeners, except those that inherit sockets.
    fn listen(&self, program: Option<&Program>) -> Vec<ListenAddress> {
        let gets_some = program.is_none_or(|program| program.dialect == Dialect::ListenFds);
        match self.listen.is_empty() && gets_some {
            true => vec![ListenAddress::Tcp(LISTEN_DEFAULT)],
            false => self.listen.clone(),
        }
    }

    /// External programs are not pinned by default, and then the primary is not either.
    fn pin(&self, program: Option<&Program>) -> Pin {
        match (program, &self.pin) {
            (Some(Program { dialect: Dialect::Node | Dialect::ListenFds, .. }), Pin::Auto) => {
                Pin::None
            }
            (_, pin) => pin.clone(),
        }
    }
}
