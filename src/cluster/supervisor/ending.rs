//! The run's end: nothing new, then what is open, then force.

use nix::sys::signal::Signal;

use super::super::event::Event;
use super::{ECHO_NS, Occupant, Stage, Supervisor};
use crate::control::ToWorker;
use crate::error::Error;
use crate::primary::Command;
use crate::sys::clock::monotonic_ns;

impl Supervisor<'_> {
    pub(super) fn stop(&mut self, signal: Signal) {
        match self.stage {
            Stage::Starting { .. } | Stage::Serving => self.begin_stop(signal.as_str().to_owned()),
            // `timeout` and some service managers signal the process and its group at once.
            _ if monotonic_ns() < self.stopped_ns + ECHO_NS => {}
            Stage::Quiescing { .. } | Stage::Draining => {
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
        for place in &mut self.places {
            if matches!(place.occupant, Occupant::Awaited { .. }) {
                place.occupant = Occupant::Nobody;
            }
        }
        // The data path closes its own references; with these gone the ports are free.
        let listeners: Vec<_> = self.listeners.addresses().map(|(listener, _)| listener).collect();
        self.listeners.close();
        // Told before everything has been handed over: workers at their limit make room for it
        // only if they no longer keep connections.
        for slot in 0..self.places.len() {
            self.send_drain(slot);
        }
        match &self.data {
            Some(data) => {
                self.stage = Stage::Quiescing { left: listeners.len() };
                for listener in listeners {
                    data.command(Command::RemoveListener { listener });
                }
            }
            None => self.stage = Stage::Draining,
        }
    }

    /// Everything has been handed over: the workers see the end of their inboxes.
    pub(super) fn drain(&mut self) {
        self.stage = Stage::Draining;
        for slot in 0..self.places.len() {
            self.retire(slot);
        }
    }

    pub(super) fn retire(&mut self, slot: usize) {
        let Occupant::Alive(member) = &mut self.places[slot].occupant else {
            return;
        };
        // One that never became ready holds its own link; dropping it ends its inbox.
        member.link = None;
        if let Some(data) = &self.data {
            data.command(Command::Retire { slot: member.slot });
        }
    }

    pub(super) fn send_drain(&mut self, slot: usize) {
        let left_ns = self.cut_ns.unwrap_or(0).saturating_sub(monotonic_ns());
        let Occupant::Alive(member) = &mut self.places[slot].occupant else {
            return;
        };
        member.leaving = true;
        // A failure means that the worker is going; its end is noticed by itself.
        let _ = member.channel.send(&ToWorker::Drain { grace_ms: left_ns / 1_000_000 }, vec![]);
    }

    pub(super) fn kill(&mut self, slot: usize, reason: String) {
        let Occupant::Alive(member) = &mut self.places[slot].occupant else {
            return;
        };
        if !member.killed {
            member.killed = true;
            member.process.signal(Signal::SIGKILL);
            let ids = vec![member.id];
            self.tell(Event::Kill { ids, reason });
        }
    }

    pub(super) fn kill_all(&mut self, reason: String) {
        self.stage = Stage::Killing;
        self.listeners.close();
        let mut ids = Vec::new();
        for place in &mut self.places {
            match &mut place.occupant {
                Occupant::Alive(member) if !member.killed => {
                    member.killed = true;
                    member.process.signal(Signal::SIGKILL);
                    ids.push(member.id);
                }
                Occupant::Awaited { .. } => place.occupant = Occupant::Nobody,
                _ => {}
            }
        }
        if !ids.is_empty() {
            self.tell(Event::Kill { ids, reason });
        }
    }

    pub(super) fn is_ending(&self) -> bool {
        matches!(self.stage, Stage::Quiescing { .. } | Stage::Draining | Stage::Killing)
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_ending()
            && self.places.iter().all(|place| matches!(place.occupant, Occupant::Nobody))
    }
}
