//! A worker's side of the control channel: says hello, asks for its addresses, hears orders.
//!
//! Owns the conversation. What an order means for connections is the loop's business.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;

use clusterlb::ListenAddress;
use clusterlb::ListenerId;
use clusterlb::protocol::control::{Channel, LatencySummary, ListenOptions, ToPrimary, ToWorker};
use clusterlb::{Error, Result};

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
    /// Answers to `Listen` still to come.
    unanswered: usize,
    /// What it asked for, in the order of the requests.
    addresses: Vec<String>,
    /// What the answers were.
    listeners: Vec<ListenerId>,
}

impl ControlClient {
    /// Says hello and asks for every address, as a Node worker does when it listens.
    pub(crate) fn open(socket: OwnedFd, addresses: &[ListenAddress]) -> Result<Self> {
        let mut channel = Channel::new(socket);
        channel.send(&ToPrimary::Online { pid: std::process::id() }, vec![])?;
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        for (sequence, address) in (0..).zip(addresses.clone()) {
            let options = ListenOptions::default();
            channel.send(&ToPrimary::Listen { sequence, address, options }, vec![])?;
        }
        Ok(Self { channel, unanswered: addresses.len(), addresses, listeners: Vec::new() })
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
            match word {
                ToWorker::Listening { address, listener, .. } => {
                    self.listeners.push(listener);
                    let sockets = descriptors.into_iter();
                    orders.extend(
                        sockets.map(|socket| PrimaryRequest::Accept {
                            socket,
                            address: address.clone(),
                        }),
                    );
                    self.unanswered = self.unanswered.saturating_sub(1);
                    if self.unanswered == 0 {
                        orders.push(PrimaryRequest::Begin);
                    }
                }
                ToWorker::ListenFailed { sequence, step, errno } => {
                    let address = self.addresses.get(sequence as usize).cloned();
                    return Err(Error::Listen {
                        address: address.unwrap_or_default(),
                        step,
                        source: Errno::from_raw(errno).into(),
                    });
                }
                // This worker closes no listener before it leaves.
                ToWorker::Closed { .. } => {}
                ToWorker::Drain { grace_ms } => {
                    let grace = grace_ms.map(Duration::from_millis);
                    orders.push(PrimaryRequest::Leave { grace });
                }
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
        self.channel.send(&ToPrimary::Leaving, vec![]).map(drop)
    }

    /// Says goodbye; a primary that is gone does not miss it.
    pub(crate) fn say_farewell(&mut self, handoff: Option<LatencySummary>) {
        let _ = self.channel.send(&ToPrimary::Farewell { handoff }, vec![]);
    }
}

impl AsFd for ControlClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}
