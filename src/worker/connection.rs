//! A connection in a worker, and the guard that counts it.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use super::shared::Shared;
use crate::address::Endpoint;
use crate::error::{Error, Result, errno_of};
use crate::id::ListenerId;
use crate::protocol::proxy_protocol::Header;
use crate::sys::clock::monotonic_ns;
use crate::sys::peer;

/// An accepted connection: a non-blocking, close-on-exec socket, its listener and the time of its
/// accept. It is not tied to a runtime; use [`into_parts`](Self::into_parts) to register it with
/// one.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    accepted_ns: u64,
    /// What a balancer says of its client, which is not at the other end of the socket.
    header: Header,
    guard: Guard,
}

/// Counts its connection as open until it is dropped. The primary prefers workers with few open
/// connections, and a leaving worker waits for all of them.
///
/// Drop it after the socket, so that the connection is not counted as finished while still open.
pub struct Guard {
    shared: Arc<Shared>,
    listener: Option<ListenerId>,
}

/// A connection in the program's own form, with its guard. Dropping it drops the inner value first.
#[derive(Debug)]
pub struct Tracked<T> {
    inner: T,
    guard: Guard,
}

impl Connection {
    /// Of a socket that has been claimed.
    pub(super) fn new(
        shared: &Arc<Shared>,
        socket: OwnedFd,
        listener: Option<ListenerId>,
        accepted_ns: u64,
    ) -> Self {
        let guard = Guard { shared: Arc::clone(shared), listener };
        Self { socket, accepted_ns, header: Header::Local, guard }
    }

    /// With the header that was in front of it.
    pub(super) fn proxied(self, header: Header) -> Self {
        Self { header, ..self }
    }

    /// The client's address. Unlike in `std` it may be that of a unix socket, so it is an
    /// [`Endpoint`], whose [`inet`](Endpoint::inet) is the `SocketAddr`.
    ///
    /// With [`ListenOptions::proxy_protocol`](crate::ListenOptions::proxy_protocol) it is the one
    /// that the balancer names; the balancer's own is that of the socket.
    ///
    /// # Errors
    /// ENOTCONN if the client has already disconnected.
    pub fn peer_addr(&self) -> Result<Endpoint> {
        peer_of(&self.header, &self.socket)
    }

    /// The local address, to which the client connected; with
    /// [`ListenOptions::proxy_protocol`](crate::ListenOptions::proxy_protocol) one of the balancer.
    ///
    /// # Errors
    /// The kernel does not know the socket, which cannot happen.
    pub fn local_addr(&self) -> Result<Endpoint> {
        local_of(&self.header, &self.socket)
    }

    /// The listener that accepted it; `None` for one of [`Worker::bind_exclusive`].
    ///
    /// [`Worker::bind_exclusive`]: super::Worker::bind_exclusive
    #[must_use]
    pub fn listener(&self) -> Option<ListenerId> {
        self.guard.listener
    }

    /// Time of the accept, in the primary or in this process, in nanoseconds of CLOCK_MONOTONIC.
    #[must_use]
    pub fn accepted_ns(&self) -> u64 {
        self.accepted_ns
    }

    /// Time since the accept.
    #[must_use]
    pub fn age(&self) -> Duration {
        Duration::from_nanos(monotonic_ns().saturating_sub(self.accepted_ns))
    }

    /// The socket and the guard, for a caller that keeps the two together.
    #[must_use]
    pub fn into_parts(self) -> (OwnedFd, Guard) {
        (self.socket, self.guard)
    }

    /// What a balancer says of its client.
    #[cfg(any(feature = "tokio", feature = "tokio-uring"))]
    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// Converts to any type that can be made from a socket; the socket stays non-blocking.
    #[must_use]
    pub fn into_inner<T: From<OwnedFd>>(self) -> Tracked<T> {
        Tracked { inner: T::from(self.socket), guard: self.guard }
    }

    /// Converts to a TCP stream in blocking mode, the default of `std`.
    ///
    /// # Errors
    /// The kernel refuses the change, which it never does for a socket.
    pub fn into_tcp(self) -> Result<Tracked<TcpStream>> {
        let stream: Tracked<TcpStream> = self.into_inner();
        stream.set_nonblocking(false).map_err(blocking)?;
        Ok(stream)
    }

    /// Converts to a unix stream in blocking mode, the default of `std`.
    ///
    /// # Errors
    /// The kernel refuses the change, which it never does for a socket.
    pub fn into_unix(self) -> Result<Tracked<UnixStream>> {
        let stream: Tracked<UnixStream> = self.into_inner();
        stream.set_nonblocking(false).map_err(blocking)?;
        Ok(stream)
    }
}

/// The client's address: that in the header, or else that of the socket.
pub(crate) fn peer_of(header: &Header, socket: &impl AsRawFd) -> Result<Endpoint> {
    match header {
        Header::Proxied { peer, .. } => Ok(peer.clone()),
        Header::Local => {
            peer::peer_of(socket).map_err(|errno| Error::system("name a client", errno))
        }
    }
}

/// The local address: that in the header, or else that of the socket.
pub(crate) fn local_of(header: &Header, socket: &impl AsRawFd) -> Result<Endpoint> {
    match header {
        Header::Proxied { local, .. } => Ok(local.clone()),
        Header::Local => {
            peer::local_of(socket).map_err(|errno| Error::system("name a socket", errno))
        }
    }
}

fn blocking(error: io::Error) -> Error {
    Error::system("make a connection block", errno_of(&error))
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.finish(self.listener);
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}

impl<T> Tracked<T> {
    /// The connection and its guard.
    #[must_use]
    pub fn into_parts(self) -> (T, Guard) {
        (self.inner, self.guard)
    }

    /// Converts the inner value and keeps the guard.
    ///
    /// # Errors
    /// Those of `change`; the connection is dropped and counted as finished.
    pub fn try_map<U, E>(
        self,
        change: impl FnOnce(T) -> std::result::Result<U, E>,
    ) -> std::result::Result<Tracked<U>, E> {
        let Self { inner, guard } = self;
        change(inner).map(|inner| Tracked { inner, guard })
    }
}

impl<T> Deref for Tracked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for Tracked<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T: Read> Read for Tracked<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer)
    }
}

impl<T: Write> Write for Tracked<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
