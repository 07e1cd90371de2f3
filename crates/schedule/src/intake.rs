//! Accepted connections not given to a worker yet: a queue per listener, and the queue that is
//! next. Pure: time is an argument.
//!
//! Owns the promise that listeners do not wait for each other. A connection that no worker of its
//! listener can take blocks that listener alone, and where workers serve several listeners, each of
//! these gets a connection in turn.

use std::collections::VecDeque;

use crate::id::ListenerId;

/// The queues.
#[derive(Debug)]
pub struct Intake<T> {
    queues: Vec<Queue<T>>,
    /// The queue of each listener, by its number: with many listeners a search would take long, and
    /// every one of them is looked at in every turn.
    places: Vec<u16>,
    /// Where the search for the next queue begins.
    cursor: usize,
    waiting: usize,
    pauses: u64,
    /// Of pauses that have ended.
    paused_ns: u64,
}

#[derive(Debug)]
struct Queue<T> {
    listener: ListenerId,
    items: VecDeque<T>,
    /// No worker takes the first one in this round.
    blocked: bool,
    /// Accepting stopped then, for lack of workers with room.
    paused_since_ns: Option<u64>,
    /// No living worker has served the listener since then.
    unserved_since_ns: Option<u64>,
}

/// No queue.
const NOWHERE: u16 = u16::MAX;

impl<T> Default for Intake<T> {
    fn default() -> Self {
        let (queues, places) = (Vec::new(), Vec::new());
        Self { queues, places, cursor: 0, waiting: 0, pauses: 0, paused_ns: 0 }
    }
}

impl<T> Intake<T> {
    /// Adds a listener.
    pub fn add_listener(&mut self, listener: ListenerId) {
        if self.place_of(listener).is_none() {
            self.queues.push(Queue {
                listener,
                items: VecDeque::new(),
                blocked: false,
                paused_since_ns: None,
                unserved_since_ns: None,
            });
            self.note_places(self.queues.len() - 1);
        }
    }

    /// Removes a listener. Returns how many of its connections were still waiting; they are
    /// dropped.
    pub fn remove_listener(&mut self, listener: ListenerId, now_ns: u64) -> u64 {
        let Some(place) = self.place_of(listener) else { return 0 };
        self.note_pause(listener, false, now_ns);
        let queue = self.queues.remove(place);
        self.places[listener.index()] = NOWHERE;
        self.note_places(place);
        self.cursor = 0;
        self.waiting -= queue.items.len();
        queue.items.len() as u64
    }

    /// Notes the places of the queues from this one on.
    fn note_places(&mut self, first: usize) {
        for (place, queue) in self.queues.iter().enumerate().skip(first) {
            let number = queue.listener.index();
            if number >= self.places.len() {
                self.places.resize(number + 1, NOWHERE);
            }
            self.places[number] = u16::try_from(place).expect("listeners are bounded");
        }
    }

    #[inline]
    fn place_of(&self, listener: ListenerId) -> Option<usize> {
        let place = self.places.get(listener.index()).copied()?;
        (place != NOWHERE).then_some(usize::from(place))
    }

    #[inline]
    fn queue_of(&mut self, listener: ListenerId) -> Option<&mut Queue<T>> {
        self.place_of(listener).map(|place| &mut self.queues[place])
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// The number of waiting connections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// The number of one listener's waiting connections.
    #[must_use]
    pub fn len_of(&self, listener: ListenerId) -> usize {
        self.place_of(listener).map_or(0, |place| self.queues[place].items.len())
    }

    /// All waiting connections, those of one listener oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.queues.iter().flat_map(|queue| &queue.items)
    }

    /// Those of one listener, oldest first.
    pub fn iter_of(&self, listener: ListenerId) -> impl Iterator<Item = &T> {
        self.place_of(listener).into_iter().flat_map(|place| &self.queues[place].items)
    }

    /// Appends a connection to its listener's queue, or returns it if there is no such listener.
    ///
    /// # Errors
    /// The listener was removed.
    pub fn push(&mut self, listener: ListenerId, item: T) -> Result<(), T> {
        match self.queue_of(listener) {
            Some(queue) => queue.items.push_back(item),
            None => return Err(item),
        }
        self.waiting += 1;
        Ok(())
    }

    /// Puts a returned connection at the front of its listener's queue.
    ///
    /// # Errors
    /// The listener was removed.
    pub fn push_front(&mut self, listener: ListenerId, item: T) -> Result<(), T> {
        match self.queue_of(listener) {
            Some(queue) => queue.items.push_front(item),
            None => return Err(item),
        }
        self.waiting += 1;
        Ok(())
    }

    /// Begins a round, in which every queue can be [next](Self::next_turn) again.
    pub fn begin_round(&mut self) {
        self.queues.iter_mut().for_each(|queue| queue.blocked = false);
    }

    /// The next queue in rotation that is not empty and not blocked. The number is valid until a
    /// listener is added or removed.
    #[inline]
    pub fn next_turn(&mut self) -> Option<usize> {
        if self.waiting == 0 {
            return None;
        }
        let count = self.queues.len();
        let ready = |place: &usize| {
            let queue = &self.queues[*place];
            !queue.items.is_empty() && !queue.blocked
        };
        let turn = (self.cursor..count).chain(0..self.cursor).find(ready)?;
        self.cursor = if turn + 1 < count { turn + 1 } else { 0 };
        Some(turn)
    }

    /// The oldest of the queue that is next.
    #[must_use]
    pub fn first(&self, turn: usize) -> Option<&T> {
        self.queues[turn].items.front()
    }

    /// Takes the oldest of the queue that is next.
    pub fn take(&mut self, turn: usize) -> Option<T> {
        let item = self.queues[turn].items.pop_front();
        self.waiting -= usize::from(item.is_some());
        item
    }

    /// No worker takes the oldest of this queue in this round.
    pub fn block(&mut self, turn: usize) {
        self.queues[turn].blocked = true;
    }

    /// Drops all connections of a listener, and returns their number.
    pub fn drain(&mut self, listener: ListenerId) -> u64 {
        let Some(place) = self.place_of(listener) else { return 0 };
        let count = self.queues[place].items.len();
        self.queues[place].items.clear();
        self.waiting -= count;
        count as u64
    }

    /// Records whether accepting from a listener is stopped for lack of workers with room.
    pub fn note_pause(&mut self, listener: ListenerId, paused: bool, now_ns: u64) {
        let Some(queue) = self.queue_of(listener) else { return };
        match (paused, queue.paused_since_ns) {
            (true, None) => {
                queue.paused_since_ns = Some(now_ns);
                self.pauses += 1;
            }
            (false, Some(since_ns)) => {
                queue.paused_since_ns = None;
                self.paused_ns += now_ns.saturating_sub(since_ns);
            }
            _ => {}
        }
    }

    /// How often accepting has stopped, and for how long in total, summed over the listeners.
    #[must_use]
    pub fn pauses(&self, now_ns: u64) -> (u64, u64) {
        let since = self.queues.iter().filter_map(|queue| queue.paused_since_ns);
        let going_on: u64 = since.map(|since_ns| now_ns.saturating_sub(since_ns)).sum();
        (self.pauses, self.paused_ns + going_on)
    }

    /// Records whether a living worker serves a listener.
    pub fn note_served(&mut self, listener: ListenerId, served: bool, now_ns: u64) {
        if let Some(queue) = self.queue_of(listener) {
            match served {
                true => queue.unserved_since_ns = None,
                false => _ = queue.unserved_since_ns.get_or_insert(now_ns),
            }
        }
    }

    /// Since when no living worker has served a listener, if none does.
    #[must_use]
    pub fn unserved_since_ns(&self, listener: ListenerId) -> Option<u64> {
        self.place_of(listener).and_then(|place| self.queues[place].unserved_since_ns)
    }

    /// Listeners that no living worker has served since this moment or earlier.
    pub fn unserved_since(&self, since_ns: u64) -> impl Iterator<Item = ListenerId> {
        let unserved = self.queues.iter().filter(move |queue| {
            queue.unserved_since_ns.is_some_and(|unserved_ns| unserved_ns <= since_ns)
        });
        unserved.map(|queue| queue.listener)
    }

    /// The earliest moment since which some listener has had no living worker.
    #[must_use]
    pub fn longest_unserved_ns(&self) -> Option<u64> {
        self.queues.iter().filter_map(|queue| queue.unserved_since_ns).min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LISTENERS: [ListenerId; 3] = [ListenerId::new(7), ListenerId::new(2), ListenerId::new(9)];

    fn intake(counts: [usize; 3]) -> Intake<(u16, usize)> {
        let mut intake = Intake::default();
        for (listener, count) in LISTENERS.into_iter().zip(counts) {
            intake.add_listener(listener);
            for number in 0..count {
                intake.push(listener, (listener.get(), number)).expect("it is there");
            }
        }
        intake
    }

    /// Takes everything from listeners other than `held`.
    fn round(intake: &mut Intake<(u16, usize)>, held: &[u16]) -> Vec<(u16, usize)> {
        let mut taken = Vec::new();
        intake.begin_round();
        while let Some(turn) = intake.next_turn() {
            let (listener, _) = *intake.first(turn).expect("a turn has a first one");
            match held.contains(&listener) {
                true => intake.block(turn),
                false => taken.extend(intake.take(turn)),
            }
        }
        taken
    }

    #[test]
    fn listeners_take_turns_and_each_keeps_its_order() {
        let mut intake = intake([3, 1, 2]);
        let order = [(7, 0), (2, 0), (9, 0), (7, 1), (9, 1), (7, 2)];
        assert_eq!(round(&mut intake, &[]), order);
        assert!(intake.is_empty() && intake.next_turn().is_none());
    }

    #[test]
    fn a_listener_without_workers_holds_up_itself_alone() {
        let mut intake = intake([2, 2, 0]);
        assert_eq!(round(&mut intake, &[7]), [(2, 0), (2, 1)]);
        assert_eq!((intake.len(), intake.len_of(ListenerId::new(7))), (2, 2));
        intake.push_front(ListenerId::new(7), (7, 9)).expect("it is there");
        assert_eq!(round(&mut intake, &[]), [(7, 9), (7, 0), (7, 1)]);
    }

    #[test]
    fn what_waits_for_a_listener_that_goes_is_counted() {
        let mut intake = intake([2, 3, 1]);
        assert_eq!(intake.remove_listener(ListenerId::new(2), 5), 3);
        assert_eq!(intake.push(ListenerId::new(2), (2, 0)), Err((2, 0)));
        assert_eq!((intake.len(), intake.drain(ListenerId::new(7)), intake.len()), (3, 2, 1));
        assert_eq!(round(&mut intake, &[]), [(9, 0)]);
    }

    #[test]
    fn pauses_are_summed_up_over_listeners() {
        let mut intake = intake([0, 0, 0]);
        intake.note_pause(ListenerId::new(7), true, 10);
        intake.note_pause(ListenerId::new(7), true, 20);
        intake.note_pause(ListenerId::new(2), true, 30);
        intake.note_pause(ListenerId::new(7), false, 40);
        assert_eq!(intake.pauses(50), (2, 50));
        intake.remove_listener(ListenerId::new(2), 60);
        assert_eq!(intake.pauses(99), (2, 60));
    }

    #[test]
    fn unserved_listeners_are_told_by_their_time() {
        let mut intake = intake([0, 0, 0]);
        assert_eq!(intake.longest_unserved_ns(), None);
        intake.note_served(ListenerId::new(2), false, 10);
        intake.note_served(ListenerId::new(2), false, 20);
        intake.note_served(ListenerId::new(9), false, 30);
        assert_eq!(intake.unserved_since(20).collect::<Vec<_>>(), [ListenerId::new(2)]);
        assert_eq!(intake.longest_unserved_ns(), Some(10));
        intake.note_served(ListenerId::new(2), true, 40);
        assert_eq!(intake.longest_unserved_ns(), Some(30));
    }

    proptest! {
        /// Whatever is blocked, a connection waits for at most one of each other listener.
        #[test]
        fn no_listener_gets_two_while_another_waits(
            counts in prop::array::uniform3(0usize..6),
            held in prop::sample::subsequence(vec![7u16, 2, 9], 0..3),
        ) {
            let mut intake = intake(counts);
            let before = intake.len();
            let taken = round(&mut intake, &held);
            prop_assert_eq!(taken.len() + intake.len(), before);
            prop_assert!(taken.iter().all(|(listener, _)| !held.contains(listener)));
            for (place, pair) in taken.windows(2).enumerate() {
                let left = |listener: u16| {
                    taken[place + 1..].iter().any(|(other, _)| *other == listener)
                };
                let others = LISTENERS.iter().filter(|one| one.get() != pair[0].0);
                let waits = others.into_iter().any(|one| left(one.get()));
                prop_assert!(pair[0].0 != pair[1].0 || !waits, "{:?}", taken);
            }
        }
    }
}
