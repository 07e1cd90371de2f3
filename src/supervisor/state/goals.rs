//! Requests that take a while, and their callers.

use super::{Action, Occupancy, State};
use crate::WorkerId;

/// Identifies a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::supervisor) struct Ticket(pub(in crate::supervisor) u64);

/// Why a request fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::supervisor) enum GoalRefusal {
    /// There is no such worker, or it is leaving already.
    NoSuchWorker(WorkerId),
    /// The run has not begun to serve.
    NotServing,
    /// The run is ending.
    Ending,
    /// The reload has stopped.
    Stopped(String),
    /// A later request has replaced it.
    Superseded,
    /// This many of the slots have no worker, because theirs had too many short lives.
    GivenUp(usize),
}

/// The goal of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// There are this many slots, each with a serving worker or permanently empty, and no other
    /// worker.
    Slots(u16),
    /// The worker has ended.
    End(WorkerId),
    /// The run has ended.
    Over,
}

impl State {
    pub(super) fn finish(&mut self, ticket: Ticket, refusal: Option<GoalRefusal>) {
        self.act(Action::Finish { ticket, refusal });
    }

    pub(super) fn finish_all(&mut self, tickets: Vec<Ticket>, refusal: Option<GoalRefusal>) {
        tickets.into_iter().for_each(|ticket| self.finish(ticket, refusal.clone()));
    }

    pub(super) fn await_goal(&mut self, ticket: Ticket, goal: Goal) {
        self.goals.push((ticket, goal));
        self.look_at_goals();
    }

    /// A caller waits for the end of the run.
    pub(in crate::supervisor) fn await_end(&mut self, ticket: Ticket) {
        self.await_goal(ticket, Goal::Over);
    }

    /// Answers requests whose goal is reached, or has become impossible.
    pub(super) fn look_at_goals(&mut self) {
        if self.goals.is_empty() {
            return;
        }
        for (ticket, goal) in std::mem::take(&mut self.goals) {
            match self.outcome_of(goal) {
                Some(refusal) => self.finish(ticket, refusal),
                None => self.goals.push((ticket, goal)),
            }
        }
    }

    /// Whether a goal is reached, or why it cannot be.
    fn outcome_of(&self, goal: Goal) -> Option<Option<GoalRefusal>> {
        match goal {
            Goal::Slots(count) if usize::from(count) != self.slots.len() => {
                Some(Some(GoalRefusal::Superseded))
            }
            Goal::Slots(count) => {
                let is_surplus = |child: &super::Child| child.slot >= count;
                let settled = self.slots.iter().all(|slot| match slot.occupancy {
                    Occupancy::Empty | Occupancy::GivenUp => true,
                    Occupancy::Waiting { .. } | Occupancy::Spawning => false,
                    Occupancy::Current(worker) => self.is_serving(worker),
                });
                let given_up =
                    self.slots.iter().filter(|slot| slot.occupancy == Occupancy::GivenUp).count();
                let refusal = (given_up > 0).then_some(GoalRefusal::GivenUp(given_up));
                (settled && !self.children.values().any(is_surplus)).then_some(refusal)
            }
            Goal::End(worker) => (!self.children.contains_key(&worker)).then_some(None),
            // The loop reports it, when nothing is left of the cluster either.
            Goal::Over => None,
        }
    }

    /// The run ends: all requests fail, except those for the ends of workers.
    pub(super) fn forget_goals(&mut self) {
        let (ends, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.goals)
            .into_iter()
            .partition(|(_, goal)| matches!(goal, Goal::End(_) | Goal::Over));
        self.goals = ends;
        let tickets = others.into_iter().map(|(ticket, _)| ticket).collect();
        self.finish_all(tickets, Some(GoalRefusal::Ending));
    }
}
