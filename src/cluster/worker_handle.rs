//! A worker as the program in the primary sees it (Node's `Worker` in the primary).

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{ChildStderr, ChildStdin, ChildStdout};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use serde::Serialize;

use super::bus::{Bus, Events};
use super::event::WorkerCounts;
use crate::address::Endpoint;
use crate::control_plane::{ControlHandle, Request};
use crate::dialect::node;
use crate::dialect::node::bridge::SendQuota;
use crate::dialect::node::codec::SocketKind;
use crate::error::{Error, Result, errno_of};
use crate::id::WorkerId;
use crate::protocol::control::{Flushed, MESSAGE_BYTES_MAX, Outgoing, Serialization};
use crate::protocol::scoreboard::{Counters, PageView};
use crate::sys::fdpass;
use crate::sys::peer::{self, Kind};
use crate::sys::process::{Ending, Remote};

/// A worker, seen from the primary (Node: `Worker`). Clones name the same worker, and go on naming
/// it after its end.
///
/// ```
/// use clusterlb::{Cluster, Ending, Event, Signal};
///
/// let cluster = Cluster::primary()?;
/// cluster.setup_primary(|settings| {
///     settings.exec = "/bin/sleep".into();
///     settings.args = vec!["60".into()];
/// })?;
/// let mut events = cluster.events()?;
/// let worker = cluster.fork()?;
/// assert_eq!((worker.id().0, worker.is_dead()), (1, false));
/// worker.kill(Signal::SIGTERM)?;
/// while !matches!(events.next(), Some(Event::Exit { .. }) | None) {}
/// assert_eq!(worker.ending(), Some(Ending::Signal(15)));
/// # Ok::<(), clusterlb::Error>(())
/// ```
#[derive(Clone)]
pub struct WorkerHandle {
    pub(crate) shared: Arc<Shared>,
}

/// What the control plane and all handles of a worker share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: WorkerId,
    pub(crate) pid: u32,
    pub(crate) cpu: Option<usize>,
    pub(crate) instance: Option<u16>,
    pub(crate) serialization: Serialization,
    pub(crate) remote: Remote,
    /// It has no channel.
    pub(crate) is_mute: bool,
    /// None for a Node worker, which the bridge speaks to, and for one without a channel.
    pub(crate) outgoing: Option<Mutex<Outgoing>>,
    /// What is on its way to a Node worker.
    pub(crate) send_quota: SendQuota,
    pub(crate) state: Mutex<State>,
    pub(crate) streams: Mutex<Streams>,
    pub(crate) control: ControlHandle,
    pub(crate) bus: Arc<Bus>,
    /// Its counters, in the page that it shares with the primary.
    pub(crate) view: PageView,
    /// It accepts from sockets that it has.
    pub(crate) accepts_itself: bool,
    /// What its counts were at its end.
    pub(crate) last_counts: OnceLock<WorkerCounts>,
}

/// How far a worker's life has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct State {
    pub(crate) connected: bool,
    pub(crate) ending: Option<Ending>,
    /// It leaves because it was asked to, or wants to; known at the latest when it has left.
    pub(crate) voluntary: Option<bool>,
}

/// The primary's ends of a worker's pipes.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    pub(crate) input: Option<ChildStdin>,
    pub(crate) output: Option<ChildStdout>,
    pub(crate) errors: Option<ChildStderr>,
    pub(crate) further: BTreeMap<RawFd, UnixStream>,
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds a worker's state")
    }

    pub(crate) fn outgoing(&self) -> Option<MutexGuard<'_, Outgoing>> {
        let outgoing = self.outgoing.as_ref()?;
        Some(outgoing.lock().expect("nothing panics while it holds a worker's channel"))
    }

    /// The counters in its page.
    pub(crate) fn counters(&self) -> Counters {
        self.view.counters(self.accepts_itself)
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().expect("nothing panics while it holds a worker's streams")
    }
}

impl WorkerHandle {
    /// Its number, counted from 1 and never used twice in one cluster (Node: `worker.id`).
    #[must_use]
    pub fn id(&self) -> WorkerId {
        self.shared.id
    }

    /// Its process id (Node: `worker.process.pid`). After its end the system may give the number
    /// to somebody else.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.shared.pid
    }

    /// The number that it is known by, if it was given one
    /// ([`ForkOptions::instance`](crate::ForkOptions::instance)): a supervisor's slot.
    #[must_use]
    pub fn instance(&self) -> Option<u16> {
        self.shared.instance
    }

    /// The CPU that it is pinned to, if the settings name one for its place.
    #[must_use]
    pub fn cpu(&self) -> Option<usize> {
        self.shared.cpu
    }

    /// Whether its channel is open: from its birth to [`Event::Disconnect`](super::Event) (Node:
    /// `worker.isConnected()`).
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.state().connected
    }

    /// Whether its process has ended (Node: `worker.isDead()`).
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.shared.state().ending.is_some()
    }

    /// How its process has ended, if it has (Node: `worker.process.exitCode` and `signalCode`).
    #[must_use]
    pub fn ending(&self) -> Option<Ending> {
        self.shared.state().ending
    }

    /// Whether it left because it was asked to, or asked to itself: nothing while it runs and has
    /// not been asked, then true or false. So a primary knows whom to replace (Node:
    /// `worker.exitedAfterDisconnect`).
    #[must_use]
    pub fn exited_after_disconnect(&self) -> Option<bool> {
        self.shared.state().voluntary
    }

    /// Its connections so far. Reads the page that it shares with the primary and asks neither, so
    /// it costs next to nothing; after its end, what they were then.
    #[must_use]
    pub fn counts(&self) -> WorkerCounts {
        let living = || WorkerCounts::living(self.shared.counters(), &self.shared.view);
        self.shared.last_counts.get().copied().unwrap_or_else(living)
    }

    /// Sends a signal to its process, at once (Node's `kill` without a signal sends SIGTERM).
    /// A process that has ended is left alone. It counts as an end that was not asked for.
    ///
    /// # Errors
    /// The process has become another user's whom this one must not signal (EPERM).
    pub fn kill(&self, signal: Signal) -> Result<()> {
        self.shared.remote.signal(signal)
    }

    /// Ends it by force, with what it has started, if it has a group of its own.
    pub fn kill_group(&self) -> Result<()> {
        self.shared.remote.kill_group()
    }

    /// Asks it to leave: it gets nothing new, finishes what it has, closes its channel and can end
    /// (Node: `worker.disconnect()`). If nobody else serves one of its listeners, that is closed
    /// once the worker has got everything that waits there. There is no time limit; the program
    /// may set one and [`kill`](Self::kill).
    pub fn disconnect(&self) {
        self.part(None);
    }

    /// As [`disconnect`](Self::disconnect), and tells the worker after which time its connections
    /// shall be cut. The built-in worker does that; a program's worker may ask for it.
    pub fn disconnect_within(&self, grace: Duration) {
        self.part(Some(grace));
    }

    fn part(&self, grace: Option<Duration>) {
        let mut state = self.shared.state();
        if state.connected {
            state.voluntary = Some(true);
        }
        drop(state);
        // A cluster that has ended has no worker to leave.
        let _ = self.shared.control.send(Request::Disconnect { id: self.shared.id, grace });
    }

    /// Sends a message (Node: `worker.send(message)`). Returns at once: what the worker has not
    /// read yet waits.
    ///
    /// # Errors
    /// EPIPE when the worker is disconnected; EMSGSIZE beyond 16 MiB; EAGAIN when messages of
    /// 32 MiB or 16,384 of them wait, because the worker does not read; [`Error::Usage`] for what
    /// cannot be written down.
    pub fn send<T: Serialize + ?Sized>(&self, message: &T) -> Result<()> {
        self.dispatch(message, vec![])
    }

    /// Sends a message with a socket, which is closed here once it has gone (Node:
    /// `worker.send(message, handle)`).
    ///
    /// # Errors
    /// As [`send`](Self::send); EAGAIN also when 256 sockets wait. EOPNOTSUPP for what a Node
    /// worker cannot take: it takes TCP, UDP and unix stream sockets, and they become non-blocking,
    /// for whoever else has a duplicate too. The socket is closed then, too.
    pub fn send_handle<T: Serialize + ?Sized>(
        &self,
        message: &T,
        handle: impl Into<OwnedFd>,
    ) -> Result<()> {
        self.dispatch(message, vec![handle.into()])
    }

    /// Sends a message with a duplicate of a socket, while the socket stays open here (Node:
    /// `worker.send(message, handle, { keepOpen: true })`).
    ///
    /// # Errors
    /// As [`send_handle`](Self::send_handle); EMFILE when there are too few descriptors.
    pub fn send_shared<T: Serialize + ?Sized>(
        &self,
        message: &T,
        handle: &impl AsFd,
    ) -> Result<()> {
        self.dispatch(message, vec![duplicate(handle)?])
    }

    fn dispatch<T: Serialize + ?Sized>(
        &self,
        message: &T,
        descriptors: Vec<OwnedFd>,
    ) -> Result<()> {
        let serialization = self.shared.serialization;
        if self.shared.is_mute {
            let step = "send a message to a worker that has no channel";
            return Err(Error::system(step, Errno::EOPNOTSUPP));
        }
        let Some(mut outgoing) = self.shared.outgoing() else {
            return self.post(message, descriptors.into_iter().next());
        };
        let bytes = serialization.encode(message)?;
        let had_waiting = outgoing.has_waiting();
        let flushed = outgoing.send_message(serialization, &bytes, descriptors)?;
        drop(outgoing);
        if flushed != Flushed::Everything && !had_waiting {
            self.shared.control.send(Request::Flush { id: self.shared.id })?;
        }
        Ok(())
    }

    /// Sends a message to a Node worker, by way of the bridge.
    fn post<T: Serialize + ?Sized>(&self, message: &T, socket: Option<OwnedFd>) -> Result<()> {
        const STEP: &str = "send to a worker";
        if !self.is_connected() {
            return Err(Error::system(STEP, Errno::EPIPE));
        }
        let message = &serde_json::to_value(message).map_err(|error| {
            Error::usage(
                format!("the message cannot be written as JSON: {error}"),
                "send what JSON can hold",
            )
        })?;
        let frame = match &socket {
            None => node::codec::ToWorker::User(message),
            Some(socket) => {
                let kind = node_kind(socket)?;
                node::codec::ToWorker::UserSocket { kind, message }
            }
        };
        let frame = frame.frame(node_serialization(self.shared.serialization));
        if frame.len() > MESSAGE_BYTES_MAX {
            return Err(Error::system(STEP, Errno::EMSGSIZE));
        }
        let message_out = self.shared.send_quota.message_out(frame, socket);
        let message_out = message_out.ok_or_else(|| Error::system(STEP, Errno::EAGAIN))?;
        self.shared.control.send(Request::Post { id: self.shared.id, message_out })
    }

    /// What happens to this worker from now on (Node: `worker.on`). To miss nothing, subscribe to
    /// the cluster's events before the fork.
    ///
    /// # Errors
    /// Too few descriptors; the cluster has failed.
    pub fn events(&self) -> Result<Events> {
        match self.shared.control.failure() {
            Some(failure) => Err(failure),
            None => self.shared.bus.subscribe(Some(self.shared.id)),
        }
    }

    /// Takes the primary's end of the worker's standard input, if that is a pipe (Node:
    /// `worker.process.stdin`).
    #[must_use]
    pub fn take_stdin(&self) -> Option<ChildStdin> {
        self.shared.streams().input.take()
    }

    /// Takes the primary's end of the worker's standard output, if that is a pipe (Node:
    /// `worker.process.stdout`).
    #[must_use]
    pub fn take_stdout(&self) -> Option<ChildStdout> {
        self.shared.streams().output.take()
    }

    /// Takes the primary's end of the worker's standard error, if that is a pipe (Node:
    /// `worker.process.stderr`).
    #[must_use]
    pub fn take_stderr(&self) -> Option<ChildStderr> {
        self.shared.streams().errors.take()
    }

    /// Takes the primary's end of a further stream, from 3 on, if that is a pipe (Node:
    /// `worker.process.stdio[number]`).
    #[must_use]
    pub fn take_stream(&self, number: RawFd) -> Option<UnixStream> {
        self.shared.streams().further.remove(&number)
    }
}

impl fmt::Debug for WorkerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { id, pid, .. } = &*self.shared;
        f.debug_struct("WorkerHandle").field("id", &id.0).field("pid", pid).finish_non_exhaustive()
    }
}

impl PartialEq for WorkerHandle {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Eq for WorkerHandle {}

/// A duplicate of a descriptor, to be sent.
pub(crate) fn duplicate(handle: &impl AsFd) -> Result<OwnedFd> {
    handle
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| Error::system("duplicate a socket to send it", errno_of(&error)))
}

/// How a Node worker gets a socket. Node expects that it does not block.
fn node_kind(socket: &OwnedFd) -> Result<SocketKind> {
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

/// The format of a Node worker's channel.
pub(crate) fn node_serialization(serialization: Serialization) -> node::Serialization {
    match serialization {
        Serialization::Json => node::Serialization::Json,
        Serialization::Advanced => node::Serialization::Advanced,
    }
}
