//! A worker's connections by listener: the words in its page, and what they say when it has ended.
//!
//! A word has the listener's id and 1 in its upper 16 bits, and a count below, so that one store
//! writes both. Owns this format. A page has room for [`LISTENERS_MAX`] listeners; the connections
//! of further ones are in the sums alone.

use super::Counters;
use crate::id::ListenerId;

/// Most listeners of a worker whose connections it counts separately.
pub const LISTENERS_MAX: usize = 8;

const COUNT_BITS: u32 = 48;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// What a worker has done with the connections of one listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerShare {
    /// The listener.
    pub listener: ListenerId,
    /// Connections that the worker accepted itself.
    pub own: u64,
    /// Connections that it has finished.
    pub finished: u64,
}

/// What became of the connections of one listener in a worker that has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenerEnd {
    /// Connections that the worker accepted itself.
    pub own: u64,
    /// Finished ones.
    pub finished: u64,
    /// Open ones when it ended.
    pub aborted: u64,
}

/// The counts of one kind that one side writes.
#[derive(Debug, Default)]
pub(super) struct ByListener([u64; LISTENERS_MAX]);

impl ByListener {
    /// Adds to a listener's count. Returns the word and its place; `None` if there is no room for
    /// one more listener.
    pub(super) fn add(&mut self, listener: ListenerId, count: u64) -> Option<(usize, u64)> {
        let tag = (u64::from(listener.get()) + 1) << COUNT_BITS;
        let place = self.0.iter().position(|word| *word & !COUNT_MASK == tag || *word == 0)?;
        let word = tag | ((self.0[place] + count) & COUNT_MASK);
        self.0[place] = word;
        Some((place, word))
    }
}

/// The shares in a page: words of own connections, then of finished ones, from all writers. No more
/// is finished, and own, than the counters say.
pub(super) fn shares(
    own: impl Iterator<Item = u64>,
    finished: impl Iterator<Item = u64>,
    counters: &Counters,
) -> Vec<ListenerShare> {
    let mut found: Vec<(ListenerId, u64, u64)> = Vec::new();
    let words = own.map(|word| (word, true)).chain(finished.map(|word| (word, false)));
    for (word, is_own) in words {
        let Some((listener, count)) = read(word) else { continue };
        let place = found.iter().position(|(id, ..)| *id == listener).unwrap_or(found.len());
        if place == found.len() {
            found.push((listener, 0, 0));
        }
        let (_, own, finished) = &mut found[place];
        *(if is_own { own } else { finished }) += count;
    }
    let (mut own_left, mut finished_left) = (counters.own, counters.finished);
    let cut = |count: u64, left: &mut u64| {
        let count = count.min(*left);
        *left -= count;
        count
    };
    let shares = found.into_iter().map(|(listener, own, finished)| ListenerShare {
        listener,
        own: cut(own, &mut own_left),
        finished: cut(finished, &mut finished_left),
    });
    shares.collect()
}

fn read(word: u64) -> Option<(ListenerId, u64)> {
    let id = (word >> COUNT_BITS).checked_sub(1)?;
    Some((ListenerId::new(u16::try_from(id).ok()?), word & COUNT_MASK))
}

/// What became of a worker's connections, by listener. `given` has the connections that it was
/// given and that did not come back; `lost` of the finished ones did not reach it.
///
/// A worker that does not say which of several listeners its finished connections came from leaves
/// open which ones were aborted: then the ones that it does not assign are in no listener's counts.
#[must_use]
pub fn settle(
    given: &[(ListenerId, u64)],
    shares: &[ListenerShare],
    counters: &Counters,
    lost: u64,
) -> Vec<(ListenerId, ListenerEnd)> {
    let mut ends: Vec<(ListenerId, u64, ListenerEnd)> = Vec::new();
    let listeners = given.iter().map(|(id, _)| *id).chain(shares.iter().map(|one| one.listener));
    for id in listeners {
        if ends.iter().any(|(known, ..)| *known == id) {
            continue;
        }
        let share = shares.iter().find(|one| one.listener == id);
        let (own, finished) = share.map_or((0, 0), |one| (one.own, one.finished));
        let given = given.iter().find(|(known, _)| *known == id).map_or(0, |(_, count)| *count);
        let open = (given + own).saturating_sub(finished);
        ends.push((id, open, ListenerEnd { own, finished, aborted: 0 }));
    }
    let told: u64 = ends.iter().map(|(.., end)| end.finished).sum();
    let untold = counters.finished.saturating_sub(lost).saturating_sub(told);
    let is_clear = untold == 0 || ends.iter().filter(|(_, open, _)| *open > 0).count() == 1;
    for (_, open, end) in ends.iter_mut().filter(|_| is_clear) {
        let also = untold.min(*open);
        end.finished += also;
        end.aborted = *open - also;
    }
    ends.into_iter().map(|(id, _, end)| (id, end)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ListenerId = ListenerId::new(0);
    const B: ListenerId = ListenerId::new(u16::MAX - 1);

    fn counters(assigned: u64, finished: u64) -> Counters {
        Counters { assigned, finished, ..Counters::default() }
    }

    fn share(listener: ListenerId, own: u64, finished: u64) -> ListenerShare {
        ListenerShare { listener, own, finished }
    }

    #[test]
    fn counts_are_cut_to_what_is_possible() {
        let mut worker = ByListener::default();
        worker.add(A, 4);
        worker.add(B, 2);
        let seen = |finished| {
            let counters = Counters { finished, ..Counters::default() };
            shares(std::iter::empty(), worker.0.into_iter(), &counters)
        };
        assert_eq!(seen(9), [share(A, 0, 4), share(B, 0, 2)]);
        assert_eq!(seen(5), [share(A, 0, 4), share(B, 0, 1)]);
    }

    #[test]
    fn there_is_room_for_a_few_listeners() {
        let mut table = ByListener::default();
        for id in 0..LISTENERS_MAX {
            let id = ListenerId::new(u16::try_from(id).expect("few"));
            assert!(table.add(id, 1).is_some());
        }
        assert_eq!(table.add(B, 1), None);
        assert_eq!(table.add(A, 2), Some((0, (1 << COUNT_BITS) | 3)));
    }

    #[test]
    fn what_is_open_at_the_end_is_aborted() {
        let end = |own, finished, aborted| ListenerEnd { own, finished, aborted };
        let given = [(A, 10), (B, 4)];
        // It tells all.
        let told = settle(&given, &[share(A, 0, 7), share(B, 0, 4)], &counters(14, 11), 0);
        assert_eq!(told, [(A, end(0, 7, 3)), (B, end(0, 4, 0))]);
        // One of the connections that count as finished did not reach it.
        let lost = settle(&given, &[share(A, 0, 7), share(B, 0, 4)], &counters(14, 12), 1);
        assert_eq!(lost, told);
        // It tells nothing, and serves one listener.
        let one = settle(&given[..1], &[], &counters(10, 8), 0);
        assert_eq!(one, [(A, end(0, 8, 2))]);
        // It tells nothing, and either may be the one whose connections are open.
        let unknown = settle(&given, &[], &counters(14, 11), 0);
        assert_eq!(unknown, [(A, end(0, 0, 0)), (B, end(0, 0, 0))]);
        // It accepts itself.
        let own = settle(&[], &[share(B, 6, 5)], &counters(6, 5), 0);
        assert_eq!(own, [(B, end(6, 5, 1))]);
    }
}
