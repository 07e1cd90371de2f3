//! One Node worker's channel as a state machine: messages in, actions out. Pure: it sees no
//! descriptor and no clock.
//!
//! Owns the numbers and answers, the window, the rests after refusals, and the rule that every
//! connection given to it ends exactly once: accepted by the worker, or returned. The caller keeps
//! the sockets, asks [`Session::room`] before it gives one, and does what
//! [`Session::next_action`] says, in that order.
//!
//! A worker that dies between taking a connection and saying so is the one case in which a
//! connection is returned although somebody has had it. Nothing outside the worker can tell.

mod backoff;
mod fd_ordering;
mod listens;
mod own_inbox;
mod window;

use std::collections::VecDeque;
use std::sync::Arc;

use nix::errno::Errno;
use serde_json::Value;

use super::codec::{
    FromWorker, Garbage, Listening, Place, Query, SentBack, Serialization, SocketName, ToWorker,
    UserMessage,
};
use crate::id::ListenerId;
use backoff::Backoff;
use fd_ordering::{Cover, Delayed};
use listens::{Asked, Listens};
use window::Window;
pub use window::WindowRule;

/// More than any message with a connection takes.
const CONNECTION_BYTES_MAX: usize = 512;
/// A connection, as the caller names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub usize);

/// A worker's request to listen, until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryId(pub u64);

/// The answer to a request to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The primary accepts and hands over.
    HandOver {
        /// Where it accepts.
        listener: ListenerId,
        /// The bound address; none for unix sockets.
        name: Option<SocketName>,
    },
    /// The worker accepts from a socket that travels with the answer: bound, not blocking, and
    /// not necessarily listening.
    Share {
        /// Which socket it is.
        listener: ListenerId,
        /// It is for datagrams.
        datagram: bool,
    },
    /// It cannot be.
    Fail(Errno),
}

/// What travels with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// A connection. The caller keeps its copy until the connection is accepted or returned.
    Connection(ConnectionId),
    /// The socket that goes with the answer to this request.
    Socket(QueryId),
}

/// What the caller has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send this with one write, and in this order.
    Send {
        /// The bytes.
        frame: Vec<u8>,
        /// A descriptor to be sent with them.
        attachment: Option<Attachment>,
    },
    /// Send this message of the program's, the oldest that has not been sent, in the same way.
    Deliver {
        /// The bytes.
        frame: Vec<u8>,
        /// Its socket is to be sent with them.
        with_socket: bool,
    },
    /// The worker has the connection: close the own copy.
    Accepted(ConnectionId),
    /// The worker does not have the connection: give it to somebody else.
    Returned(ConnectionId),
    /// The worker has had the connection and did not want it: give it to somebody else.
    Refused(ConnectionId),
    /// A connection that our own script in the worker had taken from the inbox is back, with the
    /// oldest descriptor that came and is not spoken for: give it to somebody else.
    SentBack(SentBack),
    /// The worker has taken everything out of its inbox by itself.
    InboxEnded,
    /// The worker had too few descriptors, and lost a connection if it says so.
    ShortOfDescriptors {
        /// A connection was lost.
        lost: bool,
    },
    /// Tell whoever watches over the worker.
    Tell(Event),
}

/// What the worker's keeper may want to know.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The worker's Node runs; its program does not yet.
    Online,
    /// It wants to listen; to be answered with [`Session::answer`].
    Query(QueryId, Box<Query>),
    /// A server of it listens.
    Listening(Listening),
    /// It has closed its last server on this listener.
    Left(ListenerId),
    /// It leaves by itself, in order (Node's `exitedAfterDisconnect`).
    Leaving,
    /// Its program has heard that everything stops and does not wait any more.
    Stopped {
        /// It has begun to close.
        closes: bool,
    },
    /// A message of its program.
    Message(UserMessage),
    /// A message of its program with the descriptor that came with it.
    Handle(UserMessage),
    /// A socket that was sent to its program did not arrive, nor did the message with it.
    SocketLost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Open,
    /// It has been told to go, or has said that it goes: it gets nothing more.
    Leaving,
    Ended,
}

/// A connection that the worker has not answered for.
#[derive(Clone, Debug)]
struct Flight {
    connection: ConnectionId,
    sequence: i64,
    key: Arc<str>,
    sent_ns: u64,
}

/// A worker's channel.
#[derive(Debug)]
pub struct Session {
    serialization: Serialization,
    stage: Stage,
    sequence: i64,
    queries: u64,
    listens: Listens,
    window: Window,
    rest: Backoff,
    flights: VecDeque<Flight>,
    covers: VecDeque<Cover>,
    delayed: VecDeque<Delayed>,
    /// Bytes sent since the last message with a descriptor.
    plain_bytes: usize,
    /// The last message with a descriptor may lie across the end of a read.
    solitary: bool,
    /// Our own script in the worker takes connections from the inbox, and those are marked with
    /// their listeners.
    marks: bool,
    /// How many it had taken when it did not want others the last time.
    received: u64,
    actions: VecDeque<Action>,
}

impl Session {
    /// For a worker that has just been started.
    #[must_use]
    pub fn new(serialization: Serialization, window: WindowRule) -> Self {
        Self {
            serialization,
            stage: Stage::Open,
            sequence: 0,
            queries: 0,
            listens: Listens::default(),
            window: Window::new(window),
            rest: Backoff::new(),
            flights: VecDeque::new(),
            covers: VecDeque::new(),
            delayed: VecDeque::new(),
            plain_bytes: 0,
            solitary: false,
            marks: false,
            received: 0,
            actions: VecDeque::new(),
        }
    }

    /// What to do next; to be asked until there is nothing.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// How many connections may be given now.
    #[must_use]
    pub fn room(&self, now_ns: u64) -> usize {
        let busy = self.stage != Stage::Open || !self.delayed.is_empty();
        if busy || self.backoff_until_ns(now_ns).is_some() {
            return 0;
        }
        let age_ns = self.oldest_age_ns(now_ns).unwrap_or(0);
        let room = self.window.width(age_ns).saturating_sub(self.flights.len());
        if !self.may_send_cover(CONNECTION_BYTES_MAX) {
            return 0;
        }
        if self.may_be_read_in_parts(CONNECTION_BYTES_MAX) { room.min(1) } else { room }
    }

    /// Until when the worker gets nothing because it refused something.
    #[must_use]
    pub fn backoff_until_ns(&self, now_ns: u64) -> Option<u64> {
        self.rest.until_ns(now_ns)
    }

    /// Whether the worker may ever get a connection again.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    /// Something cannot be sent before the worker has said that it has received something else.
    #[must_use]
    pub fn is_delaying(&self) -> bool {
        !self.delayed.is_empty()
    }

    /// How long ago the oldest connection was sent that the worker has not answered for.
    #[must_use]
    pub fn oldest_age_ns(&self, now_ns: u64) -> Option<u64> {
        self.flights.front().map(|oldest| now_ns.saturating_sub(oldest.sent_ns))
    }

    /// Connections that the worker has not answered for.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn unanswered(&self) -> usize {
        self.flights.len()
    }

    /// Gives the worker a connection. Tells whether it could: the worker must serve the listener,
    /// and there must be [`Session::room`]. If not, the connection stays with the caller.
    pub fn hand_over(
        &mut self,
        connection: ConnectionId,
        listener: ListenerId,
        now_ns: u64,
    ) -> bool {
        if self.room(now_ns) == 0 {
            return false;
        }
        let Some(key) = self.listens.key_of(listener).cloned() else {
            return false;
        };
        let sequence = self.next_sequence();
        let frame = ToWorker::Connection { key: &key, sequence }.frame(self.serialization);
        self.flights.push_back(Flight { connection, sequence, key, sent_ns: now_ns });
        self.note_cover(frame.len(), Cover::Connection { sequence });
        let attachment = Some(Attachment::Connection(connection));
        self.actions.push_back(Action::Send { frame, attachment });
        true
    }

    /// Whether the worker has a server on this listener.
    #[must_use]
    pub fn serves(&self, listener: ListenerId) -> bool {
        self.listens.key_of(listener).is_some()
    }

    /// What the servers of all workers on one listener shall share, as this request has it.
    #[must_use]
    pub fn data_of(&self, query: QueryId) -> Option<&Value> {
        self.listens.asked(query).map(|asked| &asked.data)
    }

    /// Answers a request to listen. `data` is what the first worker on the listener brought. Tells
    /// whether the worker still waits for it; one that leaves does not.
    pub fn answer(&mut self, query: QueryId, answer: &Answer, data: &Value) -> bool {
        let Some(Asked { to, .. }) = self.listens.take_asked(query) else {
            return false;
        };
        if self.stage != Stage::Open {
            return false;
        }
        let (key, sequence) = (self.listens.new_key(), self.next_sequence());
        let mark = |listener: &ListenerId| self.marks.then_some(listener.0);
        match answer {
            Answer::Fail(errno) => self.decline(&key, to, data, *errno),
            Answer::HandOver { listener, name } => {
                let (name, mark) = (name.as_ref(), mark(listener));
                self.send(&ToWorker::Listen { key: &key, to, data, name, mark, sequence });
                self.listens.open(key, *listener, true);
            }
            Answer::Share { listener, datagram } => {
                let datagram = *datagram;
                let mark = mark(listener).filter(|_| !datagram);
                let frame =
                    ToWorker::ListenYourself { key: &key, to, data, datagram, mark, sequence }
                        .frame(self.serialization);
                self.listens.open(key.clone(), *listener, !datagram);
                let cover = Cover::Answer { key, to, data: data.clone() };
                self.delayed.push_back(Delayed::Answer { query, frame, cover });
                self.send_delayed();
            }
        }
        true
    }

    /// Sends a message to the worker's program, whole as it shall be written. Tells whether it will
    /// go, in the order of these calls; after the end nothing does.
    pub fn send_message(&mut self, frame: Vec<u8>, with_socket: bool) -> bool {
        if self.stage == Stage::Ended {
            return false;
        }
        self.delayed.push_back(Delayed::Message { frame, with_socket });
        self.send_delayed();
        true
    }

    /// Tells our own script in the worker that everything stops. It answers with
    /// [`Event::Stopped`].
    pub fn stop(&mut self) {
        if self.stage == Stage::Open {
            self.send(&ToWorker::Stop);
        }
    }

    /// Tells the worker to close its servers and then the channel. What it has not answered for
    /// it may still take.
    pub fn disconnect(&mut self) {
        if self.stage == Stage::Open {
            self.stage = Stage::Leaving;
            let sequence = self.next_sequence();
            self.send(&ToWorker::Disconnect { sequence });
        }
    }

    /// The channel is closed, or of no use any more: everything that the worker has not answered
    /// for is returned, oldest first.
    pub fn end(&mut self) {
        self.stage = Stage::Ended;
        let flights = std::mem::take(&mut self.flights);
        self.actions.extend(flights.into_iter().map(|one| Action::Returned(one.connection)));
        self.covers.clear();
        self.delayed.clear();
    }

    /// Takes a message in. `arrived` says whether a descriptor came with it.
    ///
    /// # Errors
    /// The worker says what cannot be; [`Session::end`] is to be called.
    pub fn receive(
        &mut self,
        message: FromWorker,
        arrived: bool,
        now_ns: u64,
    ) -> Result<(), Garbage> {
        match message {
            FromWorker::Online => self.tell(Event::Online),
            FromWorker::Query(query) => self.ask(query),
            FromWorker::Listening(listening) => self.tell(Event::Listening(listening)),
            FromWorker::Close { key } => self.close(&key),
            FromWorker::Leaving { sequence: to } => self.let_go(to),
            FromWorker::Answer { to, accepted } => self.settle(to, accepted, now_ns),
            FromWorker::HandleArrived => self.cover_arrived()?,
            FromWorker::HandleLost => self.cover_lost(now_ns)?,
            FromWorker::Handle(message) if arrived => {
                // At once: until then the worker keeps all it has to say to itself.
                self.send(&ToWorker::HandleArrived);
                self.tell(Event::Handle(message));
            }
            FromWorker::Handle(_) => self.send(&ToWorker::HandleLost),
            FromWorker::SocketsClose { key } => self.send(&ToWorker::SocketsClosed { key: &key }),
            FromWorker::SocketsCount { key } => self.send(&ToWorker::SocketsCount { key: &key }),
            FromWorker::SentBack(connection) => self.take_back(connection, arrived, now_ns),
            FromWorker::InboxEnded => self.actions.push_back(Action::InboxEnded),
            FromWorker::ShortOfDescriptors { lost, received } => {
                self.note_rest(received, now_ns);
                self.actions.push_back(Action::ShortOfDescriptors { lost });
            }
            FromWorker::Stopped { closes } => self.tell(Event::Stopped { closes }),
            FromWorker::Other => {}
            FromWorker::User(message) => self.tell(Event::Message(message)),
        }
        Ok(())
    }

    fn ask(&mut self, request: Box<Query>) {
        // One that has been told to go asks in vain, as in Node.
        if self.stage != Stage::Open {
            return;
        }
        let refusal = match request.place {
            Place::Nowhere => Some(Errno::EINVAL),
            _ if self.listens.is_full() => Some(Errno::ENOBUFS),
            _ => None,
        };
        if let Some(errno) = refusal {
            let key = self.listens.new_key();
            return self.decline(&key, request.sequence, &request.data, errno);
        }
        self.queries += 1;
        let query = QueryId(self.queries);
        let data = request.data.clone();
        self.listens.ask(Asked { query, to: request.sequence, data });
        self.tell(Event::Query(query, request));
    }

    fn decline(&mut self, key: &str, to: i64, data: &Value, errno: Errno) {
        let (errno, sequence) = (errno as i32, self.next_sequence());
        self.send(&ToWorker::ListenFailed { key, to, data, errno, sequence });
    }

    fn close(&mut self, key: &str) {
        if let Some(listener) = self.listens.close(key) {
            self.tell(Event::Left(listener));
        }
    }

    fn let_go(&mut self, to: Option<i64>) {
        let sequence = self.next_sequence();
        self.send(&ToWorker::Farewell { to, sequence });
        if self.stage == Stage::Open {
            self.stage = Stage::Leaving;
        }
        self.tell(Event::Leaving);
    }

    /// The worker has said what became of a connection. An answer to nothing is nothing, as in
    /// Node.
    fn settle(&mut self, to: i64, accepted: Option<bool>, now_ns: u64) {
        let Some(flight) = self.take_flight(to) else { return };
        if accepted == Some(true) {
            self.window.acknowledged(now_ns.saturating_sub(flight.sent_ns));
            self.rest.taken();
            return self.actions.push_back(Action::Accepted(flight.connection));
        }
        // A server that has been closed meanwhile refuses what was under way, and that says
        // nothing about the worker's others.
        if self.listens.has(&flight.key) {
            self.note_refusal(now_ns);
        }
        self.actions.push_back(Action::Refused(flight.connection));
    }

    fn note_refusal(&mut self, now_ns: u64) {
        self.window.refused();
        self.rest.refused(now_ns);
    }

    fn take_flight(&mut self, sequence: i64) -> Option<Flight> {
        let place = self.flights.iter().position(|flight| flight.sequence == sequence)?;
        self.flights.remove(place)
    }

    fn send(&mut self, message: &ToWorker<'_>) {
        let frame = message.frame(self.serialization);
        self.plain_bytes = self.plain_bytes.saturating_add(frame.len());
        self.actions.push_back(Action::Send { frame, attachment: None });
    }

    fn tell(&mut self, event: Event) {
        self.actions.push_back(Action::Tell(event));
    }

    fn next_sequence(&mut self) -> i64 {
        self.sequence += 1;
        self.sequence - 1
    }
}

#[cfg(test)]
mod tests;
