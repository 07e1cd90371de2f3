//! Connections as tokio streams ([`AsyncRead`] and [`AsyncWrite`]), for any tokio runtime.
//!
//! Counts the clients that have not sent anything yet: a server that shuts down as soon as its
//! listener has ended would cut the connections it has just accepted.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::errno::Errno;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::async_listener::AsyncListener;
use crate::address::Endpoint;
use crate::error::{Error, Result, errno_of};
use crate::id::ListenerId;
use crate::protocol::control::ListenOptions;
use crate::protocol::proxy_protocol::Header;
use crate::worker::{Connection, Guard, Worker, local_of, peer_of};

/// How long [`ended`](Listener::ended) waits for the first bytes of the last connections.
const FIRST_BYTES: Duration = Duration::from_secs(1);

/// A worker's listener inside a tokio runtime. It can be shared among tasks, each of which may
/// accept.
///
/// With the feature `axum` it is an `axum::serve::Listener`:
///
/// ```no_run
/// # #[cfg(feature = "axum")]
/// # async fn serve(app: axum::Router) -> Result<(), Box<dyn std::error::Error>> {
/// use clusterlb::adapter::tokio::Listener;
///
/// let worker = clusterlb::Worker::current()?;
/// let listener = Listener::bind(&worker, "127.0.0.1:8000").await?;
/// let ended = listener.ended();
/// axum::serve(listener, app).with_graceful_shutdown(ended).await?;
/// worker.disconnected().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Listener {
    async_listener: AsyncListener,
    progress: Arc<watch::Sender<ListenerProgress>>,
}

/// A TCP or unix connection. Dropping it closes the socket and then counts the connection as
/// finished.
#[derive(Debug)]
pub struct Stream {
    socket: Socket,
    peer: Option<Endpoint>,
    header: Header,
    listener: Option<ListenerId>,
    accepted_ns: u64,
    /// Counts the connection as unheard until its first bytes or its end.
    unheard: Option<Unheard>,
    // Declared last, so that it is dropped after the socket.
    _guard: Guard,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Progress of a listener.
#[derive(Debug, Default)]
struct ListenerProgress {
    /// It has accepted everything, or has been closed.
    ended: bool,
    /// Connections from which nothing has been read.
    unheard: u64,
}

/// Counts a connection from which nothing has been read.
#[derive(Debug)]
struct Unheard {
    progress: Arc<watch::Sender<ListenerProgress>>,
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

    /// Wraps an existing listener, such as one of [`Worker::bind_exclusive`]. Call it inside a
    /// runtime with I/O enabled.
    ///
    /// # Errors
    /// Descriptors are exhausted; the listener is then closed.
    pub fn new(listener: crate::worker::Listener) -> Result<Self> {
        Ok(Self { async_listener: AsyncListener::of(listener)?, progress: Arc::default() })
    }

    /// Waits for a connection; `None` once the worker is leaving and every connection assigned to
    /// it has been accepted. Cancel safe: dropping the future loses no connection.
    ///
    /// # Errors
    /// The socket is invalid, which cannot happen while it is open; the runtime is shutting down;
    /// or the connection cannot be registered for lack of resources, in which case it is dropped
    /// and counted as finished.
    pub async fn accept(&self) -> Result<Option<Stream>> {
        let Some(connection) = self.async_listener.accept().await? else {
            self.progress.send_modify(|progress| progress.ended = true);
            return Ok(None);
        };
        Stream::new(connection, Some(Unheard::of(&self.progress))).map(Some)
    }

    /// Completes when a graceful shutdown may start: the worker is leaving, every connection
    /// assigned to it has been accepted, and each has sent its first bytes or one second has
    /// passed. Also completes when the listener is dropped. Needs a runtime with time enabled.
    ///
    /// A shutdown that starts when the worker is asked to leave would cut clients that have
    /// connected but have not been accepted.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        self.ended_within(FIRST_BYTES)
    }

    /// As [`ended`](Self::ended), with another limit for the first bytes of the last connections. A
    /// silent client delays the shutdown by this time. With a limit of zero, connections that
    /// nothing has been read from are cut.
    pub fn ended_within(
        &self,
        first_bytes: Duration,
    ) -> impl Future<Output = ()> + Send + 'static + use<> {
        let mut progress = self.progress.subscribe();
        async move {
            // An error means that the listener and all streams are gone: nothing is left to wait
            // for.
            let _ = progress.wait_for(|progress| progress.ended).await;
            let all_heard = progress.wait_for(|progress| progress.unheard == 0);
            let _ = timeout(first_bytes, all_heard).await;
        }
    }

    /// The bound address, with the port that was chosen, as
    /// [`Listener::local_addr`](crate::Listener::local_addr).
    #[must_use]
    pub fn local_addr(&self) -> &Endpoint {
        self.async_listener.listener().local_addr()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.progress.send_modify(|progress| progress.ended = true);
    }
}

impl Unheard {
    fn of(progress: &Arc<watch::Sender<ListenerProgress>>) -> Self {
        progress.send_modify(|progress| progress.unheard += 1);
        Self { progress: Arc::clone(progress) }
    }
}

impl Drop for Unheard {
    fn drop(&mut self) {
        self.progress.send_modify(|progress| progress.unheard -= 1);
    }
}

impl Stream {
    /// Wraps a connection, for example one accepted outside the runtime. Call it inside a runtime
    /// with I/O enabled.
    ///
    /// # Errors
    /// The connection cannot be registered for lack of resources; it is dropped and counted as
    /// finished.
    pub fn of(connection: Connection) -> Result<Self> {
        Self::new(connection, None)
    }

    fn new(connection: Connection, unheard: Option<Unheard>) -> Result<Self> {
        let (listener, accepted_ns) = (connection.listener(), connection.accepted_ns());
        let header = connection.header().clone();
        let (socket, guard) = connection.into_parts();
        let far = peer_of(&Header::Local, &socket).ok();
        // If the client has disconnected, the local address still tells the family.
        let is_unix = match &far {
            Some(far) => far.inet().is_none(),
            None => local_of(&Header::Local, &socket)?.inet().is_none(),
        };
        let peer = match &header {
            Header::Proxied { peer, .. } => Some(peer.clone()),
            Header::Local => far,
        };
        let socket = match is_unix {
            true => UnixStream::from_std(socket.into()).map(Socket::Unix),
            false => TcpStream::from_std(socket.into()).map(Socket::Tcp),
        };
        let failed = |error| Error::system("watch a connection", errno_of(&error));
        let socket = socket.map_err(failed)?;
        Ok(Self { socket, peer, header, listener, accepted_ns, unheard, _guard: guard })
    }

    /// The client's address, as [`Connection::peer_addr`].
    ///
    /// # Errors
    /// ENOTCONN if the client had disconnected before the accept.
    pub fn peer_addr(&self) -> Result<Endpoint> {
        self.peer.clone().ok_or_else(|| Error::system("name a client", Errno::ENOTCONN))
    }

    /// The local address, as [`Connection::local_addr`].
    ///
    /// # Errors
    /// As [`Connection::local_addr`].
    pub fn local_addr(&self) -> Result<Endpoint> {
        local_of(&self.header, &self.as_fd())
    }

    /// As [`Connection::listener`].
    #[must_use]
    pub fn listener(&self) -> Option<ListenerId> {
        self.listener
    }

    /// As [`Connection::accepted_ns`].
    #[must_use]
    pub fn accepted_ns(&self) -> u64 {
        self.accepted_ns
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(socket) => socket.as_fd(),
            Socket::Unix(socket) => socket.as_fd(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        let polled = match &mut stream.socket {
            Socket::Tcp(socket) => Pin::new(socket).poll_read(context, buffer),
            Socket::Unix(socket) => Pin::new(socket).poll_read(context, buffer),
        };
        if polled.is_ready() {
            stream.unheard = None;
        }
        polled
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(socket) => Pin::new(socket).poll_write(context, bytes),
            Socket::Unix(socket) => Pin::new(socket).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(socket) => Pin::new(socket).poll_write_vectored(context, slices),
            Socket::Unix(socket) => Pin::new(socket).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.socket {
            Socket::Tcp(socket) => socket.is_write_vectored(),
            Socket::Unix(socket) => socket.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(socket) => Pin::new(socket).poll_flush(context),
            Socket::Unix(socket) => Pin::new(socket).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(socket) => Pin::new(socket).poll_shutdown(context),
            Socket::Unix(socket) => Pin::new(socket).poll_shutdown(context),
        }
    }
}
