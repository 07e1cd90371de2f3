//! Node workers in the control plane: the bridge, the preload's file, and the bridge's notices.
//!
//! Owns the order in which notices become events. The channels are the bridge's.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;

use super::listen_request::{Key, Requester};
use super::{
    ControlPlane, NOTICE_BYTES_A_TURN_MAX, NOTICES, NOTICES_A_TURN_MAX, REMOVALS, WorkerEntry,
};
use crate::data_path::Command;
use crate::dialect::WorkerDialect;
use crate::dialect::node::bridge::{BridgeRequest, BridgeThread, Notice};
use crate::dialect::node::codec::{Listening, Query, UserMessage};
use crate::dialect::node::listen_query;
use crate::dialect::node::preload::{Preload, Reader};
use crate::dialect::node::session::{Answer, QueryId};
use crate::error::{Error, Result};
use crate::handle::Event;
use crate::id::{ListenerId, WorkerId};
use crate::message::Message;
use crate::protocol::control::Serialization;
use crate::settings::ClusterSettings;

impl ControlPlane {
    /// Starts the bridge with the first Node worker.
    pub(crate) fn build_bridge(&mut self) -> Result<()> {
        if self.bridge.is_none() {
            let commands = self.data_path.as_ref().map(super::DataPathThread::commands);
            let bridge = BridgeThread::start(commands, Arc::clone(&self.data_path_waker))?;
            self.watch(&bridge, NOTICES)?;
            self.bridge = Some(bridge);
        }
        Ok(())
    }

    /// Ensures that the script of Node workers exists. Without it they run as with `--preload off`,
    /// which is reported once.
    pub(crate) fn ensure_preload(&mut self, settings: &ClusterSettings) {
        let reader = Reader::from_ids(settings.uid, settings.gid);
        let is_there = |preload: &mut Preload| preload.is_for(reader) && preload.restore();
        if self.preload.as_mut().is_some_and(is_there) {
            return;
        }
        self.preload = None;
        match Preload::write(reader) {
            Ok(preload) => {
                if let Some(removals) = preload.watch() {
                    // Without memory for it, the script is only checked before each start.
                    let _ = self.watch(&removals, REMOVALS);
                }
                self.preload = Some(preload);
                self.lacks_preload = false;
            }
            Err(error) if !self.lacks_preload => {
                self.lacks_preload = true;
                self.fail(error);
            }
            Err(_) => {}
        }
    }

    pub(crate) fn ask_bridge(&self, request: BridgeRequest) {
        if let Some(bridge) = &self.bridge {
            bridge.request(request);
        }
    }

    /// Whether the bridge still has a channel of this worker.
    pub(crate) fn is_bridged(&self, id: WorkerId) -> bool {
        let is_bridged = |worker_entry: &WorkerEntry| {
            worker_entry.dialect.is_bridged() && worker_entry.connected
        };
        self.bridge.is_some() && self.workers.get(&id).is_some_and(is_bridged)
    }

    /// Connects a new worker as its dialect requires.
    pub(crate) fn admit(&mut self, id: WorkerId) {
        let Some(worker_entry) = self.workers.get_mut(&id) else { return };
        let new_worker = match &mut worker_entry.dialect {
            WorkerDialect::Native(_) => return,
            WorkerDialect::ListenFds(_) => return self.record_inherited(id),
            WorkerDialect::Node(node) => node.new_worker.take(),
        };
        let (Some(new_worker), slot) = (new_worker, worker_entry.slot) else { return };
        // Without a data path the link stays here until the worker leaves.
        if let (Some(data), Some(link)) =
            (&self.data_path, worker_entry.link.take_if(|_| self.data_path.is_some()))
        {
            worker_entry.attached = true;
            data.command(Command::Attach { slot, link });
        }
        self.ask_bridge(BridgeRequest::Admit { worker: id, slot, new_worker });
    }

    /// Handles the bridge's notices, except those of workers whose events are read too slowly. The
    /// last notices of an ended worker are always handled, as its end is.
    pub(crate) fn on_bridge_notices(&mut self) {
        if let Some(Err(error)) = self.bridge.as_mut().map(BridgeThread::check) {
            self.bridge = None;
            return self.fail(error);
        }
        let is_bridged = |one: &&WorkerEntry| one.dialect.is_bridged();
        let node_workers = self.workers.values().filter(is_bridged).map(WorkerEntry::id);
        let mut held_up: BTreeSet<WorkerId> =
            node_workers.filter(|id| self.bus.is_held_up(*id)).collect();
        let (mut notices, mut bytes) = (0, 0);
        while let Some(notice) = self.notice(|worker| !held_up.contains(&worker)) {
            let worker = notice.worker();
            (notices, bytes) = (notices + 1, bytes + notice.bytes());
            self.on_notice(notice);
            if self.bus.is_held_up(worker) {
                held_up.insert(worker);
            }
            if notices == NOTICES_A_TURN_MAX || bytes >= NOTICE_BYTES_A_TURN_MAX {
                // The rest follows after other sources.
                self.waker.wake();
                break;
            }
        }
        let ended = self.workers.values().filter(is_bridged).filter(|one| one.ending.is_some());
        for id in ended.map(WorkerEntry::id).collect::<Vec<_>>() {
            while let Some(notice) = self.notice(|worker| worker == id) {
                self.on_notice(notice);
            }
        }
    }

    fn notice(&self, of: impl Fn(WorkerId) -> bool) -> Option<Notice> {
        self.bridge.as_ref().and_then(|bridge| bridge.notice(of))
    }

    fn on_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Online { worker } => {
                let worker_entry = self.workers.get_mut(&worker).filter(|one| !one.online);
                if let Some(worker_entry) = worker_entry {
                    worker_entry.online = true;
                    let worker = worker_entry.handle();
                    self.emit(Event::Online { worker });
                }
            }
            Notice::Query { worker, query, request } => self.on_query(worker, query, &request),
            Notice::Listening { worker, listening } => self.emit_listening(worker, &listening),
            Notice::Left { worker, listener } => self.leave_listener(worker, listener),
            Notice::Leaving { worker } => self.leaves(worker),
            Notice::Message { worker, message, descriptor } => {
                self.emit_message(worker, &message, descriptor);
            }
            Notice::Stopped { worker, closes } => self.on_stopped(worker, closes),
            Notice::SocketLost { worker } => {
                let step = "send a socket to a worker, which has no descriptor for it";
                self.emit_error(worker, Error::system(step, Errno::EMFILE));
            }
            Notice::Gone { worker, failure } => {
                if let Some(what) = failure {
                    let hint = "its program wrote to the channel of Node itself, or did not read";
                    self.emit_error(worker, Error::Workers { what, hint: hint.into() });
                }
                self.on_disconnected(worker);
                self.on_gone(worker);
            }
        }
    }

    pub(crate) fn emit_error(&self, id: WorkerId, error: Error) {
        let worker = self.workers.get(&id).map(|worker_entry| worker_entry.handle());
        self.emit(Event::Error { worker, error: Arc::new(error) });
    }

    fn emit_message(&self, id: WorkerId, message: &UserMessage, descriptor: Option<OwnedFd>) {
        let Some(worker) = self.workers.get(&id).map(|worker_entry| worker_entry.handle()) else {
            return;
        };
        let descriptors = descriptor.into_iter().collect();
        let told = Message::new(Serialization::Json, message.json(), descriptors, 0);
        let message = match message.v8() {
            Some(payload) => told.with_v8(payload.to_vec()),
            None => told,
        };
        self.emit(Event::Message { worker, message });
    }

    /// A worker requests an address.
    fn on_query(&mut self, id: WorkerId, query: QueryId, request: &Query) {
        let Some(worker_entry) = self.workers.get(&id) else { return };
        if worker_entry.leaving {
            return self.answer_node(id, query, Answer::Fail(Errno::ECANCELED), None);
        }
        let requester = Requester::Node { worker: id, query };
        match listen_query::address_of(request) {
            Ok((address, options)) => {
                let key = Key::new(&address, options, request.index);
                self.request_listener(key, request.backlog, requester);
            }
            Err(error) => self.refuse(requester, &error),
        }
    }

    pub(crate) fn answer_node(
        &self,
        worker: WorkerId,
        query: QueryId,
        answer: Answer,
        socket: Option<OwnedFd>,
    ) {
        self.ask_bridge(BridgeRequest::Answer { worker, query, answer, socket });
    }

    /// A server of a worker listens. Node names the address as requested, so the listener is the
    /// oldest match.
    fn emit_listening(&mut self, id: WorkerId, listening: &Listening) {
        let Some(worker_entry) = self.workers.get_mut(&id) else { return };
        let WorkerDialect::Node(node) = &mut worker_entry.dialect else { return };
        let port = listening.port.and_then(|port| u16::try_from(port).ok());
        let port_of = |listener: &ListenerId| {
            let entry = self.listeners.iter().find(|entry| entry.id == *listener)?;
            Some(entry.address.parse::<SocketAddr>().ok().map(|address| address.port()))
        };
        let unannounced = &mut node.unannounced;
        let fits = unannounced.iter().position(|listener| port_of(listener) == Some(port));
        let Some(place) = fits.or_else(|| (!unannounced.is_empty()).then_some(0)) else { return };
        let listener = unannounced.remove(place);
        let (slot, worker) = (worker_entry.slot, worker_entry.handle());
        let Some(entry) = self.listeners.get_mut(listener) else { return };
        let address = entry.listening_address();
        if let Some(socket_owners) = entry.begin(slot) {
            // It can also get connections from other sockets.
            self.command(Command::Join { slot, listener });
            self.set_owners(listener, socket_owners);
        }
        self.begin_settling(id);
        self.emit(Event::Listening { worker, address });
    }

    /// A worker has closed its last server on a listener. It may be leaving: Node announces that
    /// only afterwards.
    fn leave_listener(&mut self, id: WorkerId, listener: ListenerId) {
        let Some(worker_entry) = self.workers.get_mut(&id) else { return };
        let WorkerDialect::Node(node) = &mut worker_entry.dialect else { return };
        let was_told = !node.unannounced.contains(&listener);
        node.unannounced.retain(|other| *other != listener);
        let slot = worker_entry.slot;
        if self.listeners.get_mut(listener).is_some_and(|entry| entry.has_own_sockets()) {
            // The bridge has already done so, perhaps before the worker joined.
            self.command(Command::Leave { slot, listener });
        }
        if was_told {
            self.emit_closed(id, listener);
        }
        self.release(id, listener);
    }
}
