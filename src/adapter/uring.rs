//! Connections for tokio-uring: one thread, buffers that are lent to the kernel.
//!
//! With `runtime`, the only file of the library that names tokio-uring. Accepting waits for the
//! listener's descriptor, since the primary accepts; reading and writing go through the ring.

use std::net::Shutdown;
use std::ops::Deref;

use tokio_uring::net::TcpStream;

use super::async_listener::AsyncListener;
use crate::error::Result;
use crate::protocol::control::ListenOptions;
use crate::worker::{Connection, Guard, Worker};

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

/// A connection: a [`TcpStream`] with its guard. Connections of unix sockets have this type, too;
/// reading, writing and shutting down are the same for them.
///
/// Dropping it shuts the connection down, so that a read which was given up and is still with the
/// kernel does not keep it open.
pub struct Stream {
    socket: TcpStream,
    // Dropped after the socket.
    _guard: Guard,
}

impl Listener {
    /// Asks for an address, as [`Worker::listen`] does, and waits without keeping the runtime's
    /// thread from other work. Nothing is left behind when the future is dropped.
    ///
    /// # Errors
    /// As [`Worker::listen`] and [`new`](Self::new).
    pub async fn bind(worker: &Worker, address: &str) -> Result<Self> {
        Self::bind_with(worker, address, ListenOptions::default()).await
    }

    /// As [`bind`](Self::bind), with options.
    ///
    /// # Errors
    /// As [`Worker::listen_with`] and [`new`](Self::new).
    pub async fn bind_with(worker: &Worker, address: &str, options: ListenOptions) -> Result<Self> {
        Self::new(worker.open(address, options).await?)
    }

    /// Takes a listener that is there already, such as one of
    /// [`Worker::listen_exclusive`]. Must be called inside the runtime.
    ///
    /// # Errors
    /// There are too few descriptors; the listener is closed then.
    pub fn new(listener: crate::worker::Listener) -> Result<Self> {
        Ok(Self { async_listener: AsyncListener::of(listener)? })
    }

    /// Waits for a connection. Nothing means that this worker is leaving, and has got everything
    /// that it gets. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// The socket is of no use, which cannot be while it is open; the runtime is shutting down.
    pub async fn accept(&self) -> Result<Option<Stream>> {
        Ok(self.async_listener.accept().await?.map(Stream::of))
    }

    /// The address that was bound, with the port that was chosen.
    #[must_use]
    pub fn address(&self) -> &str {
        self.async_listener.listener().address()
    }
}

impl Stream {
    /// Takes a connection, such as one that was accepted outside the runtime. Must be called inside
    /// one.
    #[must_use]
    pub fn of(connection: Connection) -> Self {
        let (socket, guard) = connection.into_parts();
        // The runtime only needs a stream socket here, of whatever family.
        let socket = TcpStream::from_std(std::net::TcpStream::from(socket));
        Self { socket, _guard: guard }
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
        // One that has ended by itself cannot be shut down, and need not be.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}
