//! The run's end: nothing new, then what is open, then force.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::{ECHO_NS, Event, Keeper, Occupant, Stage};
use clusterlb::Error;
use clusterlb_sys::clock::monotonic_ns;

impl Keeper<'_> {
    pub(super) fn stop(&mut self, signal: Signal, reason: String) {
        match self.stage {
            Stage::Starting { .. } | Stage::Serving => self.begin_stop(reason),
            // `timeout` and some service managers signal the process and its group at once.
            _ if monotonic_ns() < self.stopped_ns + ECHO_NS => {}
            Stage::Draining => {
                self.forced_by = Some(signal);
                self.kill_all(format!("a second signal, {}", signal.as_str()));
            }
            Stage::Killing => {}
        }
    }

    pub(super) fn fail(&mut self, error: Error) {
        if self.failure.is_none() {
            self.failure = Some(error);
        }
        self.kill_all("the run cannot go on".into());
    }

    pub(super) fn begin_stop(&mut self, reason: String) {
        let grace_ms = u64::try_from(self.settings.grace.as_millis()).unwrap_or(u64::MAX);
        self.tell(Event::Draining { reason, grace_ms });
        self.stopped_ns = monotonic_ns();
        self.cut_ns = Some(self.stopped_ns.saturating_add(grace_ms.saturating_mul(1_000_000)));
        self.stage = Stage::Draining;
        self.rolling = None;
        self.await_nobody();
        // Its end is known by the exits of the workers.
        drop(self.cluster.disconnect_within(Duration::from_millis(grace_ms)));
    }

    fn await_nobody(&mut self) {
        for place in &mut self.places {
            if matches!(place.occupant, Occupant::Awaited { .. }) {
                place.occupant = Occupant::Nobody;
            }
        }
    }

    pub(super) fn kill_all(&mut self, reason: String) {
        self.stage = Stage::Killing;
        self.await_nobody();
        let mut ids = Vec::new();
        for place in &mut self.places {
            if let Occupant::Alive(ward) = &mut place.occupant
                && !ward.killed
            {
                ward.killed = true;
                // It runs as we do, so this can only fail if it has ended by itself.
                let _ = ward.worker.kill_group();
                ids.push(ward.worker.id());
            }
        }
        if !ids.is_empty() {
            self.tell(Event::Kill { ids, reason });
        }
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Draining | Stage::Killing)
            && self.places.iter().all(|place| matches!(place.occupant, Occupant::Nobody))
    }
}
