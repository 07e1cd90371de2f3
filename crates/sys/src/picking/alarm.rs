//! How the kernel tells the primary that a queue is stuck: a ring whose descriptor becomes
//! readable.
//!
//! Owns the ring, whose messages are all the same: what has happened is in the workers' pages. Owns
//! the types of the state, too, which are the same for each program.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use nix::errno::Errno;

use super::{PICKED_MAX, watch};
use crate::bpf;
use crate::shared::{PAGE_BYTES, SharedPage};

/// What the kernel has found at a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Connections wait, and the worker accepts none.
    Stuck,
    /// It accepts, but something has waited for it all the time: perhaps the count is too high.
    Waiting,
}

/// The alarm of all ports.
#[derive(Debug)]
pub struct Alarm {
    types: OwnedFd,
    reader: SharedPage,
    writer: SharedPage,
}

impl Told {
    /// The finding in a worker's page.
    #[must_use]
    pub fn from_word(word: u64) -> Option<Self> {
        match u16::try_from(word) {
            Ok(watch::STUCK) => Some(Self::Stuck),
            Ok(watch::WAITING) => Some(Self::Waiting),
            _ => None,
        }
    }
}

impl Alarm {
    /// An alarm that is not raised.
    ///
    /// # Errors
    /// This process may not create maps, the kernel has no timers for programs (before Linux 5.15),
    /// or memory is exhausted.
    pub fn new() -> Result<Self, Errno> {
        let types = bpf::load_types(watch::state_bytes(PICKED_MAX))?;
        let ring = bpf::create_ring(u32::try_from(PAGE_BYTES).expect("a page is small"))?;
        let copy = ring.try_clone().map_err(|_| Errno::EMFILE)?;
        Ok(Self {
            types,
            reader: SharedPage::map_ring(ring, true)?,
            writer: SharedPage::map_ring(copy, false)?,
        })
    }

    pub(super) fn create_state(&self) -> Result<OwnedFd, Errno> {
        bpf::create_timed(&self.types, watch::state_bytes(PICKED_MAX))
    }

    pub(super) fn types(&self) -> BorrowedFd<'_> {
        self.types.as_fd()
    }

    /// Reads all messages. Returns whether there were any.
    pub fn clear(&self) -> bool {
        let written = self.writer.word(0, 0).load(Ordering::Acquire);
        self.reader.word(0, 0).swap(written, Ordering::AcqRel) != written
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}
