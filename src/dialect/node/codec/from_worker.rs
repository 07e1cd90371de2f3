//! Parses and validates messages from a Node worker.
//!
//! Owns the names of the fields (`lib/internal/cluster/child.js`, `lib/internal/child_process.js`).

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::{Garbage, OWN_COMMAND, PARSED_BYTES_MAX, UserMessage, v8};

/// Prefix of `cmd` in Node's internal messages.
const OWN_PREFIX: &str = "NODE_";
/// Start of such a message's JSON line, as Node writes it.
const OWN_LINE: &[u8] = b"{\"cmd\":\"NODE_";
/// The first of the two lines that Node writes per connection.
const ARRIVED_LINE: &[u8] = b"{\"cmd\":\"NODE_HANDLE_ACK\"}";
/// Start of the second line.
const ANSWER_BEGIN: &[u8] = b"{\"cmd\":\"NODE_CLUSTER\",\"ack\":";

/// A message from a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum FromWorker {
    /// The worker's Node runs; its program has not started.
    Online,
    /// `server.listen()` or `socket.bind()`: asks where connections come from.
    Query(Box<Query>),
    /// A server listens.
    Listening(Listening),
    /// A server has stopped listening.
    Close {
        /// Key of the server, from the reply to its query.
        key: String,
    },
    /// The worker leaves voluntarily and waits for a reply.
    Leaving {
        /// Sequence number for the reply.
        sequence: Option<i64>,
    },
    /// The reply to a message of the primary.
    Answer {
        /// Sequence number of that message.
        to: i64,
        /// Whether the worker took the connection; `None` in replies to other messages.
        accepted: Option<bool>,
    },
    /// The descriptor of the oldest unconfirmed message arrived.
    HandleArrived,
    /// That descriptor was lost, because the worker had none free.
    HandleLost,
    /// A program's message with a descriptor.
    Handle(UserMessage),
    /// The worker waits until the primary has closed all sockets sent under this key.
    SocketsClose {
        /// The key.
        key: String,
    },
    /// The worker asks how many sockets sent under this key the primary still has.
    SocketsCount {
        /// The key.
        key: String,
    },
    /// From the preload script: it took a connection from its inbox and rejects it. The
    /// connection's descriptor is attached.
    SentBack(SentBack),
    /// From the preload script: the inbox is empty and closed.
    InboxEnded,
    /// From the preload script: descriptors are exhausted.
    ShortOfDescriptors {
        /// A connection was lost because of it.
        lost: bool,
        /// Number of connections taken so far.
        received: u64,
    },
    /// From the preload script: the program has been told of the shutdown and no longer delays it.
    Stopped {
        /// It has started to close, so there is no need to wait for other workers.
        closes: bool,
    },
    /// An internal message of Node that needs no action.
    Other,
    /// A message of the program.
    User(UserMessage),
}

/// A returned connection, as its inbox message described it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SentBack {
    /// Id of the listener that accepted it.
    pub listener: u16,
    /// Time of the accept, in nanoseconds of CLOCK_MONOTONIC.
    pub accepted_ns: u64,
    /// The worker is at `maxConnections` and may reject others too.
    pub full: bool,
    /// Number of connections taken so far.
    pub received: u64,
}

/// A request to listen.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// Sequence number for the reply.
    pub sequence: i64,
    /// The requested address.
    pub place: ListenTarget,
    /// Index among this worker's requests for the same address, from 0.
    pub index: u32,
    /// libuv's flags. TCP: 1 is IPv6 only. UDP: 1 is IPv6 only and 4 is SO_REUSEADDR.
    pub flags: u32,
    /// Backlog; `None` for Node's default of 511.
    pub backlog: Option<u32>,
    /// Make a unix socket readable by all users.
    pub readable_by_all: bool,
    /// Make a unix socket writable by all users.
    pub writable_by_all: bool,
    /// Data shared by the servers of all workers on a listener: TLS ticket keys, or null.
    pub data: Value,
    /// Size of the request in bytes, as received.
    pub bytes: usize,
}

/// A requested address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenTarget {
    /// TCP; without a host, every address: IPv6 and IPv4, or IPv4 alone if there is no IPv6.
    Tcp {
        /// An IP address, which the worker has resolved.
        host: Option<String>,
        /// Port, or 0 for any free one.
        port: u16,
    },
    /// UDP.
    Udp {
        /// An IP address; `None` for every address of the family.
        host: Option<String>,
        /// Port, or 0 for any free one.
        port: u16,
        /// IPv6.
        v6: bool,
    },
    /// A unix socket with an absolute path.
    Unix(String),
    /// A unix socket in the abstract namespace, without a file.
    Abstract(String),
    /// A descriptor number of the primary.
    Inherited(i32),
    /// What Node 18 sends when a program listens on an open handle, which needs no primary. The
    /// reply is EINVAL.
    Nowhere,
}

/// A listening server, as in the primary's `listening` event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// The requested address; `None` for every address.
    pub address: Option<String>,
    /// The actual port; -1 for unix sockets, `None` for descriptors.
    pub port: Option<i32>,
    /// `4`, `6`, `-1`, `udp4` or `udp6`; `None` for descriptors.
    pub address_type: Option<String>,
    /// The requested descriptor.
    pub descriptor: Option<i32>,
}

impl FromWorker {
    /// Parses a line.
    pub(super) fn from_json(line: &[u8]) -> Result<Self, Garbage> {
        if line == ARRIVED_LINE {
            return Ok(Self::HandleArrived);
        }
        if let Some(answer) = answer_line(line) {
            return Ok(answer);
        }
        let from_node = line.strip_prefix(OWN_LINE).is_some_and(|rest| !rest.starts_with(b"\""));
        if from_node || begins_as_own(line) {
            if line.len() > PARSED_BYTES_MAX {
                return Err(Garbage::new(format!(
                    "a message of Node's own is longer than {PARSED_BYTES_MAX} bytes"
                )));
            }
            let wire: Wire<'_> = serde_json::from_slice(line).map_err(|error| unlike(&error))?;
            return wire.understood(line.len());
        }
        match serde_json::from_slice::<IgnoredAny>(line) {
            Ok(IgnoredAny) => Ok(Self::User(UserMessage::from_json(line))),
            Err(error) => Err(Garbage::new(format!("a line is not JSON: {error}"))),
        }
    }

    /// Parses a payload in V8's format.
    pub(super) fn from_v8(payload: &[u8]) -> Result<Self, Garbage> {
        if !v8::is_payload(payload) {
            return Err(Garbage::new("a block is not of V8's serializer"));
        }
        let parsed = (payload.len() <= PARSED_BYTES_MAX).then(|| v8::read(payload)).flatten();
        let Some(value) = parsed else {
            return match v8::command(payload).as_deref() {
                // The message with the descriptor has values without counterpart in JSON, but must
                // be counted.
                Some("NODE_HANDLE") => Ok(Self::Handle(UserMessage::from_v8(payload))),
                Some(command) if is_own(command) => {
                    Err(Garbage::new(format!("a message {command} cannot be read")))
                }
                _ => Ok(Self::User(UserMessage::from_v8(payload))),
            };
        };
        if value.get("cmd").and_then(Value::as_str).is_some_and(is_own) {
            return Wire::deserialize(&value)
                .map_err(|error| unlike(&error))?
                .understood(payload.len());
        }
        Ok(Self::User(UserMessage::from_v8(payload)))
    }
}

/// The reply to a connection, if it is written exactly as Node writes it. Equivalent spellings go
/// to the parser.
fn answer_line(line: &[u8]) -> Option<FromWorker> {
    let (to, rest) = plain_number(line.strip_prefix(ANSWER_BEGIN)?)?;
    let rest = rest.strip_prefix(b",\"accepted\":")?;
    let (accepted, rest) = match rest.strip_prefix(b"true") {
        Some(rest) => (true, rest),
        None => (false, rest.strip_prefix(b"false")?),
    };
    let (_, rest) = plain_number(rest.strip_prefix(b",\"seq\":")?)?;
    (rest == b"}").then_some(FromWorker::Answer { to, accepted: Some(accepted) })
}

/// Splits off a number without sign, fraction and exponent.
fn plain_number(text: &[u8]) -> Option<(i64, &[u8])> {
    /// Numbers of this length cannot overflow.
    const DIGITS_MAX: usize = 18;
    let length = text.iter().position(|byte| !byte.is_ascii_digit())?;
    let (digits, rest) = text.split_at(length);
    let led_by_zero = length > 1 && digits[0] == b'0';
    if length == 0 || length > DIGITS_MAX || led_by_zero {
        return None;
    }
    let number = digits.iter().fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
    Some((number, rest))
}

/// A message with a descriptor: from the program, or a returned connection.
fn of_handle(message: &Value) -> Result<FromWorker, Garbage> {
    if message.get("cmd").and_then(Value::as_str) == Some(OWN_COMMAND) {
        return Wire::deserialize(message).map_err(|error| unlike(&error))?.of_our_own();
    }
    Ok(FromWorker::Handle(UserMessage::from_value(message)))
}

fn is_own(command: &str) -> bool {
    command.len() > OWN_PREFIX.len() && command.starts_with(OWN_PREFIX)
}

/// Whether a line is an object with a `cmd` of Node, at any position in the object.
fn begins_as_own(line: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Head<'a> {
        #[serde(borrow)]
        cmd: Cow<'a, str>,
    }
    serde_json::from_slice::<Head<'_>>(line).is_ok_and(|head| is_own(&head.cmd))
}

fn saturated(length: u64) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn unlike(error: &serde_json::Error) -> Garbage {
    Garbage::new(format!("a message of Node's own is not as it should be: {error}"))
}

/// All fields of all internal messages.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire<'a> {
    #[serde(borrow)]
    cmd: Cow<'a, str>,
    #[serde(borrow, default)]
    act: Option<Cow<'a, str>>,
    seq: Option<i64>,
    ack: Option<i64>,
    accepted: Option<bool>,
    #[serde(borrow, default)]
    key: Option<Cow<'a, str>>,
    index: Option<u32>,
    #[serde(borrow, default)]
    address: Option<Cow<'a, str>>,
    port: Option<i32>,
    address_type: Option<AddressType>,
    fd: Option<i32>,
    flags: Option<u32>,
    /// A number or `false`.
    backlog: Option<Value>,
    readable_all: Option<bool>,
    writable_all: Option<bool>,
    data: Option<Value>,
    msg: Option<Value>,
    listener: Option<u16>,
    /// Decimal digits, because JSON numbers cannot represent every such value.
    #[serde(borrow, default)]
    accepted_ns: Option<Cow<'a, str>>,
    full: Option<bool>,
    lost: Option<bool>,
    closes: Option<bool>,
    received: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum AddressType {
    Number(i32),
    Name(String),
}

impl Wire<'_> {
    fn understood(self, bytes: usize) -> Result<FromWorker, Garbage> {
        Ok(match &*self.cmd {
            "NODE_CLUSTER" => return self.of_cluster(bytes),
            "NODE_HANDLE_ACK" => FromWorker::HandleArrived,
            "NODE_HANDLE_NACK" => FromWorker::HandleLost,
            "NODE_HANDLE" => return of_handle(&self.msg.unwrap_or_default()),
            OWN_COMMAND => return self.of_our_own(),
            "NODE_SOCKET_NOTIFY_CLOSE" => FromWorker::SocketsClose { key: self.key()? },
            "NODE_SOCKET_GET_COUNT" => FromWorker::SocketsCount { key: self.key()? },
            _ => FromWorker::Other,
        })
    }

    fn of_cluster(self, bytes: usize) -> Result<FromWorker, Garbage> {
        if let (Some(to), None) = (self.ack, &self.act) {
            return Ok(FromWorker::Answer { to, accepted: self.accepted });
        }
        Ok(match self.act.as_deref() {
            Some("online") => FromWorker::Online,
            Some("queryServer") => FromWorker::Query(Box::new(self.query(bytes)?)),
            Some("listening") => FromWorker::Listening(self.listening()),
            Some("close") => FromWorker::Close { key: self.key()? },
            Some("exitedAfterDisconnect") => FromWorker::Leaving { sequence: self.seq },
            _ => FromWorker::Other,
        })
    }

    fn of_our_own(self) -> Result<FromWorker, Garbage> {
        match self.act.as_deref() {
            Some("end") => Ok(FromWorker::InboxEnded),
            Some("short") => {
                let (lost, received) = (self.lost.unwrap_or(false), self.received.unwrap_or(0));
                Ok(FromWorker::ShortOfDescriptors { lost, received })
            }
            Some("stopped") => Ok(FromWorker::Stopped { closes: self.closes.unwrap_or(false) }),
            Some("back") => self.sent_back().map(FromWorker::SentBack),
            _ => Ok(FromWorker::Other),
        }
    }

    fn sent_back(&self) -> Result<SentBack, Garbage> {
        let accepted_ns = self.accepted_ns.as_deref().and_then(|digits| digits.parse().ok());
        let pair = self.listener.zip(accepted_ns);
        let (listener, accepted_ns) = pair.ok_or_else(|| {
            Garbage::new("a connection comes back without saying where it came from")
        })?;
        let full = self.full.unwrap_or(false);
        Ok(SentBack { listener, accepted_ns, full, received: self.received.unwrap_or(0) })
    }

    fn key(&self) -> Result<String, Garbage> {
        let key = self.key.as_deref().map(str::to_owned);
        key.ok_or_else(|| Garbage::new("a message that names a key has none"))
    }

    fn query(self, bytes: usize) -> Result<Query, Garbage> {
        let sequence = self.seq.ok_or_else(|| Garbage::new("a request to listen has no number"))?;
        let backlog = self.backlog.as_ref().and_then(Value::as_u64);
        let backlog = backlog.filter(|length| *length > 0).map(saturated);
        Ok(Query {
            sequence,
            place: self.place()?,
            index: self.index.unwrap_or(0),
            flags: self.flags.unwrap_or(0),
            backlog,
            readable_by_all: self.readable_all.unwrap_or(false),
            writable_by_all: self.writable_all.unwrap_or(false),
            data: self.data.unwrap_or_default(),
            bytes,
        })
    }

    fn place(&self) -> Result<ListenTarget, Garbage> {
        let host = self.address.as_deref().filter(|host| !host.is_empty()).map(str::to_owned);
        let port = || {
            u16::try_from(self.port.unwrap_or(0))
                .map_err(|_| Garbage::new("a request to listen has an impossible port"))
        };
        if let Some(number @ 0..) = self.fd {
            return Ok(ListenTarget::Inherited(number));
        }
        match (&self.address_type, host) {
            (Some(AddressType::Number(4 | 6)), host) => {
                Ok(ListenTarget::Tcp { host, port: port()? })
            }
            (Some(AddressType::Number(-1)), Some(path)) => Ok(match path.split_once('\0') {
                // Node prepends the working directory to a path, but not to an abstract name, which
                // starts with a null byte.
                Some((_, name)) => ListenTarget::Abstract(name.to_owned()),
                None => ListenTarget::Unix(path),
            }),
            (Some(AddressType::Name(kind)), host) if kind == "udp4" || kind == "udp6" => {
                Ok(ListenTarget::Udp { host, port: port()?, v6: kind == "udp6" })
            }
            _ => Ok(ListenTarget::Nowhere),
        }
    }

    fn listening(self) -> Listening {
        Listening {
            address: self.address.map(Cow::into_owned),
            port: self.port,
            address_type: self.address_type.map(|kind| match kind {
                AddressType::Number(number) => number.to_string(),
                AddressType::Name(name) => name,
            }),
            descriptor: self.fd,
        }
    }
}
