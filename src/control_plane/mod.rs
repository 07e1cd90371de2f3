//! The control plane: one thread that starts workers, answers them, and notices their ends.
//!
//! Owns processes, channels, listeners and the data path's thread. It carries out requests and
//! publishes events. It knows nothing about replacing workers or signals, and no connection passes
//! through it.

mod bind_retry;
mod data_path_thread;
mod disconnect;
mod inbound;
mod listen;
mod listen_request;
mod listener_lifetime;
pub(crate) mod listeners;
mod looks;
mod lookup;
mod node_notices;
mod orphans;
mod parting;
mod readiness;
mod reap;
mod reuseport;
mod spawn;
mod stop;
mod thread;
mod worker_entry;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags, EpollTimeout};

use crate::data_path::{ClusterCounts, Command, DataPathReport, LiveCounts};
use crate::dialect::WorkerDialect;
use crate::dialect::node::bridge::{BridgeRequest, BridgeThread};
use crate::dialect::node::preload::Preload;
use crate::error::{Error, Result};
use crate::handle::{Bus, CompletionGuard, ControlHandle, Event, Registry, Request, WorkerHandle};
use crate::id::{Slot, WorkerId};
use crate::protocol::control::Flushed;
use crate::schedule::SchedulerConfig;
use crate::settings::{ClusterSettings, Policy};
use crate::sys::clock::monotonic_ns;
use crate::sys::engine::EngineKind;
use crate::sys::guard::Guard;
use crate::sys::notify::NotifySocket;
use crate::sys::waker::Waker;
use bind_retry::BindRetry;
use data_path_thread::DataPathThread;
pub(crate) use data_path_thread::check_form;
use listeners::{Entry, Listeners};
use looks::Looks;
use lookup::Lookups;
use stop::Stopping;
use worker_entry::WorkerEntry;

/// Delay until a channel is retried after too many descriptors were in flight.
const CROWDED_NS: u64 = 5_000_000;

/// Bounds of one turn: requests of the program, then frames and bytes of a worker, and notices of
/// the bridge.
const REQUESTS_A_TURN_MAX: usize = 1024;
const FRAMES_A_TURN_MAX: usize = 256;
const BYTES_A_TURN_MAX: usize = 64 * 1024;
const NOTICES_A_TURN_MAX: usize = 256;
const NOTICE_BYTES_A_TURN_MAX: usize = 256 * 1024;
/// Turns of reading from an ended worker, more than its socket holds. A child process of it may
/// still write.
const LAST_TURNS_MAX: usize = 256;

/// Epoll tokens. A worker's tokens are its id and a bit for the descriptor.
const REQUESTS: u64 = 0;
const REPORTS: u64 = 1;
const NOTICES: u64 = 2;
const NOTIFICATIONS: u64 = 3;
const REMOVALS: u64 = 5;
const PROCESS: u64 = 1 << 32;
const CHANNEL: u64 = 1 << 33;

/// The thread's state.
#[derive(Debug)]
pub(crate) struct ControlPlane {
    epoll: Epoll,
    control: ControlHandle,
    requests: Receiver<Request>,
    waker: Arc<Waker>,
    bus: Arc<Bus>,
    registry: Registry,
    workers: BTreeMap<WorkerId, WorkerEntry>,
    /// The worker in each slot.
    places: Vec<Option<WorkerId>>,
    listeners: Listeners,
    /// Requests that wait for a busy address.
    bind_retry: BindRetry,
    /// Requests that wait for a name lookup.
    lookups: Lookups,
    /// Looks whether workers without a channel wait for connections.
    looks: Looks,
    data_path: Option<DataPathThread>,
    /// Connects Node workers, once there has been one.
    bridge: Option<BridgeThread>,
    /// The script they load, once one has.
    preload: Option<Preload>,
    /// The script could not be written, which has been reported.
    lacks_preload: bool,
    /// Where workers without a channel notify, once there has been one.
    notify: Option<NotifySocket>,
    /// Wakes the data path. No worker has it.
    data_path_waker: Arc<Waker>,
    /// Settings of the whole cluster, once fixed.
    cluster_settings: Option<Arc<ClusterSettings>>,
    /// The engine of the run, once it is decided.
    engine: Option<EngineKind>,
    next_id: u32,
    /// Workers with received, unhandled messages.
    unread: BTreeSet<WorkerId>,
    /// When crowded channels are tried again.
    retry_ns: Option<u64>,
    /// Programs were told that everything stops, and are waited for.
    stopping: Option<Stopping>,
    /// Dropped when no worker is left.
    disconnecting: Vec<CompletionGuard>,
    ending: Option<SyncSender<Result<ClusterCounts>>>,
    /// Ends workers that outlive this process.
    guard: Option<Guard>,
    /// Where the data path publishes its counts.
    live_counts: Arc<LiveCounts>,
}

impl ControlPlane {
    fn watch(&self, descriptor: &impl AsFd, token: u64) -> Result<()> {
        self.epoll
            .add(descriptor, EpollEvent::new(EpollFlags::EPOLLIN, token))
            .map_err(|errno| Error::system("watch a descriptor (epoll_ctl)", errno))
    }

    fn emit(&self, event: Event) {
        self.bus.publish(&event);
    }

    /// Runs until told to end.
    ///
    /// # Errors
    /// It can no longer wait.
    fn run(&mut self) -> Result<()> {
        let mut ready = [EpollEvent::empty(); 64];
        while self.ending.is_none() {
            let count = match self.epoll.wait(&mut ready, self.until_next_deadline()) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(Error::system("wait for workers (epoll)", errno)),
            };
            // Ended processes first, so that other events concern running ones.
            let (ends, rest): (Vec<&EpollEvent>, Vec<&EpollEvent>) =
                ready[..count].iter().partition(|event| is_end(event.data()));
            for event in ends.into_iter().chain(rest) {
                self.on_ready(event.data(), event.events());
            }
            for id in std::mem::take(&mut self.unread) {
                self.on_channel_ready(id);
            }
            if self.retry_ns.is_some_and(|retry_ns| retry_ns <= monotonic_ns()) {
                self.retry_ns = None;
                self.flush_everybody();
            }
            self.on_lookups();
            self.end_lifetimes();
            self.retry_binds();
            self.settle();
            self.on_parting();
            self.on_stop_deadlines();
            self.complete_disconnects();
        }
        Ok(())
    }

    fn until_next_deadline(&self) -> EpollTimeout {
        if !self.unread.is_empty() {
            return EpollTimeout::ZERO;
        }
        let next_ns = self.retry_ns.into_iter().chain(self.bind_retry.again_ns());
        let next_ns = next_ns.chain(self.lookups.deadline_ns());
        let next_ns = next_ns.chain(self.next_settled_ns()).chain(self.next_stop_ns());
        let next_ns = next_ns.chain(self.next_lifetime_ns()).chain(self.next_parting_ns()).min();
        next_ns.map_or(EpollTimeout::NONE, |next_ns| {
            let left = Duration::from_nanos(next_ns.saturating_sub(monotonic_ns()));
            // Rounded up: waking too early would spin until the deadline.
            let left_ms = u16::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(u16::MAX);
            EpollTimeout::from(left_ms)
        })
    }

    fn on_ready(&mut self, token: u64, flags: EpollFlags) {
        match token {
            REQUESTS => {
                self.waker.clear();
                // The rest is for the next turn.
                let requests: Vec<Request> =
                    self.requests.try_iter().take(REQUESTS_A_TURN_MAX).collect();
                if requests.len() == REQUESTS_A_TURN_MAX {
                    self.waker.wake();
                }
                requests.into_iter().for_each(|request| self.on_request(request));
                // The waker also reports that a slow subscriber has read.
                self.read_again();
                self.on_bridge_notices();
            }
            REPORTS => match self.data_path.as_mut().map_or(Ok(vec![]), DataPathThread::reports) {
                Ok(reports) => reports.into_iter().for_each(|report| self.on_report(report)),
                Err(error) => self.lose_data_path(error),
            },
            NOTICES => self.on_bridge_notices(),
            REMOVALS => {
                if let Some(preload) = &mut self.preload {
                    preload.on_removal();
                }
            }
            NOTIFICATIONS => self.on_notifications(),
            _ => {
                let id = WorkerId::new(u32::try_from(token & 0xffff_ffff).unwrap_or(0));
                if token & PROCESS != 0 {
                    return self.reap(id);
                }
                if flags.contains(EpollFlags::EPOLLOUT) {
                    self.flush(id);
                }
                if flags
                    .intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR)
                {
                    self.on_channel_ready(id);
                }
            }
        }
    }

    fn on_request(&mut self, request: Request) {
        match request {
            Request::Fork { settings, fork_request, answer } => {
                let _ = answer.send(self.fork(settings, fork_request));
            }
            Request::Hold { settings, address, answer } => {
                self.hold(&settings, &address, answer);
            }
            Request::Listeners { answer, guard } => {
                let _ = answer.send(Ok(self.listeners.iter().map(Entry::snapshot).collect()));
                drop(guard);
            }
            Request::Open => self.command(Command::Open),
            Request::Post { id, message_out } => {
                self.ask_bridge(BridgeRequest::Send { worker: id, message_out })
            }
            Request::Flush { id } => self.flush(id),
            Request::Disconnect { id, grace } => self.disconnect(id, grace),
            Request::DisconnectAll { grace, guard } => {
                self.disconnecting.push(guard);
                self.disconnect_all(grace);
            }
            Request::Shed { coming, answer } => {
                // With a data path the primary accepts from them, or lets the kernel move them.
                let lost = match &self.data_path {
                    None => self.listeners.iter_mut().map(|entry| entry.shed(coming)).sum(),
                    Some(data) if data.leaves_queues => {
                        let own = self.listeners.iter().filter_map(Entry::separate_sockets);
                        own.filter(|own| own.are_used()).map(|own| own.reset_idle(coming)).sum()
                    }
                    Some(_) => 0,
                };
                let _ = answer.send(Ok(lost));
            }
            Request::Adopt { listener, answer } => {
                let _ = answer.send(self.listeners.adopt(*listener));
            }
            Request::Sockets { answer } => {
                let sockets = self.listeners.iter().filter_map(Entry::shared_socket);
                let _ = answer.send(Ok(sockets.collect()));
            }
            Request::Reschedule { policy, scheduling } => {
                self.reschedule(policy, scheduling);
            }
            Request::Ping { answer } => match &self.data_path {
                Some(data) => data.command(Command::Ping { answer }),
                // A caller that has not waited does not want the answer.
                None => drop(answer.try_send(Ok(()))),
            },
            Request::End { answer } => self.ending = Some(answer),
        }
    }

    fn on_report(&mut self, report: DataPathReport) {
        match report {
            DataPathReport::Reaped { slot, counters, given } => {
                self.on_reaped(slot, counters, &given)
            }
            DataPathReport::Hung { slot, taken_back } => {
                if let Some(worker) = self.worker_at(slot) {
                    self.emit(Event::Hung { worker, taken_back });
                }
            }
            DataPathReport::Recovered { slot } => {
                if let Some(worker) = self.worker_at(slot) {
                    self.emit(Event::Recovered { worker });
                }
            }
            DataPathReport::Outlier { slot, ejected_ns } => {
                if let Some(worker) = self.worker_at(slot) {
                    let ejected = ejected_ns.map(Duration::from_nanos);
                    self.emit(Event::Outlier { worker, ejected });
                }
            }
            DataPathReport::OutlierEnded { slot } => {
                if let Some(worker) = self.worker_at(slot) {
                    self.emit(Event::OutlierEnded { worker });
                }
            }
            DataPathReport::Unsteered { error } => self.fail(error),
            DataPathReport::ListenerRemoved { listener } => self.listener_removed(listener),
            DataPathReport::Left { slot, listener } => self.listener_left(slot, listener),
            // Sent only after the request to end, whose sender reads it itself.
            DataPathReport::Ended(_) => {}
        }
    }

    fn entry_at(&mut self, slot: Slot) -> Option<&mut WorkerEntry> {
        let id = (*self.places.get(slot.index())?)?;
        self.workers.get_mut(&id)
    }

    fn worker_at(&mut self, slot: Slot) -> Option<WorkerHandle> {
        self.entry_at(slot).map(|worker_entry| worker_entry.handle())
    }

    /// The primary accepts and hands connections over.
    fn hands_over(&self) -> bool {
        self.cluster_settings.as_ref().is_some_and(|cluster_settings| cluster_settings.hands_over())
    }

    fn command(&self, command: Command) {
        if let Some(data) = &self.data_path {
            data.command(command);
        }
    }

    /// Changes the rules of the data path, also of one started later.
    fn reschedule(&mut self, policy: Policy, scheduling: Box<SchedulerConfig>) {
        if let Some(settings) = &mut self.cluster_settings {
            let settings = Arc::make_mut(settings);
            settings.policy = policy;
            settings.scheduling = (*scheduling).clone();
        }
        if policy != Policy::None {
            self.command(Command::Reschedule { policy, scheduling });
        }
    }

    /// Fixes the settings of the whole cluster, and starts the data path if they need one.
    fn cluster_settings(
        &mut self,
        settings: &Arc<ClusterSettings>,
    ) -> Result<Arc<ClusterSettings>> {
        if let Some(cluster_settings) = &self.cluster_settings {
            return Ok(Arc::clone(cluster_settings));
        }
        if settings.hands_over() || settings.steals() {
            let engine = self.engine(settings)?;
            let waker = Arc::clone(&self.data_path_waker);
            let data =
                DataPathThread::start(settings, engine, waker, Arc::clone(&self.live_counts))?;
            self.watch(&data, REPORTS)?;
            if !settings.start_closed {
                data.command(Command::Open);
            }
            self.data_path = Some(data);
        }
        self.cluster_settings = Some(Arc::clone(settings));
        Ok(Arc::clone(settings))
    }

    /// The engine of the run, decided when it is first needed.
    fn engine(&mut self, settings: &ClusterSettings) -> Result<EngineKind> {
        if let Some(engine) = self.engine {
            return Ok(engine);
        }
        let engine = settings.engine.decide()?.kind;
        self.engine = Some(engine);
        Ok(engine)
    }

    /// Sends what waits in a worker's channel, and schedules the rest.
    fn flush(&mut self, id: WorkerId) {
        let Some(worker_entry) =
            self.workers.get_mut(&id).filter(|worker_entry| worker_entry.connected)
        else {
            return;
        };
        let WorkerDialect::Native(native) = &mut worker_entry.dialect else { return };
        if native.flush() == Flushed::Crowded {
            self.retry_ns.get_or_insert_with(|| monotonic_ns() + CROWDED_NS);
        }
        native.watch(&self.epoll, CHANNEL | u64::from(id.get()));
    }

    fn flush_everybody(&mut self) {
        let everybody: Vec<WorkerId> = self.workers.keys().copied().collect();
        everybody.into_iter().for_each(|id| self.flush(id));
    }

    fn fail(&mut self, error: Error) {
        self.emit(Event::Error { worker: None, error: Arc::new(error) });
    }

    /// The data path has failed: accepting stops, and workers see the end of their inboxes.
    fn lose_data_path(&mut self, error: Error) {
        self.data_path = None;
        self.listeners.clear();
        self.fail(error);
        for worker_entry in self.workers.values_mut() {
            worker_entry.attached = false;
            worker_entry.uses.clear();
        }
        let ended = self.workers.values().filter(|worker_entry| worker_entry.ending.is_some());
        let ended: Vec<_> = ended.map(|one| (one.slot, one.state().counters())).collect();
        ended.into_iter().for_each(|(slot, counters)| self.on_reaped(slot, counters, &[]));
    }

    fn complete_disconnects(&mut self) {
        if !self.disconnecting.is_empty() && self.workers.is_empty() && self.listeners.is_empty() {
            self.disconnecting.clear();
        }
    }
}

fn is_end(token: u64) -> bool {
    token & PROCESS != 0
}
