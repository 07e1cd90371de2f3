//! One worker as the supervisor holds it: process, control channel, counters.
//!
//! Owns starting it with everything it inherits. Refuses to decide when to start or end one.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use nix::sys::eventfd::EventFd;

use crate::board::{BoardView, PrimaryBoard};
use crate::control::{Channel, LatencySummary};
use crate::error::Result;
use crate::id::{Slot, WorkerId};
use crate::primary::{CHANNEL_BYTES, NewLink};
use crate::sys::clock::monotonic_ns;
use crate::sys::fdpass;
use crate::sys::process::{Launch, WorkerProcess};
use crate::worker::environment;

/// The running program itself, even when its file has been replaced or removed meanwhile.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// A worker.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) id: WorkerId,
    pub(super) slot: Slot,
    pub(super) cpu: Option<usize>,
    pub(super) process: WorkerProcess,
    pub(super) channel: Channel,
    pub(super) view: BoardView,
    pub(super) born_ns: u64,
    /// It has said hello.
    pub(super) online: bool,
    /// It serves every address it wants to.
    pub(super) ready: bool,
    /// It has been told to leave, or has said that it does.
    pub(super) leaving: bool,
    /// It has been killed by us.
    pub(super) killed: bool,
    /// Since when it has hung.
    pub(super) hung_since_ns: Option<u64>,
    /// From its last words.
    pub(super) handoff: Option<LatencySummary>,
    /// What the data path will get once the worker is ready.
    pub(super) link: Option<NewLink>,
}

/// What a worker is started with.
#[derive(Debug)]
pub(super) struct Birth<'a> {
    pub(super) id: WorkerId,
    pub(super) slot: Slot,
    pub(super) cpu: Option<usize>,
    /// The primary hands connections over.
    pub(super) has_inbox: bool,
    /// What the worker rings.
    pub(super) bell: &'a EventFd,
}

impl Member {
    /// Starts this very program again, as a worker.
    ///
    /// # Errors
    /// Too few descriptors, processes or memory.
    pub(super) fn start(birth: Birth<'_>) -> Result<Self> {
        let board = PrimaryBoard::create()?;
        let view = board.view()?;
        let (control, worker_control) = fdpass::stream_pair()?;
        let inbox = if birth.has_inbox { Some(fdpass::packet_pair()?) } else { None };
        let mut environment = vec![
            (environment::ID, birth.id.0.to_string()),
            (environment::CONTROL, worker_control.as_raw_fd().to_string()),
            (environment::BOARD, board.as_fd().as_raw_fd().to_string()),
            (environment::BELL, birth.bell.as_fd().as_raw_fd().to_string()),
        ];
        let mut inherited = vec![worker_control.as_fd(), board.as_fd(), birth.bell.as_fd()];
        if let Some((sender, receiver)) = &inbox {
            fdpass::bound_send_buffer(sender.as_fd(), CHANNEL_BYTES)?;
            environment.push((environment::INBOX, receiver.as_raw_fd().to_string()));
            inherited.push(receiver.as_fd());
        }
        if let Some(cpu) = birth.cpu {
            environment.push((environment::CPU, cpu.to_string()));
        }
        let mut arguments = std::env::args_os();
        let launch = Launch {
            program: PathBuf::from(OWN_PROGRAM),
            name: arguments.next().unwrap_or_else(|| OsString::from("clusterlb")),
            arguments: arguments.collect(),
            environment: environment
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            inherited,
        };
        let process = launch.start()?;
        let link = inbox.map(|(sender, receiver)| NewLink { sender, receiver, board });
        Ok(Self {
            id: birth.id,
            slot: birth.slot,
            cpu: birth.cpu,
            process,
            channel: Channel::new(control),
            view,
            born_ns: monotonic_ns(),
            online: false,
            ready: false,
            leaving: false,
            killed: false,
            hung_since_ns: None,
            handoff: None,
            link,
        })
    }
}
