//! The listeners of a cluster and the workers that share them.
//!
//! Owns every socket that the primary has opened for workers. The first worker to request an
//! address opens it, and equal requests share it. `listener_lifetime` decides how long it stays
//! open.

mod bind;
mod room;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;

use super::listen_request::{Candidates, Key, ListenRequest, Opening};
use super::reuseport::{Opened, OwnSockets, SocketOwners};
use crate::address::ListenAddress;
use crate::error::{Error, Result, errno_of};
use crate::handle::ListeningAddress;
use crate::id::{ListenerId, Slot, WorkerId};
use crate::protocol::control::{ListenOptions, Transport};
use crate::settings::LISTENERS_MAX;
use crate::sys::datagram::{self, DatagramOptions};
use crate::sys::listener::{Listener, OpenOptions, open_shared};
pub(in crate::control_plane) use room::Bounds;

/// Chosen ports remembered for the next equal request. Beyond this a new port is chosen.
const PORTS_REMEMBERED_MAX: usize = 1024;

/// An address and its sockets.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: ListenerId,
    pub(crate) key: Key,
    /// The bound address.
    pub(crate) address: String,
    /// The workers that use it, or have been granted it.
    pub(crate) users: BTreeSet<WorkerId>,
    /// It stays open even without users.
    pub(crate) held: bool,
    /// It outlives a worker that ends, for the next worker in that slot.
    pub(crate) outlives_workers: bool,
    /// Slots in which a worker that used it has ended, until the next one there has settled.
    pub(crate) heirs: BTreeSet<Slot>,
    /// Workers from this number on were started after the last user had gone.
    pub(crate) deserted_before: u32,
    /// Since when it has had users.
    pub(crate) used_since_ns: u64,
    /// Its last server was closed, and it closes at this time unless a worker requests it.
    pub(crate) linger: Option<Linger>,
    /// It is closing: the data path hands its backlog over.
    pub(crate) closing: bool,
    /// Requests that wait until the address is free.
    pub(crate) waiting: Vec<ListenRequest>,
    /// The key's address with names resolved.
    resolved: ListenAddress,
    socket: Socket,
    opening: Opening,
    /// The data path still has the previous socket.
    is_reopened: bool,
}

/// A listener without users that will close soon.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Linger {
    /// Its last user.
    pub(crate) worker: WorkerId,
    pub(crate) until_ns: u64,
}

#[derive(Debug)]
enum Socket {
    /// One for the primary to accept from, or for all workers.
    Stream(Arc<Listener>),
    /// One for each worker.
    StreamEach(OwnSockets),
    /// One for all workers.
    Datagram(UdpSocket),
    /// One for each worker. The primary keeps no copy, to which the kernel would send datagrams.
    DatagramEach(Option<UdpSocket>),
    /// Already closed.
    Closed,
}

/// All listeners.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    entries: BTreeMap<ListenerId, Entry>,
    last: u16,
    /// The chosen ports, kept when all workers are replaced.
    ports: HashMap<Key, SocketAddr>,
    /// Inherited sockets. Their numbers stay valid as long as the cluster lives.
    inherited: HashMap<ListenAddress, Arc<Listener>>,
}

impl Listeners {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    pub(crate) fn contains(&self, id: ListenerId) -> bool {
        self.entries.contains_key(&id)
    }

    pub(crate) fn get_mut(&mut self, id: ListenerId) -> Option<&mut Entry> {
        self.entries.get_mut(&id)
    }

    pub(crate) fn take(&mut self, id: ListenerId) -> Option<Entry> {
        self.entries.remove(&id)
    }

    /// Every listener, in the order of opening.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.entries.values_mut()
    }

    /// The same, read-only.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// The next socket index of an address that no worker has requested.
    pub(crate) fn next_index(&self, address: &ListenAddress) -> u32 {
        if !address.is_port_zero() {
            return 0;
        }
        let same = self.entries.values().filter(|entry| entry.key.address == *address);
        u32::try_from(same.count()).expect("listeners are bounded")
    }

    /// Whether there is a listener for a key.
    pub(crate) fn has(&self, key: &Key) -> bool {
        self.entries.values().any(|entry| entry.key == *key)
    }

    /// Finds the listener of a key, or opens it: the first candidate that this machine has, if the
    /// address was looked up. A port chosen before is chosen again, unless another process has it
    /// and `insists` is not set. Returns whether it was opened.
    ///
    /// # Errors
    /// [`Error::Listen`]: the address is unavailable, or 1024 listeners are open (`ENOBUFS`).
    pub(crate) fn find_or_open(
        &mut self,
        key: &Key,
        candidates: Option<&Candidates>,
        opening: Opening,
        insists: bool,
    ) -> Result<(ListenerId, bool)> {
        if let Some(entry) = self.entries.values_mut().find(|entry| entry.key == *key) {
            if !entry.is_reachable() {
                entry.reopen()?;
            }
            return Ok((entry.id, false));
        }
        if self.entries.len() >= LISTENERS_MAX {
            return Err(Error::Listen {
                address: key.address.to_string(),
                step: format!("have more than {LISTENERS_MAX} listeners open, the last at"),
                source: Errno::ENOBUFS.into(),
            });
        }
        // Unless another listener of ours was given the port by number.
        let is_free = |port: &&SocketAddr| {
            let port = port.to_string();
            !self.entries.values().any(|one| one.address == port && one.linger.is_none())
        };
        let remembered = self.ports.get(key).filter(is_free);
        let remembered = remembered.map(|port| ListenAddress::Tcp(*port));
        let again = remembered.map(|address| self.bind(key, &address, opening));
        let (socket, address) = match again {
            Some(Ok(opened)) => opened,
            Some(Err(error)) if insists && is_busy(&error) => return Err(error),
            Some(Err(_)) | None => self.bind_first(key, candidates, opening)?,
        };
        if key.address.is_port_zero()
            && self.ports.len() < PORTS_REMEMBERED_MAX
            && let Ok(bound) = address.parse()
        {
            self.ports.insert(key.clone(), bound);
        }
        let id = self.next_id();
        let mut entry = Entry::new(id, key.clone(), address, socket, opening);
        if let Some([resolved]) = candidates.map(|all| &**all) {
            entry.resolved = resolved.clone();
        }
        self.entries.insert(id, entry);
        Ok((id, true))
    }

    /// The next request for port 0 gets another port than the one chosen for this key.
    pub(crate) fn forget_port(&mut self, key: &Key) {
        self.ports.remove(key);
    }

    /// A number that no listener has had for a long time.
    fn next_id(&mut self) -> ListenerId {
        loop {
            let id = ListenerId::new(self.last);
            self.last = self.last.wrapping_add(1);
            if !self.entries.contains_key(&id) {
                return id;
            }
        }
    }

    /// Keeps a listening socket for a request of its address.
    pub(crate) fn adopt(&mut self, listener: Listener) -> Result<String> {
        let bound = listener.address().to_owned();
        self.inherited.insert(bound.parse()?, Arc::new(listener));
        Ok(bound)
    }

    /// Drops inherited sockets, which frees their ports.
    pub(crate) fn forget_inherited(&mut self) {
        self.inherited.clear();
    }
}

impl Entry {
    fn new(id: ListenerId, key: Key, address: String, socket: Socket, opening: Opening) -> Self {
        Self {
            id,
            resolved: key.address.clone(),
            key,
            address,
            users: BTreeSet::new(),
            held: false,
            outlives_workers: false,
            heirs: BTreeSet::new(),
            deserted_before: 0,
            used_since_ns: 0,
            linger: None,
            closing: false,
            waiting: Vec::new(),
            socket,
            opening,
            is_reopened: false,
        }
    }

    /// Whether clients can reach it: the file of a unix socket still exists and is the same.
    fn is_reachable(&self) -> bool {
        match &self.socket {
            Socket::Stream(listener) => listener.is_reachable(),
            _ => true,
        }
    }

    /// Opens a unix socket again after its file was removed or replaced. Connections that wait in
    /// the old socket are accepted before it closes.
    fn reopen(&mut self) -> Result<()> {
        let options = open_options(self.key.options, self.opening);
        self.socket = Socket::Stream(Arc::new(Listener::open(&self.resolved, options)?));
        self.is_reopened = true;
        Ok(())
    }

    /// Whether its socket was replaced since the last call.
    pub(crate) fn take_reopened(&mut self) -> bool {
        std::mem::take(&mut self.is_reopened)
    }

    /// The address for the program.
    pub(crate) fn listening_address(&self) -> ListeningAddress {
        let (transport, ephemeral) = (self.key.options.transport, self.key.address.is_port_zero());
        ListeningAddress::new(&self.address, transport, self.id, ephemeral)
    }

    /// The socket that the data path accepts from.
    pub(crate) fn stream(&self) -> Option<&Arc<Listener>> {
        match &self.socket {
            Socket::Stream(listener) => Some(listener),
            _ => None,
        }
    }

    /// Whether it is for connections, open or not.
    pub(crate) fn is_stream(&self) -> bool {
        self.key.options.transport == Transport::Stream
    }

    /// Workers without a channel get it at their start.
    pub(crate) fn is_inherited(&self) -> bool {
        self.held && !self.closing && self.is_stream()
    }

    /// Whether nothing uses it or keeps it open.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.users.is_empty() && self.heirs.is_empty() && !self.held && !self.closing
    }

    /// Whether its socket occupies the address of another key.
    pub(crate) fn is_in_the_way_of(&self, key: &Key) -> bool {
        let port = |address: &str| address.rsplit(':').next().map(str::to_owned);
        let wanted = key.address.to_string();
        self.address == wanted || port(&self.address) == port(&wanted)
    }

    /// A worker uses it, or was granted it.
    pub(crate) fn add_user(&mut self, worker: WorkerId, now_ns: u64) {
        if self.users.is_empty() {
            self.used_since_ns = now_ns;
        }
        self.linger = None;
        self.users.insert(worker);
    }

    /// The present sockets, if workers have their own.
    pub(crate) fn own_sockets(&self) -> Vec<Opened> {
        match &self.socket {
            Socket::StreamEach(sockets) => sockets.all().collect(),
            _ => Vec::new(),
        }
    }

    /// Whether workers have their own sockets.
    pub(crate) fn has_own_sockets(&self) -> bool {
        matches!(self.socket, Socket::StreamEach(_))
    }

    /// The socket that the worker in `slot` accepts or receives from; `None` if the primary
    /// accepts. Also returns the socket if it had to be opened.
    pub(crate) fn copy_for(
        &mut self,
        slot: Slot,
        predecessor: Option<Slot>,
        primary_accepts: bool,
    ) -> Result<(Option<OwnedFd>, Option<Opened>)> {
        if let Socket::StreamEach(sockets) = &mut self.socket {
            let options = open_options(self.key.options, self.opening);
            let open = || open_shared(&self.address, options);
            let (copy, opened) = sockets.copy_for(slot, predecessor, open)?;
            return Ok((Some(copy), opened));
        }
        self.copy_of_shared(primary_accepts).map(|copy| (copy, None))
    }

    fn copy_of_shared(&mut self, primary_accepts: bool) -> Result<Option<OwnedFd>> {
        let (address, options) = (&self.address, self.key.options);
        match &mut self.socket {
            Socket::Stream(_) if primary_accepts => Ok(None),
            Socket::Stream(listener) => listener.copy().map(Some),
            Socket::Datagram(socket) => {
                let copy = socket.try_clone();
                copy.map(|copy| Some(copy.into()))
                    .map_err(|error| Error::system("duplicate a datagram socket", errno_of(&error)))
            }
            Socket::DatagramEach(first) => {
                let own = match first.take() {
                    Some(first) => first,
                    None => datagram::open(&address.parse()?, datagram_options(options))?.0,
                };
                Ok(Some(own.into()))
            }
            // With a socket per worker, nothing is shared.
            Socket::StreamEach(_) | Socket::Closed => {
                Err(Error::system("share a closed listener", Errno::EBADF))
            }
        }
    }

    /// The worker in `slot` accepts from now on. Returns the owners of its socket, if it has a
    /// separate one.
    pub(crate) fn begin(&mut self, slot: Slot) -> Option<SocketOwners> {
        match &mut self.socket {
            Socket::StreamEach(sockets) => sockets.begin(slot),
            _ => None,
        }
    }

    /// The worker in `slot` leaves, and accepts the queue of its socket. Returns the owners of
    /// that socket, if it has one. The socket is kept if the primary or a successor can empty it.
    pub(crate) fn leave(
        &mut self,
        slot: Slot,
        primary_accepts: bool,
        keeps_copy: bool,
    ) -> Option<SocketOwners> {
        let kept = self.held || self.outlives_workers || primary_accepts;
        let Socket::StreamEach(sockets) = &mut self.socket else { return None };
        if keeps_copy {
            return sockets.pause(slot);
        }
        let socket_owners = sockets.forget(slot);
        if !kept {
            sockets.leave_behind();
        }
        socket_owners
    }

    /// The worker in `slot` no longer serves this. Returns the owners of its socket, if it had
    /// one and has not left it before, and how many connections that waited there were lost. The
    /// socket is kept if the primary or a successor can empty it.
    pub(crate) fn forget(
        &mut self,
        slot: Slot,
        primary_accepts: bool,
    ) -> (Option<SocketOwners>, usize) {
        let kept = self.held || self.outlives_workers || primary_accepts;
        let Socket::StreamEach(sockets) = &mut self.socket else { return (None, 0) };
        let socket_owners = sockets.forget(slot);
        // The last worker's socket closes with the address, and its queue is lost.
        let lost = if kept { 0 } else { sockets.shed(0) };
        (socket_owners, lost)
    }

    /// The separate sockets of workers, if they have any.
    pub(crate) fn separate_sockets(&self) -> Option<&OwnSockets> {
        match &self.socket {
            Socket::StreamEach(sockets) => Some(sockets),
            _ => None,
        }
    }

    /// Closes the sockets that no worker will take: `coming` workers are still to start. Returns
    /// how many connections were lost.
    #[must_use = "lost connections must be reported"]
    pub(crate) fn shed(&mut self, coming: usize) -> usize {
        match &mut self.socket {
            // While no worker accepts, the connections wait for the next one.
            Socket::StreamEach(sockets) if sockets.are_used() => sockets.shed(coming),
            _ => 0,
        }
    }

    /// Closes the sockets. Returns whether the data path may still have some.
    pub(crate) fn close(&mut self) -> bool {
        self.closing = true;
        let socket = std::mem::replace(&mut self.socket, Socket::Closed);
        matches!(socket, Socket::Stream(_) | Socket::StreamEach(_))
    }
}

/// Whether another process has the address, perhaps briefly. For a unix socket it is certain: a
/// connection was tried.
pub(crate) fn is_busy(error: &Error) -> bool {
    match error {
        Error::Listen { address, step, source } if *source == Errno::EADDRINUSE => {
            step == "bind" && !address.starts_with("unix:")
        }
        _ => false,
    }
}

fn open_options(options: ListenOptions, opening: Opening) -> OpenOptions {
    OpenOptions {
        backlog: opening.backlog,
        share_port: opening.socket_for_each,
        ipv6_only: options.ipv6_only,
        mode: options.mode,
        blocking: opening.blocking,
        defer_accept: opening.defer_accept,
    }
}

fn datagram_options(options: ListenOptions) -> DatagramOptions {
    DatagramOptions {
        share_port: options.transport == Transport::DatagramEach,
        ipv6_only: options.ipv6_only,
        reuse_address: options.reuse_address,
    }
}

#[cfg(test)]
mod tests;
