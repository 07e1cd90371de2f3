//! A worker's side of the control channel: says hello, asks for its addresses, hears orders.
//!
//! Owns the conversation. What an order means for connections is the loop's business.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;

use crate::address::ListenAddress;
use crate::control::{Channel, LatencySummary, ToPrimary, ToWorker};
use crate::error::{Error, Result};

/// What the primary wants, or its end means.
#[derive(Debug)]
pub(crate) enum Order {
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
pub(crate) struct Liaison {
    channel: Channel,
    /// Answers to `Listen` still to come.
    unanswered: usize,
}

impl Liaison {
    /// Says hello and asks for every address, as a Node worker does when it listens.
    pub(crate) fn open(socket: OwnedFd, addresses: &[ListenAddress]) -> Result<Self> {
        let mut channel = Channel::new(socket);
        channel.send(&ToPrimary::Online { pid: std::process::id() }, vec![])?;
        for (sequence, address) in (0..).zip(addresses) {
            let address = address.to_string();
            channel.send(&ToPrimary::Listen { sequence, address }, vec![])?;
        }
        Ok(Self { channel, unanswered: addresses.len() })
    }

    /// The primary is gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.channel.is_closed()
    }

    /// What the primary has said since the last call.
    ///
    /// # Errors
    /// An address cannot be served, or the primary does not keep to the format.
    pub(crate) fn hear(&mut self) -> Result<Vec<Order>> {
        let mut orders = Vec::new();
        for received in self.channel.receive::<ToWorker>()? {
            match received.message {
                ToWorker::Listening { address, .. } => {
                    let sockets = received.descriptors.into_iter();
                    orders.extend(
                        sockets.map(|socket| Order::Accept { socket, address: address.clone() }),
                    );
                    self.unanswered = self.unanswered.saturating_sub(1);
                    if self.unanswered == 0 {
                        orders.push(Order::Begin);
                    }
                }
                ToWorker::ListenFailed { errno, reason, .. } => {
                    return Err(Error::system(reason, Errno::from_raw(errno)));
                }
                ToWorker::Drain { grace_ms } => {
                    let grace = Some(Duration::from_millis(grace_ms));
                    orders.push(Order::Leave { grace });
                }
            }
        }
        if self.channel.is_closed() {
            // With the primary goes whoever could replace this worker. What is open is finished,
            // as after a request to leave.
            orders.push(Order::Leave { grace: None });
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
        self.channel.send(&ToPrimary::Ready, vec![])
    }

    /// Tells the primary that this worker was asked by somebody else to leave.
    ///
    /// # Errors
    /// The primary is gone.
    pub(crate) fn announce_leaving(&mut self) -> Result<()> {
        self.channel.send(&ToPrimary::Leaving, vec![])
    }

    /// Says goodbye; a primary that is gone does not miss it.
    pub(crate) fn say_farewell(&mut self, handoff: Option<LatencySummary>) {
        let _ = self.channel.send(&ToPrimary::Farewell { handoff }, vec![]);
    }
}

impl AsFd for Liaison {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}
