//! The supervisor's loop: waits, reports what happened to the decisions, and carries them out.

mod reload;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, SystemTime};

use super::event::SupervisorEvent;
use super::handle::{
    Order, PublishedWorker, SlotSnapshot, SlotState, SupervisorHandle, SupervisorRequest,
    SupervisorStage, WorkerState,
};
use super::reload_changes::BeforeReload;
use super::signals::{SignalEffect, Terminal};
use super::state::{Action, Child, GoalRefusal, Name, Occupancy, Role, RunStage, State, Ticket};
use super::{Finished, OnEvent, READY, ReadyAfter, failures};
use crate::settings::Dialect;
use crate::sys::clock::monotonic_ns;
use crate::sys::listening;
use crate::sys::process::reap_orphans;
use crate::sys::signal::{ReceivedSignal, Signal, Signals};
use crate::{
    Cluster, Completion, Error, ErrorKind, Event, Events, ForkOptions, ListenerId,
    ListeningAddress, Result, WorkerHandle, WorkerId,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Most events and requests per turn, before signals and deadlines.
const INPUTS_PER_TURN: usize = 256;
/// Most workers started per turn to fill slots, which takes some milliseconds each.
const STARTS_PER_TURN: u32 = 8;
/// Node's default debugger ports, one per worker.
const DEBUGGER_PORTS: Range<u16> = 9229..9229 + 1024;
/// Most bytes of messages per turn.
const BYTES_PER_TURN: usize = 1024 * 1024;

/// A running supervisor.
pub(super) struct Driver {
    pub(super) cluster: Cluster,
    pub(super) events: Events,
    pub(super) signals: Option<Signals>,
    pub(super) terminal: Terminal,
    pub(super) orders: Receiver<Order>,
    pub(super) handle: SupervisorHandle,
    pub(super) state: State,
    /// Workers that may still be started in this turn.
    pub(super) starts_left: u32,
    pub(super) start_limit: Duration,
    pub(super) grace: Duration,
    pub(super) ready_after: ReadyAfter,
    /// Variables in the environment of each worker.
    pub(super) environment: Vec<(OsString, OsString)>,
    pub(super) on_event: Option<OnEvent>,
    pub(super) before_reload: Option<BeforeReload>,
    /// Addresses that were opened and not yet reported.
    pub(super) addresses: Vec<(ListenerId, String)>,
    /// Addresses that are or were among these.
    pub(super) known: BTreeSet<ListenerId>,
    pub(super) workers: BTreeMap<WorkerId, WorkerHandle>,
    pub(super) waiting: BTreeMap<Ticket, Completion>,
    pub(super) next_ticket: u64,
    pub(super) forced_by: Option<Signal>,
    /// A failure other than of a worker.
    pub(super) failure: Option<Error>,
    /// Slots that were filled once, so that a later failure is not one of the start.
    pub(super) filled: BTreeSet<u16>,
    /// Why an address was refused to a worker.
    pub(super) refusal: Option<Arc<Error>>,
    /// Workers that have served an address.
    pub(super) served: BTreeSet<WorkerId>,
    /// A worker that serves nothing here listens on this address, bypassing the primary.
    pub(super) past_primary: Option<(WorkerId, SocketAddr)>,
}

impl Driver {
    /// Runs until no worker is left and none will be started.
    ///
    /// # Errors
    /// The first start failed, or the run could not continue.
    pub(super) fn run(mut self) -> Result<Finished> {
        let result = self.turn_until_the_end();
        let finished = result.and_then(|()| self.finish());
        self.end(finished.as_ref().err());
        finished
    }

    fn turn_until_the_end(&mut self) -> Result<()> {
        self.carry_out()?;
        while !self.state.is_over() {
            self.starts_left = STARTS_PER_TURN;
            self.publish();
            self.wait()?;
            self.take_signals()?;
            self.take_events()?;
            self.take_requests()?;
            self.state.on_time(monotonic_ns());
            self.carry_out()?;
            if let Some(error) = self.cluster.failure() {
                return Err(error);
            }
        }
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        let readable = |descriptor| PollFd::new(descriptor, PollFlags::POLLIN);
        let mut watched =
            vec![readable(self.events.as_fd()), readable(self.handle.shared.waker.as_fd())];
        watched.extend(self.signals.as_ref().map(|signals| readable(signals.as_fd())));
        let now_ns = monotonic_ns();
        let starts_ns = self.state.has_starts().then_some(now_ns);
        let next_ns = starts_ns.or_else(|| self.state.next_deadline_ns(now_ns));
        let left = next_ns.map_or(PollTimeout::NONE, |next_ns| {
            // Rounded up: waking too early would spin until the deadline.
            let left_ms = next_ns.saturating_sub(now_ns).div_ceil(1_000_000);
            PollTimeout::from(u16::try_from(left_ms).unwrap_or(u16::MAX))
        });
        match poll(&mut watched, left) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(Error::system("wait for events (poll)", errno)),
        }
    }

    fn take_signals(&mut self) -> Result<()> {
        let Some(signals) = &mut self.signals else { return Ok(()) };
        let mut received = Vec::new();
        while let Some(one) = signals.next_signal()? {
            received.push(one);
        }
        for received in received {
            self.on_signal(received);
            self.carry_out()?;
        }
        Ok(())
    }

    fn on_signal(&mut self, received: ReceivedSignal) {
        let (signal, now_ns) = (received.signal, monotonic_ns());
        match self.terminal.wish(received) {
            SignalEffect::Reload => self.reload(None),
            SignalEffect::Stop => {
                if self.state.stop_or_force(&signal.to_string(), now_ns) {
                    self.forced_by = Some(signal);
                }
            }
            SignalEffect::HangUp => {
                self.state.stop("its terminal was closed".into(), self.grace, now_ns);
            }
            SignalEffect::Step(step) => self.on_step(signal, step),
            SignalEffect::Reap => drop(reap_orphans()),
            SignalEffect::Nothing => self.emit(&SupervisorEvent::SignalUnused { signal }),
            SignalEffect::Ignore => {}
        }
    }

    /// Adds or removes a worker on a signal; beyond the limits it changes nothing.
    fn on_step(&mut self, signal: Signal, step: i16) {
        let slots = u16::try_from(self.state.slots.len()).expect("slots are bounded");
        match slots.checked_add_signed(step) {
            Some(slots) if super::ensure_count(slots).is_ok() => {
                // The signal's sender waits for nothing.
                drop(self.on_request(SupervisorRequest::Scale(slots)));
            }
            _ => self.emit(&SupervisorEvent::SignalUnused { signal }),
        }
    }

    fn take_events(&mut self) -> Result<()> {
        let mut bytes = 0;
        for _ in 0..INPUTS_PER_TURN {
            if bytes >= BYTES_PER_TURN {
                break;
            }
            let Ok(event) = self.events.try_recv() else { break };
            if let Event::Message { message, .. } = &event {
                bytes += message.bytes().len();
            }
            self.emit(&SupervisorEvent::Cluster(event.clone()));
            self.on_event(event);
            self.carry_out()?;
        }
        Ok(())
    }

    fn take_requests(&mut self) -> Result<()> {
        self.handle.shared.waker.clear();
        for _ in 0..INPUTS_PER_TURN {
            let Ok(Order { request, answer }) = self.orders.try_recv() else { break };
            let completion = self.on_request(request);
            self.carry_out()?;
            // A reload that began was a valid request, even if it has stopped already.
            let refused = completion.failure().filter(|one| one.kind() != ErrorKind::ReloadStopped);
            // A caller that does not wait does not want the answer.
            let _ = answer.send(refused.map_or(Ok(completion), Err));
        }
        Ok(())
    }

    /// Accepts a request. The completion reports the outcome, a refusal at once.
    fn on_request(&mut self, request: SupervisorRequest) -> Completion {
        let now_ns = monotonic_ns();
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let completion = Completion::default();
        self.waiting.insert(ticket, completion.clone());
        match request {
            SupervisorRequest::Reload => self.reload(Some(ticket)),
            SupervisorRequest::Scale(workers) => self.state.scale(workers, ticket, now_ns),
            SupervisorRequest::Stop(grace) => {
                let grace = grace.unwrap_or(self.grace);
                self.state.stop("it was asked for".into(), grace, now_ns);
                self.state.await_end(ticket);
            }
            SupervisorRequest::Replace(worker) => self.state.replace_worker(worker, ticket, now_ns),
            SupervisorRequest::Drain(worker) => self.state.drain_worker(worker, ticket, now_ns),
            SupervisorRequest::Kill(worker) => self.state.kill_worker(worker, ticket),
        }
        completion
    }

    /// The next decision to carry out in this turn.
    fn next_action(&mut self) -> Option<Action> {
        self.state.next_action().or_else(|| {
            let left = self.starts_left.checked_sub(1)?;
            let start = self.state.next_start()?;
            self.starts_left = left;
            Some(start)
        })
    }

    /// Carries out the decisions.
    fn carry_out(&mut self) -> Result<()> {
        while let Some(action) = self.next_action() {
            match action {
                Action::Spawn { slot, role, predecessor } => {
                    self.spawn(slot, role, predecessor)?;
                }
                Action::Disconnect { worker } => {
                    if let Some(worker) = self.workers.get(&worker) {
                        worker.disconnect_within(self.grace);
                    }
                }
                // The exits of the workers report its end.
                Action::DisconnectAll { grace } => drop(self.cluster.disconnect_within(grace)),
                Action::Kill { worker } => {
                    self.look_past_primary(worker);
                    if let Some(worker) = self.workers.get(&worker) {
                        // It has the same user, so this fails only if it has ended.
                        let _ = worker.kill_group();
                    }
                }
                Action::Open => {
                    if let Err(error) = self.cluster.open() {
                        self.fail(error);
                    }
                }
                Action::Shed { coming } => {
                    // A cluster that has failed reports it as an event.
                    let count = self.cluster.shed(coming).unwrap_or(0);
                    if count > 0 {
                        self.emit(&SupervisorEvent::ConnectionsReset { count });
                    }
                }
                Action::Emit(event) => {
                    let started = matches!(event, SupervisorEvent::Started);
                    self.emit(&event);
                    if started {
                        self.emit_addresses();
                    }
                }
                Action::Finish { ticket, refusal } => self.complete(ticket, refusal),
            }
        }
        Ok(())
    }

    fn spawn(&mut self, slot: u16, role: Role, predecessor: Option<WorkerId>) -> Result<()> {
        let mut options = ForkOptions::default().instance(slot);
        for (name, value) in &self.environment {
            options = options.variable(name, value);
        }
        if let Some(predecessor) = predecessor.and_then(|worker| self.workers.get(&worker)) {
            options = options.successor_of(predecessor);
        }
        match self.cluster.fork_with(options) {
            Ok(worker) => {
                let id = worker.id();
                self.workers.insert(id, worker);
                self.filled.insert(slot);
                self.state.on_spawned(slot, role, id, monotonic_ns());
            }
            // No connection has been served yet that the run would have to continue for.
            Err(error) if self.filled.is_empty() || !self.is_filled(slot) => return Err(error),
            Err(error) => {
                let reason = error.to_string();
                let now_ns = monotonic_ns();
                let retry = self.state.on_spawn_failed(slot, role, &reason, now_ns);
                self.emit(&SupervisorEvent::SpawnFailed { slot, error: Arc::new(error), retry });
            }
        }
        Ok(())
    }

    /// Whether a failure to start a worker in this slot is not one of the start.
    fn is_filled(&self, slot: u16) -> bool {
        !matches!(self.state.stage, RunStage::Starting { .. }) || self.filled.contains(&slot)
    }

    fn emit(&mut self, event: &SupervisorEvent) {
        // A listener of the event may look at once.
        self.publish();
        if let Some(on_event) = &mut self.on_event {
            on_event(event);
        }
        self.handle.shared.subscribers().emit(event);
    }

    fn on_event(&mut self, event: Event) {
        let now_ns = monotonic_ns();
        match event {
            Event::Online { worker } => self.state.on_online(worker.id(), now_ns),
            Event::Listening { worker, address } => {
                if self.known.insert(address.listener) {
                    self.addresses.push((address.listener, address.to_string()));
                }
                self.served.insert(worker.id());
                self.state.on_listening(worker.id(), name_of(&address), now_ns);
                if self.state.stage == RunStage::Serving {
                    self.emit_addresses();
                }
            }
            Event::Closed { worker, address } => {
                self.state.on_closed(worker.id(), &name_of(&address), now_ns);
            }
            Event::Refused { error, .. } => self.refusal = Some(error),
            Event::Message { worker, message }
                if self.ready_after == ReadyAfter::Message
                    && message.value().is_ok_and(|value| value == READY) =>
            {
                self.state.on_ready(worker.id(), now_ns);
            }
            Event::Leaving { worker } => {
                self.state.on_leaving(worker.id(), was_used(&worker), now_ns);
            }
            Event::Disconnect { worker } => {
                let in_order = worker.exited_after_disconnect() == Some(true);
                self.state.on_disconnect(worker.id(), in_order, was_used(&worker), now_ns);
            }
            Event::Exit { worker, ending, counts } => {
                self.workers.remove(&worker.id());
                self.served.remove(&worker.id());
                self.state.on_exit(worker.id(), ending, counts.claimed > 0, now_ns);
            }
            Event::Error { worker: Some(worker), error } => {
                self.state.kill(worker.id(), format!("worker {}: {error}", worker.id()));
            }
            // It has lost something and continues.
            Event::Error { worker: None, error } if matches!(*error, Error::Environment { .. }) => {
            }
            Event::Error { worker: None, error } => self.fail((*error).clone()),
            Event::Hung { worker, .. } => self.state.on_hung(worker.id(), now_ns),
            Event::Recovered { worker } => self.state.on_recovered(worker.id()),
            _ => {}
        }
    }

    /// A worker that never served may have opened its address itself, unless it listens on
    /// inherited sockets anyway.
    fn look_past_primary(&mut self, id: WorkerId) {
        if self.cluster.settings().dialect == Dialect::ListenFds {
            return;
        }
        let Some(worker) = self.workers.get(&id).filter(|_| !self.served.contains(&id)) else {
            return;
        };
        let addresses = || listening::addresses_of(worker.pid()).into_iter();
        let address = addresses().find(|address| !DEBUGGER_PORTS.contains(&address.port()));
        self.past_primary = self.past_primary.or_else(|| address.map(|address| (id, address)));
    }

    fn emit_addresses(&mut self) {
        for (listener, address) in std::mem::take(&mut self.addresses) {
            self.emit(&SupervisorEvent::Listening { listener, address });
        }
    }

    fn fail(&mut self, error: Error) {
        self.failure.get_or_insert(error);
        self.state.kill_all("the run cannot go on".into());
    }

    fn complete(&mut self, ticket: Ticket, refusal: Option<GoalRefusal>) {
        if let Some(completion) = self.waiting.remove(&ticket) {
            // What waited for it may look at once.
            self.publish();
            completion.settle(refusal.map(|refusal| failures::of_refusal(&refusal)));
        }
    }

    /// The run is over: nothing is left of the cluster, and its counts are final.
    fn finish(&mut self) -> Result<Finished> {
        let counts = self.cluster.finish()?;
        self.emit(&SupervisorEvent::Ended { counts });
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        match self.state.failure() {
            Some(failure) => {
                let past_primary = self.past_primary;
                let refusal = self.refusal.as_deref();
                let readiness = (self.ready_after, self.start_limit);
                Err(failures::of_run(failure, readiness, refusal, past_primary))
            }
            None => Ok(Finished { counts, forced_by: self.forced_by }),
        }
    }

    /// Completes pending requests, and ends the events.
    fn end(&mut self, failure: Option<&Error>) {
        self.publish();
        self.handle.shared.published().stage = SupervisorStage::Ended;
        for (_, completion) in std::mem::take(&mut self.waiting) {
            completion.settle(failure.cloned());
        }
        self.handle.shared.subscribers().close();
    }

    /// Publishes the state for handles.
    fn publish(&mut self) {
        if !self.state.take_changed() {
            return;
        }
        let (now, now_ns) = (SystemTime::now(), monotonic_ns());
        let mut published = self.handle.shared.published();
        published.calendar.update(now, now_ns);
        let calendar = &published.calendar;
        let slots = (0..).zip(&self.state.slots).map(|(number, slot)| SlotSnapshot {
            number,
            restarts: slot.restarts,
            state: match slot.occupancy {
                Occupancy::Current(worker) => SlotState::Filled(worker),
                Occupancy::Waiting { at_ns } => SlotState::Waiting(calendar.date(at_ns)),
                Occupancy::Spawning => SlotState::Waiting(now),
                Occupancy::GivenUp => SlotState::GivenUp,
                Occupancy::Empty => SlotState::Empty,
            },
        });
        let slots = slots.collect();
        let before = std::mem::take(&mut published.workers);
        let workers = self.state.children.iter().filter_map(|(id, child)| {
            let state = state_of(child);
            let is_same = |one: &&PublishedWorker| one.worker.id() == *id && one.state == state;
            Some(PublishedWorker {
                worker: self.workers.get(id)?.clone(),
                slot: child.slot,
                state,
                started_ns: child.born_ns,
                since_ns: before.iter().find(is_same).map_or(now_ns, |one| one.since_ns),
                addresses: child.serving.iter().map(|name| name.address.clone()).collect(),
            })
        });
        published.workers = workers.collect();
        published.slots = slots;
        published.reloading = self.state.is_reloading();
        published.stage = match self.state.stage {
            RunStage::Starting { .. } => SupervisorStage::Starting,
            RunStage::Serving if self.state.is_stopping() => SupervisorStage::Stopping,
            RunStage::Serving => SupervisorStage::Serving,
            RunStage::Draining { .. } => SupervisorStage::Draining,
            RunStage::Killing => SupervisorStage::Killing,
        };
    }
}

fn state_of(child: &Child) -> WorkerState {
    match child {
        Child { role: Role::Leaving, .. } => WorkerState::Leaving,
        Child { hung_since_ns: Some(_), .. } => WorkerState::Hung,
        Child { serving_since_ns: Some(_), .. } => WorkerState::Serving,
        _ => WorkerState::Starting,
    }
}

fn name_of(address: &ListeningAddress) -> Name {
    Name { kind: address.kind, address: address.to_string(), ephemeral: address.ephemeral }
}

fn was_used(worker: &WorkerHandle) -> bool {
    worker.counts().claimed > 0
}
