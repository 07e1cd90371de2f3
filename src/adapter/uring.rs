//! Connections for tokio-uring: one thread, with buffers that are lent to the kernel.
//!
//! The only file of the library that names tokio-uring. Accepting waits for the listener's
//! descriptor, because the primary accepts; reads and writes go through the ring.

use std::net::Shutdown;
use std::ops::Deref;

use tokio_uring::net::TcpStream;

use super::async_listener::AsyncListener;
use crate::address::Endpoint;
use crate::error::Result;
use crate::protocol::control::ListenOptions;
use crate::protocol::proxy_protocol::Header;
use crate::worker::{Connection, Guard, Worker, local_of, peer_of};

/// A worker's listener inside a tokio-uring runtime.
///
/// ```no_run
/// use clusterlb::adapter::uring::Listener;
///
/// # fn main() -> clusterlb::Result<()> {
/// let worker = clusterlb::Worker::current()?;
/// tokio_uring::start(async {
///     let listener = Listener::bind(&worker, "127.0.0.1:8000").await?;
///     while let Some(stream) = listener.accept().await? {
///         tokio_uring::spawn(async move {
///             // The client's end is noticed at the next read.
///             let _ = stream.write_all(Vec::from("hello\n")).await;
///         });
///     }
///     // Everything has been accepted; the tasks still work on it.
///     worker.disconnected().await;
///     Ok(())
/// })
/// # }
/// ```
#[derive(Debug)]
pub struct Listener {
    async_listener: AsyncListener,
}

/// A connection: a [`TcpStream`] with its guard. Unix connections have this type too, because
/// reading, writing and shutting down are the same for them.
///
/// Dropping it shuts the connection down, so that a cancelled read still held by the kernel does
/// not keep it open.
pub struct Stream {
    socket: TcpStream,
    header: Header,
    // Declared last, so that it is dropped after the socket.
    _guard: Guard,
}

impl Listener {
    /// Requests an address, as [`Worker::bind`] does, without blocking the runtime's thread.
    /// Dropping the future cancels the request.
    ///
    /// # Errors
    /// As [`Worker::bind`] and [`new`](Self::new).
    pub async fn bind(worker: &Worker, address: &str) -> Result<Self> {
        Self::bind_with(worker, address, ListenOptions::default()).await
    }

    /// As [`bind`](Self::bind), with options.
    ///
    /// # Errors
    /// As [`Worker::bind_with`] and [`new`](Self::new).
    pub async fn bind_with(worker: &Worker, address: &str, options: ListenOptions) -> Result<Self> {
        Self::new(worker.bind_async(address, options).await?)
    }

    /// Wraps an existing listener, such as one of [`Worker::bind_exclusive`]. Call it inside the
    /// runtime.
    ///
    /// # Errors
    /// Descriptors are exhausted; the listener is then closed.
    pub fn new(listener: crate::worker::Listener) -> Result<Self> {
        Ok(Self { async_listener: AsyncListener::of(listener)? })
    }

    /// Waits for a connection; `None` once the worker is leaving and every connection assigned to
    /// it has been accepted. Cancel safe: dropping the future loses no connection.
    ///
    /// # Errors
    /// The socket is invalid, which cannot happen while it is open; or the runtime is shutting
    /// down.
    pub async fn accept(&self) -> Result<Option<Stream>> {
        Ok(self.async_listener.accept().await?.map(Stream::of))
    }

    /// The bound address, with the port that was chosen, as
    /// [`Listener::local_addr`](crate::Listener::local_addr).
    #[must_use]
    pub fn local_addr(&self) -> &Endpoint {
        self.async_listener.listener().local_addr()
    }
}

impl Stream {
    /// Wraps a connection, for example one accepted outside the runtime. Call it inside a runtime.
    #[must_use]
    pub fn of(connection: Connection) -> Self {
        let header = connection.header().clone();
        let (socket, guard) = connection.into_parts();
        // The runtime only needs a stream socket; its family does not matter.
        let socket = TcpStream::from_std(std::net::TcpStream::from(socket));
        Self { socket, header, _guard: guard }
    }

    /// The client's address, as [`Connection::peer_addr`].
    ///
    /// # Errors
    /// As [`Connection::peer_addr`].
    pub fn peer_addr(&self) -> Result<Endpoint> {
        peer_of(&self.header, &self.socket)
    }

    /// The local address, as [`Connection::local_addr`].
    ///
    /// # Errors
    /// As [`Connection::local_addr`].
    pub fn local_addr(&self) -> Result<Endpoint> {
        local_of(&self.header, &self.socket)
    }
}

impl Deref for Stream {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.socket
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Fails if the connection has already ended, which is harmless.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}
