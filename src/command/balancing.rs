//! The options about who gets which connection, and when.

use std::time::Duration;

use clap::Args;
use clusterlb::{
    AcceptMechanism, Dispatch, EngineChoice, Error, Policy, Result, policy_from_environment,
};
use clusterlb_schedule::{CreditRule, Limits, OverloadFactor, SchedulerConfig};

use super::choices;
use super::headings;
use super::values::{Switch, coalescing, credits, factor, nanoseconds, switched_time, time};

/// Who gets which connection.
#[derive(Clone, Debug, Args)]
pub(super) struct BalancingArguments {
    /// Who chooses the worker [default: rr]
    ///
    /// The environment variable CLUSTERLB_SCHED_POLICY, which the library reads as well, changes
    /// the default.
    #[arg(short, long, value_parser = choices::policies(), help_heading = headings::BALANCING)]
    policy: Option<Policy>,

    /// Who takes connections to the worker that the policy means [default: primary]
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

    /// How workers accept by themselves: with --policy none, which this implies [default: epoll]
    #[arg(
        long,
        value_parser = choices::mechanisms(),
        help_heading = headings::BALANCING,
        hide_short_help = true
    )]
    pub(super) accept: Option<AcceptMechanism>,

    /// What moves connections, for the primary and the built-in workers [default: auto]
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

    /// Most connections at one worker [default: no limit]
    ///
    /// With --policy central the default is 1. Beyond it the worker is passed over, and when all
    /// are, connections wait in the kernel.
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = headings::BALANCING
    )]
    max_inflight: Option<u32>,

    /// Pass over a worker with more in flight than the average times this
    ///
    /// auto is 1, the average itself, and 1.25 with --policy sticky, where a client that moves may
    /// miss its session. off is for a strict rotation.
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
    /// auto grows with fast claims, and collapses with a slow one; 1 is what Node's own primary
    /// does.
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

    /// How long connections are collected under load, to hand over several at once; up to 1ms
    ///
    /// While at least three connections arrive in two such times, the primary waits so long for
    /// more: less CPU for each, for so much latency. Such times are twice as long with more than
    /// four workers, and up to 500us while every worker is busy.
    #[arg(
        long,
        value_name = "off|TIME",
        default_value = "75us",
        value_parser = coalescing,
        help_heading = headings::BALANCING,
        hide_short_help = true
    )]
    coalesce: Switch<Duration>,

    /// Give what a busy worker has not claimed for this long to an idle one
    ///
    /// Only while there is an idle worker, and not with --policy sticky.
    #[arg(
        long,
        value_name = "off|TIME",
        default_value = "2ms",
        value_parser = switched_time,
        help_heading = headings::BALANCING,
        hide_short_help = true
    )]
    take_back_after: Switch<Duration>,

    /// Pass over a worker that has claimed nothing, or finished no turn of its loop, for this long
    ///
    /// What it has not claimed goes to others; with --dispatch kernel, and with --accept reuseport
    /// and Node workers, also what it has not accepted from its own socket.
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

    /// Give nothing to an outlier for this long: a worker that closes connections without an answer
    ///
    /// Such a worker is always free and would attract load. It is ejected for a multiple of this
    /// time when it happens again, up to ten times it. Without this it gets its share.
    #[arg(
        long,
        value_name = "off|TIME",
        default_value = "off",
        value_parser = switched_time,
        help_heading = headings::STUCK,
        hide_short_help = true
    )]
    eject_outliers: Switch<Duration>,

    /// Close connections that no living worker serves after this long, and count them as dropped
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
    /// Who takes sockets over accepts from them, and only workers that accept have a way to.
    pub(super) fn policy(&self, takes_sockets: bool) -> Result<Policy> {
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
            (None, None) if takes_sockets => Ok(Policy::None),
            (None, None) => policy_from_environment(),
        }
    }

    /// The rules of sharing out.
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
