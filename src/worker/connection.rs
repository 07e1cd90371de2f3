//! One connection of a worker: its socket, its session, and what is under way for it.

use std::os::fd::OwnedFd;

use crate::handler::{Next, Session};

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    pub(super) generation: u32,
    pub(super) session: Session,
    /// Received and not yet consumed.
    pub(super) input: Vec<u8>,
    /// Produced and not yet handed to the kernel.
    pub(super) output: Vec<u8>,
    /// How much of the buffer under way has gone, while `sending`.
    pub(super) sent: usize,
    pub(super) next: Next,
    pub(super) stage: Stage,
    pub(super) receive: Receive,
    pub(super) sending: bool,
    /// The client has half-closed.
    pub(super) ended: bool,
    pub(super) lingered: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Open,
    /// Answered and half-closed by us; the rest of the input is read away.
    Lingering,
    /// Only waiting for the last completions.
    Closing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receive {
    Off,
    Once,
    Many,
    /// Armed, but told to stop because too much input waits.
    Stopping,
}
