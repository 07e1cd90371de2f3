//! How a due request finds its connection: an idle one, a new one, or one with room.
//!
//! Owns opening and sending. What comes back is handled in `events`.

use std::ops::Range;

use nix::errno::Errno;

use super::connection::Phase;
use super::thread::{Deadline, STARTS_PER_TURN, Thread};
use crate::plan::Start;
use crate::settings::{Load, RequestsPerConnection};
use crate::sys::socket;
use crate::tally::ErrorKind;

/// Where a due request may go.
enum StartPlace {
    Existing(u32),
    New,
}

impl Thread {
    /// Starts due requests. Returns true if more are due than one turn may start.
    pub(super) fn start_due(&mut self, now_ns: u64) -> bool {
        let dropped = self.demand.admit(now_ns);
        self.recorder.dropped(dropped);
        for _ in 0..STARTS_PER_TURN {
            if !self.demand.ready() {
                return false;
            }
            match self.place() {
                Some(StartPlace::Existing(slot)) => {
                    self.take_turn();
                    self.refill(slot, 1);
                }
                Some(StartPlace::New) => self.open_next(),
                None => return false,
            }
        }
        self.demand.ready()
    }

    /// An idle connection to the server whose turn it is, else a new one, else one with room in
    /// its pipeline. If none can be had, any other server's.
    fn place(&mut self) -> Option<StartPlace> {
        let (server, _) = self.job.routes[self.next_route];
        if let Some(slot) = self.take_idle(server) {
            return Some(StartPlace::Existing(slot));
        }
        if self.busy + self.demand.paused() < self.limit && !self.free.is_empty() {
            return Some(StartPlace::New);
        }
        let servers = self.available.len();
        let turns = (0..servers).map(|step| (server + step) % servers);
        turns.into_iter().find_map(|server| {
            self.take_idle(server).or_else(|| self.take_roomy(server)).map(StartPlace::Existing)
        })
    }

    fn take_idle(&mut self, server: usize) -> Option<u32> {
        while let Some((slot, tenancy)) = self.available[server].idle.pop() {
            let connection = &self.connections[slot as usize];
            if connection.tenancy == tenancy && connection.has_room(self.job.pipeline) {
                return Some(slot);
            }
        }
        None
    }

    fn take_roomy(&mut self, server: usize) -> Option<u32> {
        while let Some((slot, tenancy)) = self.available[server].roomy.pop_front() {
            let connection = &mut self.connections[slot as usize];
            if connection.tenancy != tenancy {
                continue;
            }
            connection.listed = false;
            if connection.has_room(self.job.pipeline) {
                return Some(slot);
            }
        }
        None
    }

    /// The target whose turn it is; the next one has the next turn.
    fn take_turn(&mut self) -> (usize, usize) {
        let route = self.job.routes[self.next_route];
        self.next_route += 1;
        if self.next_route == self.job.routes.len() {
            self.next_route = 0;
        }
        route
    }

    /// Opens a connection for the next request.
    fn open_next(&mut self) {
        let now_ns = self.now_ns();
        let Some(start) = self.demand.take(now_ns) else {
            return;
        };
        let budget = match self.job.settings.requests_per_connection {
            RequestsPerConnection::Unlimited => u32::MAX,
            RequestsPerConnection::Between(least, most) if least == most => least,
            RequestsPerConnection::Between(least, most) => self.random.u32(least..=most),
        };
        let route = self.take_turn();
        match self.open_socket(route, budget, false) {
            Ok(slot) => {
                self.give(slot, start);
                if matches!(self.job.settings.load, Load::Closed { .. }) {
                    let rest = (self.job.pipeline - 1).min(budget as usize - 1);
                    self.refill(slot, rest);
                }
            }
            Err(errno) => {
                self.recorder.started(start, now_ns);
                self.recorder.failed(start, ErrorKind::Local, errno.desc(), now_ns);
                self.demand.pause(now_ns);
            }
        }
    }

    pub(super) fn open_held_one(&mut self) {
        let route = self.take_turn();
        match self.open_socket(route, 0, true) {
            Ok(_) => self.held.opening += 1,
            Err(errno) => self.held.failure = Some(errno.desc().into()),
        }
    }

    /// Takes a slot and begins to connect it to a server.
    fn open_socket(
        &mut self,
        route: (usize, usize),
        budget: u32,
        held: bool,
    ) -> Result<u32, Errno> {
        let slot = self.free.pop().ok_or(Errno::EMFILE)?;
        let connection = &mut self.connections[slot as usize];
        connection.restart(self.reader, route, budget, held);
        connection.address = self.preferred[route.0];
        match self.connect(slot) {
            Ok(()) => {
                self.busy += usize::from(!held);
                Ok(slot)
            }
            Err(errno) => {
                self.connections[slot as usize].phase = Phase::Free;
                self.free.push(slot);
                Err(errno)
            }
        }
    }

    /// Makes a socket and begins to connect it to the connection's address, or to the next ones
    /// as long as there is no socket for it: a host without IPv6 has none for such an address.
    fn connect(&mut self, slot: u32) -> Result<(), Errno> {
        loop {
            let address = self.connections[slot as usize].address;
            let sources = &self.job.sources;
            let source = (!sources.is_empty()).then(|| sources[self.next_source % sources.len()]);
            self.next_source = self.next_source.wrapping_add(1);
            match socket::open(&self.job.addresses[address], source) {
                Ok(socket) => {
                    self.ring.adopt(slot, socket);
                    self.ring.connect(slot, address);
                    return Ok(());
                }
                Err(errno) if !self.next_address(slot) => return Err(errno),
                Err(_) => {}
            }
        }
    }

    /// Moves on to the server's next address. False if all of them have been tried.
    fn next_address(&mut self, slot: u32) -> bool {
        let connection = &mut self.connections[slot as usize];
        let all = &self.job.servers[connection.server].addresses;
        connection.tried += 1;
        connection.address = following(connection.address, all);
        connection.tried < all.len()
    }

    /// After a failed connect: tries the server's next address for the same requests.
    pub(super) fn connect_elsewhere(&mut self, slot: u32) -> bool {
        if !self.next_address(slot) {
            return false;
        }
        self.ring.close(slot);
        self.connect(slot).is_ok()
    }

    /// An address did not answer in time: others have a try first from now on.
    pub(super) fn avoid_address(&mut self, slot: u32) {
        let connection = &self.connections[slot as usize];
        let preferred = &mut self.preferred[connection.server];
        if *preferred == connection.address {
            *preferred = following(*preferred, &self.job.servers[connection.server].addresses);
        }
    }

    /// Gives a connection up to `count` of the requests that are due.
    pub(super) fn refill(&mut self, slot: u32, count: usize) {
        for _ in 0..count {
            let Some(start) = self.demand.take(self.now_ns()) else {
                break;
            };
            self.give(slot, start);
        }
        self.send_unsent(slot);
        self.list(slot);
    }

    fn give(&mut self, slot: u32, start: Start) {
        let now_ns = self.now_ns();
        let connection = &mut self.connections[slot as usize];
        let number = connection.give(start);
        self.deadlines.push_back(Deadline {
            at_ns: start.start_ns.saturating_add(self.job.timeout_ns),
            slot,
            tenancy: connection.tenancy,
            number,
        });
        self.recorder.started(start, now_ns);
    }

    /// Sends what has not been sent, unless a send is under way: two at once could mix.
    pub(super) fn send_unsent(&mut self, slot: u32) {
        if self.ring.sending(slot) {
            return;
        }
        let connection = &mut self.connections[slot as usize];
        if connection.tls.is_some() {
            self.send_encrypted(slot);
        } else if let Some((from, to)) = connection.next_send(&self.job.payload) {
            self.ring.send(slot, from, to);
        }
    }

    /// Puts a connection that may take another planned request where `place` looks for it.
    pub(super) fn list(&mut self, slot: u32) {
        if matches!(self.job.settings.load, Load::Closed { .. }) {
            return;
        }
        let connection = &mut self.connections[slot as usize];
        if !connection.has_room(self.job.pipeline) {
            return;
        }
        let available = &mut self.available[connection.server];
        if connection.requests.is_empty() {
            available.idle.push((slot, connection.tenancy));
        } else if !connection.listed {
            connection.listed = true;
            available.roomy.push_back((slot, connection.tenancy));
        }
    }
}

/// The address after this one; the first comes after the last.
fn following(address: usize, all: &Range<usize>) -> usize {
    if address + 1 < all.end { address + 1 } else { all.start }
}
