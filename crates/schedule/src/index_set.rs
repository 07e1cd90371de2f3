//! A set of small numbers, which holds a worker's listeners.
//!
//! Owns the representation: one word for the first 64, so that a lookup among few listeners reads
//! no other memory, and further words only when needed. Bounded by its caller.

const WORD_BITS: usize = 64;

/// A set of numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IndexSet {
    first: u64,
    /// For the numbers from 64 on; `None` if there are none, so that equal sets compare equal.
    further: Option<Box<Further>>,
}

/// The words for further numbers. Boxed, so that a set of few numbers is small.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Further {
    /// The last word is never zero.
    words: Vec<u64>,
}

impl IndexSet {
    #[inline]
    pub(crate) fn contains(&self, index: usize) -> bool {
        match index.checked_sub(WORD_BITS) {
            None => self.first & (1 << index) != 0,
            Some(rest) => {
                let word = self.further().get(rest / WORD_BITS).copied().unwrap_or(0);
                word & (1 << (rest % WORD_BITS)) != 0
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first == 0 && self.further().is_empty()
    }

    /// Whether a number is in both.
    pub(crate) fn meets(&self, other: &Self) -> bool {
        let mut pairs = self.further().iter().zip(other.further());
        self.first & other.first != 0 || pairs.any(|(own, other)| own & other != 0)
    }

    fn further(&self) -> &[u64] {
        self.further.as_ref().map_or(&[], |further| &further.words)
    }

    pub(crate) fn insert(&mut self, index: usize) {
        let Some(rest) = index.checked_sub(WORD_BITS) else {
            self.first |= 1 << index;
            return;
        };
        let words = &mut self.further.get_or_insert_default().words;
        let place = rest / WORD_BITS;
        if place >= words.len() {
            words.resize(place + 1, 0);
        }
        words[place] |= 1 << (rest % WORD_BITS);
    }

    pub(crate) fn remove(&mut self, index: usize) {
        let Some(rest) = index.checked_sub(WORD_BITS) else {
            self.first &= !(1 << index);
            return;
        };
        let Some(further) = &mut self.further else { return };
        if let Some(word) = further.words.get_mut(rest / WORD_BITS) {
            *word &= !(1 << (rest % WORD_BITS));
        }
        while further.words.last() == Some(&0) {
            further.words.pop();
        }
        if further.words.is_empty() {
            self.further = None;
        }
    }
}

impl FromIterator<usize> for IndexSet {
    fn from_iter<I: IntoIterator<Item = usize>>(indices: I) -> Self {
        let mut set = Self::default();
        indices.into_iter().for_each(|index| set.insert(index));
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const MOST: usize = 200;

    proptest! {
        #[test]
        fn it_behaves_as_a_set_and_equal_sets_are_equal(
            steps in prop::collection::vec((any::<bool>(), 0..MOST), 0..200),
        ) {
            let (mut set, mut model) = (IndexSet::default(), BTreeSet::new());
            for (is_insertion, index) in steps {
                if is_insertion {
                    set.insert(index);
                    model.insert(index);
                } else {
                    set.remove(index);
                    model.remove(&index);
                }
                let same = (0..MOST).all(|index| set.contains(index) == model.contains(&index));
                prop_assert!(same);
                prop_assert_eq!(&set, &model.iter().copied().collect());
                prop_assert_eq!(set.is_empty(), model.is_empty());
                prop_assert_eq!(set.meets(&[index].into_iter().collect()), model.contains(&index));
            }
            model.iter().for_each(|index| set.remove(*index));
            prop_assert_eq!(set, IndexSet::default());
        }
    }
}
