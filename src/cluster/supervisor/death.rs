//! Workers that have ended: reaped, entered into the books, replaced or not.

use super::super::event::{Event, code_and_signal};
use super::super::member::Member;
use super::super::restart::{Decision, budget_in_words};
use super::super::summary::WorkerSummary;
use super::{Occupant, Stage, Supervisor};
use crate::board::{Statistic, Tally};
use crate::error::{Error, Result};
use crate::primary::{Command, Report};
use crate::sys::clock::monotonic_ns;
use crate::sys::process::Ending;

impl Supervisor<'_> {
    pub(super) fn reap(&mut self, slot: usize) -> Result<()> {
        // What it said last may still be in the channel.
        self.hear(slot)?;
        let Occupant::Alive(member) = &mut self.places[slot].occupant else {
            return Ok(());
        };
        let Some(ending) = member.process.try_wait()? else {
            return Ok(());
        };
        let _ = self.epoll.delete(&member.process);
        let attached = member.ready && member.link.is_none();
        match &self.data {
            Some(data) if attached => {
                data.command(Command::Bury { slot: member.slot });
                let occupant = std::mem::take(&mut self.places[slot].occupant);
                if let Occupant::Alive(member) = occupant {
                    self.places[slot].occupant = Occupant::Ended(member, ending);
                }
            }
            _ => {
                let tally = member.view.tally(self.data.is_none());
                let occupant = std::mem::take(&mut self.places[slot].occupant);
                if let Occupant::Alive(member) = occupant {
                    self.bury(slot, *member, ending, tally);
                }
            }
        }
        Ok(())
    }

    pub(super) fn heed(&mut self, report: Report) {
        match report {
            Report::Buried { slot, tally } => {
                let slot = slot.index();
                let occupant = std::mem::take(&mut self.places[slot].occupant);
                match occupant {
                    Occupant::Ended(member, ending) => self.bury(slot, *member, ending, tally),
                    other => self.places[slot].occupant = other,
                }
            }
            Report::Hung { slot, taken_back } => self.note_hang(slot.index(), taken_back),
            Report::Recovered { slot } => self.note_recovery(slot.index()),
            Report::ListenerRemoved { .. } => match &mut self.stage {
                Stage::Quiescing { left: 1 } => self.drain(),
                Stage::Quiescing { left } => *left -= 1,
                _ => {}
            },
            Report::Left { .. } => {}
            Report::Ended(totals) => {
                self.summary.accepted = totals.accepted;
                self.summary.refused = totals.refused;
                self.summary.redispatched = totals.redispatched;
                self.summary.dropped = totals.dropped;
                self.summary.pauses = totals.pauses;
                self.summary.paused_ms = totals.paused_ns / 1_000_000;
                self.summary.skips = totals.skips;
            }
        }
    }

    fn note_hang(&mut self, slot: usize, taken_back: u32) {
        let Occupant::Alive(member) = &mut self.places[slot].occupant else { return };
        member.hung_since_ns = Some(monotonic_ns());
        let event = Event::Hung { id: member.id, pid: member.process.pid(), taken_back };
        self.tell(event);
    }

    fn note_recovery(&mut self, slot: usize) {
        let Occupant::Alive(member) = &mut self.places[slot].occupant else { return };
        if member.hung_since_ns.take().is_some() {
            let event = Event::Recovered { id: member.id, pid: member.process.pid() };
            self.tell(event);
        }
    }

    /// Ends workers that have hung for too long; they are replaced like others that end.
    pub(super) fn kill_hung(&mut self, now_ns: u64) {
        for slot in 0..self.places.len() {
            if self.hang_deadline_ns(slot).is_some_and(|deadline_ns| deadline_ns <= now_ns) {
                self.kill(slot, "it has hung for too long".into());
            }
        }
    }

    pub(super) fn hang_deadline_ns(&self, slot: usize) -> Option<u64> {
        let limit = u64::try_from(self.settings.hang_kill?.as_nanos()).unwrap_or(u64::MAX);
        match &self.places[slot].occupant {
            Occupant::Alive(member) if !member.killed => {
                member.hung_since_ns.map(|since_ns| since_ns.saturating_add(limit))
            }
            _ => None,
        }
    }

    /// Enters an ended worker into the books and decides about a successor.
    pub(super) fn bury(&mut self, slot: usize, member: Member, ending: Ending, tally: Tally) {
        let mut entry = WorkerSummary::new(member.id, member.process.pid(), member.cpu, tally);
        entry.requests = member.view.statistic(Statistic::Requests);
        entry.handoff = member.handoff;
        let truncated = member.view.statistic(Statistic::Truncated).min(entry.finished);
        entry.finished -= truncated;
        entry.aborted += truncated;
        let (code, signal) = code_and_signal(ending);
        let (id, pid, aborted) = (member.id, entry.pid, entry.aborted);
        self.summary.enter(entry);
        self.tell(Event::Exit { id, pid, code, signal, aborted });
        match self.stage {
            Stage::Starting { .. } if matches!(ending, Ending::Code(2 | 3)) && !member.ready => {
                // It has said why; the next one would say the same.
                self.fail(Error::Workers {
                    what: format!("worker {id} could not start"),
                    hint: "its own message says why".into(),
                });
            }
            Stage::Starting { .. } | Stage::Serving => self.replace(slot, &member, ending),
            Stage::Quiescing { .. } | Stage::Draining | Stage::Killing => {}
        }
    }

    pub(super) fn replace(&mut self, slot: usize, member: &Member, ending: Ending) {
        let now_ns = monotonic_ns();
        let restart = self.settings.restart;
        let place = &mut self.places[slot];
        let id = member.id;
        match place.budget.after_end(restart, ending, member.born_ns, now_ns) {
            Decision::After { delay_ns } => {
                place.occupant = Occupant::Awaited { at_ns: now_ns + delay_ns };
                self.tell(Event::Respawn { id, delay_ms: delay_ns / 1_000_000 });
            }
            Decision::Leave => self.lost_worker |= ending != Ending::Code(0),
            Decision::GiveUp => {
                self.lost_worker = true;
                self.tell(Event::GiveUp { id, reason: budget_in_words() });
            }
        }
        let deserted = self.places.iter().all(|place| matches!(place.occupant, Occupant::Nobody));
        if deserted {
            if self.lost_worker {
                self.failure = Some(Error::Workers {
                    what: "no worker is left, and none will be started".into(),
                    hint: "the exit events above say how they ended; --restart always replaces \
                           them, within a budget"
                        .into(),
                });
            }
            self.begin_stop("no worker is left".into());
        }
    }
}
