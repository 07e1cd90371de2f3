//! Connections whose header of the PROXY protocol has not arrived.
//!
//! Owns the waiting for headers: other connections are accepted in the meantime, and no header has
//! longer than [`HEADER_LIMIT`]. It takes exactly the header from a socket, so the program finds
//! the client's bytes there. A connection without a header is closed and counted.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, recv};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::connection::Connection;
use super::wait_set::Waiting;
use crate::error::{Error, Result};
use crate::protocol::proxy_protocol::{HEADER_BYTES_MAX, HEADER_LIMIT, Header, parse};
use crate::sys::clock::monotonic_ns;

/// Deadlines of connections that wait no longer, beyond as many as there are others.
const PAST_DEADLINES_MAX: usize = 64;
/// The epoll token of the timer; those of connections count from 1.
const TIMER: u64 = 0;

/// The connections of one listener that wait.
#[derive(Debug)]
pub(super) struct Proxied {
    /// The sockets and the timer. Callers of the listener wait for it, too.
    epoll: Epoll,
    timer: TimerFd,
    state: Mutex<ProxiedState>,
}

#[derive(Debug, Default)]
pub(super) struct ProxiedState {
    waiting: BTreeMap<u64, Partial>,
    last: u64,
    /// Deadlines in their order, also of connections that wait no longer.
    deadlines: VecDeque<(u64, u64)>,
    /// The listener is at its end, and its callers wait for these connections only.
    pub(super) is_last: bool,
}

/// A connection and what has arrived of its header.
#[derive(Debug)]
struct Partial {
    connection: Connection,
    bytes: Vec<u8>,
}

/// What became of a connection.
#[derive(Debug)]
pub(super) enum HeaderOutcome {
    /// It has its header.
    Whole(Connection),
    /// It waits for more of it.
    Waiting,
    /// It has no valid header: close it. Count it behind the lock.
    Refused(Connection),
}

impl Proxied {
    /// For the listener whose callers wait at `waiting`.
    pub(super) fn at(waiting: &Waiting) -> Result<Self> {
        let failed = |errno| Error::system("prepare waiting for headers (epoll)", errno);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map_err(failed)?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER)).map_err(failed)?;
        waiting.add(&epoll.0).map_err(failed)?;
        Ok(Self { epoll, timer, state: Mutex::default() })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, ProxiedState> {
        self.state.lock().expect("nothing panics while it holds the headers")
    }

    /// Looks for the header of a new connection, and waits for it if it has not arrived.
    pub(super) fn begin(&self, connection: Connection) -> HeaderOutcome {
        let mut partial = Partial { connection, bytes: Vec::new() };
        match partial.read() {
            Ok(Some(header)) => HeaderOutcome::Whole(partial.connection.proxied(header)),
            Ok(None) => self.wait_for(partial),
            Err(NoHeader) => HeaderOutcome::Refused(partial.connection),
        }
    }

    fn wait_for(&self, partial: Partial) -> HeaderOutcome {
        let mut state = self.state();
        state.last += 1;
        let token = state.last;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, token);
        if self.epoll.add(&partial.connection, event).is_err() {
            // Memory is exhausted.
            return HeaderOutcome::Refused(partial.connection);
        }
        let limit_ns = u64::try_from(HEADER_LIMIT.as_nanos()).expect("a few seconds");
        state.waiting.insert(token, partial);
        state.add_deadline(monotonic_ns() + limit_ns, token);
        self.set_timer(&state);
        HeaderOutcome::Waiting
    }

    /// The next connection whose waiting ends; `None` while none does.
    pub(super) fn next(&self) -> Option<HeaderOutcome> {
        let mut ready = [EpollEvent::empty()];
        let mut state = self.state();
        loop {
            if self.epoll.wait(&mut ready, EpollTimeout::ZERO) != Ok(1) {
                return None;
            }
            let token = ready[0].data();
            if token == TIMER {
                let Some(late) = state.expire(monotonic_ns()) else {
                    self.set_timer(&state);
                    continue;
                };
                return Some(HeaderOutcome::Refused(self.forget(late)));
            }
            let Some(partial) = state.waiting.get_mut(&token) else { continue };
            match partial.read() {
                Ok(None) => {}
                result => {
                    let partial = state.waiting.remove(&token).expect("it was there");
                    let connection = self.forget(partial);
                    return Some(match result {
                        Ok(Some(header)) => HeaderOutcome::Whole(connection.proxied(header)),
                        _ => HeaderOutcome::Refused(connection),
                    });
                }
            }
        }
    }

    /// Stops watching it.
    fn forget(&self, partial: Partial) -> Connection {
        // It was added when it began to wait.
        let _ = self.epoll.delete(&partial.connection);
        partial.connection
    }

    /// Sets the timer to the first deadline.
    fn set_timer(&self, state: &ProxiedState) {
        let set = match state.deadlines.front() {
            Some((at_ns, _)) => {
                let at = Duration::from_nanos(*at_ns);
                let once = Expiration::OneShot(TimeSpec::from_duration(at));
                self.timer.set(once, TimerSetTimeFlags::TFD_TIMER_ABSTIME)
            }
            None => self.timer.unset(),
        };
        set.expect("a time after the start of the machine");
    }
}

impl ProxiedState {
    /// Whether a connection waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn add_deadline(&mut self, at_ns: u64, token: u64) {
        if self.deadlines.len() >= 2 * self.waiting.len() + PAST_DEADLINES_MAX {
            self.deadlines.retain(|(_, token)| self.waiting.contains_key(token));
        }
        self.deadlines.push_back((at_ns, token));
    }

    /// Takes a connection past its deadline.
    fn expire(&mut self, now_ns: u64) -> Option<Partial> {
        while let Some((at_ns, token)) = self.deadlines.front().copied() {
            if self.waiting.contains_key(&token) && at_ns > now_ns {
                return None;
            }
            self.deadlines.pop_front();
            if let Some(partial) = self.waiting.remove(&token) {
                return Some(partial);
            }
        }
        None
    }
}

/// The connection has no header, and no longer a chance of one.
#[derive(Clone, Copy, Debug)]
struct NoHeader;

impl Partial {
    /// Takes what has arrived of the header; `None` if there is more to come.
    fn read(&mut self) -> std::result::Result<Option<Header>, NoHeader> {
        let mut room = [0; HEADER_BYTES_MAX];
        loop {
            let before = self.bytes.len();
            room[..before].copy_from_slice(&self.bytes);
            let count = match self.receive(&mut room[before..], MsgFlags::MSG_PEEK) {
                Ok(0) => return Err(NoHeader),
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(_) => return Err(NoHeader),
            };
            let (header, length) = match parse(&room[..before + count]) {
                Ok(Some((header, length))) => (Some(header), length),
                Ok(None) => (None, before + count),
                Err(_) => return Err(NoHeader),
            };
            // The same bytes again: nothing else reads from this socket.
            let taken = self.receive(&mut room[before..length], MsgFlags::empty());
            if taken != Ok(length - before) {
                return Err(NoHeader);
            }
            if header.is_some() {
                return Ok(header);
            }
            self.bytes = room[..length].to_vec();
        }
    }

    fn receive(&self, room: &mut [u8], how: MsgFlags) -> nix::Result<usize> {
        let socket = self.connection.as_fd();
        recv(socket.as_raw_fd(), room, how | MsgFlags::MSG_DONTWAIT)
    }
}
