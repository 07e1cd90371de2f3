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
mod surroundings;
mod synthetic_work;

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::Duration;

use clusterlb_sys::signal::Signal;

use crate::command::seccomp::confine_worker;
use crate::command::settings::{ServeSettings, Settings};
use accept::AcceptSources;
use clusterlb::protocol::environment::Inheritance;
use clusterlb::protocol::scoreboard::Statistic;
use clusterlb::protocol::worker_end::WorkerEnd;
use clusterlb::{AcceptMechanism, Result};
use clusterlb_sys::clock::monotonic_ns;
use clusterlb_sys::engine::{Engine, Event, Key, RingShape};
use clusterlb_sys::listener::Listener;
use clusterlb_sys::signal::Signals;
use connections::Connections;
pub(crate) use control_client::{ControlClient, PrimaryRequest};
use date::Date;
use deadlines::Durations;
use inbox::Inbox;
use surroundings::Surroundings;
pub(crate) use synthetic_work::SyntheticWork;

/// Signals for the primary, ignored by a worker that receives them with it.
const FOR_THE_PRIMARY: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
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
        confine_worker(engine)?;
    }
    worker.serve()?;
    worker.farewell()
}

#[derive(Debug)]
struct Worker {
    around: Surroundings,
    connections: Connections,
    control_client: ControlClient,
    signals: Signals,
    inbox: Option<Inbox>,
    sources: AcceptSources,
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
            around: Surroundings {
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
            date: Date::default(),
            grace: settings.grace,
            cut_ns: None,
        };
        worker.around.engine.poll_readable(CONTROL, worker.control_client.as_fd());
        worker.around.engine.poll_readable(SIGNALS, worker.signals.as_fd());
        Ok(worker)
    }

    fn serve(&mut self) -> Result<()> {
        let mut events = Vec::with_capacity(SHAPE.completions as usize);
        let mut finished_before = 0;
        while !self.is_done() {
            self.wait(&mut events)?;
            // Work moves the loop's time on, but not this.
            let begun_ns = monotonic_ns();
            self.around.now_ns = begun_ns;
            self.around.end.begin_turn(begun_ns);
            self.date.refresh(self.around.now_ns, &mut self.around.date);
            self.handle_all(&mut events)?;
            self.connections.expire(&mut self.around);
            let finished = self.around.end.finished();
            let relieved = finished != finished_before;
            self.sources.recover(&mut self.around, &mut self.connections, relieved);
            finished_before = finished;
            if let Some(inbox) = &mut self.inbox {
                let turn_ns = monotonic_ns().saturating_sub(begun_ns);
                inbox.top_up(&mut self.around, &self.connections, turn_ns, relieved);
            }
            // The published counters are exact at the end of a turn.
            self.around.end.end_turn();
            self.around.end.publish();
        }
        Ok(())
    }

    /// Handles events. After a request with work, its answer is sent and completed before the next
    /// one, as in a server that handles one at a time.
    fn handle_all(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let mut left: VecDeque<Event> = VecDeque::new();
        for event in events.drain(..) {
            if left.is_empty() && !self.around.worked {
                self.handle(event)?;
            } else {
                left.push_back(event);
            }
        }
        while self.around.worked || !left.is_empty() {
            if std::mem::take(&mut self.around.worked) {
                self.around.engine.turn(events)?;
                for event in events.drain(..) {
                    match event {
                        Event::Sent { .. } => self.handle(event)?,
                        event => left.push_back(event),
                    }
                }
                self.around.end.publish();
            }
            if let Some(event) = left.pop_front() {
                self.handle(event)?;
            }
        }
        Ok(())
    }

    fn wait(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let overflows = self.around.engine.overflows();
        if self.sources.wait_by_epoll() {
            self.around.engine.turn(events)?;
            if events.is_empty() {
                let timeout = self.until_next_deadline();
                self.sources.wait(&mut self.around, &mut self.connections, timeout)?;
                self.around.engine.turn(events)?;
            }
        } else {
            self.around.engine.wait(events, self.next_deadline_ns())?;
        }
        if self.around.engine.overflows() > overflows {
            self.around.end.add(Statistic::Overflows, 1);
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

    fn handle(&mut self, event: Event) -> Result<()> {
        let (around, connections) = (&mut self.around, &mut self.connections);
        match event {
            Event::Received { key, outcome, armed } => {
                connections.on_received(around, key, outcome, armed);
            }
            Event::Sent { key, buffer, outcome } => {
                connections.on_sent(around, key, buffer, outcome)
            }
            Event::MessageReceived { outcome, armed, .. } => {
                if let Some(inbox) = &mut self.inbox {
                    inbox.received(around, connections, outcome, armed);
                }
            }
            Event::Accepted { key, outcome, armed } => {
                self.sources.accepted(around, connections, key, outcome, armed);
            }
            Event::Ready { key, .. } if key == CONTROL => return self.hear_primary(),
            Event::Ready { key, .. } if key == SIGNALS => return self.hear_signals(),
            Event::Ready { .. } | Event::MessageSent { .. } | Event::Cancelled { .. } => {}
        }
        Ok(())
    }

    fn hear_signals(&mut self) -> Result<()> {
        while self.signals.next_signal()?.is_some() {
            self.control_client.announce_leaving()?;
            self.leave(self.grace);
        }
        self.around.engine.poll_readable(SIGNALS, self.signals.as_fd());
        Ok(())
    }

    fn hear_primary(&mut self) -> Result<()> {
        for order in self.control_client.hear()? {
            match order {
                PrimaryRequest::Accept { listener, socket, address } => {
                    self.sources.add(listener, Listener::adopt_copy(socket, address));
                }
                PrimaryRequest::ExpectHeaders { listener } => {
                    self.connections.expect_headers(listener);
                }
                PrimaryRequest::Begin => {
                    self.sources.start(&mut self.around);
                    // Accepting must begin before it is reported: with any mechanism, a worker that
                    // arms late takes all connections that wait at that moment.
                    self.around.engine.submit();
                    self.control_client.announce_ready()?;
                }
                PrimaryRequest::Leave { grace } => self.leave(grace.unwrap_or(self.grace)),
            }
        }
        if !self.control_client.is_closed() {
            self.around.engine.poll_readable(CONTROL, self.control_client.as_fd());
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
        self.around.draining = true;
        self.sources.stop(&mut self.around, &mut self.connections);
        self.connections.drain(&mut self.around);
    }

    fn is_done(&self) -> bool {
        let Some(cut_ns) = self.cut_ns else {
            return false;
        };
        if self.around.now_ns >= cut_ns {
            return true;
        }
        // The inbox ends after the primary's last socket.
        let inbox_closed = self.inbox.as_ref().is_none_or(Inbox::is_closed);
        inbox_closed && self.sources.is_stopped() && self.connections.len() == 0
    }

    fn farewell(&mut self) -> Result<()> {
        self.around.now_ns = monotonic_ns();
        self.around.end.publish();
        self.control_client.say_farewell(self.around.end.latency());
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
