//! Snapshots of listeners.

use std::os::fd::OwnedFd;

use super::{Entry, Socket};
use crate::handle::ListenerSnapshot;
use crate::id::ListenerId;
use crate::sys::backlog;
use crate::sys::listener::{Family, Listener};

impl Entry {
    /// The public state.
    pub(crate) fn snapshot(&self) -> ListenerSnapshot {
        let length = |listener: &Listener| backlog::length(listener).ok();
        let waiting = match &self.socket {
            Socket::Stream(listener) => length(listener),
            Socket::StreamEach(sockets) => sockets.all().map(|one| length(&one.listener)).sum(),
            Socket::Datagram(_) | Socket::DatagramEach(_) | Socket::Closed => None,
        };
        // Where connections wait for their first bytes, the kernel counts each handshake as a drop.
        let overflows = match &self.socket {
            _ if self.opening.defer_accept => None,
            Socket::Stream(listener) => backlog::overflows(listener).ok().map(u64::from),
            Socket::StreamEach(sockets) => sockets.overflows(),
            Socket::Datagram(_) | Socket::DatagramEach(_) | Socket::Closed => None,
        };
        ListenerSnapshot {
            id: self.id,
            address: self.address.clone(),
            workers: self.users.len(),
            backlog_max: self.opening.backlog,
            waiting,
            overflows,
        }
    }

    /// A duplicate of its shared TCP socket, if it has one.
    pub(crate) fn shared_socket(&self) -> Option<(ListenerId, String, OwnedFd)> {
        let Socket::Stream(listener) = &self.socket else { return None };
        if self.closing || listener.family() == Family::Unix {
            return None;
        }
        Some((self.id, self.address.clone(), listener.copy().ok()?))
    }
}
