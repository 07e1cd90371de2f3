//! Shared by the control plane and all handles of a worker.

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::process::{ChildStderr, ChildStdin, ChildStdout};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use super::{Bus, ControlHandle, WorkerCounts};
use crate::dialect::MessageChannel;
use crate::id::WorkerId;
use crate::protocol::scoreboard::{Counters, PageView};
use crate::sys::process::{Ending, Remote};

/// A worker.
#[derive(Debug)]
pub(crate) struct WorkerState {
    pub(crate) id: WorkerId,
    pub(crate) pid: u32,
    pub(crate) cpu: Option<usize>,
    pub(crate) instance: Option<u16>,
    pub(crate) remote: Remote,
    /// How messages of the program reach it.
    pub(crate) messages: MessageChannel,
    pub(crate) life: Mutex<LifeState>,
    pub(crate) streams: Mutex<Streams>,
    pub(crate) control: ControlHandle,
    pub(crate) bus: Arc<Bus>,
    /// Its counters, in the page that it shares with the primary.
    pub(crate) view: PageView,
    /// Its counts when it ended.
    pub(crate) last_counts: OnceLock<WorkerCounts>,
}

/// Whether a worker is connected, runs, and leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LifeState {
    pub(crate) connected: bool,
    pub(crate) ending: Option<Ending>,
    /// Whether it leaves because it was asked to, or asked to itself. Known at the latest when it
    /// has left.
    pub(crate) voluntary: Option<bool>,
}

/// The primary's ends of a worker's pipes.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    pub(crate) input: Option<ChildStdin>,
    pub(crate) output: Option<ChildStdout>,
    pub(crate) errors: Option<ChildStderr>,
    pub(crate) further: BTreeMap<RawFd, UnixStream>,
}

impl WorkerState {
    pub(crate) fn life(&self) -> MutexGuard<'_, LifeState> {
        self.life.lock().expect("nothing panics while it holds a worker's state")
    }

    /// The counters in its page.
    pub(crate) fn counters(&self) -> Counters {
        self.view.counters()
    }

    pub(super) fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().expect("nothing panics while it holds a worker's streams")
    }
}
