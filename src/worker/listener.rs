//! A listener in a worker: its connections come from the primary, or it accepts them itself.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::accept_queue::{AcceptQueue, HandedOver, Next};
use super::connection::Connection;
use super::inbox::Pulled;
use super::shared::Shared;
use crate::error::{Error, Result};
use crate::id::ListenerId;

/// An address that this worker serves. Threads can share it, and each may accept.
///
/// Dropping it closes it. Connections already sent to this worker for it go to other workers.
#[derive(Debug)]
pub struct Listener {
    shared: Arc<Shared>,
    queue: Arc<AcceptQueue>,
    id: Option<ListenerId>,
    address: String,
}

impl Listener {
    pub(crate) fn new(
        shared: Arc<Shared>,
        queue: Arc<AcceptQueue>,
        id: Option<ListenerId>,
        address: String,
    ) -> Self {
        Self { shared, queue, id, address }
    }

    /// The bound address, with the port that was chosen: `127.0.0.1:8000`, `[::1]:8000`,
    /// `unix:/path` or `unix:@name`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The port; `None` for a unix socket.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.address.parse().ok().map(|address: std::net::SocketAddr| address.port())
    }

    /// Id in the cluster, the same in all workers; `None` for an exclusive listener.
    #[must_use]
    pub fn id(&self) -> Option<ListenerId> {
        self.id
    }

    /// Waits for a connection (Node: `'connection'`). Returns `None` once the worker is leaving and
    /// every connection assigned to it has been accepted.
    ///
    /// # Errors
    /// The socket is invalid, which cannot happen while it is open. Exhausted descriptors are not
    /// an error: connections wait until some are free.
    pub fn accept(&self) -> Result<Option<Connection>> {
        loop {
            if let Poll::Ready(found) = self.try_accept()? {
                return Ok(found);
            }
            let mut one = [PollFd::new(self.queue.as_fd(), PollFlags::POLLIN)];
            match poll(&mut one, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::system("wait for connections (poll)", errno)),
            }
        }
    }

    /// Takes a connection if there is one. On `Pending`, the listener's descriptor becomes readable
    /// when it is worth trying again.
    ///
    /// # Errors
    /// As [`accept`](Self::accept).
    pub fn try_accept(&self) -> Result<Poll<Option<Connection>>> {
        let mut own_is_empty = false;
        loop {
            match self.queue.look(own_is_empty) {
                Next::HandedOver(HandedOver { socket, accepted_ns }) => {
                    let connection = Connection::new(&self.shared, socket, self.id, accepted_ns);
                    return Ok(Poll::Ready(Some(connection)));
                }
                Next::End => return Ok(Poll::Ready(None)),
                Next::Nothing => return Ok(self.pend()),
                Next::AskInbox => {
                    let Some(inbox) = &self.shared.inbox else { return Ok(Poll::Ready(None)) };
                    match inbox.pull(&self.shared) {
                        Pulled::Something => {}
                        Pulled::Nothing if !own_is_empty && self.queue.has_own() => {}
                        Pulled::Nothing => return Ok(self.pend()),
                        Pulled::NoRoom => return Ok(self.starve()),
                        Pulled::End => {
                            self.queue.end_inbox();
                            self.shared.waker.wake();
                        }
                    }
                }
                Next::AskOwn => match self.queue.accept_own() {
                    Ok(Some(socket)) => {
                        let connection = Connection::own(&self.shared, socket, self.id);
                        return Ok(Poll::Ready(Some(connection)));
                    }
                    Ok(None) if self.shared.is_leaving() => {
                        self.queue.end_own();
                        self.shared.waker.wake();
                    }
                    Ok(None) => own_is_empty = true,
                    // The client disconnected while queued (see `accept(2)`).
                    Err(Errno::ECONNABORTED | Errno::EINTR | Errno::EPROTO | Errno::EPERM) => {}
                    Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => {
                        return Ok(self.starve());
                    }
                    Err(errno) => return Err(Error::system("accept a connection", errno)),
                },
            }
        }
    }

    /// Nothing is there. The sources are polled again, if they were not.
    fn pend(&self) -> Poll<Option<Connection>> {
        if self.queue.is_muted() {
            self.queue.mute(self.shared.inbox.as_ref().map(AsFd::as_fd), false);
        }
        Poll::Pending
    }

    /// No descriptor is free: the control thread wakes this listener when there may be one.
    fn starve(&self) -> Poll<Option<Connection>> {
        self.queue.mute(self.shared.inbox.as_ref().map(AsFd::as_fd), true);
        self.shared.starved.store(true, Ordering::Release);
        self.shared.waker.wake();
        Poll::Pending
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
        self.queue.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let left = self.queue.close();
        let Some(id) = self.id else {
            let queue = &self.queue;
            self.shared.state().exclusive.retain(|one| !Arc::ptr_eq(one, queue));
            self.shared.waker.wake();
            return;
        };
        if self.shared.inbox.is_none() {
            self.shared.state().queues.remove(&id);
        }
        self.shared.give_up(id);
        for HandedOver { socket, accepted_ns } in left {
            self.shared.give_back(id, accepted_ns, socket);
        }
        self.shared.waker.wake();
    }
}
