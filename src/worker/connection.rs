//! A connection in a worker, and the guard that counts it.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use super::shared::Shared;
use crate::address::Endpoint;
use crate::error::{Error, Result, errno_of};
use crate::id::ListenerId;
use crate::sys::clock::monotonic_ns;
use crate::sys::peer;

/// A connection that a worker has accepted: a socket, non-blocking and close-on-exec, and what is
/// known of it. It belongs to no runtime; take it apart to give it to one.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    listener: Option<ListenerId>,
    accepted_ns: u64,
    guard: Guard,
}

/// Counts its connection as open until it is dropped, whatever way that happens. The primary gives
/// connections to those who have few open, and a leaving worker waits for all of them.
///
/// Drop it after the socket: so nobody is told of an end that has not happened yet.
pub struct Guard {
    shared: Arc<Shared>,
}

/// Something with a guard: a connection in the form that the program wants. Dropping it drops the
/// inner one first.
#[derive(Debug)]
pub struct Tracked<T> {
    inner: T,
    guard: Guard,
}

impl Connection {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        socket: OwnedFd,
        listener: Option<ListenerId>,
        accepted_ns: u64,
    ) -> Self {
        shared.claim(accepted_ns);
        Self { socket, listener, accepted_ns, guard: Guard { shared: Arc::clone(shared) } }
    }

    /// The client's end.
    ///
    /// # Errors
    /// ENOTCONN when the client has gone already.
    pub fn peer(&self) -> Result<Endpoint> {
        peer::peer_of(&self.socket).map_err(|errno| Error::system("name a client", errno))
    }

    /// The own end: the address that the client has connected to.
    ///
    /// # Errors
    /// The kernel does not know the socket, which cannot be.
    pub fn local(&self) -> Result<Endpoint> {
        peer::local_of(&self.socket).map_err(|errno| Error::system("name a socket", errno))
    }

    /// The listener that it came from; none for one of [`Worker::listen_exclusive`].
    ///
    /// [`Worker::listen_exclusive`]: super::Worker::listen_exclusive
    #[must_use]
    pub fn listener(&self) -> Option<ListenerId> {
        self.listener
    }

    /// When it was accepted, by the primary or here, in nanoseconds of CLOCK_MONOTONIC.
    #[must_use]
    pub fn accepted_ns(&self) -> u64 {
        self.accepted_ns
    }

    /// How long ago that was.
    #[must_use]
    pub fn age(&self) -> Duration {
        Duration::from_nanos(monotonic_ns().saturating_sub(self.accepted_ns))
    }

    /// The socket and the guard, for whoever keeps both together by itself.
    #[must_use]
    pub fn into_parts(self) -> (OwnedFd, Guard) {
        (self.socket, self.guard)
    }

    /// The connection in any form that takes a socket, still non-blocking.
    #[must_use]
    pub fn into_inner<T: From<OwnedFd>>(self) -> Tracked<T> {
        Tracked { inner: T::from(self.socket), guard: self.guard }
    }

    /// A TCP connection whose reads and writes block, as `std` has them.
    ///
    /// # Errors
    /// The kernel refuses the change, which it never does for a socket.
    pub fn into_tcp(self) -> Result<Tracked<TcpStream>> {
        let stream: Tracked<TcpStream> = self.into_inner();
        stream.set_nonblocking(false).map_err(blocking)?;
        Ok(stream)
    }

    /// A unix socket's connection whose reads and writes block, as `std` has them.
    ///
    /// # Errors
    /// The kernel refuses the change, which it never does for a socket.
    pub fn into_unix(self) -> Result<Tracked<UnixStream>> {
        let stream: Tracked<UnixStream> = self.into_inner();
        stream.set_nonblocking(false).map_err(blocking)?;
        Ok(stream)
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
        self.shared.finish();
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

    /// The same connection in another form.
    ///
    /// # Errors
    /// What `change` says; the connection is dropped and counted as finished.
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
