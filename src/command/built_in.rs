//! The options of the built-in worker.

use std::time::Duration;

use clap::Args;
use clusterlb_harness::work::Work;

use super::handler::Serve;
use super::headings::BUILT_IN;
use super::settings::{Runtime, ServeSettings};
use super::values::{parse, positive_time};

/// Options of the built-in worker.
#[derive(Clone, Debug, Args)]
pub(super) struct BuiltInArguments {
    /// What the built-in worker does with connections
    #[arg(
        long,
        value_enum,
        default_value_t,
        help_heading = BUILT_IN,
        hide_short_help = true
    )]
    serve: Serve,

    /// Cost of a request in addition to its answer: cpu:TIME computes, block:TIME waits
    ///
    /// It stands in for a real service. TIME is 200us, exp:1ms, lognormal:1ms,cv=2,
    /// mix:99x1ms+1x50ms or heavy (the last two are the same).
    #[arg(
        long,
        value_name = "WORK",
        value_parser = parse::<Work>,
        help_heading = BUILT_IN,
        hide_short_help = true
    )]
    work: Option<Work>,

    /// Seed of the times of --work; the same seed gives the same times
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        help_heading = BUILT_IN,
        hide_short_help = true
    )]
    work_seed: u64,

    /// What drives the built-in worker's connections
    #[arg(
        long,
        value_enum,
        default_value_t,
        help_heading = BUILT_IN,
        hide_short_help = true
    )]
    runtime: Runtime,

    /// Time limit of a request's head; after it the answer is 408
    #[arg(
        long,
        value_name = "TIME",
        default_value = "10s",
        value_parser = positive_time,
        help_heading = BUILT_IN,
        hide_short_help = true
    )]
    header_timeout: Duration,

    /// How long a kept-alive connection may be idle
    #[arg(
        long,
        value_name = "TIME",
        default_value = "75s",
        value_parser = positive_time,
        help_heading = BUILT_IN,
        hide_short_help = true
    )]
    idle_timeout: Duration,

    /// Allow the primary and the built-in workers only the system calls that they need
    ///
    /// A worker that makes another one is ended by SIGSYS and replaced; in the primary the call
    /// fails with EPERM. Either way a line on standard error names it, and the event exit of
    /// the worker does. Not for a PROGRAM, which would inherit the primary's filter.
    #[arg(long, help_heading = BUILT_IN, hide_short_help = true)]
    seccomp: bool,
}

impl BuiltInArguments {
    /// Converts them to settings.
    pub(super) fn settings(&self) -> ServeSettings {
        ServeSettings {
            serve: self.serve,
            runtime: self.runtime,
            work: self.work.clone(),
            work_seed: self.work_seed,
            header_timeout: self.header_timeout,
            idle_timeout: self.idle_timeout,
            seccomp: self.seccomp,
        }
    }
}
