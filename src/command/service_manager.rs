//! What a service manager is told of the run (`sd_notify(3)`): ready, reloading, stopping.
//!
//! Owns the words and when they are due. A manager that does not read holds nothing up.

use super::event::Event;
use clusterlb_sys::clock::monotonic_ns;
use clusterlb_sys::notify::ManagerSocket;

/// The service manager, if it has started this process and wants to know.
#[derive(Debug)]
pub(super) struct ServiceManager {
    socket: Option<ManagerSocket>,
    /// Listeners that are not served yet.
    listeners_left: usize,
}

impl ServiceManager {
    /// The one that `NOTIFY_SOCKET` names, for a run with this many listeners. A program that
    /// listens itself is ready with its first.
    pub(super) fn from_environment(listeners: usize) -> Self {
        Self { socket: ManagerSocket::from_environment(), listeners_left: listeners.max(1) }
    }

    /// Passes on what concerns it.
    pub(super) fn on_event(&mut self, event: &Event) {
        let Some(socket) = &self.socket else { return };
        let text = match event {
            Event::Listening { address, workers, .. } if self.listeners_left > 0 => {
                self.listeners_left -= 1;
                if self.listeners_left > 0 {
                    return;
                }
                format!("READY=1\nSTATUS={workers} workers serve {address}")
            }
            Event::Reloading { .. } => {
                let now_us = monotonic_ns() / 1000;
                format!("RELOADING=1\nMONOTONIC_USEC={now_us}\nSTATUS=replacing workers")
            }
            Event::Reloaded => "READY=1\nSTATUS=all workers are replaced".to_owned(),
            Event::Draining { reason, .. } => format!("STOPPING=1\nSTATUS=draining ({reason})"),
            _ => return,
        };
        socket.send(&text);
    }
}
