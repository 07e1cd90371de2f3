//! A worker's side of the control channel: says hello, requests its addresses, receives orders.
//!
//! Owns the conversation. The loop carries the orders out.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use clusterlb::protocol::control::{Channel, LatencySummary, ListenOptions, ToPrimary, ToWorker};
use clusterlb::protocol::worker_end::{Conversation, FromPrimary, Grant};
use clusterlb::{ListenAddress, ListenerId, Result};

/// An order of the primary, or the effect of its end.
#[derive(Debug)]
pub(crate) enum PrimaryRequest {
    /// Accept from this socket.
    Accept {
        /// The listener.
        listener: ListenerId,
        /// The listening socket.
        socket: OwnedFd,
        /// Its address.
        address: String,
    },
    /// Connections of this listener begin with a header of the PROXY protocol.
    ExpectHeaders {
        /// The listener.
        listener: ListenerId,
    },
    /// All addresses are known: begin, then report that the worker is ready.
    Begin,
    /// Take no new connections, finish the open ones.
    Leave {
        /// Cut open connections after this time; without one, after the worker's own.
        grace: Option<Duration>,
    },
}

/// The conversation.
#[derive(Debug)]
pub(crate) struct ControlClient {
    channel: Channel,
    conversation: Conversation,
    /// Granted, not yet served.
    listeners: Vec<ListenerId>,
}

impl ControlClient {
    /// Says hello and requests every address, as a Node worker does when it listens.
    pub(crate) fn open(socket: OwnedFd, addresses: &[ListenAddress]) -> Result<Self> {
        let mut channel = Channel::new(socket);
        let mut conversation = Conversation::default();
        channel.send(&Conversation::hello(), vec![])?;
        for address in addresses {
            let (_, message) = conversation.ask(&address.to_string(), ListenOptions::default());
            channel.send(&message, vec![])?;
        }
        Ok(Self { channel, conversation, listeners: Vec::new() })
    }

    /// Whether the primary is gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.channel.is_closed()
    }

    /// The primary's orders since the last call.
    ///
    /// # Errors
    /// An address cannot be served, or the primary violates the format.
    pub(crate) fn receive(&mut self) -> Result<Vec<PrimaryRequest>> {
        let mut orders = Vec::new();
        for (message, descriptors) in self.channel.receive::<ToWorker>()? {
            match self.conversation.on_message(message, descriptors) {
                FromPrimary::Answer { grant, .. } => {
                    let Grant { listener, address, socket, proxy_protocol } = grant?;
                    self.listeners.push(listener);
                    if proxy_protocol {
                        orders.push(PrimaryRequest::ExpectHeaders { listener });
                    }
                    let accept =
                        socket.map(|socket| PrimaryRequest::Accept { listener, socket, address });
                    orders.extend(accept);
                    if !self.conversation.is_waiting() {
                        orders.push(PrimaryRequest::Begin);
                    }
                }
                // This worker closes listeners only when it leaves.
                FromPrimary::Closed { .. } => {}
                FromPrimary::Leave { grace } => orders.push(PrimaryRequest::Leave { grace }),
            }
        }
        if self.channel.is_closed() {
            // Without the primary nothing can replace this worker, so it finishes open connections,
            // as after a request to leave.
            orders.push(PrimaryRequest::Leave { grace: None });
        } else {
            self.channel.flush()?;
        }
        Ok(orders)
    }

    /// Reports that this worker serves all its addresses.
    ///
    /// # Errors
    /// The primary is gone.
    pub(crate) fn send_ready(&mut self) -> Result<()> {
        for listener in std::mem::take(&mut self.listeners) {
            self.channel.send(&ToPrimary::Serving { listener }, vec![])?;
        }
        Ok(())
    }

    /// Reports that something other than the primary asked this worker to leave.
    ///
    /// # Errors
    /// The primary is gone.
    pub(crate) fn send_leaving(&mut self) -> Result<()> {
        match self.conversation.leave() {
            Some(message) => self.channel.send(&message, vec![]).map(drop),
            None => Ok(()),
        }
    }

    /// Says goodbye; a primary that is gone needs none.
    pub(crate) fn send_farewell(&mut self, handoff: Option<LatencySummary>) {
        if let Some(message) = self.conversation.farewell(handoff) {
            let _ = self.channel.send(&message, vec![]);
        }
    }
}

impl AsFd for ControlClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}
