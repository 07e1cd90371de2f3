//! The protocols between workers and their primary, one folder per dialect.
//!
//! Owns what depends on a worker's dialect: what it inherits, its variables, its state, and how
//! messages reach it. Processes, listeners and events belong to the control plane, which asks here
//! instead of comparing dialects.

pub(crate) mod listen_fds;
pub(crate) mod native;
pub mod node;

use std::ffi::OsString;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use serde::Serialize;

use crate::data_path::NewLink;
use crate::error::Result;
use crate::id::WorkerId;
use crate::protocol::scoreboard::PrimaryPage;
use crate::settings::ClusterSettings;
use crate::sys::waker::Waker;
use node::bridge::UserMessageOut;

/// A worker that is about to be started.
#[derive(Debug)]
pub(crate) enum WorkerStart<'a> {
    Native(native::Start),
    ListenFds(listen_fds::Start),
    Node(node::Start<'a>),
}

/// A worker that runs.
#[derive(Debug)]
pub(crate) enum WorkerDialect {
    Native(native::State),
    ListenFds(listen_fds::State),
    Node(node::State),
}

/// How messages of the primary's program reach a worker.
#[derive(Debug)]
pub(crate) enum MessageChannel {
    Native(native::MessageChannel),
    ListenFds,
    Node(node::MessageChannel),
}

/// What a message needs after it was sent.
#[derive(Debug)]
pub(crate) enum Sent {
    /// Nothing.
    Complete,
    /// The control plane must flush the channel when it has room.
    Waiting,
    /// The control plane must pass it to the bridge.
    ToBridge(UserMessageOut),
}

/// What every dialect needs to start a worker.
#[derive(Debug)]
pub(crate) struct Spawn<'a> {
    pub(crate) id: WorkerId,
    pub(crate) settings: &'a ClusterSettings,
    /// The CPU that it is pinned to.
    pub(crate) cpu: Option<usize>,
    pub(crate) inspect_port: Option<u16>,
}

/// The descriptors that a worker may inherit.
#[derive(Debug)]
pub(crate) struct Descriptors<'a> {
    /// Its end of the channel.
    pub(crate) control: &'a OwnedFd,
    pub(crate) page: &'a PrimaryPage,
    pub(crate) waker: &'a Waker,
    /// The receiving end of its inbox.
    pub(crate) inbox: Option<&'a OwnedFd>,
}

/// A descriptor and the variable with its number.
pub(crate) type Named<T> = (&'static str, T);

impl WorkerStart<'_> {
    /// Whether the data path has a link to the worker, with an inbox. The bridge holds a Node
    /// worker's, and the end of that inbox tells it that nothing more will come, even if the
    /// primary hands nothing over. That of a worker that inherits its sockets stays empty.
    pub(crate) fn has_inbox(&self, has_data_path: bool, hands_over: bool) -> bool {
        match self {
            Self::Native(_) => has_data_path && hands_over,
            Self::ListenFds(_) => has_data_path,
            Self::Node(_) => true,
        }
    }

    /// Whether the worker pins itself to a CPU.
    pub(crate) fn is_pinned(&self) -> bool {
        matches!(self, Self::Native(_))
    }

    /// Whether the worker writes its own counters. The bridge writes those of a Node worker.
    pub(crate) fn is_native(&self) -> bool {
        !matches!(self, Self::Node(_))
    }

    /// Whether the worker notices the end of its primary by its channel.
    pub(crate) fn has_channel(&self) -> bool {
        !matches!(self, Self::ListenFds(_))
    }

    /// The descriptors that it inherits under numbers that the primary chooses.
    pub(crate) fn inherited<'b>(
        &'b self,
        descriptors: &Descriptors<'b>,
    ) -> Vec<Named<BorrowedFd<'b>>> {
        match self {
            Self::Native(_) => native::inherited(descriptors),
            Self::ListenFds(_) => Vec::new(),
            Self::Node(start) => start.inherited(descriptors),
        }
    }

    /// The descriptors that it inherits under fixed numbers.
    pub(crate) fn take_placed(&mut self) -> Vec<(RawFd, OwnedFd)> {
        match self {
            Self::ListenFds(start) => start.take_sockets(),
            Self::Native(_) | Self::Node(_) => Vec::new(),
        }
    }

    /// The variable that gets the process id of the worker.
    pub(crate) fn id_variable(&self) -> Option<&'static str> {
        matches!(self, Self::ListenFds(_)).then_some(listen_fds::ID_VARIABLE)
    }

    /// Options after those of the settings and before the program.
    pub(crate) fn options(&self, spawn: &Spawn<'_>) -> Vec<OsString> {
        match self {
            Self::Node(_) => node::options(spawn),
            Self::Native(_) | Self::ListenFds(_) => Vec::new(),
        }
    }

    /// Adds this dialect's variables to those that every worker gets.
    pub(crate) fn add_variables(
        &self,
        spawn: &Spawn<'_>,
        inherited: &[Named<OwnedFd>],
        variables: &mut Vec<(OsString, OsString)>,
    ) {
        match self {
            Self::Native(start) => start.add_variables(spawn, inherited, variables),
            Self::ListenFds(start) => start.add_variables(variables),
            Self::Node(start) => start.add_variables(spawn, inherited, variables),
        }
    }

    /// The state of the worker once it runs. `control` is the primary's end of its channel.
    ///
    /// # Errors
    /// Descriptors are exhausted.
    pub(crate) fn into_state(
        self,
        settings: &ClusterSettings,
        control: OwnedFd,
        link: Option<&NewLink>,
    ) -> Result<(WorkerDialect, MessageChannel)> {
        match self {
            Self::Native(_) => {
                let (state, channel) = native::split(control, settings.serialization);
                Ok((WorkerDialect::Native(state), MessageChannel::Native(channel)))
            }
            Self::ListenFds(start) => {
                let state = start.into_state(settings.readiness);
                Ok((WorkerDialect::ListenFds(state), MessageChannel::ListenFds))
            }
            Self::Node(_) => {
                let link = link.expect("a Node worker always has an inbox");
                let (state, channel) = node::split(settings, control, link)?;
                Ok((WorkerDialect::Node(state), MessageChannel::Node(channel)))
            }
        }
    }
}

impl WorkerDialect {
    /// Closes the primary's end of the channel, where the control plane has it.
    pub(crate) fn close(&self) {
        if let Self::Native(native) = self {
            native.close();
        }
    }

    /// Whether the worker has a channel.
    pub(crate) fn has_channel(&self) -> bool {
        !matches!(self, Self::ListenFds(_))
    }

    /// Whether the bridge has the worker's channel.
    pub(crate) fn is_bridged(&self) -> bool {
        matches!(self, Self::Node(_))
    }

    /// Whether a worker that should leave needs a signal. One without a channel understands nothing
    /// else; a Node worker that has disconnected on its own may not be about to exit.
    pub(crate) fn leaves_by_signal(&self, connected: bool, is_first_request: bool) -> bool {
        match self {
            Self::Native(_) => false,
            Self::ListenFds(_) => true,
            Self::Node(_) => !connected && is_first_request,
        }
    }
}

impl MessageChannel {
    /// Sends a message with at most one descriptor, or the part of it that there is room for.
    ///
    /// # Errors
    /// As of [`WorkerHandle::send`](crate::WorkerHandle::send).
    pub(crate) fn send<T: Serialize + ?Sized>(
        &self,
        message: &T,
        descriptor: Option<OwnedFd>,
        is_connected: bool,
    ) -> Result<Sent> {
        match self {
            Self::Native(channel) => channel.send(message, descriptor),
            Self::ListenFds => Err(listen_fds::has_no_channel()),
            Self::Node(channel) => channel.send(message, descriptor, is_connected),
        }
    }

    /// Sends a payload in V8's format, which only Node workers understand.
    pub(crate) fn send_v8(&self, payload: &[u8], is_connected: bool) -> Result<Sent> {
        match self {
            Self::Node(channel) => channel.send_v8(payload, is_connected),
            Self::Native(_) | Self::ListenFds => Err(node::reads_no_v8()),
        }
    }
}
