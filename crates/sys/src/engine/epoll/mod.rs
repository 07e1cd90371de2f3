//! The engine for machines without io_uring: epoll and ordinary system calls.
//!
//! Owns the epoll set, the armed operations, and events that have not been fetched. An operation is
//! attempted when requested, and readiness is awaited only if it would block. Connections are
//! edge-triggered and are registered once, when a receive finds nothing, so that a connection whose
//! request arrives with it is never registered. Rarer descriptors are level-triggered or one-shot.

mod accept;
mod inbox;
mod stream;

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::event::{EngineEvent, Key};
use super::message::OutgoingMessage;
use crate::clock::monotonic_ns;
use crate::error::{Error, Result, errno_of};
use accept::Accept;
use inbox::Inbox;
use stream::{Pool, Stream};

/// Maximum number of ready descriptors fetched per call.
const READY_MAX: usize = 256;
/// Maximum number of consecutive turns served from past events before the kernel is asked again.
const TURNS_AHEAD_MAX: u32 = 3;

/// The kind of a ready descriptor, as stored in its epoll data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum ReadyKind {
    Stream = 1,
    Accept = 2,
    Inbox = 3,
    Poll = 4,
    Alarm = 5,
}

/// The engine.
#[derive(Debug)]
pub struct EpollEngine {
    set: Epoll,
    ready: Box<[EpollEvent]>,
    streams: Vec<Stream>,
    pool: Pool,
    /// Streams that can be received from at once, of which epoll will report nothing more.
    eager: VecDeque<Key>,
    accepts: Vec<Accept>,
    /// Some accepts do not know their limit yet.
    unentered: bool,
    inbox: Inbox,
    /// Events that end a wait, in order.
    happened: Vec<EngineEvent>,
    /// Events of sent messages, which do not end a wait.
    gone: Vec<EngineEvent>,
    turns_ahead: u32,
    timer: TimerFd,
    /// Expiry of the timer, if it is set.
    alarm_ns: Option<u64>,
}

impl EpollEngine {
    /// # Errors
    /// Descriptors are exhausted.
    pub(super) fn new() -> Result<Self> {
        let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(|errno| Error::system("create an epoll set", errno))?;
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let failed = |errno| Error::system("create a timer (timerfd)", errno);
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map_err(failed)?;
        // Setting the timer again clears it, so it is never read.
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        let alarm = EpollEvent::new(edge, Key::default().pack(ReadyKind::Alarm as u8));
        set.add(&timer, alarm).map_err(failed)?;
        Ok(Self {
            set,
            ready: vec![EpollEvent::empty(); READY_MAX].into(),
            streams: Vec::new(),
            pool: Pool::default(),
            eager: VecDeque::new(),
            accepts: Vec::new(),
            unentered: false,
            inbox: Inbox::default(),
            happened: Vec::new(),
            gone: Vec::new(),
            turns_ahead: 0,
            timer,
            alarm_ns: None,
        })
    }

    pub(super) fn notifier(&self) -> Result<OwnedFd> {
        let failed = |error| Error::system("duplicate an epoll set", errno_of(&error));
        self.set.0.as_fd().try_clone_to_owned().map_err(failed)
    }

    pub(super) fn wait(
        &mut self,
        events: &mut Vec<EngineEvent>,
        deadline_ns: Option<u64>,
    ) -> Result<()> {
        self.enter(events, |engine| match deadline_ns {
            None => Ok(EpollTimeout::NONE),
            Some(deadline_ns) if deadline_ns <= monotonic_ns() => Ok(EpollTimeout::ZERO),
            Some(deadline_ns) => engine.set_alarm(deadline_ns).map(|()| EpollTimeout::NONE),
        })
    }

    pub(super) fn turn(&mut self, events: &mut Vec<EngineEvent>) -> Result<()> {
        self.enter(events, |_| Ok(EpollTimeout::ZERO))
    }

    pub(super) fn submit(&mut self) {
        if std::mem::take(&mut self.unentered) {
            self.accepts.iter_mut().for_each(Accept::note_limit);
        }
    }

    /// Returns the events so far and asks the kernel for more. Without events it waits as long as
    /// `patience` says.
    fn enter(
        &mut self,
        events: &mut Vec<EngineEvent>,
        patience: impl FnOnce(&mut Self) -> Result<EpollTimeout>,
    ) -> Result<()> {
        self.submit();
        self.receive_eagerly();
        let idle = self.happened.is_empty() && self.eager.is_empty();
        self.hand_over(events);
        if !idle && self.turns_ahead < TURNS_AHEAD_MAX {
            self.turns_ahead += 1;
            return Ok(());
        }
        self.turns_ahead = 0;
        let timeout = if idle { patience(self)? } else { EpollTimeout::ZERO };
        let count = match self.set.wait(&mut self.ready, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(Error::system("wait at the epoll set", errno)),
        };
        for place in 0..count {
            let ready = self.ready[place];
            self.on_ready(ready.data(), ready.events());
        }
        self.hand_over(events);
        Ok(())
    }

    fn hand_over(&mut self, events: &mut Vec<EngineEvent>) {
        events.append(&mut self.happened);
        events.append(&mut self.gone);
    }

    fn on_ready(&mut self, packed: u64, flags: EpollFlags) {
        let (kind, key) = Key::unpack(packed);
        match kind {
            kind if kind == ReadyKind::Stream as u8 => self.on_stream_ready(key, flags),
            kind if kind == ReadyKind::Accept as u8 => self.on_accept_ready(key),
            kind if kind == ReadyKind::Inbox as u8 => self.on_inbox_ready(),
            kind if kind == ReadyKind::Poll as u8 => {
                self.happened.push(EngineEvent::Ready { key, outcome: Ok(()) });
            }
            _ => self.alarm_ns = None,
        }
    }

    /// Makes waits end at `deadline_ns` or earlier. An earlier alarm stays: the caller checks the
    /// clock and waits again. Under load deadlines only move later, and the timer is not touched.
    fn set_alarm(&mut self, deadline_ns: u64) -> Result<()> {
        if self.alarm_ns.is_some_and(|armed_ns| armed_ns <= deadline_ns) {
            return Ok(());
        }
        let time = Duration::from_nanos(deadline_ns).into();
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME;
        let failed = |errno| Error::system("set a timer (timerfd)", errno);
        self.timer.set(Expiration::OneShot(time), flags).map_err(failed)?;
        self.alarm_ns = Some(deadline_ns);
        Ok(())
    }

    pub(super) fn send_message(
        &mut self,
        key: Key,
        socket: BorrowedFd<'_>,
        mut message: Box<OutgoingMessage>,
    ) {
        // The channel holds references to the message's descriptors: while a copy is open here, the
        // worker cannot close its connection.
        let outcome = message.send(socket);
        let answers = if outcome.is_ok() { &mut self.gone } else { &mut self.happened };
        answers.push(EngineEvent::MessageSent { key, message, outcome });
    }

    pub(super) fn remark(&mut self, socket: BorrowedFd<'_>, remark: &'static [u8]) {
        // Best effort; the result does not matter.
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let _ = send(socket.as_raw_fd(), remark, flags);
    }

    pub(super) fn poll_readable(&mut self, key: Key, descriptor: BorrowedFd<'_>) {
        self.poll(key, descriptor, EpollFlags::EPOLLIN);
    }

    pub(super) fn poll_writable(&mut self, key: Key, descriptor: BorrowedFd<'_>) {
        self.poll(key, descriptor, EpollFlags::EPOLLOUT);
    }

    pub(super) fn cancel_poll(&mut self, descriptor: BorrowedFd<'_>) {
        // It is not there if it was never asked for.
        let _ = self.set.delete(descriptor);
    }

    /// Once, and again after the next request: the kernel looks at the descriptor anew then.
    fn poll(&mut self, key: Key, descriptor: BorrowedFd<'_>, flags: EpollFlags) {
        let flags = flags | EpollFlags::EPOLLONESHOT;
        let mut event = EpollEvent::new(flags, key.pack(ReadyKind::Poll as u8));
        let asked = match self.set.modify(descriptor, &mut event) {
            Err(Errno::ENOENT) => self.set.add(descriptor, event),
            asked => asked,
        };
        if let Err(errno) = asked {
            self.happened.push(EngineEvent::Ready { key, outcome: Err(errno) });
        }
    }
}
