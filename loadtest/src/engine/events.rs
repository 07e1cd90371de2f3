//! What a thread does at each event of a connection's life: start, connected, sent, received,
//! timed out, ended.
//!
//! Every request given to a connection leaves it exactly once: completed, failed with a kind, or
//! counted as unfinished when the run ends. A slot is freed after its last completion, never
//! before.

use nix::errno::Errno;

use super::connection::Phase;
use super::thread::{Deadline, STARTS_PER_TURN, Thread};
use crate::http::Outcome;
use crate::plan::Start;
use crate::protocol::Reader;
use crate::settings::{CloseBy, Load, Mode, RequestsPerConnection};
use crate::sys::ring::{BUFFER_BYTES, Completion};
use crate::sys::socket;
use crate::sys::tag::Operation;
use crate::tally::ErrorKind;

/// Where a due request may go.
enum Place {
    Existing(u32),
    New,
}

/// What received bytes came to.
enum Received {
    /// The connection goes on.
    More,
    /// The server will close it.
    Last,
    /// Nothing was asked for. An idle connection is being told something: it ends.
    Unasked,
    Bad(&'static str),
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
                self.recorder.failed(start, ErrorKind::Local, errno.desc());
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
    fn refill(&mut self, slot: u32, count: usize) {
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
    fn send_unsent(&mut self, slot: u32) {
        if self.ring.sending(slot) {
            return;
        }
        let connection = &mut self.connections[slot as usize];
        if let Some((from, to)) = connection.next_send(self.job.message_bytes) {
            self.ring.send(slot, from, to);
        }
    }

    /// Puts a connection that may take another planned request where `place` looks for it.
    fn list(&mut self, slot: u32) {
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

    /// Hands a completion to its handler.
    pub(super) fn handle(&mut self, completion: Completion, now_ns: u64) {
        let Completion { operation, slot, result } = completion;
        if self.connections[slot as usize].phase == Phase::Ending {
            self.end_if_quiet(slot);
            return;
        }
        let result = usize::try_from(result).map_err(|_| Errno::from_raw(-result));
        match operation {
            Operation::Connect => self.connected(slot, result.err(), now_ns),
            Operation::Send => self.sent(slot, result, now_ns),
            Operation::Receive => self.received(slot, result, now_ns),
            Operation::Cancel | Operation::Close => {}
        }
    }

    fn connected(&mut self, slot: u32, error: Option<Errno>, now_ns: u64) {
        let connection = &mut self.connections[slot as usize];
        if connection.held {
            self.held.opening -= 1;
            if let Some(errno) = error {
                self.held.failure = Some(errno.desc().into());
                self.end(slot);
            } else {
                self.held.open += 1;
                connection.phase = Phase::Open;
                self.ring.receive(slot, 0);
            }
            return;
        }
        if let Some(errno) = error {
            self.fail(slot, connect_error(errno), errno.desc());
            self.demand.pause(now_ns);
            self.end(slot);
            return;
        }
        connection.phase = Phase::Open;
        if let Some(request) = connection.requests.front() {
            self.recorder.connected(request.start, now_ns);
        }
        if self.job.settings.mode == Mode::Connect {
            if let Some(request) = connection.answer() {
                self.recorder.completed(request, None, now_ns);
            }
            self.end(slot);
            return;
        }
        if connection.budget > 0 || connection.requests.len() > 1 {
            self.ring.socket(slot).inspect(|fd| socket::send_at_once(fd));
        }
        self.send_unsent(slot);
        self.ring.receive(slot, 0);
    }

    fn sent(&mut self, slot: u32, result: Result<usize, Errno>, now_ns: u64) {
        // A failed send is a closed or reset connection: receiving tells which, after whatever
        // the server still had to say.
        let Ok(bytes) = result else {
            return;
        };
        self.recorder.sent(bytes, now_ns);
        match self.connections[slot as usize].rest_of_send(bytes) {
            Some((from, to)) => self.ring.send(slot, from, to),
            None => self.send_unsent(slot),
        }
    }

    fn received(&mut self, slot: u32, result: Result<usize, Errno>, now_ns: u64) {
        if self.connections[slot as usize].held {
            self.recorder.held_lost();
            self.end(slot);
            return;
        }
        match result {
            Ok(0) => self.closed_by_peer(slot, now_ns),
            Ok(bytes) => {
                self.recorder.received(bytes, now_ns);
                let received = self.read(slot, bytes, now_ns);
                self.go_on(slot, received);
            }
            Err(errno) => {
                self.fail(slot, ErrorKind::Reset, errno.desc());
                self.end(slot);
            }
        }
    }

    /// Reads answers out of the buffer.
    fn read(&mut self, slot: u32, bytes: usize, now_ns: u64) -> Received {
        let has_status = self.job.settings.mode == Mode::Http;
        let connection = &mut self.connections[slot as usize];
        let filled = connection.carried + bytes;
        let mut taken = 0;
        while taken < filled {
            if !connection.expects_answer() {
                return match connection.requests.is_empty() {
                    true => Received::Unasked,
                    false => Received::Bad("it came before the request"),
                };
            }
            if let Some(request) = connection.requests.front_mut().filter(|front| !front.begun) {
                request.begun = true;
                self.recorder.first_byte(request.start, now_ns);
            }
            let step = connection.reader.advance(&self.ring.received(slot, filled)[taken..]);
            taken += step.consumed;
            match step.outcome {
                Outcome::More => break,
                Outcome::Bad(why) => return Received::Bad(why),
                Outcome::Complete { status, close } => {
                    if let Some(request) = connection.answer() {
                        self.recorder.response(request.start, now_ns);
                        self.recorder.completed(request, has_status.then_some(status), now_ns);
                    }
                    if close {
                        return Received::Last;
                    }
                }
            }
        }
        connection.carried = filled - taken;
        if connection.carried == BUFFER_BYTES {
            return Received::Bad("its header is longer than 16 KiB");
        }
        if taken > 0 && taken < filled {
            self.ring.keep(slot, taken, filled);
        }
        Received::More
    }

    /// After reading: receives more, sends more, or ends the connection.
    fn go_on(&mut self, slot: u32, received: Received) {
        let connection = &self.connections[slot as usize];
        let done = connection.requests.is_empty() && connection.budget == 0;
        match received {
            Received::More if !done => {
                self.ring.receive(slot, connection.carried);
                if matches!(self.job.settings.load, Load::Closed { .. }) {
                    let room = self.job.pipeline - connection.requests.len();
                    let count = room.min(connection.budget as usize);
                    self.refill(slot, count);
                } else {
                    self.list(slot);
                }
                return;
            }
            Received::More | Received::Unasked => {}
            Received::Last => {
                let example = "the server closed with requests outstanding";
                self.fail(slot, ErrorKind::ClosedEarly, example);
            }
            Received::Bad(why) => self.fail(slot, ErrorKind::BadResponse, why),
        }
        self.end(slot);
    }

    fn closed_by_peer(&mut self, slot: u32, now_ns: u64) {
        let connection = &mut self.connections[slot as usize];
        let ended = connection.expects_answer().then(|| connection.reader.end()).flatten();
        if let Some(Outcome::Complete { status, .. }) = ended
            && let Some(request) = connection.answer()
        {
            self.recorder.response(request.start, now_ns);
            self.recorder.completed(request, Some(status), now_ns);
        }
        let begun = self.connections[slot as usize].requests.front().is_some_and(|r| r.begun);
        let example = match begun {
            true => "the server closed within an answer",
            false => "the server closed without an answer",
        };
        self.fail(slot, ErrorKind::ClosedEarly, example);
        self.end(slot);
    }

    /// Fails every request of a connection; one without any, as an idle one, fails none.
    fn fail(&mut self, slot: u32, kind: ErrorKind, example: &str) {
        for request in self.connections[slot as usize].requests.drain(..) {
            self.recorder.failed(request.start, kind, example);
        }
    }

    /// Ends the connections whose oldest request has run out of time.
    pub(super) fn expire(&mut self, now_ns: u64) {
        while let Some(deadline) = self.deadlines.front().copied() {
            let Deadline { at_ns, slot, tenancy, number } = deadline;
            let connection = &self.connections[slot as usize];
            if connection.awaits(tenancy, number) {
                if at_ns > now_ns {
                    break;
                }
                if connection.phase == Phase::Connecting {
                    self.fail(slot, ErrorKind::ConnectTimeout, "no connection in time");
                    self.demand.pause(now_ns);
                } else {
                    self.fail(slot, ErrorKind::Timeout, "no complete answer in time");
                }
                self.end(slot);
            }
            self.deadlines.pop_front();
        }
    }

    /// Ends a connection: at once if nothing is under way, else after the last completion.
    fn end(&mut self, slot: u32) {
        self.connections[slot as usize].phase = Phase::Ending;
        self.ring.cancel(slot);
        self.end_if_quiet(slot);
    }

    fn end_if_quiet(&mut self, slot: u32) {
        if self.ring.busy(slot) {
            return;
        }
        if self.job.settings.close == CloseBy::Rst {
            self.ring.socket(slot).inspect(|fd| socket::reset_on_close(fd));
        }
        self.ring.close(slot);
        let connection = &mut self.connections[slot as usize];
        connection.phase = Phase::Free;
        self.busy -= usize::from(!connection.held);
        self.free.push(slot);
    }
}

/// How a failed connect counts. A unix socket that is gone is as good as a closed port.
fn connect_error(errno: Errno) -> ErrorKind {
    match errno {
        Errno::ECONNREFUSED | Errno::ENOENT => ErrorKind::ConnectRefused,
        Errno::ETIMEDOUT => ErrorKind::ConnectTimeout,
        Errno::EADDRNOTAVAIL | Errno::EADDRINUSE | Errno::ENOBUFS | Errno::ENOMEM => {
            ErrorKind::Local
        }
        _ => ErrorKind::ConnectFailed,
    }
}
