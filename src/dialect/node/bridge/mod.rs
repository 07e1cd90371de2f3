//! All Node workers of a run, behind the data path as if they were workers of its own.
//!
//! One thread with two epoll sets: the channels of the workers, and beside that set everything
//! else, so that channels can be left alone for a moment. Owns, for each worker, the primary's end
//! of its channel, the receiving end of its inbox and its page of the load board. Takes connections
//! from an inbox only as fast as the worker's window allows, so that what the worker cannot take
//! yet stays where the data path can have it back. Counts a connection as claimed and finished at
//! once when the worker says that it has it: in flight, for a Node worker, is what it has not
//! answered for.
//!
//! What comes back, because a worker refused it, died, or was too slow, goes to the data path with
//! [`Command::Return`](crate::data_path::Command::Return), in order and with its accept time.

mod ack_batching;
mod inbound;
mod messages;
mod node_worker;
mod notices;
mod outbox;
mod own_inbox;
mod send_quota;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde_json::Value;

use super::session::{Answer, QueryId};
use crate::error::{Error, Result};
use crate::id::{ListenerId, Slot, WorkerId};
use crate::sys::clock::monotonic_ns;
use crate::sys::watch;
use ack_batching::{AckBatching, Urgency};
use inbound::Extent;
pub use messages::{BridgeRequest, Endpoints, NewNodeWorker, Notice};
use node_worker::{NodeWorker, READ_BYTES, Ready};
pub use notices::Notices;
#[cfg(feature = "internals")]
pub use notices::{NOTICE_BYTES_MAX, NOTICES_MAX};
pub use send_quota::{SendQuota, UserMessageOut};
#[cfg(feature = "internals")]
pub use send_quota::{USER_MESSAGE_BYTES_MAX, USER_MESSAGE_SOCKETS_MAX, USER_MESSAGES_MAX};

/// How long a connection may wait here for its worker's window before somebody else gets it.
const HOLD_NS: u64 = 20_000_000;
/// Most bytes of answers that wait for a worker which asks and does not read; beyond it the channel
/// is closed. Messages for the program are counted by [`SendQuota`].
const UNREAD_BYTES_MAX: usize = 1024 * 1024;

/// What an event is of; else it is of a worker's inbox or channel, and says whose.
const WAKER: u64 = u64::MAX;
const CHANNELS: u64 = WAKER - 1;
/// Events taken at once.
const EVENTS_MAX: usize = 64;

/// A worker and what of it is watched.
#[derive(Debug)]
struct Place {
    node_worker: NodeWorker,
    /// What its channel is watched for; it is not in the epoll set while that is nothing, since
    /// epoll would tell of its end again and again.
    watched: Option<EpollFlags>,
    /// Its inbox is watched.
    attentive: bool,
}

/// All Node workers.
#[derive(Debug)]
pub struct Bridge {
    /// The bell, the inboxes, and the other set as far as channels are listened to.
    epoll: Epoll,
    /// The channels.
    channels: Epoll,
    listening: bool,
    ack_batching: AckBatching,
    endpoints: Endpoints,
    places: BTreeMap<WorkerId, Place>,
    /// What the first worker on a listener brought for all: TLS ticket keys, so that a session
    /// begun with one worker can be resumed with another.
    data: BTreeMap<ListenerId, Value>,
    buffer: Vec<u8>,
    ending: bool,
}

impl Bridge {
    /// Prepares a bridge without workers.
    ///
    /// # Errors
    /// Too few descriptors.
    pub fn new(endpoints: Endpoints) -> Result<Self> {
        let (epoll, channels) = (new_set()?, new_set()?);
        epoll
            .add(&endpoints.request_waker, EpollEvent::new(EpollFlags::EPOLLIN, WAKER))
            .and_then(|()| epoll.add(&channels.0, channels_event(true)))
            .map_err(unwatched)?;
        Ok(Self {
            epoll,
            channels,
            listening: true,
            ack_batching: AckBatching::default(),
            endpoints,
            places: BTreeMap::new(),
            data: BTreeMap::new(),
            buffer: vec![0; READ_BYTES],
            ending: false,
        })
    }

    /// Runs until told to end.
    ///
    /// # Errors
    /// The epoll set failed.
    pub fn run(mut self) -> Result<()> {
        let mut ready = [EpollEvent::empty(); EVENTS_MAX];
        while !self.ending {
            let count = self.wait(&mut ready)?;
            let now_ns = monotonic_ns();
            let ready = &ready[..count];
            // First, since what the workers have taken makes room for more.
            if ready.iter().any(|event| event.data() == CHANNELS)
                || self.ack_batching.is_over(now_ns)
            {
                self.hear(now_ns)?;
            }
            for event in ready {
                match event.data() {
                    WAKER => self.obey(now_ns),
                    CHANNELS => {}
                    _ => self.serve(*event, Ready { channel: false, inbox: true }, now_ns),
                }
            }
            self.meet_deadlines(now_ns);
            self.settle(now_ns);
        }
        let now_ns = monotonic_ns();
        for mut place in std::mem::take(&mut self.places).into_values() {
            // What it has taken and said so must not be given to anybody else.
            place.node_worker.hear(&self.endpoints, &mut self.buffer, Extent::Everything, now_ns);
            place.node_worker.close(&self.endpoints, now_ns);
        }
        Ok(())
    }

    /// Waits until something is to be done.
    fn wait(&mut self, ready: &mut [EpollEvent]) -> Result<usize> {
        let now_ns = monotonic_ns();
        let needs = self.places.values().map(|place| place.node_worker.need(now_ns));
        let need = needs.max().unwrap_or(Urgency::Nothing);
        let until_ns = self.ack_batching.until_ns(need, now_ns);
        self.listen(until_ns.is_none())?;
        let deadlines = self.places.values().filter_map(|place| place.node_worker.deadline_ns());
        let next_ns = deadlines.chain(until_ns).min();
        let left_ns = next_ns.map(|next_ns| next_ns.saturating_sub(now_ns));
        ended(watch::wait(&self.epoll, ready, left_ns))
    }

    /// Begins or ends to be woken by channels.
    fn listen(&mut self, listening: bool) -> Result<()> {
        if self.listening != listening {
            let changed = self.epoll.modify(&self.channels.0, &mut channels_event(listening));
            changed.map_err(unwatched)?;
            self.listening = listening;
        }
        Ok(())
    }

    /// Serves the channels in which there is something.
    fn hear(&mut self, now_ns: u64) -> Result<()> {
        let mut ready = [EpollEvent::empty(); EVENTS_MAX];
        let count = ended(self.channels.wait(&mut ready, EpollTimeout::ZERO))?;
        for event in &ready[..count] {
            let channel = event.events() != EpollFlags::EPOLLOUT;
            self.serve(*event, Ready { channel, inbox: false }, now_ns);
        }
        if count < ready.len() {
            self.ack_batching.begin_anew();
        }
        Ok(())
    }

    fn obey(&mut self, now_ns: u64) {
        self.endpoints.request_waker.clear();
        while let Ok(order) = self.endpoints.requests.try_recv() {
            match order {
                BridgeRequest::Admit { worker, slot, new_worker } => {
                    if let Err(error) = self.admit(worker, slot, *new_worker) {
                        let failure = Some(error.to_string());
                        self.endpoints.notify(Notice::Gone { worker, failure });
                    }
                }
                BridgeRequest::Answer { worker, query, answer, socket } => {
                    self.answer(worker, query, &answer, socket, now_ns);
                    self.turn(worker, Ready::default(), now_ns);
                }
                BridgeRequest::Send { worker, message_out } => {
                    if let Some(place) = self.places.get_mut(&worker) {
                        place.node_worker.send(message_out);
                    }
                    self.turn(worker, Ready::default(), now_ns);
                }
                BridgeRequest::Disconnect { worker } => {
                    if let Some(place) = self.places.get_mut(&worker) {
                        place.node_worker.disconnect();
                    }
                    self.turn(worker, Ready::default(), now_ns);
                }
                BridgeRequest::Stop { worker } => {
                    if let Some(place) = self.places.get_mut(&worker) {
                        place.node_worker.stop();
                    }
                    self.turn(worker, Ready::default(), now_ns);
                }
                BridgeRequest::Cut { worker } => {
                    if let Some(place) = self.places.get_mut(&worker) {
                        place.node_worker.cut(&self.endpoints, &mut self.buffer, now_ns);
                    }
                }
                BridgeRequest::Forget { listener } => _ = self.data.remove(&listener),
                BridgeRequest::End => self.ending = true,
            }
        }
        self.read_on(now_ns);
    }

    /// Reads on where that was stopped because the control plane was behind, and is not any more.
    fn read_on(&mut self, now_ns: u64) {
        let notices = &self.endpoints.notices;
        let stopped = self.places.iter().filter(|(_, place)| place.node_worker.is_held_up());
        let has_room = stopped.map(|(worker, _)| *worker).filter(|one| !notices.is_full(*one));
        for worker in has_room.collect::<Vec<_>>() {
            self.turn(worker, Ready { channel: true, inbox: false }, now_ns);
        }
    }

    fn admit(&mut self, worker: WorkerId, slot: Slot, new_worker: NewNodeWorker) -> Result<()> {
        let node_worker = NodeWorker::new(worker, slot, new_worker)?;
        let channel = EpollEvent::new(EpollFlags::EPOLLIN, token(worker));
        self.channels.add(node_worker.channel(), channel).map_err(unwatched)?;
        self.epoll.add(node_worker.inbox(), inbox_event(worker)).map_err(unwatched)?;
        let watched = Some(EpollFlags::EPOLLIN);
        self.places.insert(worker, Place { node_worker, watched, attentive: true });
        Ok(())
    }

    fn answer(
        &mut self,
        worker: WorkerId,
        query: QueryId,
        answer: &Answer,
        socket: Option<OwnedFd>,
        now_ns: u64,
    ) {
        let Some(place) = self.places.get_mut(&worker) else { return };
        let node_worker = &mut place.node_worker;
        let own = node_worker.data_of(query).cloned().unwrap_or_default();
        let data = match answer {
            Answer::HandOver { listener, .. } | Answer::Share { listener, .. } => {
                let data = self.data.entry(*listener).or_default();
                if data.is_null() {
                    *data = own;
                }
                &*data
            }
            Answer::Fail(_) => &own,
        };
        node_worker.answer(&self.endpoints, query, answer, socket, data, now_ns);
    }

    fn serve(&mut self, event: EpollEvent, ready: Ready, now_ns: u64) {
        if let Ok(id) = u32::try_from(event.data()) {
            self.turn(WorkerId(id), ready, now_ns);
        }
    }

    fn turn(&mut self, worker: WorkerId, ready: Ready, now_ns: u64) {
        if let Some(place) = self.places.get_mut(&worker) {
            place.node_worker.turn(&self.endpoints, &mut self.buffer, ready, now_ns);
        }
    }

    fn meet_deadlines(&mut self, now_ns: u64) {
        let late =
            |place: &Place| place.node_worker.deadline_ns().is_some_and(|at_ns| at_ns <= now_ns);
        let late = self.places.iter().filter(|(_, place)| late(place)).map(|(worker, _)| *worker);
        for worker in late.collect::<Vec<_>>() {
            self.turn(worker, Ready::default(), now_ns);
        }
    }

    /// Watches what is wanted, and closes what is over.
    fn settle(&mut self, now_ns: u64) {
        for (worker, place) in &mut self.places {
            let watched = place.watch(&self.channels, *worker);
            if let Err(error) = watched.and_then(|()| place.attend(&self.epoll, *worker, now_ns)) {
                // Without being watched it would be served by nobody.
                place.node_worker.fail(error.to_string());
            }
        }
        let over = self.places.iter().filter(|(_, place)| place.node_worker.is_over());
        for worker in over.map(|(worker, _)| *worker).collect::<Vec<_>>() {
            let Some(Place { node_worker, attentive, .. }) = self.places.remove(&worker) else {
                continue;
            };
            // A duplicate of the inbox lives on in the data path, so closing is not enough.
            if attentive {
                let _ = self.epoll.delete(node_worker.inbox());
            }
            node_worker.close(&self.endpoints, now_ns);
        }
    }
}

impl Place {
    fn watch(&mut self, channels: &Epoll, worker: WorkerId) -> Result<()> {
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, !self.node_worker.is_held_up());
        flags.set(EpollFlags::EPOLLOUT, self.node_worker.wants_to_write());
        let wanted = (!flags.is_empty()).then_some(flags);
        if wanted == self.watched {
            return Ok(());
        }
        let channel = self.node_worker.channel();
        let mut event = EpollEvent::new(flags, token(worker));
        let changed = match (self.watched, wanted) {
            (None, _) => channels.add(channel, event),
            (Some(_), Some(_)) => channels.modify(channel, &mut event),
            (Some(_), None) => channels.delete(channel),
        };
        changed.map_err(unwatched)?;
        self.watched = wanted;
        Ok(())
    }

    /// Watches the inbox, unless the worker takes from it by itself.
    fn attend(&mut self, epoll: &Epoll, worker: WorkerId, now_ns: u64) -> Result<()> {
        let inbox = self.node_worker.inbox();
        let wanted = self.node_worker.reads_inbox(now_ns);
        match (self.attentive, wanted) {
            (false, true) => epoll.add(inbox, inbox_event(worker)).map_err(unwatched)?,
            (true, false) => epoll.delete(inbox).map_err(unwatched)?,
            _ => {}
        }
        self.attentive = wanted;
        Ok(())
    }
}

/// Only what comes anew is told: most of the time something lies in the inbox that has to wait for
/// the worker.
fn inbox_event(worker: WorkerId) -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, token(worker))
}

fn token(worker: WorkerId) -> u64 {
    u64::from(worker.0)
}

fn new_set() -> Result<Epoll> {
    Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
        .map_err(|errno| Error::system("create an epoll set for Node workers", errno))
}

fn channels_event(listening: bool) -> EpollEvent {
    let flags = if listening { EpollFlags::EPOLLIN } else { EpollFlags::empty() };
    EpollEvent::new(flags, CHANNELS)
}

/// How many events a wait has brought.
fn ended(wait: nix::Result<usize>) -> Result<usize> {
    match wait {
        Ok(count) => Ok(count),
        Err(Errno::EINTR) => Ok(0),
        Err(errno) => Err(Error::system("wait for Node workers (epoll)", errno)),
    }
}

fn unwatched(errno: Errno) -> Error {
    Error::system("watch a Node worker (epoll_ctl)", errno)
}
