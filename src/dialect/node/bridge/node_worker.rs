//! One worker as the bridge holds it: its channel, its inbox, its page, and every connection
//! between inbox and acknowledgement.
//!
//! Owns the rule that a connection taken from the inbox is in exactly one place: in the queue, in
//! the session's hands, or on its way back to the data path.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use serde_json::Value;
use slab::Slab;

use super::super::codec::Decoder;
use super::super::session::{Action, Answer, Attachment, ConnectionId, Event, QueryId, Session};
use super::ack_batching::Urgency;
use super::inbound::Extent;
use super::messages::{Endpoints, NewNodeWorker, Notice};
use super::outbox::{Attached, Left, Outbox};
use super::send_quota::{Permit, UserMessageOut};
use super::{HOLD_NS, UNREAD_BYTES_MAX};
use crate::data_path::Command;
use crate::error::Result;
use crate::id::{ListenerId, Slot, WorkerId};
use crate::protocol::handoff::{self, Record};
use crate::protocol::scoreboard::WorkerPage;
use crate::sys::engine::PAYLOAD_BYTES_MAX;
use crate::sys::fdpass;

/// What a worker's channel is read with.
pub(super) const READ_BYTES: usize = 64 * 1024;
/// Messages taken from an inbox in one turn.
const MESSAGES_A_TURN_MAX: usize = 64;
/// How long sending rests when the kernel has too many descriptors under way.
const CROWDED_NS: u64 = 5_000_000;

/// A connection that the worker has not taken yet.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) socket: OwnedFd,
    pub(super) record: Record,
}

/// What a worker's turn may find something in.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ready {
    pub(super) channel: bool,
    pub(super) inbox: bool,
}

/// Why a channel is to be closed.
#[derive(Debug)]
pub(super) enum End {
    /// The worker has closed it.
    Closed,
    /// It is of no use any more.
    Failed(String),
}

/// A worker.
#[derive(Debug)]
pub(super) struct NodeWorker {
    pub(super) worker: WorkerId,
    slot: Slot,
    pub(super) channel: OwnedFd,
    inbox: OwnedFd,
    /// Something may be in the inbox.
    inbox_ready: bool,
    /// The data path has closed its end, and everything has been taken.
    inbox_ended: bool,
    /// The worker takes from the inbox by itself, as long as it serves anything.
    pub(super) receives: bool,
    pub(super) page: WorkerPage,
    /// The page has news that have not been published.
    pub(super) touched: bool,
    pub(super) decoder: Decoder,
    pub(super) session: Session,
    outbox: Outbox,
    crowded_until_ns: Option<u64>,
    pub(super) held: Slab<Held>,
    /// Taken from the inbox and not yet given to the session, oldest first. Bounded: the inbox is
    /// left alone while anything is here, so it is one message at most.
    queue: VecDeque<ConnectionId>,
    queued_since_ns: u64,
    /// To go back to the data path at the end of the turn.
    pub(super) returning: Vec<ConnectionId>,
    /// Descriptors that came from the worker and whose messages have not.
    pub(super) unmatched_fds: VecDeque<OwnedFd>,
    /// Sockets for answers that are not sent yet.
    sockets: Vec<(QueryId, OwnedFd)>,
    /// Of the program's messages that are still with the session, oldest first.
    parcels: VecDeque<(Option<OwnedFd>, Permit)>,
    /// The control plane is behind with what this worker has said: it is not read. What it has
    /// taken and not told is then in the air, so it gets little on its channel; its own clients are
    /// served.
    pub(super) held_up: bool,
    /// The worker is to be disconnected once nothing more can come for it.
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
            parcels: VecDeque::new(),
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

    /// The channel is to be closed.
    pub(super) fn is_over(&self) -> bool {
        self.end.is_some()
    }

    /// Frames wait until the channel is writable.
    pub(super) fn wants_to_write(&self) -> bool {
        !self.outbox.is_empty() && self.crowded_until_ns.is_none()
    }

    /// It is not read because the control plane is behind.
    pub(super) fn is_held_up(&self) -> bool {
        self.held_up
    }

    /// Something is to be taken from the inbox. What a worker that rests or leaves has in it is
    /// taken too, to be sent back at once.
    fn wants_message(&self, now_ns: u64) -> bool {
        if self.receives {
            return self.inbox_ready && self.queue.is_empty() && self.reads_inbox(now_ns);
        }
        let returns = !self.session.is_open() || self.session.backoff_until_ns(now_ns).is_some();
        let gives = self.outbox.is_empty() && self.session.room(now_ns) > 0;
        self.inbox_ready && self.queue.is_empty() && (returns || gives)
    }

    /// What depends on what the worker writes.
    pub(super) fn need(&self, now_ns: u64) -> Urgency {
        let leaving = self.disconnecting || !self.session.is_open();
        let waits = !self.queue.is_empty() || !self.outbox.is_empty() || self.session.is_delaying();
        // For a place in the window, or for a credit of the data path's.
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

    /// When something is to be done even if nothing happens.
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        let hold = (!self.queue.is_empty()).then_some(self.queued_since_ns + HOLD_NS);
        hold.into_iter().chain(self.crowded_until_ns).min()
    }

    /// The data of the worker's request, to be kept for everybody on the same listener.
    pub(super) fn data_of(&self, query: QueryId) -> Option<&Value> {
        self.session.data_of(query)
    }

    /// Answers a request to listen and lets the worker join.
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
        let heard = self.session.answer(query, answer, data);
        // Before the worker joins: a connection that it finds in its inbox and that is for a server
        // it has not heard of comes back.
        self.act(endpoints, now_ns);
        match answer {
            Answer::HandOver { listener, .. } if heard => {
                endpoints.command(Command::Join { slot: self.slot, listener: *listener });
            }
            _ if heard => {}
            _ => self.sockets.retain(|(other, _)| *other != query),
        }
    }

    /// Sends a message to the worker's program.
    pub(super) fn send(&mut self, message_out: UserMessageOut) {
        let UserMessageOut { frame, socket, permit } = message_out;
        if self.session.send_message(frame, socket.is_some()) {
            self.parcels.push_back((socket, permit));
        }
    }

    pub(super) fn stop(&mut self) {
        self.session.stop();
    }

    pub(super) fn disconnect(&mut self) {
        self.disconnecting = true;
    }

    /// The worker's process has ended. What it has said before counts, however far behind the
    /// control plane is: no more can come than its socket holds.
    pub(super) fn cut(&mut self, endpoints: &Endpoints, buffer: &mut [u8], now_ns: u64) {
        while self.end.is_none() && self.hear(endpoints, buffer, Extent::Everything, now_ns) {}
        self.turn(endpoints, buffer, Ready { channel: false, inbox: true }, now_ns);
        self.end.get_or_insert(End::Closed);
    }

    pub(super) fn fail(&mut self, what: String) {
        self.end.get_or_insert(End::Failed(what));
    }

    /// Everything there is to do for this worker now.
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
            self.hear(endpoints, buffer, Extent::UntilHeldUp, now_ns);
        }
        for _ in 0..MESSAGES_A_TURN_MAX {
            self.serve_queue(endpoints, now_ns);
            if !self.wants_message(now_ns) || !self.take_message(now_ns) {
                break;
            }
        }
        if !self.queue.is_empty() && self.queued_since_ns + HOLD_NS <= now_ns {
            // The worker is busy with something; somebody else may not be.
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

    /// Does what the session says.
    pub(super) fn act(&mut self, endpoints: &Endpoints, now_ns: u64) {
        while let Some(action) = self.session.next_action() {
            match action {
                Action::Send { frame, attachment } => {
                    let attached = self.attached(attachment);
                    self.outbox.push(frame, attached, None);
                }
                Action::Deliver { frame, .. } => {
                    let (socket, permit) = self.parcels.pop_front().unzip();
                    let attached = socket.flatten().map_or(Attached::Nothing, Attached::Socket);
                    self.outbox.push(frame, attached, permit);
                }
                Action::Accepted(connection) => {
                    self.held.try_remove(connection.0);
                    self.page.add_claimed(1, now_ns);
                    if !self.page.program_reports() {
                        self.page.add_finished(1);
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
                Action::ShortOfDescriptors { lost } => self.note_shortage(lost, now_ns),
                Action::Tell(event) => self.tell(endpoints, event),
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
            // What the worker said before it left is still to be read.
            Left::Closed => self.outbox = Outbox::default(),
        }
        if self.outbox.bytes() > UNREAD_BYTES_MAX {
            let what = "the worker sends requests and does not read the answers".to_owned();
            self.end.get_or_insert(End::Failed(what));
        }
    }

    fn tell(&mut self, endpoints: &Endpoints, event: Event) {
        let (worker, slot) = (self.worker, self.slot);
        endpoints.notify(match event {
            Event::Online => Notice::Online { worker },
            Event::Query(query, request) => Notice::Query { worker, query, request },
            Event::Listening(listening) => Notice::Listening { worker, listening },
            Event::Left(listener) => {
                endpoints.command(Command::Leave { slot, listener });
                Notice::Left { worker, listener }
            }
            Event::Leaving => {
                endpoints.command(Command::Retire { slot });
                Notice::Leaving { worker }
            }
            Event::Stopped { closes } => Notice::Stopped { worker, closes },
            Event::SocketLost => Notice::SocketLost { worker },
            Event::Message(message) => Notice::Message { worker, message, descriptor: None },
            Event::Handle(message) => {
                let descriptor = self.unmatched_fds.pop_front();
                Notice::Message { worker, message, descriptor }
            }
        });
    }

    /// Gives the session what waits, as far as there is room, and sends back what this worker
    /// cannot have.
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

    /// Takes one message from the inbox. Tells whether there was one.
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
        let records = handoff::records(&payload[..bytes]);
        let count = records.as_ref().map_or(0, ExactSizeIterator::len);
        if handoff::is_probe(&payload[..bytes]) {
            self.page.answer_probe();
            self.touched = true;
        }
        // The data path keeps descriptors free for what it may have to take back, which includes
        // all of this; if they were lost all the same, it is counted.
        let lost = count.saturating_sub(sockets.len()) as u64;
        if lost > 0 {
            self.note_lost(lost, now_ns);
        }
        self.queued_since_ns = now_ns;
        for (socket, record) in sockets.into_iter().zip(records.into_iter().flatten()) {
            let connection = ConnectionId(self.held.insert(Held { socket, record }));
            self.queue.push_back(connection);
        }
        true
    }

    fn publish(&mut self, endpoints: &Endpoints) {
        if std::mem::take(&mut self.touched) && self.page.publish() {
            endpoints.ring_data_path();
        }
    }

    /// Gives the data path what this worker does not have, in the order of its arrival.
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

    /// Closes the channel: everything that the worker has not taken goes back.
    pub(super) fn close(mut self, endpoints: &Endpoints, now_ns: u64) {
        // Before anything comes back, so that none of it is given to this worker again.
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
