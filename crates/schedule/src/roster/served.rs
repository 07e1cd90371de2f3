//! Which worker serves which listener, and the loads as one listener sees them. Pure.

use super::{Chooser, LISTENERS_MAX, NOWHERE, Roster};
use crate::id::{ListenerId, Slot};
use crate::index_set::IndexSet;
use crate::picker::Picker;
use crate::{Scheduler as _, Status, WorkerLoad};

impl Roster {
    /// Adds a listener with a separate rotation. No worker serves it yet.
    ///
    /// # Panics
    /// If there are [`LISTENERS_MAX`] already.
    pub fn add_listener(&mut self, listener: ListenerId) {
        let chooser = match &self.config.scheduler {
            None => Chooser::BuiltIn(Picker::new(self.policy, self.config.limits)),
            Some(factory) => Chooser::Custom(factory.make(listener)),
        };
        let free = self.listeners.iter().position(Option::is_none);
        let place = free.unwrap_or(self.listeners.len());
        assert!(place < LISTENERS_MAX, "listeners are bounded");
        match free {
            Some(place) => self.listeners[place] = Some(chooser),
            None => self.listeners.push(Some(chooser)),
        }
        let number = listener.index();
        if number >= self.indices.len() {
            self.indices.resize(number + 1, NOWHERE);
        }
        self.indices[number] = u16::try_from(place).expect("listeners are bounded");
        self.update_common();
    }

    /// Removes a listener.
    pub fn remove_listener(&mut self, listener: ListenerId) {
        let Some(place) = self.listener_index(listener) else { return };
        if let Some(chooser) = self.listeners[place].take() {
            self.skips_before.add(&chooser.skips());
        }
        self.indices[listener.index()] = NOWHERE;
        self.workers.iter_mut().flatten().for_each(|worker| worker.joined.remove(place));
        self.update_common();
    }

    pub(super) fn listener_index(&self, listener: ListenerId) -> Option<usize> {
        let place = self.indices.get(listener.index()).copied()?;
        (place != NOWHERE).then_some(usize::from(place))
    }

    /// Whether a worker takes connections of a listener, now or once it has room.
    #[must_use]
    pub fn is_served(&self, listener: ListenerId) -> bool {
        let Some(place) = self.listener_index(listener) else { return false };
        self.workers.iter().zip(&*self.loads).any(|(worker, load)| {
            let joined = matches!(worker, Some(worker) if worker.joined.contains(place));
            joined && matches!(load.status, Status::Ready | Status::Full)
        })
    }

    /// The worker now serves a listener.
    pub fn join(&mut self, slot: Slot, listener: ListenerId) {
        let entry = self.listener_index(listener);
        if let (Some(Some(worker)), Some(place)) = (self.workers.get_mut(slot.index()), entry) {
            worker.joined.insert(place);
        }
        self.update_common();
    }

    /// The worker no longer serves a listener.
    pub fn leave(&mut self, slot: Slot, listener: ListenerId) {
        let entry = self.listener_index(listener);
        if let (Some(Some(worker)), Some(place)) = (self.workers.get_mut(slot.index()), entry) {
            worker.joined.remove(place);
        }
        self.update_common();
    }

    /// Whether every serving worker that is not leaving serves this listener.
    #[must_use]
    pub fn is_served_by_all(&self, listener: ListenerId) -> bool {
        self.listener_index(listener).is_some_and(|place| self.common.contains(place))
    }

    /// Whether a worker serves a listener.
    #[must_use]
    pub fn serves(&self, slot: Slot, listener: ListenerId) -> bool {
        let worker = self.workers.get(slot.index()).and_then(Option::as_ref);
        let place = self.listener_index(listener);
        worker.zip(place).is_some_and(|(worker, place)| worker.joined.contains(place))
    }

    pub(super) fn update_common(&mut self) {
        let places = self.listeners.iter().enumerate();
        let everything: IndexSet =
            places.filter(|(_, one)| one.is_some()).map(|(place, _)| place).collect();
        self.uniform = self.workers.iter().flatten().all(|worker| worker.joined == everything);
        self.absent.clear();
        self.absent.resize(self.listeners.len(), None);
        let takes = |load: &WorkerLoad| matches!(load.status, Status::Ready | Status::Full);
        let pairs = self.workers.iter().zip(&*self.loads).filter(|(_, load)| takes(load));
        let joined = pairs.filter_map(|(worker, _)| worker.as_ref().map(|one| &one.joined));
        // A worker that serves nothing yet does not affect the comparison.
        let joined: Vec<&IndexSet> = joined.filter(|joined| !joined.is_empty()).collect();
        let is_common = |place: &usize| joined.iter().all(|one| one.contains(*place));
        self.common = (0..self.listeners.len()).filter(is_common).collect();
        self.forgive_outliers_without_peers();
    }

    /// Prepares the loads as `listener` sees them: workers that do not serve it count as dead.
    /// Returns the listener's position.
    pub(super) fn mask(&mut self, listener: ListenerId) -> Option<usize> {
        let place = self.listener_index(listener)?;
        if self.uniform {
            return Some(place);
        }
        self.masked.clone_from(&self.loads);
        let absent = self.absent[place].get_or_insert_with(|| {
            let workers = self.workers.iter().enumerate();
            let absent = workers
                .filter(|(_, worker)| matches!(worker, Some(one) if !one.joined.contains(place)));
            absent.map(|(slot, _)| slot).collect()
        });
        for slot in absent {
            self.masked.set(*slot, WorkerLoad::default());
        }
        Some(place)
    }
}
