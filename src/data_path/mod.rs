//! The primary's data path: accept, choose, hand over, on one thread and one engine.
//!
//! Owns accepted sockets until a worker's channel has them. It never reads a client's bytes, never
//! logs, and allocates nothing per connection once its tables have grown. The control plane sends
//! it [`Command`]s and receives [`DataPathReport`]s; both are rare.

mod acceptor;
mod alarm;
mod cluster_counts;
mod completions;
mod dispatch;
mod handoff;
mod listener_counts;
mod listeners;
mod live_counts;
mod messages;
mod outliers;
mod relief;
mod reschedule;
mod steal;
mod steering;
mod unserved;

use std::os::fd::{AsFd, OwnedFd};

use crate::error::Result;
use crate::id::{ListenerId, Slot};
use crate::protocol::handoff_layout::Record;
use crate::schedule::{Client, Coalescing, Intake, Policy, Roster, SchedulerConfig};
use crate::sys::clock::{self, monotonic_ns};
use crate::sys::engine::{Engine, EngineEvent, EngineKind, Key, RingShape};
use crate::sys::limits;
use crate::sys::peer;
use acceptor::Acceptor;
pub use cluster_counts::ClusterCounts;
use handoff::SpareMessages;
use handoff::{Accepted, Link};
pub use handoff::{CHANNEL_BYTES, NewLink};
pub use listener_counts::ListenerCounts;
use listener_counts::ListenerTable;
use listeners::Departure;
pub use live_counts::LiveCounts;
#[cfg(feature = "internals")]
pub use messages::Returned;
pub use messages::{Command, DataPathReport, Endpoints};
use outliers::Looked;
use steal::ArrivalWatch;
pub use steering::OwnSocketRules;
use steering::Steerer;

/// Pause of a worker after the kernel had too many descriptors in flight (ETOOMANYREFS).
const CROWDED_NS: u64 = 5_000_000;
/// Descriptors of the primary other than those of accepted or returned connections.
const DESCRIPTORS_RESERVED: u64 = 32;
/// Most commands per turn.
const COMMANDS_PER_TURN: usize = 256;
/// Messages kept for reuse.
const SPARE_MESSAGES_MAX: usize = 256;
/// The key of the waker; links have their slots, whose generations begin at 1.
const WAKER: Key = Key { index: u32::MAX, generation: 0 };
/// The key of the watch on workers' own sockets.
const WATCH: Key = Key { index: u32::MAX - 1, generation: 0 };

/// The data path.
#[derive(Debug)]
pub struct DataPath {
    ring: Engine,
    endpoints: Endpoints,
    acceptors: Vec<Option<Acceptor>>,
    /// Number of closing acceptors.
    removals: usize,
    /// Watches sockets that workers accept from.
    watch: ArrivalWatch,
    hang_after_ns: Option<u64>,
    /// Sets the kernel's choice among these sockets.
    steerer: Steerer,
    /// Number of workers for which credits are bounded.
    workers_planned: usize,
    /// Descriptors reserved for other uses than accepted connections.
    held_back: u64,
    links: Vec<Option<Link>>,
    roster: Roster,
    coalescing: Coalescing,
    /// Accepted, not yet given to a worker. Bounded: accepting from a listener stops while any of
    /// its connections is here, so there is at most one burst of the completion queue; for a
    /// listener that only some workers serve, at most their room.
    intake: Intake<Accepted>,
    /// Listeners whose workers had no room at the last check.
    short: Vec<ListenerId>,
    /// How long connections wait while no living worker serves their listener.
    unserved_limit_ns: Option<u64>,
    /// When the last check for those was.
    looked_ns: u64,
    /// More connections can be accepted by hand at once.
    has_more: bool,
    spare: SpareMessages,
    /// Refused in this turn, not yet back in the queue.
    refused: Vec<Accepted>,
    ended: Vec<Slot>,
    departures: Vec<Departure>,
    crowded: Vec<(Slot, u64)>,
    totals: ClusterCounts,
    listener_counts: ListenerTable,
    generation: u32,
    now_ns: u64,
    stage: DataPathStage,
    /// Workers that have not answered a probe, as last reported.
    suspected: Vec<Slot>,
    /// Connections with a copy kept for inspection, at most one per worker.
    looked_at: Vec<Looked>,
    /// Workers probed because they left connections in their sockets.
    probed: Vec<Slot>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DataPathStage {
    /// Not accepting yet.
    Starting,
    Open,
    Ended,
}

impl DataPath {
    /// Prepares the data path for the calling thread, which must be the one that runs it. `workers`
    /// and the backlog are estimates: more of either only shorten its look-ahead.
    ///
    /// # Errors
    /// The machine refuses the engine.
    pub fn new(
        engine: EngineKind,
        policy: Policy,
        scheduling: SchedulerConfig,
        workers: usize,
        backlog: u32,
        endpoints: Endpoints,
    ) -> Result<Self> {
        let shape = RingShape::for_backlog(backlog);
        let ring = Engine::new(engine, shape)?;
        // Half of the descriptors are for connections taken back from workers, so that they always
        // fit; the rest are for accepted ones that wait.
        let (limit, _) = limits::descriptor_limits()?;
        let held_back = limit / 2;
        let mut coalescing = Coalescing::new(scheduling.coalesce_ns);
        coalescing.spread_over(workers);
        let scheduling = scheduling.with_credits_up_to(credits_each(held_back, workers));
        let hang_after_ns = scheduling.hang_after_ns;
        let unserved_limit_ns = scheduling.unserved_limit_ns;
        Ok(Self {
            ring,
            endpoints,
            acceptors: Vec::new(),
            removals: 0,
            watch: ArrivalWatch::new()?,
            hang_after_ns,
            steerer: Steerer::new(policy, scheduling.limits),
            workers_planned: workers,
            held_back,
            links: Vec::new(),
            roster: Roster::new(policy, scheduling, 0),
            coalescing,
            intake: Intake::default(),
            short: Vec::new(),
            unserved_limit_ns,
            looked_ns: 0,
            has_more: false,
            spare: Vec::new(),
            refused: Vec::new(),
            ended: Vec::new(),
            departures: Vec::new(),
            crowded: Vec::new(),
            totals: ClusterCounts::default(),
            listener_counts: ListenerTable::default(),
            generation: 0,
            now_ns: monotonic_ns(),
            stage: DataPathStage::Starting,
            suspected: Vec::new(),
            looked_at: Vec::new(),
            probed: Vec::new(),
        })
    }

    /// The workers share this many CPUs. By default each counts as having its own.
    #[must_use]
    pub fn with_cpus(mut self, cpus: usize) -> Self {
        self.coalescing.share_cpus(cpus);
        self
    }

    /// Runs until told to end.
    ///
    /// # Errors
    /// The ring failed.
    pub fn run(mut self) -> Result<()> {
        let mut events = Vec::with_capacity(4096);
        let mut accepted_before = 0;
        clock::sleep_precisely();
        self.ring.poll_readable(WAKER, self.endpoints.waker.as_fd());
        while self.stage != DataPathStage::Ended {
            let accepted = self.totals.accepted - accepted_before;
            accepted_before = self.totals.accepted;
            self.await_arrivals();
            self.wait(&mut events, accepted)?;
            self.now_ns = monotonic_ns();
            for event in events.drain(..) {
                self.on_event(event);
            }
            // Sockets that come back join the queue before it is dispatched, in front: the oldest
            // connection gets the next worker. Accepting then follows what is left, and listeners
            // and workers end last, because all of the above may still involve them.
            self.take_back();
            self.dispatch();
            self.adjust();
            self.finish_removals();
            self.finish_departures();
            self.endpoints.live_counts.publish(self.counts());
        }
        self.totals.dropped += self.intake.len() as u64;
        let counts = ClusterCounts { waiting: 0, ..self.counts() };
        // Closed before the end is reported, so clients learn it first.
        self.intake = Intake::default();
        self.endpoints.live_counts.publish(counts);
        self.report(DataPathReport::Ended(counts));
        Ok(())
    }

    /// Takes back the sockets that others can have: refused by a full channel, left by ended
    /// workers, or waiting for workers that are hung, busy or do not accept.
    fn take_back(&mut self) {
        self.put_back_refused();
        self.reap();
        self.retry_crowded();
        self.take_back_from_hung();
        self.take_back_early();
        self.check_own_sockets();
        self.judge_outliers();
    }

    /// Adjusts accepting, and the kernel's choice among own sockets, to what dispatching has shown.
    fn adjust(&mut self) {
        self.control_intake();
        self.drop_overdue();
        self.report_recovered();
        self.steer();
        self.relieve();
    }

    /// The present sums.
    fn counts(&self) -> ClusterCounts {
        let (pauses, paused_ns) = self.intake.pauses(self.now_ns);
        ClusterCounts {
            waiting: self.intake.len() as u64,
            pauses,
            paused_ns,
            steered: self.steerer.changes,
            skips: self.roster.skips(),
            overflows: self.ring.overflows(),
            ..self.totals
        }
    }

    /// Submits what the last turn prepared, and collects completions.
    fn wait(&mut self, events: &mut Vec<EngineEvent>, accepted: u64) -> Result<()> {
        // Waiting connections are handed over as soon as a worker reports room.
        let is_free = accepted > 0 && self.intake.is_empty();
        let slack_ns = if is_free { self.roster.slack_ns() } else { None };
        if let Some(wait_ns) = self.coalescing.wait_ns(accepted, slack_ns, self.now_ns) {
            self.totals.coalesced += 1;
            self.ring.submit();
            // Not a wait of the ring: every connection would end that, and the point is one wake-up
            // for several of them.
            clock::sleep(wait_ns);
            return self.ring.turn(events);
        }
        if self.awaits_answers() || self.has_more {
            return self.ring.turn(events);
        }
        self.ring.wait(events, self.next_deadline_ns())
    }

    fn next_deadline_ns(&self) -> Option<u64> {
        let acceptors = self.acceptors.iter().flatten();
        let starved = acceptors.filter_map(Acceptor::next_deadline_ns);
        let crowded = self.crowded.iter().map(|(_, until_ns)| *until_ns);
        let looks = self.acceptors.iter().flatten().filter_map(Acceptor::next_look_ns);
        let hangs = self.roster.next_deadline_ns();
        let unserved = self.next_drop_ns();
        let copies = self.looked_at.iter().map(|looked| looked.until_ns);
        let steering = self.steerer.next_deadline_ns();
        let hangs = hangs.into_iter().chain(steering);
        starved.chain(crowded).chain(looks).chain(hangs).chain(unserved).chain(copies).min()
    }

    /// Whether something depends on completions of messages, which do not end a wait.
    fn awaits_answers(&self) -> bool {
        let leaving = self.removals > 0 || !self.departures.is_empty();
        let ending = leaving || !self.ended.is_empty();
        let mut links = self.links.iter().flatten();
        links.any(|link| !link.is_quiet() && (ending || link.is_retired()))
    }

    fn report(&self, report: DataPathReport) {
        // A missing control plane needs no reports: the process is ending.
        let _ = self.endpoints.reports.send(report);
        self.endpoints.report_waker.wake();
    }

    fn on_event(&mut self, event: EngineEvent) {
        match event {
            EngineEvent::Accepted { key, outcome, armed } => {
                let acceptor = self.acceptors[key.index as usize].as_mut();
                let acceptor = acceptor.expect("an acceptor stays until its last completion");
                if let Some(socket) = acceptor.accepted(outcome, armed, self.now_ns) {
                    self.accept(key.index as usize, socket);
                }
            }
            EngineEvent::MessageSent { key, message, outcome } => {
                self.on_message_sent(key, message, outcome)
            }
            EngineEvent::Ready { key, .. } if key == WAKER => {
                self.endpoints.waker.clear();
                self.ring.poll_readable(WAKER, self.endpoints.waker.as_fd());
                self.on_commands();
            }
            EngineEvent::Ready { key, .. } if key == WATCH => {
                self.watch.is_polled = false;
                self.on_arrivals();
            }
            EngineEvent::Ready { key, .. } => match handoff::woken_link(key) {
                Some(key) => self.on_worker_wake(key),
                None => self.on_room(key),
            },
            // The ring has no other operations, or their results do not matter.
            _ => {}
        }
    }

    /// Carries out commands, up to the limit per turn: clients must not wait for them.
    fn on_commands(&mut self) {
        for _ in 0..COMMANDS_PER_TURN {
            let Ok(command) = self.endpoints.commands.try_recv() else {
                // The bridge wakes this thread on behalf of its workers.
                return self.observe_suspected();
            };
            self.on_command(command);
        }
        self.endpoints.waker.wake();
    }

    /// A worker has woken this thread.
    fn on_worker_wake(&mut self, key: Key) {
        let link = self.links.get_mut(key.index as usize).and_then(Option::as_mut);
        if let Some(link) = link.filter(|link| link.key() == key) {
            link.has_woken();
            if link.page.is_copied() {
                link.page.copy_counters();
                self.on_change(Slot::new(u16::try_from(key.index).expect("a slot")));
            }
            self.observe_suspected();
        }
    }

    /// A worker that answers its probe wakes this thread, and perhaps no connection arrives that
    /// would make it check.
    fn observe_suspected(&mut self) {
        if !self.suspected.is_empty() || !self.probed.is_empty() {
            self.observe();
        }
    }

    /// Takes a connection accepted at one of the places.
    fn accept(&mut self, place: usize, socket: OwnedFd) {
        self.take_over(place, socket, false);
    }

    /// Takes a connection that may have waited behind a worker's work.
    fn take_over(&mut self, place: usize, socket: OwnedFd, has_waited: bool) {
        let acceptor = self.acceptors[place].as_ref();
        let acceptor = acceptor.expect("an acceptor stays until its last completion");
        let listener = acceptor.id;
        self.totals.accepted += 1;
        self.totals.stolen += u64::from(acceptor.number.is_some());
        if let Some(counts) = self.listener_counts.get(listener) {
            counts.accepted.add(1);
        }
        let record = Record { listener, accepted_ns: self.now_ns };
        let client = self.client_of(&socket);
        let accepted = Accepted { socket, record, client, has_waited };
        let queued = self.intake.push(listener, accepted);
        debug_assert!(queued.is_ok(), "a listener stays as long as its acceptors");
    }

    /// The client, if the policy needs it. Clients without an address take turns.
    fn client_of(&self, socket: &OwnedFd) -> Client {
        match self.roster.wants_client() {
            true => Client(peer::client_of(socket).unwrap_or(self.totals.accepted)),
            false => Client::default(),
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::AddListener { id, listener } => self.add_listener(id, listener),
            Command::AddSocket { id, number, socket } => self.add_socket(id, number, socket),
            Command::SetOwners { listener, number, owners } => {
                self.set_owners(listener, number, owners)
            }
            Command::Desert { listener, number, is_deserted } => {
                self.set_deserted(listener, number, is_deserted)
            }
            Command::ReplaceListener { id, listener } => self.replace_listener(id, listener),
            Command::RemoveListener { listener } => self.remove_listener(listener),
            Command::Attach { slot, link } => self.attach(slot, link),
            Command::Join { slot, listener } => {
                let link = self.links.get_mut(slot.index()).and_then(Option::as_mut);
                if let Some(most) = link.and_then(Link::joined) {
                    self.roster.bound_credits_of(slot, most);
                }
                self.roster.join(slot, listener);
            }
            Command::Leave { slot, listener } => self.part(slot, listener),
            Command::Return { slot, sockets, backoff_ns } => {
                self.take_in(slot, sockets, backoff_ns)
            }
            Command::Open if self.stage == DataPathStage::Starting => {
                self.stage = DataPathStage::Open
            }
            Command::Open => {}
            Command::Retire { slot } => {
                if let Some(Some(link)) = self.links.get_mut(slot.index()) {
                    link.retire();
                    link.close_if_retired();
                    self.roster.retire(slot);
                }
            }
            Command::Reap { slot } => self.ended.push(slot),
            Command::Reschedule { policy, scheduling } => self.reschedule(policy, *scheduling),
            // A caller that has not waited does not want the answer.
            Command::Ping { answer } => drop(answer.try_send(Ok(()))),
            Command::End => self.stage = DataPathStage::Ended,
        }
    }

    fn attach(&mut self, slot: Slot, new: NewLink) {
        let place = slot.index();
        if place >= self.links.len() {
            self.links.resize_with(place + 1, || None);
        }
        self.generation = self.generation.wrapping_add(1) & 0x00ff_ffff;
        let key = Key { index: u32::from(slot.get()), generation: self.generation };
        if let Some(before) = &mut self.links[place] {
            before.let_go(&mut self.ring);
        }
        self.links[place] = Some(Link::new(key, new));
        self.roster.attach(slot, self.now_ns);
        let workers = self.links.iter().flatten().count();
        if workers > self.workers_planned {
            self.coalescing.spread_over(workers);
            self.workers_planned = workers;
            self.roster.bound_credits(credits_each(self.held_back, workers));
        }
    }
}

/// Credits per worker such that descriptors suffice for taking back all unclaimed connections.
fn credits_each(descriptors: u64, workers: usize) -> u32 {
    let for_connections = descriptors.saturating_sub(DESCRIPTORS_RESERVED);
    let each = for_connections / (workers as u64).max(1);
    u32::try_from(each).unwrap_or(u32::MAX)
}
