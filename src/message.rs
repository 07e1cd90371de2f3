//! What a primary and a worker tell each other, and the sockets that travel with it.

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::Result;
use crate::protocol::control::Serialization;
use crate::sync::mailbox::Item;
use crate::sys::peer::{Kind, kind_of};

/// A message that has arrived (Node's `message`). Clones share it, and its handle.
#[derive(Clone, Debug)]
pub struct Message {
    serialization: Serialization,
    bytes: Arc<[u8]>,
    /// The payload in V8's format, if a Node worker sent that.
    v8: Option<Arc<[u8]>>,
    handle: Arc<Mutex<Option<Handle>>>,
    has_brought_handle: bool,
    handle_lost: bool,
}

/// A descriptor that came with a message, or goes with one.
///
/// It is in the state in which the sender had it: a socket that was non-blocking there is
/// non-blocking here, because both have the same open socket (`unix(7)`, SCM_RIGHTS).
#[derive(Debug)]
#[non_exhaustive]
pub enum Handle {
    /// A TCP connection.
    Tcp(TcpStream),
    /// A TCP socket that listens.
    TcpListener(TcpListener),
    /// A UDP socket.
    Udp(UdpSocket),
    /// A unix stream socket.
    Unix(UnixStream),
    /// A unix stream socket that listens.
    UnixListener(UnixListener),
    /// A unix datagram socket.
    UnixDatagram(UnixDatagram),
    /// Anything else that is a descriptor.
    Other(OwnedFd),
}

impl Message {
    pub(crate) fn new(
        serialization: Serialization,
        bytes: Vec<u8>,
        mut descriptors: Vec<OwnedFd>,
        lost: usize,
    ) -> Self {
        let handle = descriptors.pop().map(Handle::from);
        Self {
            serialization,
            bytes: bytes.into(),
            v8: None,
            has_brought_handle: handle.is_some(),
            handle: Arc::new(Mutex::new(handle)),
            handle_lost: lost > 0,
        }
    }

    /// Keeps what a Node worker sent with `serialization: 'advanced'`, beside its counterpart in
    /// JSON.
    pub(crate) fn with_v8(self, payload: Vec<u8>) -> Self {
        Self { v8: Some(payload.into()), ..self }
    }

    /// The payload in V8's format, if there is one.
    pub(crate) fn v8(&self) -> Option<&[u8]> {
        self.v8.as_deref()
    }

    /// The message as a value of the program's.
    ///
    /// # Errors
    /// [`Error::Usage`](crate::error::Error::Usage) when it is something else.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        self.serialization.decode(&self.bytes)
    }

    /// The message as a value of any shape.
    ///
    /// # Errors
    /// [`Error::Usage`](crate::error::Error::Usage) for what JSON does not have, such as maps with
    /// numbers as keys; those come with `advanced` only.
    pub fn value(&self) -> Result<Value> {
        self.parse()
    }

    /// The message as it was written down, in the format that [`Message::serialization`] names.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How it was written down.
    #[must_use]
    pub fn serialization(&self) -> Serialization {
        self.serialization
    }

    /// Takes the socket that came with it. The first to ask gets it; others, and messages that
    /// came without one, get nothing.
    #[must_use]
    pub fn take_handle(&self) -> Option<Handle> {
        self.handle.lock().expect("nothing panics while it holds a handle").take()
    }

    /// A socket came with it and was lost, because this process had no descriptor free. The
    /// kernel has closed it.
    #[must_use]
    pub fn has_lost_handle(&self) -> bool {
        self.handle_lost
    }
}

impl Item for Message {
    fn bytes(&self) -> usize {
        self.bytes.len() + self.v8.as_ref().map_or(0, |payload| payload.len())
    }

    fn descriptors(&self) -> usize {
        usize::from(self.has_brought_handle)
    }
}

impl From<OwnedFd> for Handle {
    fn from(descriptor: OwnedFd) -> Self {
        match kind_of(&descriptor) {
            Kind::Tcp => Self::Tcp(descriptor.into()),
            Kind::TcpListener => Self::TcpListener(descriptor.into()),
            Kind::Udp => Self::Udp(descriptor.into()),
            Kind::Unix => Self::Unix(descriptor.into()),
            Kind::UnixListener => Self::UnixListener(descriptor.into()),
            Kind::UnixDatagram => Self::UnixDatagram(descriptor.into()),
            Kind::Other => Self::Other(descriptor),
        }
    }
}

impl From<Handle> for OwnedFd {
    fn from(handle: Handle) -> Self {
        match handle {
            Handle::Tcp(socket) => socket.into(),
            Handle::TcpListener(socket) => socket.into(),
            Handle::Udp(socket) => socket.into(),
            Handle::Unix(socket) => socket.into(),
            Handle::UnixListener(socket) => socket.into(),
            Handle::UnixDatagram(socket) => socket.into(),
            Handle::Other(descriptor) => descriptor,
        }
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::TcpListener(socket) => socket.as_fd(),
            Self::Udp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
            Self::UnixListener(socket) => socket.as_fd(),
            Self::UnixDatagram(socket) => socket.as_fd(),
            Self::Other(descriptor) => descriptor.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_taken_once_by_the_first_taker() {
        let (socket, _far) = UnixStream::pair().expect("a pair");
        let bytes = Serialization::Json.encode("hi there").expect("a string");
        let message = Message::new(Serialization::Json, bytes, vec![socket.into()], 0);
        let other = message.clone();
        assert_eq!(message.parse::<String>().expect("a string"), "hi there");
        assert_eq!(other.value().expect("a value"), "hi there");
        assert!(message.parse::<u32>().is_err());
        assert!(matches!(other.take_handle(), Some(Handle::Unix(_))));
        assert!(message.take_handle().is_none());
    }
}
