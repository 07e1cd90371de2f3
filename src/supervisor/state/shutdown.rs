//! The end of a run: stop accepting, finish open connections, then kill. Also handles all
//! deadlines.

use std::time::Duration;

use super::{Action, DelayedStop, Failure, KILL_SLACK_NS, Occupancy, RunStage, State};
use crate::WorkerId;
use crate::supervisor::event::SupervisorEvent;
use crate::supervisor::restart::ns;

/// A signal that follows the first this closely is its echo, not a second one.
const ECHO_NS: u64 = 50_000_000;

impl State {
    /// Ends the run in order; a second call that is not an echo of the first ends it at once.
    /// Returns whether it does.
    pub(in crate::supervisor) fn stop_or_force(&mut self, reason: &str, now_ns: u64) -> bool {
        if self.stage == RunStage::Serving && self.delays_stop(reason, now_ns) {
            return false;
        }
        match self.stage {
            RunStage::Starting { .. } | RunStage::Serving => {
                self.stop(reason.to_owned(), self.rules.grace, now_ns);
                false
            }
            // `timeout` and some service managers signal the process and its group at once.
            RunStage::Draining { since_ns, .. } if now_ns < since_ns.saturating_add(ECHO_NS) => {
                false
            }
            RunStage::Draining { .. } => {
                self.kill_all(format!("a second signal, {reason}"));
                true
            }
            RunStage::Killing => false,
        }
    }

    /// Keeps serving until balancers have noticed. A second request, unless it is an echo, ends
    /// that.
    fn delays_stop(&mut self, reason: &str, now_ns: u64) -> bool {
        if let Some(stop) = &self.delayed_stop {
            return now_ns < stop.since_ns.saturating_add(ECHO_NS);
        }
        let delay = self.rules.drain_delay;
        if delay.is_zero() {
            return false;
        }
        let reason = reason.to_owned();
        self.emit(SupervisorEvent::Stopping { reason: reason.clone(), delay });
        let at_ns = now_ns.saturating_add(ns(delay));
        self.delayed_stop = Some(DelayedStop { reason, since_ns: now_ns, at_ns });
        self.changed = true;
        true
    }

    /// Whether the end was requested, and serving continues for a while.
    pub(in crate::supervisor) fn is_stopping(&self) -> bool {
        self.delayed_stop.is_some() && self.stage == RunStage::Serving
    }

    /// Ends the run in order: workers finish their connections within this time.
    pub(in crate::supervisor) fn stop(&mut self, reason: String, grace: Duration, now_ns: u64) {
        if !matches!(self.stage, RunStage::Starting { .. } | RunStage::Serving) {
            return;
        }
        self.delayed_stop = None;
        self.emit(SupervisorEvent::Draining { reason, grace });
        let cut_ns = now_ns.saturating_add(ns(grace)).saturating_add(KILL_SLACK_NS);
        self.stage = RunStage::Draining { since_ns: now_ns, cut_ns };
        self.forget_rolling();
        self.forget_goals();
        self.await_no_one();
        self.act(Action::DisconnectAll { grace });
    }

    /// The run cannot continue.
    pub(super) fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
        self.kill_all("the run cannot go on".into());
    }

    /// Kills a worker. It is replaced like others that end.
    pub(in crate::supervisor) fn kill(&mut self, worker: WorkerId, reason: String) {
        let Some(child) = self.children.get_mut(&worker) else { return };
        if !std::mem::replace(&mut child.killed, true) {
            self.act(Action::Kill { worker });
            self.emit(SupervisorEvent::Killed { workers: vec![worker], reason });
        }
    }

    /// Kills every worker.
    pub(in crate::supervisor) fn kill_all(&mut self, reason: String) {
        self.stage = RunStage::Killing;
        self.forget_rolling();
        self.forget_goals();
        self.await_no_one();
        let alive = self.children.iter_mut().filter(|(_, child)| !child.killed);
        let workers: Vec<WorkerId> = alive
            .map(|(worker, child)| {
                child.killed = true;
                *worker
            })
            .collect();
        workers.iter().for_each(|worker| self.act(Action::Kill { worker: *worker }));
        if !workers.is_empty() {
            self.emit(SupervisorEvent::Killed { workers, reason });
        }
    }

    fn await_no_one(&mut self) {
        for slot in &mut self.slots {
            if matches!(slot.occupancy, Occupancy::Waiting { .. } | Occupancy::Spawning) {
                slot.occupancy = Occupancy::Empty;
            }
        }
        // Drops decisions that were not carried out yet.
        self.actions.retain(|action| !matches!(action, Action::Spawn { .. }));
        self.starts.clear();
    }

    /// Whether no worker is left and none will come.
    pub(in crate::supervisor) fn is_over(&self) -> bool {
        matches!(self.stage, RunStage::Draining { .. } | RunStage::Killing)
            && self.children.is_empty()
    }

    /// The next deadline.
    pub(in crate::supervisor) fn next_deadline_ns(&self, now_ns: u64) -> Option<u64> {
        let waiting = self.slots.iter().filter_map(|slot| match slot.occupancy {
            Occupancy::Waiting { at_ns } => Some(at_ns),
            _ => None,
        });
        let stop = match self.stage {
            RunStage::Draining { cut_ns, .. } => Some(cut_ns),
            _ => None,
        };
        let alive = self.children.values().filter(|child| !child.killed);
        let children = alive.flat_map(|child| {
            let hung = child.hung_since_ns.zip(self.rules.hang_kill_ns);
            let hung = hung.map(|(since_ns, limit_ns)| since_ns.saturating_add(limit_ns));
            [hung, child.cut_ns, child.lost_ns].into_iter().flatten()
        });
        let delayed = self.delayed_stop.as_ref().map(|stop| stop.at_ns);
        let others = [stop, delayed, self.start_deadline_ns(now_ns), self.rolling_deadline_ns()];
        waiting.chain(children).chain(others.into_iter().flatten()).min()
    }

    /// Acts on deadlines.
    pub(in crate::supervisor) fn on_time(&mut self, now_ns: u64) {
        let is_over = |time_ns: Option<u64>| time_ns.is_some_and(|time_ns| time_ns <= now_ns);
        let limit_ns = self.rules.hang_kill_ns;
        let (mut hung, mut cut, mut lost) = (Vec::new(), Vec::new(), Vec::new());
        for (worker, child) in self.children.iter_mut().filter(|(_, child)| !child.killed) {
            let limit = child.hung_since_ns.zip(limit_ns);
            if is_over(limit.map(|(since_ns, limit_ns)| since_ns.saturating_add(limit_ns))) {
                hung.push(*worker);
            } else if is_over(child.cut_ns) {
                cut.push(*worker);
            } else if is_over(child.lost_ns) {
                child.lost_ns = None;
                lost.push(*worker);
            }
        }
        hung.into_iter().for_each(|one| self.kill(one, "it has hung for too long".into()));
        cut.into_iter().for_each(|one| self.kill(one, "the grace period is over".into()));
        if self.stage == RunStage::Serving {
            // Whether they were used is unknown, and does not matter for a lost worker.
            lost.into_iter().for_each(|one| self.give_up_worker(one, false, true, now_ns));
        }
        self.on_rolling_time(now_ns);
        self.on_start_time(now_ns);
        if let Some(stop) = self.delayed_stop.take_if(|stop| stop.at_ns <= now_ns) {
            self.stop(stop.reason, self.rules.grace, now_ns);
        }
        if matches!(self.stage, RunStage::Draining { cut_ns, .. } if cut_ns <= now_ns) {
            self.kill_all("the grace period is over".into());
        }
        self.fill_slots(now_ns);
    }
}
