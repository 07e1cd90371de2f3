//! How many sockets workers may have opened: a share of the primary's descriptors.
//!
//! Owns the share. Without it one worker that asks for ports without an end leaves the primary no
//! descriptor for connections, and none to start workers.

use nix::errno::Errno;

use super::{Key, Listeners, Socket};
use crate::error::{Error, Result};
use crate::id::WorkerId;
use crate::settings::LISTENERS_MAX;

/// This part of the primary's descriptors is for sockets that workers have opened.
const PART: usize = 4;

/// What one worker may have alone of what all of them may have: the others keep the rest.
const fn of_one(all: usize) -> usize {
    all - all / 4
}

impl Listeners {
    /// Fails if a worker has to close something before it opens another listener. What the
    /// program holds is not counted.
    ///
    /// # Errors
    /// [`Error::Listen`] with ENOBUFS.
    pub(in crate::control_plane) fn ensure_room(
        &self,
        key: &Key,
        worker: WorkerId,
        descriptors: usize,
    ) -> Result<()> {
        let (mut all, mut own, mut listeners) = (0, 0, 0);
        for entry in self.entries.values().filter(|entry| !entry.held) {
            let count = entry.socket.descriptors();
            all += count;
            if entry.users.len() == 1 && entry.users.contains(&worker) {
                own += count;
                listeners += 1;
            }
        }
        let (share, most) = (descriptors / PART, of_one(LISTENERS_MAX));
        let limit = if listeners >= most {
            format!("{most} of {LISTENERS_MAX} listeners open in one worker")
        } else if own >= of_one(share) {
            format!("{} of the {descriptors} descriptors for one worker", of_one(share))
        } else if all >= share {
            format!("{share} of the {descriptors} descriptors for all workers")
        } else {
            return Ok(());
        };
        Err(Error::Listen {
            address: key.address.to_string(),
            step: format!("have more than {limit}, the last at"),
            source: Errno::ENOBUFS.into(),
        })
    }
}

impl Socket {
    /// The descriptors that the primary has of it.
    fn descriptors(&self) -> usize {
        match self {
            Self::Stream(_) | Self::Datagram(_) | Self::DatagramEach(Some(_)) => 1,
            Self::StreamEach(own) => own.count(),
            Self::DatagramEach(None) | Self::Closed => 0,
        }
    }
}
