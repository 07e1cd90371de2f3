//! Workers that speak this project's own protocol (`docs/PROTOCOL.md`).
//!
//! Owns what such a worker inherits, and the primary's end of its channel.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use serde::Serialize;

use super::{Descriptors, Named, Sent, Spawn};
use crate::error::Result;
use crate::protocol::control::{Flushed, Incoming, Outgoing, Serialization, ToWorker, halves};
use crate::protocol::environment;
use crate::sys::engine::EngineKind;

/// A worker that is about to be started.
#[derive(Debug)]
pub(crate) struct Start {
    /// The engine of the run.
    pub(crate) engine: EngineKind,
}

/// A worker that runs.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) incoming: Incoming,
    outgoing: Arc<Mutex<Outgoing>>,
    /// Its channel is read. It is not while a subscriber to its events is too far behind.
    pub(crate) is_read: bool,
    /// Something waits until its channel has room.
    wants_room: bool,
}

/// The sending end of a worker's channel, for its handles.
#[derive(Debug)]
pub(crate) struct MessageChannel {
    outgoing: Arc<Mutex<Outgoing>>,
    serialization: Serialization,
}

/// Splits a channel between the control plane and the worker's handles.
pub(super) fn split(control: OwnedFd, serialization: Serialization) -> (State, MessageChannel) {
    let (incoming, outgoing) = halves(control);
    let outgoing = Arc::new(Mutex::new(outgoing));
    let channel = MessageChannel { outgoing: Arc::clone(&outgoing), serialization };
    (State { incoming, outgoing, is_read: true, wants_room: false }, channel)
}

/// What a worker inherits: the channel, its scoreboard page and waker, and its inbox if it has one.
pub(super) fn inherited<'a>(descriptors: &Descriptors<'a>) -> Vec<Named<BorrowedFd<'a>>> {
    let Descriptors { control, page, waker, inbox } = *descriptors;
    let mut inherited = vec![
        (environment::CONTROL, control.as_fd()),
        (environment::BOARD, page.as_fd()),
        (environment::WAKER, waker.as_fd()),
    ];
    inherited.extend(inbox.map(|inbox| (environment::INBOX, inbox.as_fd())));
    inherited
}

impl Start {
    pub(super) fn add_variables(
        &self,
        spawn: &Spawn<'_>,
        inherited: &[Named<OwnedFd>],
        variables: &mut Vec<(OsString, OsString)>,
    ) {
        let mut add = |name: &str, value: &dyn ToString| {
            variables.push((name.into(), value.to_string().into()));
        };
        add(environment::ID, &spawn.id);
        add(environment::ENGINE, &self.engine);
        add(environment::SERIALIZATION, &spawn.settings.serialization.name());
        for (name, descriptor) in inherited {
            add(name, &descriptor.as_raw_fd());
        }
        if let Some(cpu) = spawn.cpu {
            add(environment::CPU, &cpu);
        }
        if let Some(port) = spawn.inspect_port {
            add(environment::INSPECT_PORT, &port);
        }
    }
}

impl State {
    /// Sends a message of the protocol, or as much of it as there is room for.
    ///
    /// # Errors
    /// The channel is closed, or too much waits in it.
    pub(crate) fn send(&self, message: &ToWorker, descriptors: Vec<OwnedFd>) -> Result<()> {
        locked(&self.outgoing).send(message, descriptors).map(drop)
    }

    /// Sends what waits. A channel whose other end is closed counts as flushed: reading it finds
    /// that out.
    pub(crate) fn flush(&mut self) -> Flushed {
        let flushed = locked(&self.outgoing).flush().unwrap_or(Flushed::Everything);
        self.wants_room = flushed == Flushed::Full;
        flushed
    }

    pub(super) fn close(&self) {
        locked(&self.outgoing).close();
    }

    /// Watches the channel for what is wanted of it now.
    pub(crate) fn watch(&self, epoll: &Epoll, token: u64) {
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, self.is_read);
        flags.set(EpollFlags::EPOLLOUT, self.wants_room);
        // It was added when the worker was started, and is deleted when the channel ends.
        let _ = epoll.modify(&self.incoming, &mut EpollEvent::new(flags, token));
    }
}

impl MessageChannel {
    pub(super) fn send<T: Serialize + ?Sized>(
        &self,
        message: &T,
        descriptor: Option<OwnedFd>,
    ) -> Result<Sent> {
        let bytes = self.serialization.encode(message)?;
        let descriptors = descriptor.into_iter().collect();
        let mut outgoing = locked(&self.outgoing);
        let had_waiting = outgoing.has_waiting();
        let flushed = outgoing.send_message(self.serialization, &bytes, descriptors)?;
        Ok(match flushed {
            // The control plane knows of what waited before.
            _ if had_waiting => Sent::Complete,
            Flushed::Everything => Sent::Complete,
            Flushed::Full | Flushed::Crowded => Sent::Waiting,
        })
    }
}

fn locked(outgoing: &Mutex<Outgoing>) -> MutexGuard<'_, Outgoing> {
    outgoing.lock().expect("nothing panics while it holds a worker's channel")
}
