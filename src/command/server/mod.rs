//! A worker process: receives connections from its primary or accepts them, and serves them on one
//! engine.
//!
//! Owns the loop. It does not know the policy. It reports counts through the scoreboard, and leaves
//! on request, on SIGTERM, or when the primary is gone.

mod accept;
mod connection;
mod connections;
mod control_client;
mod date;
mod deadlines;
mod inbox;
#[cfg(feature = "tokio-uring")]
pub(super) mod runtime;
mod shared;
mod synthetic_work;

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::Duration;

use clusterlb_sys::signal::Signal;

use crate::command::seccomp::confine_worker;
use crate::command::settings::{ServeSettings, Settings};
use accept::{AcceptSources, is_listener};
use clusterlb::protocol::environment::Inheritance;
use clusterlb::protocol::scoreboard::Statistic;
use clusterlb::protocol::worker_end::{TurnPace, WorkerEnd};
use clusterlb::{AcceptMechanism, Result};
use clusterlb_sys::clock::monotonic_ns;
use clusterlb_sys::engine::{Engine, EngineEvent, Key, RingShape};
use clusterlb_sys::listener::Listener;
use clusterlb_sys::signal::Signals;
use connections::Connections;
pub(crate) use control_client::{ControlClient, PrimaryRequest};
use date::Date;
use deadlines::Durations;
use inbox::Inbox;
use shared::Shared;
pub(crate) use synthetic_work::SyntheticWork;

/// Signals for the primary, ignored by a worker that receives them with it.
const FOR_THE_PRIMARY: [Signal; 8] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGPWR,
    Signal::SIGQUIT,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

const SHAPE: RingShape = RingShape { submissions: 1024, completions: 8192 };
/// How long a client may pause within a body, or read nothing of an answer.
const STALL: Duration = Duration::from_secs(60);
/// How long the rest of a refused request is discarded.
const LINGER: Duration = Duration::from_secs(2);
/// How long a leaving worker waits for the first request of a connection.
const LEAVE: Duration = Duration::from_secs(1);

/// Keys of the watched descriptors.
const CONTROL: Key = Key { index: 0, generation: 0 };
const SIGNALS: Key = Key { index: 1, generation: 0 };

/// Locked memory of a worker's ring.
pub(super) fn ring_bytes() -> u64 {
    clusterlb_sys::engine::ring::Ring::locked_bytes(SHAPE)
}

/// Runs as a worker until the primary or a signal ends it.
///
/// # Errors
/// The inheritance is incomplete, the machine refuses the engine, or an address cannot be served.
pub(super) fn run(settings: &Settings, inheritance: Inheritance) -> Result<()> {
    let engine = inheritance.engine;
    let mut worker = Worker::start(settings, inheritance)?;
    if settings.serve.seccomp {
        confine_worker(engine, worker.shared.end.refused_call()?)?;
    }
    worker.serve()?;
    worker.farewell()
}

#[derive(Debug)]
struct Worker {
    shared: Shared,
    connections: Connections,
    control_client: ControlClient,
    signals: Signals,
    inbox: Option<Inbox>,
    sources: AcceptSources,
    pace: TurnPace,
    date: Date,
    grace: Duration,
    /// When to cut open connections, once the worker is leaving.
    cut_ns: Option<u64>,
}

impl Worker {
    fn start(settings: &Settings, inheritance: Inheritance) -> Result<Self> {
        clusterlb_sys::signal::block(&FOR_THE_PRIMARY)?;
        let signals = Signals::receive(&[Signal::SIGTERM])?;
        if let Some(cpu) = inheritance.cpu {
            clusterlb_sys::cpu::pin_to(cpu)?;
        }
        let engine = Engine::new(inheritance.engine, SHAPE)?.with_data_buffers()?;
        let (engine, sources) = match &inheritance.inbox {
            // With kernel dispatch, workers have their own sockets in addition to the inbox.
            Some(_) => {
                let sources = AcceptSources::none(AcceptMechanism::Reuseport);
                (engine.with_message_buffers()?, sources)
            }
            None => {
                let sources = AcceptSources::new(settings.accept, &engine)?;
                (engine, sources)
            }
        };
        let mut worker = Self {
            shared: Shared {
                engine,
                end: WorkerEnd::open(inheritance.page, inheritance.waker)?,
                now_ns: monotonic_ns(),
                date: String::new(),
                draining: false,
                synthetic_work: SyntheticWork::new(&settings.serve, inheritance.id.get()),
                worked: false,
            },
            connections: Connections::new(settings.serve.serve, durations(&settings.serve)),
            control_client: ControlClient::open(inheritance.control, &settings.listen)?,
            signals,
            inbox: inheritance.inbox.map(Inbox::new).transpose()?,
            sources,
            pace: TurnPace::default(),
            date: Date::default(),
            grace: settings.grace,
            cut_ns: None,
        };
        worker.shared.engine.poll_readable(CONTROL, worker.control_client.as_fd());
        worker.shared.engine.poll_readable(SIGNALS, worker.signals.as_fd());
        Ok(worker)
    }

    fn serve(&mut self) -> Result<()> {
        let mut events = Vec::with_capacity(SHAPE.completions as usize);
        let mut finished_before = 0;
        while !self.is_done() {
            self.wait(&mut events)?;
            // Work moves the loop's time on, but not this.
            let begun_ns = monotonic_ns();
            self.shared.now_ns = begun_ns;
            self.shared.end.begin_turn(begun_ns);
            self.date.refresh(self.shared.now_ns, &mut self.shared.date);
            self.handle_all(&mut events, begun_ns)?;
            self.connections.expire(&mut self.shared);
            let finished = self.shared.end.finished();
            let relieved = finished != finished_before;
            self.sources.recover(&mut self.shared, &mut self.connections, relieved);
            finished_before = finished;
            if let Some(inbox) = &mut self.inbox {
                let turn_ns = monotonic_ns().saturating_sub(begun_ns);
                self.pace.on_turn(turn_ns, relieved);
                inbox.top_up(&mut self.shared, &self.connections, self.pace);
                self.sources.keep_pace(&mut self.shared, self.pace);
            }
            // The published counters are exact at the end of a turn.
            self.shared.end.end_turn();
            self.shared.end.publish();
        }
        Ok(())
    }

    /// Handles events. After a request with work, its answer is sent and completed before the next
    /// one, as in a server that handles one at a time.
    fn handle_all(&mut self, events: &mut Vec<EngineEvent>, begun_ns: u64) -> Result<()> {
        let mut left: VecDeque<EngineEvent> = VecDeque::new();
        for event in events.drain(..) {
            if left.is_empty() && !self.shared.worked {
                self.handle(event)?;
            } else {
                left.push_back(event);
            }
        }
        while self.shared.worked || !left.is_empty() {
            if std::mem::take(&mut self.shared.worked) {
                if self.inbox.is_some() {
                    // What has come in this time stays in the socket.
                    self.pace.on_work(self.shared.now_ns.saturating_sub(begun_ns));
                    self.sources.keep_pace(&mut self.shared, self.pace);
                }
                self.shared.engine.turn(events)?;
                for event in events.drain(..) {
                    match event {
                        EngineEvent::Sent { .. } => self.handle(event)?,
                        event => left.push_back(event),
                    }
                }
                self.shared.end.publish();
            }
            if let Some(event) = left.pop_front() {
                self.handle(event)?;
            }
        }
        Ok(())
    }

    fn wait(&mut self, events: &mut Vec<EngineEvent>) -> Result<()> {
        let overflows = self.shared.engine.overflows();
        if self.sources.wait_by_epoll() {
            self.shared.engine.turn(events)?;
            if events.is_empty() {
                let timeout = self.until_next_deadline();
                self.sources.wait(&mut self.shared, &mut self.connections, timeout)?;
                self.shared.engine.turn(events)?;
            }
        } else {
            self.shared.engine.wait(events, self.next_deadline_ns())?;
        }
        if self.shared.engine.overflows() > overflows {
            self.shared.end.add(Statistic::Overflows, 1);
        }
        Ok(())
    }

    fn next_deadline_ns(&self) -> Option<u64> {
        let deadlines =
            [self.connections.next_deadline_ns(), self.sources.next_deadline_ns(), self.cut_ns];
        deadlines.into_iter().flatten().min()
    }

    fn until_next_deadline(&self) -> Option<Duration> {
        let left_ns = self.next_deadline_ns()?.saturating_sub(monotonic_ns());
        // Zero means "do not wait", which is right; the time left is never below it.
        Some(Duration::from_nanos(left_ns))
    }

    fn handle(&mut self, event: EngineEvent) -> Result<()> {
        let (shared, connections) = (&mut self.shared, &mut self.connections);
        match event {
            EngineEvent::Received { key, outcome, armed } => {
                connections.on_received(shared, key, outcome, armed);
            }
            EngineEvent::Sent { key, buffer, outcome } => {
                connections.on_sent(shared, key, buffer, outcome)
            }
            EngineEvent::MessageReceived { outcome, armed, .. } => {
                if let Some(inbox) = &mut self.inbox {
                    inbox.received(shared, connections, outcome, armed);
                }
            }
            EngineEvent::Accepted { key, outcome, armed } => {
                self.sources.accepted(shared, connections, key, outcome, armed);
            }
            EngineEvent::Ready { key, .. } if key == CONTROL => return self.on_primary_ready(),
            EngineEvent::Ready { key, .. } if key == SIGNALS => return self.on_signals(),
            EngineEvent::Ready { key, outcome } if is_listener(key) => {
                self.sources.on_arrival(shared, connections, key, outcome);
            }
            EngineEvent::Ready { .. }
            | EngineEvent::MessageSent { .. }
            | EngineEvent::Cancelled { .. } => {}
        }
        Ok(())
    }

    fn on_signals(&mut self) -> Result<()> {
        while self.signals.next_signal()?.is_some() {
            self.control_client.send_leaving()?;
            self.leave(self.grace);
        }
        self.shared.engine.poll_readable(SIGNALS, self.signals.as_fd());
        Ok(())
    }

    fn on_primary_ready(&mut self) -> Result<()> {
        for order in self.control_client.receive()? {
            match order {
                PrimaryRequest::Accept { listener, socket, address } => {
                    self.sources.add(listener, Listener::adopt_copy(socket, address));
                }
                PrimaryRequest::ExpectHeaders { listener } => {
                    self.connections.expect_headers(listener);
                }
                PrimaryRequest::Begin => {
                    self.sources.start(&mut self.shared);
                    // Accepting must begin before it is reported: with any mechanism, a worker that
                    // arms late takes all connections that wait at that moment.
                    self.shared.engine.submit();
                    self.control_client.send_ready()?;
                }
                PrimaryRequest::Leave { grace } => self.leave(grace.unwrap_or(self.grace)),
            }
        }
        if !self.control_client.is_closed() {
            self.shared.engine.poll_readable(CONTROL, self.control_client.as_fd());
        }
        Ok(())
    }

    /// Accepts nothing new, lets open connections finish, and cuts them after `grace`.
    fn leave(&mut self, grace: Duration) {
        if self.cut_ns.is_some() {
            return;
        }
        let grace_ns = u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
        self.cut_ns = Some(monotonic_ns().saturating_add(grace_ns));
        self.shared.draining = true;
        self.sources.stop(&mut self.shared, &mut self.connections);
        self.connections.drain(&mut self.shared);
    }

    fn is_done(&self) -> bool {
        let Some(cut_ns) = self.cut_ns else {
            return false;
        };
        if self.shared.now_ns >= cut_ns {
            return true;
        }
        // The inbox ends after the primary's last socket.
        let inbox_closed = self.inbox.as_ref().is_none_or(Inbox::is_closed);
        inbox_closed && self.sources.is_stopped() && self.connections.len() == 0
    }

    fn farewell(&mut self) -> Result<()> {
        self.shared.now_ns = monotonic_ns();
        self.shared.end.publish();
        self.control_client.send_farewell(self.shared.end.latency());
        Ok(())
    }
}

fn durations(settings: &ServeSettings) -> Durations {
    let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    Durations {
        by_class_ns: [
            ns(settings.header_timeout),
            ns(settings.idle_timeout),
            ns(STALL),
            ns(STALL),
            ns(LINGER),
            ns(LEAVE),
        ],
    }
}
