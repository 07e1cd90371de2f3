//! The listeners of a run and who shares them.
//!
//! Owns every listening socket of the primary. A worker asks by address; the first to ask would
//! open it, and the command opens its own before there are workers, so that a busy port is told
//! at once.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::address::ListenAddress;
use crate::error::{Error, Result, errno_of};
use crate::id::{ListenerId, Slot};
use crate::sys::listener::{ListenOptions, Listener, open_shared};

/// An address and its sockets.
#[derive(Debug)]
struct Entry {
    /// The address as it was asked for.
    asked: String,
    /// The socket that the primary accepts from or that all workers share.
    listener: Arc<Listener>,
    /// A further socket for each slot, with SO_REUSEPORT. Slot 0 has the first one. They stay
    /// with their slot when a worker is replaced, so that what waits in them is not lost.
    by_slot: Vec<Listener>,
}

/// All listeners.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    entries: Vec<Entry>,
}

impl Listeners {
    /// Opens every address; with `slots`, one socket for each slot.
    pub(super) fn open(
        addresses: &[ListenAddress],
        options: ListenOptions,
        slots: usize,
    ) -> Result<Self> {
        let mut entries = Vec::with_capacity(addresses.len());
        for address in addresses {
            let listener = Arc::new(Listener::open(address, options)?);
            let further = if options.share_port { slots.saturating_sub(1) } else { 0 };
            let by_slot = (0..further).map(|_| open_shared(listener.address(), options));
            let by_slot = by_slot.collect::<Result<_>>()?;
            entries.push(Entry { asked: address.to_string(), listener, by_slot });
        }
        Ok(Self { entries })
    }

    /// What a worker gets that asks for `address`, as its `sequence`th one: the listener's number
    /// and bound address. Port 0 may be asked for several times, and means another port each time.
    pub(super) fn find(&self, sequence: u32, address: &str) -> Option<(ListenerId, String)> {
        let same = |entry: &Entry| entry.asked == address;
        let place = usize::try_from(sequence)
            .ok()
            .filter(|place| self.entries.get(*place).is_some_and(same))
            .or_else(|| self.entries.iter().position(same))?;
        let id = ListenerId(u16::try_from(place).expect("listeners are bounded"));
        Some((id, self.entries[place].listener.address().to_owned()))
    }

    /// A copy of the socket that the worker in `slot` accepts from.
    pub(super) fn copy_for(&self, id: ListenerId, slot: Slot) -> Result<OwnedFd> {
        let entry = &self.entries[id.index()];
        let own = slot.index().checked_sub(1).and_then(|place| entry.by_slot.get(place));
        let listener = own.unwrap_or(&entry.listener);
        listener.as_fd().try_clone_to_owned().map_err(|error| {
            Error::system("duplicate a listening socket for a worker", errno_of(&error))
        })
    }

    /// The sockets for the data path.
    pub(super) fn shared(&self) -> impl Iterator<Item = (ListenerId, Arc<Listener>)> {
        self.entries
            .iter()
            .zip(0..)
            .map(|(entry, id)| (ListenerId(id), Arc::clone(&entry.listener)))
    }

    /// Numbers and bound addresses.
    pub(super) fn addresses(&self) -> impl Iterator<Item = (ListenerId, &str)> {
        self.entries.iter().zip(0..).map(|(entry, id)| (ListenerId(id), entry.listener.address()))
    }

    /// Closes the primary's own sockets.
    pub(super) fn close(&mut self) {
        self.entries.clear();
    }
}
