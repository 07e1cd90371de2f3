//! Receiving messages with descriptors in the epoll engine: level-triggered, one per turn, so that
//! messages stay in the channel, where they can be taken back, as long as possible.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::super::event::{BufferId, EngineEvent, Key, Opened, Outcome, SealedMessage};
use super::{EpollEngine, ReadyKind};
use crate::fdpass;

/// Maximum number of unopened messages.
const MESSAGES_MAX: u16 = 64;
/// Receive buffer for a payload; messages are shorter (`PAYLOAD_BYTES_MAX`).
const PAYLOAD_ROOM: usize = 1024;

/// The receive operation and its unopened messages.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    key: Key,
    raw: RawFd,
    armed: bool,
    /// Whether it is in the epoll set, which is the case only while messages may be received.
    watched: bool,
    offered: u16,
    places: Vec<InboxMessage>,
    free: Vec<u16>,
}

#[derive(Debug)]
struct InboxMessage {
    payload: Box<[u8; PAYLOAD_ROOM]>,
    descriptors: Vec<OwnedFd>,
    truncated: bool,
}

impl Default for InboxMessage {
    fn default() -> Self {
        Self { payload: Box::new([0; PAYLOAD_ROOM]), descriptors: Vec::new(), truncated: false }
    }
}

impl Inbox {
    fn unopened(&self) -> u16 {
        u16::try_from(self.places.len() - self.free.len()).expect("bounded by MESSAGES_MAX")
    }

    fn take_place(&mut self) -> u16 {
        self.free.pop().unwrap_or_else(|| {
            self.places.push(InboxMessage::default());
            u16::try_from(self.places.len() - 1).expect("bounded by MESSAGES_MAX")
        })
    }

    /// Receives one message into a free slot; `None` if there is none.
    fn receive(&mut self) -> Option<Outcome<Option<SealedMessage>>> {
        let place = self.take_place();
        let InboxMessage { payload, descriptors, truncated } = &mut self.places[usize::from(place)];
        // SAFETY: the caller of the engine keeps the channel open while it is received from.
        let socket = unsafe { BorrowedFd::borrow_raw(self.raw) };
        let arrival = fdpass::receive(socket, &mut payload[..], descriptors);
        match arrival {
            Ok(arrival) if arrival.bytes > 0 => {
                self.offered -= 1;
                *truncated = arrival.truncated;
                let length = u32::try_from(arrival.bytes).expect("bounded by PAYLOAD_ROOM");
                Some(Ok(Some(SealedMessage { buffer: BufferId(place), length })))
            }
            Ok(_) => {
                self.free.push(place);
                Some(Ok(None))
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {
                self.free.push(place);
                None
            }
            Err(errno) => {
                self.free.push(place);
                Some(Err(errno))
            }
        }
    }
}

impl EpollEngine {
    pub(in super::super) fn receive_messages(&mut self, key: Key, socket: BorrowedFd<'_>) {
        self.inbox.key = key;
        self.inbox.raw = socket.as_raw_fd();
        self.inbox.armed = true;
        self.watch_inbox();
    }

    pub(in super::super) fn cancel_receive_messages(&mut self, key: Key) {
        if self.inbox.armed && self.inbox.key == key {
            self.end_inbox(Err(Errno::ECANCELED));
        }
    }

    pub(in super::super) fn offer_messages(&mut self, target: u16) {
        let room = MESSAGES_MAX - self.inbox.unopened();
        self.inbox.offered = target.min(room);
        self.watch_inbox();
    }

    pub(in super::super) fn messages_offered(&self) -> u16 {
        self.inbox.offered
    }

    pub(super) fn on_inbox_ready(&mut self) {
        if !self.inbox.armed || self.inbox.offered == 0 {
            return;
        }
        match self.inbox.receive() {
            None => {}
            Some(Ok(Some(sealed))) => {
                let key = self.inbox.key;
                let outcome = Ok(Some(sealed));
                self.happened.push(EngineEvent::MessageReceived { key, outcome, armed: true });
                self.watch_inbox();
            }
            Some(outcome) => self.end_inbox(outcome),
        }
    }

    pub(in super::super) fn open_message(
        &mut self,
        sealed: SealedMessage,
        payload: &mut Vec<u8>,
        descriptors: &mut Vec<OwnedFd>,
    ) -> Opened {
        let place = sealed.buffer.0;
        let Some(received) = self.inbox.places.get_mut(usize::from(place)) else {
            return Opened { truncated: true };
        };
        payload.extend_from_slice(&received.payload[..sealed.length as usize]);
        descriptors.append(&mut received.descriptors);
        let opened = Opened { truncated: received.truncated };
        self.inbox.free.push(place);
        opened
    }

    /// Watches the channel only while messages may be received: otherwise one left in it would end
    /// every wait.
    fn watch_inbox(&mut self) {
        let wanted = self.inbox.armed && self.inbox.offered > 0;
        if wanted == self.inbox.watched {
            return;
        }
        // SAFETY: the caller of the engine keeps the channel open while it is received from.
        let socket = unsafe { BorrowedFd::borrow_raw(self.inbox.raw) };
        let event =
            EpollEvent::new(EpollFlags::EPOLLIN, self.inbox.key.pack(ReadyKind::Inbox as u8));
        let done = match wanted {
            true => self.set.add(socket, event),
            false => self.set.delete(socket),
        };
        self.inbox.watched = wanted;
        if let Err(errno) = done {
            self.inbox.watched = false;
            self.end_inbox(Err(errno));
        }
    }

    fn end_inbox(&mut self, outcome: Outcome<Option<SealedMessage>>) {
        self.inbox.armed = false;
        let key = self.inbox.key;
        self.happened.push(EngineEvent::MessageReceived { key, outcome, armed: false });
        self.watch_inbox();
    }
}
