//! Workers that want to serve an address, and those that do.

use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;

use super::bind_retry::ListenRequest;
use super::listeners::{Asker, Key, Opening, RequestName};
use super::reuseport::{Opened, SocketOwners};
use super::{ControlPlane, WorkerEntry, node};
use crate::address::{ListenAddress, UNIX_PATH_BYTES_MAX};
use crate::cluster::{ClusterSettings, Event};
use crate::data_path::Command;
use crate::dialect::node::session::Answer;
use crate::error::{Error, Result};
use crate::id::{ListenerId, WorkerId};
use crate::protocol::control::{ListenOptions, ToWorker};
use crate::settings::Dialect;

/// What a worker fails in that asks for an address which no rule names.
const NOT_ALLOWED: &str = "let a worker listen on";

impl ControlPlane {
    /// Opens an address for nobody yet.
    pub(crate) fn hold(
        &mut self,
        settings: &Arc<ClusterSettings>,
        address: &ListenAddress,
        insists: bool,
    ) -> Result<(ListenerId, String)> {
        let cluster_settings = self.cluster_settings(settings)?;
        let index = self.listeners.next_index(address);
        let key = Key::new(address, ListenOptions::default(), index);
        if let Some(entry) = self.listeners.find(&key) {
            return Err(Error::Listen {
                address: entry.address.clone(),
                step: "hold".into(),
                source: Errno::EADDRINUSE,
            });
        }
        let opening = Opening {
            // Programs take them over that know nothing of us, as from systemd.
            blocking: settings.dialect == Dialect::ListenFds,
            ..opening(&cluster_settings)
        };
        let listener = self.open(key, opening, insists)?;
        let entry = self.listeners.get_mut(listener).expect("it has just been opened");
        entry.held = true;
        entry.wanted = true;
        Ok((listener, entry.address.clone()))
    }

    /// Opens a socket, and lets the data path have it.
    fn open(&mut self, key: Key, opening: Opening, insists: bool) -> Result<ListenerId> {
        let hands_over = self.hands_over();
        let meaning = self.resolver.known(&key.address).unwrap_or_default();
        let listener = self.listeners.open(key, opening, meaning, insists)?;
        let entry = self.listeners.get_mut(listener).expect("it has just been opened");
        if let (Some(data), Some(socket), true) = (&self.data_path, entry.stream(), hands_over) {
            data.command(Command::AddListener { id: listener, listener: Arc::clone(socket) });
        }
        let own = entry.own_sockets();
        own.into_iter().for_each(|opened| self.add_socket(listener, opened));
        Ok(listener)
    }

    fn add_socket(&self, id: ListenerId, opened: Opened) {
        let Opened { number, listener } = opened;
        self.command(Command::AddSocket { id, number, socket: listener });
    }

    /// Lets the data path know who accepts from a socket that is for workers.
    pub(crate) fn set_owners(&self, listener: ListenerId, socket_owners: SocketOwners) {
        let SocketOwners { number, owners } = socket_owners;
        self.command(Command::SetOwners { listener, number, owners });
    }

    /// A worker wants to serve an address.
    pub(crate) fn listen(
        &mut self,
        id: WorkerId,
        sequence: u32,
        address: &str,
        options: ListenOptions,
    ) {
        let Some(worker_entry) = self.workers.get_mut(&id) else { return };
        if worker_entry.leaving {
            // It has been told so, or has said so, and does not wait for an answer.
            return;
        }
        let request = RequestName::Native { sequence };
        let asker = Asker { worker: id, request, backlog: options.backlog };
        match resolvable(address) {
            Ok(address) => {
                let index = worker_entry.count_in(Key::new(&address, options, 0));
                self.answer(asker, Key::new(&address, options, index));
            }
            Err(error) => self.refuse(asker, &error),
        }
    }

    pub(crate) fn answer(&mut self, asker: Asker, key: Key) {
        let allowed = self.cluster_settings.as_ref().is_none_or(|one| one.allows(&key.address));
        if !allowed {
            let error = Error::Listen {
                address: key.address.to_string(),
                step: NOT_ALLOWED.into(),
                source: Errno::EACCES,
            };
            return self.decline(asker, &key, &error);
        }
        self.listen_request(ListenRequest::Listen { asker, key });
    }

    /// A worker cannot have what it asked for.
    pub(crate) fn decline(&mut self, asker: Asker, key: &Key, error: &Error) {
        if let Some(worker_entry) = self.workers.get_mut(&asker.worker) {
            worker_entry.count_out(key);
        }
        self.refuse(asker, error);
    }

    pub(crate) fn refuse(&mut self, asker: Asker, error: &Error) {
        let (step, errno) = step_and_errno(error);
        match asker.request {
            RequestName::Native { sequence } => {
                let word = ToWorker::ListenFailed { sequence, step, errno };
                self.say(asker.worker, &word, vec![]);
            }
            RequestName::Node(query) => {
                self.answer_node(asker.worker, query, Answer::Fail(Errno::from_raw(errno)), None);
            }
        }
        if let Some(worker_entry) = self.workers.get(&asker.worker) {
            let worker = worker_entry.handle();
            self.tell(Event::Refused { worker, error: Arc::new(error.clone()) });
        }
    }

    /// Finds or opens what a worker asks for, and answers, unless that has to wait.
    pub(crate) fn share(&mut self, asker: Asker, key: Key, insists: bool) -> Result<()> {
        let cluster_settings =
            self.cluster_settings.clone().expect("there is a worker, so it is fixed");
        let worker = asker.worker;
        if cluster_settings.hands_over() && self.data_path.is_none() {
            return Err(Error::system("accept, since the data path has failed", Errno::EIO));
        }
        let found = self.listeners.find(&key).map(|entry| entry.id);
        let listener = match found {
            Some(listener) => listener,
            None => {
                let opening = opening(&cluster_settings);
                let backlog = asker.backlog.unwrap_or(opening.backlog);
                let listener = self.open(key, Opening { backlog, ..opening }, insists)?;
                let entry = self.listeners.get_mut(listener).expect("it has just been opened");
                entry.held = cluster_settings.hold;
                listener
            }
        };
        let entry = self.listeners.get_mut(listener).expect("it was found or opened");
        if entry.users.contains(&worker) || entry.askers.iter().any(|one| one.worker == worker) {
            return Err(Error::Listen {
                address: entry.address.clone(),
                step: "listen twice on".into(),
                source: Errno::EADDRINUSE,
            });
        }
        if entry.closing {
            // Its address is free only when it has gone.
            entry.askers.push(asker);
            return Ok(());
        }
        let workers = &self.workers;
        let Some(worker_entry) = workers.get(&worker) else { return Ok(()) };
        let predecessor = worker_entry.predecessor.and_then(|one| workers.get(&one));
        let predecessor = predecessor.map(|worker_entry| worker_entry.slot);
        let copied = entry.copy_for(worker_entry.slot, predecessor, cluster_settings.hands_over());
        let (descriptor, opened) = match copied {
            Ok(copied) => copied,
            Err(error) => {
                if entry.is_abandoned() {
                    self.remove(listener);
                }
                return Err(error);
            }
        };
        entry.users.insert(worker);
        let (address, datagram) = (entry.address.clone(), !entry.is_stream());
        if let Some(opened) = opened {
            self.add_socket(listener, opened);
        }
        let Some(worker_entry) = self.workers.get_mut(&worker) else { return Ok(()) };
        worker_entry.uses.insert(listener);
        worker_entry.has_used.insert(listener);
        match asker.request {
            RequestName::Native { sequence } => {
                let word = ToWorker::Listening { sequence, listener, address };
                self.say(worker, &word, descriptor.into_iter().collect());
            }
            RequestName::Node(query) => {
                worker_entry.untold.push(listener);
                let answer = match descriptor {
                    Some(_) => Answer::Share { listener, datagram },
                    None => Answer::HandOver { listener, name: node::name_of(&address) },
                };
                self.answer_node(worker, query, answer, descriptor);
            }
        }
        Ok(())
    }

    /// A worker has got its answer and serves.
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
        self.tell(Event::Listening { worker, address });
    }

    /// A worker does not serve an address any more.
    pub(crate) fn close(&mut self, id: WorkerId, listener: ListenerId) {
        let Some(worker_entry) = self.workers.get_mut(&id) else { return };
        if !worker_entry.uses.contains(&listener) {
            return;
        }
        let (slot, attached) = (worker_entry.slot, worker_entry.attached);
        if attached {
            // The worker is told when nothing more of it will come.
            self.command(Command::Leave { slot, listener });
        } else {
            self.say(id, &ToWorker::Closed { listener }, vec![]);
        }
        self.emit_closed(id, listener);
        self.release(id, listener);
    }

    /// A worker closes what it served at an address.
    pub(crate) fn emit_closed(&mut self, id: WorkerId, listener: ListenerId) {
        let Some(worker) = self.workers.get(&id).map(WorkerEntry::handle) else { return };
        if let Some(entry) = self.listeners.get_mut(listener) {
            let address = entry.listening_address();
            self.tell(Event::Closed { worker, address });
        }
    }

    /// Takes a worker off the list of those who use a listener; the last one lets it go.
    pub(crate) fn release(&mut self, id: WorkerId, listener: ListenerId) {
        let Some(entry) = self.listeners.get_mut(listener) else { return };
        if !entry.users.remove(&id) {
            return;
        }
        let (key, abandoned) = (entry.key.clone(), entry.is_abandoned());
        if let Some(worker_entry) = self.workers.get_mut(&id) {
            let (left, lost) = entry.forget(worker_entry.slot, self.data_path.is_some());
            let address = entry.address.clone();
            worker_entry.uses.remove(&listener);
            worker_entry.serves.remove(&listener);
            worker_entry.count_out(&key);
            if let Some(socket_owners) = left {
                self.set_owners(listener, socket_owners);
            }
            if lost > 0 {
                self.fail(reset(lost, &address));
            }
        }
        if abandoned {
            self.remove(listener);
        }
    }

    /// Closes what is kept open for the next worker and what no worker has asked for.
    pub(crate) fn release_unused(&mut self) {
        let unused = self.listeners.iter().filter(|entry| {
            entry.held && !entry.wanted && entry.users.is_empty() && entry.askers.is_empty()
        });
        let unused: Vec<ListenerId> = unused.map(|entry| entry.id).collect();
        unused.into_iter().for_each(|listener| self.remove(listener));
    }

    /// Closes a listener. With a data path it has gone when that says so.
    pub(crate) fn remove(&mut self, listener: ListenerId) {
        let Some(entry) = self.listeners.get_mut(listener) else { return };
        if entry.closing {
            return;
        }
        match (&self.data_path, entry.close()) {
            (Some(data), true) => data.command(Command::RemoveListener { listener }),
            _ => self.listener_removed(listener),
        }
    }

    /// A listener has gone: whoever waited for its address is answered now.
    pub(crate) fn listener_removed(&mut self, listener: ListenerId) {
        let Some(entry) = self.listeners.take(listener) else { return };
        for id in &entry.users {
            if let Some(worker_entry) = self.workers.get_mut(id) {
                worker_entry.uses.remove(&listener);
                worker_entry.count_out(&entry.key);
            }
        }
        let leaving: Vec<WorkerId> =
            self.workers.values().filter(|one| one.leaving).map(WorkerEntry::id).collect();
        leaving.into_iter().for_each(|id| self.retire(id));
        for asker in entry.askers {
            if self.workers.get(&asker.worker).is_some_and(|worker_entry| !worker_entry.leaving) {
                self.answer(asker, entry.key.clone());
            }
        }
    }
}

impl WorkerEntry {
    /// Which of the sockets of an address with port 0, or of one that can be had several times,
    /// this request is for: the first of every worker is the same, so is the second, and so on.
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

    fn count_out(&mut self, key: &Key) {
        let first = Key::new(&key.address, key.options, 0);
        if let Some(repeats) = self.repeats.get_mut(&first) {
            repeats.open = repeats.open.saturating_sub(1);
            if repeats.open == 0 {
                self.repeats.remove(&first);
            }
        }
    }
}

/// What waited in the own socket of a worker that serves this no more went with it.
fn reset(connections: usize, address: &str) -> Error {
    Error::Environment {
        step: format!(
            "give others {connections} connections that waited for a worker at {address}"
        ),
        source: Errno::ECONNRESET,
        hint: "hold the address, and they wait for the next worker; with CAP_BPF and \
               CAP_NET_ADMIN, or net.ipv4.tcp_migrate_req=1, other workers get them"
            .into(),
    }
}

/// The address that a worker asks for. A path that is too long for the kernel may have a short name
/// as seen from the primary's folder; Node does the same.
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
                source: Errno::ENAMETOOLONG,
            };
            below(path).and_then(|short| short.parse().ok()).ok_or_else(too_long)
        }
        _ => address.parse(),
    }
}

/// How sockets are opened, unless somebody asks for something else.
fn opening(cluster_settings: &ClusterSettings) -> Opening {
    let socket_for_each = cluster_settings.has_socket_for_each();
    Opening { backlog: cluster_settings.backlog, socket_for_each, blocking: false }
}

/// What a worker is told of a failure.
fn step_and_errno(error: &Error) -> (String, i32) {
    match error {
        Error::Listen { step, source, .. } => (step.clone(), *source as i32),
        Error::System { step, source } => (format!("{step}, for"), *source as i32),
        // A name that cannot be resolved, or an address that cannot be.
        _ => ("find".into(), Errno::EADDRNOTAVAIL as i32),
    }
}
