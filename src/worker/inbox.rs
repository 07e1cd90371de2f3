//! The worker's end of the handoff channel, read only when the program accepts.
//!
//! A socket that is not read stays in the channel, where the primary can still take it back for
//! another worker. A program that does not accept therefore delays no connection.

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

/// Descriptors that the program may open between two messages without a new count.
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
    /// Descriptor limit of this process.
    limit: usize,
    /// The highest descriptor received. The kernel assigns the lowest free number, so at that
    /// moment at least this many were open.
    highest: RawFd,
}

/// The result of reading from the inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pulled {
    /// A message was read and sorted into the queues.
    Something,
    /// The inbox is empty.
    Nothing,
    /// There may be a message, but too few descriptors are free to receive it.
    NoRoom,
    /// The primary has closed the channel.
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

    /// Reads one message and sorts it into the queues.
    pub(crate) fn pull(&self, shared: &Shared) -> Pulled {
        let mut state = self.state.lock().expect("nothing panics while it holds the inbox");
        if state.closed {
            return Pulled::End;
        }
        // The program may have lowered the limit.
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
                shared.state().queues.values().for_each(|queue| queue.end_inbox());
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

    /// Whether the primary has closed the channel and everything has been read.
    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().expect("nothing panics while it holds the inbox").closed
    }

    /// Whether the descriptors of a full message are certain to fit.
    pub(crate) fn has_room(&self) -> bool {
        self.state.lock().expect("nothing panics while it holds the inbox").has_room()
    }
}

/// Adds a connection to its listener's queue, or sends it back to the primary.
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
    /// Count the open descriptors only when the limit may be near.
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
