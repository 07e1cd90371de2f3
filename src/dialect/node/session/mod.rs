//! The state machine of one Node worker's channel: messages in, actions out. Pure: it uses no
//! descriptors and no clock.
//!
//! Owns the sequence numbers and replies, the window, the back-off after refusals, and the rule
//! that every connection given to it ends exactly once: accepted by the worker, or returned. The
//! caller keeps the sockets, asks [`Session::room`] before it gives one, and performs the actions
//! of [`Session::next_action`] in order.
//!
//! If a worker dies between taking a connection and confirming it, the connection is returned
//! although the worker had it. Only the worker could tell.

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
    FromWorker, Garbage, ListenTarget, Listening, Own, Query, SentBack, Serialization, SocketName,
    ToWorker, UserMessage,
};
use crate::id::ListenerId;
use backoff::Backoff;
use fd_ordering::{Delayed, UnconfirmedFd};
use listens::{Listens, PendingQuery};
use window::Window;
pub use window::WindowRule;

/// Upper bound for a message with a connection.
const CONNECTION_BYTES_MAX: usize = 512;
/// A connection, as numbered by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub usize);

/// An unanswered listen request of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryId(pub u64);

/// The reply to a listen request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The primary accepts and hands over.
    HandOver {
        /// The listener.
        listener: ListenerId,
        /// The bound address; `None` for unix sockets.
        name: Option<SocketName>,
        /// Its connections begin with a header of the PROXY protocol.
        proxy_protocol: bool,
    },
    /// The worker accepts from a socket attached to the reply: bound, non-blocking, and possibly
    /// not listening.
    Share {
        /// The listener.
        listener: ListenerId,
        /// Whether it is a datagram socket.
        datagram: bool,
        /// The worker counts the connections that it accepts.
        counted: bool,
        /// Its connections begin with a header of the PROXY protocol.
        proxy_protocol: bool,
    },
    /// The request failed.
    Fail(Errno),
}

/// The descriptor attached to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// A connection. The caller keeps its copy until the connection is accepted or returned.
    Connection(ConnectionId),
    /// The socket for the reply to this request.
    Socket(QueryId),
}

/// What the caller must do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send this frame with one write, in this order.
    Send {
        /// The frame.
        frame: Vec<u8>,
        /// The descriptor to attach.
        attachment: Option<Attachment>,
    },
    /// Send the oldest unsent message of the program, in the same way.
    Deliver {
        /// The frame.
        frame: Vec<u8>,
        /// Whether its socket is attached.
        with_socket: bool,
    },
    /// The worker has taken the connection: close the caller's copy.
    Accepted(ConnectionId),
    /// The worker does not have the connection: assign it to another worker.
    Returned(ConnectionId),
    /// The worker received the connection and refused it: assign it to another worker.
    Refused(ConnectionId),
    /// The preload script returns a connection that it took from the inbox. Its descriptor is the
    /// oldest received one that is not yet assigned. Give it to another worker.
    SentBack(SentBack),
    /// The worker has emptied its inbox.
    InboxEnded,
    /// The worker ran out of descriptors.
    ShortOfDescriptors {
        /// A connection was lost because of it.
        lost: bool,
    },
    /// Report an event to the worker's owner.
    Emit(SessionEvent),
}

/// Events of a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum SessionEvent {
    /// The worker's Node runs; its program has not started.
    Online,
    /// It wants to listen; reply with [`Session::answer`].
    Query(QueryId, Box<Query>),
    /// One of its servers listens.
    Listening(Listening),
    /// It has closed its last server on this listener.
    Left(ListenerId),
    /// It leaves voluntarily (Node's `exitedAfterDisconnect`).
    Leaving,
    /// Its program has been told of the shutdown and no longer delays it.
    Stopped {
        /// It has started to close.
        closes: bool,
    },
    /// A message of its program.
    Message(UserMessage),
    /// A message of its program with the attached descriptor.
    Handle(UserMessage),
    /// A socket sent to its program was lost, together with its message.
    SocketLost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SessionStage {
    Open,
    /// It has been told to leave, or has said that it leaves: it gets no more connections.
    Leaving,
    Ended,
}

/// A connection that the worker has not confirmed.
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
    stage: SessionStage,
    sequence: i64,
    queries: u64,
    listens: Listens,
    window: Window,
    rest: Backoff,
    flights: VecDeque<Flight>,
    unconfirmed_fds: VecDeque<UnconfirmedFd>,
    delayed: VecDeque<Delayed>,
    /// Bytes sent since the last message with a descriptor.
    plain_bytes: usize,
    /// The last message with a descriptor may extend across the end of a read.
    solitary: bool,
    /// The preload script takes connections from the inbox, so they are marked with their
    /// listeners.
    marks: bool,
    /// The number it had taken at its last refusal.
    received: u64,
    actions: VecDeque<Action>,
}

impl Session {
    /// The session of a new worker.
    #[must_use]
    pub fn new(serialization: Serialization, window: WindowRule) -> Self {
        Self {
            serialization,
            stage: SessionStage::Open,
            sequence: 0,
            queries: 0,
            listens: Listens::default(),
            window: Window::new(window),
            rest: Backoff::new(),
            flights: VecDeque::new(),
            unconfirmed_fds: VecDeque::new(),
            delayed: VecDeque::new(),
            plain_bytes: 0,
            solitary: false,
            marks: false,
            received: 0,
            actions: VecDeque::new(),
        }
    }

    /// The next action; call it until it returns `None`.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Number of connections that may be given now.
    #[must_use]
    pub fn room(&self, now_ns: u64) -> usize {
        let busy = self.stage != SessionStage::Open || !self.delayed.is_empty();
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

    /// End of the current back-off after a refusal.
    #[must_use]
    pub fn backoff_until_ns(&self, now_ns: u64) -> Option<u64> {
        self.rest.until_ns(now_ns)
    }

    /// Whether the worker can still get connections.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.stage == SessionStage::Open
    }

    /// Whether a message waits for the confirmation of an earlier one.
    #[must_use]
    pub fn is_delaying(&self) -> bool {
        !self.delayed.is_empty()
    }

    /// Age of the oldest unconfirmed connection.
    #[must_use]
    pub fn oldest_age_ns(&self, now_ns: u64) -> Option<u64> {
        self.flights.front().map(|oldest| now_ns.saturating_sub(oldest.sent_ns))
    }

    /// Number of unconfirmed connections.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn unanswered(&self) -> usize {
        self.flights.len()
    }

    /// Gives the worker a connection. Returns `false`, and leaves the connection with the caller,
    /// if the worker does not serve the listener or there is no [`Session::room`].
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
        self.record_fd(frame.len(), UnconfirmedFd::Connection { sequence });
        let attachment = Some(Attachment::Connection(connection));
        self.actions.push_back(Action::Send { frame, attachment });
        true
    }

    /// Whether the worker has a server on this listener.
    #[must_use]
    pub fn serves(&self, listener: ListenerId) -> bool {
        self.listens.key_of(listener).is_some()
    }

    /// The data of this request that the servers of all workers on the listener share.
    #[must_use]
    pub fn data_of(&self, query: QueryId) -> Option<&Value> {
        self.listens.pending(query).map(|pending| &pending.data)
    }

    /// Replies to a listen request. `data` comes from the first worker on the listener. Returns
    /// whether the worker still waits for the reply; a leaving worker does not.
    pub fn answer(&mut self, query: QueryId, answer: &Answer, data: &Value) -> bool {
        let Some(PendingQuery { to, .. }) = self.listens.take_pending(query) else {
            return false;
        };
        if self.stage != SessionStage::Open {
            return false;
        }
        let (key, sequence) = (self.listens.new_key(), self.next_sequence());
        let mark = |listener: &ListenerId| self.marks.then_some(listener.get());
        match answer {
            Answer::Fail(errno) => self.decline(&key, to, data, *errno),
            Answer::HandOver { listener, name, proxy_protocol } => {
                let (name, own) = (name.as_ref(), Own::new(mark(listener), *proxy_protocol));
                self.send(&ToWorker::Listen { key: &key, to, data, name, own, sequence });
                self.listens.open(key, *listener, true);
            }
            Answer::Share { listener, datagram, counted, proxy_protocol } => {
                let datagram = *datagram;
                let own = Own::new(mark(listener).filter(|_| !datagram), *proxy_protocol);
                let own = own.counted(*counted && !datagram);
                let frame =
                    ToWorker::ListenYourself { key: &key, to, data, datagram, own, sequence }
                        .frame(self.serialization);
                self.listens.open(key.clone(), *listener, !datagram);
                let fd = UnconfirmedFd::Answer { key, to, data: data.clone() };
                self.delayed.push_back(Delayed::Answer { query, frame, fd });
                self.send_delayed();
            }
        }
        true
    }

    /// Queues a message for the worker's program, as a complete frame. Messages are sent in the
    /// order of the calls. Returns `false` after the end of the channel.
    pub fn send_message(&mut self, frame: Vec<u8>, with_socket: bool) -> bool {
        if self.stage == SessionStage::Ended {
            return false;
        }
        self.delayed.push_back(Delayed::Message { frame, with_socket });
        self.send_delayed();
        true
    }

    /// Tells the preload script of the shutdown. It replies with [`SessionEvent::Stopped`].
    pub fn stop(&mut self) {
        if self.stage == SessionStage::Open {
            self.send(&ToWorker::Stop);
        }
    }

    /// Tells the worker to close its servers and then the channel. It may still take connections in
    /// flight.
    pub fn disconnect(&mut self) {
        if self.stage == SessionStage::Open {
            self.stage = SessionStage::Leaving;
            let sequence = self.next_sequence();
            self.send(&ToWorker::Disconnect { sequence });
        }
    }

    /// Ends the session, because the channel is closed or unusable: every unconfirmed connection is
    /// returned, oldest first.
    pub fn end(&mut self) {
        self.stage = SessionStage::Ended;
        let flights = std::mem::take(&mut self.flights);
        self.actions.extend(flights.into_iter().map(|one| Action::Returned(one.connection)));
        self.unconfirmed_fds.clear();
        self.delayed.clear();
    }

    /// Processes a message. `arrived` says whether a descriptor came with it.
    ///
    /// # Errors
    /// The worker violated the protocol; call [`Session::end`].
    pub fn receive(
        &mut self,
        message: FromWorker,
        arrived: bool,
        now_ns: u64,
    ) -> Result<(), Garbage> {
        match message {
            FromWorker::Online => self.emit(SessionEvent::Online),
            FromWorker::Query(query) => self.ask(query),
            FromWorker::Listening(listening) => self.emit(SessionEvent::Listening(listening)),
            FromWorker::Close { key } => self.close(&key),
            FromWorker::Leaving { sequence: to } => self.let_go(to),
            FromWorker::Answer { to, accepted } => self.settle(to, accepted, now_ns),
            FromWorker::HandleArrived => self.on_fd_arrived()?,
            FromWorker::HandleLost => self.on_fd_lost(now_ns)?,
            FromWorker::Handle(message) if arrived => {
                // Sent at once: the worker holds back its other messages until then.
                self.send(&ToWorker::HandleArrived);
                self.emit(SessionEvent::Handle(message));
            }
            FromWorker::Handle(_) => self.send(&ToWorker::HandleLost),
            FromWorker::SocketsClose { key } => self.send(&ToWorker::SocketsClosed { key: &key }),
            FromWorker::SocketsCount { key } => self.send(&ToWorker::SocketsCount { key: &key }),
            FromWorker::SentBack(connection) => self.take_back(connection, arrived, now_ns),
            FromWorker::InboxEnded => self.actions.push_back(Action::InboxEnded),
            FromWorker::ShortOfDescriptors { lost, received } => {
                self.on_rejection(received, now_ns);
                self.actions.push_back(Action::ShortOfDescriptors { lost });
            }
            FromWorker::Stopped { closes } => self.emit(SessionEvent::Stopped { closes }),
            FromWorker::Other => {}
            FromWorker::User(message) => self.emit(SessionEvent::Message(message)),
        }
        Ok(())
    }

    fn ask(&mut self, request: Box<Query>) {
        // Requests after the order to leave are ignored, as in Node.
        if self.stage != SessionStage::Open {
            return;
        }
        let refusal = match request.place {
            ListenTarget::Nowhere => Some(Errno::EINVAL),
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
        self.listens.add_pending(PendingQuery { query, to: request.sequence, data });
        self.emit(SessionEvent::Query(query, request));
    }

    fn decline(&mut self, key: &str, to: i64, data: &Value, errno: Errno) {
        let (errno, sequence) = (errno as i32, self.next_sequence());
        self.send(&ToWorker::ListenFailed { key, to, data, errno, sequence });
    }

    fn close(&mut self, key: &str) {
        if let Some(listener) = self.listens.close(key) {
            self.emit(SessionEvent::Left(listener));
        }
    }

    fn let_go(&mut self, to: Option<i64>) {
        let sequence = self.next_sequence();
        self.send(&ToWorker::Farewell { to, sequence });
        if self.stage == SessionStage::Open {
            self.stage = SessionStage::Leaving;
        }
        self.emit(SessionEvent::Leaving);
    }

    /// Processes the confirmation of a connection. One for an unknown connection is ignored, as in
    /// Node.
    fn settle(&mut self, to: i64, accepted: Option<bool>, now_ns: u64) {
        let Some(flight) = self.take_flight(to) else { return };
        if accepted == Some(true) {
            self.window.acknowledged(now_ns.saturating_sub(flight.sent_ns));
            self.rest.taken();
            return self.actions.push_back(Action::Accepted(flight.connection));
        }
        // A server closed since then refuses connections in flight, which says nothing about the
        // worker's other servers.
        if self.listens.has(&flight.key) {
            self.on_refusal(now_ns);
        }
        self.actions.push_back(Action::Refused(flight.connection));
    }

    fn on_refusal(&mut self, now_ns: u64) {
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

    fn emit(&mut self, event: SessionEvent) {
        self.actions.push_back(Action::Emit(event));
    }

    fn next_sequence(&mut self) -> i64 {
        self.sequence += 1;
        self.sequence - 1
    }
}

#[cfg(test)]
mod tests;
