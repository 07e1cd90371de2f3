//! Listeners that the worker accepts from (`--policy none` and `--dispatch kernel`), with one
//! mechanism each.
//!
//! Owns the worker's copies of the listeners. The mechanisms differ only in which worker a
//! connection wakes. Measurements compare that difference, so none of them is tuned.
//!
//! Where the primary can give what waits in a listener to other workers (`--dispatch kernel`), a
//! worker with long turns accepts one connection at a time, so that a claim means that work begins.
//! The engine reports an arrival behind all that can be worked on then, and reports the next one
//! when this one has been accepted.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::connections::Connections;
use super::shared::Shared;
use clusterlb::AcceptMechanism;
use clusterlb::ListenerId;
use clusterlb::protocol::scoreboard::Statistic;
use clusterlb::protocol::worker_end::TurnPace;
use clusterlb::{Error, Result};
use clusterlb_sys::engine::{Engine, Key, Outcome};
use clusterlb_sys::listener::Listener;

/// How long a listener rests after accepting failed for lack of descriptors or memory, unless a
/// connection ends before.
const STARVED_NS: u64 = 50_000_000;
/// Most connections accepted per readiness when draining; no backlog is longer.
const DRAIN_MAX: usize = 65_536;
/// Most connections taken from the backlog when the worker leaves; the rest is not served.
const LAST_ACCEPTS_MAX: usize = 65_536;
/// The epoll token of the engine; a listener's token is its position.
const ENGINE_TOKEN: u64 = u64::MAX;
/// The generation of keys of waits for arrivals.
const ARRIVAL: u32 = 1;

/// All listeners of this worker.
#[derive(Debug)]
pub(super) struct AcceptSources {
    mechanism: AcceptMechanism,
    epoll: Option<Epoll>,
    /// Signals the epoll set when the engine has an event; held only to stay open.
    _notifier: Option<OwnedFd>,
    sources: Vec<AcceptSource>,
    starved_until_ns: Option<u64>,
    /// One connection at a time.
    is_slow: bool,
    /// Accepts what waits, then closes the listeners.
    stopping: bool,
}

#[derive(Debug)]
struct AcceptSource {
    id: ListenerId,
    listener: Option<Listener>,
    state: SourceState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SourceState {
    /// Not accepting: not started, starved, or stopped.
    Off,
    Accepting,
    /// Cancelled, to accept one at a time; the last completion is still to come.
    Slowing,
    /// Accepted from by hand, once the engine reports an arrival.
    Watched,
    /// Cancelled, to end; the last completion is still to come.
    Stopping,
}

impl AcceptSources {
    /// Prepares accepting with `mechanism`.
    pub(super) fn new(mechanism: AcceptMechanism, engine: &Engine) -> Result<Self> {
        let mut sources = Self::none(mechanism);
        if matches!(
            mechanism,
            AcceptMechanism::Epoll | AcceptMechanism::EpollDrain | AcceptMechanism::EpollExclusive
        ) {
            let failed = |errno| Error::system("create an epoll set", errno);
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
            let notifier = engine.notifier()?;
            // Edge-triggered, so it needs no read.
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
            epoll.add(&notifier, EpollEvent::new(flags, ENGINE_TOKEN)).map_err(failed)?;
            sources.epoll = Some(epoll);
            sources._notifier = Some(notifier);
        }
        Ok(sources)
    }

    /// No listeners: connections come from the primary.
    pub(super) fn none(mechanism: AcceptMechanism) -> Self {
        Self {
            mechanism,
            epoll: None,
            _notifier: None,
            sources: vec![],
            starved_until_ns: None,
            is_slow: false,
            stopping: false,
        }
    }

    /// Adds a listener; `start` begins accepting.
    pub(super) fn add(&mut self, id: ListenerId, listener: Listener) {
        self.sources.push(AcceptSource { id, listener: Some(listener), state: SourceState::Off });
    }

    /// Begins accepting from each listener that is off.
    pub(super) fn start(&mut self, shared: &mut Shared) {
        for place in 0..self.sources.len() {
            if self.sources[place].state == SourceState::Off {
                self.begin(shared, place);
            }
        }
    }

    fn begin(&mut self, shared: &mut Shared, place: usize) {
        let source = &mut self.sources[place];
        let Some(listener) = source.listener.as_ref().filter(|_| !self.stopping) else {
            return;
        };
        if self.is_slow {
            source.state = SourceState::Watched;
            return shared.engine.poll_readable(arrival_key(place), listener.as_fd());
        }
        source.state = SourceState::Accepting;
        match (&self.epoll, self.mechanism) {
            (Some(epoll), mechanism) => {
                let mut flags = EpollFlags::EPOLLIN;
                if mechanism == AcceptMechanism::EpollExclusive {
                    flags |= EpollFlags::EPOLLEXCLUSIVE;
                }
                if epoll.add(listener, EpollEvent::new(flags, place as u64)).is_err() {
                    source.state = SourceState::Off;
                }
            }
            // Validation ensures that there is a ring.
            (None, AcceptMechanism::Uring) => {
                if let Some(ring) = shared.engine.ring() {
                    ring.accept_one(key(place), listener.as_fd());
                }
            }
            (None, _) => shared.engine.accept_many(key(place), listener.as_fd()),
        }
    }

    /// Adapts accepting to the worker's turns. A listener that is watched is accepted from as
    /// before when its next connection comes.
    pub(super) fn keep_pace(&mut self, shared: &mut Shared, pace: TurnPace) {
        let becomes_slow = pace.is_slow() && !self.is_slow;
        self.is_slow = pace.is_slow();
        if !becomes_slow || self.stopping {
            return;
        }
        for (place, source) in self.sources.iter_mut().enumerate() {
            if source.state == SourceState::Accepting {
                source.state = SourceState::Slowing;
                shared.engine.cancel_accept(key(place));
            }
        }
    }

    /// A connection has come to a listener that is watched. Another process may have it by now.
    pub(super) fn on_arrival(
        &mut self,
        shared: &mut Shared,
        connections: &mut Connections,
        key: Key,
        outcome: Outcome<()>,
    ) {
        let place = key.index as usize;
        let source = &mut self.sources[place];
        let Some(listener) = source.listener.as_ref() else { return };
        if source.state != SourceState::Watched {
            return;
        }
        let accepted = match outcome {
            Ok(()) if self.is_slow => listener.accept_now(),
            outcome => outcome.map(|()| None),
        };
        source.state = SourceState::Off;
        match accepted {
            Ok(socket) => {
                let id = source.id;
                socket.into_iter().for_each(|socket| claim(shared, connections, id, socket));
                self.begin(shared, place);
            }
            Err(errno) => self.failed(shared, place, errno),
        }
    }

    /// Whether the loop waits here, at an epoll set, instead of in the engine.
    pub(super) fn wait_by_epoll(&self) -> bool {
        self.epoll.is_some()
    }

    /// Waits for the engine or a listener, then accepts from each ready listener: one connection,
    /// as libuv does since 1.45, or all.
    pub(super) fn wait(
        &mut self,
        shared: &mut Shared,
        connections: &mut Connections,
        timeout: Option<Duration>,
    ) -> Result<()> {
        let Some(epoll) = &self.epoll else { return Ok(()) };
        let mut ready = [EpollEvent::empty(); 64];
        let timeout = match timeout {
            None => EpollTimeout::NONE,
            // Rounded up: waking too early would spin until the deadline.
            Some(timeout) => {
                let timeout_ms = u16::try_from(timeout.as_nanos().div_ceil(1_000_000));
                EpollTimeout::from(timeout_ms.unwrap_or(u16::MAX))
            }
        };
        let count = match epoll.wait(&mut ready, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(Error::system("wait for connections (epoll)", errno)),
        };
        for event in ready[..count].iter().filter(|event| event.data() != ENGINE_TOKEN) {
            let place = usize::try_from(event.data()).expect("positions are small");
            self.take_ready(shared, connections, place);
        }
        Ok(())
    }

    fn take_ready(&mut self, shared: &mut Shared, connections: &mut Connections, place: usize) {
        let most = match self.mechanism {
            AcceptMechanism::EpollDrain => DRAIN_MAX,
            _ => 1,
        };
        let id = self.sources[place].id;
        for _ in 0..most {
            match self.sources[place].listener.as_ref().map(Listener::accept_now) {
                Some(Ok(Some(socket))) => claim(shared, connections, id, socket),
                Some(Err(errno)) => return self.failed(shared, place, errno),
                // Another worker was faster, or the backlog is empty.
                Some(Ok(None)) | None => return,
            }
        }
    }

    /// The engine accepted a connection, or accepting ended.
    pub(super) fn accepted(
        &mut self,
        shared: &mut Shared,
        connections: &mut Connections,
        key: Key,
        outcome: Outcome<OwnedFd>,
        armed: bool,
    ) {
        let place = key.index as usize;
        let stopping = self.sources[place].state == SourceState::Stopping;
        let slowing = self.sources[place].state == SourceState::Slowing;
        if !armed {
            self.sources[place].state = SourceState::Off;
        }
        match outcome {
            Ok(socket) => {
                claim(shared, connections, self.sources[place].id, socket);
                if !armed && !stopping {
                    if self.mechanism != AcceptMechanism::Uring && !slowing {
                        shared.end.add(Statistic::Rearms, 1);
                    }
                    self.begin(shared, place);
                }
            }
            Err(Errno::ECANCELED) if slowing => self.begin(shared, place),
            Err(Errno::ECANCELED) => {}
            Err(errno) => self.failed(shared, place, errno),
        }
        if stopping && !armed {
            self.finish(shared, connections, place);
        }
    }

    fn failed(&mut self, shared: &mut Shared, place: usize, errno: Errno) {
        let source = &mut self.sources[place];
        match errno {
            // The client has closed already.
            Errno::ECONNABORTED | Errno::EINTR | Errno::EPROTO | Errno::EPERM => {
                if source.state == SourceState::Off {
                    self.begin(shared, place);
                }
            }
            _ => {
                // Descriptors or memory ran out. The client stays in the backlog; an immediate
                // retry would spin.
                if let (Some(epoll), Some(listener)) = (&self.epoll, &source.listener) {
                    let _ = epoll.delete(listener);
                }
                source.state = SourceState::Off;
                shared.end.add(Statistic::DescriptorPauses, 1);
                self.starved_until_ns = Some(shared.now_ns + STARVED_NS);
            }
        }
    }

    /// When starved listeners are retried.
    pub(super) fn next_deadline_ns(&self) -> Option<u64> {
        self.starved_until_ns
    }

    /// Retries starved listeners at their deadline, or once `relieved` says that connections ended.
    pub(super) fn recover(
        &mut self,
        shared: &mut Shared,
        connections: &mut Connections,
        relieved: bool,
    ) {
        if self.starved_until_ns.is_some_and(|until| relieved || until <= shared.now_ns) {
            self.starved_until_ns = None;
            if self.stopping {
                self.stop(shared, connections);
            } else {
                self.start(shared);
            }
        }
    }

    /// Accepts what waits in the backlog, then stops.
    pub(super) fn stop(&mut self, shared: &mut Shared, connections: &mut Connections) {
        self.stopping = true;
        self.starved_until_ns = None;
        for place in 0..self.sources.len() {
            let by_engine = self.epoll.is_none();
            let source = &mut self.sources[place];
            match source.state {
                SourceState::Accepting if by_engine => {
                    source.state = SourceState::Stopping;
                    shared.engine.cancel_accept(key(place));
                }
                SourceState::Slowing => source.state = SourceState::Stopping,
                SourceState::Stopping => {}
                _ => self.finish(shared, connections, place),
            }
        }
    }

    /// Whether nothing is accepted any more and nothing is in progress.
    pub(super) fn is_stopped(&self) -> bool {
        self.sources.iter().all(|source| source.listener.is_none())
    }

    /// Accepts what waits in the backlog and closes the listener. If descriptors run out, it stays
    /// open and is retried.
    fn finish(&mut self, shared: &mut Shared, connections: &mut Connections, place: usize) {
        let Some(listener) = self.sources[place].listener.take() else {
            return;
        };
        if let Some(epoll) = &self.epoll {
            let _ = epoll.delete(&listener);
        }
        if self.sources[place].state == SourceState::Watched {
            shared.engine.cancel_poll(arrival_key(place), listener.as_fd());
        }
        self.sources[place].state = SourceState::Off;
        for _ in 0..LAST_ACCEPTS_MAX {
            match listener.accept_now() {
                Ok(Some(socket)) => {
                    claim(shared, connections, self.sources[place].id, socket);
                }
                // The client closed while it was queued.
                Err(Errno::ECONNABORTED | Errno::EINTR | Errno::EPROTO) => {}
                Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => {
                    shared.end.add(Statistic::DescriptorPauses, 1);
                    self.starved_until_ns = Some(shared.now_ns + STARVED_NS);
                    self.sources[place].listener = Some(listener);
                    return;
                }
                Ok(None) | Err(_) => break,
            }
        }
    }
}

fn claim(shared: &mut Shared, connections: &mut Connections, id: ListenerId, socket: OwnedFd) {
    shared.end.claim_own(Some(id), shared.now_ns);
    connections.open(shared, id, socket);
}

fn key(place: usize) -> Key {
    Key { index: u32::try_from(place).expect("listeners are few"), generation: 0 }
}

/// The key of the wait for an arrival, unlike those of other descriptors that are awaited.
fn arrival_key(place: usize) -> Key {
    Key { generation: ARRIVAL, ..key(place) }
}

/// Whether a wait was for an arrival at a listener.
pub(super) fn is_listener(key: Key) -> bool {
    key.generation == ARRIVAL
}
