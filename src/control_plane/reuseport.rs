//! The sockets of one address with one socket per worker (SO_REUSEPORT).
//!
//! Owns which worker accepts from which socket. Closing a socket resets the connections in its
//! queue, and one may arrive at any moment. So a socket stays open while the address is served and
//! something can empty it. A new worker shares its predecessor's socket or takes an unused one; a
//! further one is opened only if there is neither.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use crate::error::Result;
use crate::id::Slot;
use crate::sys::listener::Listener;
use crate::sys::{backlog, fdpass, migration};

/// All sockets of an address.
#[derive(Debug)]
pub(crate) struct OwnSockets {
    sockets: Vec<OwnSocket>,
    opened: u16,
    /// Connections that found the queue of a socket full that has been closed since.
    overflowed: u64,
}

#[derive(Debug)]
struct OwnSocket {
    number: u16,
    listener: Arc<Listener>,
    /// The workers that have a copy, and whether each accepts.
    users: BTreeMap<Slot, bool>,
}

/// A socket that has just been opened.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(crate) number: u16,
    pub(crate) listener: Arc<Listener>,
}

/// The workers that accept from a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SocketOwners {
    pub(crate) number: u16,
    pub(crate) owners: Vec<Slot>,
}

impl OwnSockets {
    /// The number of sockets.
    pub(crate) fn count(&self) -> usize {
        self.sockets.len()
    }

    /// Starts with one unused socket.
    pub(crate) fn new(first: Arc<Listener>) -> Self {
        let mut sockets = Self { sockets: Vec::new(), opened: 0, overflowed: 0 };
        sockets.add(first);
        sockets
    }

    fn add(&mut self, listener: Arc<Listener>) -> Opened {
        // Each was opened for a worker, whose number is bounded.
        let number = self.opened;
        self.opened = self.opened.wrapping_add(1);
        let opened = Opened { number, listener: Arc::clone(&listener) };
        self.sockets.push(OwnSocket { number, listener, users: BTreeMap::new() });
        opened
    }

    /// Every socket.
    pub(crate) fn all(&self) -> impl Iterator<Item = Opened> {
        self.sockets
            .iter()
            .map(|one| Opened { number: one.number, listener: Arc::clone(&one.listener) })
    }

    /// How many connections found a queue full since the address was opened; `None` if the kernel
    /// does not report it.
    pub(crate) fn overflows(&self) -> Option<u64> {
        let open: Option<u64> = self.sockets.iter().map(OwnSocket::overflows).sum();
        Some(open? + self.overflowed)
    }

    /// A copy for the worker in `slot`, and the socket itself if it had to be opened.
    pub(crate) fn copy_for(
        &mut self,
        slot: Slot,
        predecessor: Option<Slot>,
        open: impl FnOnce() -> Result<Listener>,
    ) -> Result<(OwnedFd, Option<Opened>)> {
        let has = |slot: Slot| move |one: &OwnSocket| one.users.contains_key(&slot);
        let place = self.sockets.iter().position(has(slot));
        let place = place.or_else(|| self.sockets.iter().position(has(predecessor?)));
        let place = place.or_else(|| self.sockets.iter().position(|one| one.users.is_empty()));
        let (place, opened) = match place {
            Some(place) => (place, None),
            None => {
                let opened = self.add(Arc::new(open()?));
                (self.sockets.len() - 1, Some(opened))
            }
        };
        let copy = self.sockets[place].listener.copy()?;
        self.sockets[place].users.entry(slot).or_insert(false);
        Ok((copy, opened))
    }

    /// The worker in `slot` accepts from now on.
    pub(crate) fn begin(&mut self, slot: Slot) -> Option<SocketOwners> {
        let socket = self.sockets.iter_mut().find(|one| one.users.contains_key(&slot))?;
        socket.users.insert(slot, true);
        Some(socket.socket_owners())
    }

    /// The worker in `slot` leaves, and keeps its copy until it ends.
    pub(crate) fn pause(&mut self, slot: Slot) -> Option<SocketOwners> {
        let socket = self.sockets.iter_mut().find(|one| one.users.contains_key(&slot))?;
        socket.users.insert(slot, false);
        Some(socket.socket_owners())
    }

    /// The socket of the worker in `slot`.
    pub(crate) fn of(&self, slot: Slot) -> Option<Opened> {
        let socket = self.sockets.iter().find(|one| one.users.contains_key(&slot))?;
        Some(Opened { number: socket.number, listener: Arc::clone(&socket.listener) })
    }

    /// The same, if no worker accepts from it any more.
    pub(crate) fn left_by(&self, slot: Slot) -> Option<Opened> {
        let own = self.of(slot)?;
        let socket = self.sockets.iter().find(|one| one.number == own.number)?;
        socket.socket_owners().owners.is_empty().then_some(own)
    }

    /// Whether no worker has this socket.
    pub(crate) fn is_deserted(&self, number: u16) -> bool {
        self.sockets.iter().any(|one| one.number == number && one.users.is_empty())
    }

    /// Resets what waits in unused sockets, which stay open, except the `spare` ones with the
    /// longest queues. Returns how many connections were lost.
    #[must_use = "lost connections must be reported"]
    pub(crate) fn reset_idle(&self, spare: usize) -> usize {
        let idle = self.sockets.iter().filter(|one| one.users.is_empty());
        let length = |one: &OwnSocket| backlog::length(&*one.listener).unwrap_or(0);
        let mut idle: Vec<(u32, &OwnSocket)> = idle.map(|one| (length(one), one)).collect();
        idle.sort_by_key(|(length, _)| Reverse(*length));
        let lost = idle.iter().skip(spare).map(|(length, one)| {
            // Accepting may block, and no other process takes what is there.
            (0..*length).map_while(|_| one.listener.accept_now().ok().flatten()).count()
        });
        lost.sum()
    }

    /// The worker in `slot` is gone.
    pub(crate) fn forget(&mut self, slot: Slot) -> Option<SocketOwners> {
        let socket = self.sockets.iter_mut().find(|one| one.users.contains_key(&slot))?;
        socket.users.remove(&slot);
        Some(socket.socket_owners())
    }

    /// Closes unused sockets, except `spare` ones for workers that are still to start: the kernel
    /// would go on filling queues that no worker empties. Waiting connections move to the other
    /// sockets, if there are any and the kernel permits it. Returns how many connections were lost.
    #[must_use = "lost connections must be reported"]
    pub(crate) fn shed(&mut self, spare: usize) -> usize {
        let shed = self.take_idle(spare);
        let others = !self.sockets.is_empty();
        shed.iter().map(|one| lose(&one.listener, others)).sum()
    }

    /// Closes the sockets that only a leaving worker still has. It accepts what waits in its copy
    /// before it closes that, so nothing is accepted here.
    pub(crate) fn leave_behind(&mut self) {
        let left = self.take_idle(0);
        let others = !self.sockets.is_empty();
        left.iter().for_each(|one| _ = divert(&one.listener, others));
    }

    /// Removes the unused sockets, except the `spare` ones with the longest queues.
    fn take_idle(&mut self, spare: usize) -> Vec<OwnSocket> {
        let (used, mut idle): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.sockets).into_iter().partition(|one| !one.users.is_empty());
        idle.sort_by_cached_key(|one| Reverse(backlog::length(&*one.listener).unwrap_or(0)));
        let taken = idle.split_off(spare.min(idle.len()));
        self.sockets = used;
        self.sockets.append(&mut idle);
        self.overflowed += taken.iter().filter_map(OwnSocket::overflows).sum::<u64>();
        taken
    }

    /// Whether a worker has one.
    pub(crate) fn are_used(&self) -> bool {
        self.sockets.iter().any(|one| !one.users.is_empty())
    }
}

/// Keeps new connections away from a socket that is about to be closed. Returns whether the waiting
/// ones move to other sockets of the port, which takes a privilege.
fn divert(listener: &Listener, others: bool) -> bool {
    if others && migration::arrange(listener).is_ok() {
        return true;
    }
    // A client that is connecting now retries, and reaches another socket.
    listener.turn_away();
    false
}

/// The number of connections that closing a socket will reset.
fn lose(listener: &Listener, others: bool) -> usize {
    if divert(listener, others) || fdpass::set_nonblocking(listener.as_fd()).is_err() {
        return 0;
    }
    std::iter::from_fn(|| listener.accept_now().ok().flatten()).count()
}

impl OwnSocket {
    fn overflows(&self) -> Option<u64> {
        backlog::overflows(&*self.listener).ok().map(u64::from)
    }

    fn socket_owners(&self) -> SocketOwners {
        let owners = self.users.iter().filter(|(_, accepts)| **accepts);
        SocketOwners { number: self.number, owners: owners.map(|(slot, _)| *slot).collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::sys::listener::OpenOptions;

    fn socket() -> Result<Listener> {
        let options = OpenOptions {
            backlog: 16,
            share_port: true,
            ipv6_only: false,
            mode: None,
            blocking: false,
            defer_accept: false,
        };
        Listener::open(&"127.0.0.1:0".parse().expect("an address"), options)
    }

    fn comes(sockets: &mut OwnSockets, slot: u16, predecessor: Option<u16>) -> (u16, bool) {
        let copied = sockets.copy_for(Slot::new(slot), predecessor.map(Slot::new), socket);
        let (_, opened) = copied.expect("a free port");
        let socket_owners = sockets.begin(Slot::new(slot)).expect("it has one");
        assert!(socket_owners.owners.contains(&Slot::new(slot)));
        (socket_owners.number, opened.is_some())
    }

    #[test]
    fn a_socket_stays_when_its_worker_is_replaced_and_when_it_is_gone() {
        let mut sockets = OwnSockets::new(Arc::new(socket().expect("a free port")));
        assert_eq!(comes(&mut sockets, 0, None), (0, false));
        assert_eq!(comes(&mut sockets, 1, None), (1, true));
        // A successor shares with its predecessor, which leaves.
        assert_eq!(comes(&mut sockets, 2, Some(1)), (1, false));
        let left = SocketOwners { number: 1, owners: vec![Slot::new(2)] };
        assert_eq!(sockets.forget(Slot::new(1)), Some(left));
        // One that dies leaves its socket to the next one.
        let left = SocketOwners { number: 0, owners: vec![] };
        assert_eq!(sockets.forget(Slot::new(0)), Some(left));
        assert_eq!(sockets.forget(Slot::new(0)), None);
        assert_eq!(comes(&mut sockets, 5, Some(9)), (0, false));
        assert_eq!(sockets.all().count(), 2);
    }

    #[test]
    fn who_has_been_given_a_socket_does_not_accept_before_it_says_so() {
        let mut sockets = OwnSockets::new(Arc::new(socket().expect("a free port")));
        sockets.copy_for(Slot::new(0), None, socket).expect("it is there");
        // Until then no other worker gets it.
        assert_eq!(comes(&mut sockets, 1, None), (1, true));
        assert_eq!(sockets.sockets[0].socket_owners().owners, []);
        assert!(sockets.begin(Slot::new(7)).is_none());
        sockets.forget(Slot::new(0));
        assert_eq!(sockets.shed(1), 0);
        assert_eq!(sockets.all().count(), 2, "one is kept for the next worker");
        assert_eq!(sockets.shed(0), 0, "nothing waits in it");
        assert_eq!(sockets.all().map(|one| one.number).collect::<Vec<u16>>(), [1]);
        sockets.forget(Slot::new(1));
        assert!(!sockets.are_used());
    }

    fn connect(sockets: &OwnSockets) -> Vec<TcpStream> {
        let all: Vec<Opened> = sockets.all().collect();
        let address = all[0].listener.address().to_owned();
        (0..3).map(|_| TcpStream::connect(&address).expect("it listens")).collect()
    }

    #[test]
    fn what_waits_for_the_last_one_is_lost_and_counted_whatever_the_kernel_lets_us_do() {
        let mut sockets = OwnSockets::new(Arc::new(socket().expect("a free port")));
        comes(&mut sockets, 0, None);
        let clients = connect(&sockets);
        sockets.forget(Slot::new(0));
        assert_eq!(sockets.shed(0), clients.len());
    }

    #[test]
    fn the_socket_in_which_most_waits_is_kept() {
        for busy in [0, 1] {
            let mut sockets = OwnSockets::new(Arc::new(socket().expect("a free port")));
            comes(&mut sockets, 0, None);
            // In this test it has another port.
            comes(&mut sockets, 1, None);
            sockets.sockets.rotate_left(busy);
            let number = sockets.sockets[0].number;
            let _clients = connect(&sockets);
            sockets.sockets.rotate_left(busy);
            (0..2).for_each(|slot| _ = sockets.forget(Slot::new(slot)));
            assert_eq!(sockets.shed(1), 0);
            assert_eq!(sockets.all().map(|one| one.number).collect::<Vec<u16>>(), [number]);
        }
    }

    #[test]
    fn nothing_is_taken_from_a_leaving_worker() {
        let mut sockets = OwnSockets::new(Arc::new(socket().expect("a free port")));
        let copied = sockets.copy_for(Slot::new(0), None, socket);
        let own = TcpListener::from(copied.expect("it is there").0);
        let clients = connect(&sockets);
        sockets.forget(Slot::new(0));
        sockets.leave_behind();
        assert_eq!(sockets.all().count(), 0);
        for _ in clients {
            own.accept().expect("it waits");
        }
    }
}
