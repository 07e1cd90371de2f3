//! The primary's side of one worker: its channel, its page of the load board, and the message
//! that is being filled for it.
//!
//! Owns the rule that a socket is in exactly one place: waiting here, in a message under way, or
//! in the channel, from which either the worker or the primary takes it, once.

use std::os::fd::{AsFd, OwnedFd};

use crate::protocol::handoff::{self, Record};
use crate::protocol::scoreboard::{Counters, PrimaryPage, Wake};
use crate::schedule::Client;
use crate::sys::engine::{Engine, Key, OutgoingMessage, PAYLOAD_BYTES_MAX};
use crate::sys::fdpass::{self, DESCRIPTORS_PER_MESSAGE_MAX};
use crate::sys::limits;
use crate::sys::waker::Waker;

/// Bytes of kernel memory for unread messages in a channel, some eighty of them. A worker that
/// lets them pile up is full, and others get its share.
pub const CHANNEL_BYTES: usize = 64 * 1024;

/// Room for this many messages with a socket each, and their announcements.
const SINGLES_MAX: u32 = 32;

/// Messages to be used again. Boxed, because the kernel works on them where they lie.
pub(super) type SpareMessages = Vec<Box<OutgoingMessage>>;

/// A socket between accept and handoff.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) socket: OwnedFd,
    pub(super) record: Record,
    pub(super) client: Client,
    /// It has waited behind a worker's work and is for an idle worker first.
    pub(super) has_waited: bool,
}

impl Accepted {
    /// A socket that comes back; where it went does not bind it any more.
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
    /// What the worker wakes this thread with. It is the worker's alone: what it does to it, it
    /// does to nobody else.
    pub waker: Waker,
    /// Its counters tell when connections end, even if its program reports nothing: it is no
    /// worker that a bridge speaks for.
    pub is_native: bool,
}

/// A moment in what a worker has been sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    /// Which worker.
    pub(super) key: Key,
    /// Messages that the kernel had been given.
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
    /// The ring tells when the worker wakes this thread.
    awaits_wake: bool,
    outbox: Option<Box<OutgoingMessage>>,
    /// Sockets in a message. One for a program that reads its own inbox: Node takes one descriptor
    /// of what it reads at once.
    sockets_max: usize,
    /// It has been told in this turn that sockets follow.
    announced: bool,
    /// Messages that the kernel has been given, and those that it has answered for.
    sent: u64,
    answered: u64,
    /// Nothing more will be sent.
    retired: bool,
    is_native: bool,
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
        }
    }

    /// Everything that has been sent so far. The message that is being filled is no part of it.
    pub(super) fn mark(&self) -> Mark {
        Mark { key: self.key, sent: self.sent }
    }

    /// Everything up to a mark has been answered for.
    pub(super) fn has_passed(&self, mark: Mark) -> bool {
        self.answered >= mark.sent
    }

    pub(super) fn key(&self) -> Key {
        self.key
    }

    pub(super) fn counters(&self) -> Counters {
        self.page.counters()
    }

    /// Whether finished connections have ended, and are not only out of the primary's sight.
    pub(super) fn tells_ends(&self) -> bool {
        self.is_native || self.page.program_reports()
    }

    /// The worker serves something from now on, so it has said whether it reads its own inbox.
    /// Tells how many connections its inbox has room for at least, if that is less than usual.
    pub(super) fn joined(&mut self) -> Option<u32> {
        let receives = self.page.program_receives();
        self.sockets_max = if receives { 1 } else { DESCRIPTORS_PER_MESSAGE_MAX };
        receives.then_some(SINGLES_MAX)
    }

    /// Adds a socket to the message that is being filled. Returns how many that sent.
    pub(super) fn add(
        &mut self,
        ring: &mut Engine,
        spare: &mut SpareMessages,
        accepted: Accepted,
    ) -> u32 {
        self.page.add_assigned(1);
        if self.sockets_max == 1 && !self.announced {
            self.announced = true;
            if let Some(sender) = &self.sender {
                ring.remark(sender.as_fd(), &handoff::ANNOUNCEMENT);
            }
        }
        let message = self.outbox.get_or_insert_with(|| spare.pop().unwrap_or_default());
        handoff::append(message.payload_mut(), accepted.record);
        message.push(accepted.socket).expect("a full message has been sent before");
        if message.descriptors() >= self.sockets_max { self.flush(ring) } else { 0 }
    }

    /// Sends what is left at the end of a turn, and tells how many sockets are in it.
    pub(super) fn finish(&mut self, ring: &mut Engine) -> u32 {
        self.announced = false;
        self.flush(ring)
    }

    /// Sends the message that is being filled, and tells how many sockets are in it.
    fn flush(&mut self, ring: &mut Engine) -> u32 {
        let (Some(message), Some(sender)) = (self.outbox.take(), &self.sender) else {
            return 0;
        };
        self.sent += 1;
        let count = u32::try_from(message.descriptors()).expect("bounded by a message");
        ring.send_message(self.key, sender.as_fd(), message);
        count
    }

    /// Sends a message without sockets, which the worker counts when it takes it.
    pub(super) fn probe(&mut self, ring: &mut Engine, spare: &mut SpareMessages) {
        debug_assert!(self.outbox.is_none(), "what is being filled is sent when its turn ends");
        let mut message = spare.pop().unwrap_or_default();
        match self.sockets_max {
            1 => handoff::begin_evenly(message.payload_mut()),
            _ => handoff::begin(message.payload_mut()),
        }
        self.outbox = Some(message);
        self.flush(ring);
    }

    /// A message has been answered for.
    pub(super) fn answered(&mut self) {
        self.answered += 1;
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired
    }

    /// Nothing is under way.
    pub(super) fn is_quiet(&self) -> bool {
        self.sent == self.answered && self.outbox.is_none()
    }

    /// Sets when the worker wakes this thread, and listens for it.
    pub(super) fn ask_for_wake(&mut self, wake: Wake, ring: &mut Engine) {
        self.page.set_wake(wake);
        if wake != Wake::Never && !self.awaits_wake {
            self.awaits_wake = true;
            ring.poll_readable(wake_key(self.key), self.waker.as_fd());
        }
    }

    /// The worker has woken this thread. One that does so without being asked is not listened to.
    pub(super) fn has_woken(&mut self) {
        self.awaits_wake = false;
        self.waker.clear();
    }

    /// Nothing of the ring's refers to this link any more, once that has been submitted.
    pub(super) fn let_go(&mut self, ring: &mut Engine) {
        if std::mem::take(&mut self.awaits_wake) {
            ring.cancel_poll(wake_key(self.key), self.waker.as_fd());
        }
    }

    /// Asks to be told when the channel has room.
    pub(super) fn await_room(&self, ring: &mut Engine) {
        if let Some(sender) = &self.sender {
            ring.poll_writable(self.key, sender.as_fd());
        }
    }

    /// Lets the worker see the end of its inbox once it has taken what is in it.
    pub(super) fn retire(&mut self) {
        self.retired = true;
    }

    /// Closes the sending end of a retired link as soon as nothing is under way.
    pub(super) fn close_if_retired(&mut self) {
        if self.retired && self.is_quiet() {
            self.sender = None;
        }
    }

    /// Takes back every socket that the worker has not claimed, oldest first, and tells how many
    /// there should have been. A message is received once, by the worker or here, so nothing can
    /// be served twice. The descriptors for it are kept free (see `DataPath::new`).
    pub(super) fn take_back(&mut self) -> (Vec<Accepted>, u32) {
        limits::with_all_descriptors(|| self.take_all_back())
    }

    fn take_all_back(&mut self) -> (Vec<Accepted>, u32) {
        let (mut taken, mut promised) = (Vec::new(), 0);
        let mut payload = [0; PAYLOAD_BYTES_MAX];
        let mut descriptors = Vec::new();
        loop {
            match fdpass::receive(self.receiver.as_fd(), &mut payload, &mut descriptors) {
                Ok(arrival) if arrival.bytes > 0 => {
                    if let Some(records) = handoff::records(&payload[..arrival.bytes]) {
                        promised += records.len();
                        let pairs = descriptors.drain(..).zip(records);
                        taken.extend(pairs.map(|(socket, record)| Accepted::again(socket, record)));
                    }
                    descriptors.clear();
                }
                Ok(_) | Err(_) => break,
            }
        }
        self.page.add_returned(promised as u64);
        (taken, u32::try_from(promised).expect("bounded by a channel"))
    }
}

/// The keys of wakers follow those of the links, which are slots.
const WAKE_KEYS: u32 = 1 << 16;

fn wake_key(key: Key) -> Key {
    Key { index: key.index + WAKE_KEYS, ..key }
}

/// The link whose waker a key is of, if it is one.
pub(super) fn woken_link(key: Key) -> Option<Key> {
    let index = key.index.checked_sub(WAKE_KEYS).filter(|index| *index < WAKE_KEYS)?;
    Some(Key { index, ..key })
}

/// Turns a message that was not delivered back into its sockets.
pub(super) fn unpack(message: &mut OutgoingMessage) -> Vec<Accepted> {
    let records: Vec<Record> =
        handoff::records(message.payload()).map(Iterator::collect).unwrap_or_default();
    let sockets = message.drain();
    sockets.zip(records).map(|(socket, record)| Accepted::again(socket, record)).collect()
}
