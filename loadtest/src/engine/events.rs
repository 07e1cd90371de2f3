//! What a thread does at each event of a connection's life: connected, sent, received, timed
//! out, ended. What is different with TLS is in `encrypted`.
//!
//! Every request of a connection ends exactly once: completed, failed with a kind, or counted as
//! unfinished when the run ends. A slot is freed once the kernel has completed everything of it.

use nix::errno::Errno;

use super::connection::{Connection, Phase};
use super::recorder::Recorder;
use super::thread::{Deadline, Thread};
use crate::http::Outcome;
use crate::settings::{CloseBy, Load, Mode};
use crate::sys::ring::{BUFFER_BYTES, Completion};
use crate::sys::socket;
use crate::sys::tag::Operation;
use crate::tally::ErrorKind;

/// The longest response head; longer ones are refused.
const HEAD_BYTES_MAX: usize = 256 * 1024;
/// Memory that a connection keeps for its next long head.
const SPILL_BYTES_KEPT: usize = 32 * 1024;

/// The result of reading received bytes.
pub(super) enum Received {
    /// The connection goes on.
    More,
    /// The server will close it.
    Last,
    /// Bytes on a connection without requests: it ends.
    Unasked,
    Bad(&'static str),
}

impl Thread {
    /// Hands a completion to its handler.
    pub(super) fn on_completion(&mut self, completion: Completion, now_ns: u64) {
        let Completion { operation, slot, result } = completion;
        match self.connections[slot as usize].phase {
            // The last completions of a slot may come at once, and the first of them frees it.
            Phase::Free => return,
            Phase::Ending => return self.end_if_quiet(slot),
            Phase::Connecting | Phase::Handshaking | Phase::Open => {}
        }
        let result = usize::try_from(result).map_err(|_| Errno::from_raw(-result));
        match operation {
            Operation::Connect => self.on_connect(slot, result.err(), now_ns),
            Operation::Send => self.on_send(slot, result, now_ns),
            Operation::Receive => self.on_receive(slot, result, now_ns),
            Operation::Cancel | Operation::Close => {}
        }
    }

    fn on_connect(&mut self, slot: u32, error: Option<Errno>, now_ns: u64) {
        if let Some(errno) = error {
            self.on_connect_failure(slot, errno, now_ns);
            return;
        }
        let connection = &self.connections[slot as usize];
        self.preferred[connection.server] = connection.address;
        if self.begin_handshake(slot) {
            return;
        }
        self.on_open(slot, now_ns);
        if self.connections[slot as usize].phase == Phase::Open {
            self.send_unsent(slot);
            self.ring.receive(slot, 0);
        }
    }

    fn on_connect_failure(&mut self, slot: u32, errno: Errno, now_ns: u64) {
        if self.connect_elsewhere(slot) {
            return;
        }
        let connection = &self.connections[slot as usize];
        if connection.held {
            self.on_held_failure(slot, errno.desc());
            return;
        }
        let example = format!("{}: {}", self.job.tried(connection.server), errno.desc());
        self.fail(slot, connect_error(errno), &example);
        self.demand.pause(now_ns);
        self.end(slot);
    }

    /// A held connection failed, before or after it was open.
    pub(super) fn on_held_failure(&mut self, slot: u32, why: &str) {
        match self.connections[slot as usize].phase {
            Phase::Connecting | Phase::Handshaking => {
                self.held.opening -= 1;
                self.held.failure = Some(why.to_owned());
            }
            _ => self.recorder.held_lost(),
        }
        self.end(slot);
    }

    /// A connection is ready for requests. In connect mode it is complete.
    pub(super) fn on_open(&mut self, slot: u32, now_ns: u64) {
        let connection = &mut self.connections[slot as usize];
        connection.phase = Phase::Open;
        if connection.held {
            self.held.opening -= 1;
            self.held.open += 1;
            return;
        }
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
    }

    fn on_send(&mut self, slot: u32, result: Result<usize, Errno>, now_ns: u64) {
        // A failed send is a closed or reset connection: receiving tells which, after whatever
        // the server still had to say.
        let Ok(bytes) = result else {
            return;
        };
        self.recorder.sent(bytes, now_ns);
        let connection = &mut self.connections[slot as usize];
        if connection.tls.is_some() {
            self.on_encrypted_sent(slot, bytes);
            return;
        }
        match connection.rest_of_send(bytes) {
            Some((from, to)) => self.ring.send(slot, from, to),
            None => self.send_unsent(slot),
        }
    }

    fn on_receive(&mut self, slot: u32, result: Result<usize, Errno>, now_ns: u64) {
        let connection = &self.connections[slot as usize];
        match result {
            Ok(bytes @ 1..) if connection.tls.is_some() => {
                self.recorder.received(bytes, now_ns);
                self.on_encrypted(slot, bytes, now_ns);
            }
            _ if connection.held => self.on_held_failure(slot, "the server closed"),
            Ok(0) => self.on_close(slot, now_ns),
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

    /// Reads answers out of the slot's buffer.
    fn read(&mut self, slot: u32, bytes: usize, now_ns: u64) -> Received {
        let connection = &mut self.connections[slot as usize];
        if !connection.spill.is_empty() {
            connection.spill.extend_from_slice(self.ring.received(slot, bytes));
            return self.read_spill(slot, now_ns);
        }
        let filled = connection.carried + bytes;
        let buffer = self.ring.received(slot, filled);
        let has_status = self.job.settings.mode == Mode::Http;
        let (taken, received) = connection.read(buffer, has_status, &mut self.recorder, now_ns);
        if !matches!(received, Received::More) {
            return received;
        }
        connection.carried = filled - taken;
        if connection.carried == BUFFER_BYTES {
            connection.spill.extend_from_slice(buffer);
            connection.carried = 0;
        } else if taken > 0 && taken < filled {
            self.ring.keep(slot, taken, filled);
        }
        Received::More
    }

    /// Reads answers out of the bytes that are not in the slot's buffer.
    pub(super) fn read_spill(&mut self, slot: u32, now_ns: u64) -> Received {
        let has_status = self.job.settings.mode == Mode::Http;
        let connection = &mut self.connections[slot as usize];
        let mut spill = std::mem::take(&mut connection.spill);
        let (taken, received) = connection.read(&spill, has_status, &mut self.recorder, now_ns);
        spill.drain(..taken);
        let too_long = spill.len() > HEAD_BYTES_MAX;
        if !spill.is_empty() || spill.capacity() <= SPILL_BYTES_KEPT {
            connection.spill = spill;
        }
        match received {
            Received::More if too_long => Received::Bad("its head is longer than 256 KiB"),
            other => other,
        }
    }

    /// After reading: receives more, sends more, or ends the connection.
    pub(super) fn go_on(&mut self, slot: u32, received: Received) {
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

    pub(super) fn on_close(&mut self, slot: u32, now_ns: u64) {
        let connection = &mut self.connections[slot as usize];
        if connection.phase == Phase::Handshaking {
            self.on_tls_failure(slot, "the server closed within the handshake");
            return;
        }
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
    pub(super) fn fail(&mut self, slot: u32, kind: ErrorKind, example: &str) {
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
                match connection.phase {
                    Phase::Connecting => {
                        self.avoid_address(slot);
                        self.fail(slot, ErrorKind::ConnectTimeout, "no connection in time");
                        self.demand.pause(now_ns);
                    }
                    Phase::Handshaking => {
                        self.fail(slot, ErrorKind::ConnectTimeout, "no TLS session in time");
                        self.demand.pause(now_ns);
                    }
                    _ => self.fail(slot, ErrorKind::Timeout, "no complete answer in time"),
                }
                self.end(slot);
            }
            self.deadlines.pop_front();
        }
    }

    /// Ends a connection: at once if nothing is under way, else after the last completion.
    pub(super) fn end(&mut self, slot: u32) {
        self.connections[slot as usize].phase = Phase::Ending;
        self.ring.cancel(slot);
        self.end_if_quiet(slot);
    }

    fn end_if_quiet(&mut self, slot: u32) {
        if self.ring.busy(slot) {
            return;
        }
        self.send_closing_alert(slot);
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

/// How a failed connect counts. A unix socket that is gone counts as a closed port.
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

impl Connection {
    /// Reads answers out of received bytes. Returns how many of the bytes are done with.
    fn read(
        &mut self,
        bytes: &[u8],
        has_status: bool,
        recorder: &mut Recorder,
        now_ns: u64,
    ) -> (usize, Received) {
        let mut taken = 0;
        while taken < bytes.len() {
            if !self.expects_answer() {
                let received = match self.requests.is_empty() {
                    true => Received::Unasked,
                    false => Received::Bad("it came before the request"),
                };
                return (taken, received);
            }
            if let Some(request) = self.requests.front_mut().filter(|front| !front.begun) {
                request.begun = true;
                recorder.first_byte(request.start, now_ns);
            }
            let step = self.reader.advance(&bytes[taken..]);
            taken += step.consumed;
            match step.outcome {
                Outcome::More => break,
                Outcome::Bad(why) => return (taken, Received::Bad(why)),
                Outcome::Complete { status, close } => {
                    if let Some(request) = self.answer() {
                        recorder.response(request.start, now_ns);
                        recorder.completed(request, has_status.then_some(status), now_ns);
                    }
                    if close {
                        return (taken, Received::Last);
                    }
                }
            }
        }
        (taken, Received::More)
    }
}
