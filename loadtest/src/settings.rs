//! What a run does: every choice, its bounds, and which choices exclude each other. Pure.
//!
//! `Settings` is also what the report repeats under `settings`, so its field names carry units.
//! It refuses nothing while being filled in; [`Settings::check`] refuses what is impossible.

mod check;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::expect::Condition;
use crate::plan::Arrivals;
use crate::target::Target;

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
    /// An orderly close. In HTTP the last request asks for it (`Connection: close`), so that the
    /// server closes first and keeps the port in TIME_WAIT.
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
    /// This many.
    Count(u32),
}

/// What a run does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// What is loaded.
    pub target: Target,
    /// Further targets, which take turns with the first.
    #[serde(default)]
    pub other_targets: Vec<Target>,
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
    /// The request's method; `None` is POST with a body and GET without one.
    #[serde(default)]
    pub method: Option<String>,
    /// Size of a request's body, or of an echo message.
    pub body_bytes: u32,
    /// A request's body, of `body_bytes` bytes; `None` fills it with the letter x.
    #[serde(skip)]
    pub body: Option<Arc<[u8]>>,
    /// Further request header lines.
    pub headers: Vec<String>,
    /// Accept any certificate of a TLS server.
    #[serde(default)]
    pub insecure: bool,
    /// Resume TLS sessions of earlier connections.
    #[serde(default = "yes")]
    pub tls_resumption: bool,
    /// Idle connections held open during the run.
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
    /// A run without a single 2xx or 3xx answer is no failed run.
    #[serde(default)]
    pub any_status: bool,
    /// What the results must be like.
    #[serde(default)]
    pub expect: Vec<Condition>,
}

/// The default of settings that a report of an older version does not name.
fn yes() -> bool {
    true
}

impl Settings {
    /// A run with defaults for everything but the target and the load: 10 s, no warm-up.
    #[must_use]
    pub fn new(target: Target, load: Load) -> Self {
        Self {
            target,
            other_targets: Vec::new(),
            mode: Mode::Http,
            load,
            duration_ms: Some(10_000),
            requests: None,
            warmup_ms: 0,
            requests_per_connection: RequestsPerConnection::Between(1, 1),
            pipeline: 1,
            method: None,
            body_bytes: 0,
            body: None,
            headers: Vec::new(),
            insecure: false,
            tls_resumption: true,
            hold: 0,
            close: CloseBy::Fin,
            sources: Sources::Auto,
            timeout_ms: 10_000,
            threads: 1,
            pin: Pin::Auto,
            spin_us: 0,
            seed: 1,
            any_status: false,
            expect: Vec::new(),
        }
    }

    /// All targets, in the order in which they take turns.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        std::iter::once(&self.target).chain(&self.other_targets)
    }

    /// The method of the requests.
    #[must_use]
    pub fn method(&self) -> &str {
        let has_body = self.body_bytes > 0 || self.body.is_some();
        let implied = if has_body { "POST" } else { "GET" };
        self.method.as_deref().unwrap_or(implied)
    }
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
