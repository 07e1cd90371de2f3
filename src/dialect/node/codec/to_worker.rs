//! What is said to a Node worker, and how it is written.
//!
//! Owns the names of the fields (`lib/internal/cluster/primary.js` and
//! `lib/internal/child_process.js`).

use serde::Serialize;
use serde_json::Value;

use super::{OWN_COMMAND, Serialization, v8};

/// The only type of descriptor that the worker wraps by itself, for TCP and unix sockets.
const STREAM: &str = "net.Native";
/// The same for UDP.
const DATAGRAM: &str = "dgram.Native";
const INVARIANT: &str = "strings, numbers and maps with strings as keys are always JSON";

/// A message to a worker.
#[derive(Clone, Copy, Debug)]
pub enum ToWorker<'a> {
    /// A connection; its descriptor travels with it.
    Connection {
        /// The server's key.
        key: &'a str,
        /// Names this message in the answer.
        sequence: i64,
    },
    /// The answer to a request to listen: connections will come from us.
    Listen {
        /// What the server is called from now on.
        key: &'a str,
        /// The request's number.
        to: i64,
        /// What the servers of all workers on this listener share.
        data: &'a Value,
        /// The bound address; none for unix sockets.
        name: Option<&'a SocketName>,
        /// What its connections are marked with, for our own script in the worker.
        mark: Option<u16>,
        /// This message's number.
        sequence: i64,
    },
    /// The answer to a request to listen: accept from the socket that travels with it.
    ListenYourself {
        /// What the server is called from now on.
        key: &'a str,
        /// The request's number.
        to: i64,
        /// What the servers of all workers on this listener share.
        data: &'a Value,
        /// A socket for datagrams.
        datagram: bool,
        /// What connections of others from there are marked with, for our own script in the worker.
        mark: Option<u16>,
        /// This message's number.
        sequence: i64,
    },
    /// The answer to a request to listen: it failed.
    ListenFailed {
        /// What the server would have been called.
        key: &'a str,
        /// The request's number.
        to: i64,
        /// As in the other answers: a TLS server reads it before it looks at the error.
        data: &'a Value,
        /// The kernel's error number, positive.
        errno: i32,
        /// This message's number.
        sequence: i64,
    },
    /// The answer to a worker that leaves by itself.
    Farewell {
        /// Its message's number.
        to: Option<i64>,
        /// This message's number.
        sequence: i64,
    },
    /// Close your servers, then the channel.
    Disconnect {
        /// This message's number.
        sequence: i64,
    },
    /// The descriptor that you sent arrived.
    HandleArrived,
    /// It did not.
    HandleLost,
    /// We have closed every socket that you sent under this key.
    SocketsClosed {
        /// The key.
        key: &'a str,
    },
    /// How many sockets that you sent under this key we still have: none is ever kept.
    SocketsCount {
        /// The key.
        key: &'a str,
    },
    /// For our own script in the worker: everything stops, so tell the program, and say when it
    /// does not wait any more.
    Stop,
    /// A message for the program.
    User(&'a Value),
    /// A message for the program with a socket that travels with it.
    UserSocket {
        /// What the program gets it as.
        kind: SocketKind,
        /// The message.
        message: &'a Value,
    },
}

/// What a program gets a socket as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketKind {
    /// A connection, `net.Socket`.
    Stream,
    /// One that listens, `net.Server`.
    Server,
    /// One for datagrams, `dgram.Socket`.
    Datagram {
        /// Of IPv6.
        v6: bool,
    },
}

/// A bound address as Node tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SocketName {
    address: String,
    family: &'static str,
    port: u16,
}

impl SocketName {
    /// A bound address of IPv4 or IPv6.
    #[must_use]
    pub fn new(address: String, v6: bool, port: u16) -> Self {
        Self { address, family: if v6 { "IPv6" } else { "IPv4" }, port }
    }
}

/// A message of cluster's. A field without a value is left out, except those that Node reads
/// without asking.
#[derive(Serialize)]
struct Cluster<'a> {
    cmd: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    act: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(flatten)]
    outcome: Option<Outcome<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ack: Option<i64>,
    seq: i64,
}

#[derive(Serialize)]
struct Outcome<'a> {
    /// Negative, as libuv counts.
    errno: Option<i32>,
    data: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sockname: Option<&'a SocketName>,
    /// Not a field of Node's, which does not mind.
    #[serde(rename = "clusterlb", skip_serializing_if = "Option::is_none")]
    mark: Option<u16>,
}

/// The cover of a message that a descriptor travels with.
#[derive(Serialize)]
struct Handle<T> {
    cmd: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(rename = "dgramType", skip_serializing_if = "Option::is_none")]
    family: Option<&'static str>,
    msg: T,
}

impl<T> Handle<T> {
    fn new(kind: &'static str, msg: T) -> Self {
        Self { cmd: "NODE_HANDLE", kind, family: None, msg }
    }
}

/// A message to our own script.
#[derive(Serialize)]
struct Own {
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

impl<'a> Cluster<'a> {
    fn new(sequence: i64) -> Self {
        Self { cmd: "NODE_CLUSTER", act: None, key: None, outcome: None, ack: None, seq: sequence }
    }
}

impl ToWorker<'_> {
    /// The message as one frame, to be sent with one write: Node 18 loses its place when the
    /// length of an advanced frame is split.
    #[must_use]
    pub fn frame(&self, serialization: Serialization) -> Vec<u8> {
        match *self {
            Self::Connection { key, sequence } if serialization == Serialization::Json => {
                connection_line(key, sequence)
            }
            Self::Connection { key, sequence } => frame(&connection(key, sequence), serialization),
            Self::Listen { key, to, data, name, mark, sequence } => {
                let outcome = Outcome { errno: None, data: Some(data), sockname: name, mark };
                frame(&answer(key, to, outcome, sequence), serialization)
            }
            Self::ListenYourself { key, to, data, datagram, mark, sequence } => {
                let data = Some(data);
                let outcome = Outcome { errno: Some(0), data, sockname: None, mark };
                let kind = if datagram { DATAGRAM } else { STREAM };
                let message = answer(key, to, outcome, sequence);
                frame(&Handle::new(kind, message), serialization)
            }
            Self::ListenFailed { key, to, data, errno, sequence } => {
                let (errno, data) = (Some(-errno), Some(data));
                let outcome = Outcome { errno, data, sockname: None, mark: None };
                frame(&answer(key, to, outcome, sequence), serialization)
            }
            Self::Farewell { to, sequence } => {
                frame(&Cluster { ack: to, ..Cluster::new(sequence) }, serialization)
            }
            Self::Disconnect { sequence } => {
                let act = Some("disconnect");
                frame(&Cluster { act, ..Cluster::new(sequence) }, serialization)
            }
            Self::Stop => frame(&Own { cmd: OWN_COMMAND, act: "stop" }, serialization),
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
            Self::UserSocket { kind, message } => {
                let (kind, family) = match kind {
                    SocketKind::Stream => ("net.Socket", None),
                    SocketKind::Server => ("net.Server", None),
                    SocketKind::Datagram { v6: false } => ("dgram.Socket", Some("udp4")),
                    SocketKind::Datagram { v6: true } => ("dgram.Socket", Some("udp6")),
                };
                frame(&Handle { family, ..Handle::new(kind, message) }, serialization)
            }
        }
    }
}

fn connection(key: &str, sequence: i64) -> Handle<Cluster<'_>> {
    let (act, key) = (Some("newconn"), Some(key));
    Handle::new(STREAM, Cluster { act, key, ..Cluster::new(sequence) })
}

/// The line of a connection. It is written for every one of them, so it does not go through the
/// structures.
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

fn answer<'a>(key: &'a str, to: i64, outcome: Outcome<'a>, sequence: i64) -> Cluster<'a> {
    let (key, outcome, ack) = (Some(key), Some(outcome), Some(to));
    Cluster { key, outcome, ack, ..Cluster::new(sequence) }
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
        }
        Serialization::Advanced => {
            bytes.extend_from_slice(&[0; 4]);
            v8::write(&serde_json::to_value(message).expect(INVARIANT), &mut bytes);
            let length = u32::try_from(bytes.len() - 4).expect("what is sent is bounded");
            bytes[..4].copy_from_slice(&length.to_be_bytes());
        }
    }
    bytes
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
