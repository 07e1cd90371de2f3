//! The time per connection of each worker, for the loads. Pure.

use super::{Roster, WorkerEntry};
use crate::compared_times;

/// An idle worker that was skipped for this many connections is tried again, like an unknown one:
/// the cause of its slowness may have ended.
const TRIED_AGAIN_AFTER: u64 = 1024;

impl Roster {
    /// Learns times per connection from the last counters, once per reading.
    pub(super) fn update_paces(&mut self) {
        self.paced_ns = self.observed_ns;
        for (place, worker) in self.workers.iter_mut().enumerate() {
            let Some(worker) = worker else { continue };
            // Another process wrote these counts: limit them to what is possible.
            let sample = worker.sample;
            let given = worker.assigned - worker.returned;
            if sample.own > 0 {
                // Nothing is read when its connections arrive, but it measures itself.
                let finished = sample.finished.min(given.saturating_add(sample.own));
                worker.pace.read(sample.open_us, finished, self.observed_ns);
            } else {
                look(worker, given, self.observed_ns);
            }
            let passed_over = self.assigned - worker.assigned_at;
            let usual_us = worker.pace.usual_us();
            self.loads.change(place, |load| {
                let is_due = passed_over >= TRIED_AGAIN_AFTER && load.in_flight == 0;
                load.usual_us = if is_due { 0 } else { usual_us };
            });
        }
    }

    /// What [`Policy::Fastest`](crate::Policy) multiplies by, for each slot.
    pub fn compared_times(&mut self) -> impl Iterator<Item = u64> {
        self.update_paces();
        compared_times(&self.loads)
    }
}

/// Learns from what a worker has in service at this moment.
fn look(worker: &mut WorkerEntry, given: u64, now_ns: u64) {
    let claimed = worker.sample.claimed.min(given);
    let finished = worker.sample.finished.min(given);
    // A worker in a turn of its loop works on a connection, though its claim may not be published
    // yet.
    let is_working = worker.sample.turn_begun_ns != 0 && finished < given;
    let in_service = claimed.saturating_sub(finished).max(u64::from(is_working));
    worker.pace.look(in_service, finished, now_ns);
}
