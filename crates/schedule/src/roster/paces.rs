//! What a connection takes each worker, as the loads show it. Pure.

use super::Roster;

/// A worker that is idle and has been passed over for so many connections is tried again, like one
/// of which nothing is known: whatever made it slow may be over.
const TRIED_AGAIN_AFTER: u64 = 1024;

impl Roster {
    /// Learns what connections take from the counters that were read last, once for each time that
    /// they were read.
    pub(super) fn note_paces(&mut self) {
        self.paced_ns = self.observed_ns;
        for (place, worker) in self.workers.iter_mut().enumerate() {
            let Some(worker) = worker else { continue };
            // Counts of another process: cut to what is possible.
            let given = worker.assigned - worker.returned;
            let claimed = worker.sample.claimed.min(given);
            let finished = worker.sample.finished.min(given);
            // One in a turn of its loop works on something, though it may not have told yet what
            // it has claimed.
            let is_working = worker.sample.turn_begun_ns != 0 && finished < given;
            let in_service = claimed.saturating_sub(finished).max(u64::from(is_working));
            worker.pace.look(in_service, finished, self.observed_ns);
            let passed_over = self.assigned - worker.assigned_at;
            let usual_us = worker.pace.usual_us();
            self.loads.change(place, |load| {
                let is_due = passed_over >= TRIED_AGAIN_AFTER && load.in_flight == 0;
                load.usual_us = if is_due { 0 } else { usual_us };
            });
        }
    }
}
