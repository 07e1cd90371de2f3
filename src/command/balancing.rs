//! The options of balancing.

use std::time::Duration;

use clap::Args;
use clusterlb::{
    AcceptMechanism, Dispatch, EngineChoice, Error, Policy, Result, policy_from_environment,
};
use clusterlb_schedule::{CreditRule, Limits, OverloadFactor, SchedulerConfig};

use super::choices;
use super::headings;
use super::values::{Switch, coalescing, credits, factor, nanoseconds, switched_time, time};

/// Options of balancing.
#[derive(Clone, Debug, Args)]
pub(super) struct BalancingArguments {
    /// How a connection's worker is chosen [default: rr]
    ///
    /// The environment variable CLUSTERLB_SCHED_POLICY, which the library reads as well, changes
    /// the default.
    #[arg(short, long, value_parser = choices::policies(), help_heading = headings::BALANCING)]
    policy: Option<Policy>,

    /// How connections reach the chosen worker [default: primary]
    ///
    /// The environment variable CLUSTERLB_DISPATCH, which the library reads as well, changes the
    /// default.
    #[arg(
        long,
        value_parser = choices::dispatchers(),
        help_heading = headings::BALANCING,
        hide_short_help = true
    )]
    pub(super) dispatch: Option<Dispatch>,

    /// How workers accept connections themselves; implies --policy none [default: epoll]
    #[arg(
        long,
        value_parser = choices::mechanisms(),
        help_heading = headings::BALANCING,
        hide_short_help = true
    )]
    pub(super) accept: Option<AcceptMechanism>,

    /// The I/O engine of the primary and the built-in workers [default: auto]
    ///
    /// The environment variable CLUSTERLB_ENGINE, which the library reads as well, changes the
    /// default.
    #[arg(
        long,
        value_parser = choices::engines(),
        help_heading = headings::BALANCING,
        hide_short_help = true
    )]
    pub(super) engine: Option<EngineChoice>,

    /// Most open connections per worker [default: no limit]
    ///
    /// With --policy central the default is 1. A worker at the limit is skipped; when all are,
    /// connections wait in the kernel.
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = headings::BALANCING
    )]
    max_inflight: Option<u32>,

    /// Skip a worker with more in flight than the average times this
    ///
    /// auto is 1, the average itself, and 1.25 with --policy sticky, where a client that moves may
    /// lose its session. off keeps a strict rotation.
    #[arg(
        long,
        value_name = "auto|off|FACTOR",
        default_value = "auto",
        value_parser = factor,
        help_heading = headings::BALANCING,
        hide_short_help = true
    )]
    overload_factor: OverloadFactor,

    /// How many connections a worker may be given before it claims one: auto or a number
    ///
    /// auto grows with fast claims and drops to 1 on a slow one; 1 is what Node's own primary does.
    #[arg(
        long,
        value_name = "auto|N",
        default_value = "auto",
        value_parser = credits,
        help_heading = headings::BALANCING,
        hide_short_help = true
    )]
    credits: CreditRule,

    /// How long a new worker takes to get its full share
    #[arg(
        long,
        value_name = "TIME",
        default_value = "1s",
        value_parser = time,
        help_heading = headings::BALANCING,
        hide_short_help = true
    )]
    slow_start: Duration,

    /// Batch handoffs under load: how long to wait for more connections; up to 1ms
    ///
    /// When at least three connections arrive within twice this time, the primary waits for more:
    /// it saves CPU per connection and costs that much latency. The time doubles with more than
    /// four workers, and grows to 500us while every worker is busy.
    #[arg(
        long,
        value_name = "off|TIME",
        default_value = "75us",
        value_parser = coalescing,
        help_heading = headings::BALANCING,
        hide_short_help = true
    )]
    coalesce: Switch<Duration>,

    /// Give connections that a busy worker has not claimed for this long to an idle one
    ///
    /// Needs an idle worker; has no effect with --policy sticky.
    #[arg(
        long,
        value_name = "off|TIME",
        default_value = "2ms",
        value_parser = switched_time,
        help_heading = headings::BALANCING,
        hide_short_help = true
    )]
    take_back_after: Switch<Duration>,

    /// Skip a worker that claims nothing, or finishes no turn of its loop, for this long
    ///
    /// Its unclaimed connections go to others. With --dispatch kernel, and with --accept reuseport
    /// and Node workers, so do those that wait in its own socket; of programs with --dialect
    /// listen-fds only those of a worker that is stopped or gone, where the kernel can move them.
    #[arg(
        long,
        value_name = "off|TIME",
        default_value = "100ms",
        value_parser = switched_time,
        help_heading = headings::STUCK,
        hide_short_help = true
    )]
    hang_after: Switch<Duration>,

    /// Kill and replace a worker that has hung for this long
    #[arg(
        long,
        value_name = "off|TIME",
        default_value = "off",
        value_parser = switched_time,
        help_heading = headings::STUCK,
        hide_short_help = true
    )]
    pub(super) hang_kill: Switch<Duration>,

    /// Eject an outlier for this long: a worker that closes connections without an answer
    ///
    /// Such a worker always looks free and attracts load. Each further time it is ejected for
    /// longer, up to ten times this. Without this option it keeps its share.
    #[arg(
        long,
        value_name = "off|TIME",
        default_value = "off",
        value_parser = switched_time,
        help_heading = headings::STUCK,
        hide_short_help = true
    )]
    eject_outliers: Switch<Duration>,

    /// Close connections that no living worker serves after this time, and count them as dropped
    #[arg(
        long,
        value_name = "off|TIME",
        default_value = "60s",
        value_parser = switched_time,
        help_heading = headings::STUCK,
        hide_short_help = true
    )]
    unserved_limit: Switch<Duration>,
}

impl BalancingArguments {
    /// Programs that inherit sockets accept themselves, so only the kernel can choose among them,
    /// and only accepting workers have a mechanism.
    pub(super) fn policy(&self, takes_sockets: bool, dispatch: Dispatch) -> Result<Policy> {
        match (self.policy, self.accept) {
            (Some(policy), Some(accept)) if policy != Policy::None => Err(Error::usage(
                format!(
                    "--accept {accept} is how workers accept, and with --policy {policy} the \
                         primary does"
                ),
                "leave one of the two out; --accept alone means --policy none",
            )),
            (Some(policy), _) => Ok(policy),
            (None, Some(_)) => Ok(Policy::None),
            (None, None) if takes_sockets && dispatch == Dispatch::Primary => Ok(Policy::None),
            (None, None) => policy_from_environment(),
        }
    }

    /// The scheduling rules.
    pub(super) fn scheduling(&self) -> SchedulerConfig {
        SchedulerConfig {
            limits: Limits {
                inflight_max: self.max_inflight,
                overload_factor: self.overload_factor,
            },
            credits: self.credits,
            hang_after_ns: self.hang_after.0.map(nanoseconds),
            unserved_limit_ns: self.unserved_limit.0.map(nanoseconds),
            take_back_after_ns: self.take_back_after.0.map(nanoseconds),
            eject_outliers_ns: self.eject_outliers.0.map(nanoseconds),
            slow_start_ns: nanoseconds(self.slow_start),
            coalesce_ns: self.coalesce.0.map(nanoseconds),
            ..SchedulerConfig::default()
        }
    }
}
