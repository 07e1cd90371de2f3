//! Messages of workers.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{BYTES_A_TURN_MAX, CHANNEL, ControlPlane, FRAMES_A_TURN_MAX};
use crate::data_path::Command;
use crate::dialect::WorkerDialect;
use crate::error::Error;
use crate::handle::Event;
use crate::id::{ListenerId, Slot, WorkerId};
use crate::message::Message;
use crate::protocol::control::{Body, Received, ToPrimary, ToWorker};
use crate::protocol::handoff_layout::Record;
use crate::sys::peer;

impl ControlPlane {
    /// Reads a worker's messages, unless a subscriber to its events is too far behind.
    pub(crate) fn on_channel_ready(&mut self, id: WorkerId) {
        let Some(worker_entry) =
            self.workers.get_mut(&id).filter(|worker_entry| worker_entry.connected)
        else {
            // An event of a descriptor that was closed in this round.
            return;
        };
        let WorkerDialect::Native(native) = &mut worker_entry.dialect else { return };
        if self.bus.is_held_up(id) {
            native.is_read = false;
            return native.watch(&self.epoll, CHANNEL | u64::from(id.get()));
        }
        self.read(id);
    }

    /// Reads from workers again whose subscribers have caught up.
    pub(crate) fn read_again(&mut self) {
        for worker_entry in self.workers.values_mut() {
            let (id, connected) = (worker_entry.id(), worker_entry.connected);
            let WorkerDialect::Native(native) = &mut worker_entry.dialect else { continue };
            if native.is_read || self.bus.is_held_up(id) {
                continue;
            }
            native.is_read = true;
            if connected {
                native.watch(&self.epoll, CHANNEL | u64::from(id.get()));
                self.unread.insert(id);
            }
        }
    }

    /// Reads for one turn. Returns whether there was anything.
    pub(crate) fn read(&mut self, id: WorkerId) -> bool {
        let Some(worker_entry) = self.workers.get_mut(&id) else { return false };
        let mut frames: Vec<Received<ToPrimary>> = Vec::new();
        let WorkerDialect::Native(native) = &mut worker_entry.dialect else { return false };
        let incoming = &mut native.incoming;
        let before = incoming.received_bytes();
        let outcome = incoming.receive_some(&mut frames, FRAMES_A_TURN_MAX, BYTES_A_TURN_MAX);
        let closed = incoming.is_closed() && !incoming.has_more();
        let received = !frames.is_empty() || incoming.received_bytes() != before;
        if incoming.has_more() {
            self.unread.insert(id);
        }
        for frame in frames {
            self.on_frame(id, frame);
        }
        if let Err(error) = outcome {
            let worker = self.workers.get(&id).map(|worker_entry| worker_entry.handle());
            self.emit(Event::Error { worker, error: Arc::new(error) });
            self.on_disconnected(id);
        } else if closed {
            self.on_disconnected(id);
        }
        received
    }

    fn on_frame(&mut self, id: WorkerId, frame: Received<ToPrimary>) {
        let Some(worker_entry) = self.workers.get_mut(&id) else { return };
        let worker = worker_entry.handle();
        match frame.body {
            Body::Message { serialization, bytes } => {
                let message = Message::new(serialization, bytes, frame.descriptors, frame.lost);
                self.emit(Event::Message { worker, message });
            }
            // Reported once.
            Body::Control(ToPrimary::Online { .. }) if worker_entry.online => {}
            Body::Control(ToPrimary::Online { .. }) => {
                worker_entry.online = true;
                self.emit(Event::Online { worker });
            }
            Body::Control(ToPrimary::Listen { sequence, address, options }) => {
                self.listen(id, sequence, &address, options);
            }
            Body::Control(ToPrimary::Serving { listener }) => self.serve(id, listener),
            Body::Control(ToPrimary::Close { listener }) => self.close(id, listener),
            Body::Control(ToPrimary::Return { listener, accepted_ns }) => {
                self.take_return(id, Record { listener, accepted_ns }, frame.descriptors);
            }
            Body::Control(ToPrimary::Leaving) => self.leaves(id),
            Body::Control(ToPrimary::Farewell { handoff }) => worker_entry.handoff = handoff,
        }
    }

    /// A worker returns a connection. It must be a connection, of a listener that the worker had:
    /// other workers could not serve anything else.
    fn take_return(&mut self, id: WorkerId, record: Record, descriptors: Vec<OwnedFd>) {
        let Some(worker_entry) = self.workers.get(&id) else { return };
        let slot = worker_entry.slot;
        let had = worker_entry.has_used.contains(&record.listener);
        for socket in descriptors {
            if !had || !peer::is_connection(&socket) {
                let what = "the worker returned what is not one of its connections".to_owned();
                let hint = "its program writes to the control channel itself; it is ended";
                self.emit_error(id, Error::Workers { what, hint: hint.into() });
                return self.on_disconnected(id);
            }
            self.command(Command::Return { slot, sockets: vec![(socket, record)], backoff_ns: 0 });
        }
    }

    /// Sends a message to a worker. On failure the worker is ending, or does not read and will be
    /// detected by its end.
    pub(crate) fn send(&mut self, id: WorkerId, message: &ToWorker, descriptors: Vec<OwnedFd>) {
        let Some(worker_entry) =
            self.workers.get_mut(&id).filter(|worker_entry| worker_entry.connected)
        else {
            return;
        };
        // The bridge speaks to Node workers.
        let WorkerDialect::Native(native) = &worker_entry.dialect else { return };
        if native.send(message, descriptors).is_ok() {
            self.flush(id);
        }
    }

    /// Every connection of a listener in flight to a worker has arrived.
    pub(crate) fn listener_left(&mut self, slot: Slot, listener: ListenerId) {
        let Some(worker_entry) = self.entry_at(slot) else { return };
        if let Some(parting) = &mut worker_entry.parting {
            return parting.on_excluded();
        }
        let id = worker_entry.id();
        self.send(id, &ToWorker::Closed { listener }, vec![]);
    }
}
