//! Listeners that the worker accepts from by itself (`--policy none` and `--dispatch kernel`), one
//! mechanism each.
//!
//! Owns the worker's copies of the listeners. The mechanisms differ only in who is woken for a
//! connection; that difference is what people measure, so none of them is polished.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::connections::Connections;
use super::surroundings::Surroundings;
use clusterlb::AcceptMechanism;
use clusterlb::protocol::scoreboard::Statistic;
use clusterlb::{Error, Result};
use clusterlb_sys::engine::{Engine, Key, Outcome};
use clusterlb_sys::listener::Listener;

/// How long a listener is left alone after accepting failed for want of descriptors or memory,
/// unless a connection ends before.
const STARVED_NS: u64 = 50_000_000;
/// Connections accepted for one readiness when draining; a backlog is not longer.
const DRAIN_MAX: usize = 65_536;
/// Connections taken from the backlog when the worker leaves; others are left to their fate.
const LAST_ACCEPTS_MAX: usize = 65_536;
/// The epoll token of the engine; listeners have their positions.
const ENGINE_TOKEN: u64 = u64::MAX;

/// All listeners of this worker.
#[derive(Debug)]
pub(super) struct AcceptSources {
    mechanism: AcceptMechanism,
    epoll: Option<Epoll>,
    /// Tells the epoll set that the engine has something; held only to stay open.
    _notifier: Option<OwnedFd>,
    sources: Vec<Source>,
    starved_until_ns: Option<u64>,
    /// What waits is still taken, then the listeners are closed.
    stopping: bool,
}

#[derive(Debug)]
struct Source {
    listener: Option<Listener>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not accepting: not begun, starved, or stopped.
    Off,
    Accepting,
    /// Told to stop; the last completion is still to come.
    Stopping,
}

impl AcceptSources {
    /// Prepares accepting by `mechanism`.
    pub(super) fn new(mechanism: AcceptMechanism, engine: &Engine) -> Result<Self> {
        let mut sources = Self::none(mechanism);
        if matches!(
            mechanism,
            AcceptMechanism::Epoll | AcceptMechanism::EpollDrain | AcceptMechanism::EpollExclusive
        ) {
            let failed = |errno| Error::system("create an epoll set", errno);
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
            let notifier = engine.notifier()?;
            // Edge-triggered, so that nobody has to read it.
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
            stopping: false,
        }
    }

    /// Adds a listener; accepting begins with `start`.
    pub(super) fn add(&mut self, listener: Listener) {
        self.sources.push(Source { listener: Some(listener), state: State::Off });
    }

    /// Begins accepting wherever it is not going on.
    pub(super) fn start(&mut self, around: &mut Surroundings) {
        for place in 0..self.sources.len() {
            if self.sources[place].state == State::Off {
                self.begin(around, place);
            }
        }
    }

    fn begin(&mut self, around: &mut Surroundings, place: usize) {
        let source = &mut self.sources[place];
        let Some(listener) = source.listener.as_ref().filter(|_| !self.stopping) else {
            return;
        };
        source.state = State::Accepting;
        match (&self.epoll, self.mechanism) {
            (Some(epoll), mechanism) => {
                let mut flags = EpollFlags::EPOLLIN;
                if mechanism == AcceptMechanism::EpollExclusive {
                    flags |= EpollFlags::EPOLLEXCLUSIVE;
                }
                if epoll.add(listener, EpollEvent::new(flags, place as u64)).is_err() {
                    source.state = State::Off;
                }
            }
            // Validation has seen to it that there is a ring.
            (None, AcceptMechanism::Uring) => {
                if let Some(ring) = around.engine.ring() {
                    ring.accept_one(key(place), listener.as_fd());
                }
            }
            (None, _) => around.engine.accept_many(key(place), listener.as_fd()),
        }
    }

    /// Whether waiting is done here, at an epoll set of its own, instead of in the engine.
    pub(super) fn wait_by_epoll(&self) -> bool {
        self.epoll.is_some()
    }

    /// Waits until the engine or a listener has something, then accepts from each listener that
    /// has: one connection, as libuv does since 1.45, or as many as there are.
    pub(super) fn wait(
        &mut self,
        around: &mut Surroundings,
        connections: &mut Connections,
        timeout: Option<Duration>,
    ) -> Result<()> {
        let Some(epoll) = &self.epoll else { return Ok(()) };
        let mut ready = [EpollEvent::empty(); 64];
        let timeout = match timeout {
            None => EpollTimeout::NONE,
            // Rounded up: waking a moment too early would make the loop spin until the time.
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
            self.take_ready(around, connections, place);
        }
        Ok(())
    }

    fn take_ready(
        &mut self,
        around: &mut Surroundings,
        connections: &mut Connections,
        place: usize,
    ) {
        let most = match self.mechanism {
            AcceptMechanism::EpollDrain => DRAIN_MAX,
            _ => 1,
        };
        for _ in 0..most {
            match self.sources[place].listener.as_ref().map(Listener::accept_now) {
                Some(Ok(Some(socket))) => claim(around, connections, socket),
                Some(Err(errno)) => return self.failed(around, place, errno),
                // Another worker was faster, or nothing is left.
                Some(Ok(None)) | None => return,
            }
        }
    }

    /// The engine has accepted a connection, or accepting has ended.
    pub(super) fn accepted(
        &mut self,
        around: &mut Surroundings,
        connections: &mut Connections,
        key: Key,
        outcome: Outcome<OwnedFd>,
        armed: bool,
    ) {
        let place = key.index as usize;
        let stopping = self.sources[place].state == State::Stopping;
        if !armed {
            self.sources[place].state = State::Off;
        }
        match outcome {
            Ok(socket) => {
                claim(around, connections, socket);
                if !armed && !stopping {
                    if self.mechanism != AcceptMechanism::Uring {
                        around.end.add(Statistic::Rearms, 1);
                    }
                    self.begin(around, place);
                }
            }
            Err(Errno::ECANCELED) => {}
            Err(errno) => self.failed(around, place, errno),
        }
        if stopping && !armed {
            self.finish(around, connections, place);
        }
    }

    fn failed(&mut self, around: &mut Surroundings, place: usize, errno: Errno) {
        let source = &mut self.sources[place];
        match errno {
            // The client has given up in the meantime.
            Errno::ECONNABORTED | Errno::EINTR | Errno::EPROTO | Errno::EPERM => {
                if source.state == State::Off {
                    self.begin(around, place);
                }
            }
            _ => {
                // Descriptors or memory ran out. The client stays in the backlog; trying again at
                // once would only spin.
                if let (Some(epoll), Some(listener)) = (&self.epoll, &source.listener) {
                    let _ = epoll.delete(listener);
                }
                source.state = State::Off;
                around.end.add(Statistic::DescriptorPauses, 1);
                self.starved_until_ns = Some(around.now_ns + STARVED_NS);
            }
        }
    }

    /// When starved listeners are tried again.
    pub(super) fn next_deadline_ns(&self) -> Option<u64> {
        self.starved_until_ns
    }

    /// Tries starved listeners again if it is time or `relieved` tells that connections ended.
    pub(super) fn recover(
        &mut self,
        around: &mut Surroundings,
        connections: &mut Connections,
        relieved: bool,
    ) {
        if self.starved_until_ns.is_some_and(|until| relieved || until <= around.now_ns) {
            self.starved_until_ns = None;
            if self.stopping {
                self.stop(around, connections);
            } else {
                self.start(around);
            }
        }
    }

    /// Stops accepting, after taking what waits in the backlog.
    pub(super) fn stop(&mut self, around: &mut Surroundings, connections: &mut Connections) {
        self.stopping = true;
        self.starved_until_ns = None;
        for place in 0..self.sources.len() {
            let by_engine = self.epoll.is_none();
            let source = &mut self.sources[place];
            match source.state {
                State::Accepting if by_engine => {
                    source.state = State::Stopping;
                    around.engine.cancel_accept(key(place));
                }
                State::Stopping => {}
                _ => self.finish(around, connections, place),
            }
        }
    }

    /// Nothing is accepted any more and nothing under way.
    pub(super) fn is_stopped(&self) -> bool {
        self.sources.iter().all(|source| source.listener.is_none())
    }

    /// Takes what waits in the backlog and closes the listener. While descriptors are short it
    /// takes what it can, and is tried again.
    fn finish(&mut self, around: &mut Surroundings, connections: &mut Connections, place: usize) {
        let Some(listener) = self.sources[place].listener.take() else {
            return;
        };
        if let Some(epoll) = &self.epoll {
            let _ = epoll.delete(&listener);
        }
        self.sources[place].state = State::Off;
        for _ in 0..LAST_ACCEPTS_MAX {
            match listener.accept_now() {
                Ok(Some(socket)) => claim(around, connections, socket),
                // The client gave up while it was queued.
                Err(Errno::ECONNABORTED | Errno::EINTR | Errno::EPROTO) => {}
                Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => {
                    around.end.add(Statistic::DescriptorPauses, 1);
                    self.starved_until_ns = Some(around.now_ns + STARVED_NS);
                    self.sources[place].listener = Some(listener);
                    return;
                }
                Ok(None) | Err(_) => break,
            }
        }
    }
}

fn claim(around: &mut Surroundings, connections: &mut Connections, socket: OwnedFd) {
    around.end.claim_own();
    connections.open(around, socket);
}

fn key(place: usize) -> Key {
    Key { index: u32::try_from(place).expect("listeners are few"), generation: 0 }
}
