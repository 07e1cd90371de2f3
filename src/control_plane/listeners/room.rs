//! How many sockets workers may have opened: a share of the primary's descriptors.
//!
//! Owns the shares of all workers and of one. Without them a worker that listens on port 0 again
//! and again leaves the primary no descriptors for connections and new workers.

use nix::errno::Errno;

use super::{Key, Listeners, Socket};
use crate::error::{Error, Result};
use crate::id::WorkerId;
use crate::settings::LISTENERS_MAX;

/// Sockets that workers have opened may take one descriptor in four.
const ONE_IN: usize = 4;

/// One worker may use three quarters of what all workers may use.
const fn of_one(all: usize) -> usize {
    all - all / 4
}

/// The bounds on what workers may have opened.
#[derive(Clone, Copy, Debug)]
pub(in crate::control_plane) struct Bounds {
    descriptors: usize,
    /// Those for all workers together.
    of_all: usize,
    /// Those of one worker, for listeners that no other worker uses.
    of_one: usize,
    /// Listeners that no other worker uses.
    listeners_of_one: usize,
}

impl Bounds {
    /// For a primary with this many descriptors. A worker that is not trusted leaves the others
    /// some of the listeners, too.
    pub(in crate::control_plane) fn new(descriptors: usize, is_trusted: bool) -> Self {
        let of_all = descriptors / ONE_IN;
        let listeners_of_one = if is_trusted { LISTENERS_MAX } else { of_one(LISTENERS_MAX) };
        Self { descriptors, of_all, of_one: of_one(of_all), listeners_of_one }
    }
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
        bounds: Bounds,
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
        let Bounds { descriptors, of_all, of_one, listeners_of_one } = bounds;
        let limit = if listeners >= listeners_of_one {
            format!("{listeners_of_one} of {LISTENERS_MAX} listeners open in one worker")
        } else if own >= of_one {
            format!("{of_one} of the {descriptors} descriptors for one worker")
        } else if all >= of_all {
            format!("{of_all} of the {descriptors} descriptors for all workers")
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
