//! Reads a worker's channel.
//!
//! Owns the amount read at once, and the back-pressure: while the control plane is behind with one
//! worker's messages, that worker is not read. Its replies stay unread too, so its window fills. It
//! serves the connections it has been sent; those in its inbox go to other workers as from a
//! stalled worker, unless it empties the inbox itself. If it ends, its socket still holds
//! everything it has said.

use std::os::fd::AsFd as _;

use nix::errno::Errno;

use super::endpoints::Endpoints;
use super::node_worker::{End, Extent, NodeWorker};
use crate::sys::fdpass;

/// Maximum number of reads per turn, so that the other workers get theirs.
const READS_A_TURN_MAX: usize = 16;
/// Maximum number of descriptors received ahead of their messages. Node sends one at a time.
const UNMATCHED_FDS_MAX: usize = 16;

impl NodeWorker {
    /// Reads the channel. Returns whether there may be more.
    pub(super) fn read_channel(
        &mut self,
        endpoints: &Endpoints,
        buffer: &mut [u8],
        extent: Extent,
        now_ns: u64,
    ) -> bool {
        for _ in 0..READS_A_TURN_MAX {
            // Messages may be left from before the back-pressure.
            self.on_messages(endpoints, extent, now_ns);
            if self.end.is_some() || self.held_up {
                return false;
            }
            let mut descriptors = Vec::new();
            match fdpass::receive(self.channel.as_fd(), buffer, &mut descriptors) {
                Ok(arrival) if arrival.bytes == 0 => self.end = Some(End::Closed),
                Ok(arrival) => {
                    // Only a descriptor makes a read end early.
                    let emptied = arrival.bytes < buffer.len() && descriptors.is_empty();
                    self.unmatched_fds.extend(descriptors);
                    self.decoder.feed(&buffer[..arrival.bytes]);
                    if emptied {
                        self.on_messages(endpoints, extent, now_ns);
                        return false;
                    }
                }
                Err(Errno::EAGAIN) => return false,
                Err(Errno::EINTR) => {}
                // Closed with unread data, or broken.
                Err(_) => self.end = Some(End::Closed),
            }
        }
        self.on_messages(endpoints, extent, now_ns);
        true
    }

    fn on_messages(&mut self, endpoints: &Endpoints, extent: Extent, now_ns: u64) {
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
