//! The listeners of a cluster and who shares them.
//!
//! Owns every socket that the primary has opened for workers. The first worker to ask for an
//! address opens it, others that ask for the same share it, and it is closed when the last of them
//! has gone, unless it is held.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;

use super::reuseport::{Opened, OwnSockets, SocketOwners};
use crate::address::ListenAddress;
use crate::cluster::event::ListeningAddress;
use crate::dialect::node::session::QueryId;
use crate::error::{Error, Result, errno_of};
use crate::id::{ListenerId, Slot, WorkerId};
use crate::protocol::control::{ListenOptions, Transport};
use crate::settings::LISTENERS_MAX;
use crate::sys::datagram::{self, DatagramOptions};
use crate::sys::listener::{Listener, OpenOptions, open_first, open_shared};

/// Chosen ports that are remembered for the next worker that asks for the same. Beyond it a new
/// port is chosen again.
const PORTS_REMEMBERED_MAX: usize = 1024;

/// What a worker asks for: workers that ask for the same share a socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The address as it was asked for.
    pub(crate) address: ListenAddress,
    /// How it shall be opened, but for the backlog: that is the one of whoever asks first.
    pub(crate) options: ListenOptions,
    /// For port 0: the how-manieth request of a worker it is, from 0.
    index: u32,
}

/// How a socket is opened, as far as that is the cluster's choice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    /// Connections that may wait.
    pub(crate) backlog: u32,
    /// Every worker gets a socket of its own (SO_REUSEPORT).
    pub(crate) socket_for_each: bool,
    /// Whoever accepts from it may wait in the call.
    pub(crate) blocking: bool,
}

/// A worker that waits until an address is free again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    pub(crate) worker: WorkerId,
    pub(crate) request: RequestName,
    pub(crate) backlog: Option<u32>,
}

/// What the answer has to name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RequestName {
    Native { sequence: u32 },
    Node(QueryId),
}

/// An address and its sockets.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: ListenerId,
    pub(crate) key: Key,
    /// The address that was bound.
    pub(crate) address: String,
    /// Who uses it, or has been told that it may.
    pub(crate) users: BTreeSet<WorkerId>,
    /// It stays open, whoever uses it.
    pub(crate) held: bool,
    /// The program has asked for that, not only the settings.
    pub(crate) wanted: bool,
    /// It goes: the data path gives away what is left in it.
    pub(crate) closing: bool,
    /// Who asked for the address meanwhile.
    pub(crate) askers: Vec<Asker>,
    socket: Socket,
    opening: Opening,
}

#[derive(Debug)]
enum Socket {
    /// One for the primary to accept from, or for all workers.
    Stream(Arc<Listener>),
    /// One for each worker.
    StreamEach(OwnSockets),
    /// One for all workers.
    Datagram(UdpSocket),
    /// One for each worker, which nobody else keeps: the kernel would go on giving it datagrams.
    DatagramEach(Option<UdpSocket>),
    /// None any more.
    Closed,
}

/// All listeners.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    entries: BTreeMap<ListenerId, Entry>,
    last: u16,
    /// The ports that were chosen, so that they stay the same after all workers were replaced.
    ports: HashMap<Key, SocketAddr>,
    /// Inherited sockets. Their numbers mean them as long as the cluster lives.
    inherited: HashMap<ListenAddress, Arc<Listener>>,
}

impl Key {
    pub(crate) fn new(address: &ListenAddress, options: ListenOptions, index: u32) -> Self {
        let mut options = options;
        options.backlog = None;
        Self { address: address.clone(), options, index }
    }
}

impl Listeners {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    pub(crate) fn find(&self, key: &Key) -> Option<&Entry> {
        self.entries.values().find(|entry| entry.key == *key)
    }

    pub(crate) fn get_mut(&mut self, id: ListenerId) -> Option<&mut Entry> {
        self.entries.get_mut(&id)
    }

    pub(crate) fn take(&mut self, id: ListenerId) -> Option<Entry> {
        self.entries.remove(&id)
    }

    /// Every listener, in the order in which they were opened.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.entries.values_mut()
    }

    /// The same, to be looked at.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// The index of the next socket of an address that is opened for nobody yet.
    pub(crate) fn next_index(&self, address: &ListenAddress) -> u32 {
        if !address.is_port_zero() {
            return 0;
        }
        let same = self.entries.values().filter(|entry| entry.key.address == *address);
        u32::try_from(same.count()).expect("listeners are bounded")
    }

    /// Opens what a key names. `meaning` is what its name means, if it has one. A port that was
    /// chosen before is chosen anew if somebody else has it, unless it is insisted upon.
    ///
    /// # Errors
    /// [`Error::Listen`]: the address is not to be had, or there are 64 listeners.
    pub(crate) fn open(
        &mut self,
        key: Key,
        opening: Opening,
        meaning: &[SocketAddr],
        insists: bool,
    ) -> Result<ListenerId> {
        if self.entries.len() >= LISTENERS_MAX {
            return Err(Error::Listen {
                address: key.address.to_string(),
                step: format!("open more than {LISTENERS_MAX} listeners, the last at"),
                source: Errno::EMFILE,
            });
        }
        let remembered = self.ports.get(&key).map(|port| ListenAddress::Tcp(*port));
        let again = remembered.map(|address| self.socket(&key, &address, opening, meaning));
        let (socket, address) = match again {
            Some(Ok(opened)) => opened,
            Some(Err(error)) if insists && is_busy(&error) => return Err(error),
            Some(Err(_)) | None => self.socket(&key, &key.address, opening, meaning)?,
        };
        if key.address.is_port_zero()
            && self.ports.len() < PORTS_REMEMBERED_MAX
            && let Ok(bound) = address.parse()
        {
            self.ports.insert(key.clone(), bound);
        }
        let id = self.next_id();
        let entry = Entry {
            id,
            key,
            address,
            users: BTreeSet::new(),
            held: false,
            wanted: false,
            closing: false,
            askers: Vec::new(),
            socket,
            opening,
        };
        self.entries.insert(id, entry);
        Ok(id)
    }

    /// A number that no listener has, and had not for a long time.
    fn next_id(&mut self) -> ListenerId {
        loop {
            let id = ListenerId(self.last);
            self.last = self.last.wrapping_add(1);
            if !self.entries.contains_key(&id) {
                return id;
            }
        }
    }

    fn socket(
        &mut self,
        key: &Key,
        address: &ListenAddress,
        opening: Opening,
        meaning: &[SocketAddr],
    ) -> Result<(Socket, String)> {
        if key.options.transport != Transport::Stream {
            let (socket, bound) = datagram::open(address, datagram_options(key.options))?;
            let socket = match key.options.transport {
                Transport::DatagramEach => Socket::DatagramEach(Some(socket)),
                _ => Socket::Datagram(socket),
            };
            return Ok((socket, bound.to_string()));
        }
        if let Some(inherited) = self.inherited.get(address) {
            let bound = inherited.address().to_owned();
            return Ok((Socket::Stream(Arc::clone(inherited)), bound));
        }
        // Only TCP knows ports that several sockets share.
        let is_tcp = matches!(address, ListenAddress::Tcp(_) | ListenAddress::Name(..));
        let opening = Opening { socket_for_each: opening.socket_for_each && is_tcp, ..opening };
        let options = open_options(key.options, opening);
        let listener = match address {
            ListenAddress::Name(..) => open_first(meaning, options)?,
            address => Listener::open(address, options)?,
        };
        let listener = Arc::new(listener);
        let bound = listener.address().to_owned();
        if matches!(address, ListenAddress::Inherited(_)) {
            self.inherited.insert(address.clone(), Arc::clone(&listener));
        }
        let socket = match opening.socket_for_each {
            true => Socket::StreamEach(OwnSockets::new(listener)),
            false => Socket::Stream(listener),
        };
        Ok((socket, bound))
    }

    /// Gives inherited sockets up, so that their ports are free.
    pub(crate) fn forget_inherited(&mut self) {
        self.inherited.clear();
    }
}

impl Entry {
    /// The address as the program is told it.
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

    /// Whether it is one for connections, open or not.
    pub(crate) fn is_stream(&self) -> bool {
        self.key.options.transport == Transport::Stream
    }

    /// Workers without a channel get it at their birth.
    pub(crate) fn is_handed_down(&self) -> bool {
        self.held && !self.closing && self.is_stream()
    }

    /// Nobody uses it, and nothing keeps it.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.users.is_empty() && !self.held && !self.closing
    }

    /// The sockets that there are, if workers have sockets of their own.
    pub(crate) fn own_sockets(&self) -> Vec<Opened> {
        match &self.socket {
            Socket::StreamEach(sockets) => sockets.all().collect(),
            _ => Vec::new(),
        }
    }

    /// Whether workers have sockets of their own.
    pub(crate) fn has_own_sockets(&self) -> bool {
        matches!(self.socket, Socket::StreamEach(_))
    }

    /// What the worker in `slot` gets to accept from or to receive from by itself; nothing, if the
    /// primary accepts. Tells too which socket was opened for it.
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
            // Where each worker has its own, nothing is shared.
            Socket::StreamEach(_) | Socket::Closed => {
                Err(Error::system("share a closed listener", Errno::EBADF))
            }
        }
    }

    /// The worker in `slot` accepts from now on. Tells of its own socket, if it has one.
    pub(crate) fn begin(&mut self, slot: Slot) -> Option<SocketOwners> {
        match &mut self.socket {
            Socket::StreamEach(sockets) => sockets.begin(slot),
            _ => None,
        }
    }

    /// The worker in `slot` is going to leave, and takes what waits in its own socket. Tells of
    /// that socket, if it has one. Where somebody else can empty it, the primary or a successor, it
    /// is kept.
    pub(crate) fn leave(&mut self, slot: Slot, primary_accepts: bool) -> Option<SocketOwners> {
        let kept = self.held || primary_accepts;
        let Socket::StreamEach(sockets) = &mut self.socket else { return None };
        let socket_owners = sockets.forget(slot);
        if !kept {
            sockets.leave_behind();
        }
        socket_owners
    }

    /// The worker in `slot` serves this no more. Tells of its own socket, if it had one and has not
    /// left it before, and how many connections were lost that waited there. Where somebody else
    /// can empty it, it is kept.
    pub(crate) fn forget(
        &mut self,
        slot: Slot,
        primary_accepts: bool,
    ) -> (Option<SocketOwners>, usize) {
        let kept = self.held || primary_accepts;
        let Socket::StreamEach(sockets) = &mut self.socket else { return (None, 0) };
        let socket_owners = sockets.forget(slot);
        // The last one's is closed with the address: what waits there has nobody to go to.
        let lost = if kept { 0 } else { sockets.shed(0) };
        (socket_owners, lost)
    }

    /// So many workers are still to come, so what is left of further ones that are gone is of no
    /// use. Tells how many connections were lost with it.
    #[must_use = "connections that were lost have to be told of"]
    pub(crate) fn shed(&mut self, coming: usize) -> usize {
        match &mut self.socket {
            // Where nobody accepts, they can as well wait.
            Socket::StreamEach(sockets) if sockets.are_used() => sockets.shed(coming),
            _ => 0,
        }
    }

    /// Lets go of the sockets. Tells whether the data path may still have some.
    pub(crate) fn close(&mut self) -> bool {
        self.closing = true;
        let socket = std::mem::replace(&mut self.socket, Socket::Closed);
        matches!(socket, Socket::Stream(_) | Socket::StreamEach(_))
    }
}

/// Whether somebody outside has the address, perhaps for a moment only. Who listens on a unix
/// socket is there: it has been asked.
pub(crate) fn is_busy(error: &Error) -> bool {
    match error {
        Error::Listen { address, step, source: Errno::EADDRINUSE } => {
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
mod tests {
    use super::*;

    const OPENING: Opening = Opening { backlog: 16, socket_for_each: false, blocking: false };

    fn key(address: &str, index: u32) -> Key {
        let address = address.parse().expect("an address");
        Key::new(&address, ListenOptions::default(), index)
    }

    #[test]
    fn a_port_that_was_chosen_once_is_chosen_again() {
        let mut listeners = Listeners::default();
        let first =
            listeners.open(key("127.0.0.1:0", 0), OPENING, &[], false).expect("a free port");
        let second =
            listeners.open(key("127.0.0.1:0", 1), OPENING, &[], false).expect("another free port");
        let ports: Vec<String> = [first, second]
            .iter()
            .map(|id| listeners.take(*id).expect("it is open").address)
            .collect();
        assert_ne!(ports[0], ports[1]);
        for (index, port) in (0..).zip(&ports) {
            let again = listeners
                .open(key("127.0.0.1:0", index), OPENING, &[], false)
                .expect("the same port");
            assert_eq!(listeners.get_mut(again).expect("it is open").address, *port);
            assert!(![first, second].contains(&again), "the number is a new one");
        }
    }

    #[test]
    fn a_port_that_somebody_else_has_meanwhile_is_replaced() {
        let mut listeners = Listeners::default();
        let first =
            listeners.open(key("127.0.0.1:0", 0), OPENING, &[], false).expect("a free port");
        let port = listeners.take(first).expect("it is open").address;
        let _other = std::net::TcpListener::bind(&port).expect("it is free again");
        let insisted = listeners.open(key("127.0.0.1:0", 0), OPENING, &[], true);
        assert!(is_busy(&insisted.expect_err("somebody has it")));
        let again = listeners.open(key("127.0.0.1:0", 0), OPENING, &[], false).expect("some port");
        assert_ne!(listeners.get_mut(again).expect("it is open").address, port);
    }

    #[test]
    fn listeners_are_bounded() {
        let mut listeners = Listeners::default();
        for index in 0..64 {
            listeners.open(key("127.0.0.1:0", index), OPENING, &[], false).expect("a free port");
        }
        let error =
            listeners.open(key("127.0.0.1:0", 64), OPENING, &[], false).expect_err("one too many");
        assert!(error.to_string().contains("more than 64"), "{error}");
    }
}
