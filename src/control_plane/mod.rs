//! The control plane: one thread that starts workers, answers them, and notices their ends.
//!
//! Owns processes, channels, listeners and the data path's thread. It does what it is asked for and
//! tells of events. It knows nothing of replacing workers or of signals, and nothing of it is on a
//! connection's way.

mod bind_retry;
mod bridge_thread;
mod data_path_thread;
mod disconnect;
mod handle;
mod inbound;
mod listen;
mod listen_fds;
pub(crate) mod listeners;
mod node;
mod reap;
mod reuseport;
mod spawn;
mod thread;
mod worker_entry;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;

pub(crate) use handle::{Line, Promise, Request, Wishes};

use crate::cluster::Roll;
use crate::cluster::bus::Bus;
use crate::cluster::mailbox::silence;
use crate::cluster::{ClusterSettings, Event, WorkerHandle};
use crate::data_path::{ClusterCounts, Command, Report};
use crate::dialect::node::bridge::Order;
use crate::dialect::node::preload::Preload;
use crate::error::{Error, Result};
use crate::id::{Slot, WorkerId};
use crate::protocol::control::Flushed;
use crate::sys::clock::monotonic_ns;
use crate::sys::notify::NotifySocket;
use bind_retry::{Busy, Petition};
use bridge_thread::BridgeThread;
use data_path_thread::DataPath;
use listeners::Listeners;
use worker_entry::Member;

/// How soon a channel is tried again when too many descriptors are under way.
const CROWDED_NS: u64 = 5_000_000;

/// Tokens of what is waited for. Those of workers are their ids and a bit for which descriptor.
const REQUESTS: u64 = 0;
const REPORTS: u64 = 1;
const NOTICES: u64 = 2;
const NOTIFICATIONS: u64 = 3;
const PROCESS: u64 = 1 << 32;
const CHANNEL: u64 = 1 << 33;

/// The thread's state.
#[derive(Debug)]
pub(crate) struct Plane {
    epoll: Epoll,
    line: Line,
    requests: Receiver<Request>,
    bell: Arc<EventFd>,
    bus: Arc<Bus>,
    roll: Roll,
    members: BTreeMap<WorkerId, Member>,
    /// Who is where.
    places: Vec<Option<WorkerId>>,
    listeners: Listeners,
    /// Who waits for an address.
    busy: Busy,
    data: Option<DataPath>,
    /// What Node workers are connected to, once there has been one.
    bridge: Option<BridgeThread>,
    /// What they load, once there has been one that does.
    preload: Option<Preload>,
    /// Where workers without a channel say that they serve, once there has been one.
    notify: Option<NotifySocket>,
    /// What workers ring to wake the data path.
    data_bell: Arc<EventFd>,
    /// What concerns the whole cluster, once that is fixed.
    ground: Option<Arc<ClusterSettings>>,
    next_id: u32,
    /// When crowded channels are tried again.
    retry_ns: Option<u64>,
    /// Kept when nobody is left.
    disconnecting: Vec<Promise>,
    ending: Option<SyncSender<Result<ClusterCounts>>>,
}

impl Plane {
    fn watch(&self, descriptor: &impl AsFd, token: u64) -> Result<()> {
        self.epoll
            .add(descriptor, EpollEvent::new(EpollFlags::EPOLLIN, token))
            .map_err(|errno| Error::system("watch a descriptor (epoll_ctl)", errno))
    }

    fn tell(&self, event: Event) {
        self.bus.publish(&event);
    }

    /// Does what is to be done until it is told to end.
    ///
    /// # Errors
    /// It cannot wait any more.
    fn run(&mut self) -> Result<()> {
        let mut ready = [EpollEvent::empty(); 64];
        while self.ending.is_none() {
            let count = match self.epoll.wait(&mut ready, self.until_next_deadline()) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(Error::system("wait for workers (epoll)", errno)),
            };
            for event in &ready[..count] {
                self.attend(event.data(), event.events());
            }
            if self.retry_ns.is_some_and(|retry_ns| retry_ns <= monotonic_ns()) {
                self.retry_ns = None;
                self.flush_everybody();
            }
            self.petition_again();
            self.settle();
            self.complete_disconnects();
        }
        Ok(())
    }

    fn until_next_deadline(&self) -> EpollTimeout {
        let next_ns = self.retry_ns.into_iter().chain(self.busy.again_ns());
        let next_ns = next_ns.chain(self.next_settled_ns()).min();
        next_ns.map_or(EpollTimeout::NONE, |next_ns| {
            let left = Duration::from_nanos(next_ns.saturating_sub(monotonic_ns()));
            // Rounded up: waking a moment too early would make the loop spin until the time.
            let left_ms = u16::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(u16::MAX);
            EpollTimeout::from(left_ms)
        })
    }

    fn attend(&mut self, token: u64, flags: EpollFlags) {
        match token {
            REQUESTS => {
                silence(&self.bell);
                while let Ok(request) = self.requests.try_recv() {
                    self.obey(request);
                }
                // It also rings when somebody who was behind has read.
                self.read_again();
                self.heed_bridge();
            }
            REPORTS => match self.data.as_mut().map_or(Ok(vec![]), DataPath::reports) {
                Ok(reports) => reports.into_iter().for_each(|report| self.heed(report)),
                Err(error) => self.lose_data_path(error),
            },
            NOTICES => self.heed_bridge(),
            NOTIFICATIONS => self.heed_notifications(),
            _ => {
                let id = WorkerId(u32::try_from(token & 0xffff_ffff).unwrap_or(0));
                if token & PROCESS != 0 {
                    return self.reap(id);
                }
                if flags.contains(EpollFlags::EPOLLOUT) {
                    self.flush(id);
                }
                if flags
                    .intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR)
                {
                    self.hear(id);
                }
            }
        }
    }

    fn obey(&mut self, request: Request) {
        match request {
            Request::Fork { settings, wishes, answer } => {
                let _ = answer.send(self.fork(settings, wishes));
            }
            Request::Hold { settings, address, answer } => {
                self.petition(Petition::Hold { settings, address, answer });
            }
            Request::Open => self.command(Command::Open),
            Request::Post { id, parcel } => self.order(Order::Send { worker: id, parcel }),
            Request::Flush { id } => self.flush(id),
            Request::Disconnect { id, grace } => self.disconnect(id, grace),
            Request::DisconnectAll { grace, promise } => {
                self.disconnecting.push(promise);
                self.disconnect_all(grace);
            }
            Request::Shed { coming, answer } => {
                // With a data path the primary accepts from them.
                let lost = match self.data {
                    None => self.listeners.iter_mut().map(|entry| entry.shed(coming)).sum(),
                    Some(_) => 0,
                };
                let _ = answer.send(Ok(lost));
            }
            Request::End { answer } => self.ending = Some(answer),
        }
    }

    fn heed(&mut self, report: Report) {
        match report {
            Report::Buried { slot, tally } => self.bury(slot, tally),
            Report::Hung { slot, taken_back } => {
                if let Some(worker) = self.worker_at(slot) {
                    self.tell(Event::Hung { worker, taken_back });
                }
            }
            Report::Recovered { slot } => {
                if let Some(worker) = self.worker_at(slot) {
                    self.tell(Event::Recovered { worker });
                }
            }
            Report::ListenerRemoved { listener } => self.listener_removed(listener),
            Report::Left { slot, listener } => self.listener_left(slot, listener),
            // The data path says so only when it was asked to end, which is when nobody listens.
            Report::Ended(_) => {}
        }
    }

    fn member_at(&mut self, slot: Slot) -> Option<&mut Member> {
        let id = (*self.places.get(slot.index())?)?;
        self.members.get_mut(&id)
    }

    fn worker_at(&mut self, slot: Slot) -> Option<WorkerHandle> {
        self.member_at(slot).map(|member| member.handle())
    }

    /// The primary accepts, and workers get what it hands over.
    fn hands_over(&self) -> bool {
        self.ground.as_ref().is_some_and(|ground| ground.hands_over())
    }

    fn command(&self, command: Command) {
        if let Some(data) = &self.data {
            data.command(command);
        }
    }

    /// Fixes what concerns the whole cluster, and starts the data path if there shall be one.
    fn ground(&mut self, settings: &Arc<ClusterSettings>) -> Result<Arc<ClusterSettings>> {
        if let Some(ground) = &self.ground {
            return Ok(Arc::clone(ground));
        }
        if settings.hands_over() || settings.steals() {
            let data = DataPath::start(settings, Arc::clone(&self.data_bell))?;
            self.watch(&data, REPORTS)?;
            if !settings.start_closed {
                data.command(Command::Open);
            }
            self.data = Some(data);
        }
        self.ground = Some(Arc::clone(settings));
        Ok(Arc::clone(settings))
    }

    /// Sends what waits in a worker's channel, and sees to it that the rest is sent later.
    fn flush(&mut self, id: WorkerId) {
        let Some(member) = self.members.get_mut(&id).filter(|member| member.connected) else {
            return;
        };
        // One whose other end has gone is noticed when it is read.
        let Some(mut outgoing) = member.shared.outgoing() else { return };
        let flushed = outgoing.flush().unwrap_or(Flushed::Everything);
        drop(outgoing);
        if flushed == Flushed::Crowded {
            self.retry_ns.get_or_insert_with(|| monotonic_ns() + CROWDED_NS);
        }
        member.wants_room = flushed == Flushed::Full;
        member.adjust(&self.epoll);
    }

    fn flush_everybody(&mut self) {
        let everybody: Vec<WorkerId> = self.members.keys().copied().collect();
        everybody.into_iter().for_each(|id| self.flush(id));
    }

    fn fail(&mut self, error: Error) {
        self.tell(Event::Error { worker: None, error: Arc::new(error) });
    }

    /// The data path has failed: nothing is accepted any more, and workers see the end of their
    /// inboxes.
    fn lose_data_path(&mut self, error: Error) {
        self.data = None;
        self.listeners.clear();
        self.fail(error);
        for member in self.members.values_mut() {
            member.attached = false;
            member.uses.clear();
        }
        let ended = self.members.values().filter(|member| member.ending.is_some());
        let ended: Vec<_> = ended.map(|one| (one.slot, one.view.tally(false))).collect();
        ended.into_iter().for_each(|(slot, tally)| self.bury(slot, tally));
    }

    fn complete_disconnects(&mut self) {
        if !self.disconnecting.is_empty() && self.members.is_empty() && self.listeners.is_empty() {
            self.disconnecting.clear();
        }
    }
}
