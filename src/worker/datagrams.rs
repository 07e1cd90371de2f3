//! A UDP address that this worker serves.

use std::net::{SocketAddr, UdpSocket};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::shared::Shared;
use crate::error::{Error, Result, errno_of};
use crate::id::ListenerId;

/// A bound, non-blocking UDP socket (Node: a socket of `dgram`). Dropping it closes it.
///
/// Of its methods only [`recv_from`](Self::recv_from) waits; those of `UdpSocket` do not. In an
/// async runtime, wait for its descriptor and use the latter. With tokio,
/// `UdpSocket::from_std(datagrams.try_clone()?)` does both.
///
/// Workers that share the address share one socket: do not change its options, and expect a receive
/// to fail with EAGAIN because another worker was faster.
#[derive(Debug)]
pub struct Datagrams {
    shared: Arc<Shared>,
    socket: UdpSocket,
    id: ListenerId,
}

impl Datagrams {
    pub(crate) fn new(shared: Arc<Shared>, socket: UdpSocket, id: ListenerId) -> Self {
        Self { shared, socket, id }
    }

    /// The listener id.
    #[must_use]
    pub fn id(&self) -> ListenerId {
        self.id
    }

    /// Waits for a datagram (Node: `'message'` of `dgram`) and returns its length in bytes and its
    /// sender, like a blocking `UdpSocket`. A datagram longer than `buffer` is truncated. The
    /// socket's own [`recv_from`](UdpSocket::recv_from) is `UdpSocket::recv_from(&datagrams, …)`;
    /// it does not wait.
    ///
    /// # Errors
    /// Those of `recvfrom(2)`.
    pub fn recv_from(&self, buffer: &mut [u8]) -> Result<(usize, SocketAddr)> {
        let failed = |errno| Error::system("receive a datagram", errno);
        loop {
            match self.socket.recv_from(buffer).map_err(|error| errno_of(&error)) {
                Ok(received) => return Ok(received),
                Err(Errno::EAGAIN) => {
                    let mut one = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
                    match poll(&mut one, PollTimeout::NONE) {
                        Ok(_) | Err(Errno::EINTR) => {}
                        Err(errno) => return Err(failed(errno)),
                    }
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
    }

    /// Closes the socket, like dropping it (Node: `socket.close()`).
    pub fn close(self) {}
}

impl Deref for Datagrams {
    type Target = UdpSocket;

    fn deref(&self) -> &UdpSocket {
        &self.socket
    }
}

impl AsFd for Datagrams {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.shared.give_up(self.id);
    }
}
