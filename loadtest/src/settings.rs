//! What a run shall do: every choice, its bounds, and which choices exclude each other. Pure.
//!
//! `Settings` is also what the report repeats under `settings`, so its field names carry units.
//! It refuses nothing while being filled in; [`Settings::check`] refuses everything that cannot be.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::plan::Arrivals;
use crate::target::{Endpoint, Scheme, Target};

/// The fastest open loop that may be asked for, per second.
const RATE_MAX: f64 = 10e6;
/// The most connections, held ones included, that may be asked for.
const CONNECTIONS_MAX: u32 = 4_000_000;
/// The most requests under way on one connection.
const PIPELINE_MAX: u32 = 1024;
/// The most bytes of all messages of a full pipeline: one copy is kept for every thread.
const PAYLOAD_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Longer spinning than this would be a busy loop, not a last-moment correction.
const SPIN_US_MAX: u64 = 1000;

/// What travels over a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// HTTP/1.1 requests and responses.
    #[default]
    Http,
    /// Bytes are sent and the same bytes must come back.
    Echo,
    /// A connection is made and closed, nothing is sent.
    Connect,
}

/// How a connection is ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum CloseBy {
    /// An orderly close; the port then rests in TIME_WAIT on this side.
    #[default]
    Fin,
    /// A reset, after the full response: no TIME_WAIT, but the server sees ECONNRESET.
    Rst,
}

/// When the next request begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Load {
    /// At planned instants, whatever the server does.
    Open {
        /// Starts per second.
        rate_per_s: f64,
        /// Spacing of the starts.
        arrivals: Arrivals,
        /// Most connections at once; `None` takes 10 000 or what the descriptors allow.
        connections_max: Option<u32>,
    },
    /// As soon as an earlier one is done.
    Closed {
        /// Connections kept busy.
        connections: u32,
    },
}

/// How many requests a connection carries before it is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum RequestsPerConnection {
    /// As many as the run asks for.
    Unlimited,
    /// A number drawn from this range for each connection.
    Between(u32, u32),
}

/// Which CPUs the threads run on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Pin {
    /// One each, from the last allowed CPU downwards: servers tend to start at the first.
    #[default]
    Auto,
    /// Wherever the kernel puts them.
    None,
    /// One each, in this order.
    List(Vec<u32>),
}

/// How many source addresses are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Sources {
    /// As many of 127/8 as the rate needs if the target is there too, otherwise one.
    #[default]
    Auto,
    /// So many.
    Count(u32),
}

/// What a run shall do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// What is loaded.
    pub target: Target,
    /// What travels over a connection.
    pub mode: Mode,
    /// When the next request begins.
    pub load: Load,
    /// Measured time; `None` if the number of requests ends the run.
    pub duration_ms: Option<u64>,
    /// Requests after the warm-up that end the run.
    pub requests: Option<u64>,
    /// Time at the beginning that is not recorded.
    pub warmup_ms: u64,
    /// Requests before a connection is closed.
    pub requests_per_connection: RequestsPerConnection,
    /// Requests under way at once on a connection.
    pub pipeline: u32,
    /// Size of a request's body, or of an echo message.
    pub body_bytes: u32,
    /// Further request header lines.
    pub headers: Vec<String>,
    /// Idle connections held open meanwhile.
    pub hold: u32,
    /// How a connection is ended.
    pub close: CloseBy,
    /// Source addresses.
    pub sources: Sources,
    /// How long a request may take, from its start.
    pub timeout_ms: u64,
    /// Generator threads.
    pub threads: u32,
    /// Their CPUs.
    pub pin: Pin,
    /// Busy waiting before a planned start.
    pub spin_us: u64,
    /// Decides Poisson gaps and requests per connection.
    pub seed: u64,
}

impl Settings {
    /// A run with defaults for everything but the target and the load: 10 s, no warm-up.
    #[must_use]
    pub fn new(target: Target, load: Load) -> Self {
        Self {
            target,
            mode: Mode::Http,
            load,
            duration_ms: Some(10_000),
            requests: None,
            warmup_ms: 0,
            requests_per_connection: RequestsPerConnection::Between(1, 1),
            pipeline: 1,
            body_bytes: 0,
            headers: Vec::new(),
            hold: 0,
            close: CloseBy::Fin,
            sources: Sources::Auto,
            timeout_ms: 10_000,
            threads: 1,
            pin: Pin::Auto,
            spin_us: 0,
            seed: 1,
        }
    }

    /// Refuses what cannot be, with one line that says why and what would work.
    pub fn check(&self) -> Result<(), Error> {
        self.check_load()?;
        self.check_time()?;
        self.check_protocol()?;
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
                format!("{connections} connections cannot busy {} threads", self.threads),
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
        refuse(
            self.target.scheme == Scheme::Http && self.mode != Mode::Http,
            format!("{} names HTTP, the mode does not", self.target),
            "leave out --mode, or give tcp://host:port",
        )?;
        refuse(
            self.target.scheme == Scheme::Tcp && self.mode == Mode::Http,
            format!("{} names plain bytes, the mode names HTTP", self.target),
            "give --mode echo, --mode connect, or http://host:port",
        )?;
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
            self.mode == Mode::Connect && self.body_bytes > 0,
            "connect mode sends nothing",
            "leave out --body-bytes, or give --mode echo",
        )?;
        self.headers.iter().try_for_each(|line| check_header(line))
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
            format!("{} requests at once on a connection cannot be", self.pipeline),
            format!("give --pipeline 1 to {PIPELINE_MAX}"),
        )?;
        refuse(
            self.pipeline > most,
            format!("a pipeline of {} needs as many requests per connection", self.pipeline),
            "add --requests-per-connection unlimited",
        )?;
        refuse(
            u64::from(self.body_bytes) * u64::from(self.pipeline) > PAYLOAD_BYTES_MAX,
            "a full pipeline of such bodies does not fit the send buffer",
            format!("keep --body-bytes times --pipeline within {PAYLOAD_BYTES_MAX}"),
        )
    }

    fn check_sockets(&self) -> Result<(), Error> {
        let unix = matches!(self.target.endpoint, Endpoint::Unix(_));
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
    let hint = "give --header 'Name: value'";
    let Some((name, value)) = line.split_once(':') else {
        return Err(Error::usage(format!("--header {shown}: there is no colon in it"), hint));
    };
    refuse(
        name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)),
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
        format!("--header {shown}: the body's length is set by --body-bytes"),
        "leave this header out",
    )
}

impl fmt::Display for RequestsPerConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => f.write_str("unlimited"),
            Self::Between(least, most) if least == most => write!(f, "{least}"),
            Self::Between(least, most) => write!(f, "{least}-{most}"),
        }
    }
}

impl FromStr for RequestsPerConnection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "unlimited" {
            return Ok(Self::Unlimited);
        }
        let (least, most) = text.split_once('-').unwrap_or((text, text));
        match (least.parse(), most.parse()) {
            (Ok(least), Ok(most)) if least > 0 && least <= most => Ok(Self::Between(least, most)),
            _ => Err("give 1, a larger number, a range as 2-10, or unlimited".into()),
        }
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::None => f.write_str("none"),
            Self::List(cpus) => {
                let words: Vec<String> = cpus.iter().map(u32::to_string).collect();
                f.write_str(&words.join(","))
            }
        }
    }
}

impl FromStr for Pin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            list => cpu_list(list)
                .filter(|cpus| !cpus.is_empty())
                .map(Self::List)
                .ok_or_else(|| "give auto, none, or CPUs as 1 or 2,3 or 4-7".into()),
        }
    }
}

/// Reads the kernel's notation for sets of CPUs: `0,2-5`.
pub(crate) fn cpu_list(text: &str) -> Option<Vec<u32>> {
    const CPUS_MAX: usize = 8192;
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        if last < first || (last - first) as usize >= CPUS_MAX {
            return None;
        }
        cpus.extend(first..=last);
        if cpus.len() > CPUS_MAX {
            return None;
        }
    }
    Some(cpus)
}

impl fmt::Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Count(count) => write!(f, "{count}"),
        }
    }
}

impl FromStr for Sources {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        text.parse().map(Self::Count).map_err(|_| "give auto or a number".into())
    }
}

/// Lets a type travel in JSON as the text that the command line knows it by.
macro_rules! as_text {
    ($($kind:ty),*) => {$(
        impl From<$kind> for String {
            fn from(value: $kind) -> Self {
                value.to_string()
            }
        }

        impl TryFrom<String> for $kind {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }
    )*};
}

as_text!(RequestsPerConnection, Pin, Sources);
