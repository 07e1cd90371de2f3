//! How the control plane, the bridge and the data path reach each other.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use super::messages::{BridgeRequest, Notice};
use super::notices::Notices;
use crate::data_path::Command;
use crate::sys::waker::Waker;

/// The queues and wakers between bridge, control plane and data path.
#[derive(Debug)]
pub struct Endpoints {
    /// Requests to the bridge; wake it after sending.
    pub requests: Receiver<BridgeRequest>,
    /// Wakes the bridge after a request, and when notices have room again.
    pub request_waker: Arc<Waker>,
    /// Notices to the control plane. They wake it, and wake the bridge when there is room again.
    pub notices: Arc<Notices>,
    /// Commands to the data path.
    pub commands: Sender<Command>,
    /// Wakes the data path: after a command, and on behalf of workers that were asked to.
    pub command_waker: Arc<Waker>,
}

impl Endpoints {
    pub(super) fn notify(&self, notice: Notice) {
        self.notices.push(notice);
    }

    pub(super) fn command(&self, command: Command) {
        // Fails only if the data path has ended, in which case the process is ending.
        let _ = self.commands.send(command);
        self.wake_data_path();
    }

    pub(super) fn wake_data_path(&self) {
        self.command_waker.wake();
    }
}
