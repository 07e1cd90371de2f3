//! The command line: arguments into [`Settings`]. Reads the file of `--body-file` and prints
//! nothing.
//!
//! Defaults that depend on each other are decided here, so that a report's `settings` say what
//! was run and not what was typed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::error::Error;
use crate::expect::Condition;
use crate::plan::Arrivals;
use crate::settings::{CloseBy, Load, Mode, Pin, RequestsPerConnection, Settings, Sources};
use crate::target::{Scheme, Target};
use crate::units::{parse_count, parse_duration, parse_rate};

/// Shown under `-h`.
const EXAMPLES_SHORT: &str = "\
Examples:
  clusterlb-load -c 64 -d 10 --requests-per-connection unlimited http://localhost:8000/
  clusterlb-load --rate 2k -d 1m --expect 'p99<5ms,errors=0' https://example.org/a?b=c
  clusterlb-load -n 1k -H 'Accept: text/plain' --body '{\"a\":1}' http://localhost:8000/items
--help lists all options: modes, threads, pinning, held connections, files of results.";

/// Shown under `--help`.
pub const EXAMPLES: &str = "\
Examples:
  A new connection for each of 20 000 requests a second, latency from the planned start:
    clusterlb-load --rate 20k --duration 10s --warmup 2s http://127.0.0.1:8000/
  What 64 connections can do at most (percentiles of such a run are uncorrected):
    clusterlb-load --connections 64 --requests-per-connection unlimited 127.0.0.1:8000
  A step of a pipeline, which fails if the service is too slow or answers with errors:
    clusterlb-load -r 200 -d 30 --expect 'p99<50ms,errors=0,5xx=0' https://example.org/health
  A body from a file to two servers in turn, both whose certificates have no known issuer:
    clusterlb-load -X PUT --body-file item.json --insecure https://10.0.0.1/a https://10.0.0.2/a
  Random arrivals, resets instead of TIME_WAIT, 5000 idle connections at the same time:
    clusterlb-load -r 5k --arrivals poisson --close rst --hold 5000 127.0.0.1:8000
  An echo over a unix socket, results for a script:
    clusterlb-load --mode echo --body-bytes 512 -n 100000 --json unix:/run/echo.sock

`clusterlb load` is the same program as `clusterlb-load`.

URLs: http://host:port/path?query, https://..., host:port[/path], tcp://host:port (echo or connect),
unix:/socket, unix:/socket:/path, unix:@abstract. A user in a URL becomes Basic authorization, a
#fragment is not sent. All addresses of a name are tried. Several URLs take turns.

Times: 10 (seconds), 10s, 500ms, 5m, 1h 30m.

TLS: HTTP/1.1 over TLS 1.2 or 1.3. Certificates are checked against the system's roots;
SSL_CERT_FILE and SSL_CERT_DIR name others.

Conditions of --expect: p50, p99, p99.9, min, mean, max of the response time (or connect_p99,
first_byte_p99, ...) with < <= > >= and a time; rate; requests, errors, 2xx, 3xx, 4xx, 5xx, non_2xx,
late and dropped with a number or a share in percent, and also =.

Exit codes: 0 done; 1 the run failed, or no answer had a 2xx or 3xx status; 2 usage; 3 the
environment does not allow it (no io_uring, too few descriptors or ports); 4 a condition of --expect
is not met. Whether the figures of a finished run may be trusted is said under \"valid\".";

/// Loads an HTTP or byte-echo server over TCP, TLS or a unix socket and measures what it answers.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES_SHORT, after_long_help = EXAMPLES)]
pub struct LoadArgs {
    /// http(s)://host/path, host:port, unix:/path ...; several take turns
    #[arg(value_name = "URL", required = true, num_args = 1.., value_parser = parse_target)]
    pub targets: Vec<Target>,

    /// Closed loop: connections kept busy [default: 64]
    ///
    /// Each begins its next request when the one before is answered.
    #[arg(short, long, value_name = "N", help_heading = "Load")]
    pub connections: Option<u32>,

    /// Open loop: requests a second, as 20k
    ///
    /// They start at planned instants, whatever the server does, and latency counts from there.
    #[arg(short, long, value_parser = parse_rate, conflicts_with = "connections",
        help_heading = "Load")]
    pub rate: Option<f64>,

    /// Open loop: spacing of the starts
    #[arg(
        long,
        value_enum,
        default_value_t,
        requires = "rate",
        help_heading = "Load",
        hide_short_help = true
    )]
    pub arrivals: Arrivals,

    /// Open loop: most connections at once [default: 10000, or what the descriptors allow]
    #[arg(
        long,
        value_name = "N",
        requires = "rate",
        help_heading = "Load",
        hide_short_help = true
    )]
    pub connections_max: Option<u32>,

    /// How long to measure [default: 10s]
    ///
    /// With --requests and without --duration, the number of requests ends the run.
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration, help_heading = "Load")]
    pub duration: Option<Duration>,

    /// How long to load before measuring
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration, default_value = "0s",
        help_heading = "Load")]
    pub warmup: Duration,

    /// End after this many requests, as 10k
    ///
    /// Requests of the warm-up are not among them.
    #[arg(short = 'n', long, value_name = "N", value_parser = parse_count, help_heading = "Load")]
    pub requests: Option<u64>,

    /// 1, N, N-M or unlimited
    ///
    /// How many requests a connection carries before it is closed.
    #[arg(long, value_name = "N", default_value = "1", help_heading = "Load")]
    pub requests_per_connection: RequestsPerConnection,

    /// Requests under way at once on a connection
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Load")]
    pub pipeline: u32,

    /// How long a request may take
    ///
    /// It counts from the planned start in an open loop, from the start in a closed one.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10s",
        help_heading = "Load")]
    pub timeout: Duration,

    /// Seed of Poisson gaps and of ranges of requests per connection
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 1,
        help_heading = "Load",
        hide_short_help = true
    )]
    pub seed: u64,

    /// What travels over a connection [default: http; echo for tcp://]
    #[arg(short, long, value_enum, help_heading = "Request", hide_short_help = true)]
    pub mode: Option<Mode>,

    /// The method [default: GET, or POST with a body]
    #[arg(short = 'X', long, value_name = "METHOD", value_parser = parse_method,
        help_heading = "Request")]
    pub method: Option<String>,

    /// A header line, as 'Name: value'; may be repeated
    ///
    /// It replaces the Host or Authorization that would be sent otherwise.
    #[arg(short = 'H', long = "header", value_name = "LINE", help_heading = "Request")]
    pub headers: Vec<String>,

    /// The body
    #[arg(long, value_name = "TEXT", group = "content", help_heading = "Request")]
    pub body: Option<String>,

    /// A file that holds the body
    #[arg(long, value_name = "FILE", group = "content", help_heading = "Request")]
    pub body_file: Option<PathBuf>,

    /// Size of a made-up body or echo message
    ///
    /// An echo message has 64 bytes unless this says otherwise.
    #[arg(long, value_name = "BYTES", group = "content", help_heading = "Request")]
    pub body_bytes: Option<u32>,

    /// Accept any certificate
    #[arg(short = 'k', long, help_heading = "TLS")]
    pub insecure: bool,

    /// Resume sessions of earlier connections
    ///
    /// With off, every connection makes a full handshake.
    #[arg(
        long,
        value_enum,
        value_name = "on|off",
        default_value_t,
        help_heading = "TLS",
        hide_possible_values = true
    )]
    pub tls_resumption: Switch,

    /// Idle connections opened before the run and held open through it
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        help_heading = "Connections",
        hide_short_help = true
    )]
    pub hold: u32,

    /// How a connection is ended: fin, or rst (no TIME_WAIT, the server sees a reset)
    #[arg(long, value_enum, default_value_t, help_heading = "Connections", hide_short_help = true)]
    pub close: CloseBy,

    /// Source addresses to spread over: auto (of 127/8, if the target is there) or a number
    #[arg(
        long,
        value_name = "N",
        default_value = "auto",
        help_heading = "Connections",
        hide_short_help = true
    )]
    pub sources: Sources,

    /// Generator threads, each with its own ring
    #[arg(
        short,
        long,
        value_name = "N",
        default_value_t = 1,
        help_heading = "Generator",
        hide_short_help = true
    )]
    pub threads: u32,

    /// CPUs of the threads: auto (one each, last CPU first), none, or a list as 2,3 or 4-7
    #[arg(
        long,
        value_name = "CPUS",
        default_value = "auto",
        help_heading = "Generator",
        hide_short_help = true
    )]
    pub pin: Pin,

    /// Busy-wait this long before a planned start; only where the thread has a core to itself
    #[arg(
        long,
        value_name = "MICROSECONDS",
        default_value_t = 0,
        help_heading = "Generator",
        hide_short_help = true
    )]
    pub spin_us: u64,

    /// Conditions, as 'p99<5ms,errors=0'
    ///
    /// The exit code is 4 if one of them is not met.
    #[arg(long, value_name = "CONDITIONS", value_delimiter = ',', help_heading = "Results")]
    pub expect: Vec<Condition>,

    /// Exit with 0 even without any 2xx or 3xx answer
    #[arg(long, help_heading = "Results")]
    pub any_status: bool,

    /// Print one JSON object instead of a table
    ///
    /// Its schema is clusterlb-load/1; fields are added, never renamed or removed.
    #[arg(long, help_heading = "Results")]
    pub json: bool,

    /// Write one row a second to this file
    #[arg(long, value_name = "FILE", help_heading = "Results", hide_short_help = true)]
    pub csv: Option<PathBuf>,

    /// Write an HdrHistogram interval log, one histogram a second and kind, to this file
    #[arg(long, value_name = "FILE", help_heading = "Results", hide_short_help = true)]
    pub hdr_log: Option<PathBuf>,

    /// No live view and no notes, only errors
    #[arg(short, long, help_heading = "Results")]
    pub quiet: bool,
}

/// On or off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    #[default]
    On,
    /// Off.
    Off,
}

impl LoadArgs {
    /// The run that was asked for, checked.
    pub fn settings(&self) -> Result<Settings, Error> {
        let mut targets = self.targets.iter().cloned();
        let target = targets.next().ok_or_else(|| {
            Error::usage("there is nothing to load", "give a URL, as http://localhost:8000/")
        })?;
        let mode = self.mode.unwrap_or(match target.scheme {
            Scheme::Tcp => Mode::Echo,
            Scheme::Http | Scheme::Https | Scheme::Any => Mode::Http,
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
        let body = self.content()?;
        let made_up_bytes = self.body_bytes.unwrap_or(if mode == Mode::Echo { 64 } else { 0 });
        let settings = Settings {
            target,
            other_targets: targets.collect(),
            mode,
            load,
            duration_ms: duration.map(milliseconds),
            requests: self.requests,
            warmup_ms: milliseconds(self.warmup),
            requests_per_connection: self.requests_per_connection,
            pipeline: self.pipeline,
            method: self.method.clone(),
            body_bytes: body
                .as_ref()
                .map_or(made_up_bytes, |body| u32::try_from(body.len()).unwrap_or(u32::MAX)),
            body,
            headers: self.headers.clone(),
            insecure: self.insecure,
            tls_resumption: self.tls_resumption == Switch::On,
            hold: self.hold,
            close: self.close,
            sources: self.sources,
            timeout_ms: milliseconds(self.timeout),
            threads: self.threads,
            pin: self.pin.clone(),
            spin_us: self.spin_us,
            seed: self.seed,
            any_status: self.any_status,
            expect: self.expect.clone(),
        };
        settings.check()?;
        Ok(settings)
    }

    /// The body, if it was given as text or as a file.
    fn content(&self) -> Result<Option<Arc<[u8]>>, Error> {
        match (&self.body, &self.body_file) {
            (Some(text), _) => Ok(Some(text.as_bytes().into())),
            (None, Some(path)) => read_body(path).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// The longest body that a file may hold; what a pipeline of them comes to is checked later.
const BODY_BYTES_MAX: u64 = 256 * 1024 * 1024;

fn read_body(path: &Path) -> Result<Arc<[u8]>, Error> {
    let failed = |cause: String| {
        let what = format!("--body-file {}: {cause}", path.display());
        Error::usage(what, "give a file of at most 256 MiB that may be read")
    };
    let metadata = fs::metadata(path).map_err(|error| failed(error.to_string()))?;
    if metadata.is_dir() || metadata.len() > BODY_BYTES_MAX {
        return Err(failed("it is a directory, or too large".into()));
    }
    fs::read(path).map(Into::into).map_err(|error| failed(error.to_string()))
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn parse_target(text: &str) -> Result<Target, String> {
    text.parse().map_err(|error: Error| format!("{error}; {}", error.hint()))
}

/// Methods are case-sensitive; people write the usual ones in lower case, too.
fn parse_method(text: &str) -> Result<String, String> {
    const USUAL: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    let usual = USUAL.into_iter().find(|method| method.eq_ignore_ascii_case(text));
    Ok(usual.unwrap_or(text).to_owned())
}

#[cfg(test)]
mod tests;
