//! Which settings are impossible, alone or together, and what would work instead. Pure.

use std::collections::HashSet;

use super::{CloseBy, Load, Mode, Pin, RequestsPerConnection, Settings, Sources};
use crate::error::Error;
use crate::target::{Endpoint, Scheme};

/// The fastest open loop that may be asked for, per second.
const RATE_MAX: f64 = 10e6;
/// The most connections, held ones included, that may be asked for.
const CONNECTIONS_MAX: u32 = 4_000_000;
/// The most requests under way on one connection.
const PIPELINE_MAX: u32 = 1024;
/// The most targets: every thread looks after all of them.
const TARGETS_MAX: usize = 256;
/// The most bytes of the bodies that are laid out for sending: a full pipeline for each target.
const PAYLOAD_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Longer spinning than this would be a busy loop, not a last-moment correction.
const SPIN_US_MAX: u64 = 1000;

impl Settings {
    /// Refuses what is impossible, with one line that says why and what would work.
    pub fn check(&self) -> Result<(), Error> {
        self.check_load()?;
        self.check_targets()?;
        self.check_time()?;
        self.check_protocol()?;
        self.check_method()?;
        self.check_requests()?;
        self.check_sockets()
    }

    fn check_load(&self) -> Result<(), Error> {
        refuse(self.threads == 0, "0 threads make no load", "give --threads 1 or more")?;
        let connections = match self.load {
            Load::Open { rate_per_s, connections_max, .. } => {
                refuse(
                    !(rate_per_s > 0.0 && rate_per_s <= RATE_MAX),
                    format!("a rate of {rate_per_s}/s cannot be kept"),
                    format!("give --rate above 0 and up to {RATE_MAX}, as in --rate 20k"),
                )?;
                connections_max
            }
            Load::Closed { connections } => Some(connections),
        };
        if let Some(connections) = connections {
            refuse(
                connections < self.threads,
                format!("{connections} connections are too few for {} threads", self.threads),
                "every thread needs a connection: give more connections or fewer threads",
            )?;
        }
        refuse(
            u64::from(connections.unwrap_or(0)) + u64::from(self.hold) > u64::from(CONNECTIONS_MAX),
            format!("more than {CONNECTIONS_MAX} connections do not fit one process"),
            "give fewer --connections, --connections-max or --hold",
        )?;
        if let Pin::List(cpus) = &self.pin {
            refuse(
                cpus.len() != self.threads as usize,
                format!("--pin names {} CPUs for {} threads", cpus.len(), self.threads),
                "name one CPU for each thread",
            )?;
        }
        Ok(())
    }

    fn check_targets(&self) -> Result<(), Error> {
        let count = self.targets().count();
        refuse(
            count > TARGETS_MAX,
            format!("{count} targets are more than the {TARGETS_MAX} that one run takes"),
            "give fewer, or start several runs",
        )?;
        let servers = self.targets().map(|target| (&target.endpoint, target.scheme));
        let servers = servers.collect::<HashSet<_>>().len();
        let kept = self.requests_per_connection == RequestsPerConnection::Unlimited;
        match self.load {
            Load::Closed { connections } if kept => refuse(
                (connections as usize) < servers,
                format!("{connections} kept connections cannot load {servers} servers"),
                format!("give --connections {servers} or more"),
            ),
            _ => Ok(()),
        }
    }

    fn check_time(&self) -> Result<(), Error> {
        refuse(
            self.duration_ms == Some(0),
            "a run of 0 s measures nothing",
            "give --duration 10s",
        )?;
        refuse(
            self.requests == Some(0),
            "a run of 0 requests measures nothing",
            "give --requests 1 or more",
        )?;
        refuse(
            self.duration_ms.is_none() && self.requests.is_none(),
            "nothing ends this run",
            "give --duration or --requests",
        )?;
        refuse(self.timeout_ms == 0, "a timeout of 0 s fails every request", "give --timeout 10s")?;
        refuse(
            self.spin_us > SPIN_US_MAX,
            format!("spinning {} µs before each start is a busy loop", self.spin_us),
            format!("give --spin-us 50, or at most {SPIN_US_MAX}"),
        )
    }

    fn check_protocol(&self) -> Result<(), Error> {
        for target in self.targets() {
            refuse(
                target.scheme.is_http() && self.mode != Mode::Http,
                format!("{target} names HTTP, the mode does not"),
                "leave out --mode, or give tcp://host:port",
            )?;
            refuse(
                target.scheme == Scheme::Tcp && self.mode == Mode::Http,
                format!("{target} names plain bytes, the mode names HTTP"),
                "give --mode echo, --mode connect, or http://host:port",
            )?;
        }
        refuse(
            self.mode == Mode::Echo && self.body_bytes == 0,
            "an echo of 0 bytes never comes back",
            "give --body-bytes 64",
        )?;
        refuse(
            self.mode != Mode::Http && !self.headers.is_empty(),
            "only HTTP has headers",
            "leave out --header",
        )?;
        refuse(
            self.mode == Mode::Echo && self.body.is_some(),
            "an echo's bytes are chosen so that shifted ones are noticed",
            "give --body-bytes instead of a body",
        )?;
        refuse(
            self.body.as_ref().is_some_and(|body| body.len() != self.body_bytes as usize),
            "the body has another length than the settings say",
            "set body_bytes to the body's length",
        )?;
        refuse(
            self.mode == Mode::Connect && self.body_bytes > 0,
            "connect mode sends nothing",
            "leave out --body-bytes, or give --mode echo",
        )?;
        self.headers.iter().try_for_each(|line| check_header(line))
    }

    fn check_method(&self) -> Result<(), Error> {
        let Some(method) = &self.method else {
            return Ok(());
        };
        refuse(self.mode != Mode::Http, "only HTTP has methods", "leave out --method")?;
        refuse(
            method.is_empty() || !method.bytes().all(is_token),
            format!("--method {}: that is no method", method.escape_debug()),
            "give --method GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS",
        )?;
        refuse(
            method == "CONNECT",
            "--method CONNECT would open a tunnel, which is not loaded here",
            "give the URL behind the proxy, or --mode connect to open connections only",
        )?;
        refuse(
            method == "HEAD" && self.body_bytes > 0,
            "a HEAD request has no body",
            "leave out the body, or give another --method",
        )
    }

    fn check_requests(&self) -> Result<(), Error> {
        let most = match self.requests_per_connection {
            RequestsPerConnection::Unlimited => u32::MAX,
            RequestsPerConnection::Between(least, most) => {
                refuse(
                    least == 0 || least > most,
                    format!("{least} to {most} requests per connection is no range"),
                    "give 1, a larger number, a range as 2-10, or unlimited",
                )?;
                most
            }
        };
        refuse(
            self.mode == Mode::Connect && most > 1,
            "connect mode has no requests to repeat",
            "leave out --requests-per-connection",
        )?;
        refuse(
            self.pipeline == 0 || self.pipeline > PIPELINE_MAX,
            format!("{} requests at once on a connection are impossible", self.pipeline),
            format!("give --pipeline 1 to {PIPELINE_MAX}"),
        )?;
        refuse(
            self.pipeline > most,
            format!("a pipeline of {} needs as many requests per connection", self.pipeline),
            "add --requests-per-connection unlimited",
        )?;
        refuse(
            u64::from(self.body_bytes) * u64::from(self.pipeline) * self.targets().count() as u64
                > PAYLOAD_BYTES_MAX,
            "a full pipeline of such bodies for each target does not fit the send buffer",
            format!("keep body bytes times --pipeline times targets within {PAYLOAD_BYTES_MAX}"),
        )
    }

    fn check_sockets(&self) -> Result<(), Error> {
        let unix = self.targets().any(|target| matches!(target.endpoint, Endpoint::Unix(_)));
        refuse(
            unix && self.close == CloseBy::Rst,
            "a unix socket knows no reset",
            "leave out --close",
        )?;
        refuse(
            unix && matches!(self.sources, Sources::Count(_)),
            "a unix socket has no source address",
            "leave out --sources",
        )?;
        refuse(
            self.sources == Sources::Count(0),
            "0 source addresses reach nothing",
            "give --sources auto, or 1 or more",
        )
    }
}

fn refuse(wrong: bool, what: impl Into<String>, hint: impl Into<String>) -> Result<(), Error> {
    if wrong {
        return Err(Error::usage(what, hint));
    }
    Ok(())
}

fn check_header(line: &str) -> Result<(), Error> {
    let shown = line.escape_debug();
    let hint = "give -H 'Name: value'";
    let Some((name, value)) = line.split_once(':') else {
        return Err(Error::usage(format!("--header {shown}: there is no colon in it"), hint));
    };
    refuse(
        name.is_empty() || !name.bytes().all(is_token),
        format!("--header {shown}: that is no header name"),
        hint,
    )?;
    refuse(
        value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t'),
        format!("--header {shown}: a control character would break the request"),
        hint,
    )?;
    let framing = ["content-length", "transfer-encoding"];
    refuse(
        framing.iter().any(|word| name.eq_ignore_ascii_case(word)),
        format!("--header {shown}: the body's length is computed"),
        "leave this header out",
    )
}

/// What methods and header names are made of (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
