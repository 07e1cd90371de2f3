//! The time per connection of each worker, for the loads. Pure.

use super::Roster;

/// An idle worker that was skipped for this many connections is tried again, like an unknown one:
/// the cause of its slowness may have ended.
const TRIED_AGAIN_AFTER: u64 = 1024;

impl Roster {
    /// Learns times per connection from the last counters, once per reading.
    pub(super) fn note_paces(&mut self) {
        self.paced_ns = self.observed_ns;
        for (place, worker) in self.workers.iter_mut().enumerate() {
            let Some(worker) = worker else { continue };
            // Another process wrote these counts: limit them to what is possible.
            let given = worker.assigned - worker.returned;
            let claimed = worker.sample.claimed.min(given);
            let finished = worker.sample.finished.min(given);
            // A worker in a turn of its loop works on a connection, though its claim may not be
            // published yet.
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
