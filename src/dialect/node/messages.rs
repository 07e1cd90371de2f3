//! Messages of the primary's program to that of a Node worker.
//!
//! Owns their limits, and which sockets a Node worker can take.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use serde::Serialize;

use super::bridge::SendQuota;
use super::codec::{Serialization, SocketKind, ToWorker};
use crate::address::Endpoint;
use crate::dialect::Sent;
use crate::error::{Error, Result};
use crate::protocol::control::MESSAGE_BYTES_MAX;
use crate::sys::fdpass;
use crate::sys::peer::{self, Kind};

const STEP: &str = "send to a worker";

/// The way of messages to one worker, by the bridge.
#[derive(Debug)]
pub(crate) struct MessageChannel {
    serialization: Serialization,
    send_quota: SendQuota,
}

impl MessageChannel {
    pub(super) fn new(serialization: Serialization, send_quota: SendQuota) -> Self {
        Self { serialization, send_quota }
    }

    pub(in crate::dialect) fn send<T: Serialize + ?Sized>(
        &self,
        message: &T,
        socket: Option<OwnedFd>,
        is_connected: bool,
    ) -> Result<Sent> {
        if !is_connected {
            return Err(Error::system(STEP, Errno::EPIPE));
        }
        let message = &serde_json::to_value(message).map_err(|error| {
            Error::usage(
                format!("the message cannot be written as JSON: {error}"),
                "send what JSON can hold",
            )
        })?;
        let frame = match &socket {
            None => ToWorker::User(message),
            Some(socket) => ToWorker::UserSocket { kind: kind_of(socket)?, message },
        };
        self.send_frame(frame.frame(self.serialization), socket)
    }

    /// Sends a message as a Node process has written it with `serialization: 'advanced'`.
    pub(in crate::dialect) fn send_v8(&self, payload: &[u8], is_connected: bool) -> Result<Sent> {
        if !is_connected {
            return Err(Error::system(STEP, Errno::EPIPE));
        }
        if self.serialization != Serialization::Advanced {
            return Err(reads_no_v8());
        }
        let frame = ToWorker::UserV8(payload).frame(self.serialization);
        self.send_frame(frame, None)
    }

    fn send_frame(&self, frame: Vec<u8>, socket: Option<OwnedFd>) -> Result<Sent> {
        if frame.len() > MESSAGE_BYTES_MAX {
            return Err(Error::system(STEP, Errno::EMSGSIZE));
        }
        let message_out = self.send_quota.message_out(frame, socket);
        message_out.map(Sent::ToBridge).ok_or_else(|| Error::system(STEP, Errno::EAGAIN))
    }
}

/// The error of a payload in V8's format for a worker that does not read it.
pub(in crate::dialect) fn reads_no_v8() -> Error {
    Error::usage("the worker does not read V8's format", "say --serialization advanced")
}

/// How a Node worker gets a socket. Node expects that it does not block.
fn kind_of(socket: &OwnedFd) -> Result<SocketKind> {
    let step = "send a socket to a Node worker";
    let kind = match peer::kind_of(socket) {
        Kind::Tcp | Kind::Unix => SocketKind::Stream,
        Kind::TcpListener | Kind::UnixListener => SocketKind::Server,
        Kind::Udp => {
            let own = peer::local_of(socket).map_err(|errno| Error::system(step, errno))?;
            let v6 = matches!(own, Endpoint::Inet(address) if address.is_ipv6());
            SocketKind::Datagram { v6 }
        }
        Kind::UnixDatagram | Kind::Other => return Err(Error::system(step, Errno::EOPNOTSUPP)),
    };
    fdpass::set_nonblocking(socket.as_fd()).map_err(|errno| Error::system(step, errno))?;
    Ok(kind)
}
