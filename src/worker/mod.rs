//! The worker API for its program (Node's `cluster.worker`).

mod accept_queue;
mod bind_future;
mod connection;
mod control_thread;
mod datagrams;
mod inbox;
mod intake;
mod listener;
mod proxied;
mod shared;
mod wait_set;

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

pub use bind_future::BindFuture;
pub use connection::{Connection, Guard, Tracked};
#[cfg(any(feature = "tokio", feature = "tokio-uring"))]
pub(crate) use connection::{local_of, peer_of};
pub use datagrams::Datagrams;
pub use listener::Listener;

use crate::address::ListenAddress;
use crate::error::{Error, Result};
use crate::id::WorkerId;
use crate::message::Message;
use crate::protocol::control::{ListenOptions, ToPrimary, Transport, halves};
use crate::protocol::environment::{self, Inheritance};
use crate::protocol::scoreboard::Statistic;
use crate::protocol::worker_end::{Conversation, Grant, WorkerEnd};
use crate::sync::completion::Completion;
use crate::sync::mailbox::Mailbox;
use crate::sys::fdpass::duplicate;
use crate::sys::listener::{Listener as Socket, OpenOptions};
use crate::sys::waker::Waker;
use crate::sys::{cpu, limits, process};
use inbox::Inbox;
use intake::{QueueKey, WorkerIntake};
use shared::{Shared, State};

/// How long a worker that exits may take to send its last message.
const LAST_WORD: Duration = Duration::from_secs(5);
/// Backlog of an exclusive listener.
const EXCLUSIVE_BACKLOG: u32 = 4096;

/// The current process as a worker (Node: `cluster.worker`). Clones refer to the same worker.
///
/// A background thread receives the primary's messages. If the primary is lost, the process exits
/// with code 0, unless the program has set a handler with [`on_disconnect`](Self::on_disconnect).
#[derive(Clone, Debug)]
pub struct Worker {
    shared: Arc<Shared>,
}

/// Messages from the primary (Node: `process.on('message')`): a blocking iterator, and
/// [`recv_async`](Self::recv_async) for any async runtime.
///
/// Includes messages that arrived before it was created. Several instances share the messages: each
/// message goes to one of them. At the bound (16,384 messages or 64 MiB) the worker stops reading
/// from its primary until half of them have been consumed.
#[derive(Debug)]
pub struct Messages {
    mailbox: Arc<Mailbox<Message>>,
}

static CURRENT: OnceLock<Result<Worker>> = OnceLock::new();

impl Worker {
    /// The worker of this process. The first call announces the worker to the primary and, if
    /// configured, pins the calling thread and the threads it starts later.
    ///
    /// # Errors
    /// [`Error::Usage`] in a process that was not started as a worker; [`Error::System`] when
    /// descriptors or threads are exhausted. Every call returns the same error.
    pub fn current() -> Result<Self> {
        CURRENT.get_or_init(|| Inheritance::take().and_then(Self::start)).clone()
    }

    fn start(inheritance: Inheritance) -> Result<Self> {
        // A worker begins with the limit that its primary was started with.
        limits::raise_descriptor_limit()?;
        if let Some(number) = inheritance.cpu {
            cpu::pin_to(number)?;
        }
        let (incoming, outgoing) = halves(inheritance.control);
        let waker = Arc::new(Waker::new()?);
        let inbox = inheritance.inbox.map(Arc::new);
        let shared = Arc::new(Shared {
            id: inheritance.id,
            serialization: inheritance.serialization,
            outgoing: Mutex::new(outgoing),
            waker: Arc::clone(&waker),
            intake: Mutex::new(WorkerIntake::new(
                WorkerEnd::open(inheritance.page, inheritance.waker)?,
                inbox.clone().map(Inbox::new).transpose()?,
            )),
            state: Mutex::new(State {
                connected: true,
                conversation: Conversation::default(),
                answers: BTreeMap::new(),
                grace: None,
                on_disconnect: None,
            }),
            changed: Condvar::new(),
            messages: Arc::new(Mailbox::new(waker)?),
            leaving: AtomicBool::new(false),
            starved: AtomicBool::new(false),
            begins_to_leave: Completion::default(),
            left: Completion::default(),
        });
        shared.send_control(&Conversation::hello(), vec![])?;
        control_thread::start(Arc::clone(&shared), incoming, inbox)?;
        Ok(Self { shared })
    }

    /// Id of the worker, from 1, never reused within a cluster (Node: `worker.id`).
    #[must_use]
    pub fn id(&self) -> WorkerId {
        self.shared.id
    }

    /// Whether the channel to the primary is open (Node: `worker.isConnected()`).
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.state().connected
    }

    /// Whether the worker is leaving, on its own or the primary's request.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.shared.is_leaving()
    }

    /// Grace period after which the primary wants open connections to be cut. Set once the primary
    /// has asked this worker to leave with a limit.
    #[must_use]
    pub fn grace(&self) -> Option<Duration> {
        self.shared.state().grace
    }

    /// Port of the debugger, if configured (`CLUSTERLB_INSPECT_PORT`).
    #[must_use]
    pub fn inspect_port(&self) -> Option<u16> {
        std::env::var(environment::INSPECT_PORT).ok()?.parse().ok()
    }

    /// Serves an address together with the other workers that request it (Node: `server.listen`):
    /// `127.0.0.1:8000`, `[::]:8000` (IPv4 as well), `8000` (127.0.0.1), `localhost:8000`,
    /// `unix:/path`, `unix:@name`, `fd:7` (the **primary's** descriptor). With port 0, the nth call
    /// of every worker gets the same port. Blocks until the primary replies; inside an async
    /// runtime use [`bind_async`](Self::bind_async), or the `bind` of an
    /// [adapter](crate::adapter).
    ///
    /// As with `TcpListener::bind` of `std`, the address is listened on when this returns.
    ///
    /// # Errors
    /// [`Error::Listen`] with the primary's error, such as EADDRINUSE or EACCES; EADDRINUSE also
    /// when this worker already serves the address; [`Error::Usage`] for an invalid address;
    /// ECANCELED when the worker is leaving.
    pub fn bind(&self, address: &str) -> Result<Listener> {
        self.bind_with(address, ListenOptions::default())
    }

    /// As [`bind`](Self::bind), with a backlog, IPv6 only, the mode of a unix socket, or the PROXY
    /// protocol.
    /// Workers that request the same address with the same options share it, with the backlog of
    /// the first request.
    ///
    /// # Errors
    /// As [`bind`](Self::bind); [`Error::Usage`] for options that only datagrams have.
    pub fn bind_with(&self, address: &str, options: ListenOptions) -> Result<Listener> {
        self.bind_async(address, options).wait()
    }

    /// As [`bind_with`](Self::bind_with), but returns a future instead of blocking, like Node's
    /// `server.listen`.
    ///
    /// ```no_run
    /// # async fn serve() -> clusterlb::Result<()> {
    /// use clusterlb::{ListenOptions, Worker};
    ///
    /// let worker = Worker::current()?;
    /// let listener = worker.bind_async("127.0.0.1:8000", ListenOptions::default()).await?;
    /// # drop(listener);
    /// # Ok(())
    /// # }
    /// ```
    pub fn bind_async(&self, address: &str, options: ListenOptions) -> BindFuture<Listener> {
        let asked = absolute(address).and_then(|address| {
            if options.transport != Transport::Stream || options.reuse_address {
                return Err(Error::usage("these options are for datagrams", "use `bind_udp_with`"));
            }
            self.shared.ask(&address, options)
        });
        BindFuture::new(&self.shared, asked, serve)
    }

    /// Serves an address in this worker only, without the primary (Node: `exclusive: true`). The
    /// primary does not know the listener and emits no event for it.
    ///
    /// # Errors
    /// [`Error::Listen`] if the address cannot be opened.
    pub fn bind_exclusive(&self, address: &str) -> Result<Listener> {
        let options = OpenOptions {
            backlog: EXCLUSIVE_BACKLOG,
            share_port: false,
            ipv6_only: false,
            mode: None,
            blocking: false,
            defer_accept: false,
        };
        let socket = Socket::open(&address.parse()?, options)?;
        let address = socket.address().to_owned();
        let (queue, waiting) = self.shared.intake().open_exclusive(socket)?;
        Listener::new(Arc::clone(&self.shared), queue, waiting, &address, false)
    }

    /// Receives datagrams at an address (Node: `socket.bind` of `dgram`), from a socket that all
    /// workers share, as in Node. The first worker to read gets the datagram; under low load this
    /// is mostly the same worker. `fd:7` is a bound socket of the **primary's**. Blocks until the
    /// primary replies.
    ///
    /// # Errors
    /// As [`bind`](Self::bind); EOPNOTSUPP for an address other than IP.
    pub fn bind_udp(&self, address: &str) -> Result<Datagrams> {
        self.bind_udp_with(address, ListenOptions::default().transport(Transport::Datagram))
    }

    /// As [`bind_udp`](Self::bind_udp), IPv6 only, with a shared address, or with
    /// [`Transport::DatagramEach`]: one socket per worker, selected by the kernel by the sender's
    /// address.
    ///
    /// # Errors
    /// As [`bind_udp`](Self::bind_udp); [`Error::Usage`] for streams.
    pub fn bind_udp_with(&self, address: &str, options: ListenOptions) -> Result<Datagrams> {
        self.bind_udp_async(address, options).wait()
    }

    /// As [`bind_udp_with`](Self::bind_udp_with), but returns a future instead of blocking.
    pub fn bind_udp_async(&self, address: &str, options: ListenOptions) -> BindFuture<Datagrams> {
        let asked = address.parse().and_then(|address: ListenAddress| {
            if options.transport == Transport::Stream || options.proxy_protocol {
                return Err(Error::usage("these options are for streams", "use `bind_with`"));
            }
            self.shared.ask(&address.to_string(), options)
        });
        BindFuture::new(&self.shared, asked, receive)
    }

    /// Sends a message to the primary (Node: `process.send`). Never blocks: messages that the
    /// primary has not read are queued.
    ///
    /// # Errors
    /// EPIPE when the channel is closed; EMSGSIZE beyond 16 MiB; EAGAIN when 32 MiB or 16,384
    /// messages are queued; [`Error::Usage`] for a value that cannot be serialised.
    pub fn send<T: Serialize + ?Sized>(&self, message: &T) -> Result<()> {
        self.shared.send(message, vec![])
    }

    /// Sends a message with a socket, which is closed in this process once it is sent (Node:
    /// `process.send(message, handle)`).
    ///
    /// # Errors
    /// As [`send`](Self::send); EAGAIN also when 256 sockets are queued. The socket is closed on
    /// error too.
    pub fn send_handle<T: Serialize + ?Sized>(
        &self,
        message: &T,
        handle: impl Into<OwnedFd>,
    ) -> Result<()> {
        self.shared.send(message, vec![handle.into()])
    }

    /// Sends a message with a duplicate of a socket, which stays open in this process (Node:
    /// `keepOpen`).
    ///
    /// # Errors
    /// As [`send_handle`](Self::send_handle); EMFILE when descriptors are exhausted.
    pub fn send_shared<T: Serialize + ?Sized>(
        &self,
        message: &T,
        handle: &impl AsFd,
    ) -> Result<()> {
        self.shared.send(message, vec![duplicate(handle)?])
    }

    /// Messages from the primary, including those that arrived before this call (Node loses them).
    #[must_use]
    pub fn messages(&self) -> Messages {
        Messages { mailbox: Arc::clone(&self.shared.messages) }
    }

    /// Sets the handler for a channel that ends unexpectedly (Node: `process.on('disconnect')`):
    /// the primary has ended or has closed this worker's channel. Without a handler the process
    /// exits with code 0. With one, the worker then leaves and finishes its connections. A later
    /// call replaces the handler. It runs on the thread that receives the primary's messages, so
    /// keep it short.
    pub fn on_disconnect(&self, handler: impl FnOnce() + Send + 'static) {
        self.shared.state().on_disconnect = Some(Box::new(handler));
    }

    /// Adds to one of the counters that the primary reports for this worker, such as the number of
    /// requests. What belongs to connections is counted by their guards.
    pub fn count(&self, statistic: Statistic, count: u64) {
        self.shared.intake().end.add(statistic, count);
    }

    /// Leaves the cluster (Node: `worker.disconnect()`): takes no new connections, serves those
    /// already handed over, waits until every connection is finished, and closes the channel. Keep
    /// accepting until [`Listener::accept`] returns the end, or drop the listener. The process
    /// keeps running and should exit on completion. Do not wait on a thread that has connections to
    /// finish.
    pub fn disconnect(&self) -> Completion {
        if !self.shared.is_leaving() {
            // Sent first, because a worker without connections closes its channel at once.
            self.shared.send_leaving();
            self.shared.begin_to_leave(None);
        }
        self.shared.left.clone()
    }

    /// Completes when this worker begins to leave, whichever side asked for it. The connections
    /// that it has been assigned still come: close idle ones now, and keep accepting.
    pub fn leaving(&self) -> Completion {
        self.shared.begins_to_leave.clone()
    }

    /// Completes when this worker has left, whichever side asked for it. Wait for it at the end of
    /// the program, so that connections in other threads are finished.
    pub fn disconnected(&self) -> Completion {
        self.shared.left.clone()
    }

    /// Exits at once with code 0, as a worker that left voluntarily (Node: `worker.kill()` in the
    /// worker). Open connections are cut.
    pub fn kill(&self) -> ! {
        let deadline = Instant::now() + LAST_WORD;
        self.shared.send_leaving();
        let mut outgoing = self.shared.outgoing();
        while outgoing.has_waiting() && Instant::now() < deadline {
            let mut one = [PollFd::new(outgoing.as_fd(), PollFlags::POLLOUT)];
            let _ = poll(&mut one, PollTimeout::from(100_u8));
            if outgoing.flush().is_err() {
                break;
            }
        }
        process::end(0)
    }
}

/// Creates a listener from the primary's grant, and reports to the primary that it is served.
fn serve(shared: &Arc<Shared>, grant: Grant) -> Result<Listener> {
    let Grant { listener: id, address, socket, proxy_protocol } = grant;
    let own = socket.map(|socket| Socket::adopt_copy(socket, address.clone()));
    let waiting = shared.intake().open(id, own);
    let waiting = waiting.and_then(|waiting| waiting.ok_or_else(shared::leaving));
    let waiting = waiting.inspect_err(|_| shared.give_up(id))?;
    let key = QueueKey::Shared(id);
    let listener = Listener::new(Arc::clone(shared), key, waiting, &address, proxy_protocol)
        .inspect_err(|_| shared.give_up(id))?;
    // The control thread stops reading the inbox before connections can arrive.
    shared.waker.wake();
    shared.send_control(&ToPrimary::Serving { listener: id }, vec![])?;
    Ok(listener)
}

/// As `serve`, for datagrams.
fn receive(shared: &Arc<Shared>, grant: Grant) -> Result<Datagrams> {
    let socket = UdpSocket::from(grant.socket.ok_or_else(shared::leaving)?);
    let datagrams = Datagrams::new(Arc::clone(shared), socket, grant.listener);
    shared.send_control(&ToPrimary::Serving { listener: grant.listener }, vec![])?;
    Ok(datagrams)
}

/// The address for the primary: relative paths are resolved in this process.
fn absolute(address: &str) -> Result<String> {
    let parsed: ListenAddress = address.parse()?;
    let ListenAddress::Unix(path, access) = &parsed else { return Ok(parsed.to_string()) };
    let full = std::path::absolute(path).unwrap_or_else(|_| path.clone());
    Ok(ListenAddress::Unix(full, access.clone()).to_string())
}

impl Messages {
    /// Waits for the next message, at most this long, as `std::sync::mpsc::Receiver` does.
    ///
    /// # Errors
    /// [`RecvTimeoutError::Timeout`] if none has come; [`RecvTimeoutError::Disconnected`] when none
    /// will, because the channel has ended.
    pub fn recv_timeout(
        &mut self,
        timeout: Duration,
    ) -> std::result::Result<Message, RecvTimeoutError> {
        self.mailbox.wait(Instant::now().checked_add(timeout)).or_timeout()
    }

    /// The next message, if there is one already.
    ///
    /// # Errors
    /// [`TryRecvError::Empty`] if there is none yet; [`TryRecvError::Disconnected`] when none will
    /// come, because the channel has ended.
    pub fn try_recv(&mut self) -> std::result::Result<Message, TryRecvError> {
        self.mailbox.try_take().or_empty()
    }

    /// Waits for the next message in any async runtime; `None` after the channel has ended.
    /// Dropping the future loses no message.
    pub async fn recv_async(&mut self) -> Option<Message> {
        std::future::poll_fn(|context| self.poll_recv(context)).await
    }

    /// Polls for the next message, for futures and streams of a program.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<Message>> {
        self.mailbox.poll_take(context)
    }
}

impl Iterator for Messages {
    type Item = Message;

    /// Waits for the next message; `None` after the channel has ended.
    fn next(&mut self) -> Option<Message> {
        self.mailbox.wait(None).item()
    }
}

impl AsFd for Messages {
    /// Readable while there are messages, or after the end. Use it for polling only; do not read
    /// from it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mailbox.as_fd()
    }
}
