//! One connection of a worker: its socket, its session, and its operations in progress.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{Shutdown, shutdown};
use slab::Slab;

use crate::command::handler::{Next, Session, Waiting};
use clusterlb::ListenerId;
use clusterlb_sys::engine::Key;
use clusterlb_sys::peer;

#[derive(Debug)]
pub(super) struct Connection {
    /// `None` once the engine has it, to close it after the last answer.
    pub(super) socket: Option<OwnedFd>,
    pub(super) listener: ListenerId,
    pub(super) generation: u32,
    pub(super) session: Session,
    /// Received, not yet consumed.
    pub(super) input: Vec<u8>,
    /// Produced, not yet handed to the kernel.
    pub(super) output: Vec<u8>,
    /// Bytes sent of the buffer in progress, while `sending`.
    pub(super) sent: usize,
    pub(super) next: Next,
    pub(super) stage: ConnectionStage,
    pub(super) receive: Receive,
    /// The last piece had the full length, so there may be more.
    pub(super) fills: bool,
    pub(super) sending: bool,
    /// Memory of the buffer in progress.
    pub(super) sending_bytes: usize,
    /// Memory held at the last accounting.
    pub(super) held_bytes: usize,
    /// The client half-closed.
    pub(super) ended: bool,
    /// Its header of the PROXY protocol has not arrived.
    pub(super) awaits_header: bool,
    pub(super) lingered: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionStage {
    Open,
    /// Answered and half-closed by us; the rest of the input is discarded.
    Lingering,
    /// Waits only for the last completions.
    Closing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receive {
    Off,
    Once,
    Many,
    /// Armed but cancelled, because too much input waits.
    Stopping,
}

impl Connection {
    /// Memory it holds. A closing connection frees its own soon.
    pub(super) fn bytes(&self) -> usize {
        match self.stage {
            ConnectionStage::Closing => 0,
            _ => self.input.capacity() + self.output.capacity() + self.sending_bytes,
        }
    }

    /// Between two requests, with nothing in progress.
    pub(super) fn is_idle(&self) -> bool {
        let busy = self.sending || self.stage != ConnectionStage::Open || !self.input.is_empty();
        !busy && self.session.waiting() == Waiting::NextRequest
    }

    /// Half or whole. It is a system call: as an operation of the ring it would start a kernel
    /// thread. It fails harmlessly if the client is gone.
    pub(super) fn shut_down(&self, how: Shutdown) {
        if let Some(socket) = &self.socket {
            let _ = shutdown(socket.as_raw_fd(), how);
        }
    }

    /// Makes the next close a reset.
    pub(super) fn reset_on_close(&self) {
        if let Some(socket) = &self.socket {
            peer::reset_on_close(socket);
        }
    }
}

/// The connection for `key`, unless another one has its place by now.
pub(super) fn current(table: &mut Slab<Connection>, key: Key) -> Option<&mut Connection> {
    table.get_mut(key.index as usize).filter(|connection| connection.generation == key.generation)
}
