//! The data path's counts, which other threads can read while it works.
//!
//! One writer, which stores all of them once per turn and never waits. A reader gets each count as
//! of some recent moment, not all of the same one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::listener_counts::Directory;
use super::{ClusterCounts, ListenerCounts};
use crate::id::ListenerId;
use crate::schedule::{Changes, Skips};

const WORDS: usize = 22;

/// The counts of one data path, from before its start to after its end.
#[derive(Debug, Default)]
pub struct LiveCounts {
    words: [AtomicU64; WORDS],
    pub(super) listeners: Directory,
}

impl LiveCounts {
    /// Stores these counts for readers.
    pub fn publish(&self, mut counts: ClusterCounts) {
        for (word, count) in self.words.iter().zip(fields(&mut counts)) {
            word.store(*count, Ordering::Relaxed);
        }
    }

    /// The counts published last.
    #[must_use]
    pub fn read(&self) -> ClusterCounts {
        let mut counts = ClusterCounts::default();
        for (count, word) in fields(&mut counts).into_iter().zip(&self.words) {
            *count = word.load(Ordering::Relaxed);
        }
        counts
    }

    /// The counts of each present listener.
    #[must_use]
    pub fn read_listeners(&self) -> BTreeMap<ListenerId, ListenerCounts> {
        self.listeners.read()
    }
}

fn fields(counts: &mut ClusterCounts) -> [&mut u64; WORDS] {
    // Names every field, so that a new one is not forgotten here.
    let ClusterCounts {
        accepted,
        stolen,
        refused,
        redispatched,
        taken_back,
        dropped,
        waiting,
        pauses,
        paused_ns,
        coalesced,
        steered,
        skips,
        overflows,
    } = counts;
    let Skips { dead, hung, draining, full, at_limit, out_of_credits, above_average, fallbacks } =
        skips;
    let Changes { workers, stalls, loads } = steered;
    [
        accepted,
        stolen,
        refused,
        redispatched,
        taken_back,
        dropped,
        waiting,
        pauses,
        paused_ns,
        coalesced,
        overflows,
        workers,
        stalls,
        loads,
        dead,
        hung,
        draining,
        full,
        at_limit,
        out_of_credits,
        above_average,
        fallbacks,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_count_is_read_as_it_was_published() {
        let mut counts = ClusterCounts::default();
        for (number, count) in (1..).zip(fields(&mut counts)) {
            *count = number;
        }
        let live = LiveCounts::default();
        assert_eq!(live.read(), ClusterCounts::default());
        live.publish(counts);
        assert_eq!(live.read(), counts);
        assert_eq!((counts.accepted, counts.skips.fallbacks), (1, WORDS as u64));
    }
}
