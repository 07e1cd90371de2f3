//! What a thread does at each event of a connection's life: connected, sent, received, timed
//! out, ended.
//!
//! Every request given to a connection leaves it exactly once: completed, failed with a kind, or
//! counted as unfinished when the run ends. A slot is freed after its last completion, never
//! before.

use nix::errno::Errno;

use super::connection::Phase;
use super::thread::{Deadline, Thread};
use crate::http::Outcome;
use crate::settings::{CloseBy, Load, Mode};
use crate::sys::ring::{BUFFER_BYTES, Completion};
use crate::sys::socket;
use crate::sys::tag::Operation;
use crate::tally::ErrorKind;

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
        let now_ns = self.now_ns();
        for request in self.connections[slot as usize].requests.drain(..) {
            self.recorder.failed(request.start, kind, example, now_ns);
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
