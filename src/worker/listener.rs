//! A listener in a worker: its connections come from the primary, or it accepts them itself.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::task::Poll;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::connection::Connection;
use super::intake::{Claims, QueueKey, Taken};
use super::proxied::{HeaderOutcome, Proxied};
use super::shared::Shared;
use super::wait_set::Waiting;
use crate::address::Endpoint;
use crate::error::{Error, Result};
use crate::id::ListenerId;
use crate::protocol::scoreboard::Statistic;

/// An address that this worker serves. Threads can share it, and each may accept.
///
/// Dropping it closes it. Connections already sent to this worker for it go to other workers, and
/// those that wait for a header of the PROXY protocol are closed.
#[derive(Debug)]
pub struct Listener {
    shared: Arc<Shared>,
    queue: QueueKey,
    waiting: Waiting,
    local_addr: Endpoint,
    /// Connections begin with a header of the PROXY protocol.
    proxied: Option<Proxied>,
}

impl Listener {
    pub(super) fn new(
        shared: Arc<Shared>,
        queue: QueueKey,
        waiting: Waiting,
        address: &str,
        proxy_protocol: bool,
    ) -> Result<Self> {
        // A socket of another family that was inherited has no address, nor do its connections.
        let local_addr = address.parse().unwrap_or(Endpoint::Unix(None));
        let proxied = proxy_protocol.then(|| Proxied::at(&waiting)).transpose();
        // Not dropped before it is whole: the queue closes with it.
        let failed = |_: &Error| drop(shared.intake().close(queue, &waiting));
        let proxied = proxied.inspect_err(failed)?;
        Ok(Self { shared, queue, waiting, local_addr, proxied })
    }

    /// The bound address, with the port that was chosen. Unlike in `std` it may be that of a unix
    /// socket, so it is an [`Endpoint`], whose [`inet`](Endpoint::inet) is the `SocketAddr`; and it
    /// is known, so asking for it cannot fail.
    #[must_use]
    pub fn local_addr(&self) -> &Endpoint {
        &self.local_addr
    }

    /// The port; `None` for a unix socket.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.local_addr.inet().map(|address| address.port())
    }

    /// Id in the cluster, the same in all workers; `None` for an exclusive listener.
    #[must_use]
    pub fn id(&self) -> Option<ListenerId> {
        self.queue.listener()
    }

    /// Waits for a connection (Node: `'connection'`). Returns `None` once the worker is leaving and
    /// every connection assigned to it has been accepted.
    ///
    /// # Errors
    /// The socket is invalid, which cannot happen while it is open. Exhausted descriptors are not
    /// an error: connections wait until some are free.
    pub fn accept(&self) -> Result<Option<Connection>> {
        loop {
            if let Poll::Ready(found) = self.next(Claims::WhenIdle)? {
                return Ok(found);
            }
            let mut one = [PollFd::new(self.waiting.as_fd(), PollFlags::POLLIN)];
            match poll(&mut one, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::system("wait for connections (poll)", errno)),
            }
        }
    }

    /// Takes a connection if there is one. On `Pending`, the listener's descriptor becomes readable
    /// when it is worth trying again.
    ///
    /// A connection that is taken cannot be given to another worker any more. So after a turn of
    /// more than a millisecond, in which connections have waited for this worker, it is `Pending`
    /// once behind each connection: work on it, then come back.
    ///
    /// # Errors
    /// As [`accept`](Self::accept).
    pub fn try_accept(&self) -> Result<Poll<Option<Connection>>> {
        self.next(Claims::Paced)
    }

    fn next(&self, claims: Claims) -> Result<Poll<Option<Connection>>> {
        let Some(proxied) = &self.proxied else { return self.take(claims) };
        loop {
            let found = match proxied.next() {
                Some(found) => found,
                None => match self.take(claims)? {
                    Poll::Ready(Some(connection)) => proxied.begin(connection),
                    Poll::Ready(None) => return Ok(self.end_behind(proxied)),
                    Poll::Pending => return Ok(Poll::Pending),
                },
            };
            match found {
                HeaderOutcome::Whole(connection) => {
                    self.notice_last(proxied);
                    return Ok(Poll::Ready(Some(connection)));
                }
                HeaderOutcome::Waiting => {}
                HeaderOutcome::Refused(connection) => {
                    self.shared.intake().end.add(Statistic::HeadersRefused, 1);
                    drop(connection);
                    self.notice_last(proxied);
                }
            }
        }
    }

    /// Nothing more is accepted: the end, unless a connection still waits for its header. Then
    /// callers wait for that alone.
    fn end_behind(&self, proxied: &Proxied) -> Poll<Option<Connection>> {
        let mut state = proxied.state();
        if state.is_empty() {
            return Poll::Ready(None);
        }
        state.is_last = true;
        self.shared.intake().suspend_wakes(self.queue);
        Poll::Pending
    }

    /// Wakes the other callers behind the last connection, because the end has come.
    fn notice_last(&self, proxied: &Proxied) {
        let state = proxied.state();
        if state.is_last && state.is_empty() {
            self.shared.intake().wake(self.queue);
        }
    }

    /// The next connection, whether or not a header is in front of it.
    fn take(&self, claims: Claims) -> Result<Poll<Option<Connection>>> {
        let mut intake = self.shared.intake();
        let taken = intake.take(self.queue, claims, &self.shared.leaving);
        let strays = intake.take_strays();
        drop(intake);
        self.shared.give_back(strays);
        match taken {
            Taken::Connection(socket, accepted_ns) => {
                let connection = Connection::new(&self.shared, socket, self.id(), accepted_ns);
                Ok(Poll::Ready(Some(connection)))
            }
            Taken::Nothing => Ok(Poll::Pending),
            Taken::NoRoom => {
                self.shared.starve();
                Ok(Poll::Pending)
            }
            Taken::End => {
                self.shared.waker.wake();
                Ok(Poll::Ready(None))
            }
            Taken::Failed(errno) => Err(Error::system("accept a connection", errno)),
        }
    }

    /// Iterates over connections until this worker leaves. An error is yielded and does not end the
    /// iteration.
    pub fn incoming(&self) -> impl Iterator<Item = Result<Connection>> + '_ {
        std::iter::from_fn(|| self.accept().transpose())
    }

    /// Closes the listener, like dropping it (Node: `server.close()`).
    pub fn close(self) {}
}

impl AsFd for Listener {
    /// Readable while there may be a connection. Use it for polling only; do not read from it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waiting.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let left = self.shared.intake().close(self.queue, &self.waiting);
        if let Some(id) = self.id() {
            self.shared.give_up(id);
        }
        self.shared.give_back(left);
        self.shared.waker.wake();
    }
}
