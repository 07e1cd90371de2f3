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
//! [`Command::Return`](crate::primary::Command::Return), in order and with the time of its accept.

mod hearing;
mod notices;
mod outbox;
mod own_inbox;
mod parcel;
mod patience;
mod protocol;
mod station;

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
use hearing::Extent;
pub use notices::{NOTICE_BYTES_MAX, NOTICES_MAX, Notices};
pub use parcel::{PARCEL_BYTES_MAX, PARCEL_SOCKETS_MAX, PARCELS_MAX, Parcel, Postage};
use patience::{Need, Patience};
pub use protocol::{Lines, Newcomer, Notice, Order};
use station::{READ_BYTES, Ready, Station};

/// How long a connection may wait here for its worker's window before somebody else gets it.
const HOLD_NS: u64 = 20_000_000;
/// Most bytes of answers that wait for a worker which asks and does not read; beyond it the channel
/// is closed. Messages for the program are counted by [`Postage`].
const UNREAD_BYTES_MAX: usize = 1024 * 1024;

/// What an event is of; else it is of a worker's inbox or channel, and says whose.
const BELL: u64 = u64::MAX;
const CHANNELS: u64 = BELL - 1;
/// Events taken at once.
const EVENTS_MAX: usize = 64;

/// A worker and what of it is watched.
#[derive(Debug)]
struct Place {
    station: Station,
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
    patience: Patience,
    lines: Lines,
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
    pub fn new(lines: Lines) -> Result<Self> {
        let (epoll, channels) = (new_set()?, new_set()?);
        epoll
            .add(&lines.order_bell, EpollEvent::new(EpollFlags::EPOLLIN, BELL))
            .and_then(|()| epoll.add(&channels.0, channels_event(true)))
            .map_err(unwatched)?;
        Ok(Self {
            epoll,
            channels,
            listening: true,
            patience: Patience::default(),
            lines,
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
            if ready.iter().any(|event| event.data() == CHANNELS) || self.patience.is_over(now_ns) {
                self.hear(now_ns)?;
            }
            for event in ready {
                match event.data() {
                    BELL => self.obey(now_ns),
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
            place.station.hear(&self.lines, &mut self.buffer, Extent::Everything, now_ns);
            place.station.close(&self.lines, now_ns);
        }
        Ok(())
    }

    /// Waits until something is to be done.
    fn wait(&mut self, ready: &mut [EpollEvent]) -> Result<usize> {
        let now_ns = monotonic_ns();
        let needs = self.places.values().map(|place| place.station.need(now_ns));
        let need = needs.max().unwrap_or(Need::Nothing);
        let until_ns = self.patience.until_ns(need, now_ns);
        self.listen(until_ns.is_none())?;
        let deadlines = self.places.values().filter_map(|place| place.station.deadline_ns());
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
            self.patience.begin_anew();
        }
        Ok(())
    }

    fn obey(&mut self, now_ns: u64) {
        let _ = self.lines.order_bell.read();
        while let Ok(order) = self.lines.orders.try_recv() {
            match order {
                Order::Admit { worker, slot, newcomer } => {
                    if let Err(error) = self.admit(worker, slot, *newcomer) {
                        let failure = Some(error.to_string());
                        self.lines.notify(Notice::Gone { worker, failure });
                    }
                }
                Order::Answer { worker, query, answer, socket } => {
                    self.answer(worker, query, &answer, socket, now_ns);
                    self.turn(worker, Ready::default(), now_ns);
                }
                Order::Send { worker, parcel } => {
                    if let Some(place) = self.places.get_mut(&worker) {
                        place.station.send(parcel);
                    }
                    self.turn(worker, Ready::default(), now_ns);
                }
                Order::Disconnect { worker } => {
                    if let Some(place) = self.places.get_mut(&worker) {
                        place.station.disconnect();
                    }
                    self.turn(worker, Ready::default(), now_ns);
                }
                Order::Cut { worker } => {
                    if let Some(place) = self.places.get_mut(&worker) {
                        place.station.cut(&self.lines, &mut self.buffer, now_ns);
                    }
                }
                Order::End => self.ending = true,
            }
        }
        self.read_on(now_ns);
    }

    /// Reads on where that was stopped because the control plane was behind, and is not any more.
    fn read_on(&mut self, now_ns: u64) {
        let notices = &self.lines.notices;
        let stopped = self.places.iter().filter(|(_, place)| place.station.is_held_up());
        let has_room = stopped.map(|(worker, _)| *worker).filter(|one| !notices.is_full(*one));
        for worker in has_room.collect::<Vec<_>>() {
            self.turn(worker, Ready { channel: true, inbox: false }, now_ns);
        }
    }

    fn admit(&mut self, worker: WorkerId, slot: Slot, newcomer: Newcomer) -> Result<()> {
        let station = Station::new(worker, slot, newcomer)?;
        let channel = EpollEvent::new(EpollFlags::EPOLLIN, token(worker));
        self.channels.add(station.channel(), channel).map_err(unwatched)?;
        self.epoll.add(station.inbox(), inbox_event(worker)).map_err(unwatched)?;
        let watched = Some(EpollFlags::EPOLLIN);
        self.places.insert(worker, Place { station, watched, attentive: true });
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
        let station = &mut place.station;
        let own = station.data_of(query).cloned().unwrap_or_default();
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
        station.answer(&self.lines, query, answer, socket, data, now_ns);
    }

    fn serve(&mut self, event: EpollEvent, ready: Ready, now_ns: u64) {
        if let Ok(id) = u32::try_from(event.data()) {
            self.turn(WorkerId(id), ready, now_ns);
        }
    }

    fn turn(&mut self, worker: WorkerId, ready: Ready, now_ns: u64) {
        if let Some(place) = self.places.get_mut(&worker) {
            place.station.turn(&self.lines, &mut self.buffer, ready, now_ns);
        }
    }

    fn meet_deadlines(&mut self, now_ns: u64) {
        let late = |place: &Place| place.station.deadline_ns().is_some_and(|at_ns| at_ns <= now_ns);
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
                place.station.fail(error.to_string());
            }
        }
        let over = self.places.iter().filter(|(_, place)| place.station.is_over());
        for worker in over.map(|(worker, _)| *worker).collect::<Vec<_>>() {
            let Some(Place { station, attentive, .. }) = self.places.remove(&worker) else {
                continue;
            };
            // A duplicate of the inbox lives on in the data path, so closing is not enough.
            if attentive {
                let _ = self.epoll.delete(station.inbox());
            }
            station.close(&self.lines, now_ns);
        }
    }
}

impl Place {
    fn watch(&mut self, channels: &Epoll, worker: WorkerId) -> Result<()> {
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, !self.station.is_held_up());
        flags.set(EpollFlags::EPOLLOUT, self.station.wants_to_write());
        let wanted = (!flags.is_empty()).then_some(flags);
        if wanted == self.watched {
            return Ok(());
        }
        let channel = self.station.channel();
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
        let inbox = self.station.inbox();
        let wanted = self.station.reads_inbox(now_ns);
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
