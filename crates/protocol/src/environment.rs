//! What a worker inherits from the primary: environment variables and open descriptors.
//!
//! Owns the names of the variables for both sides. The built-in worker also has the command line of
//! its primary, so most settings need no variable.

use std::os::fd::{OwnedFd, RawFd};

use crate::control::Serialization;
use crate::error::{Error, Result};
use crate::id::WorkerId;
use crate::sys::engine::EngineKind;
use crate::sys::process;
use crate::sys::waker::Waker;

/// Id of the worker. If it is set, the process is a worker (Node's `NODE_UNIQUE_ID`).
pub const ID: &str = "CLUSTERLB_WORKER_ID";
/// Descriptor number of the control channel.
pub const CONTROL: &str = "CLUSTERLB_CONTROL_FD";
/// Descriptor number of the scoreboard page.
pub const BOARD: &str = "CLUSTERLB_BOARD_FD";
/// Descriptor number of the eventfd that wakes the primary.
pub const WAKER: &str = "CLUSTERLB_BELL_FD";
/// Descriptor number of the inbox; unset when the worker accepts connections itself.
pub const INBOX: &str = "CLUSTERLB_INBOX_FD";
/// The CPU to pin the worker to; unset when it is not pinned.
pub const CPU: &str = "CLUSTERLB_CPU";

/// Where the built-in worker listens, as a JSON array: names are looked up by its primary.
pub const LISTEN: &str = "CLUSTERLB_WORKER_LISTEN";
/// Bytes of locked memory that the built-in worker's ring may take; absent where they do not count.
pub const RING_BYTES: &str = "CLUSTERLB_RING_BYTES";
/// The engine of the whole run, chosen by the primary: `io_uring` or `epoll`.
pub const ENGINE: &str = "CLUSTERLB_WORKER_ENGINE";

/// Serialisation of the program's messages: `json` or `advanced`.
pub const SERIALIZATION: &str = "CLUSTERLB_SERIALIZATION";
/// Port of the debugger; unset unless configured.
pub const INSPECT_PORT: &str = "CLUSTERLB_INSPECT_PORT";

/// Index of the worker's slot, from 0. A replacement worker has the index of its predecessor. Unset
/// for an unsupervised worker.
pub const INSTANCE: &str = "CLUSTERLB_INSTANCE";
/// The same under the name that programs written for pm2 read.
pub const NODE_INSTANCE: &str = "NODE_APP_INSTANCE";

/// Everything a worker inherits.
#[derive(Debug)]
pub struct Inheritance {
    /// Its id.
    pub id: WorkerId,
    /// Its control channel.
    pub control: OwnedFd,
    /// Its scoreboard page.
    pub page: OwnedFd,
    /// Wakes the primary.
    pub waker: Waker,
    /// Its inbox, if the primary hands over connections.
    pub inbox: Option<OwnedFd>,
    /// The CPU to pin to.
    pub cpu: Option<usize>,
    /// Bytes of locked memory that its ring may take, if that is bounded.
    pub ring_bytes: Option<u64>,
    /// The engine of the run; io_uring, unless the primary says otherwise.
    pub engine: EngineKind,
    /// Serialisation of the program's messages.
    pub serialization: Serialization,
}

/// Whether this process was started as a worker.
#[must_use]
pub fn is_worker() -> bool {
    std::env::var_os(ID).is_some()
}

impl Inheritance {
    /// Takes ownership of the inherited descriptors. Works once per process.
    ///
    /// # Errors
    /// A variable is missing or does not name an inherited descriptor: the process was not started
    /// by a primary.
    pub fn take() -> Result<Self> {
        Ok(Self {
            id: WorkerId::new(number(ID)?.ok_or_else(|| missing(ID))?),
            control: descriptor(CONTROL)?.ok_or_else(|| missing(CONTROL))?,
            page: descriptor(BOARD)?.ok_or_else(|| missing(BOARD))?,
            waker: descriptor(WAKER)?.map(Waker::inherited).ok_or_else(|| missing(WAKER))?,
            inbox: descriptor(INBOX)?,
            cpu: number(CPU)?,
            ring_bytes: ring_bytes()?,
            engine: std::env::var(ENGINE)
                .ok()
                .and_then(|name| EngineKind::from_name(&name))
                .unwrap_or(EngineKind::IoUring),
            serialization: std::env::var(SERIALIZATION)
                .ok()
                .and_then(|name| Serialization::from_name(&name))
                .unwrap_or_default(),
        })
    }
}

/// Bytes of locked memory that this worker's ring may take, if that is bounded.
///
/// # Errors
/// The variable is not a number.
pub fn ring_bytes() -> Result<Option<u64>> {
    number(RING_BYTES)
}

fn number<N: std::str::FromStr>(name: &str) -> Result<Option<N>> {
    let Ok(text) = std::env::var(name) else {
        return Ok(None);
    };
    text.parse().map(Some).map_err(|_| {
        Error::usage(
            format!("{name}={text} is not a number"),
            "workers are started by their primary; unset the variable to start a primary",
        )
    })
}

fn descriptor(name: &str) -> Result<Option<OwnedFd>> {
    let number: Option<RawFd> = number(name)?;
    number.map(|number| process::inherited(number, name)).transpose()
}

fn missing(name: &str) -> Error {
    Error::usage(
        format!("{name} is missing from the environment of a worker"),
        format!("workers are started by their primary; unset {ID} to start a primary"),
    )
}
