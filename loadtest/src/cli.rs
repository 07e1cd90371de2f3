//! The command line: words into [`Settings`]. Reads nothing but its arguments, prints nothing.
//!
//! Defaults that depend on each other are decided here, so that a report's `settings` say what
//! was run and not what was typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::error::Error;
use crate::plan::Arrivals;
use crate::settings::{CloseBy, Load, Mode, Pin, RequestsPerConnection, Settings, Sources};
use crate::target::{Scheme, Target};

/// Shown under `--help`.
pub const EXAMPLES: &str = "\
Examples:
  A new connection for each of 20 000 requests a second, latency from the planned start:
    clusterlb-load --rate 20k --duration 10s --warmup 2s http://127.0.0.1:8000/
  What 64 connections can do at most (percentiles of such a run are uncorrected):
    clusterlb-load --connections 64 --requests-per-connection unlimited 127.0.0.1:8000
  Random arrivals, resets instead of TIME_WAIT, 5000 idle connections beside them:
    clusterlb-load -r 5k --arrivals poisson --close rst --hold 5000 127.0.0.1:8000
  An echo over a unix socket, results for a script:
    clusterlb-load --mode echo --body-bytes 512 -n 100000 --json unix:/run/echo.sock

Targets: host:port[/path], http://host:port/path, tcp://host:port (echo or connect),
unix:/socket, unix:/socket:/path, unix:@abstract.

Exit codes: 0 done, 1 the run failed, 2 usage, 3 the environment cannot (no io_uring, too few
descriptors or ports). Whether a finished run may be trusted is said under \"valid\".";

/// Loads an HTTP or byte-echo server over TCP or a unix socket and measures what it answers.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = EXAMPLES)]
pub struct LoadArgs {
    /// What to load: host:port, http://host:port/path, tcp://host:port or unix:/path[:/path]
    pub target: Target,

    /// Open loop: start so many requests a second, as 20k, at planned instants
    #[arg(short, long, value_parser = parse_rate, conflicts_with = "connections")]
    pub rate: Option<f64>,

    /// Open loop: spacing of the starts
    #[arg(long, value_enum, default_value_t, requires = "rate")]
    pub arrivals: Arrivals,

    /// Open loop: most connections at once [default: 10000, or what the descriptors allow]
    #[arg(long, value_name = "N", requires = "rate")]
    pub connections_max: Option<u32>,

    /// Closed loop: connections kept busy [default: 64, unless --rate is given]
    #[arg(short, long, value_name = "N")]
    pub connections: Option<u32>,

    /// How long to measure [default: 10s, unless --requests is given]
    #[arg(short, long, value_parser = parse_duration)]
    pub duration: Option<Duration>,

    /// How long to load before measuring
    #[arg(short, long, value_parser = parse_duration, default_value = "0s")]
    pub warmup: Duration,

    /// End after so many measured requests
    #[arg(short = 'n', long, value_parser = parse_count)]
    pub requests: Option<u64>,

    /// What travels over a connection [default: http; echo for tcp://]
    #[arg(short, long, value_enum)]
    pub mode: Option<Mode>,

    /// Requests before a connection is closed: 1, N, N-M or unlimited
    #[arg(long, value_name = "N", default_value = "1")]
    pub requests_per_connection: RequestsPerConnection,

    /// Requests under way at once on a connection
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub pipeline: u32,

    /// Size of a request's body (then it is a POST), or of an echo message [echo default: 64]
    #[arg(long, value_name = "BYTES")]
    pub body_bytes: Option<u32>,

    /// A further request header, as 'Name: value'; may be repeated
    #[arg(long = "header", value_name = "LINE")]
    pub headers: Vec<String>,

    /// Idle connections opened before the run and held open through it
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub hold: u32,

    /// How a connection is ended: fin, or rst (no TIME_WAIT, the server sees a reset)
    #[arg(long, value_enum, default_value_t)]
    pub close: CloseBy,

    /// Source addresses to spread over: auto (of 127/8, if the target is there) or a number
    #[arg(long, value_name = "N", default_value = "auto")]
    pub sources: Sources,

    /// How long a request may take, from its planned start (open loop) or its start
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    pub timeout: Duration,

    /// Generator threads, each with its own ring
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    pub threads: u32,

    /// CPUs of the threads: auto (one each, last CPU first), none, or a list as 2,3 or 4-7
    #[arg(long, value_name = "CPUS", default_value = "auto")]
    pub pin: Pin,

    /// Busy-wait this long before a planned start; only where the thread has a core to itself
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0)]
    pub spin_us: u64,

    /// Seed of Poisson gaps and of ranges of requests per connection
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,

    /// Print one JSON object (schema clusterlb-load/1) instead of a table
    #[arg(long)]
    pub json: bool,

    /// Write one row a second to this file
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,

    /// Write an HdrHistogram interval log, one histogram a second and kind, to this file
    #[arg(long, value_name = "FILE")]
    pub hdr_log: Option<PathBuf>,

    /// No progress line, no notes; errors are still printed
    #[arg(short, long)]
    pub quiet: bool,
}

impl LoadArgs {
    /// The run that was asked for, checked.
    pub fn settings(&self) -> Result<Settings, Error> {
        let mode = self.mode.unwrap_or(match self.target.scheme {
            Scheme::Tcp => Mode::Echo,
            Scheme::Http | Scheme::Any => Mode::Http,
        });
        let load = match self.rate {
            Some(rate_per_s) => Load::Open {
                rate_per_s,
                arrivals: self.arrivals,
                connections_max: self.connections_max,
            },
            None => Load::Closed {
                connections: self.connections.unwrap_or_else(|| self.threads.max(64)),
            },
        };
        let duration = match (self.duration, self.requests) {
            (None, None) => Some(Duration::from_secs(10)),
            (given, _) => given,
        };
        let body_bytes = self.body_bytes.unwrap_or(if mode == Mode::Echo { 64 } else { 0 });
        let settings = Settings {
            target: self.target.clone(),
            mode,
            load,
            duration_ms: duration.map(milliseconds),
            requests: self.requests,
            warmup_ms: milliseconds(self.warmup),
            requests_per_connection: self.requests_per_connection,
            pipeline: self.pipeline,
            body_bytes,
            headers: self.headers.clone(),
            hold: self.hold,
            close: self.close,
            sources: self.sources,
            timeout_ms: milliseconds(self.timeout),
            threads: self.threads,
            pin: self.pin.clone(),
            spin_us: self.spin_us,
            seed: self.seed,
        };
        settings.check()?;
        Ok(settings)
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Reads `20k`, `1.5M`, `800`.
fn parse_rate(text: &str) -> Result<f64, String> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1e3),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1e6),
        _ => (text, 1.0),
    };
    match digits.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number * factor),
        Ok(_) => Err("a rate must be above 0; write 20k, 1.5M or 800".into()),
        Err(_) => Err("write 20k, 1.5M or 800".into()),
    }
}

/// Reads a number of requests: `100000`, `100k`, `1M`.
fn parse_count(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1000),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1_000_000),
        _ => (text, 1),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| "write 100000, 100k or 1M".into())
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "write 10s, 500ms, 5m or 1h 30m".into())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        load: LoadArgs,
    }

    fn settings(words: &str) -> Result<Settings, Error> {
        let all = std::iter::once("load").chain(words.split(' '));
        Command::try_parse_from(all).expect(words).load.settings()
    }

    #[test]
    fn the_command_is_well_formed() {
        Command::command().debug_assert();
    }

    #[test]
    fn defaults_depend_on_what_is_given() {
        let closed = settings("h:1").expect("the least that can be typed");
        assert_eq!(closed.load, Load::Closed { connections: 64 });
        assert_eq!(closed.duration_ms, Some(10_000));
        let counted = settings("-n 5k --rate 1.5M tcp://h:1").expect("an open loop");
        assert_eq!((counted.duration_ms, counted.requests), (None, Some(5000)));
        assert_eq!((counted.mode, counted.body_bytes), (Mode::Echo, 64));
        assert!(matches!(counted.load, Load::Open { rate_per_s: 1.5e6, .. }));
    }

    #[test]
    fn what_cannot_be_is_refused_as_usage() {
        for words in [
            "-d 0s h:1",
            "-n 0 h:1",
            "-c 0 h:1",
            "-t 0 h:1",
            "-c 2 -t 3 h:1",
            "--timeout 0s h:1",
            "--pipeline 4 h:1",
            "--pipeline 0 h:1",
            "--mode echo http://h:1",
            "--mode http tcp://h:1",
            "--mode connect --body-bytes 4 h:1",
            "--mode echo --body-bytes 0 h:1",
            "--header nothing h:1",
            "--header Content-Length:1 h:1",
            "--close rst unix:/a",
            "--sources 0 h:1",
            "--pin 0,1 h:1",
            "--spin-us 2000 h:1",
            "--rate 90M h:1",
        ] {
            let error = settings(words).expect_err(words);
            assert_eq!(error.exit_code(), 2, "{words}");
            assert!(!error.hint().is_empty(), "{words}");
        }
    }

    #[test]
    fn words_that_are_no_values_never_get_as_far() {
        for words in [
            "load --rate 0 h:1",
            "load --rate -5 h:1",
            "load --rate nan h:1",
            "load --rate 5 --connections 3 h:1",
            "load --arrivals poisson h:1",
            "load -d 10 h:1",
            "load -n 99999999999999999M h:1",
            "load --requests-per-connection 5-2 h:1",
            "load --pin 3-1 h:1",
            "load --sources some h:1",
        ] {
            assert!(Command::try_parse_from(words.split(' ')).is_err(), "{words}");
        }
    }
}
