//! Encodes messages to a Node worker.
//!
//! Owns the names of the fields (`lib/internal/cluster/primary.js` and
//! `lib/internal/child_process.js`).

use serde::Serialize;
use serde_json::Value;

use super::{OWN_COMMAND, Serialization, v8};

/// The descriptor type of TCP and unix sockets for which Node passes on the raw handle, which the
/// worker's cluster module wraps.
const STREAM: &str = "net.Native";
/// The same for UDP.
const DATAGRAM: &str = "dgram.Native";
const INVARIANT: &str = "strings, numbers and maps with strings as keys are always JSON";

/// A message to a worker.
#[derive(Clone, Copy, Debug)]
pub enum ToWorker<'a> {
    /// A connection, with its descriptor attached.
    Connection {
        /// Key of the server.
        key: &'a str,
        /// Sequence number for the reply.
        sequence: i64,
    },
    /// The reply to a listen request: the primary will send connections.
    Listen {
        /// Key of the new server.
        key: &'a str,
        /// Sequence number of the request.
        to: i64,
        /// Data shared by the servers of all workers on this listener.
        data: &'a Value,
        /// The bound address; `None` for unix sockets.
        name: Option<&'a SocketName>,
        /// What the preload script is told.
        own: Own,
        /// Sequence number of this message.
        sequence: i64,
    },
    /// The reply to a listen request: accept from the attached socket.
    ListenYourself {
        /// Key of the new server.
        key: &'a str,
        /// Sequence number of the request.
        to: i64,
        /// Data shared by the servers of all workers on this listener.
        data: &'a Value,
        /// Whether it is a datagram socket.
        datagram: bool,
        /// What the preload script is told. The mark is of the connections that other sockets of
        /// this listener accept.
        own: Own,
        /// Sequence number of this message.
        sequence: i64,
    },
    /// The reply to a failed listen request.
    ListenFailed {
        /// Key that the server would have had.
        key: &'a str,
        /// Sequence number of the request.
        to: i64,
        /// As in the other replies: a TLS server reads it before it checks for the error.
        data: &'a Value,
        /// The kernel's error number, positive.
        errno: i32,
        /// Sequence number of this message.
        sequence: i64,
    },
    /// The reply to a worker that leaves voluntarily.
    Farewell {
        /// Sequence number of its message.
        to: Option<i64>,
        /// Sequence number of this message.
        sequence: i64,
    },
    /// Tells the worker to close its servers, then the channel.
    Disconnect {
        /// Sequence number of this message.
        sequence: i64,
    },
    /// The descriptor that the worker sent arrived.
    HandleArrived,
    /// The descriptor that the worker sent was lost.
    HandleLost,
    /// The primary has closed every socket sent under this key.
    SocketsClosed {
        /// The key.
        key: &'a str,
    },
    /// The number of sockets sent under this key that the primary still has, which is always 0.
    SocketsCount {
        /// The key.
        key: &'a str,
    },
    /// For the preload script: tell the program of the shutdown, and report when it no longer
    /// delays it.
    Stop,
    /// A message for the program.
    User(&'a Value),
    /// A message of the program in V8's format, for workers that read it.
    UserV8(&'a [u8]),
    /// A message for the program with a socket attached.
    UserSocket {
        /// The type of object that the program receives.
        kind: SocketKind,
        /// The message.
        message: &'a Value,
    },
}

/// The type of object that a program receives for a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketKind {
    /// A connection (`net.Socket`).
    Stream,
    /// A listening socket (`net.Server`).
    Server,
    /// A datagram socket (`dgram.Socket`).
    Datagram {
        /// Whether it is an IPv6 socket.
        v6: bool,
    },
}

/// A bound address in Node's form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SocketName {
    address: String,
    family: &'static str,
    port: u16,
}

impl SocketName {
    /// The form of an IPv4 or IPv6 address.
    #[must_use]
    pub fn new(address: String, v6: bool, port: u16) -> Self {
        Self { address, family: if v6 { "IPv6" } else { "IPv4" }, port }
    }
}

/// A message of Node's cluster module. Empty fields are omitted, except those that Node reads
/// without a check.
#[derive(Serialize)]
struct ClusterMessage<'a> {
    cmd: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    act: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(flatten)]
    outcome: Option<ReplyFields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ack: Option<i64>,
    seq: i64,
}

#[derive(Serialize)]
struct ReplyFields<'a> {
    /// Negative, as in libuv.
    errno: Option<i32>,
    data: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sockname: Option<&'a SocketName>,
    #[serde(flatten)]
    own: Own,
}

/// What the preload script is told about a listener, in fields that Node ignores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Own {
    /// Mark of its connections.
    #[serde(rename = "clusterlb", skip_serializing_if = "Option::is_none")]
    mark: Option<u16>,
    /// `true` if its connections begin with a header of the PROXY protocol.
    #[serde(rename = "clusterlbProxied", skip_serializing_if = "Option::is_none")]
    is_proxied: Option<bool>,
    /// `true` if the worker accepts and counts them.
    #[serde(rename = "clusterlbCounted", skip_serializing_if = "Option::is_none")]
    is_counted: Option<bool>,
}

impl Own {
    /// Of a listener with this mark.
    #[must_use]
    pub fn new(mark: Option<u16>, proxy_protocol: bool) -> Self {
        Self { mark, is_proxied: proxy_protocol.then_some(true), is_counted: None }
    }

    /// The worker counts those that it accepts.
    #[must_use]
    pub fn counted(self, is_counted: bool) -> Self {
        Self { is_counted: is_counted.then_some(true), ..self }
    }
}

/// The envelope of a message with a descriptor.
#[derive(Serialize)]
struct DescriptorEnvelope<T> {
    cmd: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(rename = "dgramType", skip_serializing_if = "Option::is_none")]
    family: Option<&'static str>,
    msg: T,
}

impl<T> DescriptorEnvelope<T> {
    fn new(kind: &'static str, msg: T) -> Self {
        Self { cmd: "NODE_HANDLE", kind, family: None, msg }
    }
}

/// A message to the preload script.
#[derive(Serialize)]
struct Word {
    cmd: &'static str,
    act: &'static str,
}

/// A message about descriptors.
#[derive(Serialize)]
struct Sockets<'a> {
    cmd: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u32>,
}

impl<'a> ClusterMessage<'a> {
    fn new(sequence: i64) -> Self {
        Self { cmd: "NODE_CLUSTER", act: None, key: None, outcome: None, ack: None, seq: sequence }
    }
}

impl ToWorker<'_> {
    /// Encodes the message as one frame, to be sent with a single write: Node 18 loses track of the
    /// stream if the length of an advanced frame is split.
    #[must_use]
    pub fn frame(&self, serialization: Serialization) -> Vec<u8> {
        match *self {
            Self::Connection { key, sequence } if serialization == Serialization::Json => {
                connection_line(key, sequence)
            }
            Self::Connection { key, sequence } => frame(&connection(key, sequence), serialization),
            Self::Listen { key, to, data, name, own, sequence } => {
                let outcome = ReplyFields { errno: None, data: Some(data), sockname: name, own };
                frame(&answer(key, to, outcome, sequence), serialization)
            }
            Self::ListenYourself { key, to, data, datagram, own, sequence } => {
                let data = Some(data);
                let outcome = ReplyFields { errno: Some(0), data, sockname: None, own };
                let kind = if datagram { DATAGRAM } else { STREAM };
                let message = answer(key, to, outcome, sequence);
                frame(&DescriptorEnvelope::new(kind, message), serialization)
            }
            Self::ListenFailed { key, to, data, errno, sequence } => {
                let (errno, data) = (Some(-errno), Some(data));
                let outcome = ReplyFields { errno, data, sockname: None, own: Own::default() };
                frame(&answer(key, to, outcome, sequence), serialization)
            }
            Self::Farewell { to, sequence } => {
                frame(&ClusterMessage { ack: to, ..ClusterMessage::new(sequence) }, serialization)
            }
            Self::Disconnect { sequence } => {
                let act = Some("disconnect");
                frame(&ClusterMessage { act, ..ClusterMessage::new(sequence) }, serialization)
            }
            Self::Stop => frame(&Word { cmd: OWN_COMMAND, act: "stop" }, serialization),
            Self::HandleArrived => frame(&sockets("NODE_HANDLE_ACK"), serialization),
            Self::HandleLost => frame(&sockets("NODE_HANDLE_NACK"), serialization),
            Self::SocketsClosed { key } => {
                let key = Some(key);
                frame(&Sockets { key, ..sockets("NODE_SOCKET_ALL_CLOSED") }, serialization)
            }
            Self::SocketsCount { key } => {
                let (key, count) = (Some(key), Some(0));
                frame(&Sockets { key, count, ..sockets("NODE_SOCKET_COUNT") }, serialization)
            }
            Self::User(value) => frame(value, serialization),
            Self::UserV8(payload) => with_length(payload),
            Self::UserSocket { kind, message } => {
                let (kind, family) = match kind {
                    SocketKind::Stream => ("net.Socket", None),
                    SocketKind::Server => ("net.Server", None),
                    SocketKind::Datagram { v6: false } => ("dgram.Socket", Some("udp4")),
                    SocketKind::Datagram { v6: true } => ("dgram.Socket", Some("udp6")),
                };
                frame(
                    &DescriptorEnvelope { family, ..DescriptorEnvelope::new(kind, message) },
                    serialization,
                )
            }
        }
    }
}

fn connection(key: &str, sequence: i64) -> DescriptorEnvelope<ClusterMessage<'_>> {
    let (act, key) = (Some("newconn"), Some(key));
    DescriptorEnvelope::new(STREAM, ClusterMessage { act, key, ..ClusterMessage::new(sequence) })
}

/// The line for a connection. It is written once per connection, so it bypasses serialisation.
fn connection_line(key: &str, sequence: i64) -> Vec<u8> {
    let mut line = Vec::with_capacity(128 + key.len());
    line.extend_from_slice(b"{\"cmd\":\"NODE_HANDLE\",\"type\":\"net.Native\",\"msg\":");
    line.extend_from_slice(b"{\"cmd\":\"NODE_CLUSTER\",\"act\":\"newconn\",\"key\":");
    serde_json::to_writer(&mut line, key).expect(INVARIANT);
    line.extend_from_slice(b",\"seq\":");
    serde_json::to_writer(&mut line, &sequence).expect(INVARIANT);
    line.extend_from_slice(b"}}\n");
    line
}

fn answer<'a>(
    key: &'a str,
    to: i64,
    outcome: ReplyFields<'a>,
    sequence: i64,
) -> ClusterMessage<'a> {
    let (key, outcome, ack) = (Some(key), Some(outcome), Some(to));
    ClusterMessage { key, outcome, ack, ..ClusterMessage::new(sequence) }
}

fn sockets(cmd: &'static str) -> Sockets<'static> {
    Sockets { cmd, key: None, count: None }
}

fn frame(message: &impl Serialize, serialization: Serialization) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(192);
    match serialization {
        Serialization::Json => {
            serde_json::to_writer(&mut bytes, message).expect(INVARIANT);
            bytes.push(b'\n');
            bytes
        }
        Serialization::Advanced => {
            v8::write(&serde_json::to_value(message).expect(INVARIANT), &mut bytes);
            with_length(&bytes)
        }
    }
}

fn with_length(payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("what is sent is bounded");
    [&length.to_be_bytes(), payload].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_line_of_a_connection_is_what_the_structures_say(
            key in any::<String>(),
            sequence in any::<i64>(),
        ) {
            let expected = frame(&connection(&key, sequence), Serialization::Json);
            prop_assert_eq!(connection_line(&key, sequence), expected);
        }
    }
}
