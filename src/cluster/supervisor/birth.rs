//! Workers coming to life: started, heard, given their addresses, admitted to the data path.

use nix::errno::Errno;

use super::super::event::Event;
use super::super::member::{Birth, Member};
use super::{CHANNEL, Occupant, PROCESS, Stage, Supervisor};
use crate::control::{ToPrimary, ToWorker};
use crate::error::{Error, Result};
use crate::id::{Slot, WorkerId};
use crate::primary::Command;
use crate::settings::Policy;
use crate::sys::clock::monotonic_ns;

impl Supervisor<'_> {
    pub(super) fn fork(&mut self, slot: usize) -> Result<()> {
        let id = WorkerId(self.next_id);
        self.next_id += 1;
        let member = Member::start(Birth {
            id,
            slot: Slot(u16::try_from(slot).expect("workers are bounded")),
            cpu: self.plan.workers[slot],
            has_inbox: self.data.is_some(),
            bell: &self.bell,
        })?;
        self.watch(&member.process, PROCESS | u64::from(id.0))?;
        self.watch(&member.channel, CHANNEL | u64::from(id.0))?;
        let event = Event::Fork { id, pid: member.process.pid(), cpu: member.cpu };
        self.places[slot].occupant = Occupant::Alive(Box::new(member));
        self.tell(event);
        Ok(())
    }

    pub(super) fn hear(&mut self, slot: usize) -> Result<()> {
        let Occupant::Alive(member) = &mut self.places[slot].occupant else {
            return Ok(());
        };
        let received = match member.channel.receive::<ToPrimary>() {
            Ok(received) => received,
            Err(error) => {
                let (id, reason) = (member.id, error.to_string());
                let _ = self.epoll.delete(&member.channel);
                self.kill(slot, format!("worker {id}: {reason}"));
                return Ok(());
            }
        };
        if member.channel.is_closed() {
            // The process end tells the rest; a closed channel would be reported for ever.
            let _ = self.epoll.delete(&member.channel);
        } else {
            // A worker that does not read is found out by the bound on what waits for it.
            let _ = member.channel.flush();
        }
        for message in received {
            self.note(slot, message.message)?;
        }
        Ok(())
    }

    pub(super) fn note(&mut self, slot: usize, message: ToPrimary) -> Result<()> {
        let Occupant::Alive(member) = &mut self.places[slot].occupant else {
            return Ok(());
        };
        match message {
            ToPrimary::Online { .. } => {
                member.online = true;
                let event = Event::Online { id: member.id, pid: member.process.pid() };
                self.tell(event);
            }
            ToPrimary::Listen { sequence, address } => self.answer(slot, sequence, &address)?,
            ToPrimary::Ready => self.admit(slot),
            ToPrimary::Leaving => {
                member.leaving = true;
                if let Some(data) = &self.data {
                    data.command(Command::Retire { slot: member.slot });
                }
            }
            ToPrimary::Farewell { handoff } => member.handoff = handoff,
        }
        Ok(())
    }

    pub(super) fn answer(&mut self, slot: usize, sequence: u32, address: &str) -> Result<()> {
        let is_ending = self.is_ending();
        let Occupant::Alive(member) = &mut self.places[slot].occupant else {
            return Ok(());
        };
        let mut descriptors = Vec::new();
        let reply = match self.listeners.find(sequence, address) {
            Some((listener, address)) => {
                if self.data.is_none() {
                    descriptors.push(self.listeners.copy_for(listener, member.slot)?);
                }
                ToWorker::Listening { sequence, listener, address }
            }
            // The listeners are closed because the run is ending, which the worker has been told.
            None if is_ending => return Ok(()),
            None => ToWorker::ListenFailed {
                sequence,
                errno: Errno::EADDRNOTAVAIL as i32,
                reason: format!("listen on {address}, which the primary does not serve"),
            },
        };
        // A failure means that the worker is going; its end is noticed by itself.
        let _ = member.channel.send(&reply, descriptors);
        Ok(())
    }

    /// The worker serves everything: the data path may use it.
    pub(super) fn admit(&mut self, slot: usize) {
        let Occupant::Alive(member) = &mut self.places[slot].occupant else {
            return;
        };
        if member.leaving {
            // Nothing will be handed to it: it sees the end of its inbox at once.
            member.link = None;
            return;
        }
        member.ready = true;
        if let (Some(data), Some(link)) = (&self.data, member.link.take()) {
            data.command(Command::Attach { slot: member.slot, link });
            for (listener, _) in self.listeners.addresses() {
                data.command(Command::Join { slot: member.slot, listener });
            }
        }
        let everybody = self
            .places
            .iter()
            .all(|place| matches!(&place.occupant, Occupant::Alive(member) if member.ready));
        if everybody && matches!(self.stage, Stage::Starting { .. }) {
            self.announce();
        }
    }

    pub(super) fn announce(&mut self) {
        self.stage = Stage::Serving;
        if let Some(data) = &self.data {
            data.command(Command::Open);
        }
        let none = self.settings.policy == Policy::None;
        let events: Vec<Event> = self
            .listeners
            .addresses()
            .map(|(listener, address)| Event::Listening {
                address: address.to_owned(),
                listener,
                policy: self.settings.policy,
                accept: none.then_some(self.settings.accept),
                engine: "io_uring",
                feature_level: self.level,
                workers: self.places.len(),
                pid: std::process::id(),
                cpu: self.plan.primary,
            })
            .collect();
        events.into_iter().for_each(|event| self.tell(event));
    }

    /// Starts a successor; if that fails for want of something, tries again later.
    pub(super) fn fork_again(&mut self, slot: usize) -> Result<()> {
        match self.fork(slot) {
            Err(Error::System { step, source: Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE }) => {
                let at_ns = monotonic_ns() + 1_000_000_000;
                self.places[slot].occupant = Occupant::Awaited { at_ns };
                self.tell(Event::Note { text: format!("{step} failed; trying again in 1 s") });
                Ok(())
            }
            result => result,
        }
    }
}
