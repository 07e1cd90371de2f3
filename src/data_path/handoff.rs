//! The primary's side of one worker: its channel, its scoreboard page, and the message being filled
//! for it.
//!
//! Owns the rule that a socket is in exactly one place: waiting here, in a message in flight, or in
//! the channel, from which either the worker or the primary takes it, once.

use std::os::fd::{AsFd, OwnedFd};

use crate::id::{ListenerId, Slot};
use crate::protocol::handoff_layout::{self, Record};
use crate::protocol::scoreboard::{Counters, LISTENERS_MAX, PrimaryPage, Wake};
use crate::schedule::Client;
use crate::sys::engine::{Engine, Key, OutgoingMessage, PAYLOAD_BYTES_MAX};
use crate::sys::fdpass::{self, DESCRIPTORS_PER_MESSAGE_MAX};
use crate::sys::limits;
use crate::sys::waker::Waker;

/// Bytes of kernel memory for unread messages in a channel, about eighty of them. A worker that
/// lets them pile up counts as full, and others get its share.
pub const CHANNEL_BYTES: usize = 64 * 1024;

/// Room for this many messages with a socket each, and their announcements.
const SINGLES_MAX: u32 = 32;
/// Messages that follow one another within this time need no announcement where the program has
/// many descriptors: it cannot use up thousands of them so fast.
const ROOMY_NS: u64 = 10_000_000;

/// Listeners whose sockets are counted separately for a worker; a worker tells of fewer.
const GIVEN_MAX: usize = 2 * LISTENERS_MAX;

/// Messages for reuse. Boxed, because the kernel uses them in place.
pub(super) type SpareMessages = Vec<Box<OutgoingMessage>>;

/// A socket between accept and handoff.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) socket: OwnedFd,
    pub(super) record: Record,
    pub(super) client: Client,
    /// It has waited behind a worker's work and goes to an idle worker first.
    pub(super) has_waited: bool,
}

impl Accepted {
    /// A socket taken back; it may go to any worker now.
    pub(super) fn again(socket: OwnedFd, record: Record) -> Self {
        Self { socket, record, client: Client::default(), has_waited: false }
    }
}

/// What the control plane provides for a new worker.
#[derive(Debug)]
pub struct NewLink {
    /// The sending end of the worker's inbox.
    pub sender: OwnedFd,
    /// A copy of the receiving end, so that unclaimed sockets can be taken back.
    pub receiver: OwnedFd,
    /// The worker's page.
    pub page: PrimaryPage,
    /// The worker's waker for this thread. It is not shared: what the worker does to it affects no
    /// other worker.
    pub waker: Waker,
    /// Its counters show when connections end, even if its program reports nothing: no bridge
    /// speaks for it.
    pub is_native: bool,
    /// Its process.
    pub pid: u32,
}

/// A position in the messages to a worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    /// Which worker.
    pub(super) key: Key,
    /// Messages handed to the kernel by then.
    sent: u64,
}

/// A worker as the data path sees it.
#[derive(Debug)]
pub(super) struct Link {
    key: Key,
    sender: Option<OwnedFd>,
    receiver: OwnedFd,
    pub(super) page: PrimaryPage,
    waker: Waker,
    /// The ring reports when the worker wakes this thread.
    awaits_wake: bool,
    outbox: Option<Box<OutgoingMessage>>,
    /// Sockets per message. One for a program that reads its own inbox: Node takes one descriptor
    /// per read.
    sockets_max: usize,
    /// In this turn it has been told that sockets follow, or need not be.
    announced: bool,
    /// Messages handed to the kernel, and completed ones.
    sent: u64,
    answered: u64,
    /// No more will be sent.
    retired: bool,
    is_native: bool,
    pub(super) pid: u32,
    /// Sockets given to the worker that have not come back, by listener.
    given: Vec<(ListenerId, u64)>,
}

impl Link {
    pub(super) fn new(key: Key, new: NewLink) -> Self {
        Self {
            key,
            sender: Some(new.sender),
            receiver: new.receiver,
            page: new.page,
            waker: new.waker,
            awaits_wake: false,
            outbox: None,
            sockets_max: DESCRIPTORS_PER_MESSAGE_MAX,
            announced: false,
            sent: 0,
            answered: 0,
            retired: false,
            is_native: new.is_native,
            pid: new.pid,
            given: Vec::new(),
        }
    }

    /// The position after everything sent so far, without the message being filled.
    pub(super) fn mark(&self) -> Mark {
        Mark { key: self.key, sent: self.sent }
    }

    /// Whether every message up to a mark has completed.
    pub(super) fn has_passed(&self, mark: Mark) -> bool {
        self.answered >= mark.sent
    }

    pub(super) fn key(&self) -> Key {
        self.key
    }

    /// Whether it is the link of the worker in this slot.
    pub(super) fn is_in(&self, slot: Slot) -> bool {
        self.key.index == u32::from(slot.get())
    }

    pub(super) fn counters(&self) -> Counters {
        self.page.counters()
    }

    /// Connections that the worker has closed for lack of a header of the PROXY protocol.
    pub(super) fn headers_refused(&self) -> u64 {
        self.page.headers_refused()
    }

    /// Whether finished connections have ended, instead of merely leaving the primary's sight; then
    /// those that the worker accepts itself are counted, too.
    pub(super) fn reports_ends(&self) -> bool {
        self.is_native || self.page.program_reports()
    }

    /// The worker now serves a listener, so it has reported whether it reads its own inbox. Returns
    /// how many connections its inbox holds at least, if fewer than usual.
    pub(super) fn joined(&mut self) -> Option<u32> {
        let receives = self.page.program_receives();
        self.sockets_max = if receives { 1 } else { DESCRIPTORS_PER_MESSAGE_MAX };
        receives.then_some(SINGLES_MAX)
    }

    /// Adds a socket to the message being filled. Returns how many were sent.
    pub(super) fn add(
        &mut self,
        ring: &mut Engine,
        spare: &mut SpareMessages,
        accepted: Accepted,
        now_ns: u64,
    ) -> u32 {
        self.page.add_assigned(1);
        self.count_given(accepted.record.listener);
        if self.sockets_max == 1 && !self.announced {
            self.announced = true;
            let is_roomy = |at_ns| now_ns.saturating_sub(at_ns) < ROOMY_NS;
            let needs_none = self.page.roomy_at_ns().is_some_and(is_roomy);
            if let Some(sender) = self.sender.as_ref().filter(|_| !needs_none) {
                ring.remark(sender.as_fd(), &handoff_layout::ANNOUNCEMENT);
            }
        }
        let message = self.outbox.get_or_insert_with(|| spare.pop().unwrap_or_default());
        handoff_layout::append(message.payload_mut(), accepted.record);
        message.push(accepted.socket).expect("a full message has been sent before");
        if message.descriptors() >= self.sockets_max { self.flush(ring) } else { 0 }
    }

    fn count_given(&mut self, listener: ListenerId) {
        if let Some((_, count)) = self.given.iter_mut().find(|(id, _)| *id == listener) {
            *count += 1;
        } else if self.given.len() < GIVEN_MAX {
            self.given.push((listener, 1));
        }
    }

    /// Counts sockets that have come back.
    pub(super) fn count_returned(&mut self, records: impl Iterator<Item = Record>) {
        let mut all = 0;
        for Record { listener, .. } in records {
            all += 1;
            if let Some((_, count)) = self.given.iter_mut().find(|(id, _)| *id == listener) {
                *count = count.saturating_sub(1);
            }
        }
        self.page.add_returned(all);
    }

    /// Sockets given to the worker that have not come back, by listener.
    pub(super) fn given(&self) -> &[(ListenerId, u64)] {
        &self.given
    }

    /// Sends the rest at the end of a turn, and returns its number of sockets.
    pub(super) fn finish(&mut self, ring: &mut Engine) -> u32 {
        self.announced = false;
        self.flush(ring)
    }

    /// Sends the message being filled, and returns its number of sockets.
    fn flush(&mut self, ring: &mut Engine) -> u32 {
        let (Some(message), Some(sender)) = (self.outbox.take(), &self.sender) else {
            return 0;
        };
        self.sent += 1;
        let count = u32::try_from(message.descriptors()).expect("bounded by a message");
        ring.send_message(self.key, sender.as_fd(), message);
        count
    }

    /// Sends a message without sockets, which the worker counts when it receives it.
    pub(super) fn probe(&mut self, ring: &mut Engine, spare: &mut SpareMessages) {
        debug_assert!(self.outbox.is_none(), "what is being filled is sent when its turn ends");
        let mut message = spare.pop().unwrap_or_default();
        match self.sockets_max {
            1 => handoff_layout::begin_evenly(message.payload_mut()),
            _ => handoff_layout::begin(message.payload_mut()),
        }
        self.outbox = Some(message);
        self.flush(ring);
    }

    /// A message has completed.
    pub(super) fn answered(&mut self) {
        self.answered += 1;
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired
    }

    /// Whether no message is in flight.
    pub(super) fn is_quiet(&self) -> bool {
        self.sent == self.answered && self.outbox.is_none()
    }

    /// Sets when the worker wakes this thread, and polls for it.
    pub(super) fn ask_for_wake(&mut self, wake: Wake, ring: &mut Engine) {
        self.page.set_wake(wake);
        if wake != Wake::Never && !self.awaits_wake {
            self.awaits_wake = true;
            ring.poll_readable(wake_key(self.key), self.waker.as_fd());
        }
    }

    /// The worker has woken this thread. A wake-up that was not asked for ends the polling.
    pub(super) fn has_woken(&mut self) {
        self.awaits_wake = false;
        self.waker.clear();
    }

    /// After this is submitted, nothing in the ring refers to this link.
    pub(super) fn let_go(&mut self, ring: &mut Engine) {
        if std::mem::take(&mut self.awaits_wake) {
            ring.cancel_poll(wake_key(self.key), self.waker.as_fd());
        }
    }

    /// Asks for a notification when the channel has room.
    pub(super) fn await_room(&self, ring: &mut Engine) {
        if let Some(sender) = &self.sender {
            ring.poll_writable(self.key, sender.as_fd());
        }
    }

    /// Lets the worker see the end of its inbox once it has read everything in it.
    pub(super) fn retire(&mut self) {
        self.retired = true;
    }

    /// Closes the sending end of a retired link as soon as no message is in flight.
    pub(super) fn close_if_retired(&mut self) {
        if self.retired && self.is_quiet() {
            self.sender = None;
        }
    }

    /// Takes back every unclaimed socket, oldest first, and returns how many there should have
    /// been. A message is received once, by the worker or here, so no connection is served twice.
    /// Descriptors are reserved for this (see `DataPath::new`).
    pub(super) fn take_back(&mut self) -> (Vec<Accepted>, u32) {
        limits::with_all_descriptors(|| self.take_all_back())
    }

    fn take_all_back(&mut self) -> (Vec<Accepted>, u32) {
        let (mut taken, mut promised) = (Vec::new(), 0_u32);
        let mut payload = [0; PAYLOAD_BYTES_MAX];
        let mut descriptors = Vec::new();
        loop {
            match fdpass::receive(self.receiver.as_fd(), &mut payload, &mut descriptors) {
                Ok(arrival) if arrival.bytes > 0 => {
                    if let Some(records) = handoff_layout::records(&payload[..arrival.bytes]) {
                        let records: Vec<Record> = records.collect();
                        promised += u32::try_from(records.len()).expect("bounded by a message");
                        self.count_returned(records.iter().copied());
                        let pairs = descriptors.drain(..).zip(records);
                        taken.extend(pairs.map(|(socket, record)| Accepted::again(socket, record)));
                    }
                    descriptors.clear();
                }
                Ok(_) | Err(_) => break,
            }
        }
        (taken, promised)
    }
}

/// The keys of wakers follow those of the links, which are slots.
const WAKE_KEYS: u32 = 1 << 16;

fn wake_key(key: Key) -> Key {
    Key { index: key.index + WAKE_KEYS, ..key }
}

/// The link whose waker has this key, if any.
pub(super) fn woken_link(key: Key) -> Option<Key> {
    let index = key.index.checked_sub(WAKE_KEYS).filter(|index| *index < WAKE_KEYS)?;
    Some(Key { index, ..key })
}

/// Returns the sockets of a message that was not delivered.
pub(super) fn unpack(message: &mut OutgoingMessage) -> Vec<Accepted> {
    let records: Vec<Record> =
        handoff_layout::records(message.payload()).map(Iterator::collect).unwrap_or_default();
    let sockets = message.drain();
    sockets.zip(records).map(|(socket, record)| Accepted::again(socket, record)).collect()
}
