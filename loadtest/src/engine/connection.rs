//! One connection's state: which requests it carries and how far they are. Pure bookkeeping;
//! sockets and buffers belong to the ring, under the same slot number.

use std::collections::VecDeque;

use super::payload::Payload;
use crate::plan::Start;
use crate::protocol::Reader;
use crate::tls::Session;

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The slot is free.
    Free,
    Connecting,
    /// Connected; TLS is being set up.
    Handshaking,
    Open,
    /// Waiting for the last completions before the socket is closed.
    Ending,
}

/// A request under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) start: Start,
    /// Its answer has begun.
    pub(super) begun: bool,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) phase: Phase,
    /// Opened to be held, not to carry requests.
    pub(super) held: bool,
    /// The server that it leads to, and the one of its targets that the next unsent request asks.
    pub(super) server: usize,
    pub(super) target: usize,
    /// Which of the server's addresses is tried, and how many have been before it.
    pub(super) address: usize,
    pub(super) tried: usize,
    /// Counts the slot's tenants, so that a list can tell a former one.
    pub(super) tenancy: u32,
    /// Oldest first; answers come in this order.
    pub(super) requests: VecDeque<Request>,
    /// Requests answered before the oldest of `requests`.
    pub(super) answered: u32,
    /// How many of the newest requests have not been handed to a send.
    pub(super) unsent: usize,
    /// The payload's range that is being sent.
    pub(super) sending: (usize, usize),
    /// Requests it may still be given.
    pub(super) budget: u32,
    /// Bytes of an incomplete answer at the front of the buffer.
    pub(super) carried: usize,
    /// Bytes of an incomplete answer that outgrew the buffer, or were decrypted.
    pub(super) spill: Vec<u8>,
    pub(super) tls: Option<Box<Session>>,
    /// Encrypted bytes that have been sent of those in the slot's buffer.
    pub(super) encrypted_sent: usize,
    pub(super) reader: Reader,
    /// Among those with room in their pipeline.
    pub(super) listed: bool,
}

impl Connection {
    pub(super) fn free(reader: Reader) -> Self {
        Self {
            phase: Phase::Free,
            held: false,
            server: 0,
            target: 0,
            address: 0,
            tried: 0,
            tenancy: 0,
            requests: VecDeque::new(),
            answered: 0,
            unsent: 0,
            sending: (0, 0),
            budget: 0,
            carried: 0,
            spill: Vec::new(),
            tls: None,
            encrypted_sent: 0,
            reader,
            listed: false,
        }
    }

    /// Begins a new tenancy, connecting to a server to ask for its target number `target` first.
    pub(super) fn restart(
        &mut self,
        reader: Reader,
        (server, target): (usize, usize),
        budget: u32,
        held: bool,
    ) {
        self.phase = Phase::Connecting;
        self.held = held;
        self.server = server;
        self.target = target;
        self.tried = 0;
        self.tenancy = self.tenancy.wrapping_add(1);
        self.requests.clear();
        self.answered = 0;
        self.unsent = 0;
        self.sending = (0, 0);
        self.budget = budget;
        self.carried = 0;
        self.spill.clear();
        self.tls = None;
        self.encrypted_sent = 0;
        self.reader = reader;
        self.listed = false;
    }

    /// Puts a request behind the others. Returns its number on this connection.
    pub(super) fn give(&mut self, start: Start) -> u32 {
        let begun = false;
        self.requests.push_back(Request { start, begun });
        self.unsent += 1;
        self.budget = self.budget.saturating_sub(1);
        let place = u32::try_from(self.requests.len() - 1).unwrap_or(u32::MAX);
        self.answered.wrapping_add(place)
    }

    /// The payload range that sends all unsent requests, now taken as being sent.
    pub(super) fn next_send(&mut self, payload: &Payload) -> Option<(usize, usize)> {
        if self.unsent == 0 || self.phase != Phase::Open {
            return None;
        }
        self.sending = payload.range(self.server, self.target, self.unsent, self.budget == 0);
        // A division costs time, and mostly there is one target.
        let targets = payload.targets(self.server);
        if targets > 1 {
            self.target = (self.target + self.unsent) % targets;
        }
        self.unsent = 0;
        Some(self.sending)
    }

    /// Takes note of `sent` bytes. Returns the range that is left, if any.
    pub(super) fn rest_of_send(&mut self, sent: usize) -> Option<(usize, usize)> {
        self.sending.0 += sent;
        (self.sending.0 < self.sending.1).then_some(self.sending)
    }

    /// The oldest request has been answered.
    pub(super) fn answer(&mut self) -> Option<Request> {
        let request = self.requests.pop_front()?;
        self.answered = self.answered.wrapping_add(1);
        Some(request)
    }

    /// True if the oldest request is one that has been handed to a send.
    pub(super) fn expects_answer(&self) -> bool {
        self.requests.len() > self.unsent
    }

    /// True if another request may be given, `pipeline` being the most at once.
    pub(super) fn has_room(&self, pipeline: usize) -> bool {
        self.phase == Phase::Open && self.budget > 0 && self.requests.len() < pipeline
    }

    /// True if the request with this number on this tenancy is still unanswered.
    pub(super) fn awaits(&self, tenancy: u32, number: u32) -> bool {
        let place = number.wrapping_sub(self.answered) as usize;
        self.tenancy == tenancy && place < self.requests.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::ResponseReader;
    use crate::settings::{Load, Settings};

    fn start(start_ns: u64) -> Start {
        Start { start_ns, measured: true }
    }

    #[test]
    fn requests_are_sent_together_and_answered_in_order() {
        let reader = Reader::Http(ResponseReader::default());
        let target = "127.0.0.1:1/".parse().expect("a target");
        let load = Load::Closed { connections: 1 };
        let settings = Settings { pipeline: 3, ..Settings::new(target, load) };
        let payload = Payload::new(&settings, &[vec![&settings.target]]);
        let bytes = payload.range(0, 0, 1, false).1;
        let mut connection = Connection::free(reader);
        connection.restart(reader, (0, 0), 3, false);
        assert_eq!(connection.give(start(1)), 0);
        assert_eq!(connection.give(start(2)), 1);
        assert_eq!(connection.next_send(&payload), None, "not connected yet");
        connection.phase = Phase::Open;
        assert!(!connection.expects_answer());
        assert_eq!(connection.next_send(&payload), Some((0, 2 * bytes)));
        assert_eq!(connection.rest_of_send(bytes + 5), Some((bytes + 5, 2 * bytes)));
        assert_eq!(connection.rest_of_send(bytes - 5), None);
        assert!(connection.expects_answer() && connection.has_room(3) && !connection.has_room(2));
        let tenancy = connection.tenancy;
        assert!(connection.awaits(tenancy, 0) && connection.awaits(tenancy, 1));
        assert_eq!(connection.answer().map(|request| request.start.start_ns), Some(1));
        assert!(!connection.awaits(tenancy, 0) && connection.awaits(tenancy, 1));
        assert_eq!(connection.give(start(3)), 2);
        assert!(!connection.has_room(9), "the budget is used up");
        connection.restart(reader, (0, 0), 1, false);
        assert!(!connection.awaits(tenancy, 1));
    }
}
