//! Connects all Node workers of a run to the data path, to which they look like native workers.
//!
//! One thread with two epoll sets: one for the workers' channels, and one for everything else and
//! the first set, so that the channels can be left unread for a moment. For each worker it owns the
//! primary's end of the channel, the receiving end of the inbox, and the scoreboard page. It takes
//! connections from an inbox only as fast as the worker's window allows, so that the data path can
//! take the others back. When the worker confirms a connection, the bridge counts it as claimed and
//! finished at once: for a Node worker, in flight means unconfirmed.
//!
//! A connection that a worker refused, or did not take before it died or in time, goes back to the
//! data path with [`Command::Return`](crate::data_path::Command::Return), in order and with its
//! accept time.

mod ack_batching;
mod endpoints;
mod inbound;
mod messages;
mod node_worker;
mod notices;
mod outbox;
mod own_inbox;
mod send_quota;
mod thread;

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
pub use endpoints::Endpoints;
pub use messages::{BridgeRequest, NewNodeWorker, Notice};
use node_worker::{Extent, NodeWorker, READ_BYTES, Ready};
pub use notices::Notices;
#[cfg(feature = "internals")]
pub use notices::{NOTICE_BYTES_MAX, NOTICES_MAX};
pub use send_quota::{SendQuota, UserMessageOut};
#[cfg(feature = "internals")]
pub use send_quota::{USER_MESSAGE_BYTES_MAX, USER_MESSAGE_SOCKETS_MAX, USER_MESSAGES_MAX};
pub(crate) use thread::BridgeThread;

/// How long a connection may wait for its worker's window before it goes to another worker.
const HOLD_NS: u64 = 20_000_000;
/// Maximum number of queued bytes of replies to a worker that does not read; beyond it the channel
/// is closed. Messages for the program are counted by [`SendQuota`].
const UNREAD_BYTES_MAX: usize = 1024 * 1024;

/// Event data of the waker and other fixed sources; all other values name a worker and its inbox or
/// channel.
const WAKER: u64 = u64::MAX;
const CHANNELS: u64 = WAKER - 1;
/// Maximum number of events fetched at once.
const EVENTS_MAX: usize = 64;

/// A worker and its registrations.
#[derive(Debug)]
struct BridgeEntry {
    node_worker: NodeWorker,
    /// The events watched on its channel. The channel is removed from the epoll set while there are
    /// none, because epoll would report a hang-up repeatedly.
    watched: Option<EpollFlags>,
    /// Whether its inbox is watched.
    inbox_watched: bool,
}

/// The bridge.
#[derive(Debug)]
pub struct Bridge {
    /// The waker, the inboxes, and the other set while channels are read.
    epoll: Epoll,
    /// The channels.
    channels: Epoll,
    listening: bool,
    ack_batching: AckBatching,
    endpoints: Endpoints,
    entries: BTreeMap<WorkerId, BridgeEntry>,
    /// Data of the first worker on each listener, shared with all others: TLS ticket keys, so that
    /// a session started with one worker can be resumed with another.
    data: BTreeMap<ListenerId, Value>,
    buffer: Vec<u8>,
    ending: bool,
}

impl Bridge {
    /// Creates a bridge without workers.
    ///
    /// # Errors
    /// Descriptors are exhausted.
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
            entries: BTreeMap::new(),
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
            // First, because confirmed connections make room for more.
            if ready.iter().any(|event| event.data() == CHANNELS)
                || self.ack_batching.is_over(now_ns)
            {
                self.on_channels_ready(now_ns)?;
            }
            for event in ready {
                match event.data() {
                    WAKER => self.on_requests(now_ns),
                    CHANNELS => {}
                    _ => self.serve(*event, Ready { channel: false, inbox: true }, now_ns),
                }
            }
            self.on_deadlines(now_ns);
            self.settle(now_ns);
        }
        let now_ns = monotonic_ns();
        for mut entry in std::mem::take(&mut self.entries).into_values() {
            // A connection that it has confirmed must not go to another worker.
            entry.node_worker.read_channel(
                &self.endpoints,
                &mut self.buffer,
                Extent::Everything,
                now_ns,
            );
            entry.node_worker.close(&self.endpoints, now_ns);
        }
        Ok(())
    }

    /// Waits until there is something to do.
    fn wait(&mut self, ready: &mut [EpollEvent]) -> Result<usize> {
        let now_ns = monotonic_ns();
        let needs = self.entries.values().map(|entry| entry.node_worker.need(now_ns));
        let need = needs.max().unwrap_or(Urgency::Nothing);
        let until_ns = self.ack_batching.until_ns(need, now_ns);
        self.listen(until_ns.is_none())?;
        let deadlines = self.entries.values().filter_map(|entry| entry.node_worker.deadline_ns());
        let next_ns = deadlines.chain(until_ns).min();
        let left_ns = next_ns.map(|next_ns| next_ns.saturating_sub(now_ns));
        ended(watch::wait(&self.epoll, ready, left_ns))
    }

    /// Starts or stops waking up for channels.
    fn listen(&mut self, listening: bool) -> Result<()> {
        if self.listening != listening {
            let changed = self.epoll.modify(&self.channels.0, &mut channels_event(listening));
            changed.map_err(unwatched)?;
            self.listening = listening;
        }
        Ok(())
    }

    /// Serves the readable channels.
    fn on_channels_ready(&mut self, now_ns: u64) -> Result<()> {
        let mut ready = [EpollEvent::empty(); EVENTS_MAX];
        let count = ended(self.channels.wait(&mut ready, EpollTimeout::ZERO))?;
        for event in &ready[..count] {
            let channel = event.events() != EpollFlags::EPOLLOUT;
            self.serve(*event, Ready { channel, inbox: false }, now_ns);
        }
        if count < ready.len() {
            self.ack_batching.end();
        }
        Ok(())
    }

    fn on_requests(&mut self, now_ns: u64) {
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
                    if let Some(entry) = self.entries.get_mut(&worker) {
                        entry.node_worker.send(message_out);
                    }
                    self.turn(worker, Ready::default(), now_ns);
                }
                BridgeRequest::Disconnect { worker } => {
                    if let Some(entry) = self.entries.get_mut(&worker) {
                        entry.node_worker.disconnect();
                    }
                    self.turn(worker, Ready::default(), now_ns);
                }
                BridgeRequest::Stop { worker } => {
                    if let Some(entry) = self.entries.get_mut(&worker) {
                        entry.node_worker.stop();
                    }
                    self.turn(worker, Ready::default(), now_ns);
                }
                BridgeRequest::Cut { worker } => {
                    if let Some(entry) = self.entries.get_mut(&worker) {
                        entry.node_worker.cut(&self.endpoints, &mut self.buffer, now_ns);
                    }
                }
                BridgeRequest::Forget { listener } => _ = self.data.remove(&listener),
                BridgeRequest::End => self.ending = true,
            }
        }
        self.read_on(now_ns);
    }

    /// Resumes reading workers whose messages the control plane has caught up with.
    fn read_on(&mut self, now_ns: u64) {
        let notices = &self.endpoints.notices;
        let stopped = self.entries.iter().filter(|(_, entry)| entry.node_worker.is_held_up());
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
        self.entries.insert(worker, BridgeEntry { node_worker, watched, inbox_watched: true });
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
        let Some(entry) = self.entries.get_mut(&worker) else { return };
        let node_worker = &mut entry.node_worker;
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
            self.turn(WorkerId::new(id), ready, now_ns);
        }
    }

    fn turn(&mut self, worker: WorkerId, ready: Ready, now_ns: u64) {
        if let Some(entry) = self.entries.get_mut(&worker) {
            entry.node_worker.turn(&self.endpoints, &mut self.buffer, ready, now_ns);
        }
    }

    fn on_deadlines(&mut self, now_ns: u64) {
        let late = |entry: &BridgeEntry| {
            entry.node_worker.deadline_ns().is_some_and(|at_ns| at_ns <= now_ns)
        };
        let late = self.entries.iter().filter(|(_, entry)| late(entry)).map(|(worker, _)| *worker);
        for worker in late.collect::<Vec<_>>() {
            self.turn(worker, Ready::default(), now_ns);
        }
    }

    /// Updates what is watched, and closes channels that are over.
    fn settle(&mut self, now_ns: u64) {
        for (worker, entry) in &mut self.entries {
            let watched = entry.watch(&self.channels, *worker);
            if let Err(error) =
                watched.and_then(|()| entry.watch_inbox(&self.epoll, *worker, now_ns))
            {
                // An unwatched worker would never be served.
                entry.node_worker.fail(error.to_string());
            }
        }
        let over = self.entries.iter().filter(|(_, entry)| entry.node_worker.is_over());
        for worker in over.map(|(worker, _)| *worker).collect::<Vec<_>>() {
            let Some(BridgeEntry { node_worker, inbox_watched, .. }) = self.entries.remove(&worker)
            else {
                continue;
            };
            // The data path holds a duplicate of the inbox, so closing this one does not remove it
            // from the set.
            if inbox_watched {
                let _ = self.epoll.delete(node_worker.inbox());
            }
            node_worker.close(&self.endpoints, now_ns);
        }
    }
}

impl BridgeEntry {
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

    /// Watches the inbox, unless the worker empties it itself.
    fn watch_inbox(&mut self, epoll: &Epoll, worker: WorkerId, now_ns: u64) -> Result<()> {
        let inbox = self.node_worker.inbox();
        let wanted = self.node_worker.reads_inbox(now_ns);
        match (self.inbox_watched, wanted) {
            (false, true) => epoll.add(inbox, inbox_event(worker)).map_err(unwatched)?,
            (true, false) => epoll.delete(inbox).map_err(unwatched)?,
            _ => {}
        }
        self.inbox_watched = wanted;
        Ok(())
    }
}

/// Edge-triggered: most of the time the inbox holds something that has to wait for the worker.
fn inbox_event(worker: WorkerId) -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, token(worker))
}

fn token(worker: WorkerId) -> u64 {
    u64::from(worker.get())
}

fn new_set() -> Result<Epoll> {
    Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
        .map_err(|errno| Error::system("create an epoll set for Node workers", errno))
}

fn channels_event(listening: bool) -> EpollEvent {
    let flags = if listening { EpollFlags::EPOLLIN } else { EpollFlags::empty() };
    EpollEvent::new(flags, CHANNELS)
}

/// The number of events of a wait.
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
