//! A listener in a worker: connections come to it from the primary, or it accepts them itself.

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
use crate::sys::clock::monotonic_ns;

/// An address that this worker serves. It can be shared among threads, each of which may accept.
///
/// Dropping it closes it: this worker gets nothing more from there. Connections that were on their
/// way to it go to other workers.
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

    /// The address that was bound, with the port that was chosen: `127.0.0.1:8000`, `[::1]:8000`,
    /// `unix:/path` or `unix:@name`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The port, unless it is a unix socket.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.address.parse().ok().map(|address: std::net::SocketAddr| address.port())
    }

    /// Its number in the cluster, the same in all workers; none for an exclusive one.
    #[must_use]
    pub fn id(&self) -> Option<ListenerId> {
        self.id
    }

    /// Waits for a connection (Node: `'connection'`). Nothing means that this worker is leaving,
    /// and has got everything that it gets.
    ///
    /// # Errors
    /// The socket is of no use, which cannot be while it is open. A want of descriptors is no
    /// error: connections wait until some are free.
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

    /// Takes a connection if there is one. Pending means that there is none yet: the listener's
    /// descriptor becomes readable when it is time to look again.
    ///
    /// # Errors
    /// As [`accept`](Self::accept).
    pub fn try_accept(&self) -> Result<Poll<Option<Connection>>> {
        loop {
            match self.queue.look() {
                Next::HandedOver(HandedOver { socket, accepted_ns }) => {
                    let connection = Connection::new(&self.shared, socket, self.id, accepted_ns);
                    return Ok(Poll::Ready(Some(connection)));
                }
                Next::End => return Ok(Poll::Ready(None)),
                Next::AskInbox => {
                    let Some(inbox) = &self.shared.inbox else { return Ok(Poll::Ready(None)) };
                    if self.queue.is_muted() {
                        self.queue.mute(Some(inbox.as_fd()), false);
                    }
                    match inbox.pull(&self.shared) {
                        Pulled::Something => {}
                        Pulled::Nothing => return Ok(Poll::Pending),
                        Pulled::NoRoom => return Ok(self.starve()),
                        Pulled::End => {
                            self.queue.end();
                            self.shared.waker.wake();
                        }
                    }
                }
                Next::AskOwn => match self.queue.accept_own() {
                    Ok(Some(socket)) => {
                        let now_ns = monotonic_ns();
                        let connection = Connection::new(&self.shared, socket, self.id, now_ns);
                        return Ok(Poll::Ready(Some(connection)));
                    }
                    Ok(None) if self.shared.is_leaving() => {
                        self.queue.end();
                        self.shared.waker.wake();
                    }
                    Ok(None) => {
                        self.queue.mute(None, false);
                        return Ok(Poll::Pending);
                    }
                    // The client gave up while it was queued (`accept(2)`).
                    Err(Errno::ECONNABORTED | Errno::EINTR | Errno::EPROTO | Errno::EPERM) => {}
                    Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => {
                        return Ok(self.starve());
                    }
                    Err(errno) => return Err(Error::system("accept a connection", errno)),
                },
            }
        }
    }

    /// There are no descriptors: the attendant says when there may be some.
    fn starve(&self) -> Poll<Option<Connection>> {
        self.queue.mute(self.shared.inbox.as_ref().map(AsFd::as_fd), true);
        self.shared.starved.store(true, Ordering::Release);
        self.shared.waker.wake();
        Poll::Pending
    }

    /// Connections until this worker leaves. Errors are told, and do not end it.
    pub fn incoming(&self) -> impl Iterator<Item = Result<Connection>> + '_ {
        std::iter::from_fn(|| self.accept().transpose())
    }

    /// Closes it: this worker gets nothing more from there (Node: `server.close()`). The same as
    /// dropping it.
    pub fn close(self) {}
}

impl AsFd for Listener {
    /// Readable while there may be a connection. For those who wait for several things; it is not
    /// to be read from.
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
