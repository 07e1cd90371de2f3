//! Rate limit for notes that a worker can cause at will. Pure: time is an argument.
//!
//! Owns the bound: some notes per worker at once, then a summary per second.

use std::collections::BTreeMap;
use std::time::Duration;

use clusterlb::WorkerId;

/// Notes of a worker per second.
const NOTES_MAX: u32 = 16;
/// A second.
const WINDOW: Duration = Duration::from_secs(1);

/// Recent notes of each worker.
#[derive(Debug, Default)]
pub(super) struct NoteLimit {
    windows: BTreeMap<WorkerId, NoteWindow>,
}

#[derive(Debug)]
struct NoteWindow {
    begun: Duration,
    admitted: u32,
    left_out: u64,
}

impl NoteLimit {
    /// Whether one more note of a worker is printed; otherwise it is counted.
    pub(super) fn admits(&mut self, worker: WorkerId, now: Duration) -> bool {
        let new = NoteWindow { begun: now, admitted: 0, left_out: 0 };
        let window = self.windows.entry(worker).or_insert(new);
        let admits = window.admitted < NOTES_MAX;
        window.admitted += u32::from(admits);
        window.left_out += u64::from(!admits);
        admits
    }

    /// Counts of notes left out in past seconds, by worker.
    pub(super) fn overdue(&mut self, now: Duration) -> Vec<(WorkerId, u64)> {
        let mut overdue = Vec::new();
        self.windows.retain(|worker, window| {
            if now.saturating_sub(window.begun) < WINDOW {
                return true;
            }
            if window.left_out > 0 {
                overdue.push((*worker, window.left_out));
            }
            // A worker that continues gets its next note after the next second.
            let goes_on = window.left_out > 0;
            *window = NoteWindow { begun: now, admitted: NOTES_MAX, left_out: 0 };
            goes_on
        });
        overdue
    }

    /// Count of notes left out of an ended worker.
    pub(super) fn forget(&mut self, worker: WorkerId) -> u64 {
        self.windows.remove(&worker).map_or(0, |window| window.left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: WorkerId = WorkerId::new(1);
    const OTHER: WorkerId = WorkerId::new(2);

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_flood_is_summed_up_and_others_are_told() {
        let mut limit = NoteLimit::default();
        let told = (0..1000).filter(|_| limit.admits(ONE, at(5))).count();
        assert_eq!((told, limit.admits(OTHER, at(5))), (16, true));
        assert!(limit.overdue(at(900)).is_empty());
        assert_eq!(limit.overdue(at(1005)), [(ONE, 984)]);
        assert!(!limit.admits(ONE, at(1100)) && limit.admits(OTHER, at(1100)));
        assert_eq!(limit.overdue(at(2100)), [(ONE, 1)]);
        assert!(limit.overdue(at(3200)).is_empty());
        assert!(limit.admits(ONE, at(3300)), "it has been quiet for a second");
        (0..100).for_each(|_| _ = limit.admits(ONE, at(3300)));
        assert_eq!((limit.forget(ONE), limit.forget(ONE)), (85, 0));
    }
}
