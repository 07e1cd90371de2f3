//! The counts of each listener, which other threads can read while the data path works.
//!
//! One writer. A reader gets each count as of some recent moment.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::id::ListenerId;

/// The counts of one listener's connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListenerCounts {
    /// Connections accepted, by the primary or by workers that report it.
    pub accepted: u64,
    /// Connections given to workers, or accepted by them; one that came back can be given again.
    pub assigned: u64,
    /// Connections that workers have closed, as far as they report of which listener they were.
    pub finished: u64,
    /// Connections that were open when their worker ended.
    pub aborted: u64,
    /// Handoffs that a worker's full or closed channel refused.
    pub refused: u64,
    /// Connections taken back from a worker, to be given to another or again.
    pub redispatched: u64,
    /// Of these, taken back early because another worker was idle.
    pub taken_back: u64,
    /// Connections closed because no worker could take them.
    pub dropped: u64,
}

/// A listener's counts, in shared memory.
#[derive(Debug, Default)]
pub(super) struct LiveListenerCounts {
    pub(super) accepted: Count,
    pub(super) assigned: Count,
    pub(super) refused: Count,
    pub(super) redispatched: Count,
    pub(super) taken_back: Count,
    pub(super) dropped: Count,
}

/// A count that one thread writes.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    /// Needs no read-modify-write, because nothing else writes.
    pub(super) fn add(&self, count: u64) {
        self.0.store(self.get() + count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl LiveListenerCounts {
    fn read(&self) -> ListenerCounts {
        ListenerCounts {
            accepted: self.accepted.get(),
            assigned: self.assigned.get(),
            finished: 0,
            aborted: 0,
            refused: self.refused.get(),
            redispatched: self.redispatched.get(),
            taken_back: self.taken_back.get(),
            dropped: self.dropped.get(),
        }
    }
}

/// The present listeners. The data path locks it when one is added or removed.
#[derive(Debug, Default)]
pub(super) struct Directory(Mutex<BTreeMap<ListenerId, Arc<LiveListenerCounts>>>);

impl Directory {
    pub(super) fn read(&self) -> BTreeMap<ListenerId, ListenerCounts> {
        self.lock().iter().map(|(id, counts)| (*id, counts.read())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ListenerId, Arc<LiveListenerCounts>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writing end, by listener number.
#[derive(Debug, Default)]
pub(super) struct ListenerTable(Vec<Option<Arc<LiveListenerCounts>>>);

impl ListenerTable {
    pub(super) fn add(&mut self, id: ListenerId, directory: &Directory) {
        let place = id.index();
        if place >= self.0.len() {
            self.0.resize(place + 1, None);
        }
        let counts = Arc::<LiveListenerCounts>::default();
        directory.lock().insert(id, Arc::clone(&counts));
        self.0[place] = Some(counts);
    }

    pub(super) fn remove(&mut self, id: ListenerId, directory: &Directory) {
        directory.lock().remove(&id);
        if let Some(place) = self.0.get_mut(id.index()) {
            *place = None;
        }
    }

    /// A listener's counts, while it exists.
    pub(super) fn get(&self, id: ListenerId) -> Option<&LiveListenerCounts> {
        self.0.get(id.index())?.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_seen_as_long_as_there_is_the_listener() {
        let (directory, mut table) = (Directory::default(), ListenerTable::default());
        table.add(ListenerId::new(7), &directory);
        table.add(ListenerId::new(2), &directory);
        let counts = table.get(ListenerId::new(7)).expect("it has come");
        counts.accepted.add(3);
        counts.dropped.add(1);
        let seen = directory.read();
        assert_eq!(
            seen.keys().copied().collect::<Vec<_>>(),
            [ListenerId::new(2), ListenerId::new(7)]
        );
        assert_eq!((seen[&ListenerId::new(7)].accepted, seen[&ListenerId::new(7)].dropped), (3, 1));
        table.remove(ListenerId::new(7), &directory);
        assert!(table.get(ListenerId::new(7)).is_none() && directory.read().len() == 1);
    }
}
