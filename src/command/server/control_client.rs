//! A worker's side of the control channel: says hello, asks for its addresses, hears orders.
//!
//! Owns the conversation. What an order means for connections is the loop's business.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use clusterlb::protocol::control::{Channel, LatencySummary, ListenOptions, ToPrimary, ToWorker};
use clusterlb::protocol::worker_end::{Conversation, Grant, Heard};
use clusterlb::{ListenAddress, ListenerId, Result};

/// What the primary wants, or its end means.
#[derive(Debug)]
pub(crate) enum PrimaryRequest {
    /// Accept from this socket yourself.
    Accept {
        /// The listening socket.
        socket: OwnedFd,
        /// Its address.
        address: String,
    },
    /// Every address is known: begin, and then say that you are ready.
    Begin,
    /// Take nothing new, finish what is open.
    Leave {
        /// After this time open connections are cut; without one, after the worker's own.
        grace: Option<Duration>,
    },
}

/// The conversation.
#[derive(Debug)]
pub(crate) struct ControlClient {
    channel: Channel,
    conversation: Conversation,
    /// What was granted and is not served yet.
    listeners: Vec<ListenerId>,
}

impl ControlClient {
    /// Says hello and asks for every address, as a Node worker does when it listens.
    pub(crate) fn open(socket: OwnedFd, addresses: &[ListenAddress]) -> Result<Self> {
        let mut channel = Channel::new(socket);
        let mut conversation = Conversation::default();
        channel.send(&Conversation::hello(), vec![])?;
        for address in addresses {
            let (_, word) = conversation.ask(&address.to_string(), ListenOptions::default());
            channel.send(&word, vec![])?;
        }
        Ok(Self { channel, conversation, listeners: Vec::new() })
    }

    /// The primary is gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.channel.is_closed()
    }

    /// What the primary has said since the last call.
    ///
    /// # Errors
    /// An address cannot be served, or the primary does not keep to the format.
    pub(crate) fn hear(&mut self) -> Result<Vec<PrimaryRequest>> {
        let mut orders = Vec::new();
        for (word, descriptors) in self.channel.receive::<ToWorker>()? {
            match self.conversation.hear(word, descriptors) {
                Heard::Answer { grant, .. } => {
                    let Grant { listener, address, socket } = grant?;
                    self.listeners.push(listener);
                    let accept = socket.map(|socket| PrimaryRequest::Accept { socket, address });
                    orders.extend(accept);
                    if !self.conversation.is_waiting() {
                        orders.push(PrimaryRequest::Begin);
                    }
                }
                // This worker closes no listener before it leaves.
                Heard::Closed { .. } => {}
                Heard::Leave { grace } => orders.push(PrimaryRequest::Leave { grace }),
            }
        }
        if self.channel.is_closed() {
            // With the primary goes whoever could replace this worker. What is open is finished,
            // as after a request to leave.
            orders.push(PrimaryRequest::Leave { grace: None });
        } else {
            self.channel.flush()?;
        }
        Ok(orders)
    }

    /// Tells the primary that this worker serves every address it wants to.
    ///
    /// # Errors
    /// The primary is gone.
    pub(crate) fn announce_ready(&mut self) -> Result<()> {
        for listener in std::mem::take(&mut self.listeners) {
            self.channel.send(&ToPrimary::Serving { listener }, vec![])?;
        }
        Ok(())
    }

    /// Tells the primary that this worker was asked by somebody else to leave.
    ///
    /// # Errors
    /// The primary is gone.
    pub(crate) fn announce_leaving(&mut self) -> Result<()> {
        match self.conversation.leave() {
            Some(word) => self.channel.send(&word, vec![]).map(drop),
            None => Ok(()),
        }
    }

    /// Says goodbye; a primary that is gone does not miss it.
    pub(crate) fn say_farewell(&mut self, handoff: Option<LatencySummary>) {
        if let Some(word) = self.conversation.farewell(handoff) {
            let _ = self.channel.send(&word, vec![]);
        }
    }
}

impl AsFd for ControlClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}
