//! Workers that request an address, and those that serve one.
//!
//! Owns the way from a request to its answer. [`ControlPlane::bind_or_share`] finds or opens the
//! listener ([`Listeners::find_or_open`](super::listeners::Listeners::find_or_open)), passes a new
//! one on to the data path, and grants it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use nix::errno::Errno;

use super::bind_retry::BindRetry;
use super::listen_request::{Key, ListenRequest, Opening, Requester};
use super::listeners::Bounds;
use super::reuseport::{Opened, SocketOwners};
use super::{ControlPlane, WorkerEntry};
use crate::address::{ListenAddress, UNIX_PATH_BYTES_MAX};
use crate::data_path::Command;
use crate::dialect::WorkerDialect;
use crate::dialect::node::listen_query;
use crate::dialect::node::session::Answer;
use crate::error::{Error, Result};
use crate::handle::Event;
use crate::id::{ListenerId, WorkerId};
use crate::protocol::control::{ListenOptions, ToWorker, Transport};
use crate::settings::{ClusterSettings, Dialect};
use crate::sys::clock::monotonic_ns;
use crate::sys::limits;

/// The failing step for a worker that requests an address no rule allows.
const NOT_ALLOWED: &str = "let a worker listen on";
/// The failing step for a Node worker that could not read the headers of a balancer.
const NO_PRELOAD: &str = "read the PROXY protocol without the preload, on";

impl ControlPlane {
    /// Opens an address before any worker requests it, and keeps it open.
    pub(crate) fn hold(
        &mut self,
        settings: &Arc<ClusterSettings>,
        address: &ListenAddress,
        answer: SyncSender<Result<(ListenerId, String)>>,
    ) {
        let cluster_settings = match self.cluster_settings(settings) {
            Ok(cluster_settings) => cluster_settings,
            Err(error) => return drop(answer.send(Err(error))),
        };
        let index = self.listeners.next_index(address);
        let key = Key::new(address, ListenOptions::default(), index);
        let opening = Opening {
            // Programs without any clusterlb code inherit them, as from systemd.
            blocking: settings.dialect == Dialect::ListenFds,
            ..opening(&cluster_settings, None)
        };
        let requester = Requester::Program { answer };
        self.bind_or_share(
            ListenRequest { key, candidates: None, opening, requester },
            BindRetry::until_ns(),
        );
    }

    /// A worker requests an address.
    pub(crate) fn listen(
        &mut self,
        id: WorkerId,
        sequence: u32,
        address: &str,
        options: ListenOptions,
    ) {
        let Some(worker_entry) = self.workers.get_mut(&id) else { return };
        if worker_entry.leaving {
            // It is leaving and does not wait for an answer.
            return;
        }
        let requester = Requester::Native { worker: id, sequence };
        match resolvable(address) {
            Ok(address) => {
                let index = worker_entry.count_in(Key::new(&address, options, 0));
                let key = Key::new(&address, options, index);
                self.request_listener(key, options.backlog, requester);
            }
            Err(error) => self.refuse(requester, &error),
        }
    }

    pub(crate) fn request_listener(
        &mut self,
        key: Key,
        backlog: Option<u32>,
        requester: Requester,
    ) {
        let settings = self.cluster_settings.as_ref().expect("there is a worker, so it is fixed");
        let (opening, allowed) = (opening(settings, backlog), settings.allows(&key.address));
        let request = ListenRequest { key, candidates: None, opening, requester };
        if !allowed {
            let (address, step) = (request.key.address.to_string(), NOT_ALLOWED.to_owned());
            let error = Error::Listen { address, step, source: Errno::EACCES.into() };
            return self.decline(request, error);
        }
        if self.expects_header(&request.key) && self.cannot_read_header(&request.requester) {
            let (address, step) = (request.key.address.to_string(), NO_PRELOAD.to_owned());
            let error = Error::Listen { address, step, source: Errno::EPROTONOSUPPORT.into() };
            return self.decline(request, error);
        }
        self.bind_or_share(request, BindRetry::until_ns());
    }

    /// Whether connections begin with a header of the PROXY protocol.
    fn expects_header(&self, key: &Key) -> bool {
        let by_rule = |one: &Arc<ClusterSettings>| one.expects_header(&key.address);
        let by_rule = self.cluster_settings.as_ref().is_some_and(by_rule);
        key.options.transport == Transport::Stream && (key.options.proxy_protocol || by_rule)
    }

    /// In Node the preload reads it.
    fn cannot_read_header(&self, requester: &Requester) -> bool {
        let Requester::Node { worker, .. } = requester else { return false };
        let worker_entry = self.workers.get(worker);
        worker_entry.is_some_and(|one| !one.state().view.program_reports())
    }

    /// Finds or opens the requested address and answers. While the address is busy, the request
    /// waits until its deadline.
    pub(crate) fn bind_or_share(&mut self, request: ListenRequest, until_ns: u64) {
        if request.requester.worker().is_some_and(|worker| self.is_leaving(worker)) {
            // It no longer waits for an answer.
            return;
        }
        if self.hands_over() && self.data_path.is_none() {
            let error = Error::system("accept, since the data path has failed", Errno::EIO);
            return self.decline(request, error);
        }
        if self.needs_lookup(&request) {
            return self.look_up(request);
        }
        let now_ns = monotonic_ns();
        let insists = now_ns < until_ns && self.bind_retry.has_room_for(&request);
        let ListenRequest { key, candidates, opening, .. } = &request;
        let opened = self.ensure_room(&request).and_then(|()| {
            self.listeners.find_or_open(key, candidates.as_ref(), *opening, insists)
        });
        match opened {
            Ok((listener, is_new)) => {
                self.pass_on(listener, is_new);
                self.grant(listener, is_new, request);
            }
            Err(error) if insists && self.may_become_free(&error, &request.key) => {
                self.bind_retry.add(request, until_ns, now_ns);
            }
            Err(error) => self.decline(request, error),
        }
    }

    /// Whether there is room for a listener that is not open yet.
    fn ensure_room(&self, request: &ListenRequest) -> Result<()> {
        let Some(worker) = request.requester.worker() else { return Ok(()) };
        if self.listeners.has(&request.key) {
            return Ok(());
        }
        let limit = limits::descriptors_max()?;
        let settings = self.cluster_settings.as_ref();
        let is_trusted = settings.is_none_or(|settings| settings.allow_listen.is_none());
        self.listeners.ensure_room(&request.key, worker, Bounds::new(limit, is_trusted))
    }

    fn is_leaving(&self, id: WorkerId) -> bool {
        self.workers.get(&id).is_none_or(|worker_entry| worker_entry.leaving)
    }

    /// Passes a new or reopened listener to the data path.
    fn pass_on(&mut self, id: ListenerId, is_new: bool) {
        let hands_over = self.hands_over();
        let outlives_workers = self.cluster_settings.as_ref().is_some_and(|one| one.hold);
        let entry = self.listeners.get_mut(id).expect("it was found or opened");
        let is_reopened = entry.take_reopened();
        if let (Some(data), Some(socket), true) = (&self.data_path, entry.stream(), hands_over) {
            let listener = Arc::clone(socket);
            if is_new {
                data.command(Command::AddListener { id, listener });
            } else if is_reopened {
                data.command(Command::ReplaceListener { id, listener });
            }
        }
        if is_new {
            entry.outlives_workers = outlives_workers;
            let own = entry.own_sockets();
            own.into_iter().for_each(|opened| self.add_socket(id, opened));
        }
    }

    /// Gives a listener to its requester: the program holds it, a worker shares it.
    fn grant(&mut self, listener: ListenerId, is_new: bool, request: ListenRequest) {
        let hands_over = self.hands_over();
        let entry = self.listeners.get_mut(listener).expect("it was found or opened");
        let taken = |step: &str| Error::Listen {
            address: entry.address.clone(),
            step: step.into(),
            source: Errno::EADDRINUSE.into(),
        };
        let Some(worker) = request.requester.worker() else {
            if !is_new {
                let error = taken("hold");
                return self.decline(request, error);
            }
            entry.held = true;
            if let Requester::Program { answer } = request.requester {
                drop(answer.send(Ok((listener, entry.address.clone()))));
            }
            return;
        };
        let mut waiting = entry.waiting.iter().filter_map(|one| one.requester.worker());
        if entry.users.contains(&worker) || waiting.any(|one| one == worker) {
            let error = taken("listen twice on");
            return self.decline(request, error);
        }
        if entry.closing {
            // Its address becomes free only when it is removed.
            return entry.waiting.push(request);
        }
        let worker_entry = self.workers.get_mut(&worker).expect("it is not leaving");
        let (slot, predecessor) = (worker_entry.slot, worker_entry.predecessor_slot);
        match entry.copy_for(slot, predecessor, hands_over) {
            Ok((descriptor, opened)) => {
                entry.add_user(worker, monotonic_ns());
                worker_entry.uses.insert(listener);
                worker_entry.has_used.insert(listener);
                if let Some(opened) = opened {
                    self.add_socket(listener, opened);
                }
                self.answer(listener, &request.requester, descriptor);
            }
            Err(error) => {
                self.remove_if_abandoned(listener);
                self.decline(request, error);
            }
        }
    }

    fn answer(&mut self, listener: ListenerId, requester: &Requester, descriptor: Option<OwnedFd>) {
        let Some(entry) = self.listeners.get_mut(listener) else { return };
        let (address, datagram) = (entry.address.clone(), !entry.is_stream());
        let key = entry.key.clone();
        let settings = self.cluster_settings.as_ref();
        let counted = settings.is_some_and(|settings| settings.is_counted_by_kernel());
        let proxy_protocol = self.expects_header(&key);
        match *requester {
            Requester::Native { worker, sequence } => {
                let message = ToWorker::Listening { sequence, listener, address, proxy_protocol };
                self.send(worker, &message, descriptor.into_iter().collect());
            }
            Requester::Node { worker, query } => {
                let worker_entry = self.workers.get_mut(&worker);
                if let Some(WorkerDialect::Node(node)) = worker_entry.map(|one| &mut one.dialect) {
                    node.unannounced.push(listener);
                }
                let answer = match descriptor {
                    Some(_) => Answer::Share { listener, datagram, counted, proxy_protocol },
                    None => {
                        let name = listen_query::name_of(&address);
                        Answer::HandOver { listener, name, proxy_protocol }
                    }
                };
                self.answer_node(worker, query, answer, descriptor);
            }
            Requester::Program { .. } => {}
        }
    }

    /// The address is unavailable.
    pub(crate) fn decline(&mut self, request: ListenRequest, error: Error) {
        let worker = request.requester.worker();
        if let Some(worker_entry) = worker.and_then(|worker| self.workers.get_mut(&worker)) {
            worker_entry.count_out(&request.key);
        }
        self.refuse(request.requester, &error);
    }

    pub(crate) fn refuse(&mut self, requester: Requester, error: &Error) {
        let worker = requester.worker();
        let (step, errno) = step_and_errno(error);
        match requester {
            Requester::Native { worker, sequence } => {
                let message = ToWorker::ListenFailed { sequence, step, errno };
                self.send(worker, &message, vec![]);
            }
            Requester::Node { worker, query } => {
                self.answer_node(worker, query, Answer::Fail(Errno::from_raw(errno)), None);
            }
            Requester::Program { answer } => drop(answer.send(Err(error.clone()))),
        }
        if let Some(worker_entry) = worker.and_then(|worker| self.workers.get(&worker)) {
            let worker = worker_entry.handle();
            self.emit(Event::Refused { worker, error: Arc::new(error.clone()) });
        }
    }

    fn add_socket(&self, id: ListenerId, opened: Opened) {
        let Opened { number, listener } = opened;
        self.command(Command::AddSocket { id, number, socket: listener });
    }

    /// Tells the data path which workers accept from a socket.
    pub(crate) fn set_owners(&self, listener: ListenerId, socket_owners: SocketOwners) {
        let SocketOwners { number, owners } = socket_owners;
        self.command(Command::SetOwners { listener, number, owners });
    }

    /// A worker has its answer and serves.
    pub(crate) fn serve(&mut self, id: WorkerId, listener: ListenerId) {
        let Some(worker_entry) = self.workers.get_mut(&id) else { return };
        let uses = worker_entry.uses.contains(&listener);
        if worker_entry.leaving || !uses || !worker_entry.serves.insert(listener) {
            return;
        }
        let (slot, worker) = (worker_entry.slot, worker_entry.handle());
        let Some(entry) = self.listeners.get_mut(listener) else { return };
        let address = entry.listening_address();
        let (is_stream, socket_owners) = (entry.is_stream(), entry.begin(slot));
        if is_stream {
            let link = worker_entry.link.take();
            worker_entry.attached |= link.is_some();
            if let Some(link) = link {
                self.command(Command::Attach { slot, link });
            }
            self.command(Command::Join { slot, listener });
        }
        if let Some(socket_owners) = socket_owners {
            self.set_owners(listener, socket_owners);
        }
        self.begin_settling(id);
        self.emit(Event::Listening { worker, address });
    }
}

impl WorkerEntry {
    /// Which socket this request is for, where an address has several (port 0, or one socket per
    /// worker): every worker's first request shares one, every second another, and so on.
    fn count_in(&mut self, first: Key) -> u32 {
        if !first.address.is_port_zero() && !first.options.reuse_address {
            return 0;
        }
        let repeats = self.repeats.entry(first).or_default();
        let index = repeats.asked;
        repeats.asked += 1;
        repeats.open += 1;
        index
    }

    pub(crate) fn count_out(&mut self, key: &Key) {
        let first = Key::new(&key.address, key.options, 0);
        if let Some(repeats) = self.repeats.get_mut(&first) {
            repeats.open = repeats.open.saturating_sub(1);
            if repeats.open == 0 {
                self.repeats.remove(&first);
            }
        }
    }
}

/// The requested address. A path that is too long for the kernel may be short relative to the
/// primary's folder; Node does the same.
fn resolvable(address: &str) -> Result<ListenAddress> {
    let below = |path: &str| {
        let folder = std::env::current_dir().ok()?;
        Path::new(path).strip_prefix(folder).ok().map(|rest| format!("unix:{}", rest.display()))
    };
    match address.strip_prefix("unix:") {
        Some(path) if path.len() > UNIX_PATH_BYTES_MAX => {
            let too_long = || Error::Listen {
                address: address.to_owned(),
                step: "bind".into(),
                source: Errno::ENAMETOOLONG.into(),
            };
            below(path).and_then(|short| short.parse().ok()).ok_or_else(too_long)
        }
        _ => address.parse(),
    }
}

/// The options for opening sockets.
fn opening(cluster_settings: &ClusterSettings, backlog: Option<u32>) -> Opening {
    let socket_for_each = cluster_settings.has_socket_for_each();
    let backlog = backlog.unwrap_or(cluster_settings.backlog);
    let defer_accept = cluster_settings.defer_accept;
    Opening { backlog, socket_for_each, blocking: false, defer_accept }
}

/// The failed step and error number for a worker.
fn step_and_errno(error: &Error) -> (String, i32) {
    match error {
        Error::Listen { step, source, .. } => (step.clone(), source.as_raw()),
        Error::System { step, source } => (format!("{step}, for"), source.as_raw()),
        // A name that cannot be resolved, or an invalid address.
        _ => ("find".into(), Errno::EADDRNOTAVAIL as i32),
    }
}
