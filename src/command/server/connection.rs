//! One connection of a worker: its socket, its session, and what is under way for it.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{Shutdown, shutdown};
use slab::Slab;

use crate::command::server::handler::{Next, Session, Waiting};
use clusterlb_sys::engine::Key;
use clusterlb_sys::peer;

#[derive(Debug)]
pub(super) struct Connection {
    /// The engine has it once it was told to close it behind the last answer.
    pub(super) socket: Option<OwnedFd>,
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
    /// A piece that came was as long as one can be, so there may have been more.
    pub(super) fills: bool,
    pub(super) sending: bool,
    /// Memory of what is being sent.
    pub(super) sending_bytes: usize,
    /// What it held when that was last looked at.
    pub(super) held_bytes: usize,
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

impl Connection {
    /// Memory that it holds. One that is closing gives it back soon.
    pub(super) fn bytes(&self) -> usize {
        match self.stage {
            Stage::Closing => 0,
            _ => self.input.capacity() + self.output.capacity() + self.sending_bytes,
        }
    }

    /// Between two requests, with nothing under way.
    pub(super) fn is_idle(&self) -> bool {
        let busy = self.sending || self.stage != Stage::Open || !self.input.is_empty();
        !busy && self.session.waiting() == Waiting::NextRequest
    }

    /// Half or whole. A call of its own: as an operation of the ring it would start a kernel
    /// thread. It fails harmlessly if the client is gone.
    pub(super) fn shut_down(&self, how: Shutdown) {
        if let Some(socket) = &self.socket {
            let _ = shutdown(socket.as_raw_fd(), how);
        }
    }

    /// Makes the coming close a reset.
    pub(super) fn reset_on_close(&self) {
        if let Some(socket) = &self.socket {
            peer::reset_on_close(socket);
        }
    }
}

/// The connection that `key` means, unless its place has another tenant by now.
pub(super) fn current(table: &mut Slab<Connection>, key: Key) -> Option<&mut Connection> {
    table.get_mut(key.index as usize).filter(|connection| connection.generation == key.generation)
}
