//! Node workers in the control plane: what the bridge tells of them, and what it is asked for.
//!
//! Owns the translation of Node's requests to listen into this project's addresses. The channels
//! are the bridge's; the order of events is that of all workers.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;

use super::bind_retry::Origin;
use super::bridge_thread::BridgeThread;
use super::listeners::Key;
use super::{
    ControlPlane, NOTICE_BYTES_A_TURN_MAX, NOTICES, NOTICES_A_TURN_MAX, REMOVALS, WorkerEntry,
};
use crate::address::{FileAccess, ListenAddress};
use crate::cluster::{ClusterSettings, Event, Message};
use crate::data_path::Command;
use crate::dialect::node::bridge::{BridgeRequest, Notice};
use crate::dialect::node::codec::{Listening, Place, Query, SocketName, UserMessage};
use crate::dialect::node::preload::{self, Preload, Reader};
use crate::dialect::node::session::{Answer, QueryId};
use crate::error::Error;
use crate::id::{ListenerId, WorkerId};
use crate::protocol::control::{ListenOptions, Serialization, Transport};
use crate::settings::Dialect;
use crate::sys::listener::unspecified;
use crate::sys::resolve;

/// A flag of libuv, for TCP and UDP alike: `[::]` takes no IPv4.
const IPV6_ONLY: u32 = 1;
/// A flag of libuv, for UDP: other sockets that say the same may have the address, too.
const UDP_REUSE_ADDRESS: u32 = 4;

impl ControlPlane {
    /// Starts the bridge with the first Node worker.
    pub(crate) fn build_bridge(&mut self) -> crate::error::Result<()> {
        if self.bridge.is_none() {
            let commands = self.data_path.as_ref().map(super::DataPathThread::commands);
            let bridge = BridgeThread::start(commands, Arc::clone(&self.data_path_waker))?;
            self.watch(&bridge, NOTICES)?;
            self.bridge = Some(bridge);
        }
        Ok(())
    }

    /// Makes sure that what Node workers load is there. Without it they run as with `--preload
    /// off`, and that is told once.
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
                    // Without memory for that it is looked after before each start only.
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

    pub(crate) fn order(&self, order: BridgeRequest) {
        if let Some(bridge) = &self.bridge {
            bridge.order(order);
        }
    }

    /// Whether the bridge still has a channel of this worker.
    pub(crate) fn is_bridged(&self, id: WorkerId) -> bool {
        let worker_entry = self.workers.get(&id);
        self.bridge.is_some()
            && worker_entry
                .is_some_and(|worker_entry| worker_entry.is_node && worker_entry.connected)
    }

    /// Connects a new worker to data path and bridge, if it is a Node worker.
    pub(crate) fn admit(&mut self, id: WorkerId) {
        let Some(worker_entry) = self.workers.get_mut(&id) else { return };
        let Some(new_node_worker) = worker_entry.new_node_worker.take() else { return };
        let slot = worker_entry.slot;
        // Without a data path the link stays here until the worker leaves.
        if let (Some(data), Some(link)) =
            (&self.data_path, worker_entry.link.take_if(|_| self.data_path.is_some()))
        {
            worker_entry.attached = true;
            data.command(Command::Attach { slot, link });
        }
        self.order(BridgeRequest::Admit { worker: id, slot, new_worker: new_node_worker });
    }

    /// Takes in what the bridge has told, except of workers whose events nobody reads in time. What
    /// an ended worker has said last is told all the same, as its end is.
    pub(crate) fn heed_bridge(&mut self) {
        if let Some(Err(error)) = self.bridge.as_mut().map(BridgeThread::check) {
            self.bridge = None;
            return self.fail(error);
        }
        let node_workers = self.workers.values().filter(|one| one.is_node).map(WorkerEntry::id);
        let mut held_up: BTreeSet<WorkerId> =
            node_workers.filter(|id| self.bus.is_held_up(*id)).collect();
        let (mut notices, mut bytes) = (0, 0);
        while let Some(notice) = self.notice(|worker| !held_up.contains(&worker)) {
            let worker = notice.worker();
            (notices, bytes) = (notices + 1, bytes + notice.bytes());
            self.heed_notice(notice);
            if self.bus.is_held_up(worker) {
                held_up.insert(worker);
            }
            if notices == NOTICES_A_TURN_MAX || bytes >= NOTICE_BYTES_A_TURN_MAX {
                // The rest has its turn after the others.
                self.waker.wake();
                break;
            }
        }
        let ended = self.workers.values().filter(|one| one.is_node && one.ending.is_some());
        for id in ended.map(WorkerEntry::id).collect::<Vec<_>>() {
            while let Some(notice) = self.notice(|worker| worker == id) {
                self.heed_notice(notice);
            }
        }
    }

    fn notice(&self, of: impl Fn(WorkerId) -> bool) -> Option<Notice> {
        self.bridge.as_ref().and_then(|bridge| bridge.notice(of))
    }

    fn heed_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Online { worker } => {
                let worker_entry = self.workers.get_mut(&worker).filter(|one| !one.online);
                if let Some(worker_entry) = worker_entry {
                    worker_entry.online = true;
                    let worker = worker_entry.handle();
                    self.tell(Event::Online { worker });
                }
            }
            Notice::Query { worker, query, request } => self.meet(worker, query, &request),
            Notice::Listening { worker, listening } => self.tell_listening(worker, &listening),
            Notice::Left { worker, listener } => self.leave_listener(worker, listener),
            Notice::Leaving { worker } => self.leaves(worker),
            Notice::Message { worker, message, descriptor } => {
                self.tell_message(worker, &message, descriptor);
            }
            Notice::Stopped { worker, closes } => self.note_stopped(worker, closes),
            Notice::SocketLost { worker } => {
                let step = "send a socket to a worker, which has no descriptor for it";
                self.tell_error(worker, Error::system(step, Errno::EMFILE));
            }
            Notice::Gone { worker, failure } => {
                if let Some(what) = failure {
                    let hint = "its program wrote to the channel of Node itself, or did not read";
                    self.tell_error(worker, Error::Workers { what, hint: hint.into() });
                }
                self.part_with(worker);
                self.lay_to_rest(worker);
            }
        }
    }

    pub(crate) fn tell_error(&self, id: WorkerId, error: Error) {
        let worker = self.workers.get(&id).map(|worker_entry| worker_entry.handle());
        self.tell(Event::Error { worker, error: Arc::new(error) });
    }

    fn tell_message(&self, id: WorkerId, message: &UserMessage, descriptor: Option<OwnedFd>) {
        let Some(worker) = self.workers.get(&id).map(|worker_entry| worker_entry.handle()) else {
            return;
        };
        let value = message.value().unwrap_or_default();
        let bytes = serde_json::to_vec(&value).expect("a value of JSON can be written as JSON");
        let descriptors = descriptor.into_iter().collect();
        let message = Message::new(Serialization::Json, bytes, descriptors, 0);
        self.tell(Event::Message { worker, message });
    }

    /// A worker wants to listen.
    fn meet(&mut self, id: WorkerId, query: QueryId, request: &Query) {
        let Some(worker_entry) = self.workers.get(&id) else { return };
        if worker_entry.leaving {
            return self.answer_node(id, query, Answer::Fail(Errno::ECANCELED), None);
        }
        let origin = Origin::Node { worker: id, query };
        match key_of(request) {
            Ok(key) => self.request_listener(key, request.backlog, origin),
            Err(error) => self.refuse(origin, &error),
        }
    }

    pub(crate) fn answer_node(
        &self,
        worker: WorkerId,
        query: QueryId,
        answer: Answer,
        socket: Option<OwnedFd>,
    ) {
        self.order(BridgeRequest::Answer { worker, query, answer, socket });
    }

    /// A server of a worker listens. Node names the address as it was asked for, so the listener
    /// is the oldest one that fits.
    fn tell_listening(&mut self, id: WorkerId, listening: &Listening) {
        let Some(worker_entry) = self.workers.get_mut(&id) else { return };
        let port = listening.port.and_then(|port| u16::try_from(port).ok());
        let port_of = |listener: &ListenerId| {
            let entry = self.listeners.iter().find(|entry| entry.id == *listener)?;
            Some(entry.address.parse::<SocketAddr>().ok().map(|address| address.port()))
        };
        let fits = worker_entry.untold.iter().position(|listener| port_of(listener) == Some(port));
        let untold = !worker_entry.untold.is_empty();
        let Some(place) = fits.or_else(|| untold.then_some(0)) else { return };
        let listener = worker_entry.untold.remove(place);
        let (slot, worker) = (worker_entry.slot, worker_entry.handle());
        let Some(entry) = self.listeners.get_mut(listener) else { return };
        let address = entry.listening_address();
        if let Some(socket_owners) = entry.begin(slot) {
            // It can be given what waits in the sockets of others as well.
            self.command(Command::Join { slot, listener });
            self.set_owners(listener, socket_owners);
        }
        self.begin_settling(id);
        self.tell(Event::Listening { worker, address });
    }

    /// A worker has closed its last server on a listener. That may be because it leaves: Node says
    /// so only afterwards.
    fn leave_listener(&mut self, id: WorkerId, listener: ListenerId) {
        let Some(worker_entry) = self.workers.get_mut(&id) else { return };
        let was_told = !worker_entry.untold.contains(&listener);
        worker_entry.untold.retain(|other| *other != listener);
        let slot = worker_entry.slot;
        if self.listeners.get_mut(listener).is_some_and(|entry| entry.has_own_sockets()) {
            // The bridge has said so already, and perhaps before it joined.
            self.command(Command::Leave { slot, listener });
        }
        if was_told {
            self.emit_closed(id, listener);
        }
        self.release(id, listener);
    }
}

/// Whether a worker loads something before its program.
pub(crate) fn is_preloading(
    settings: &ClusterSettings,
    environment: &[(OsString, OsString)],
) -> bool {
    let arguments: Vec<OsString> =
        settings.exec_argv.iter().chain(&settings.args).cloned().collect();
    let options = preload::options_of(environment, &settings.exec_argv, settings.cwd.as_deref());
    let is_node = settings.dialect == Dialect::Node;
    is_node && settings.preload && preload::is_allowed(&arguments, options.as_deref())
}

/// The address as Node workers are told it; none for unix sockets.
pub(crate) fn name_of(address: &str) -> Option<SocketName> {
    address.parse::<SocketAddr>().ok().map(SocketName::from)
}

/// What a request asks for.
fn key_of(request: &Query) -> crate::error::Result<Key> {
    let mut options = ListenOptions::default();
    options.backlog = request.backlog;
    options.ipv6_only = request.flags & IPV6_ONLY != 0;
    options.mode = mode_of(request);
    let address = match &request.place {
        Place::Tcp { host: Some(host), port } => inet(host, *port)?,
        Place::Tcp { host: None, port } => ListenAddress::Tcp(unspecified(*port)),
        Place::Udp { host, port, v6 } => {
            options.transport = Transport::Datagram;
            options.backlog = None;
            options.reuse_address = request.flags & UDP_REUSE_ADDRESS != 0;
            let unspecified = match v6 {
                true => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
                false => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            };
            let unspecified = ListenAddress::Tcp(SocketAddr::new(unspecified, *port));
            let host = host.as_ref().map(|host| inet(host, *port)).transpose()?;
            host.unwrap_or(unspecified)
        }
        Place::Unix(path) => ListenAddress::Unix(PathBuf::from(path), FileAccess::default()),
        Place::Abstract(name) => ListenAddress::Abstract(name.clone()),
        Place::Inherited(number) => ListenAddress::Inherited(*number),
        Place::Nowhere => {
            return Err(Error::system("listen on an open handle of the worker's", Errno::EINVAL));
        }
    };
    Ok(Key::new(&address, options, request.index))
}

/// An address as Node gives it; one of IPv6 may name its interface.
fn inet(host: &str, port: u16) -> crate::error::Result<ListenAddress> {
    let text = match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    let missing = || Error::Listen {
        address: text.clone(),
        step: "find".into(),
        source: Errno::EADDRNOTAVAIL,
    };
    match text.parse().map_err(|_| missing())? {
        // A number already, so this asks nobody but the kernel.
        address @ ListenAddress::Name(..) if host.contains('%') => {
            let mut found = resolve::resolve(&address).map_err(|_| missing())?;
            found.pop().ok_or_else(missing)
        }
        // Node has looked names up before.
        ListenAddress::Name(..) => Err(missing()),
        address => Ok(address),
    }
}

/// `readableAll` and `writableAll` add to the permissions of the owner.
fn mode_of(request: &Query) -> Option<u32> {
    let (readable, writable) = (request.readable_by_all, request.writable_by_all);
    let bits = if readable { 0o444 } else { 0 } | if writable { 0o222 } else { 0 };
    (readable || writable).then_some(0o700 | bits)
}
