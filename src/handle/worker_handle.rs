//! A worker as the program in the primary sees it (Node's `Worker` in the primary).

use std::fmt;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{ChildStderr, ChildStdin, ChildStdout};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{Events, Request, WorkerCounts, WorkerState};
use crate::dialect::Sent;
use crate::error::Result;
use crate::id::WorkerId;
use crate::protocol::scoreboard::ListenerShare;
use crate::sys::fdpass::duplicate;
use crate::sys::process::Ending;
use crate::sys::signal::Signal;

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
/// assert_eq!((worker.id().get(), worker.is_dead()), (1, false));
/// worker.kill(Signal::SIGTERM)?;
/// while !matches!(events.next(), Some(Event::Exit { .. }) | None) {}
/// assert_eq!(worker.ending(), Some(Ending::Signal(15)));
/// # Ok::<(), clusterlb::Error>(())
/// ```
#[derive(Clone)]
pub struct WorkerHandle {
    pub(crate) state: Arc<WorkerState>,
}

impl WorkerHandle {
    /// Its number, counted from 1 and never used twice in one cluster (Node: `worker.id`).
    #[must_use]
    pub fn id(&self) -> WorkerId {
        self.state.id
    }

    /// Its process id (Node: `worker.process.pid`). After its end the system may reuse the number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.state.pid
    }

    /// The number that it is known by, if it was given one
    /// ([`ForkOptions::instance`](crate::ForkOptions::instance)): a supervisor's slot.
    #[must_use]
    pub fn instance(&self) -> Option<u16> {
        self.state.instance
    }

    /// The CPU that it is pinned to, if the settings name one for its place.
    #[must_use]
    pub fn cpu(&self) -> Option<usize> {
        self.state.cpu
    }

    /// Whether its channel is open: from its birth to [`Event::Disconnect`](super::Event) (Node:
    /// `worker.isConnected()`).
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.state.life().connected
    }

    /// Whether its process has ended (Node: `worker.isDead()`).
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.state.life().ending.is_some()
    }

    /// How its process has ended, if it has (Node: `worker.process.exitCode` and `signalCode`).
    #[must_use]
    pub fn ending(&self) -> Option<Ending> {
        self.state.life().ending
    }

    /// The number of the system call for which its seccomp filter ended it by SIGSYS. Only the
    /// built-in worker reports it.
    #[must_use]
    pub fn refused_call(&self) -> Option<u32> {
        let ended = self.ending() == Some(Ending::Signal(Signal::SIGSYS as i32));
        self.state.view.refused_call().filter(|_| ended)
    }

    /// Whether it left because it was asked to, or asked to itself: nothing while it runs and has
    /// not been asked, then true or false. So a primary knows whom to replace (Node:
    /// `worker.exitedAfterDisconnect`).
    #[must_use]
    pub fn exited_after_disconnect(&self) -> Option<bool> {
        self.state.life().voluntary
    }

    /// Its connections so far. Reads the page that it shares with the primary and asks neither, so
    /// it costs next to nothing; after its end, what they were then.
    #[must_use]
    pub fn counts(&self) -> WorkerCounts {
        let living = || WorkerCounts::living(self.state.counters(), &self.state.view);
        self.state.last_counts.get().copied().unwrap_or_else(living)
    }

    /// Its connections by listener, as far as it reports them; none once it has ended.
    pub(crate) fn by_listener(&self) -> Vec<ListenerShare> {
        match self.state.last_counts.get() {
            None => self.state.view.by_listener(&self.state.counters()),
            Some(_) => Vec::new(),
        }
    }

    /// Sends a signal to its process, at once (Node's `kill` without a signal sends SIGTERM).
    /// A process that has ended is left alone. It counts as an end that was not asked for.
    ///
    /// # Errors
    /// The process has become another user's whom this one must not signal (EPERM).
    pub fn kill(&self, signal: Signal) -> Result<()> {
        self.state.remote.signal(signal)
    }

    /// Kills it, and its process group if it leads one.
    ///
    /// # Errors
    /// As [`kill`](Self::kill).
    pub fn kill_group(&self) -> Result<()> {
        self.state.remote.kill_group()
    }

    /// Asks it to leave: it gets nothing new, finishes what it has, closes its channel and can end
    /// (Node: `worker.disconnect()`). A listener that no other worker serves is closed once this
    /// one has got everything that waits there. There is no time limit; the program may set one
    /// and [`kill`](Self::kill).
    pub fn disconnect(&self) {
        self.part(None);
    }

    /// As [`disconnect`](Self::disconnect), and tells the worker when to cut its connections. The
    /// built-in worker does so; a program's worker may ask for it.
    pub fn disconnect_within(&self, grace: Duration) {
        self.part(Some(grace));
    }

    fn part(&self, grace: Option<Duration>) {
        let mut life = self.state.life();
        if life.connected {
            life.voluntary = Some(true);
        }
        drop(life);
        // A cluster that has ended has no worker to leave.
        let _ = self.state.control.send(Request::Disconnect { id: self.state.id, grace });
    }

    /// Sends a message (Node: `worker.send(message)`). Returns at once: what the worker has not
    /// read yet waits.
    ///
    /// # Errors
    /// EPIPE when the worker is disconnected; EMSGSIZE beyond 16 MiB; EAGAIN when messages of
    /// 32 MiB or 16,384 of them wait, because the worker does not read;
    /// [`Error::Usage`](crate::Error::Usage) for what cannot be written down.
    pub fn send<T: Serialize + ?Sized>(&self, message: &T) -> Result<()> {
        self.dispatch(message, None)
    }

    /// Sends a message with a socket, which is closed here once it has gone (Node:
    /// `worker.send(message, handle)`).
    ///
    /// # Errors
    /// As [`send`](Self::send); EAGAIN also when 256 sockets wait. EOPNOTSUPP for what a Node
    /// worker cannot take: it takes TCP, UDP and unix stream sockets, and they become non-blocking,
    /// in every process that has a duplicate. The socket is closed then, too.
    pub fn send_handle<T: Serialize + ?Sized>(
        &self,
        message: &T,
        handle: impl Into<OwnedFd>,
    ) -> Result<()> {
        self.dispatch(message, Some(handle.into()))
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
        self.dispatch(message, Some(duplicate(handle)?))
    }

    fn dispatch<T: Serialize + ?Sized>(
        &self,
        message: &T,
        descriptor: Option<OwnedFd>,
    ) -> Result<()> {
        self.pass_on(self.state.messages.send(message, descriptor, self.is_connected())?)
    }

    /// Sends a message in V8's format to a Node worker with `serialization: 'advanced'`.
    pub(crate) fn send_v8(&self, payload: &[u8]) -> Result<()> {
        self.pass_on(self.state.messages.send_v8(payload, self.is_connected())?)
    }

    fn pass_on(&self, sent: Sent) -> Result<()> {
        let id = self.state.id;
        match sent {
            Sent::Complete => Ok(()),
            Sent::Waiting => self.state.control.send(Request::Flush { id }),
            Sent::ToBridge(message_out) => {
                self.state.control.send(Request::Post { id, message_out })
            }
        }
    }

    /// What happens to this worker from now on (Node: `worker.on`). To miss nothing, subscribe to
    /// the cluster's events before the fork.
    ///
    /// # Errors
    /// Too few descriptors; the cluster has failed.
    pub fn events(&self) -> Result<Events> {
        match self.state.control.failure() {
            Some(failure) => Err(failure),
            None => self.state.bus.subscribe(Some(self.state.id)),
        }
    }

    /// Takes the primary's end of the worker's standard input, if that is a pipe (Node:
    /// `worker.process.stdin`).
    #[must_use]
    pub fn take_stdin(&self) -> Option<ChildStdin> {
        self.state.streams().input.take()
    }

    /// Takes the primary's end of the worker's standard output, if that is a pipe (Node:
    /// `worker.process.stdout`).
    #[must_use]
    pub fn take_stdout(&self) -> Option<ChildStdout> {
        self.state.streams().output.take()
    }

    /// Takes the primary's end of the worker's standard error, if that is a pipe (Node:
    /// `worker.process.stderr`).
    #[must_use]
    pub fn take_stderr(&self) -> Option<ChildStderr> {
        self.state.streams().errors.take()
    }

    /// Takes the primary's end of a further stream, from 3 on, if that is a pipe (Node:
    /// `worker.process.stdio[number]`).
    #[must_use]
    pub fn take_stream(&self, number: RawFd) -> Option<UnixStream> {
        self.state.streams().further.remove(&number)
    }
}

impl fmt::Debug for WorkerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WorkerState { id, pid, .. } = &*self.state;
        f.debug_struct("WorkerHandle")
            .field("id", &id.get())
            .field("pid", pid)
            .finish_non_exhaustive()
    }
}

impl PartialEq for WorkerHandle {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }
}

impl Eq for WorkerHandle {}
