//! What workers say.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::ControlPlane;
use crate::cluster::{Event, Message};
use crate::data_path::Command;
use crate::id::{ListenerId, Slot, WorkerId};
use crate::protocol::control::{Body, Received, ToPrimary, ToWorker};
use crate::protocol::handoff::Record;

impl ControlPlane {
    /// Reads what a worker has said, unless somebody who wants events is too far behind.
    pub(crate) fn hear(&mut self, id: WorkerId) {
        let Some(worker_entry) =
            self.workers.get_mut(&id).filter(|worker_entry| worker_entry.connected)
        else {
            // The event of a descriptor that was closed in this very round.
            return;
        };
        if self.bus.is_held_up() {
            worker_entry.reads = false;
            worker_entry.adjust(&self.epoll);
            return;
        }
        self.read(id);
    }

    /// Begins to read again where that was stopped because somebody was behind.
    pub(crate) fn read_again(&mut self) {
        if self.workers.values().all(|worker_entry| worker_entry.reads) || self.bus.is_held_up() {
            return;
        }
        for worker_entry in self.workers.values_mut() {
            worker_entry.reads = true;
            if worker_entry.connected {
                worker_entry.adjust(&self.epoll);
            }
        }
    }

    /// Reads once. Tells whether there was something.
    pub(crate) fn read(&mut self, id: WorkerId) -> bool {
        let Some(worker_entry) = self.workers.get_mut(&id) else { return false };
        let mut frames: Vec<Received<ToPrimary>> = Vec::new();
        let Some(incoming) = &mut worker_entry.incoming else { return false };
        let outcome = incoming.receive(&mut frames);
        let closed = incoming.is_closed();
        let heard = !frames.is_empty();
        for frame in frames {
            self.note(id, frame);
        }
        if let Err(error) = outcome {
            let worker = self.workers.get(&id).map(|worker_entry| worker_entry.handle());
            self.tell(Event::Error { worker, error: Arc::new(error) });
            self.part_with(id);
        } else if closed {
            self.part_with(id);
        }
        heard
    }

    fn note(&mut self, id: WorkerId, frame: Received<ToPrimary>) {
        let Some(worker_entry) = self.workers.get_mut(&id) else { return };
        let worker = worker_entry.handle();
        match frame.body {
            Body::Message { serialization, bytes } => {
                let message = Message::new(serialization, bytes, frame.descriptors, frame.lost);
                self.tell(Event::Message { worker, message });
            }
            Body::Word(ToPrimary::Online { .. }) => self.tell(Event::Online { worker }),
            Body::Word(ToPrimary::Listen { sequence, address, options }) => {
                self.listen(id, sequence, &address, options);
            }
            Body::Word(ToPrimary::Serving { listener }) => self.serve(id, listener),
            Body::Word(ToPrimary::Close { listener }) => self.close(id, listener),
            Body::Word(ToPrimary::Return { listener, accepted_ns }) => {
                self.take_return(id, Record { listener, accepted_ns }, frame.descriptors);
            }
            Body::Word(ToPrimary::Leaving) => self.leaves(id),
            Body::Word(ToPrimary::Farewell { handoff }) => worker_entry.handoff = handoff,
        }
    }

    fn take_return(&mut self, id: WorkerId, record: Record, descriptors: Vec<OwnedFd>) {
        let Some(slot) = self.workers.get(&id).map(|worker_entry| worker_entry.slot) else {
            return;
        };
        for socket in descriptors {
            self.command(Command::Return { slot, sockets: vec![(socket, record)], backoff_ns: 0 });
        }
    }

    /// Says something to a worker. A failure means that it is going, or does not read and will be
    /// found out by its end.
    pub(crate) fn say(&mut self, id: WorkerId, word: &ToWorker, descriptors: Vec<OwnedFd>) {
        let Some(worker_entry) =
            self.workers.get_mut(&id).filter(|worker_entry| worker_entry.connected)
        else {
            return;
        };
        // The bridge speaks to Node workers.
        let Some(mut outgoing) = worker_entry.shared.outgoing() else { return };
        let sent = outgoing.send(word, descriptors);
        drop(outgoing);
        if sent.is_ok() {
            self.flush(id);
        }
    }

    /// Everything of a listener that was under way to a worker has arrived.
    pub(crate) fn listener_left(&mut self, slot: Slot, listener: ListenerId) {
        let Some(id) = self.entry_at(slot).map(|worker_entry| worker_entry.id()) else { return };
        self.say(id, &ToWorker::Closed { listener }, vec![]);
    }
}
