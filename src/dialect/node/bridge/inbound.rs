//! What a worker says, taken off its channel.
//!
//! Owns how much is read at once, and when reading stops: while the control plane is behind with
//! what this very worker has said. Then its answers stay unread with the rest, so its window fills
//! and stays full. What it has been sent it has, and serves; what lies in its inbox goes to others
//! as from one that hangs, unless it takes that by itself; and should it end, its socket still
//! holds all that it has said.

use std::os::fd::AsFd as _;

use nix::errno::Errno;

use super::messages::Endpoints;
use super::node_worker::{End, NodeWorker};
use crate::sys::fdpass;

/// Reads in one turn; then the other workers have theirs.
const READS_A_TURN_MAX: usize = 16;
/// Descriptors that a worker has sent ahead of the messages that name them. Node sends one at a
/// time.
const UNMATCHED_FDS_MAX: usize = 16;

/// How much of a channel is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// As long as the control plane keeps up.
    UntilHeldUp,
    /// All of it.
    Everything,
}

impl NodeWorker {
    /// Reads the channel. Tells whether there may be more.
    pub(super) fn hear(
        &mut self,
        endpoints: &Endpoints,
        buffer: &mut [u8],
        extent: Extent,
        now_ns: u64,
    ) -> bool {
        for _ in 0..READS_A_TURN_MAX {
            // Something may be left from before it was held up.
            self.understand(endpoints, extent, now_ns);
            if self.end.is_some() || self.held_up {
                return false;
            }
            let mut descriptors = Vec::new();
            match fdpass::receive(self.channel.as_fd(), buffer, &mut descriptors) {
                Ok(arrival) if arrival.bytes == 0 => self.end = Some(End::Closed),
                Ok(arrival) => {
                    // A descriptor ends a read early; nothing else does.
                    let emptied = arrival.bytes < buffer.len() && descriptors.is_empty();
                    self.unmatched_fds.extend(descriptors);
                    self.decoder.feed(&buffer[..arrival.bytes]);
                    if emptied {
                        self.understand(endpoints, extent, now_ns);
                        return false;
                    }
                }
                Err(Errno::EAGAIN) => return false,
                Err(Errno::EINTR) => {}
                // It was closed with something unread in it, or is broken.
                Err(_) => self.end = Some(End::Closed),
            }
        }
        self.understand(endpoints, extent, now_ns);
        true
    }

    fn understand(&mut self, endpoints: &Endpoints, extent: Extent, now_ns: u64) {
        while self.end.is_none() {
            self.held_up = extent == Extent::UntilHeldUp && endpoints.notices.is_full(self.worker);
            if self.held_up {
                return;
            }
            let arrived = !self.unmatched_fds.is_empty();
            let taken = self.decoder.next_message().and_then(|message| match message {
                Some(message) => self.session.receive(message, arrived, now_ns).map(|()| true),
                None => Ok(false),
            });
            self.act(endpoints, now_ns);
            match taken {
                Ok(true) => {}
                Ok(false) => break,
                Err(garbage) => self.end = Some(End::Failed(garbage.to_string())),
            }
        }
        if self.unmatched_fds.len() > UNMATCHED_FDS_MAX {
            let what = "the worker sends descriptors that no message names".to_owned();
            self.end.get_or_insert(End::Failed(what));
        }
    }
}
