//! One worker in the bridge: its channel, inbox, page, and every connection between inbox and
//! confirmation.
//!
//! Owns the rule that a connection taken from the inbox is in exactly one place: in the queue, in
//! the session, or on its way back to the data path.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use serde_json::Value;
use slab::Slab;

use super::super::codec::Decoder;
use super::super::session::{
    Action, Answer, Attachment, ConnectionId, QueryId, Session, SessionEvent,
};
use super::ack_batching::Urgency;
use super::endpoints::Endpoints;
use super::messages::{NewNodeWorker, Notice};
use super::outbox::{Attached, Left, Outbox};
use super::send_quota::{Permit, UserMessageOut};
use super::{HOLD_NS, UNREAD_BYTES_MAX};
use crate::data_path::Command;
use crate::error::Result;
use crate::id::{ListenerId, Slot, WorkerId};
use crate::protocol::handoff_layout::Record;
use crate::protocol::scoreboard::WorkerPage;
use crate::sys::engine::PAYLOAD_BYTES_MAX;
use crate::sys::fdpass;

/// How far to read a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// Until the control plane is behind.
    UntilHeldUp,
    /// To the end.
    Everything,
}

/// Size of the buffer for reading a channel.
pub(super) const READ_BYTES: usize = 64 * 1024;
/// Maximum number of messages taken from an inbox per turn.
const MESSAGES_A_TURN_MAX: usize = 64;
/// Delay before sending again when the kernel has too many descriptors in flight.
const CROWDED_NS: u64 = 5_000_000;

/// A connection that the worker has not confirmed.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) socket: OwnedFd,
    pub(super) record: Record,
}

/// What may be ready in a worker's turn.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ready {
    pub(super) channel: bool,
    pub(super) inbox: bool,
}

/// Why a channel has to be closed.
#[derive(Debug)]
pub(super) enum End {
    /// The worker has closed it.
    Closed,
    /// It is unusable.
    Failed(String),
}

/// A worker.
#[derive(Debug)]
pub(super) struct NodeWorker {
    pub(super) worker: WorkerId,
    slot: Slot,
    pub(super) channel: OwnedFd,
    inbox: OwnedFd,
    /// The inbox may be readable.
    inbox_ready: bool,
    /// The data path has closed its end, and the inbox is empty.
    inbox_ended: bool,
    /// The worker empties its inbox itself, as long as it serves anything.
    pub(super) receives: bool,
    pub(super) page: WorkerPage,
    /// The page has changes that have not been published.
    pub(super) touched: bool,
    pub(super) decoder: Decoder,
    pub(super) session: Session,
    outbox: Outbox,
    crowded_until_ns: Option<u64>,
    pub(super) held: Slab<Held>,
    /// Connections taken from the inbox and not yet given to the session, oldest first. Bounded to
    /// one message, because the inbox is not read while any are here.
    queue: VecDeque<ConnectionId>,
    queued_since_ns: u64,
    /// Connections that go back to the data path at the end of the turn.
    pub(super) returning: Vec<ConnectionId>,
    /// Descriptors from the worker whose messages have not arrived.
    pub(super) unmatched_fds: VecDeque<OwnedFd>,
    /// Sockets for replies that have not been sent.
    sockets: Vec<(QueryId, OwnedFd)>,
    /// The program's messages held by the session, oldest first.
    queued_messages: VecDeque<(Option<OwnedFd>, Permit)>,
    /// The control plane is behind with this worker's messages, so it is not read. Connections it
    /// has taken count as unconfirmed, so it gets few new ones on its channel; its clients are
    /// served.
    pub(super) held_up: bool,
    /// The worker will be disconnected once nothing more can arrive for it.
    disconnecting: bool,
    pub(super) end: Option<End>,
}

impl NodeWorker {
    pub(super) fn new(worker: WorkerId, slot: Slot, new_worker: NewNodeWorker) -> Result<Self> {
        Ok(Self {
            worker,
            slot,
            channel: new_worker.channel,
            inbox: new_worker.inbox,
            inbox_ready: true,
            inbox_ended: false,
            receives: false,
            page: WorkerPage::open(new_worker.page)?,
            touched: false,
            decoder: Decoder::new(new_worker.serialization),
            session: Session::new(new_worker.serialization, new_worker.window),
            outbox: Outbox::default(),
            crowded_until_ns: None,
            held: Slab::new(),
            queue: VecDeque::new(),
            queued_since_ns: 0,
            returning: Vec::new(),
            unmatched_fds: VecDeque::new(),
            sockets: Vec::new(),
            queued_messages: VecDeque::new(),
            held_up: false,
            disconnecting: false,
            end: None,
        })
    }

    pub(super) fn channel(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    pub(super) fn inbox(&self) -> BorrowedFd<'_> {
        self.inbox.as_fd()
    }

    /// Whether the channel has to be closed.
    pub(super) fn is_over(&self) -> bool {
        self.end.is_some()
    }

    /// Whether frames wait for the channel to become writable.
    pub(super) fn wants_to_write(&self) -> bool {
        !self.outbox.is_empty() && self.crowded_until_ns.is_none()
    }

    /// Whether it is not read because the control plane is behind.
    pub(super) fn is_held_up(&self) -> bool {
        self.held_up
    }

    /// Whether to read the inbox. The inbox of a worker in back-off, or of a leaving one, is read
    /// too, to send its connections back at once.
    fn wants_message(&self, now_ns: u64) -> bool {
        if self.receives {
            return self.inbox_ready && self.queue.is_empty() && self.reads_inbox(now_ns);
        }
        let returns = !self.session.is_open() || self.session.backoff_until_ns(now_ns).is_some();
        let gives = self.outbox.is_empty() && self.session.room(now_ns) > 0;
        self.inbox_ready && self.queue.is_empty() && (returns || gives)
    }

    /// The urgency of the worker's next message.
    pub(super) fn need(&self, now_ns: u64) -> Urgency {
        let leaving = self.disconnecting || !self.session.is_open();
        let waits = !self.queue.is_empty() || !self.outbox.is_empty() || self.session.is_delaying();
        // It waits for room in the window, or the data path for a credit.
        let bridged = !self.receives;
        let none_left = bridged && self.inbox_ready && self.session.room(now_ns) == 0;
        if self.held_up {
            Urgency::Nothing
        } else if leaving || waits || none_left || bridged && self.page.is_awaited() {
            Urgency::Now
        } else {
            Urgency::of_unanswered(self.session.oldest_age_ns(now_ns))
        }
    }

    /// When there is something to do without an event.
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        let hold = (!self.queue.is_empty()).then_some(self.queued_since_ns + HOLD_NS);
        hold.into_iter().chain(self.crowded_until_ns).min()
    }

    /// The data of the worker's request, kept for all workers on the same listener.
    pub(super) fn data_of(&self, query: QueryId) -> Option<&Value> {
        self.session.data_of(query)
    }

    /// Replies to a listen request and lets the worker join the listener.
    pub(super) fn answer(
        &mut self,
        endpoints: &Endpoints,
        query: QueryId,
        answer: &Answer,
        socket: Option<OwnedFd>,
        data: &Value,
        now_ns: u64,
    ) {
        self.sockets.extend(socket.map(|socket| (query, socket)));
        self.find_out_who_receives();
        let is_open = self.session.answer(query, answer, data);
        // Sent before the worker joins: a connection in its inbox for a server that it does not
        // know would come back.
        self.act(endpoints, now_ns);
        match answer {
            Answer::HandOver { listener, .. } if is_open => {
                endpoints.command(Command::Join { slot: self.slot, listener: *listener });
            }
            _ if is_open => {}
            _ => self.sockets.retain(|(other, _)| *other != query),
        }
    }

    /// Sends a message to the worker's program.
    pub(super) fn send(&mut self, message_out: UserMessageOut) {
        let UserMessageOut { frame, socket, permit } = message_out;
        if self.session.send_message(frame, socket.is_some()) {
            self.queued_messages.push_back((socket, permit));
        }
    }

    pub(super) fn stop(&mut self) {
        self.session.stop();
    }

    pub(super) fn disconnect(&mut self) {
        self.disconnecting = true;
    }

    /// Handles the end of the worker's process. Everything it has said counts, however far the
    /// control plane is behind: its socket bounds the amount.
    pub(super) fn cut(&mut self, endpoints: &Endpoints, buffer: &mut [u8], now_ns: u64) {
        while self.end.is_none() && self.read_channel(endpoints, buffer, Extent::Everything, now_ns)
        {
        }
        self.turn(endpoints, buffer, Ready { channel: false, inbox: true }, now_ns);
        self.end.get_or_insert(End::Closed);
    }

    pub(super) fn fail(&mut self, what: String) {
        self.end.get_or_insert(End::Failed(what));
    }

    /// Does everything that is due for this worker.
    pub(super) fn turn(
        &mut self,
        endpoints: &Endpoints,
        buffer: &mut [u8],
        ready: Ready,
        now_ns: u64,
    ) {
        self.inbox_ready |= ready.inbox && !self.inbox_ended;
        if self.crowded_until_ns.is_some_and(|until_ns| until_ns <= now_ns) {
            self.crowded_until_ns = None;
        }
        self.act(endpoints, now_ns);
        if ready.channel {
            self.read_channel(endpoints, buffer, Extent::UntilHeldUp, now_ns);
        }
        for _ in 0..MESSAGES_A_TURN_MAX {
            self.serve_queue(endpoints, now_ns);
            if !self.wants_message(now_ns) || !self.take_message(now_ns) {
                break;
            }
        }
        if !self.queue.is_empty() && self.queued_since_ns + HOLD_NS <= now_ns {
            // The worker is busy; another one may not be.
            self.returning.extend(self.queue.drain(..));
        }
        if self.disconnecting && self.inbox_ended && self.queue.is_empty() {
            self.disconnecting = false;
            self.session.disconnect();
            self.act(endpoints, now_ns);
        }
        self.publish(endpoints);
        self.send_back(endpoints, now_ns);
    }

    /// Performs the session's actions.
    pub(super) fn act(&mut self, endpoints: &Endpoints, now_ns: u64) {
        while let Some(action) = self.session.next_action() {
            match action {
                Action::Send { frame, attachment } => {
                    let attached = self.attached(attachment);
                    self.outbox.push(frame, attached, None);
                }
                Action::Deliver { frame, .. } => {
                    let (socket, permit) = self.queued_messages.pop_front().unzip();
                    let attached = socket.flatten().map_or(Attached::Nothing, Attached::Socket);
                    self.outbox.push(frame, attached, permit);
                }
                Action::Accepted(connection) => {
                    let held = self.held.try_remove(connection.0);
                    self.page.add_claimed(1, now_ns);
                    if !self.page.program_reports() {
                        let listener = held.map(|held| held.record.listener);
                        self.page.add_finished(listener, 1, now_ns);
                    }
                    self.touched = true;
                }
                Action::Returned(connection) => self.returning.push(connection),
                Action::Refused(connection) => {
                    self.returning.push(connection);
                    if self.page.program_reports() {
                        self.page.take_off_refused(1);
                        self.touched = true;
                    }
                }
                Action::SentBack(connection) => self.take_back(connection),
                Action::InboxEnded => self.inbox_ended = true,
                Action::ShortOfDescriptors { lost } => self.on_shortage(lost, now_ns),
                Action::Emit(event) => self.emit(endpoints, event),
            }
        }
        self.flush(now_ns);
    }

    fn attached(&mut self, attachment: Option<Attachment>) -> Attached {
        match attachment {
            None => Attached::Nothing,
            Some(Attachment::Connection(connection)) => Attached::Connection(connection),
            Some(Attachment::Socket(query)) => {
                let place = self.sockets.iter().position(|(other, _)| *other == query);
                place.map_or(Attached::Nothing, |place| {
                    Attached::Socket(self.sockets.remove(place).1)
                })
            }
        }
    }

    fn flush(&mut self, now_ns: u64) {
        let held = &self.held;
        let socket_of =
            |connection: ConnectionId| held.get(connection.0).map(|held| held.socket.as_fd());
        match self.outbox.flush(self.channel.as_fd(), socket_of) {
            Left::Nothing | Left::Full => {}
            Left::Crowded => self.crowded_until_ns = Some(now_ns + CROWDED_NS),
            // The worker's last messages are still unread.
            Left::Closed => self.outbox = Outbox::default(),
        }
        if self.outbox.bytes() > UNREAD_BYTES_MAX {
            let what = "the worker sends requests and does not read the answers".to_owned();
            self.end.get_or_insert(End::Failed(what));
        }
    }

    fn emit(&mut self, endpoints: &Endpoints, event: SessionEvent) {
        let (worker, slot) = (self.worker, self.slot);
        endpoints.notify(match event {
            SessionEvent::Online => Notice::Online { worker },
            SessionEvent::Query(query, request) => Notice::Query { worker, query, request },
            SessionEvent::Listening(listening) => Notice::Listening { worker, listening },
            SessionEvent::Left(listener) => {
                endpoints.command(Command::Leave { slot, listener });
                Notice::Left { worker, listener }
            }
            SessionEvent::Leaving => {
                endpoints.command(Command::Retire { slot });
                Notice::Leaving { worker }
            }
            SessionEvent::Stopped { closes } => Notice::Stopped { worker, closes },
            SessionEvent::SocketLost => Notice::SocketLost { worker },
            SessionEvent::Message(message) => Notice::Message { worker, message, descriptor: None },
            SessionEvent::Handle(message) => {
                let descriptor = self.unmatched_fds.pop_front();
                Notice::Message { worker, message, descriptor }
            }
        });
    }

    /// Gives the session as many connections as it has room for, and sends back those that this
    /// worker cannot get.
    fn serve_queue(&mut self, endpoints: &Endpoints, now_ns: u64) {
        while let Some(connection) = self.queue.front().copied() {
            let listener = self.listener_of(connection);
            let rests = self.session.backoff_until_ns(now_ns).is_some();
            if !self.session.is_open() || rests || !self.session.serves(listener) {
                self.queue.pop_front();
                self.returning.push(connection);
                continue;
            }
            let idle = self.outbox.is_empty() && self.end.is_none();
            if !idle || !self.session.hand_over(connection, listener, now_ns) {
                return;
            }
            self.queue.pop_front();
            self.act(endpoints, now_ns);
        }
    }

    fn listener_of(&self, connection: ConnectionId) -> ListenerId {
        self.held[connection.0].record.listener
    }

    /// Reads one message from the inbox. Returns whether there was one.
    fn take_message(&mut self, now_ns: u64) -> bool {
        let mut payload = [0; PAYLOAD_BYTES_MAX];
        let mut sockets = Vec::new();
        let bytes = match fdpass::receive(self.inbox.as_fd(), &mut payload, &mut sockets) {
            Ok(arrival) if arrival.bytes > 0 => arrival.bytes,
            Err(Errno::EINTR) => return true,
            Err(Errno::EAGAIN) => {
                self.inbox_ready = false;
                return false;
            }
            Ok(_) | Err(_) => {
                self.inbox_ready = false;
                self.inbox_ended = true;
                return false;
            }
        };
        // The data path keeps descriptors free for all sockets it may have to take back, including
        // these, so none should be lost here.
        let records = self.page.received(&payload[..bytes], sockets.len(), now_ns);
        self.touched = true;
        self.queued_since_ns = now_ns;
        for (socket, record) in sockets.into_iter().zip(records) {
            let connection = ConnectionId(self.held.insert(Held { socket, record }));
            self.queue.push_back(connection);
        }
        true
    }

    fn publish(&mut self, endpoints: &Endpoints) {
        if std::mem::take(&mut self.touched) && self.page.publish() {
            endpoints.wake_data_path();
        }
    }

    /// Returns unconfirmed connections to the data path, in order of arrival.
    fn send_back(&mut self, endpoints: &Endpoints, now_ns: u64) {
        if self.returning.is_empty() {
            return;
        }
        let returning = std::mem::take(&mut self.returning);
        let sockets = returning.into_iter().filter_map(|connection| {
            self.held.try_remove(connection.0).map(|held| (held.socket, held.record))
        });
        let sockets = sockets.collect();
        let backoff_ns =
            self.session.backoff_until_ns(now_ns).map_or(0, |until_ns| until_ns - now_ns);
        endpoints.command(Command::Return { slot: self.slot, sockets, backoff_ns });
    }

    /// Closes the channel and returns every connection that the worker has not taken.
    pub(super) fn close(mut self, endpoints: &Endpoints, now_ns: u64) {
        // Before any connection is returned, so that none is assigned to this worker again.
        endpoints.command(Command::Retire { slot: self.slot });
        self.session.end();
        while let Some(action) = self.session.next_action() {
            if let Action::Returned(connection) = action {
                self.returning.push(connection);
            }
        }
        self.returning.extend(self.queue.drain(..));
        while self.take_message(now_ns) {
            self.returning.extend(self.queue.drain(..));
        }
        self.publish(endpoints);
        self.send_back(endpoints, now_ns);
        let failure = match self.end {
            Some(End::Failed(what)) => Some(what),
            Some(End::Closed) | None => None,
        };
        endpoints.notify(Notice::Gone { worker: self.worker, failure });
    }
}
