//! How a due request finds its connection: an idle one, a new one, or one with room.
//!
//! Owns sockets' opening and what is sent over them. What comes back is `events`' business.

use nix::errno::Errno;

use super::thread::{Deadline, STARTS_PER_TURN, Thread};
use crate::plan::Start;
use crate::protocol::Reader;
use crate::settings::{Load, RequestsPerConnection};
use crate::sys::socket;
use crate::tally::ErrorKind;

/// Where a due request may go.
enum Place {
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
                Some(Place::Existing(slot)) => self.refill(slot, 1),
                Some(Place::New) => self.open_next(),
                None => return false,
            }
        }
        self.demand.ready()
    }

    /// An idle connection, else a new one, else one with room in its pipeline.
    fn place(&mut self) -> Option<Place> {
        let pipeline = self.job.pipeline;
        while let Some((slot, tenancy)) = self.idle.pop() {
            let connection = &self.connections[slot as usize];
            if connection.tenancy == tenancy && connection.has_room(pipeline) {
                return Some(Place::Existing(slot));
            }
        }
        if self.busy + self.demand.paused() < self.limit && !self.free.is_empty() {
            return Some(Place::New);
        }
        while let Some((slot, tenancy)) = self.roomy.pop_front() {
            let connection = &mut self.connections[slot as usize];
            if connection.tenancy != tenancy {
                continue;
            }
            connection.listed = false;
            if connection.has_room(pipeline) {
                return Some(Place::Existing(slot));
            }
        }
        None
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
            RequestsPerConnection::Between(least, most) => self.random.between(least, most),
        };
        match self.open_socket(budget, false) {
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

    pub(super) fn open_one_held(&mut self) {
        match self.open_socket(0, true) {
            Ok(_) => self.held.opening += 1,
            Err(errno) => self.held.failure = Some(errno.desc().into()),
        }
    }

    /// Makes a socket and begins to connect it.
    fn open_socket(&mut self, budget: u32, held: bool) -> Result<u32, Errno> {
        let slot = self.free.pop().ok_or(Errno::EMFILE)?;
        let sources = &self.job.sources;
        let source = (!sources.is_empty()).then(|| sources[self.next_source % sources.len()]);
        self.next_source = self.next_source.wrapping_add(1);
        let socket = match socket::open(&self.job.address, source) {
            Ok(socket) => socket,
            Err(errno) => {
                self.free.push(slot);
                return Err(errno);
            }
        };
        let reader = Reader::new(&self.job.settings);
        self.connections[slot as usize].restart(reader, budget, held);
        self.busy += usize::from(!held);
        self.ring.adopt(slot, socket);
        self.ring.connect(slot);
        Ok(slot)
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
        if let Some((from, to)) = connection.next_send(&self.job.payload) {
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
        if connection.requests.is_empty() {
            self.idle.push((slot, connection.tenancy));
        } else if !connection.listed {
            connection.listed = true;
            self.roomy.push_back((slot, connection.tenancy));
        }
    }
}
