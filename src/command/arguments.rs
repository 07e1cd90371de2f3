//! The command line, as clap reads it, and its translation into settings.
//!
//! Owns names, help and defaults. Refuses to act.

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::admin::AdminArguments;
use super::choices;
use super::program::{PreloadChoice, ProgramArguments};
use super::recycle::RecycleArguments;
use super::worker_environment::WorkerEnvironmentArguments;
use crate::command::server::handler::Serve;
use crate::command::settings::{
    MessageFormat, Program, RestartChoice, Runtime, ServeSettings, Settings,
};
use clusterlb::policy_from_environment;
use clusterlb::topology::{Pin, Workers};
use clusterlb::{AcceptMechanism, Dialect, EngineChoice, ListenAddress, Policy};
use clusterlb::{Error, Result};
use clusterlb_harness::work::Work;
use clusterlb_schedule::{CREDITS_MAX, CreditRule, Limits, SchedulerConfig};

/// Where the built-in worker listens unless it is told.
const LISTEN_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8000);

const EXAMPLES: &str = "\
Examples:
  clusterlb --workers auto
      hello world on 127.0.0.1:8000, a worker for each CPU
  clusterlb --workers 4 -- node server.js
      an unmodified Node server in four processes; kill -HUP replaces them one by one
  clusterlb --dialect listen-fds --listen 0.0.0.0:8000 -- gunicorn MODULE:APP
      any program that takes its listening sockets over as from systemd
  clusterlb --workers 4 --listen 0.0.0.0:80 --listen '[::1]:8080' --listen unix:/run/hello.sock
      several listeners, each with a rotation of its own
  clusterlb --policy none --accept uring-multishot --workers 8
      let the kernel choose the worker, and see who gets the load
  clusterlb --json --listen 127.0.0.1:0
      a free port, told as JSON on standard output

Exit codes: 0 ended in order, 1 failed, 2 wrong usage, 3 this machine cannot (too few descriptors,
or something needs io_uring and it is refused), 130/143 cut short by a second SIGINT/SIGTERM.";

/// Load balancing over worker processes: a primary accepts connections and hands sockets over
#[derive(Debug, Parser)]
#[command(
    name = "clusterlb",
    version,
    args_conflicts_with_subcommands = true,
    after_long_help = EXAMPLES,
    after_help = "--help shows more, with examples"
)]
pub(super) struct Cli {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub(super) command: Option<Command>,
    /// How to serve.
    #[command(flatten)]
    pub(super) run: RunArguments,
}

/// What to do instead of serving.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Compare policies, and other servers, under the same loads
    Bench(super::bench::BenchArguments),
    /// Show what this machine allows, and which engine a run would have: kernel, io_uring, limits,
    /// CPUs
    Check {
        /// Print one JSON object instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Show which accept mechanism gives how much of the load to whom
    Imbalance(super::imbalance::ImbalanceArguments),
    /// Put load on a server and measure its latency; knows nothing of clusterlb
    Load(loadtest::cli::LoadArgs),
    /// Serve; the same as giving no subcommand
    Run(Box<RunArguments>),
    /// Show a run that has --admin: its state, listeners and workers
    Status(super::admin::StatusArguments),
    /// Show a run's workers live, with a bar for each; q quits
    Top(super::admin::TopArguments),
    /// Replace a run's workers one by one, and wait until that is done
    Reload(super::admin::ClientArguments),
    /// Change how many workers a run has, and wait until that is done
    Scale(super::admin::ScaleArguments),
    /// Let a run end in order: nothing new is accepted, open requests are finished
    Drain(super::admin::ClientArguments),
    /// Follow a run's events as JSON lines, from now on
    Events(super::admin::ClientArguments),
}

/// How to serve.
#[derive(Clone, Debug, Args)]
pub(super) struct RunArguments {
    /// How many worker processes: auto (allowed CPUs and cgroup quota, less one for the primary
    /// from three on) or a number
    #[arg(
        short,
        long,
        value_name = "auto|N",
        default_value = "auto",
        value_parser = parse::<Workers>
    )]
    pub(super) workers: Workers,

    /// Where to listen, unless PROGRAM says that; can be repeated: HOST:PORT, *:PORT, PORT,
    /// unix:/path[,mode=660,user=NAME,group=NAME], unix:@name, fd:N [default: 127.0.0.1:8000]
    ///
    /// A name is looked up at the start, and all its addresses are served. *:PORT and [::]:PORT
    /// take IPv6 and IPv4, [fe80::1%eth0]:PORT names the interface, port 0 takes a free port, the
    /// same for all workers. fd:N is a listening socket inherited from the parent process.
    #[arg(
        short,
        long,
        value_name = "ADDRESS",
        value_parser = parse::<ListenAddress>
    )]
    pub(super) listen: Vec<ListenAddress>,

    /// Who chooses the worker [default: rr, or CLUSTERLB_SCHED_POLICY]
    #[arg(short, long, value_parser = choices::policies())]
    pub(super) policy: Option<Policy>,

    /// How workers accept with --policy none
    #[arg(long, default_value_t, value_parser = choices::mechanisms())]
    pub(super) accept: AcceptMechanism,

    /// What moves connections, for the primary and the built-in workers [default: auto, or
    /// CLUSTERLB_ENGINE]
    #[arg(long, value_parser = choices::engines())]
    pub(super) engine: Option<EngineChoice>,

    /// Connections that may wait in the kernel for each listener (capped by net.core.somaxconn)
    #[arg(
        long,
        value_name = "N",
        default_value_t = 4096,
        value_parser = clap::value_parser!(u32).range(1..=65_535)
    )]
    pub(super) backlog: u32,

    /// Which process runs on which CPU: auto, none, or a list such as 0-3,6
    ///
    /// `auto` pins if the primary and every worker can have one CPU each, there are at least three,
    /// and no quota grants less than all of them; otherwise the kernel places the processes. With
    /// a list, workers take its CPUs in order, round and round, and the primary the last one that
    /// no worker uses.
    #[arg(long, value_name = "auto|none|LIST", default_value = "auto", value_parser = parse::<Pin>)]
    pub(super) pin: Pin,

    /// Most connections in flight at one worker; beyond it the worker is passed over, and when
    /// all are, connections wait in the kernel [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) max_inflight: Option<u32>,

    /// Pass over a worker with more connections in flight than the average times this; off for a
    /// strict rotation
    #[arg(long, value_name = "off|FACTOR", default_value = "1.0", value_parser = factor)]
    pub(super) overload_factor: Switch<f32>,

    /// How many connections a worker may be given before it claims one: auto (grows with fast
    /// claims, collapses with a slow one) or a number; 1 is what Node's own primary does
    #[arg(long, value_name = "auto|N", default_value = "auto", value_parser = credits)]
    pub(super) credits: CreditRule,

    /// Pass over a worker that has not claimed a connection, or finished a turn of its loop, for
    /// this long, and give what it has not claimed to others; with --accept reuseport and Node
    /// workers, also what it has not accepted from its own socket
    #[arg(long, value_name = "off|TIME", default_value = "100ms", value_parser = switched_time)]
    pub(super) hang_after: Switch<Duration>,

    /// Give a connection that a worker at work has not claimed for this long to an idle worker, if
    /// there is one; with --policy rr and least
    #[arg(long, value_name = "off|TIME", default_value = "2ms", value_parser = switched_time)]
    pub(super) take_back_after: Switch<Duration>,

    /// Kill and replace a worker that has hung for this long
    #[arg(long, value_name = "off|TIME", default_value = "off", value_parser = switched_time)]
    pub(super) hang_kill: Switch<Duration>,

    /// Close connections that no living worker serves after this long, and count them as dropped
    #[arg(long, value_name = "off|TIME", default_value = "60s", value_parser = switched_time)]
    pub(super) unserved_limit: Switch<Duration>,

    /// How long a new worker takes to get its full share
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = time)]
    pub(super) slow_start: Duration,

    /// While at least three connections arrive in two such times, wait so long for more and hand
    /// over several at once: less CPU for each, for so much latency; up to 1ms. Such times are
    /// twice as long with more than four workers, and up to 500us while every worker is busy
    #[arg(long, value_name = "off|TIME", default_value = "75us", value_parser = coalescing)]
    pub(super) coalesce: Switch<Duration>,

    /// What the built-in worker does with connections
    #[arg(long, value_enum, default_value_t)]
    pub(super) serve: Serve,

    /// What a request costs besides being answered, to stand in for a real service: cpu:TIME
    /// computes, block:TIME waits
    ///
    /// TIME is 200us, exp:1ms, lognormal:1ms,cv=2, mix:99x1ms+1x50ms or heavy (the last two are
    /// the same).
    #[arg(long, value_name = "WORK", value_parser = parse::<Work>)]
    pub(super) work: Option<Work>,

    /// What the times of --work are drawn from; the same seed gives the same times
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) work_seed: u64,

    /// What drives the built-in worker's connections
    #[arg(long, value_enum, default_value_t)]
    pub(super) runtime: Runtime,

    /// How long a request's head may take before it is answered with 408
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = positive_time)]
    pub(super) header_timeout: Duration,

    /// How long a kept-alive connection may be idle
    #[arg(long, value_name = "TIME", default_value = "75s", value_parser = positive_time)]
    pub(super) idle_timeout: Duration,

    /// How messages between the primary and PROGRAM are written down
    #[arg(long, value_enum, default_value_t, requires = "program")]
    pub(super) serialization: MessageFormat,

    /// Which ended workers are replaced
    #[arg(long, value_enum, default_value_t)]
    pub(super) restart: RestartChoice,

    /// How long open requests may take after SIGINT or SIGTERM before they are cut
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time)]
    pub(super) grace: Duration,

    /// How long serving goes on after SIGINT or SIGTERM, so that balancers notice before nothing is
    /// accepted any more; the grace period comes afterwards
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = time)]
    pub(super) drain_delay: Duration,

    /// How long workers may take until they serve, at the start and when they replace others
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = positive_time)]
    pub(super) start_limit: Duration,

    /// How long a worker's successor serves beside it before it leaves; if the successor ends in
    /// that time, replacing stops
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = time)]
    pub(super) settle: Duration,

    /// What surrounds the workers.
    #[command(flatten)]
    pub(super) worker_environment: WorkerEnvironmentArguments,

    /// Whether Node workers load a small script before PROGRAM that tells when connections end,
    /// and lets clients of kept connections go when a worker leaves: auto (unless their options
    /// forbid it) or off
    #[arg(long, value_enum, default_value_t, requires = "program")]
    pub(super) preload: PreloadChoice,

    /// When workers have served enough.
    #[command(flatten)]
    pub(super) recycle: RecycleArguments,

    /// How the run can be looked at and steered.
    #[command(flatten)]
    pub(super) admin: AdminArguments,

    /// Tell events and the summary as JSON lines on standard output
    #[arg(long)]
    pub(super) json: bool,

    /// Tell nothing but errors
    #[arg(short, long, conflicts_with = "json")]
    pub(super) quiet: bool,

    /// What is run.
    #[command(flatten)]
    pub(super) program: ProgramArguments,
}

impl RunArguments {
    /// The settings that these arguments mean.
    ///
    /// # Errors
    /// [`Error::Usage`] for arguments that contradict each other.
    pub(super) fn settings(&self) -> Result<Settings> {
        let worker_environment = self.worker_environment.resolve()?;
        let node_options = self.worker_environment.variable("NODE_OPTIONS").unwrap_or_default();
        let directory = worker_environment.directory.as_deref();
        let program = self.program.resolve(directory, &node_options.to_string_lossy())?;
        let policy = self.policy()?;
        let settings = Settings {
            workers: self.workers,
            pin: self.pin(program.as_ref()),
            preload: self.preload == PreloadChoice::Auto,
            worker_environment,
            start_limit: self.start_limit,
            settle: self.settle,
            policy,
            accept: self.accept,
            engine: self.engine.map_or_else(EngineChoice::from_environment, Ok)?,
            listen: self.listen(program.as_ref()),
            program,
            backlog: self.backlog,
            scheduling: self.scheduling(),
            hang_kill: self.hang_kill.0,
            serve: ServeSettings {
                serve: self.serve,
                runtime: self.runtime,
                work: self.work.clone(),
                work_seed: self.work_seed,
                header_timeout: self.header_timeout,
                idle_timeout: self.idle_timeout,
            },
            message_format: self.serialization,
            restart: self.restart,
            grace: self.grace,
            recycle: self.recycle.clone(),
            admin: self.admin.addresses.clone(),
            admin_allows_actions: self.admin.allow_actions,
            drain_delay: self.drain_delay,
        };
        settings.validate()?;
        Ok(settings)
    }

    /// Who takes sockets over accepts from them.
    fn policy(&self) -> Result<Policy> {
        match self.policy {
            Some(policy) => Ok(policy),
            None if self.program.takes_sockets() => Ok(Policy::None),
            None => policy_from_environment(),
        }
    }

    /// Programs listen by themselves, but for those that take sockets over.
    fn listen(&self, program: Option<&Program>) -> Vec<ListenAddress> {
        let gets_some = program.is_none_or(|program| program.dialect == Dialect::ListenFds);
        match self.listen.is_empty() && gets_some {
            true => vec![ListenAddress::Tcp(LISTEN_DEFAULT)],
            false => self.listen.clone(),
        }
    }

    /// Programs of others are not pinned, so the primary is not either, unless that is asked for.
    fn pin(&self, program: Option<&Program>) -> Pin {
        match (program, &self.pin) {
            (Some(Program { dialect: Dialect::Node | Dialect::ListenFds, .. }), Pin::Auto) => {
                Pin::None
            }
            (_, pin) => pin.clone(),
        }
    }

    fn scheduling(&self) -> SchedulerConfig {
        SchedulerConfig {
            limits: Limits {
                inflight_max: self.max_inflight,
                overload_factor: self.overload_factor.0,
            },
            credits: self.credits,
            hang_after_ns: self.hang_after.0.map(nanoseconds),
            unserved_limit_ns: self.unserved_limit.0.map(nanoseconds),
            take_back_after_ns: self.take_back_after.0.map(nanoseconds),
            slow_start_ns: nanoseconds(self.slow_start),
            coalesce_ns: self.coalesce.0.map(nanoseconds),
            ..SchedulerConfig::default()
        }
    }
}

/// A value that can be switched off.
#[derive(Clone, Copy, Debug)]
pub(super) struct Switch<T>(pub(super) Option<T>);

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn switch<T>(
    text: &str,
    parse: impl Fn(&str) -> std::result::Result<T, String>,
) -> std::result::Result<Switch<T>, String> {
    match text {
        "off" => Ok(Switch(None)),
        text => parse(text).map(|value| Switch(Some(value))),
    }
}

/// Longer waits would be felt, and be more than a wake-up can ever cost.
const COALESCE_MAX: Duration = Duration::from_millis(1);

pub(super) fn coalescing(text: &str) -> std::result::Result<Switch<Duration>, String> {
    match switch(text, positive_time)? {
        Switch(Some(time)) if time > COALESCE_MAX => Err("it must be at most 1ms".into()),
        switch => Ok(switch),
    }
}

pub(super) fn switched_time(text: &str) -> std::result::Result<Switch<Duration>, String> {
    switch(text, positive_time)
}

pub(super) fn factor(text: &str) -> std::result::Result<Switch<f32>, String> {
    switch(text, |text| match text.parse::<f32>() {
        Ok(factor) if (1.0..=1000.0).contains(&factor) => Ok(factor),
        _ => Err("write off or a number from 1 to 1000; 1 is the average itself".into()),
    })
}

pub(super) fn credits(text: &str) -> std::result::Result<CreditRule, String> {
    match (text, text.parse()) {
        ("auto", _) => Ok(CreditRule::Adaptive),
        (_, Ok(count @ 1..=CREDITS_MAX)) => Ok(CreditRule::Fixed(count)),
        _ => Err(format!("write auto or a number from 1 to {CREDITS_MAX}")),
    }
}

/// Parses a type of ours, keeping the remedy in the message.
pub(super) fn parse<T: std::str::FromStr<Err = Error>>(
    text: &str,
) -> std::result::Result<T, String> {
    text.parse().map_err(|error: Error| format!("{error}; {}", error.hint()))
}

pub(super) fn time(text: &str) -> std::result::Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a number and a unit, such as 10s or 500ms"))
}

pub(super) fn positive_time(text: &str) -> std::result::Result<Duration, String> {
    time(text).and_then(|duration| match duration {
        Duration::ZERO => Err("must be longer than nothing".into()),
        duration => Ok(duration),
    })
}
