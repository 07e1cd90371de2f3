//! Where the primary's sockets arrive in a worker of a program: taken out only when the program
//! accepts.
//!
//! Owns the worker's end of the handoff channel. What is not taken stays in the channel, where the
//! primary can still give it to somebody else; so a program that does not accept holds up nobody.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Mutex;

use nix::errno::Errno;

use super::accept_queue::HandedOver;
use super::shared::Shared;
use crate::error::Result;
use crate::protocol::handoff::{self, Record};
use crate::sys::engine::PAYLOAD_BYTES_MAX;
use crate::sys::fdpass::{self, DESCRIPTORS_PER_MESSAGE_MAX};
use crate::sys::limits;

/// Descriptors that the program may open between two messages without being counted.
const MARGIN: usize = 256;

/// The worker's end.
#[derive(Debug)]
pub(crate) struct Inbox {
    socket: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    payload: Box<[u8; PAYLOAD_BYTES_MAX]>,
    descriptors: Vec<OwnedFd>,
    closed: bool,
    /// Descriptors that this process may have.
    limit: usize,
    /// The highest number that a received descriptor had. The kernel gives the lowest free one, so
    /// at that moment there were at least as many open.
    highest: RawFd,
}

/// What became of a look into the inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pulled {
    /// A message, which has been sorted into the gates.
    Something,
    /// Nothing is there.
    Nothing,
    /// There may be something, but not enough descriptors for it.
    NoRoom,
    /// The primary will send nothing more.
    End,
}

impl Inbox {
    pub(crate) fn new(socket: OwnedFd) -> Result<Self> {
        let (limit, _) = limits::descriptor_limits()?;
        let state = State {
            payload: Box::new([0; PAYLOAD_BYTES_MAX]),
            descriptors: Vec::new(),
            closed: false,
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            highest: RawFd::try_from(limits::descriptors_open()).unwrap_or(RawFd::MAX),
        };
        Ok(Self { socket, state: Mutex::new(state) })
    }

    /// Takes one message and sorts it into the gates.
    pub(crate) fn pull(&self, shared: &Shared) -> Pulled {
        let mut state = self.state.lock().expect("nothing panics while it holds the inbox");
        if state.closed {
            return Pulled::End;
        }
        // Somebody may have lowered it.
        if let Ok((limit, _)) = limits::descriptor_limits() {
            state.limit = usize::try_from(limit).unwrap_or(usize::MAX);
        }
        if !state.has_room() {
            return Pulled::NoRoom;
        }
        let State { payload, descriptors, .. } = &mut *state;
        let arrival = match fdpass::receive(self.socket.as_fd(), &mut payload[..], descriptors) {
            Ok(arrival) if arrival.bytes > 0 => arrival,
            Err(Errno::EAGAIN | Errno::EINTR) => return Pulled::Nothing,
            Ok(_) | Err(_) => {
                state.closed = true;
                shared.state().queues.values().for_each(|queue| queue.end());
                return Pulled::End;
            }
        };
        let records: Vec<Record> =
            handoff::records(&payload[..arrival.bytes]).map(Iterator::collect).unwrap_or_default();
        let highest = descriptors.iter().map(AsRawFd::as_raw_fd).max();
        let sockets = std::mem::take(descriptors);
        state.highest = highest.unwrap_or(state.highest);
        drop(state);
        if records.is_empty() {
            shared.answer_probe();
            return Pulled::Something;
        }
        if records.len() > sockets.len() {
            shared.lose(records.len() - sockets.len());
        }
        sockets.into_iter().zip(records).for_each(|(socket, record)| sort(shared, socket, record));
        Pulled::Something
    }

    /// The primary will send nothing more, and everything it sent has been taken out.
    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().expect("nothing panics while it holds the inbox").closed
    }

    /// Whether the descriptors of a full message are sure to find room.
    pub(crate) fn has_room(&self) -> bool {
        self.state.lock().expect("nothing panics while it holds the inbox").has_room()
    }
}

/// Puts a connection where the program accepts it, or back where it came from.
fn sort(shared: &Shared, socket: OwnedFd, Record { listener, accepted_ns }: Record) {
    let queue = shared.state().queues.get(&listener).cloned();
    let handed = HandedOver { socket, accepted_ns };
    let refused = match queue {
        Some(queue) => queue.push(handed),
        None => Some(handed),
    };
    if let Some(HandedOver { socket, accepted_ns }) = refused {
        shared.give_back(listener, accepted_ns, socket);
    }
}

impl State {
    /// Counting is only worth it when it may be tight.
    fn has_room(&self) -> bool {
        let highest = usize::try_from(self.highest).unwrap_or(0);
        highest + DESCRIPTORS_PER_MESSAGE_MAX + MARGIN <= self.limit
            || limits::descriptors_open() + DESCRIPTORS_PER_MESSAGE_MAX <= self.limit
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
