//! What a Node worker says, parsed: whatever gets through is meaningful.
//!
//! Owns the names of the fields (`lib/internal/cluster/child.js`, `lib/internal/child_process.js`).

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::{Garbage, OWN_COMMAND, PARSED_BYTES_MAX, UserMessage, v8};

/// What begins the `cmd` of a message that is Node's own.
const OWN_PREFIX: &str = "NODE_";
/// How a worker's JSON lines of that kind begin, when Node wrote them.
const OWN_LINE: &[u8] = b"{\"cmd\":\"NODE_";
/// The first of the two lines that Node writes for every connection.
const ARRIVED_LINE: &[u8] = b"{\"cmd\":\"NODE_HANDLE_ACK\"}";
/// How the second one begins.
const ANSWER_BEGIN: &[u8] = b"{\"cmd\":\"NODE_CLUSTER\",\"ack\":";

/// A message from a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum FromWorker {
    /// The worker's Node runs; its program does not yet.
    Online,
    /// `server.listen()` or `socket.bind()`: where shall connections come from?
    Query(Box<Query>),
    /// A server listens.
    Listening(Listening),
    /// A server does not listen any more.
    Close {
        /// The key that the answer to its query gave it.
        key: String,
    },
    /// The worker leaves by itself and waits for an answer.
    Leaving {
        /// What the answer names.
        sequence: Option<i64>,
    },
    /// The answer to a message of ours.
    Answer {
        /// The number of that message.
        to: i64,
        /// Whether it took the connection; absent in answers to other messages.
        accepted: Option<bool>,
    },
    /// The descriptor of the oldest message with one arrived.
    HandleArrived,
    /// It did not, for want of descriptors.
    HandleLost,
    /// A message with a descriptor, sent by the program.
    Handle(UserMessage),
    /// The worker waits until we have closed all sockets that it sent under this key.
    SocketsClose {
        /// The key.
        key: String,
    },
    /// The worker asks how many sockets that it sent under this key we still have.
    SocketsCount {
        /// The key.
        key: String,
    },
    /// From our own script in the worker: it has taken a connection from its inbox and does not
    /// want it; the connection's descriptor travels with this.
    SentBack(SentBack),
    /// From our own script: it has taken everything out of its inbox, and nothing more will come.
    InboxEnded,
    /// From our own script: there are too few descriptors.
    ShortOfDescriptors {
        /// A connection was lost for that.
        lost: bool,
        /// How many connections it has taken so far.
        received: u64,
    },
    /// From our own script: the program has been told that everything stops, and does not wait any
    /// more.
    Stopped {
        /// It has begun to close, so nothing is gained by waiting for other workers.
        closes: bool,
    },
    /// One of Node's own messages that asks for nothing.
    Other,
    /// A message of the program.
    User(UserMessage),
}

/// A connection that comes back, as the message from the inbox described it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SentBack {
    /// The number of the listener that it came from.
    pub listener: u16,
    /// When it was accepted, in nanoseconds of CLOCK_MONOTONIC.
    pub accepted_ns: u64,
    /// The worker has as many connections as it wants (`maxConnections`), and may not want others
    /// either.
    pub full: bool,
    /// How many it has taken so far.
    pub received: u64,
}

/// A request to listen.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// What the answer names.
    pub sequence: i64,
    /// Where.
    pub place: Place,
    /// Which one of several requests of this worker for the same place, from 0.
    pub index: u32,
    /// Flags of libuv: for TCP 1 is IPv6 only, for UDP 1 is IPv6 only and 4 SO_REUSEADDR.
    pub flags: u32,
    /// Connections that may wait; none for Node's default, 511.
    pub backlog: Option<u32>,
    /// A unix socket shall be readable by everybody.
    pub readable_by_all: bool,
    /// A unix socket shall be writable by everybody.
    pub writable_by_all: bool,
    /// What the servers of all workers on one listener shall share: TLS ticket keys, or null.
    pub data: Value,
    /// How long the request was, as it came.
    pub bytes: usize,
}

/// Where a worker wants to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// TCP; without a host on every address, IPv6 and IPv4 if there is IPv6.
    Tcp {
        /// An address, never a name: the worker has resolved it.
        host: Option<String>,
        /// 0 for a free one.
        port: u16,
    },
    /// UDP.
    Udp {
        /// An address; without one, every address of the family.
        host: Option<String>,
        /// 0 for a free one.
        port: u16,
        /// IPv6.
        v6: bool,
    },
    /// A unix socket with a path, absolute in the worker's working directory.
    Unix(String),
    /// A unix socket with a name of its own and no file.
    Abstract(String),
    /// A descriptor of the primary, by its number.
    Inherited(i32),
    /// What Node 18 asks for when a program listens on an open handle, which needs no primary. To
    /// be answered with EINVAL.
    Nowhere,
}

/// A server listens, as the primary's `listening` event tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// As it was asked for; none for every address.
    pub address: Option<String>,
    /// The real port; -1 for unix sockets, none for descriptors.
    pub port: Option<i32>,
    /// `4`, `6`, `-1`, `udp4` or `udp6`; none for descriptors.
    pub address_type: Option<String>,
    /// The descriptor that was asked for.
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

    /// Parses a payload of V8's serializer.
    pub(super) fn from_v8(payload: &[u8]) -> Result<Self, Garbage> {
        if !v8::is_payload(payload) {
            return Err(Garbage::new("a block is not of V8's serializer"));
        }
        let parsed = (payload.len() <= PARSED_BYTES_MAX).then(|| v8::read(payload)).flatten();
        let Some(value) = parsed else {
            return match v8::command(payload).as_deref() {
                // What came with the descriptor has no counterpart in JSON; it counts all the same.
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

/// The answer to a connection, if it is written as Node writes it. Everything else that means the
/// same is left to the parser.
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

/// A number without sign, fraction and exponent, and what follows it.
fn plain_number(text: &[u8]) -> Option<(i64, &[u8])> {
    /// So many never overflow.
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

/// A message with a descriptor: of the program, or a connection that comes back.
fn of_handle(message: &Value) -> Result<FromWorker, Garbage> {
    if message.get("cmd").and_then(Value::as_str) == Some(OWN_COMMAND) {
        return Wire::deserialize(message).map_err(|error| unlike(&error))?.of_our_own();
    }
    Ok(FromWorker::Handle(UserMessage::from_value(message)))
}

fn is_own(command: &str) -> bool {
    command.len() > OWN_PREFIX.len() && command.starts_with(OWN_PREFIX)
}

/// Whether a line is an object with a `cmd` of Node's, wherever in the object it stands.
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

/// Every field of every message of Node's own.
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
    /// Digits, since JSON has no numbers of this size.
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

    fn place(&self) -> Result<Place, Garbage> {
        let host = self.address.as_deref().filter(|host| !host.is_empty()).map(str::to_owned);
        let port = || {
            u16::try_from(self.port.unwrap_or(0))
                .map_err(|_| Garbage::new("a request to listen has an impossible port"))
        };
        if let Some(number @ 0..) = self.fd {
            return Ok(Place::Inherited(number));
        }
        match (&self.address_type, host) {
            (Some(AddressType::Number(4 | 6)), host) => Ok(Place::Tcp { host, port: port()? }),
            (Some(AddressType::Number(-1)), Some(path)) => Ok(match path.split_once('\0') {
                // Node puts the working directory before every path; an abstract name begins
                // with a null byte and has none.
                Some((_, name)) => Place::Abstract(name.to_owned()),
                None => Place::Unix(path),
            }),
            (Some(AddressType::Name(kind)), host) if kind == "udp4" || kind == "udp6" => {
                Ok(Place::Udp { host, port: port()?, v6: kind == "udp6" })
            }
            _ => Ok(Place::Nowhere),
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
