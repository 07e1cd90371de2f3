//! Limits the messages from the primary's program to a worker's, from the send until the worker's
//! socket has them.
//!
//! Owns the count, so that a sender learns at once that a worker does not read.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Maximum number of bytes in transit to one worker.
pub const USER_MESSAGE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Maximum number of messages in transit.
pub const USER_MESSAGES_MAX: usize = 16 * 1024;
/// Maximum number of sockets in transit.
pub const USER_MESSAGE_SOCKETS_MAX: usize = 256;

/// The amount in transit to one worker. Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct SendQuota {
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    messages: AtomicUsize,
    bytes: AtomicUsize,
    sockets: AtomicUsize,
}

/// A complete message and the socket attached to it.
#[derive(Debug)]
pub struct UserMessageOut {
    pub(super) frame: Vec<u8>,
    pub(super) socket: Option<OwnedFd>,
    pub(super) permit: Permit,
}

/// A message's part of the count, held while it exists.
#[derive(Debug)]
pub(super) struct Permit {
    counts: Arc<Counts>,
    bytes: usize,
    sockets: usize,
}

impl SendQuota {
    /// Creates a message to send; `None` if the quota is exhausted.
    #[must_use]
    pub fn message_out(&self, frame: Vec<u8>, socket: Option<OwnedFd>) -> Option<UserMessageOut> {
        let (bytes, sockets) = (frame.len(), usize::from(socket.is_some()));
        let Counts { messages, bytes: all_bytes, sockets: all_sockets } = &*self.counts;
        // Added before the comparison, so that two senders cannot both take the last place.
        let before = messages.fetch_add(1, Ordering::Relaxed);
        let bytes_before = all_bytes.fetch_add(bytes, Ordering::Relaxed);
        let sockets_before = all_sockets.fetch_add(sockets, Ordering::Relaxed);
        let permit = Permit { counts: Arc::clone(&self.counts), bytes, sockets };
        let fits = before < USER_MESSAGES_MAX
            && bytes_before + bytes <= USER_MESSAGE_BYTES_MAX
            && sockets_before + sockets <= USER_MESSAGE_SOCKETS_MAX;
        fits.then_some(UserMessageOut { frame, socket, permit })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.counts.messages.fetch_sub(1, Ordering::Relaxed);
        self.counts.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.counts.sockets.fetch_sub(self.sockets, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_has_arrived_makes_room() {
        let send_quota = SendQuota::default();
        let half = || send_quota.message_out(vec![0; USER_MESSAGE_BYTES_MAX / 2], None);
        let (first, second) = (half(), half());
        assert!(first.is_some() && second.is_some());
        assert!(send_quota.message_out(vec![0], None).is_none());
        drop(first);
        assert!(send_quota.message_out(vec![0], None).is_some());
        drop(second);
        let many: Vec<_> =
            (0..USER_MESSAGES_MAX).map(|_| send_quota.message_out(vec![], None)).collect();
        assert!(many.iter().all(Option::is_some) && send_quota.message_out(vec![], None).is_none());
    }

    #[test]
    fn sockets_are_counted_too() {
        let send_quota = SendQuota::default();
        let socket = || Some(UnixStream::pair().expect("a pair").0.into());
        let send = || send_quota.message_out(vec![1], socket());
        let many: Vec<_> = (0..USER_MESSAGE_SOCKETS_MAX).map(|_| send()).collect();
        assert!(many.iter().all(Option::is_some) && send().is_none());
        assert!(send_quota.message_out(vec![1], None).is_some());
    }
}
